"""Which session a bundle gets, and what becomes of a native one that is full, closed, or asked for too much."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from pathlib import Path
from typing import get_args

import bundles
import numpy as np
import pytest
import tiny
from host_device import HostDevice

import helium_onnx
from helium_onnx import kernels
from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import GenerationError, IntegrityError, ProviderError, ResourceError, UsageError
from helium_onnx.progress import ProgressEvent
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe
from helium_onnx.runtimes import checked_files, opening
from helium_onnx.runtimes.cuda_session import CudaSession
from helium_onnx.runtimes.native_session import NativeSession, can_run
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.opening import KernelChoice, open_session, runs_natively

pytestmark = pytest.mark.usefixtures("native_kernels")
FOUR = MatrixSettings(4, 32)
IDS = np.random.default_rng(0).integers(4, 320, (1, 20))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with native graphs. Tests only read it."""
    folder = tmp_path_factory.mktemp("opening")
    recipe = Recipe("r", "a test's", quantization=Quantization("round-to-nearest", 4, FOUR, FOUR, FOUR))
    return helium_onnx.export(tiny.write_checkpoint(folder / "in"), folder / "out", recipe=recipe).path


@pytest.fixture
def bundle(exported: Path) -> Bundle:
    return Bundle.open(exported)


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat a small bundle as one whose digests are worth remembering."""
    monkeypatch.setattr(checked_files, "REMEMBERED_FROM_BYTES", 1)


# The choice


def test_auto_is_native_where_it_can_be(bundle: Bundle, sample_bundle_fp32: Path) -> None:
    assert can_run(bundle)
    for choice in ("auto", "native"):
        with contextlib.closing(open_session(bundle, choice=choice)) as session:  # type: ignore[arg-type]
            assert isinstance(session, NativeSession)
    with contextlib.closing(open_session(bundle, choice="onnxruntime", cache=False)) as other:
        assert isinstance(other, OnnxRuntimeSession)
    with contextlib.closing(open_session(Bundle.open(sample_bundle_fp32), cache=False)) as other:
        assert isinstance(other, OnnxRuntimeSession)


def test_auto_leaves_plain_cpp_for_onnxruntime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on ARM64, where our kernels have no vector code."""
    monkeypatch.setattr(kernels, "instruction_set", lambda: "generic")
    found = {choice: runs_natively(bundle, provider="auto", choice=choice) for choice in get_args(KernelChoice)}
    assert found == {"auto": False, "native": True, "onnxruntime": False}


def test_without_the_library_it_is_onnxruntime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert not can_run(bundle)
    with contextlib.closing(open_session(bundle, cache=False)) as session:
        assert isinstance(session, OnnxRuntimeSession)
        assert session.run("prefill", IDS, session.new_past(1)).shape == (1, 1, 320)


def test_native_kernels_that_cannot_be(
    bundle: Bundle, sample_bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"no such kernels\n.*'fast'\n.*auto, native, onnxruntime"):
        open_session(bundle, choice="fast")  # type: ignore[arg-type]
    with pytest.raises(ProviderError, match=r"a bundle without native graphs\n.*recipe cpu-int4"):
        open_session(Bundle.open(sample_bundle_fp32), choice="native")
    monkeypatch.setattr(kernels, "library", lambda: None)
    with pytest.raises(ProviderError, match=r"libhelium_kernels\.so cannot be loaded here\n.*kernels\.build"):
        open_session(bundle, choice="native")
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "libhelium_kernels.so")
    with pytest.raises(ProviderError, match=r"no libhelium_kernels\.so\n.*C\+\+ compiler.*kernels\.build"):
        open_session(bundle, choice="native")


