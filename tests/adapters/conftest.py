"""Base models, adapters of peft's and bundles for the adapters' tests, each made once. Tests only read them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny
from peft_adapters import RECIPES, write_adapter

import helium_onnx
from helium_onnx import Bundle


@pytest.fixture(scope="session", params=["helium", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of either model type, with grouped heads."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("base") / request.param, model_type=request.param)


@pytest.fixture(scope="session")
def helium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Helium one alone."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("base") / "helium")


@pytest.fixture(scope="session")
def small(helium: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 2 on some modules of ``helium``."""
    return write_adapter(
        helium, tmp_path_factory.mktemp("adapter") / "small", r=2, target_modules=["q_proj", "up_proj"]
    )


@pytest.fixture(scope="session")
def large(helium: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of rank 9 on all linear layers, scaled by its root, and of another rank and alpha in some."""
    return write_adapter(
        helium,
        tmp_path_factory.mktemp("adapter") / "large",
        seed=2,
        r=9,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={"layers.1.self_attn.v_proj": 3},
        alpha_pattern={"down_proj": 4},
    )


@pytest.fixture(scope="session")
def runtime_bundle(
    helium: Path, small: Path, large: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """Bundles of ``helium`` by the names of RECIPES, with both adapters beside the weights."""
    folder = tmp_path_factory.mktemp("bundles")
    return cache(
        lambda name: helium_onnx.export(
            helium,
            folder / name,
            recipe=RECIPES[name],
            adapter={"small": small, "large": large},
            adapter_mode="runtime",
        )
    )


@pytest.fixture(scope="session")
def plain_bundle(helium: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Likewise, of graphs that take no adapter."""
    folder = tmp_path_factory.mktemp("bundles")
    return cache(lambda name: helium_onnx.export(helium, folder / name, recipe=RECIPES[name]))
