"""helium-onnx generate with saved sessions, a prefix cache and drafts."""

from __future__ import annotations

import json
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke, names_in, start

from helium_onnx.generation.draft_length import DraftLength
from helium_onnx.sizes import parse_size

#: Longer than ONNX Runtime's prefill chunk of 512 tokens, below which its kernels' work is not reused.
LONG = "To insert a table into a text document, choose the command and then the number of rows. " * 50


@pytest.fixture(scope="module")
def fast_bundle(export_sample: Callable[[str], Path]) -> Path:
    return export_sample("cpu-int4-fast")


def answer(*args: object) -> dict[str, Any]:
    result = invoke("generate", *args, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


class TestSession:
    def test_the_next_run_computes_only_what_is_new(self, fast_bundle: Path, tmp_path: Path) -> None:
        args = (fast_bundle, LONG, "--max-new-tokens", 8, "--session", tmp_path / "talk")
        first, second = answer(*args), answer(*args)
        assert first["generations"][0]["cached_tokens"] == 0
        assert second["generations"][0]["cached_tokens"] >= 512
        assert second["generations"][0]["token_ids"] == first["generations"][0]["token_ids"]
        assert names_in(tmp_path) == ["talk"]
        assert stat.S_IMODE((tmp_path / "talk").stat().st_mode) == 0o600

    def test_the_statistics_say_what_was_reused(self, fast_bundle: Path, tmp_path: Path) -> None:
        args = ("generate", fast_bundle, LONG, "--max-new-tokens", 2, "--session", tmp_path / "talk", "--stats", "-q")
        assert "cache" not in invoke(*args).stderr
        assert re.search(r", \d+ of \d+ prompt tokens from the cache, ", invoke(*args).stderr)

    def test_an_interrupted_run_is_kept(self, fast_bundle: Path, tmp_path: Path) -> None:
        args = (fast_bundle, LONG, "--session", tmp_path / "talk")
        with start("generate", *args, "--max-new-tokens", 900, "--ignore-eos", "-q") as process:
            assert process.stdout is not None
            process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        assert process.returncode in (0, 130)  # 0 where it was faster than the signal
        assert answer(*args, "--max-new-tokens", 2)["generations"][0]["cached_tokens"] >= 512

    def test_the_file_of_another_bundle_is_left_alone(
        self, fast_bundle: Path, sample_bundle_fp32: Path, tmp_path: Path
    ) -> None:
        answer(fast_bundle, LONG, "--max-new-tokens", 1, "--session", tmp_path / "talk")
        before = (tmp_path / "talk").read_bytes()
        result = invoke("generate", sample_bundle_fp32, "a", "--session", tmp_path / "talk")
        assert result.exit_code == 1
        assert "the session of another bundle" in result.stderr
        assert result.stdout == ""
        assert (tmp_path / "talk").read_bytes() == before

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--session", "no/such/talk"], "there is no folder no/such"),
            (["--session", "talk", "--prefix-cache", "0"], "leave out --prefix-cache 0"),
        ],
    )
    def test_what_cannot_be_kept_is_told_before_the_work(self, args: list[str], message: str) -> None:
        result = invoke("generate", "nowhere", "a", *args)  # not even the bundle is looked for
        assert result.exit_code == 2
        assert message in result.stderr


class TestPrefixCache:
    def test_prompts_of_a_batch_share_their_beginning(self, fast_bundle: Path) -> None:
        args = (fast_bundle, LONG + "First", LONG + "Second", "--max-new-tokens", 4)
        shared, alone = answer(*args), answer(*args, "--prefix-cache", "0")
        assert [row["cached_tokens"] > 0 for row in shared["generations"]] == [False, True]
        assert [row["cached_tokens"] for row in alone["generations"]] == [0, 0]
        assert [row["text"] for row in shared["generations"]] == [row["text"] for row in alone["generations"]]

    @pytest.mark.parametrize("size", ["-1", "many", "12", "1.5", "GB", "-2GB", "1e9"])
    def test_sizes_that_are_none(self, size: str) -> None:
        result = invoke("generate", "nowhere", "a", f"--prefix-cache={size}")
        assert result.exit_code == 2
        assert "512MB" in result.stderr

    @pytest.mark.parametrize(
        ("text", "size"),
        [("0", 0), ("512MB", 512_000_000), ("2 GB", 2 * 10**9), ("1.5GiB", 3 << 29), ("64kib", 65536), ("7B", 7)],
    )
    def test_sizes_are_read(self, text: str, size: int) -> None:
        assert parse_size(text) == size
        assert parse_size(size) == size


class TestSpeculation:
    @pytest.mark.parametrize("choice", ["auto", "off", "prompt-lookup"])
    def test_the_text_is_the_same(self, choice: str, fast_bundle: Path) -> None:
        args = (fast_bundle, "To insert a table, choose Table. To insert a", "--max-new-tokens", 60)
        found, plain = answer(*args, "--speculation", choice), answer(*args, "--speculation", "off")
        assert found["generations"][0]["text"] == plain["generations"][0]["text"]
        assert plain["speculation"] is None
        if choice == "prompt-lookup":
            assert found["speculation"]["method"] == "prompt-lookup"

    def test_the_statistics_say_what_was_drafted(self, fast_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DraftLength, "choose", lambda _, __, most, **___: min(most, 3))
        monkeypatch.setattr(DraftLength, "record_draft", lambda *_: None)
        monkeypatch.setattr("helium_onnx.generation.speculation._LONGEST_PAUSE", 0)
        args = (fast_bundle, "one two one two one two", "--max-new-tokens", 8, "--speculation", "prompt-lookup")
        told = invoke("generate", *args, "--stats", "-q", "--ignore-eos").stderr
        assert re.search(r" s, \d\.\d\d tokens a step \(\d+ of \d+ drafted\), finish reason length\n", told)

    def test_a_draft_model(self, fast_bundle: Path, sample_bundle_fp32: Path) -> None:
        args = (sample_bundle_fp32, "To insert a table", "--max-new-tokens", 60)
        found, plain = answer(*args, "--draft", fast_bundle), answer(*args)
        assert found["speculation"]["method"] == "draft-model"
        assert found["generations"][0]["text"] == plain["generations"][0]["text"]

    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (["--speculation", "on"], 2, "one of auto, off, prompt-lookup"),
            (["--draft", "nowhere"], 1, "There is no folder nowhere"),
        ],
    )
    def test_errors(self, args: list[str], code: int, message: str, fast_bundle: Path) -> None:
        result = invoke("generate", fast_bundle, "a", *args)
        assert result.exit_code == code
        assert message in result.stderr
        assert result.stdout == ""
