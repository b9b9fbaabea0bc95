"""JSON for frozen dataclasses: strict in reading, stable in writing."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

_LARGEST = 2**63 - 1  # sizes and offsets are signed 64-bit in ONNX and in file systems


def parse(text: str) -> tuple[Any, list[str]]:
    """The value in ``text``, and what the standard forbids in it but Python's parser lets through.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    flaws: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            flaws.append("a key given twice in one object, among " + ", ".join(map(repr, result))[:200])
        return result

    def finite(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            flaws.append(f"{digits[:20]}, which is no finite number")
        return number

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value, flaws


def read(kind: Any, value: Any, where: str = "") -> Any:
    """``value`` from JSON as ``kind``: a dataclass, ``tuple[X, ...]``, ``dict[str, X]``, ``X | Y``, int, str or Any.

    A dataclass is an object with exactly its fields as keys. Whole numbers are from 0 to 2^63 - 1, text has no control
    characters (it goes to terminals). ``where`` names the value in errors.

    Raises:
        ValueError: it is something else; the text says where, what was found and what was expected.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return read(type(value) if type(value) in args else args[0], value, where)
    if origin is tuple:
        if type(value) is not list:
            _wrong(where, value, "a list")
        return tuple(read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if type(value) is not dict or not all(key.isprintable() for key in value):
            _wrong(where, value, "an object with printable keys")
        return {key: read(args[1], item, _join(where, key)) for key, item in value.items()}
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        if type(value) is not dict or value.keys() != set(names):
            _wrong(where, value, "an object with the keys " + ", ".join(names))
        record: Any = kind
        hints = _hints(record)
        return record(**{name: read(hints[name], value[name], _join(where, name)) for name in names})
    if kind is int and (type(value) is not int or not 0 <= value <= _LARGEST):  # type(): True is no size
        _wrong(where, value, "a whole number from 0 to 2^63 - 1")
    if kind is str and (type(value) is not str or not value.isprintable()):
        _wrong(where, value, "text without control characters")
    return value


def plain(value: Any) -> Any:
    """Dataclasses as objects in their fields' order, tuples as lists, other objects with sorted keys.

    Raises:
        TypeError: a key is no text.
    """
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys are {list(value)!r:.200}, not text")
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def canonical(value: Any) -> bytes:
    """One text for equal values: sorted keys, no spaces, UTF-8.

    Raises:
        TypeError: something in it has no place in JSON.
        ValueError: a NaN or an infinity, or text that is no Unicode (a lone surrogate).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def pretty(value: Any, indent: str = "") -> str:
    """JSON for people: objects are opened, a key a line; a list of objects has one line for each of its items."""
    if isinstance(value, dict) and value:
        items = [f"{indent}  {json.dumps(key)}: {pretty(item, indent + '  ')}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(f"{indent}  {json.dumps(item)}" for item in value) + f"\n{indent}]"
    return json.dumps(value)


@functools.cache  # it evaluates annotations: slow for a thousand tensors
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, value: Any, expected: str) -> NoReturn:
    found = f"an object with the keys {', '.join(map(repr, value))}" if type(value) is dict else repr(value)
    raise ValueError(f"{where or 'the whole'} is {found[:300]}, expected {expected}")
