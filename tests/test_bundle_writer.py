"""Writing a bundle: what is replaced, and what an interruption leaves behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import bundles
import pytest

from helium_onnx import atomic
from helium_onnx.bundle import BundleWriter
from helium_onnx.errors import BundleError, TargetExistsError, TargetLockedError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return bundles.write_bundle(tmp_path / "bundle", "old").path


def test_writing_leaves_the_bundle_alone(target: Path) -> None:
    bundles.assert_whole(target, "old")


def test_folders_above_are_made(tmp_path: Path) -> None:
    bundles.assert_whole(bundles.write_bundle(tmp_path / "a/b/c").path, "")


def test_without_commit_nothing_is_there(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b", force=False, expected_bytes=0) as writer:
        bundles.write_files(writer.folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_is_never_replaced(kind: str, force: bool, target: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    match kind:
        case "file":
            other.write_text("mine")
        case "folder":
            other.mkdir()
            (other / "thesis.txt").write_text("mine")
        case "link":
            other.symlink_to(target)
        case _:
            other.symlink_to(tmp_path / "nowhere")
    before = bundles.snapshot(tmp_path)
    with pytest.raises(TargetExistsError, match="is not a bundle"):
        bundles.write_bundle(other, force=force)
    assert bundles.snapshot(tmp_path) == before
    assert os.path.lexists(other)


def test_a_bundle_needs_force(target: Path) -> None:
    with pytest.raises(TargetExistsError, match="--force"):
        bundles.write_bundle(target, "new")
    bundles.assert_whole(target, "old")
    bundles.assert_whole(bundles.write_bundle(target, "new", force=True).path, "new")


def test_an_empty_folder_needs_force(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(TargetExistsError, match="--force"):
        bundles.write_bundle(tmp_path / "b")
    bundles.assert_whole(bundles.write_bundle(tmp_path / "b", force=True).path, "")


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchanging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the kernel's exchange of two names, and on a file system that has none."""
    if not request.param:
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    return bool(request.param)


@pytest.mark.usefixtures("exchanging")
def test_replacing(target: Path) -> None:
    bundles.assert_whole(bundles.write_bundle(target, "new", force=True).path, "new")


@pytest.mark.usefixtures("exchanging")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad"), SystemExit(3)])
@pytest.mark.parametrize("existing", [True, False])
def test_interrupted(error: BaseException, existing: bool, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    if existing:
        bundles.write_bundle(target, "old")

    def stop(_: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        bundles.write_bundle(target, "new", force=True, before_commit=stop)
    if existing:
        bundles.assert_whole(target, "old")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"] * existing


@pytest.mark.usefixtures("exchanging")
@pytest.mark.parametrize("step", ["fsync", "exchange", "_sibling", "free_bytes"])
def test_interrupted_inside(step: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within the writer's own steps."""

    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bundles.write_bundle(target, "new", force=True)
    bundles.assert_whole(target, "old")


@pytest.mark.parametrize("call", [1, 2])
def test_interrupted_between_two_renames(call: int, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = Path.rename, []

    def interrupt(self: Path, goal: Path) -> Path:
        calls.append(goal)
        if len(calls) == call:
            raise KeyboardInterrupt
        return rename(self, goal)

    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bundles.write_bundle(target, "new", force=True)
    bundles.assert_whole(target, "old")


def test_killed_between_two_renames(target: Path) -> None:
    """What such a kill leaves: the next writer gives the old bundle its name back before it looks at the target."""
    target.rename(target.parent / f".bundle.replaced-{'0' * 16}")
    (target.parent / f".bundle.partial-{'1' * 16}").mkdir()
    with pytest.raises(TargetExistsError, match="--force"):
        bundles.write_bundle(target, "new")
    bundles.assert_whole(target, "old")


def test_others_folders_are_no_leftovers(target: Path) -> None:
    names = [".bundle.partial-mine", ".bundle.partial-0123456789ABCDEF", "x.bundle.partial-0123456789abcdef"]
    names += [".bundle2.partial-0123456789abcdef", ".bundle.partial-0123456789abcdef.lock"]
    for name in names:
        (target.parent / name).mkdir()
    bundles.write_bundle(target, "new", force=True)
    assert bundles.beside(target) == sorted(names)


def test_a_writer_that_fails_at_the_end_keeps_the_old(target: Path) -> None:
    """A manifest that no reader would take is found before it replaces anything."""
    with pytest.raises(BundleError, match="does not list"):
        bundles.write_bundle(target, "new", force=True, before_commit=lambda folder: shutil.rmtree(folder / "onnx"))
    bundles.assert_whole(target, "old")


def test_two_writers(target: Path) -> None:
    with BundleWriter(target, force=True, expected_bytes=0) as writer:
        with pytest.raises(TargetLockedError, match=str(os.getpid())):
            bundles.write_bundle(target, "other", force=True)
        bundles.write_files(writer.folder, "new")
        committed = writer.commit(bundles.manifest())
        assert committed.path == target
    bundles.assert_whole(target, "new")