def test_a_bundle_runs_on_the_provider_that_it_is_for_and_on_no_other(bundle: Bundle, cuda_bundle: Bundle) -> None:
    for provider in ("auto", "cpu"):
        with contextlib.closing(open_session(bundle, provider=provider)) as session:
            assert isinstance(session, NativeSession)
    with pytest.raises(ProviderError) as caught:
        open_session(bundle, provider="cuda")
    assert str(caught.value) == (
        f"{bundle.path} cannot run on the execution provider cuda\n"
        "  found:    recipe r, which is for cpu\n"
        "  expected: a recipe for cuda\n"
        "  remedy:   export the checkpoint with --recipe cuda-fp16 or cuda-bf16 or cuda-int4, or leave --provider at "
        "auto"
    )
    with pytest.raises(ProviderError, match=r"provider cpu\n.*cuda-fp16, which is for cuda\n[\s\S]*--recipe cpu-int4"):
        open_session(cuda_bundle, provider="cpu")
    for provider in ("gpu", "CUDA", ""):
        with pytest.raises(ProviderError, match=f"no execution provider '{provider}'\n.*one of auto, cpu, cuda"):
            open_session(cuda_bundle, provider=provider)


def test_a_bundle_of_a_later_version_for_another_provider(cuda_bundle: Bundle) -> None:
    recipe = {**cuda_bundle.manifest.recipe, "execution_provider": "abacus"}
    later = dataclasses.replace(cuda_bundle, manifest=dataclasses.replace(cuda_bundle.manifest, recipe=recipe))
    with pytest.raises(ProviderError, match=r"provider 'abacus'\n.*one of cpu, cuda, qnn.*\n.*upgrade"):
        open_session(later)


# On a GPU


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[HostDevice]:
    """Host devices in place of GPUs; those that were opened."""
    opened: list[HostDevice] = []

    def make() -> HostDevice:
        opened.append(HostDevice())
        return opened[-1]

    monkeypatch.setattr(opening, "CudaDevice", make)
    return opened


