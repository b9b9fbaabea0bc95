"""The whole of a benchmark, in order: conditions, limits, loads, rounds, and the limits once more."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import helium_onnx
from helium_onnx.benchmark import machine
from helium_onnx.benchmark.cases import Prefill, Preset, plan, preset
from helium_onnx.benchmark.conditions import available_memory, conditions
from helium_onnx.benchmark.loading import measure_cold, measure_warm
from helium_onnx.benchmark.machine import Limits
from helium_onnx.benchmark.measure import SEED, Samples, measure_rounds
from helium_onnx.benchmark.report import BenchReport, Ceiling, DecodeResult, Method, PrefillResult, Quantiles
from helium_onnx.benchmark.traffic import Traffic
from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError, UsageError
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes.opening import KernelChoice, runs_natively
from helium_onnx.runtimes.providers import AUTO, CPU, bundle_provider, default_threads


def bench(
    path: str | os.PathLike[str],
    *,
    prompt: Sequence[int] | None = None,
    past: Sequence[int] | None = None,
    batch: Sequence[int] | None = None,
    rounds: int | None = None,
    quick: bool = False,
    threads: int | None = None,
    provider: str = AUTO,
    kernels: KernelChoice = "auto",
    cache: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> BenchReport:
    """See :func:`helium_onnx.bench`."""
    report = progress or silent
    asked = preset(quick=quick, prompt=prompt, past=past, batch=batch, rounds=rounds)
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError("the number of threads is out of range", found=threads, expected="1 to 1024")
    bundle = Bundle.open(path)
    row = bundle_provider(bundle, provider)
    if row is not CPU:
        raise UsageError(
            "bench measures what runs on the CPU",
            found=f"a bundle for {row.name}",
            expected="a bundle of a cpu- recipe",
            remedy="benchmarks/cuda_run.py in the repository measures a GPU",
        )
    provider = row.name
    if bundle.task != "text-generation":
        raise BundleError(f"{bundle.path} does not generate text", found=bundle.task, expected="text-generation")
    used = default_threads() if threads is None else threads
    context = int(bundle.model_config["max_position_embeddings"])
    native = runs_natively(bundle, provider=provider, choice=kernels)
    traffic = Traffic(bundle, native=native)
    cases, left_out = plan(
        asked,
        context_length=context,
        cache_token_bytes=traffic.cache_token_bytes,
        available_bytes=available_memory(),
    )
    now = conditions(used)

    repeats = 2 if quick else machine.REPEATS
    report(ProgressEvent("machine", "read bandwidth and arithmetic of this machine"))
    limits = machine.measure(used, repeats)
    options = {
        "provider": provider,
        "threads": used,
        "kernels": kernels,
        "cache": cache,
        "cache_dir": None if cache_dir is None else os.fspath(Path(cache_dir).absolute()),
    }
    shortest = min((case.tokens for case in cases if isinstance(case, Prefill)), default=1)
    report(ProgressEvent("load", "cold: bundle dropped from the page cache, no prepacked weights"))
    cold = measure_cold(bundle, options, prompt_tokens=shortest, runs=asked.loads)
    report(ProgressEvent("load", "warm"))
    warm = measure_warm(bundle, options, prompt_tokens=shortest, runs=asked.loads)

    with helium_onnx.load(
        path, provider=provider, threads=used, kernels=kernels, cache=cache, cache_dir=cache_dir, progress=report
    ) as model:
        session = type(model.session).__name__
        samples, without_memory = measure_rounds(
            model.session, cases, rounds=asked.rounds, steps=asked.steps, progress=report
        )
    report(ProgressEvent("machine", "once more: the best of both counts"))
    limits = limits.and_also(machine.measure(used, repeats))

    prefill, decode = _results(samples, traffic, limits, asked.steps)
    return BenchReport(
        bundle=str(bundle.path),
        digest=bundle.digest,
        recipe=str(bundle.manifest.recipe.get("name", "")),
        provider=provider,
        kernels="native" if native else "onnxruntime",
        session=session,
        context_length=context,
        conditions=now,
        method=Method(asked.rounds, asked.steps, SEED, _method(asked, shortest)),
        limits=limits,
        cold=cold,
        warm=warm,
        prefill=prefill,
        decode=decode,
        left_out=(*left_out, *without_memory),
    )


def _results(
    samples: Samples, traffic: Traffic, limits: Limits | None, steps: int
) -> tuple[tuple[PrefillResult, ...], tuple[DecodeResult, ...]]:
    """What was measured, beside what it takes at least and what the machine would allow."""
    prefill, decode = [], []
    for case, times in samples.items():
        seconds = Quantiles.of(times)
        if isinstance(case, Prefill):
            work = traffic.prefill(case.tokens)
            ceiling = Ceiling.of(work, limits, seconds.median)
            prefill.append(PrefillResult(case.tokens, seconds, tuple(times), work, ceiling))
        else:
            work = traffic.decode(past=case.past + steps // 2, batch=case.batch)
            ceiling = Ceiling.of(work, limits, seconds.median)
            decode.append(DecodeResult(case.past, case.batch, seconds, tuple(times), work, ceiling))
    return tuple(prefill), tuple(decode)


def _method(asked: Preset, prompt_tokens: int) -> str:
    return (
        f"One round to warm up, then {asked.rounds}. A round measures every case once, in an order shuffled anew from "
        f"a fixed seed. A prefill is timed from token ids to the first token; a decode case is {asked.steps} steps "
        "after one that is not counted, each from a token to the next greedy one. Medians, and p10 to p90, of all "
        "prefills and all steps. Tokens are random; a past was not computed, but holds keys and values of a few tokens "
        "over and over, which takes the same time. A load is a process of its own that runs a prompt of "
        f"{prompt_tokens} tokens and one step, after which its memory is read; cold: the bundle's files dropped from "
        "the page cache, without prepacked weights; warm: files in the page cache, prepacked weights as load would. "
        "Ceilings: the bytes a call must move at the read bandwidth, its operations at the rates of their types."
    )
