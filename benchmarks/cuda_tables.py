"""The tables of cuda.py, in Markdown, from its results: what docs/cuda.md shows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cuda_bench.contenders import BATCH_PAST, BUILDS, CONTENDERS, HALF, INT4, INT4_KV8, Contender
from cuda_bench.counting import Storage, prefill_operations, step_bytes
from cuda_bench.kernel_tables import kernels
from peer_tables import table

Results = Mapping[str, Any]
STORAGES: dict[str, Storage] = {"fp16": HALF, "bf16": HALF, "int4": INT4, "int4-kv8": INT4_KV8}
NONE = "-"
#: What the results are held against: ours at batch 1 after 512 tokens, in milliseconds.
BARS = {"fp16": 1.45, "bf16": 1.45, "int4": 1.0}
GENAI_RATIO, PREFILL_SHARE, BATCH_64 = 1.4, 0.6, 12_000


def show(results: Results) -> str:
    """Everything that there is, a part under a heading."""
    parts = {
        "Conditions": conditions, "Bars": bars, "Limits": limits, "Decode, one row": decode, "Beside peers": peers,
        "Prefill": prefill, "Batches": batches, "Kernels": kernels, "Models": models, "What failed": failures,
    }  # fmt: skip
    found = []
    for heading, make in parts.items():
        try:
            text = make(results)
        except (KeyError, IndexError, TypeError, ZeroDivisionError, statistics.StatisticsError) as error:
            text = f"(cannot be shown: {type(error).__name__}: {error})"
        if text:
            found.append(f"## {heading}\n\n{text.strip()}")
    return "\n\n".join(found) + "\n"


def conditions(results: Results) -> str:
    """One sentence: GPU, driver, host, versions, date."""
    given = results.get("conditions", {})
    clocks: Mapping[str, str] = next((m["clocks"] for m in results.get("limits", []) if m.get("clocks")), {})
    versions: dict[str, str] = dict(given.get("versions", {}))
    for about in results.get("steps", {}).get("workers", {}).values():
        versions |= about.get("versions", {})
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "python")
    parts = [
        str(given.get("gpu", "GPU unknown")),
        f"driver {clocks.get('driver_version', 'unknown')}",
        f"{given.get('cpu')}, {given.get('cores')} cores",
        f"python {given.get('python')}",
        listed,
        str(given.get("date")),
    ]
    seconds = sum(results.get("part_seconds", {}).values())
    return f"{'; '.join(part for part in parts if part)}. The run took {seconds / 60:.1f} minutes."


def limit(results: Results, key: str) -> float:
    """The median of what was measured before, between and after."""
    return statistics.median(float(m[key]) for m in results["limits"] if key in m)


def limits(results: Results) -> str:
    """Bandwidth, matrix units, clocks, measurement by measurement."""
    if not results.get("limits"):
        return ""
    head = ["", "copy (GB/s, read and written)", "read (GB/s)", "bf16 8192^3 (TFLOP/s)", "fp16 (TFLOP/s)",
            "clock (MHz)", "temperature (C)", "power (W)"]  # fmt: skip
    keys = ("copy_gigabytes_per_second", "read_gigabytes_per_second", "bfloat16_matrix_teraflops",
            "float16_matrix_teraflops")  # fmt: skip
    rows = []
    for measured in results["limits"]:
        clocks = measured.get("clocks", {})
        rows.append(
            [
                measured["when"],
                *(f"{measured[key]:.0f}" if key in measured else NONE for key in keys),
                *(clocks.get(key, NONE) for key in ("clocks.sm", "temperature.gpu", "power.draw")),
            ]
        )
    return table(head, rows)


def figures(results: Results, name: str, what: str, key: str = "ms") -> list[float]:
    """One figure of a contender, of every round in which it was measured."""
    rounds = results.get("steps", {}).get("rounds", [])
    return [float(r[name][what][key]) for r in rounds if key in r.get(name, {}).get(what, {})]


def middle(values: Sequence[float], digits: int = 3) -> str:
    """A median, or a dash."""
    return f"{statistics.median(values):.{digits}f}" if values else NONE


def main_way(contender: Contender) -> str:
    return contender.hows[0]


def decode(results: Results) -> str:
    """Milliseconds a token after each past, and the share of memory's limit after 512."""
    if not results.get("steps", {}).get("rounds"):
        return ""
    config, rate = results["config"], limit(results, "copy_gigabytes_per_second")
    pasts = (128, 512, 2048)
    head = ["ms a token", "GB a step at 512", "limit (ms)", *(f"after {past}" for past in pasts), "share of the limit",
            "logits to the host", "sampled there", "generate()"]  # fmt: skip
    rows = []
    for contender in CONTENDERS:
        moved = step_bytes(config, contender.storage, BATCH_PAST)
        floor = moved / rate * 1e-6
        at = {past: figures(results, contender.name, f"{main_way(contender)}@{past}") for past in pasts}
        if not any(at.values()):
            continue
        share = f"{100 * floor / statistics.median(at[512]):.0f} %" if at[512] else NONE
        others = [
            NONE if how == main_way(contender) else middle(figures(results, contender.name, f"{how}@512"))
            for how in ("run", "sample", "generate")
        ]
        rows.append(
            [contender.name, f"{moved * 1e-9:.2f}", f"{floor:.2f}", *(middle(at[p]) for p in pasts), share, *others]
        )
    rounds = len(results["steps"]["rounds"])
    note = (
        f"Medians of {rounds} rounds in which all took turns, {results['steps']['steps']} steps each; the limit is the "
        f"bytes of a step over the measured copy bandwidth, {rate:.0f} GB/s."
    )
    return f"{table(head, rows)}\n\n{note}"


