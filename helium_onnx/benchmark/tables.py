"""Benchmark reports on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from helium_onnx.benchmark.report import DecodeResult, PrefillResult, best
from helium_onnx.terminal import size, visible

if TYPE_CHECKING:
    from rich.console import Console

    from helium_onnx.benchmark.conditions import Conditions
    from helium_onnx.benchmark.loading import Load
    from helium_onnx.benchmark.report import BenchReport, Ceiling

_NOT_MEASURED = "not measured"
#: Repeats on a machine that does nothing else differ by less.
_STEADY = 0.8


def milliseconds(seconds: float | None) -> str:
    """Three digits: ``0.123``, ``31.2``, ``1,040``; ``-`` for None."""
    return "-" if seconds is None else three_digits(1e3 * seconds)


def three_digits(value: float) -> str:
    """``0.123``, ``31.2``, ``1,040``."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """``59 %``; ``-`` for None."""
    return "-" if share is None else f"{100 * share:.0f} %" if share >= 0.0095 else f"{100 * share:.1g} %"


def limit(ceiling: Ceiling) -> str:
    """Share of the limit and which one it is: ``59 % memory``."""
    return f"{percent(ceiling.share)} {ceiling.binds}" if ceiling.binds else percent(ceiling.share)


def title(result: PrefillResult | DecodeResult) -> str:
    """``128 tokens``; ``past 512``, or ``past 512, batch 4``."""
    if isinstance(result, PrefillResult):
        return f"{result.tokens:,} tokens"
    return f"past {result.past:,}" + (f", batch {result.batch}" if result.batch > 1 else "")


def sentence(result: PrefillResult | DecodeResult) -> str:
    """A case in words: ``decode at past 512: 31.2 ms a token; memory would allow 18.4 (59 %), arithmetic 6.1 (20 %)``.

    What binds is said behind it where both limits are known.
    """
    measured, ceiling = result.seconds.median, result.ceiling
    if isinstance(result, PrefillResult):
        what = f"prefill of {title(result)}: {milliseconds(measured)} ms"
    else:
        what = f"decode at {title(result)}: {milliseconds(measured)} ms a {'token' if result.batch == 1 else 'step'}"
    limits = (("memory", ceiling.memory_seconds), ("arithmetic", ceiling.arithmetic_seconds))
    allowed = [
        f"{name} {milliseconds(value)} ({percent(value / measured)})" for name, value in limits if value is not None
    ]
    if allowed:
        allowed[0] = allowed[0].replace(" ", " would allow ", 1)
    return "; ".join([what, ", ".join(allowed), *([f"{ceiling.binds} binds"] if ceiling.binds else [])])


def rates(report: BenchReport) -> str:
    """The machine's limits, and how they were found."""
    limits = report.limits
    if limits is None:
        return f"{_NOT_MEASURED}: the provider {report.provider} computes elsewhere"
    read, int8, fp32 = best(limits)
    facts = [
        f"{name} {_NOT_MEASURED}" if value is None else f"{name} {three_digits(value)} {unit}"
        for name, value, unit in (
            ("reads", read, "GB/s"), ("int8", int8, "Gop/s"), ("float32", fp32, "Gflop/s"),
        )
    ]  # fmt: skip
    repeats = len(limits.read_gigabytes_per_second)
    return f"{', '.join(facts)}: best of {repeats}, {limits.threads} threads, {size(limits.buffer_bytes)} ({limits.by})"


def ran_by(report: BenchReport) -> str:
    """``native kernels (NativeSession)``."""
    return f"{report.kernels} kernels ({report.session})"


def machine(c: Conditions) -> str:
    """Where the figures are from, in one sentence."""
    parts = [
        f"{c.cpu} ({', '.join(c.instruction_sets)})" if c.instruction_sets else c.cpu,
        f"{c.cores} cores",
        f"{c.threads} threads",
        *([f"caches {size(c.cache_bytes)}"] if c.cache_bytes else []),
        *([f"memory {size(c.memory_bytes)}"] if c.memory_bytes else []),
        f"load average before {' '.join(f'{load:.2f}' for load in c.load_average)}",
        c.system,
        *(f"{name} {version}" for name, version in c.versions.items()),
        c.date,
    ]
    return ", ".join(parts)


def notes(report: BenchReport) -> list[str]:
    """What a reader must know about the figures of this run."""
    found = [f"left out: {left.case}: {left.reason}" for left in report.left_out]
    if report.fits_in_caches:
        found.append(
            "the weights are not much larger than the processor's caches: reading them from memory is no limit here, "
            "and a share may exceed 100 %"
        )
    if report.cold is not None and (report.cold.cached_share or 0) > 0.05:
        found.append(
            f"{percent(report.cold.cached_share)} of the bundle stayed in the page cache: the cold load is not cold "
            "(another process has it mapped, or it lies in tmpfs)"
        )
    reads = () if report.limits is None else report.limits.read_gigabytes_per_second
    if reads and min(reads) < _STEADY * max(reads):
        found.append(
            f"the read bandwidth moved between {three_digits(min(reads))} and {three_digits(max(reads))} GB/s: "
            "something else was at work, or the machine is shared"
        )
    busy = report.conditions.load_average[:1]
    if busy and busy[0] > 0.5:
        found.append(f"the machine was not idle before: load average {busy[0]:.2f}")
    return found


def render(report: BenchReport, console: Console) -> None:
    """Print limits, loads, prefill, decode, and how and where it was measured."""
    head = f"{report.bundle} ({report.recipe}), {report.conditions.threads} threads, {ran_by(report)}"
    console.print(Text(visible(head), style="bold"))
    console.print(Text(f"machine: {rates(report)}"))
    console.print()
    loads = [("warm", report.warm), *([("cold", report.cold)] if report.cold else [])]
    columns: tuple[str, ...] = ("", "loaded", "first token", "private", "shared")
    cells = (_load_cells(name, load) for name, load in loads)
    console.print(_table("load, seconds from process start", columns, cells))
    columns = ("median", "p10", "p90", "tokens/s", "memory", "arithm.", "of the limit")
    if report.prefill:
        rows = ((f"{result.tokens:,}", *_cells(result)) for result in report.prefill)
        console.print()
        console.print(_table("prefill, milliseconds to the first token", ("tokens", *columns), rows))
    if report.decode:
        rows = ((f"{result.past:,}", str(result.batch), *_cells(result)) for result in report.decode)
        console.print()
        console.print(_table("decode, milliseconds a step", ("past", "rows", *columns), rows))
    if report.limits is not None:
        console.print()
        results: tuple[PrefillResult | DecodeResult, ...] = (*report.decode, *report.prefill[-1:])
        for result in results:
            console.print(Text(sentence(result)))
    console.print()
    for note in notes(report):
        console.print(Text(visible(note), style="yellow"))
    console.print(Text(visible(report.method.text), style="dim"))
    console.print(Text(visible(machine(report.conditions)), style="dim"))


def _cells(result: PrefillResult | DecodeResult) -> tuple[str, ...]:
    seconds, ceiling = result.seconds, result.ceiling
    return (
        *(milliseconds(value) for value in (seconds.median, seconds.p10, seconds.p90)),
        three_digits(result.tokens_per_second),
        milliseconds(ceiling.memory_seconds),
        milliseconds(ceiling.arithmetic_seconds),
        limit(ceiling),
    )


def _load_cells(name: str, load: Load) -> tuple[str, ...]:
    memory = ("-" if count is None else size(count) for count in (load.private_bytes, load.shared_bytes))
    return (name, f"{load.loaded_seconds:.2f}", f"{load.first_token_seconds:.2f}", *memory)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table
