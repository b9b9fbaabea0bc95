"""helium-onnx validate without --text, as users meet it: texts, streams, exit codes, signals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke

import helium_onnx


class Report:
    """In the place of a ParityReport, which takes transformers to make."""

    def __init__(self, passed: bool) -> None:
        self.passed = passed

    def to_dict(self) -> dict[str, object]:
        return {"passed": self.passed}

    def render(self, console: Any) -> None:
        console.print("a report")


class TestValidate:
    @pytest.mark.parametrize("passed", [True, False])
    def test_report(self, passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, object] = {}

        def validate(path: Path, **options: object) -> Report:
            asked.update(options, path=path)
            return Report(passed)

        monkeypatch.setattr(helium_onnx, "validate", validate)
        args = ("validate", "out", "--against", "ckpt", "--prompt", "a", "--prompt", "b", "--max-new-tokens", 7)
        result = invoke(*args)
        assert (result.exit_code, result.stdout) == (0 if passed else 1, "a report\n")
        assert json.loads(invoke(*args, "--json").stdout) == {"passed": passed}
        asked.pop("progress")
        assert asked == {
            "path": Path("out"),
            "against": "ckpt",
            "prompts": ["a", "b"],
            "max_new_tokens": 7,
            "provider": "auto",
            "adapter": None,
        }

    def test_against_is_required(self) -> None:
        result = invoke("validate", "out")
        assert result.exit_code == 2
        assert "--against" in result.stderr