def ratios(results: Results, peer: Contender) -> list[float]:
    """Of each round, the peer's time over that of our row with equal weights, after 512 tokens."""
    assert peer.equal is not None
    own = next(c for c in CONTENDERS if c.name == peer.equal)
    found = []
    for round_ in results.get("steps", {}).get("rounds", []):
        theirs = round_.get(peer.name, {}).get(f"{main_way(peer)}@{BATCH_PAST}", {}).get("ms")
        mine = round_.get(own.name, {}).get(f"{main_way(own)}@{BATCH_PAST}", {}).get("ms")
        if theirs and mine:
            found.append(theirs / mine)
    return found


def peers(results: Results) -> str:
    """How many times as fast as each peer ours is, and whether both say the same."""
    rows = []
    for contender in CONTENDERS:
        if contender.equal and (found := ratios(results, contender)):
            spread = f"{min(found):.2f}-{max(found):.2f}"
            same = agreement(results, contender)
            rows.append([contender.equal, contender.name, f"{statistics.median(found):.2f} x", spread, same])
    head = ["ours", "peer", "ours is faster", "least and most of the rounds", "equal tokens, first round"]
    return table(head, rows) if rows else ""


def agreement(results: Results, peer: Contender) -> str:
    """How many greedy tokens of both are the same before the first that differs. Random weights: gaps are small."""
    own = next(c for c in CONTENDERS if c.name == peer.equal)
    first = results["steps"]["rounds"][0]
    tokens = [first.get(c.name, {}).get(f"{main_way(c)}@{BATCH_PAST}", {}).get("tokens", []) for c in (own, peer)]
    equal = next((i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b), min(map(len, tokens)))
    return f"{equal} of {min(map(len, tokens))}" if all(tokens) else NONE


def prefill(results: Results) -> str:
    """Milliseconds and the share of what the matrix units gave."""
    if not results.get("steps", {}).get("rounds"):
        return ""
    config, top = results["config"], limit(results, "bfloat16_matrix_teraflops")
    rows = []
    for contender in CONTENDERS:
        for tokens in contender.prefills:
            if found := figures(results, contender.name, f"prefill@{tokens}"):
                ms = statistics.median(found)
                rate = prefill_operations(config, tokens) / ms * 1e-9
                rows.append([contender.name, f"{tokens}", f"{ms:.2f}", f"{rate:.0f}", f"{100 * rate / top:.0f} %"])
    return table(["", "tokens", "ms", "TFLOP/s", "of the matrix limit"], rows)


