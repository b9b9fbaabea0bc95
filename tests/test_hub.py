"""Names of checkpoints: paths that ask nobody, repositories of the Hub, and every way in which those can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import tiny
from huggingface_hub import errors as hub
from huggingface_hub.utils._paths import filter_repo_objects

from helium_onnx.errors import CheckpointNotFoundError, MissingDependencyError, UsageError
from helium_onnx.hub import resolve_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "helium")


def test_an_existing_path_asks_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it raises
    monkeypatch.chdir(folder.parents[0])
    monkeypatch.setenv("HOME", str(folder.parent))
    (folder / "sub").mkdir()
    for name in (folder, str(folder), "helium", "./helium", "helium/sub", "~/helium"):
        assert resolve_checkpoint(name).resolve() in (folder, folder / "sub")
    with pytest.raises(UsageError, match="no revision"):
        resolve_checkpoint("helium", revision="main")


@pytest.mark.parametrize(
    "name",
    ["./none", "/none/x", "~/none", "~nobody-here/x", "../none", "a/b/c", "none", "", "a/", "/", "a b/c", "\0",
     "x" * 5000],
)  # fmt: skip
def test_a_path_that_is_missing_asks_nobody(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if name == "/":
        assert resolve_checkpoint(name) == Path("/")  # it exists; Checkpoint.open will look for its config
        return
    with pytest.raises(CheckpointNotFoundError, match="owner/name"):
        resolve_checkpoint(name)


def test_a_missing_path_object_is_never_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointNotFoundError):
        resolve_checkpoint(Path("owner/name"))


def test_the_hub_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"helium-onnx\[export\]"):
        resolve_checkpoint("kyutai/helium-1-preview-2b")


def stub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str]) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)


def test_a_repository_is_asked_for_what_an_export_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def answer(*args: Any, **keywords: Any) -> str:
        calls.append((args, keywords))
        return str(folder)

    stub(monkeypatch, answer)
    assert resolve_checkpoint("kyutai/helium-1-preview-2b", revision="v1", offline=True) == folder
    (args, keywords), = calls  # fmt: skip
    assert args == ("kyutai/helium-1-preview-2b",)
    patterns = keywords.pop("allow_patterns")
    assert keywords == {"revision": "v1", "local_files_only": True}
    wanted = filter_repo_objects(
        ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
         "README.md", "LICENSE", "pytorch_model.bin", "model.gguf", "modeling.py"], allow_patterns=patterns
    )  # fmt: skip
    assert len(list(wanted)) == 6


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        (hub.GatedRepoError("403", response=response(403)), "is gated", "hf auth login"),
        (
            hub.RepositoryNotFoundError("404", response=response(404)),
            "does not exist, or is private",
            "correct the name",
        ),
        (hub.RevisionNotFoundError("404", response=response(404)), "has no revision v9", "branch, tag or commit"),
        (hub.HfHubHTTPError("500", response=response(500)), "cannot be reached", "pass that folder"),
        (hub.LocalEntryNotFoundError("no network\nmore"), "cannot be reached", "fill the cache"),
        (hub.HFValidationError("bad"), "is no name", "owner/name"),
        (httpx2.ConnectError("refused"), "cannot be reached", "pass that folder"),
        (httpx2.ProxyError("refused"), "cannot be reached", "pass that folder"),
        (ConnectionError("refused"), "cannot be reached", "pass that folder"),
        (TimeoutError("slow"), "cannot be reached", "pass that folder"),
    ],
)
def test_every_failure_of_the_hub_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, remedy: str
) -> None:
    def answer(*_: Any, **__: Any) -> str:
        raise error

    stub(monkeypatch, answer)
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve_checkpoint("kyutai/helium", revision="v9")
    assert what in caught.value.what
    assert remedy in str(caught.value.remedy)
    assert type(error).__name__ in str(caught.value.found)
    assert caught.value.__cause__ is error


def hub_in_another_process(cache: Path, name: str) -> subprocess.CompletedProcess[str]:
    """The real snapshot_download, with HF_HUB_OFFLINE, which it reads when it is imported."""
    code = (
        "import sys; from helium_onnx.checkpoint import Checkpoint\n"
        "from helium_onnx.hub import resolve_checkpoint\n"
        f"c = Checkpoint.open(resolve_checkpoint({name!r})); c.check_tensors(c.config); print(c.folder)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_hf_hub_offline_finds_the_cache_and_says_what_is_not_in_it(tmp_path: Path) -> None:
    repository = tmp_path / "models--kyutai--tiny"
    snapshot = tiny.write_checkpoint(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert hub_in_another_process(tmp_path, "kyutai/tiny").stdout.strip() == str(snapshot)
    missing = hub_in_another_process(tmp_path, "kyutai/other").stderr
    assert "CheckpointNotFoundError: kyutai/other is not in the cache" in missing
    assert "hf download kyutai/other" in missing
