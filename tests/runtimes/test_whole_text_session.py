"""The session of tasks without generation: which graph it runs, and what it says when it cannot."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
import reference
import task_models

import helium_onnx
from helium_onnx import kernels
from helium_onnx.bundle import Bundle
from helium_onnx.errors import GenerationError, IntegrityError, ProviderError, ResourceError, UsageError
from helium_onnx.runtimes.whole_text_session import WholeTextSession

IDS, MASK = np.array([[1, 300, 270, 290], [1, 280, 3, 3]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = task_models.make_model("feature-extraction", "helium")
    return reference.save(model, tmp_path_factory.mktemp("session") / "checkpoint")


@pytest.fixture(scope="module")
def quantized(checkpoint: Path) -> Bundle:
    return helium_onnx.export(checkpoint, checkpoint.parent / "int8", recipe="cpu-int8")


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Bundle:
    return helium_onnx.export(checkpoint, checkpoint.parent / "fp32", recipe="cpu-fp32")


@pytest.fixture(scope="module")
def portable(checkpoint: Path) -> Bundle:
    return helium_onnx.export(checkpoint, checkpoint.parent / "portable", recipe="portable-fp32")


def test_kernels(
    quantized: Bundle,
    plain: Bundle,
    portable: Bundle,
    native_kernels: ctypes.CDLL,  # noqa: ARG001
) -> None:
    for bundle in (quantized, plain):
        assert WholeTextSession(bundle).native == kernels.vectorized()
        assert WholeTextSession(bundle, choice="native").native
        assert not WholeTextSession(bundle, choice="onnxruntime").native
    assert not WholeTextSession(portable).native
    with pytest.raises(ProviderError, match="native kernels cannot run this"):
        WholeTextSession(portable, choice="native")
    with pytest.raises(UsageError, match="no such kernels"):
        WholeTextSession(portable, choice="fast")  # type: ignore[arg-type]


def test_both_graphs_agree(quantized: Bundle, plain: Bundle, native_kernels: ctypes.CDLL) -> None:  # noqa: ARG001
    for bundle, most in ((quantized, 0.1), (plain, 1e-5)):
        ours, theirs = (WholeTextSession(bundle, choice=c).run(IDS, MASK) for c in ("native", "onnxruntime"))
        assert ours.shape == theirs.shape == (2, 4, 64)
        assert np.abs(ours - theirs)[MASK == 1].max() <= most * np.abs(theirs[MASK == 1]).max()


def test_threads_change_nothing_that_counts(plain: Bundle) -> None:
    one, two = (WholeTextSession(plain, threads=n, spin=False).run(IDS, MASK) for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(one).max())


def test_closing(plain: Bundle) -> None:
    session = WholeTextSession(plain)
    session.close()
    session.close()
    with pytest.raises(GenerationError, match="closed"):
        session.run(IDS, MASK)


@pytest.mark.parametrize("provider", ["cuda", "qnn", "nonsense"])
def test_other_providers(plain: Bundle, provider: str) -> None:
    with pytest.raises(ProviderError):
        WholeTextSession(plain, provider=provider)


def test_webgpu_is_for_generation(plain: Bundle) -> None:
    with pytest.raises(ProviderError, match="cannot run on the execution provider webgpu") as caught:
        WholeTextSession(plain, provider="webgpu")
    assert "feature-extraction" in str(caught.value)


def test_a_gpu_that_is_not_there(checkpoint: Path) -> None:
    from helium_onnx.runtimes.cuda_driver import probe

    if probe().problem is None:
        pytest.skip("this machine has a GPU")
    bundle = helium_onnx.export(checkpoint, checkpoint.parent / "cuda", recipe="cuda-fp16")
    with pytest.raises(ProviderError) as caught:
        helium_onnx.load(bundle.path)
    assert caught.value.remedy is not None and "--recipe cpu-int4" in caught.value.remedy


def test_limits(plain: Bundle) -> None:
    assert WholeTextSession(plain, context_length=8).context_length == 8
    assert WholeTextSession(plain).context_length == 256
    for options in ({"context_length": 257}, {"context_length": 1}, {"threads": 0}):
        with pytest.raises(UsageError):
            WholeTextSession(plain, **options)  # type: ignore[arg-type]


def test_changed_weights(checkpoint: Path, tmp_path: Path) -> None:
    bundle = helium_onnx.export(checkpoint, tmp_path / "out", recipe="cpu-fp32")
    weights = bundle.path / "onnx/model.onnx_data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        WholeTextSession(bundle)


class _Failing:
    def __init__(self, message: str) -> None:
        self.message = message

    def run(self, *_: object) -> None:
        raise RuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "error"), [("bad allocation", ResourceError), ("Got invalid dimensions", GenerationError)]
)
def test_what_onnxruntime_says(plain: Bundle, message: str, error: type[Exception]) -> None:
    session = WholeTextSession(plain)
    session._session = _Failing(message)  # type: ignore[assignment]
    with pytest.raises(error, match=re.escape("2 texts of 4 tokens")) as caught:
        session.run(IDS, MASK)
    assert message in str(caught.value)
