"""The kernels of a step, in Markdown: by what they do, with the rate at which they move bytes, and one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peer_tables import table

from cuda_bench.contenders import CONTENDERS
from cuda_bench.kernel_kinds import by_kind, kind, short

#: Kernels that take less than this of a step are one line of a table.
LEAST_SHARE = 0.01


def kernels(results: Mapping[str, Any]) -> str:
    """A step of each contender, by kind of kernel and by kernel."""
    found = results.get("kernels", {})
    if not found:
        return ""
    config, past = results["config"], int(found["past"])
    parts = []
    for contender in CONTENDERS:
        step = found.get(contender.name, {}).get("step", {})
        if "rows" not in step:
            continue
        parts.append(
            f"### {contender.name}\n\nA step after {past} tokens: {step['busy_us']:.0f} us of kernels, "
            f"{step['span_us']:.0f} us from the first to the last."
        )
        if sum(row["us"] for row in step["rows"]) > step["busy_us"]:
            parts.append(
                "Some begin before the one before them has ended, and are counted from there: sums exceed that."
            )
        kinds = by_kind(step, config, contender.storage, past)
        parts.append(
            table(
                ["kind", "calls", "us", "GB/s"],
                [
                    [row["kind"], f"{row['calls']:.0f}", f"{row['us']:.1f}",
                     f"{row['gigabytes_per_second']:.0f}" if row["gigabytes_per_second"] else ""]
                    for row in kinds
                ],
            ).strip()
        )  # fmt: skip
        parts.append(table(["kernel", "kind", "calls", "us", "share"], kernel_rows(step["rows"])).strip())
        prompt = found.get(contender.name, {}).get("prefill", {})
        if "rows" in prompt:
            parts.append(f"A prompt of {found['prompt']} tokens: {prompt['busy_us'] / 1e3:.2f} ms of kernels.")
            parts.append(table(["kernel", "kind", "calls", "us", "share"], kernel_rows(prompt["rows"])).strip())
    return "\n\n".join(parts)


def kernel_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line a kernel's short name, the largest first; the small ones together."""
    total = sum(row["us"] for row in rows)
    joined: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for row in rows:
        name = short(row["name"])
        calls, us = joined.get(name, [0.0, 0.0])
        joined[name] = [calls + row["calls"], us + row["us"]]
        kinds.setdefault(name, kind(row["name"]))
    lines: list[tuple[str, str, float, float]] = []
    small = [name for name, (_calls, us) in joined.items() if us < LEAST_SHARE * total]
    for name, (calls, us) in sorted(joined.items(), key=lambda item: -item[1][1]):
        if name not in small:
            lines.append((f"`{name}`", kinds[name], calls, us))
    if small:
        lines.append((f"{len(small)} others", "", sum(joined[n][0] for n in small), sum(joined[n][1] for n in small)))
    return [[name, what, f"{calls:.0f}", f"{us:.1f}", f"{100 * us / total:.1f} %"] for name, what, calls, us in lines]
