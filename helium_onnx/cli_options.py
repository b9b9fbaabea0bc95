"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The bundle's folder.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with charts.", show_default=False)]
Provider = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|qnn|webgpu|coreml", help="Execution provider; auto: the one that the bundle is for."
    ),
]
Threads = Annotated[int | None, typer.Option(metavar="N", help="CPU threads.", show_default="physical cores")]
Kernels = Annotated[
    str, typer.Option(metavar="NAME", help="native, onnxruntime, or auto: native where bundle and machine have them.")
]
Cache = Annotated[
    bool | None,
    typer.Option("--cache/--no-cache", help="Keep prepacked weights on disk.", show_default="from 64 MB of weights"),
]
CacheDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Where to.", show_default="~/.cache/helium-onnx")]