def batches(results: Results) -> str:
    """Milliseconds a step and tokens a second, of each size."""
    builds = results.get("batches", {}).get("builds", {})
    if not builds:
        return ""
    config, rate = results["config"], limit(results, "copy_gigabytes_per_second")
    past = int(results["batches"]["past"])
    sizes = sorted({int(size) for found in builds.values() for size in found.get("sizes", {})})
    head = ["rows", *(f"{build}: {what}" for build in builds for what in ("ms", "tokens/s", "of the limit"))]
    rows = []
    for size in sizes:
        row = [f"{size}"]
        for build, found in builds.items():
            visits = found.get("sizes", {}).get(str(size), [])
            ms = [visit["ms"] for visit in visits if "ms" in visit]
            if not ms:
                row += ["failed" if visits else NONE, NONE, NONE]
                continue
            best = statistics.median(ms)
            floor = step_bytes(config, STORAGES[build], past, size) / rate * 1e-6
            row += [f"{best:.2f}", f"{1e3 * size / best:,.0f}", f"{100 * floor / best:.0f} %"]
        rows.append(row)
    return f"{table(head, rows)}\n\nEach row holds {past} tokens; a step gives each row one token."


def bars(results: Results) -> str:
    """What was asked, what was found, and whether it was reached."""
    rows = []

    def bar(what: str, asked: str, found: float | None, shown: str, reached: bool) -> None:
        rows.append(
            [what, asked, NONE if found is None else shown, NONE if found is None else "yes" if reached else "NO"]
        )

    def median(values: Sequence[float]) -> float | None:
        return statistics.median(values) if values else None

    for build, most in BARS.items():
        ms = median(figures(results, f"helium-onnx {build}", "greedy@512"))
        bar(f"decode {build}, after 512", f"<= {most} ms", ms, f"{ms or 0:.3f} ms", (ms or 0) <= most)
    for contender in CONTENDERS:
        if contender.equal and contender.script == "cuda_genai.py":
            found = median(ratios(results, contender))
            enough = (found or 0) >= GENAI_RATIO
            bar(f"beside {contender.name}", f">= {GENAI_RATIO} x", found, f"{found or 0:.2f} x", enough)
    ms = median(figures(results, "helium-onnx bf16", "prefill@2048"))
    share = None
    if ms is not None:
        reached = prefill_operations(results["config"], 2048) / ms * 1e-9
        share = reached / limit(results, "bfloat16_matrix_teraflops")
    shown = f"{100 * (share or 0):.0f} %"
    bar("prefill of 2048, bf16", f">= {100 * PREFILL_SHARE:.0f} %", share, shown, (share or 0) >= PREFILL_SHARE)
    for build in STORAGES:
        visits = results.get("batches", {}).get("builds", {}).get(build, {}).get("sizes", {}).get("64", [])
        ms = median([visit["ms"] for visit in visits if "ms" in visit])
        best = None if ms is None else 64e3 / ms
        bar(f"64 rows, {build}", f">= {BATCH_64:,} tokens/s", best, f"{best or 0:,.0f}", (best or 0) >= BATCH_64)
    return table(["", "asked", "found", "reached"], rows) if results.get("steps") else ""


def models(results: Results) -> str:
    """What was made, its size and its time."""
    made = results.get("prepare", {})
    rows = [
        [name, f"{found.get('bytes', 0) * 1e-9:.2f} GB", f"{found['seconds']:.0f} s" if "seconds" in found else NONE]
        for name, found in made.items()
        if name in BUILDS and "failed" not in found
    ]
    return f"{table(['', 'files', 'made in'], rows)}\n\nAll were made at the same time." if rows else ""


def failures(results: Results) -> str:
    """Every error in the results, with where it stands."""
    lines = [f"- {where}: {one_line(text)}" for where, text in walk(results, ())]
    return "\n".join(dict.fromkeys(lines))


def walk(value: Any, path: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    """All ``failed`` texts, and the reasons for which parts ended early; rounds are not told apart."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("failed", "ended") and isinstance(inner, str):
                yield ", ".join(path), inner
            elif path == ("ended_early",) and isinstance(inner, str):
                yield f"part {key}", inner
            else:
                yield from walk(inner, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from walk(inner, path)


def one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:300] or "no text"
