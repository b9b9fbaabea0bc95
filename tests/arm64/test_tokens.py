"""Bundles generate on ARM64 what they generate here: to the token where nothing is rounded, near it where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from answers import Answer, distance
from environment import A72, A76, CPUS, Cpu

#: Largest difference of a float32 logit, as a part of the largest: sums in another order (5e-7 seen).
FLOAT32 = 5e-6

Ask = Callable[..., Answer]
each_cpu = pytest.mark.parametrize("cpu", CPUS, ids=[cpu.name for cpu in CPUS])


def test_float32_gives_the_same_200_tokens(sample_bundle_fp32: Path, ask: Ask) -> None:
    """Seven prompts in six languages, greedily, and drawn with a seed."""
    here, there = (ask(sample_bundle_fp32, cpu, tokens=200, sampled=40, long=True) for cpu in (None, A76))
    assert [len(row) for row in there.tokens[0]] == [200] * 7
    assert [len(row) for row in there.tokens[1]] == [40] * 2
    assert len({tuple(row) for row in there.tokens[0]}) == 7
    assert there.tokens == here.tokens
    assert distance(here, there) < FLOAT32
    assert there.session == "OnnxRuntimeSession"
    assert not there.torch and there.stderr == ""


def test_float32_without_the_dot_product(sample_bundle_fp32: Path, ask: Ask) -> None:
    here, there = (ask(sample_bundle_fp32, cpu, tokens=16, sampled=8) for cpu in (None, A72))
    assert there.tokens == here.tokens
    assert distance(here, there) < FLOAT32
    assert there.stderr == ""


@each_cpu
def test_4_bits_with_float32_activations(cpu: Cpu, float_bundle: Path, ask: Ask) -> None:
    """accuracy_level 1 rounds the weights alone, and these when the bundle is made."""
    here, there = (ask(float_bundle, one, tokens=16, sampled=8) for one in (None, cpu))
    assert there.tokens == here.tokens
    assert distance(here, there) < FLOAT32


def test_4_bits_with_activations_in_8(fast_bundle: Path, float_bundle: Path, ask: Ask) -> None:
    """accuracy_level 4 leaves it to each instruction set how activations are rounded, so tokens part at close calls.
    With the dot product ARM64 is as near as this machine to what the same weights give without that rounding.
    """
    here, there = (ask(fast_bundle, cpu, tokens=1, kernels="onnxruntime") for cpu in (None, A76))
    exact = ask(float_bundle, None, tokens=16, sampled=8)
    assert distance(exact, there) < 1.5 * distance(exact, here)
    assert distance(exact, there) > 100 * FLOAT32, "nothing was rounded: accuracy_level was not what it says"
    assert there.stderr == ""


def test_without_the_dot_product_activations_stay_in_float32(fast_bundle: Path, float_bundle: Path, ask: Ask) -> None:
    """ONNX Runtime has no kernel for accuracy_level 4 there, and takes the one that rounds nothing."""
    exact = ask(float_bundle, None, tokens=16, sampled=8)
    assert distance(exact, ask(fast_bundle, A72, tokens=1, kernels="onnxruntime")) < FLOAT32


@pytest.mark.usefixtures("needs_kernels")
def test_our_kernels_in_plain_cpp(fast_bundle: Path, float_bundle: Path, ask: Ask) -> None:
    """They run where they are asked for, and are as near as here to what the same weights give without rounding."""
    here, there = (ask(fast_bundle, cpu, tokens=4, kernels="native") for cpu in (None, A76))
    exact = ask(float_bundle, None, tokens=16, sampled=8)
    assert there.session == "NativeSession" and there.instruction_set == "generic"
    print(
        f"from this machine: {distance(here, there):.2g}; from exact: {distance(exact, here):.2g}, there "
        f"{distance(exact, there):.2g}"
    )
    assert distance(exact, there) < 1.5 * distance(exact, here)
