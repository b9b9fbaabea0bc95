"""The tables of settings.py and operators.py, in Markdown, from their results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from peer_tables import table

PREFILL, DECODE, CPU = "prefill_tokens_per_second", "decode_ms_per_token", "decode_cpu_ms_per_token"
KINDS = {"before": "ONNX Runtime's kernels", "after": "ours"}
#: Operators that take less than this of the time are one line of a table.
LEAST_SHARE = 0.005
#: Cores that other processes may take in the median (as in peers.py).
DISTURBED = 0.15
Results = Mapping[str, Any]


def settings_tables(results: Results) -> str:
    """All parts that there are."""
    parts = {"threads": threads, "chunks": chunks, "batches": batches}
    return "\n\n".join(make(results[part]) for part, make in parts.items() if part in results)


def threads(found: Results) -> str:
    """Threads, pinning and spinning."""
    head = ["threads", "pinned", "waiting", f"prefill {found['prompt']} (tokens/s)", "to the default",
            f"decode at {found['past']} (ms a token)", "to the default", "processor time a token (ms)",
            "and after the last (ms)"]  # fmt: skip
    rows = []
    for name, row in found["summary"].items():
        setting, median = found["settings"][name], row["median"]
        waits = "spin" if setting["spin"] else "sleep"
        rows.append(
            [
                f"{setting['threads']}{' (default)' if name == found['default'] else ''}",
                "to cores" if setting["pinned"] else "no",
                waits if setting["threads"] > 1 else "",
                f"{median[PREFILL]:.0f}",
                times(row["ratio"][PREFILL]),
                f"{median[DECODE]:.2f}",
                times(row["ratio"][DECODE]),
                f"{median[CPU]:.2f}",
                f"{median['afterwards_cpu_ms']:.1f}",
            ]
        )
    verdicts = " ".join(verdict(found, key, does) for key, does in ((PREFILL, "prefills"), (DECODE, "decodes")))
    return f"{table(head, rows)}\n\n{verdicts.strip()}\n\n{beside(found)}"


def chunks(found: Results) -> str:
    """A long prompt by the tokens of one call."""
    head = ["tokens a call", f"prompt of {found['prompt']} (tokens/s)", "to the default", "most private memory (MB)"]
    rows = [
        [
            f"{name}{' (default)' if name == found['default'] else ''}",
            f"{row['median'][PREFILL]:.0f}",
            times(row["ratio"][PREFILL]),
            f"{row['median']['peak_private_mb']:.0f}",
        ]
        for name, row in found["summary"].items()
    ]
    memory = f"Of that memory, {found['keys_and_values_mb']:.0f} MB are the prompt's keys and values."
    words = f"{verdict(found, PREFILL, 'prefills')} {memory}".strip()
    return f"{table(head, rows)}\n\n{words}\n\n{beside(found)}"


def batches(found: Results) -> str:
    """Rows that decode together."""
    key = "tokens_per_second"
    head = ["rows", "tokens held", "step (ms)", "tokens/s in sum", "to one row"]
    rows = []
    for name, row in found["summary"].items():
        pasts, median = found["pasts"][name], row["median"]
        held = f"{pasts[0]}" if len(pasts) == 1 else f"{pasts[0]} to {pasts[-1]}"
        rows.append([name, held, f"{median['decode_ms_per_step']:.1f}", f"{median[key]:.1f}", times(row["ratio"][key])])
    return f"{table(head, rows)}\n\n{beside(found)}"


def times(ratio: Mapping[str, float]) -> str:
    """A ratio's median and the least and the most of the rounds."""
    return f"{ratio['median']:.2f} x ({ratio['least']:.2f}-{ratio['most']:.2f})"


def verdict(found: Results, key: str, does: str) -> str:
    """Whether a setting was faster than the default in every round: which one, or none; nothing of a disturbed run."""
    if statistics.median(others_of(found)) > DISTURBED:
        return ""
    better = {
        name: row["ratio"][key]
        for name, row in found["summary"].items()
        if name != found["default"] and row["ratio"][key]["least"] > 1.02
    }
    if not better:
        return f"No setting {does} faster than the default by more than 2 % in every round."
    best = max(better, key=lambda name: better[name]["median"])
    many = len(found["rounds"])
    return f"Faster than the default in each of {many} rounds: `{best}` {does} {better[best]['median']:.2f} x as fast."


