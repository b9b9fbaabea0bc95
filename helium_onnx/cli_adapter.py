"""The command ``convert-adapter``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_adapter(
    adapter: Annotated[
        Path, typer.Argument(metavar="PEFT_DIR", help="The LoRA adapter, as peft saves it.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A bundle of its base model, with --adapter-mode runtime.", show_default=False
        ),
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The new file; it ends in .onnx_adapter.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace FILE.")] = False,
) -> None:
    """Turn a LoRA adapter into ONNX Runtime's file.

    It fits all bundles of the same checkpoint that were exported with --adapter-mode runtime. The file is complete or
    absent, whatever happens.
    """
    import helium_onnx
    from helium_onnx.terminal import size
    from helium_onnx.terminal_output import quoted

    helium_onnx.convert_adapter(adapter, out, file, force=force)
    print(
        f"{file}: {size(file.stat().st_size)}."
        f' Next: helium-onnx generate {quoted(out)} "Your text" --adapter {quoted(file)}'
    )
