"""helium.json: the round trip, and everything that may be wrong with it."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import bundles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_onnx import strict_json
from helium_onnx.contract import TensorSpec
from helium_onnx.errors import BundleError, ExportError, FormatVersionError, IntegrityError
from helium_onnx.manifest import FORMAT_VERSION, FileRecord, Manifest, _digest

FILES = tuple(FileRecord(name, len(data), "0f" * 32) for name, data in bundles.contents().items())
MANIFEST = dataclasses.replace(bundles.manifest(), files=FILES)
TEXT = MANIFEST.to_json()


def signed(data: dict[str, Any]) -> str:
    """``data`` as a helium.json whose digest is right, so that only its structure can be wrong."""
    data.pop("manifest_sha256", None)
    return json.dumps({**data, "manifest_sha256": _digest(data)})


def test_round_trip_is_stable() -> None:
    again = Manifest.from_json(TEXT, source="here")
    assert again.to_json() == TEXT
    assert again.sha256 == MANIFEST.sha256 == json.loads(TEXT)["manifest_sha256"]
    assert again.tensors == MANIFEST.tensors
    assert again.graphs == MANIFEST.graphs
    assert again.recipe == MANIFEST.recipe


def test_a_scalar_and_half_precision_come_back() -> None:
    """As graphs for CUDA have them."""
    scalar, past = TensorSpec("total_sequence_length", "int32", ()), TensorSpec("past", "bfloat16", ("batch_size", 1))
    record = dataclasses.replace(MANIFEST.graphs["decode"], inputs=(scalar, past))
    tensor = dataclasses.replace(MANIFEST.tensors[0], dtype="bfloat16", nbytes=512)
    changed = dataclasses.replace(
        MANIFEST, graphs={**MANIFEST.graphs, "decode": record}, tensors=(tensor, *MANIFEST.tensors[1:])
    )
    again = Manifest.from_json(changed.to_json(), source="here")
    assert again.graphs["decode"].inputs == (scalar, past)
    assert again.tensors[0] == tensor


def test_order_without_meaning_does_not_show() -> None:
    shuffled = dataclasses.replace(
        MANIFEST,
        files=FILES[::-1],
        tensors=MANIFEST.tensors[::-1],
        tools=dict(reversed(MANIFEST.tools.items())),
        graphs=dict(reversed(MANIFEST.graphs.items())),
    )
    assert shuffled.to_json() == TEXT


def test_a_tensor_has_a_line() -> None:
    lines = [line for line in TEXT.splitlines() if '"offset"' in line]
    assert len(lines) == len(MANIFEST.tensors)
    assert all(json.loads(line.rstrip(","))["nbytes"] > 0 for line in lines)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, "\ud800"])
def test_what_json_cannot_hold_is_an_export_error(value: object) -> None:
    with pytest.raises(ExportError, match="JSON"):
        dataclasses.replace(MANIFEST, recipe={"x": value}).to_json()


def test_newer_version_is_refused_before_anything_else() -> None:
    text = '{"format_version": 2, "format_version": 2, "new": NaN, "manifest_sha256": 5}'
    with pytest.raises(FormatVersionError) as caught:
        Manifest.from_json(text, source="there/helium.json")
    message = str(caught.value)
    assert "format_version 2" in message
    assert f"{FORMAT_VERSION} at most" in message
    assert "upgrade" in message
    assert "there/helium.json" in message


@pytest.mark.parametrize("version", ["1", 0, -1, 1.0, True, None, [1]])
def test_version_that_is_none(version: object) -> None:
    with pytest.raises(BundleError, match="not a manifest") as caught:
        Manifest.from_json(signed({**json.loads(TEXT), "format_version": version}), source="x")
    assert not isinstance(caught.value, FormatVersionError)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "1", '"text"', "{}", "\ufeff{}", "[" * 100_000, '{"format_version":' + "9" * 5000 + "}"],
    ids=lambda text: text[:12],
)
def test_what_is_no_manifest(text: str) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(text, source="x")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(constant: str) -> None:
    with pytest.raises(IntegrityError, match="no finite number"):
        Manifest.from_json(TEXT.replace('"ratio": 0.5', f'"ratio": {constant}'), source="x")


def test_repeated_key() -> None:
    with pytest.raises(IntegrityError, match="twice"):
        Manifest.from_json(TEXT.replace('"ratio": 0.5', '"ratio": 0.5, "ratio": 0.5'), source="x")


def test_changed_value() -> None:
    with pytest.raises(IntegrityError, match="was changed"):
        Manifest.from_json(TEXT.replace('"block_size": 8', '"block_size": 9'), source="x")


def change(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return apply


PATHS = ["/etc/passwd", "../x", "a/../../x", "a/..", ".", "", "a//b", "./a", "a/", "a\\b", "C:x", "a\0b", "a\x1b[2J"]

FLAWS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    **{f"path {path!r}": (change("files", 0, "path", to=path), "path inside|characters|control") for path in PATHS},
    "graph outside": (change("graphs", "decode", "file", to="../decode.onnx"), "path inside"),
    "graph not listed": (change("graphs", "decode", "file", to="onnx/other.onnx"), "does not list"),
    "digest too short": (change("files", 0, "sha256", to="abc"), "SHA-256"),
    "digest in capitals": (change("files", 0, "sha256", to="AB" * 32), "SHA-256"),
    "negative size": (change("files", 0, "size", to=-1), r"files\[0\]\.size"),
    "size is a float": (change("files", 0, "size", to=1.0), "whole number"),
    "size is true": (change("files", 0, "size", to=True), "whole number"),
    "huge size": (change("files", 0, "size", to=2**70), "whole number"),
    "task is a number": (change("task", to=3), "task is 3"),
    "licence is a list": (change("licence", to=[]), "licence"),
    "recipe is a list": (change("recipe", to=[]), "recipe"),
    "tools hold numbers": (change("tools", "torch", to=2.13), r"tools\.torch"),
    "graphs is a list": (change("graphs", to=[]), "graphs"),
    "dims hold null": (change("graphs", "model", "inputs", 0, "dims", to=[None]), r"graphs\.model\.inputs\[0\]\.dims"),
    "tensors is an object": (change("tensors", to={}), "tensors"),
    "tensor past the end": (change("tensors", 0, "offset", to=10**9), "ends at byte"),
    "unknown key": (change("unknown", to=1), "unknown"),
    "unknown key inside": (change("files", 0, "mode", to=1), "mode"),
    "listed twice": (change("files", 1, "path", to="config.json"), "twice"),
    "itself listed": (change("files", 0, "path", to="helium.json"), "helium.json itself"),
    "missing key": (lambda data: data.pop("tools"), "the keys"),
    "missing key inside": (lambda data: data["files"][0].pop("size"), "the keys"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_signed_but_wrong(flaw: str) -> None:
    apply, said = FLAWS[flaw]
    data = json.loads(TEXT)
    apply(data)
    with pytest.raises(BundleError, match=said) as caught:
        Manifest.from_json(signed(data), source="x")
    assert caught.value.remedy


def test_every_flipped_bit_is_found() -> None:
    raw = TEXT.encode()
    rng = random.Random(0)
    for _ in range(1500):
        place, bit = rng.randrange(len(raw)), 1 << rng.randrange(8)
        changed = raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :]
        try:
            text = changed.decode()
        except UnicodeDecodeError:
            continue  # Bundle.open says so
        try:
            again = Manifest.from_json(text, source="x")
        except BundleError:
            continue
        assert again.to_json() == TEXT, "only the spelling of a number or of an escape may differ"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(PATHS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_fuzz_structure(data: st.DataObject) -> None:
    """Any value of the tree replaced, removed or added, with a right digest: a manifest or a BundleError."""
    tree = json.loads(TEXT)
    for _ in range(data.draw(st.integers(1, 3))):
        inner: Any = tree
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and data.draw(st.integers(0, 3)):
                inner = inner[key]
                continue
            action = data.draw(st.sampled_from(["replace", "remove", "add"]))
            if action == "remove":
                del inner[key]
            elif action == "replace" or isinstance(inner, list):
                inner[key] = data.draw(VALUES)
            else:
                inner[data.draw(st.text(max_size=8))] = data.draw(VALUES)
            break
    try:
        text = signed(tree)
    except ValueError:  # a NaN or a lone surrogate: no digest can be right
        text = json.dumps(tree)
    reads_or_refuses(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TEXT)), st.integers(0, 30), st.text(max_size=30))
def test_fuzz_text(start: int, length: int, replacement: str) -> None:
    reads_or_refuses(TEXT[:start] + replacement + TEXT[start + length :])


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_fuzz_any_text(text: str) -> None:
    reads_or_refuses(text)


def reads_or_refuses(text: str) -> None:
    try:
        again = Manifest.from_json(text, source="x")
    except BundleError as error:
        message = str(error)
    else:
        message = ""
        assert Manifest.from_json(again.to_json(), source="x").sha256 == again.sha256
    assert message.replace("\n", "").isprintable(), "it goes to a terminal"


@given(VALUES)
def test_canonical_is_one_text_for_equal_values(value: Any) -> None:
    try:
        text = strict_json.canonical(value)
    except ValueError:
        return
    assert strict_json.canonical(json.loads(strict_json.pretty(value))) == text
