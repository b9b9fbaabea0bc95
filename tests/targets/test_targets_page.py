"""The page of targets says what results say, and says so where they do not."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import targets_page as page

from helium_onnx.recipe import list_recipes

PASSED = '<testcase classname="tests.runtimes.test_some" name="test_it[a]"/>'
FAILED = '<testcase classname="tests.runtimes.test_some" name="test_it[b]"><failure message="no"/></testcase>'
SKIPPED = '<testcase classname="tests.runtimes.test_some" name="test_it[a]"><skipped/></testcase>'
OTHER = '<testcase classname="tests.runtimes.test_some.TestMore" name="test_more"/>'
LONGER = '<testcase classname="tests.runtimes.test_some_more" name="test_it"/>'
RECORDED = (
    '<testcase classname="tests.placement.test_b" name="test_b"><properties>'
    '<property name="placement" value="`x` | `y`"/></properties></testcase>'
)


def results(folder: Path, *files: str) -> page.Results:
    paths = []
    for number, cases in enumerate(files):
        path = folder / f"{number}.xml"
        path.write_text(f'<testsuites><testsuite timestamp="2026-01-02T03:04:05">{cases}</testsuite></testsuites>')
        paths.append(path)
    return page.read_results(paths)


def table(found: page.Results, *tests: str, kept: dict[str, Any] | None = None) -> tuple[str, list[str]]:
    proof = {"how": "run", "kept": "gpu"} if kept is not None else {"how": "run", "tests": list(tests)}
    row = {"name": "T", "recipes": ["a", "b"], "form": "f", "precision": "p", "limits": "l", "proofs": [proof]}
    return page.targets({"target": [row]}, kept or {}, found)


@pytest.mark.parametrize(
    ("files", "test", "shown"),
    [
        ([PASSED], "tests/runtimes/test_some.py", True),
        ([PASSED], "tests/runtimes", True),
        ([PASSED], "tests/runtimes/test_some.py::test_it", True),
        ([SKIPPED, PASSED], "tests/runtimes/test_some.py", True),  # skipped where its client is missing
        ([OTHER], "tests/runtimes/test_some.py::test_more", True),
        ([SKIPPED], "tests/runtimes/test_some.py", False),
        ([PASSED + FAILED], "tests/runtimes/test_some.py::test_it", False),
        ([PASSED, FAILED], "tests/runtimes", False),
        ([OTHER], "tests/runtimes/test_some.py::test_it", False),
        ([LONGER], "tests/runtimes/test_some.py", False),
        ([PASSED], "tests/placement", False),
    ],
)
def test_a_row(files: list[str], test: str, shown: bool, tmp_path: Path) -> None:
    text, missing = table(results(tmp_path, *files), test)
    line = text.splitlines()[-1]
    assert line.startswith("| T | `a`, `b` | f | p | ") and line.endswith(" | l |")
    if shown:
        file = test.partition("::")[0]
        assert f"run: [{Path(file).name}](../{file})" in line
        assert not missing
    else:
        assert "**not shown**: run" in line
        assert len(missing) == 1 and test in missing[0]


def test_kept_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "KEPT", tmp_path / "kept.toml")
    results(tmp_path, PASSED + LONGER)
    assert page.main(["--keep", "gpu", "--on", "a GPU", str(tmp_path / "0.xml")]) == 0
    assert page.main(["--keep", "other", "--on", "another", str(tmp_path / "0.xml")]) == 0
    kept = tomllib.loads((tmp_path / "kept.toml").read_text())
    assert sorted(kept) == ["gpu", "other"]
    text, missing = table(page.Results(), kept=kept)
    assert "run: a GPU, 2026-01-02, all 2 of [runtimes](../tests/runtimes)" in text
    assert not missing
    kept["gpu"]["failed"] = 1
    assert table(page.Results(), kept=kept)[1]
    results(tmp_path, PASSED + RECORDED)
    with pytest.raises(SystemExit, match="of 2 folders"):
        page.main(["--keep", "gpu", "--on", "a GPU", str(tmp_path / "0.xml")])


def test_writing_and_checking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "targets.md")
    monkeypatch.setattr(page, "ROWS", tmp_path / "rows.toml")
    page.ROWS.write_text(
        '[[target]]\nname = "T"\nrecipes = []\nform = ""\nprecision = ""\nlimits = ""\n'
        'proofs = [{ how = "run", tests = ["tests/runtimes"] }]\n'
    )
    marks = "<!-- targets -->\nold\n<!-- end of targets -->\nbetween\n"
    marks += "<!-- placements --><!-- end of placements -->\nafter\n"
    page.PAGE.write_text(marks)
    results(tmp_path, PASSED + RECORDED)
    result = str(tmp_path / "0.xml")
    assert page.main(["--check", result]) == 1
    assert page.PAGE.read_text() == marks
    assert page.main([result]) == 0
    written = page.PAGE.read_text()
    assert "old" not in written and "between" in written and written.endswith("after\n")
    assert "| `x` | `y` |" in written
    assert page.main(["--check", result]) == 0
    results(tmp_path, FAILED)
    assert page.main([result]) == 1
    assert "1 failed" in capsys.readouterr().err
    assert "**not shown**" in page.PAGE.read_text()
    page.PAGE.write_text("no marks")
    with pytest.raises(SystemExit, match="targets"):
        page.main([result])


def test_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert page.main([]) == 1
    assert "no results" in capsys.readouterr().err


def test_the_rows_name_what_there_is() -> None:
    rows = tomllib.loads(page.ROWS.read_text(encoding="utf-8"))["target"]
    known = {recipe.name for recipe in list_recipes()}
    assert {name for row in rows for name in row["recipes"]} == known
    for row in rows:
        for proof in row["proofs"]:
            for test in proof.get("tests", []):
                path, _, function = test.partition("::")
                assert (page.ROOT / path).exists(), test
                assert not function or f"def {function}(" in (page.ROOT / path).read_text(encoding="utf-8"), test
