"""EleutherAI's lm-evaluation-harness over a bundle: its own command line, with the model ``helium-onnx`` registered.

    python -m helium_onnx.evaluation.harness run --model helium-onnx --model_args path=out/helium --tasks hellaswag

The harness looks models up in a table of its own and has no entry points for others, so this module is what its
command ``lm-eval`` would be with ours in the table. From Python: ``register()``, then ``lm_eval.simple_evaluate(
model="helium-onnx", model_args={"path": "out/helium"}, ...)``. docs/lm-eval.md has a command for each benchmark.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from helium_onnx.errors import HeliumOnnxError, MissingDependencyError
from helium_onnx.terminal import show_error

#: The name for ``--model``.
MODEL_NAME = "helium-onnx"
_TARGET = "helium_onnx.evaluation.harness_model:HeliumOnnxLM"


def register() -> None:
    """Make ``helium-onnx`` known to the harness in this process; a second call changes nothing.

    Raises:
        MissingDependencyError: the harness is not installed, or has another registry than 0.4.13.
    """
    try:
        import lm_eval.models  # noqa: F401  fills the registry with the harness's own
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise MissingDependencyError(
            "lm-evaluation-harness is not installed, or too old",
            found=error,
            expected="lm_eval 0.4.13",
            remedy="pip install 'helium-onnx[eval]'",
        ) from error
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=_TARGET)


def main(arguments: Sequence[str] | None = None) -> int:
    """The harness's command line (``run``, ``ls``, ``validate``); returns the exit code.

    ``arguments`` defaults to those of the process. Errors of helium-onnx are shown as its own commands show them; the
    harness's are left to it.
    """
    if arguments is not None:
        sys.argv[1:] = arguments  # where the harness's parser reads them
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except (HeliumOnnxError, KeyboardInterrupt) as error:
        return show_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
