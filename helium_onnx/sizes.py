"""Amounts of memory as people write them: ``512MB``, ``1.5 GiB``, ``0``."""

from __future__ import annotations

import re

from helium_onnx.errors import UsageError

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>kB|MB|GB|KiB|MiB|GiB|B)", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def read_size(text: str) -> int | None:
    """Bytes; None where ``text`` is no number with a unit."""
    match = _SIZE.fullmatch(text.strip())
    return None if match is None else int(float(match["number"]) * _UNITS[match["unit"].lower()])


def parse_size(value: str | int) -> int:
    """Bytes of an option's value: a number with a unit, ``0``, or bytes that were read before.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(value, int) and value >= 0:
        return value
    size = 0 if str(value).strip() == "0" else read_size(str(value))
    if size is None:
        raise UsageError("the size cannot be read", found=repr(value), expected='a size as "512MB" or "2GiB", or 0')
    return size
