"""--help and --version."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from command_line import invoke, run

import helium_onnx
from helium_onnx import cli
from helium_onnx.generation.model import LanguageModel
from helium_onnx.generation.sampling import SamplingOptions

COMMANDS = (
    "export",
    "recipes",
    "generate",
    "batch",
    "embed",
    "classify",
    "tag",
    "inspect",
    "verify",
    "validate",
    "compare",
    "bench",
    "package",
    "convert-adapter",
    "overflow",
    "doctor",
)


class TestHelp:
    @pytest.mark.parametrize("command", ["", *COMMANDS])
    def test_help_loads_no_framework(self, command: str) -> None:
        script = (
            "import sys\nfrom helium_onnx.cli import main\n"
            f"sys.argv = ['helium-onnx', *{command.split()!r}, '--help']\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "heavy = {'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'transformers', 'numpy', 'tokenizers', 'rich'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stderr == "[]\n"
        assert "Usage: helium-onnx" in done.stdout

    def test_no_arguments_show_the_commands(self) -> None:
        result = invoke()
        assert all(command in result.output for command in COMMANDS)

    def test_version(self) -> None:
        assert invoke("--version").stdout == f"helium-onnx {helium_onnx.__version__}\n"

    @pytest.mark.parametrize("command", ["export", "generate", "batch", "embed", "validate", "bench"])
    def test_help_fits_80_columns(self, command: str) -> None:
        done = run(command, "--help", env={**os.environ, "COLUMNS": "80"})
        assert max(map(len, done.stdout.decode().splitlines())) <= 80

    @pytest.mark.parametrize(
        ("command", "functions"),
        [
            ("export", [helium_onnx.export]),
            ("generate", [helium_onnx.load, SamplingOptions]),
            ("validate", [helium_onnx.validate]),
            ("bench", [helium_onnx.bench]),
        ],
    )
    def test_defaults_are_those_of_the_function(self, command: str, functions: list[Callable[..., object]]) -> None:
        ours = inspect.signature(getattr(cli, command)).parameters
        for function in functions:
            for name, theirs in inspect.signature(function).parameters.items():
                option = {"context_length": "context", "path": "out"}.get(name, name)
                if name != "progress" and (name, command) != ("task", "generate"):  # the command says it
                    assert ours[option].default == theirs.default, name

    def test_the_default_of_max_new_tokens(self) -> None:
        default = inspect.signature(cli.generate).parameters["max_new_tokens"].default
        assert f"max_new_tokens: tokens to generate at most; {default}" in (
            sys.modules[LanguageModel.__module__].GenerationOptions.__doc__ or ""
        )
