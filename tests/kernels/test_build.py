"""Building the library: with a compiler, without one, and with one that fails."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from helium_onnx import kernels
from helium_onnx.kernels import build

ONE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")


def failing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that says what is wrong, and fails."""
    path = folder / "broken-c++"
    path.write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 3\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One small source in the place of ours, which take a while."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "one.cpp").write_text(ONE)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    return tmp_path / "src"


@needs_compiler
def test_it_gives_a_library_of_all_instruction_sets(tmp_path: Path) -> None:
    build.build(tmp_path / "made.so")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.so"]
    library = ctypes.CDLL(str(tmp_path / "made.so"))
    library.helium_kernels_name.restype = ctypes.c_char_p
    assert library.helium_use_kernels(b"generic") == 1
    assert library.helium_kernels_name() == b"generic"
    assert library.helium_use_kernels(b"none of these") == 0
    assert library.helium_kernels_name() == b"generic"
    assert library.RegisterCustomOps


@pytest.mark.usefixtures("native_kernels")
def test_the_built_library_is_of_these_sources() -> None:
    """Else the tests beside this one would test what is no longer there."""
    changed = [path.name for path in build.SOURCES.iterdir() if path.stat().st_mtime > build.LIBRARY.stat().st_mtime]
    assert not changed, "python -m helium_onnx.kernels.build"


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_an_older_library_is_replaced_not_written_into(tmp_path: Path) -> None:
    """A process that has it mapped keeps what it has."""
    target = tmp_path / "made.so"
    target.write_bytes(b"old")
    with target.open("rb") as mapped:
        build.build(target)
        assert mapped.read() == b"old"
    assert ctypes.CDLL(str(target)).answer() == 42
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.so", "src"]


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_without_a_compiler(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", path)
    assert build.compiler() is None
    with pytest.raises(FileNotFoundError, match=r"no C\+\+ compiler \(\$CXX, c\+\+, g\+\+, clang\+\+\)"):
        build.build(tmp_path / "made.so")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FileNotFoundError):
        build.build(tmp_path / "made.so")
    assert not list(tmp_path.iterdir())


def test_cxx_is_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(tmp_path, monkeypatch)
    assert build.compiler() == str(tmp_path / "broken-c++")


def test_a_failing_compiler_leaves_the_old_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing(tmp_path, monkeypatch)
    target = tmp_path / "made.so"
    target.write_bytes(b"old")
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        build.build(target)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken-c++", "made.so"]
    assert "it is broken" in capfd.readouterr().err


@needs_compiler
def test_an_error_in_the_sources(quick: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (quick / "two.cpp").write_text("int x = y;\n")
    with pytest.raises(subprocess.CalledProcessError):
        build.build(tmp_path / "made.so")
    assert "two.cpp" in capfd.readouterr().err
    assert not (tmp_path / "made.so").exists()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one set of instructions here")
def test_what_files_share_is_for_any_processor(quick: Path, tmp_path: Path) -> None:
    """Of an inline function that several files define the linker keeps one, and not that of avx2.cpp for all."""
    shared = "inline __attribute__((noinline)) int wide() {\n#ifdef __AVX2__\n return 1;\n#endif\n return 0; }\n"
    exported = 'extern "C" __attribute__((visibility("default"))) int %s() { return wide(); }\n'
    for name in ("avx2", "avx512", "generic"):
        (quick / f"{name}.cpp").write_text(shared + exported % name)
    build.build(tmp_path / "made.so")
    library = ctypes.CDLL(str(tmp_path / "made.so"))
    assert (library.generic(), library.avx2(), library.avx512()) == (0, 0, 0)


def test_the_command_tells_it_in_a_line(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "no-such-compiler"}
    command = [sys.executable, "-m", "helium_onnx.kernels.build"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("helium_onnx.kernels: not built: no C++ compiler")
    assert len(done.stderr.splitlines()) == 1


# What `library` makes of it


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_library_that_cannot_be_used_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, no library at all, and one of other sources (of an older version, say)."""
    path = tmp_path / "libhelium_kernels.so"
    monkeypatch.setattr(kernels, "LIBRARY", path)
    load = kernels.library.__wrapped__  # it remembers the first answer
    assert load() is None
    path.write_bytes(b"no library")
    assert load() is None
    build.build(path)
    assert load() is None


@pytest.mark.usefixtures("native_kernels")
def test_the_instruction_set_has_a_name() -> None:
    assert kernels.instruction_set() in ("avx512-vnni", "avx2", "generic")


def test_no_library_has_no_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert kernels.instruction_set() is None