def beside(found: Results) -> str:
    """The conditions under a table: bundle, machine, bandwidth, and who else was at work."""
    rounds, others = found["rounds"], others_of(found)
    many = (
        f"{rounds} rounds" if isinstance(rounds, int) else f"{len(rounds)} rounds, in brackets the least and the most"
    )
    text = (
        f"{machine(found)}; {bandwidth(found)}; other processes took {statistics.median(others):.2f} cores in the "
        f"median, {max(others):.2f} at most; medians of {many}."
    )
    if statistics.median(others) > DISTURBED:
        text += " **Others disturbed these measurements: no setting can be told from another by them.**"
    return text


def others_of(found: Results) -> list[float]:
    """Cores that other processes took, measurement by measurement."""
    if isinstance(found["rounds"], int):
        return list(found["other_processes_cores"])
    return [figures["other_processes_cores"] for round_ in found["rounds"] for figures in round_.values()]


def machine(found: Results) -> str:
    """Bundle, processor, date."""
    given, bundle = found["conditions"], found["bundle"]
    recipe = f" ({bundle['recipe']})" if bundle["recipe"] else ""
    return (
        f"`{bundle['name']}`{recipe}, {bundle['bytes'] / 1e9:.2f} GB, {given['cpu']}, {given['cores']} cores, "
        f"onnxruntime {given['onnxruntime']}, {given['date']}"
    )


def bandwidth(found: Results) -> str:
    """What memory gave before each round and after the last."""
    read = found["read_gigabytes_per_second"]
    return (
        f"memory read {statistics.median(read):.1f} GB/s in the median ({min(read):.1f} to {max(read):.1f}) "
        "before, between and after the rounds"
    )


def operator_tables(results: Results) -> str:
    """Decode, then prefill."""
    return "\n\n".join(operators(results, phase) for phase in ("decode", "prefill") if phase in results)


def operators(results: Results, phase: str) -> str:
    """One phase: both graphs as a whole, then their operators side by side."""
    what = f"a step at {results['past']}" if phase == "decode" else f"a prompt of {results['prompt']}"
    head = [what, "nodes", "ms", "with the profiler", "weights read (MB)", *share_head(results, phase)]
    rows = []
    for kind, name in KINDS.items():
        graph = results[phase][kind]
        rows.append(
            [name, f"{graph['nodes']}", f"{graph['ms']:.2f}", f"{graph['profiled_ms']:.2f}",
             f"{graph['weight_bytes'] / 1e6:.0f}", *share(results, phase, graph)]
        )  # fmt: skip
    parts = [table(head, rows)]
    for kind, name in KINDS.items():
        head = [f"{name}: operator", "nodes", "ms", "share", *(["GB/s"] if phase == "decode" else [])]
        body = [operator(row, phase) for row in results[phase][kind]["operators"] if row["share"] >= LEAST_SHARE]
        rest = [row for row in results[phase][kind]["operators"] if row["share"] < LEAST_SHARE]
        if rest:
            sums = {key: sum(row[key] for row in rest) for key in ("nodes", "ms", "share")}
            body.append(operator({"operator": f"{len(rest)} others", "bytes": 0, **sums}, phase))
        parts.append(table(head, body))
    parts.append(f"\n{beside(results)}")
    return "\n".join(parts)


def operator(row: Results, phase: str) -> list[str]:
    """One line: of decode, which memory bounds, with the rate of its bytes."""
    name = f"`{row['operator']}`" if " " not in row["operator"] else row["operator"]
    line = [name, f"{row['nodes']}", f"{row['ms']:.3f}", f"{100 * row['share']:.1f} %"]
    if phase == "decode":
        line.append(f"{row['bytes'] / row['ms'] / 1e6:.1f}" if row["bytes"] > 1e6 and row["ms"] else "")
    return line


def share_head(results: Results, phase: str) -> list[str]:
    """Of ``share``: what the machine allows stands in the head."""
    if phase == "decode":
        limit = statistics.median(results["read_gigabytes_per_second"])
        return ["weights, keys and values (GB/s)", f"of the {limit:.1f} GB/s read beside it"]
    if not results["int8_gigaops"]:
        return ["int8 (Gop/s)"]
    return ["int8 (Gop/s)", f"of the {statistics.median(results['int8_gigaops']):.0f} Gop/s computed beside it"]


def share(results: Results, phase: str, graph: Results) -> list[str]:
    """The rate that binds (memory's in decode, arithmetic's in prefill), and its share of the machine's."""
    if phase == "decode":
        rate, limit = graph["total_bytes"] / graph["ms"] / 1e6, results["read_gigabytes_per_second"]
        return [f"{rate:.1f}", f"{100 * rate / statistics.median(limit):.0f} %"]
    rate, limit = graph["int8_operations"] / graph["ms"] / 1e6, results["int8_gigaops"]
    return [f"{rate:.0f}", *([f"{100 * rate / statistics.median(limit):.0f} %"] if limit else [])]
