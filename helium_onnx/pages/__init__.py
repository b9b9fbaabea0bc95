"""Reports as HTML: one file each, without script, that refers to nothing outside. Needs ``helium-onnx[eval]``.

A page's template extends ``page.html.jinja`` (style, print) and shows its charts by including ``charts.html.jinja``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from helium_onnx.errors import HeliumOnnxError, UsageError


@dataclass(frozen=True)
class Chart:
    """A chart with what it shows, for those who see it and those who do not.

    ``svg`` is a drawing of ours (``drawing.as_svg``): matplotlib escapes what it writes, so the page takes it as it is.
    """

    title: str
    caption: str
    drawing: str

    @property
    def svg(self) -> Markup:
        return Markup(self.drawing)


def template(path: Path, filters: Mapping[str, Callable[..., str]]) -> jinja2.Template:
    """The template at ``path``; a name that it uses and nobody gives is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name)


def check_target(path: Path) -> None:
    """Raise UsageError where no file can be written at ``path``."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", expected="the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", remedy="make it, or choose another place for the page")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"no file can be written in {path.parent}", remedy="choose another place for the page")


def write(text: str, path: Path) -> None:
    """Write a page, whole or not at all. Raises HeliumOnnxError, UsageError."""
    check_target(path)
    partial = path.with_name(f".{path.name[:200]}.partial-{secrets.token_hex(8)}")
    try:
        partial.write_bytes(text.encode("utf-8", errors="replace"))
        partial.replace(path)
    except OSError as error:
        raise HeliumOnnxError(f"{path} cannot be written", found=error.strerror) from error
    finally:
        partial.unlink(missing_ok=True)
