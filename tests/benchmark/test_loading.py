"""Loads in processes of their own: the order of moments, memory, and the page cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helium_onnx.benchmark.loading import (
    Load,
    cached_share,
    drop_from_page_cache,
    measure_cold,
    measure_warm,
    process_memory,
)
from helium_onnx.bundle import Bundle
from helium_onnx.errors import HeliumOnnxError

OPTIONS = {"provider": "cpu", "threads": 1, "cache": None, "cache_dir": None}


def check(load: Load | None) -> None:
    assert load is not None
    assert 0 < load.import_seconds < load.loaded_seconds < load.first_token_seconds < load.ready_seconds
    assert (load.runs, load.prompt_tokens) == (1, 4)
    assert load.private_bytes is None or load.private_bytes > 1_000_000
    assert load.shared_bytes is None or load.shared_bytes > 1_000_000
    assert load.cached_share is None or 0 <= load.cached_share <= 1


def test_warm_and_cold(sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    check(measure_warm(bundle, OPTIONS, prompt_tokens=4, runs=1))
    check(measure_cold(bundle, OPTIONS, prompt_tokens=4, runs=1))


def test_without_fadvise_there_is_no_cold_load(sample_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    assert measure_cold(Bundle.open(sample_bundle), OPTIONS, prompt_tokens=4, runs=1) is None


def test_the_page_cache(sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    bundle.check_digests()  # reads every file
    full = cached_share(bundle)
    drop_from_page_cache(bundle)
    emptied = cached_share(bundle)
    if full is None or emptied is None:
        pytest.skip("no mincore(2)")
    assert 0 <= emptied <= full == 1  # a folder in tmpfs keeps all
    bundle.check_digests()  # and nothing was lost


def test_memory_of_this_process() -> None:
    private, shared = process_memory()
    if private is None or shared is None:
        pytest.skip("no /proc/self/smaps_rollup")
    assert private > 1_000_000
    assert shared > 1_000_000


def test_a_load_that_fails_says_why(tmp_path: Path, sample_bundle: Path) -> None:
    gone = Bundle(tmp_path / "gone", Bundle.open(sample_bundle).manifest)
    with pytest.raises(HeliumOnnxError, match="the process that measures failed") as caught:
        measure_warm(gone, OPTIONS, prompt_tokens=4, runs=1)
    assert caught.value.found == f"There is no folder {gone.path}."
