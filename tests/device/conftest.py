"""What tests on a GPU share: the GPU itself, without which they are skipped, and bundles that are made once.

    python -m pytest tests/device -rs          # on a machine with an NVIDIA GPU and helium-onnx[cuda,eval]

HELIUM_REQUIRE_GPU=1 makes them fail where they would be skipped. Figures that are compared with a bar are printed (-s).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import device_models
import pytest

import helium_onnx
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe, load_recipe
from helium_onnx.runtimes.cuda_driver import DeviceInfo, probe

SAMPLE = Path(__file__).parents[2] / "samples" / "helium-docs-7m"


@pytest.fixture(scope="session")
def gpu() -> DeviceInfo:
    """The device that is tested on."""
    report = probe()
    if report.problem is not None:
        reason = f"needs an NVIDIA GPU that CUDA can use: {report.problem}"
        if os.environ.get("HELIUM_REQUIRE_GPU"):
            pytest.fail(reason)
        pytest.skip(reason)
    import torch

    assert torch.cuda.is_available(), "the reference runs on the GPU: install PyTorch for CUDA"
    return report.devices[0]


@pytest.fixture(autouse=True)
def _on_a_gpu(gpu: DeviceInfo) -> None:
    """Every test in this folder."""


Exported = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of a model (``docs``, ``wide``, ``grouped``, ``llama``) under a recipe's name, made once."""
    folder = tmp_path_factory.mktemp("device")

    @functools.cache
    def export(model: str, recipe: str) -> Path:
        chosen = recipe if recipe.startswith("cuda-") else other_recipe(recipe)
        return helium_onnx.export(checkpoint(model), folder / f"{model}-{recipe}", recipe=chosen).path

    @functools.cache
    def checkpoint(model: str) -> Path:
        return SAMPLE if model == "docs" else device_models.write(model, folder / model)

    export.checkpoint = checkpoint  # type: ignore[attr-defined]
    return export


@pytest.fixture(scope="session")
def checkpoint_of(exported: Exported) -> Callable[[str], Path]:
    """The checkpoint of a model of ``exported``."""
    found: Callable[[str], Path] = exported.checkpoint  # type: ignore[attr-defined]
    return found


def other_recipe(name: str) -> Recipe:
    """A recipe of device_models.WIDE; ``-kv8`` behind its name: over an int8 cache."""
    if name.endswith("-kv8"):
        base = other_recipe(name.removesuffix("-kv8"))
        precision = dataclasses.replace(base.precision, key_value_cache="int8")
        return dataclasses.replace(base, name=f"test-{name}", precision=precision)
    base = load_recipe("cuda-bf16" if name.startswith("bf16") else "cuda-fp16")
    name = name.removeprefix("bf16-")
    if name in ("fp16", "bf16"):
        return base
    bits, block, *zeros = name.removeprefix("int").split("-")
    scales = base.precision.compute
    one = MatrixSettings(int(bits), int(block), symmetric=not zeros, scales=scales)  # type: ignore[arg-type]
    head = dataclasses.replace(one, block_size=32)
    embedding = one if zeros else MatrixSettings()
    return dataclasses.replace(
        base,
        name=f"test-{name}",
        quantization=Quantization("round-to-nearest", 0, linear=one, head=head, embedding=embedding),
    )
