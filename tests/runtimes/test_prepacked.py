"""The cache of prepacked weights: it changes no token, and serves the one bundle, version and processor it is of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
from bundles import flip_bit
from prepacked_loads import BUILD, CHECK, load, names

from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import IntegrityError
from helium_onnx.runtimes import prepacked
from helium_onnx.runtimes.prepacked import PrepackedCache


def test_it_is_built_once_and_changes_no_token(copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]) -> None:
    first = load(copy, tmp_path / "cache")
    assert BUILD in first and CHECK in first
    second = load(copy, tmp_path / "cache")
    assert second.said == []  # nothing built, nothing hashed
    assert first.token_ids == second.token_ids == expected_tokens
    cache = PrepackedCache(Bundle.open(copy), tmp_path / "cache")
    assert names(tmp_path / "cache" / "prepacked") == [cache.folder.name]
    assert names(cache.folder) == ["cache.json", "decode.onnx", "prefill.onnx", "sources.json", "weights.data"]
    assert cache.check()


def test_the_bundle_is_not_written_to(copy: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(copy.rglob("*"))}
    load(copy, tmp_path / "cache")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(copy.rglob("*"))} == before


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [flip_bit, halve, Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["weights.data", "prefill.onnx", "decode.onnx", "cache.json"])
def test_what_was_changed_is_built_anew(
    copy: Path, cache_folder: Path, expected_tokens: tuple[int, ...], name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(cache_folder / name)
    again = load(copy, cache_folder.parents[1])
    assert BUILD in again
    assert again.token_ids == expected_tokens
    assert load(copy, cache_folder.parents[1]).said == []
    assert PrepackedCache(Bundle.open(copy), cache_folder.parents[1]).check()


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", '"x"', '{"sha256": 1, "weights": []}', '{"weights": {"a": 1}}']
)
def test_a_record_that_is_none_is_written_anew(
    copy: Path, cache_folder: Path, expected_tokens: tuple[int, ...], text: str
) -> None:
    (cache_folder / "cache.json").write_text(text)
    assert BUILD in load(copy, cache_folder.parents[1])
    (cache_folder / "sources.json").write_text(text)
    again = load(copy, cache_folder.parents[1])
    assert again.said == [CHECK]  # the bundle is hashed again, the cache stays
    assert again.token_ids == expected_tokens
    assert load(copy, cache_folder.parents[1]).said == []


def test_a_folder_in_the_place_of_a_file(copy: Path, cache_folder: Path, expected_tokens: tuple[int, ...]) -> None:
    (cache_folder / "weights.data").unlink()
    (cache_folder / "weights.data").mkdir()
    again = load(copy, cache_folder.parents[1])
    assert BUILD in again
    assert again.token_ids == expected_tokens


def test_the_check_reads_what_the_stamp_cannot_see(copy: Path, cache_folder: Path) -> None:
    path = cache_folder / "weights.data"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    flip_bit(path)
    os.utime(path, ns=times)
    cache = PrepackedCache(Bundle.open(copy), cache_folder.parents[1])
    assert cache.is_sound()
    assert not cache.check()


# Keys


def test_another_version_of_onnxruntime_replaces_the_cache(
    copy: Path, cache_folder: Path, expected_tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache_folder.parent / "another-bundles-cache").mkdir()
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    again = load(copy, cache_folder.parents[1])
    assert BUILD in again and again.token_ids == expected_tokens
    assert names(cache_folder.parent) == sorted(
        ["another-bundles-cache", f"{cache_folder.name.rpartition('-')[0]}-9.9.9"]
    )


def test_another_processor_has_its_own(copy: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "cpu_key", lambda: "0" * 12)
    assert BUILD in load(copy, cache_folder.parents[1])
    assert len(names(cache_folder.parent)) == 2  # a home may be shared by machines of two kinds
    assert cache_folder.name in names(cache_folder.parent)


def test_the_processors_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(cpuinfo: str) -> str:
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
        return prepacked.cpu_key()

    base = "processor\t: 0\nvendor_id\t: X\ncpu family\t: 6\nmodel\t\t: 1\nflags\t\t: avx avx2\ncpu MHz\t\t: 2000.1\n"
    assert (
        key(base)
        == key(base.replace("2000.1", "3100.7"))
        == key(base + base.replace("processor\t: 0", "processor\t: 1"))
    )
    assert key(base) != key(base.replace("avx2", "avx2 avx512f"))
    assert key(base) != key(base.replace("model\t\t: 1", "model\t\t: 2"))
    arm = "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
    assert key(arm) != key(arm.replace("asimd", "asimd asimddp"))


# The bundle behind the cache


def test_a_touched_bundle_is_hashed_but_nothing_is_built(
    copy: Path, cache_folder: Path, expected_tokens: tuple[int, ...]
) -> None:
    os.utime(copy / WEIGHTS_FILE)
    again = load(copy, cache_folder.parents[1])
    assert again.said == [CHECK]
    assert again.token_ids == expected_tokens
    assert load(copy, cache_folder.parents[1]).said == []


def test_copies_of_a_bundle_share_the_cache(copy: Path, cache_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    assert load(other, cache_folder.parents[1]).said == [CHECK]
    assert load(other, cache_folder.parents[1]).said == []
    assert load(copy, cache_folder.parents[1]).said == []
    assert names(cache_folder.parent) == [cache_folder.name]


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "onnx/prefill.onnx", "tokenizer.json"])
def test_a_damaged_bundle_is_refused_with_a_warm_cache(copy: Path, cache_folder: Path, name: str) -> None:
    flip_bit(copy / name)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"{name} has another content"):
            load(copy, cache_folder.parents[1])


# Where it is


def test_it_pays_from_a_size_on(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepacked.PAYS_FROM_BYTES == 64 << 20
    assert load(copy, tmp_path / "cache", cache=None).said == []
    assert not (tmp_path / "cache").exists()
    size = (copy / WEIGHTS_FILE).stat().st_size
    cache = PrepackedCache(Bundle.open(copy), tmp_path / "cache")
    monkeypatch.setattr(prepacked, "PAYS_FROM_BYTES", size + 1)
    assert not cache.pays()
    monkeypatch.setattr(prepacked, "PAYS_FROM_BYTES", size)
    assert cache.pays()
    assert BUILD in load(copy, tmp_path / "cache", cache=None)


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert prepacked.default_cache_dir() == tmp_path / ".cache" / "helium-onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert prepacked.default_cache_dir() == tmp_path / "x" / "helium-onnx"