@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_a_cuda_bundle_gets_a_cuda_session(cuda_bundle: Bundle, devices: list[HostDevice], provider: str) -> None:
    with contextlib.closing(open_session(cuda_bundle, provider=provider, context_length=30)) as session:
        assert isinstance(session, CudaSession)
        assert session.context_length == 30
        assert session.run("prefill", IDS, session.new_past(1)).shape == (1, 1, 320)
    assert [device.closed for device in devices] == [True]
    assert not runs_natively(cuda_bundle, provider=provider, choice="auto")
    with pytest.raises(ProviderError, match=r"native kernels cannot run this\n.*there is no GPU"):
        open_session(cuda_bundle, provider=provider, choice="native")
    with pytest.raises(UsageError, match="no such kernels"):
        open_session(cuda_bundle, choice="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="1 to 1024"):
        open_session(cuda_bundle, threads=0)


def test_a_model_loads_and_generates_on_it(cuda_bundle: Bundle, devices: list[HostDevice]) -> None:
    with helium_onnx.load(cuda_bundle.path) as model:
        text = model.generate("Once upon a time", max_new_tokens=12, ignore_eos=True)
        assert len(text[0].token_ids) == 12
        assert devices[0].sessions["decode"].replays >= 11
    assert devices[0].closed and not devices[0].held


def test_without_a_gpu_it_is_an_error_and_no_run_on_the_cpu(
    cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ProviderError("there is no NVIDIA driver here", found="libcuda.so.1 is not found", remedy="install it")

    monkeypatch.setattr(opening, "CudaDevice", missing)
    for provider in ("auto", "cuda"):
        with pytest.raises(ProviderError) as caught:
            open_session(cuda_bundle, provider=provider)
        assert str(caught.value) == (
            "there is no NVIDIA driver here\n"
            "  found:    libcuda.so.1 is not found\n"
            "  expected: an NVIDIA GPU, which recipe cuda-fp16 is for\n"
            "  remedy:   install it; for this machine's CPU, export the checkpoint with --recipe cpu-int4 (helium-onnx "
            "doctor shows what runs here)"
        )


# Options


def test_options_reach_the_session(bundle: Bundle) -> None:
    with contextlib.closing(open_session(bundle, context_length=30, threads=3)) as session:
        assert (session.context_length, session.threads, session.vocab_size) == (30, 3, 320)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context_length": 257}, r"257\n.*2 to 256"),
        ({"context_length": 1}, "2 to 256"),
        ({"threads": 0}, "1 to 1024"),
        ({"threads": 1025}, "1025"),
    ],
)
def test_an_option_out_of_range(bundle: Bundle, options: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        NativeSession(bundle, **options)  # type: ignore[arg-type]


# Threads that wait


def test_threads_that_do_not_spin_use_no_processor_while_nothing_is_asked(bundle: Bundle) -> None:
    with contextlib.closing(NativeSession(bundle, threads=2)) as spinning:
        expected = spinning.run("prefill", IDS, spinning.new_past(1)).copy()
    with contextlib.closing(NativeSession(bundle, threads=2, spin=False)) as session:
        past = session.new_past(1)
        np.testing.assert_array_equal(session.run("prefill", IDS, past), expected)
        session.run("decode", IDS[:, :1], past)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1


# The context


def test_the_context_can_be_filled_to_its_last_slot(bundle: Bundle) -> None:
    with contextlib.closing(NativeSession(bundle, context_length=20)) as session:
        past = session.new_past(1)
        expected = session.run("prefill", IDS, past).copy()
        with pytest.raises(AssertionError, match="the past is full"):
            session.run("decode", IDS[:, :1], past)
        past.lengths[:] = 19
        np.testing.assert_array_equal(session.run("decode", IDS[:, 19:], past), expected)
        past.lengths[:] = 10
        with pytest.raises(AssertionError, match="the past is full"):
            session.run("prefill", IDS[:, :11], past)


def test_a_past_beyond_all_memory(bundle: Bundle) -> None:
    with contextlib.closing(NativeSession(bundle)) as session:
        with pytest.raises(ResourceError, match=r"1000000000000 rows of 256 tokens[\s\S]*GB needed[\s\S]*--context"):
            session.new_past(10**12)
        assert np.isfinite(session.run("prefill", IDS, session.new_past(1))).all()  # and goes on


def test_a_closed_session(bundle: Bundle) -> None:
    session = NativeSession(bundle)
    past = session.new_past(1)
    session.close()
    session.close()
    for call in (lambda: session.run("prefill", IDS, past), lambda: session.new_past(1), session.wait):
        with pytest.raises(GenerationError, match="closed"):
            call()


# Digests that are remembered


def load(folder: Path, cache_dir: Path | None) -> bool:
    """Load once; whether it said that it hashes."""
    events: list[ProgressEvent] = []
    with contextlib.closing(NativeSession(Bundle.open(folder), cache_dir=cache_dir, progress=events.append)):
        return "checking the bundle's digests, once" in [event.item for event in events]


def test_a_small_bundle_leaves_no_record(exported: Path, tmp_path: Path) -> None:
    assert not load(exported, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("remembering")
def test_a_large_bundle_is_hashed_once(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert load(copy, cache)
    (record,) = (cache / "checked").iterdir()
    assert record.name == f"{Bundle.open(copy).digest[:16]}.json"
    assert not load(copy, cache)
    again = shutil.copytree(copy, tmp_path / "again")
    assert load(again, cache)  # other files, though of the same content
    assert not load(copy, cache) and not load(again, cache)
    shutil.rmtree(again)
    (copy / "config.json").touch()
    assert load(copy, cache)
    assert str(again) not in record.read_text()  # what is gone is not kept in mind
    bundles.flip_bit(copy / WEIGHTS_FILE)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"model\.onnx_data has another content"):
            load(copy, cache)


@pytest.mark.usefixtures("remembering")
@pytest.mark.parametrize("text", ["", "null", "[]", "3", '{"a": 1}', '{"%s": null}'])
def test_a_record_that_is_none_is_written_anew(copy: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "cache"
    load(copy, cache)
    (record,) = (cache / "checked").iterdir()
    record.write_text(text.replace("%s", str(copy)))
    assert load(copy, cache)
    assert not load(copy, cache)


@pytest.mark.usefixtures("remembering")
def test_a_record_that_cannot_be_kept(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every load hashes, and works."""
    (tmp_path / "file").touch()
    assert load(copy, tmp_path / "file") and load(copy, tmp_path / "file")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(checked_files.Path, "home", homeless)
    assert not load(copy, None)
    bundles.flip_bit(copy / WEIGHTS_FILE)
    with pytest.raises(IntegrityError):
        load(copy, None)
