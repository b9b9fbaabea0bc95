"""The tables of peers.py, in Markdown, from its results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from common import median
from contenders.model import Contender

PREFILL, DECODE = "prefill_tokens_per_second", "decode_ms_per_token"
Rounds = Sequence[Mapping[str, Any]]


def show(results: Mapping[str, Any], contenders: Sequence[Contender]) -> None:
    """Print what there is."""
    if "check" in results:
        print(agreement(results["check"]))
    if "prepare" in results:
        print(costs(results["prepare"], results.get("once", {})))
    if "speed" in results:
        found = results["speed"]
        sizes = [str(size) for size in found["prompts"]]
        print(speeds(found["groups"], sizes))
        print(ratios(found["groups"], sizes, contenders))
        print(quiet([round_ for group in found["groups"] for round_ in group]))
    for name, rounds in results.get("tune", {}).items():
        print(tuned(name, rounds))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def agreement(check: Mapping[str, Any]) -> str:
    """What the conversions give on helium-docs-7m, beside cpu-fp32."""
    greedy = [[name, f"{same} of {check['greedy_tokens']}"] for name, same in check["float32"].items()]
    tops = [
        [name, f"{100 * share:.1f} %" if isinstance(share, float) else f"failed: {share[:100]}"]
        for name, share in check["as_measured"].items()
    ]
    return (
        table(["float32", f"greedy tokens as cpu-fp32's, {check['greedy_pages']} pages"], greedy)
        + "\n"
        + table(["as measured", f"cpu-fp32's top token, {check['prompts']} prompts"], tops)
    )


def costs(prepared: Mapping[str, Any], once: Mapping[str, Any]) -> str:
    """Conversion, files, load and memory of each."""
    head = ["", "conversion", "peak memory", "files", "start to ready", "to the first token of 128",
            "private memory, loaded", "after 16 tokens", "resident then"]  # fmt: skip
    rows = []
    for name, made in prepared.items():
        if "failed" in made:
            rows.append([name, f"failed: {made['failed'].splitlines()[0][:100]}", *[""] * 7])
            continue
        row = [name]
        converted = "seconds" in made
        row.append(f"{made['seconds']:.0f} s" if converted else "none")
        row.append(f"{made['peak_resident_mb'] / 1e3:.1f} GB" if converted else "")
        row.append(f"{made['bytes'] / 1e9:.2f} GB")
        if name in once:
            runs = once[name]["runs"]
            row += [f"{median(runs, 'load_seconds'):.2f} s", f"{median(runs, 'first_token_seconds'):.2f} s"]
            row += [f"{median(runs, kind, 'private'):.0f} MB" for kind in ("loaded_mb", "generated_mb")]
            row.append(f"{median(runs, 'generated_mb', 'resident'):.0f} MB")
        rows.append(row + [""] * (len(head) - len(row)))
    return table(head, rows)


def speeds(groups: Sequence[Rounds], sizes: Sequence[str]) -> str:
    """Medians over the rounds; ours, who are in every group, over all of them."""
    found: dict[str, list[Any]] = {}
    for group in groups:
        for figures in group:
            for name, by_size in figures.items():
                found.setdefault(name, []).append(by_size)
    head = ["", *(f"prefill {size} (tokens/s)" for size in sizes), *(f"decode after {size} (ms)" for size in sizes)]
    return table(head, [[name, *medians(runs, sizes)] for name, runs in found.items()])


def medians(runs: Rounds, sizes: Sequence[str]) -> list[str]:
    """Of prefill, then of decode, at each size."""
    return [f"{median(runs, size, kind):.1f}" for kind in (PREFILL, DECODE) for size in sizes]


def ratio(rounds: Rounds, ours: str, peer: str, size: str) -> tuple[float, float]:
    """Of prefill and of decode, above 1 where ours is faster: medians of the rounds' own ratios."""
    prefill = [r[ours][size][PREFILL] / r[peer][size][PREFILL] for r in rounds]
    decode = [r[peer][size][DECODE] / r[ours][size][DECODE] for r in rounds]
    return statistics.median(prefill), statistics.median(decode)


def ratios(groups: Sequence[Rounds], sizes: Sequence[str], contenders: Sequence[Contender]) -> str:
    """Ours against each peer: the row of equal weights, marked, and the others."""
    equal = {c.name: c.equal for c in contenders}
    ours = [c.name for c in contenders if c.ours]
    rows = []
    for rounds in groups:
        for peer in (name for name in rounds[0] if name not in ours):
            for mine in (name for name in rounds[0] if name in ours):
                pairs = [ratio(rounds, mine, peer, size) for size in sizes]
                row = [mine, peer, "equal" if equal.get(peer) == mine else ""]
                rows.append([*row, *(f"{p:.2f} x" for p, _ in pairs), *(f"{d:.2f} x" for _, d in pairs)])
    head = ["ours", "peer", "weights", *(f"prefill {s}" for s in sizes), *(f"decode after {s}" for s in sizes)]
    return table(head, rows)


def quiet(rounds: Rounds) -> str:
    """Who else computed while one was measured."""
    figures = [f for round_ in rounds for by_size in round_.values() for f in by_size.values()]
    idle = [f["idle_workers_cores"] for f in figures]
    others = [f["other_processes_cores"] for f in figures]
    return (
        f"\nOf {len(figures)} measurements: idle workers took at most {max(idle):.2f} cores; other processes "
        f"{statistics.median(others):.2f} in the median, {max(others):.2f} at most, above 0.15 in "
        f"{sum(o > 0.15 for o in others)}"
    )


def tuned(name: str, rounds: Rounds) -> str:
    """A peer's settings, and how much faster they are than each alternative."""
    sizes = list(next(iter(rounds[0].values())))
    head = [name, *(f"prefill {s} (tokens/s)" for s in sizes), *(f"decode after {s} (ms)" for s in sizes),
            *(f"measured settings: prefill {s}" for s in sizes), *(f"decode after {s}" for s in sizes)]  # fmt: skip
    rows = []
    for other in rounds[0]:
        pairs = [ratio(rounds, "as measured", other, size) for size in sizes]
        row = [other, *medians([r[other] for r in rounds], sizes)]
        rows.append([*row, *(f"{p:.2f} x" for p, _ in pairs), *(f"{d:.2f} x" for _, d in pairs)])
    return table(head, rows)
