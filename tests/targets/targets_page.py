"""Write the tables of docs/targets.md: rows.toml says which tests show what, their results whether they did.

    python tests/targets/targets_page.py [RESULTS ...]          # JUnit files; out/results/*.xml where none is named
    python tests/targets/targets_page.py --check [RESULTS ...]  # write nothing; 1 if the page says something else
    python tests/targets/targets_page.py --keep NAME --on "NVIDIA H200" RESULT

A row is shown if at least one of its tests passed in some result and none failed. Where that is not so the table says
it, and the exit code is 1. --keep writes what one run on a machine that CI has not came to into kept.toml.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
ROWS, KEPT, PAGE = (
    Path(__file__).with_name("rows.toml"),
    Path(__file__).with_name("kept.toml"),
    ROOT / "docs/targets.md",
)
RESULTS = ROOT / "out" / "results"
#: What a test may record of a provider's share of a bundle's nodes, in the order of the page's columns.
PLACEMENT = "placement"
_AGAIN = "run the tests that it names (see CONTRIBUTING.md), then python tests/targets/targets_page.py"


@dataclass
class Results:
    """``outcomes``: how often each test, by its file's dotted path and its name without parameters, ``passed``,
    ``failed`` or was ``skipped``.
    """

    outcomes: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    placements: set[str] = field(default_factory=set)

    def read(self, path: Path) -> None:
        """Add those of one JUnit file."""
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            tags = {child.tag for child in case}
            outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
            test = (dotted(case.get("classname", "")), case.get("name", "").partition("[")[0])
            self.outcomes.setdefault(test, Counter())[outcome] += 1
            if outcome == "passed":
                found = case.iterfind(f"properties/property[@name='{PLACEMENT}']")
                self.placements.update(one.get("value", "") for one in found)

    def of(self, test: str) -> Counter[str]:
        """Of one test (``tests/test_x.py::test_y``), of a file, or of all files in a folder."""
        path, _, one = test.partition("::")
        name = f"{dotted(path)}."
        counts = (
            count
            for (case, function), count in self.outcomes.items()
            if f"{case}.".startswith(name) and one in ("", function)
        )
        return sum(counts, Counter())


def dotted(path: str) -> str:
    """``tests/test_x.py`` as JUnit files write it: ``tests.test_x``."""
    return re.sub(r"\.(py|ts)$", "", path).replace("/", ".")


def read_results(paths: Iterable[Path]) -> Results:
    results = Results()
    for path in paths:
        results.read(path)
    return results


def targets(rows: Mapping[str, Any], kept: Mapping[str, Any], results: Results) -> tuple[str, list[str]]:
    """The table of targets, and what is not shown by the results."""
    lines = ["| target | recipes | graph form | precision | how that was shown | limits |", "|---|---|---|---|---|---|"]
    missing: list[str] = []
    for row in rows["target"]:
        recipes = ", ".join(f"`{name}`" for name in row["recipes"])
        proofs = "; ".join(_proof(row["name"], proof, kept, results, missing) for proof in row["proofs"])
        lines.append(f"| {row['name']} | {recipes} | {row['form']} | {row['precision']} | {proofs} | {row['limits']} |")
    return "\n".join(lines), missing


def _proof(name: str, proof: Mapping[str, Any], kept: Mapping[str, Any], results: Results, missing: list[str]) -> str:
    if "kept" in proof:
        run = kept.get(proof["kept"])
        if run is None or run["failed"] or not run["passed"]:
            missing.append(f"{name}: {proof['how']}: no kept results of {proof['kept']}")
            return f"**not shown**: {proof['how']}"
        return f"{proof['how']}: {run['on']}, {run['date']}, all {run['passed']} of {_link(run['tests'])}"
    wrong = []
    for test in proof["tests"]:
        count = results.of(test)
        if count["failed"] or not count["passed"]:
            wrong.append(f"{test} ({', '.join(f'{n} {what}' for what, n in sorted(count.items())) or 'not run'})")
    if wrong:
        missing.append(f"{name}: {proof['how']}: {', '.join(wrong)}")
        return f"**not shown**: {proof['how']}"
    return f"{proof['how']}: {', '.join(dict.fromkeys(map(_link, proof['tests'])))}"


def _link(test: str) -> str:
    path = test.partition("::")[0]
    return f"[{Path(path).name}](../{path})"


def placements(results: Results) -> str:
    """The table of what providers take of the sample's graphs."""
    head = ("bundle", "provider", "asked", "nodes of prefill taken", "pieces", "what is left, and mostly why")
    rows = sorted(results.placements)
    return "\n".join([f"| {' | '.join(head)} |", "|---|---|---|---|---|---|", *(f"| {row} |" for row in rows)])


def replaced(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` between the comments ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, mark, rest = page.partition(begin)
    _, closing, after = rest.partition(end)
    if not mark or not closing:
        raise SystemExit(f"docs/targets.md has no {begin} or no {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def keep(name: str, on: str, path: Path) -> None:
    """Write the counts of one JUnit file to kept.toml, whose other entries stay."""
    kept = tomllib.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    results = read_results([path])
    counts = sum(results.outcomes.values(), Counter())
    folders = {case.rpartition(".")[0] for case, _ in results.outcomes}
    if len(folders) != 1:
        raise SystemExit(f"{path} has tests of {len(folders)} folders, not of one: {', '.join(sorted(folders))}")
    stamp = ElementTree.parse(path).getroot().find("testsuite")
    date = stamp.get("timestamp", "")[:10] if stamp is not None else datetime.date.today().isoformat()
    kept[name] = {
        "on": on, "date": date, "tests": folders.pop().replace(".", "/"), "passed": counts["passed"],
        "failed": counts["failed"], "skipped": counts["skipped"],
    }  # fmt: skip
    lines = ["# Results of machines that CI has not; written by targets_page.py --keep."]
    for key, values in sorted(kept.items()):
        lines += ["", f"[{key}]", *(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in values.items())]
    KEPT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", metavar="NAME")
    parser.add_argument("--on", default="")
    given = parser.parse_args(arguments)
    paths = given.results or sorted(RESULTS.glob("*.xml"))
    if not paths:
        print(f"no results in {RESULTS}: {_AGAIN}", file=sys.stderr)
        return 1
    if given.keep:
        keep(given.keep, given.on, paths[0])
        return 0
    results = read_results(paths)
    kept = tomllib.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    table, missing = targets(tomllib.loads(ROWS.read_text(encoding="utf-8")), kept, results)
    page = PAGE.read_text(encoding="utf-8")
    new = replaced(replaced(page, "targets", table), "placements", placements(results))
    for line in missing:
        print(f"not shown: {line}", file=sys.stderr)
    if given.check and new != page:
        print(f"docs/targets.md is not what the results say: {_AGAIN}", file=sys.stderr)
        return 1
    if not given.check:
        PAGE.write_text(new, encoding="utf-8")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
