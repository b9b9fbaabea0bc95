"""helium-onnx inspect and verify, as users meet them: texts, streams, exit codes, signals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import assert_plain, invoke

import helium_onnx
from helium_onnx.verification import Check


class TestInspect:
    def test_text(self, sample_bundle: Path) -> None:
        result = invoke("inspect", sample_bundle)
        assert result.exit_code == 0
        for part in ("prefill.onnx", "attention", "bits a weight", "past_key_values.{0..5}.key"):
            assert part in result.stdout
        assert_plain(result.stdout)

    def test_json(self, sample_bundle: Path) -> None:
        assert json.loads(invoke("inspect", sample_bundle, "--json").stdout) == helium_onnx.inspect(sample_bundle)

    def test_wrong_path(self, sample_checkpoint: Path) -> None:
        result = invoke("inspect", sample_checkpoint)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"run helium-onnx export {sample_checkpoint}" in result.stderr


class TestVerify:
    @pytest.mark.parametrize("bundle", ["sample_bundle", "sample_bundle_fp32"])
    def test_a_whole_bundle(self, bundle: str, request: pytest.FixtureRequest) -> None:
        result = invoke("verify", request.getfixturevalue(bundle))
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines
        assert all(line.startswith("✓  ") for line in lines)
        assert_plain(result.stdout + result.stderr)

    def test_json(self, sample_bundle: Path) -> None:
        result = invoke("verify", sample_bundle, "--json", "-q")
        assert result.stderr == ""
        assert all(check.keys() == {"name", "ok", "detail"} and check["ok"] for check in json.loads(result.stdout))

    def test_a_check_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checks = [Check("manifest", True, "good"), Check("files", False, "two\x1b[2J\n  lines [bold]")]
        monkeypatch.setattr(helium_onnx, "verify", lambda _path, **_: checks)
        result = invoke("verify", "anything")
        assert result.exit_code == 1
        assert result.stdout == "✓  manifest  good\n✗  files     two␛[2J\n               lines [bold]\n"
        assert invoke("verify", "anything", "--json").exit_code == 1

    def test_no_bundle(self, tmp_path: Path) -> None:
        result = invoke("verify", tmp_path)
        assert result.exit_code == 1
        assert "an empty folder" in result.stdout + result.stderr
