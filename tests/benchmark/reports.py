"""A benchmark's report that nobody measured, with round numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from helium_onnx.benchmark.cases import LeftOut
from helium_onnx.benchmark.conditions import Conditions
from helium_onnx.benchmark.loading import Load
from helium_onnx.benchmark.machine import Limits
from helium_onnx.benchmark.report import BenchReport, Ceiling, DecodeResult, Method, PrefillResult, Quantiles
from helium_onnx.benchmark.traffic import Work

LIMITS = Limits("helium_onnx.kernels", 2, 1 << 28, (49.0, 50.0), (990.0, 1000.0), (100.0,))
CONDITIONS = Conditions(
    date="2026-11-22T12:00:00+00:00",
    cpu="Some Processor [bold] 9000",
    instruction_sets=("avx2", "avx512_vnni"),
    cores=2,
    threads=2,
    cache_bytes=32_000_000,
    memory_bytes=16_000_000_000,
    load_average=(0.1, 0.2, 0.3),
    system="Linux x86_64",
    versions={"python": "3.11.7", "helium-onnx": "0.1.0", "onnxruntime": "1.31.1", "numpy": "2.4.6"},
)
LOAD = Load(3, 32, 0.3, 0.9, 1.2, 1.25, 95_000_000, 1_300_000_000, 1.0)


def decode(past: int, batch: int, median: float, limits: Limits | None = LIMITS) -> DecodeResult:
    work = Work(1_250_000_000, 2000, batch * past * 500_000, batch * 500_000, batch * 4_000_000_000, batch * 10**8)
    samples = (0.9 * median, median, 1.5 * median)
    return DecodeResult(past, batch, Quantiles.of(samples), samples, work, Ceiling.of(work, limits, median))


def prefill(tokens: int, median: float, limits: Limits | None = LIMITS) -> PrefillResult:
    work = Work(1_250_000_000, 2000 * tokens, 0, tokens * 500_000, tokens * 4_000_000_000, tokens * 10**8)
    samples = (0.9 * median, median, 1.1 * median)
    return PrefillResult(tokens, Quantiles.of(samples), samples, work, Ceiling.of(work, limits, median))


def report(limits: Limits | None = LIMITS, **changes: Any) -> BenchReport:
    """Of a 2 B model in int4."""
    whole = BenchReport(
        bundle="out/a [red]bundle",
        digest="ab" * 32,
        recipe="cpu-int4",
        provider="cpu",
        kernels="onnxruntime",
        session="OnnxRuntimeSession",
        context_length=4096,
        conditions=CONDITIONS,
        method=Method(5, 16, 0, "One round to warm up, then 5."),
        limits=limits,
        cold=dataclasses.replace(LOAD, loaded_seconds=8.9, first_token_seconds=20.1, ready_seconds=21, cached_share=0),
        warm=LOAD,
        prefill=(prefill(32, 0.3, limits), prefill(2048, 20.5, limits)),
        decode=(
            decode(0, 1, 0.031, limits),
            decode(2048, 1, 0.06, limits),
            decode(512, 16, 1.2, limits),
        ),
        left_out=(LeftOut("decode at past 8192, batch 1", "needs 8,208 tokens; the model's context is 4,096"),),
    )
    return dataclasses.replace(whole, **changes)
