"""What ``import helium_onnx`` shows, and what it does not import."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from typing import Any

import helium_onnx
from helium_onnx import errors
from helium_onnx.errors import HeliumOnnxError


def in_a_fresh_process(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, json, types, helium_onnx\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_what_is_visible_is_what_all_says() -> None:
    assert in_a_fresh_process("print(json.dumps(dir(helium_onnx)))") == sorted(helium_onnx.__all__)
    assert len(set(helium_onnx.__all__)) == len(helium_onnx.__all__)


def test_what_the_package_defines_is_public() -> None:
    """A function or class of ours that stands in the namespace is in ``__all__``, or has an underscore."""
    ours = in_a_fresh_process(
        "print(json.dumps([n for n, v in vars(helium_onnx).items() if not n.startswith('_')"
        " and getattr(v, '__module__', '').startswith('helium_onnx')]))"
    )
    assert ours
    assert set(ours) <= set(helium_onnx.__all__)


def test_every_public_name_is_there_and_documented() -> None:
    for name in helium_onnx.__all__:
        value = getattr(helium_onnx, name)
        assert value is not None
        if name != "__version__":
            assert inspect.getdoc(value), name


def test_every_public_name_can_be_asked_for_first() -> None:
    """Types are imported when they are asked for: the first question must get an answer as well as the second."""
    code = "names = {n: getattr(helium_onnx, n).__class__.__name__ for n in %r}\nprint(json.dumps(names))"
    kinds = in_a_fresh_process(code % (helium_onnx.__all__,))
    assert set(kinds) == set(helium_onnx.__all__)
    assert kinds["errors"] == "module"


def test_an_unknown_name_is_an_attribute_error() -> None:
    result = in_a_fresh_process("print(json.dumps([hasattr(helium_onnx, 'generate'), hasattr(helium_onnx, 'loads')]))")
    assert result == [False, False]


def test_importing_it_imports_no_library() -> None:
    heavy = ("numpy", "torch", "onnx", "onnxruntime", "onnx_ir", "tokenizers", "rich", "typer", "transformers")
    code = f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    assert in_a_fresh_process(code) == []


# The tree of errors


def drawn() -> dict[str, str | None]:
    """Each class of the docstring's tree and the one that it hangs on."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    (?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+(?:Error))\b", line):
            depth = len(match["branch"]) // 4
            path[depth:] = [match["name"]]
            parents[match["name"]] = path[depth - 1] if depth else None
    return parents


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    classes = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert all(issubclass(kind, HeliumOnnxError) for kind in classes.values())
    actual = {name: None if kind is HeliumOnnxError else kind.__bases__[0].__name__ for name, kind in classes.items()}
    assert drawn() == actual
    assert sorted(errors.__all__) == sorted(classes)


def test_an_error_has_one_parent_and_an_exit_code() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert len(kind.__bases__) == 1
        assert kind.exit_code == (2 if name == "UsageError" else 1)
        error = kind("It is so", found="a", expected="b", remedy="c")
        assert str(error) == "It is so\n  found:    a\n  expected: b\n  remedy:   c"
        assert str(kind("It is so")) == "It is so"
