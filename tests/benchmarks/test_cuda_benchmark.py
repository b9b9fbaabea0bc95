"""benchmarks/cuda_run.py without a GPU: what is counted, what the tables say, and that a run survives what fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cuda_run
import cuda_tables
import cuda_trace
import numpy as np
import pytest
from cuda_bench import contenders, parts
from cuda_bench.budget import Budget, OutOfTimeError
from cuda_bench.contenders import BATCHES, BUILDS, CONTENDERS, HALF, INT4, Build, Contender, export
from cuda_bench.counting import (
    Storage,
    cache_bytes,
    prefill_operations,
    step_bytes,
    step_operations,
    token_bytes,
    weight_bytes,
)
from cuda_bench.kernel_kinds import by_kind, kind, short
from cuda_bench.processes import Worker, WorkerError, run_beside
from cuda_serving import Clock, random_ids
from random_checkpoint import PREVIEW_2B
from tiny import write_checkpoint

import helium_onnx

pytestmark = pytest.mark.filterwarnings("error")

#: Two heads share a key: grouped attention must be counted too.
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "vocab_size": 320,
}  # fmt: skip


def test_bytes_of_the_2_b_model_are_those_of_its_parameters() -> None:
    parameters = 2_172_643_840
    embedding = 48000 * 2560
    norms = 49 * 2560
    assert weight_bytes(PREVIEW_2B, HALF) == 2 * (parameters - embedding)
    matrices = parameters - embedding - norms
    assert weight_bytes(PREVIEW_2B, INT4) == matrices * (4 + 16 / 32) / 8 + 2 * norms
    assert token_bytes(PREVIEW_2B, HALF) == 24 * 2 * 2560 * 2 == 2 * token_bytes(PREVIEW_2B, Storage(cache_bits=8))
    # What the note on the first measurements calls the limits: 0.95 ms and 0.28 ms at 4.3 TB/s.
    assert weight_bytes(PREVIEW_2B, HALF) / 4.3e9 == pytest.approx(0.95, abs=0.005)
    assert weight_bytes(PREVIEW_2B, INT4) / 4.3e9 == pytest.approx(0.27, abs=0.005)


def test_bytes_of_a_step() -> None:
    assert cache_bytes(SMALL, HALF, past=10, rows=3) == 3 * 12 * 2 * 2 * 2 * 16 * 2
    assert step_bytes(SMALL, HALF, 10, 3) == weight_bytes(SMALL, HALF) + 3 * 64 * 2 + cache_bytes(SMALL, HALF, 10, 3)
    # Rows of 70 are padded to three blocks of 32; zero points of 4 bits, two a byte.
    assert Storage(4, 32).matrix_bytes(5, 70) == 5 * (48 + 6)
    assert Storage(4, 32, zeros=True).matrix_bytes(5, 70) == 5 * (48 + 6 + 2)
    assert Storage(8, 64).matrix_bytes(5, 64) == 5 * (64 + 2)


@pytest.mark.parametrize("name", ["fp16", "bf16", "int4", "int4-kv8", "int4-layout"])
def test_bytes_are_those_of_the_bundle_that_is_measured(name: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny", head_dim=16)
    command = BUILDS[name].command(checkpoint, tmp_path / "out")
    bundle = helium_onnx.export(checkpoint, tmp_path / "out", recipe=command[command.index("--recipe") + 1])
    config = json.loads((checkpoint / "config.json").read_text())
    others = ("embed_tokens", "cos", "sin", "_cache.scales")
    read = [t for t in bundle.manifest.tensors if not any(other in t.name for other in others)]
    (storage,) = {contender.storage for contender in CONTENDERS if contender.build == name}
    assert weight_bytes(config, storage) == sum(tensor.nbytes for tensor in read)
    if name != "int4-layout":
        (embedding,) = [t for t in bundle.manifest.tensors if "embed_tokens" in t.name]
        assert embedding.nbytes == config["vocab_size"] * config["hidden_size"] * 2
    (precision,) = {str(t.dtype) for t in bundle.manifest.graphs["decode"].inputs if "past" in t.name}
    assert np.dtype(precision if precision != "bfloat16" else "float16").itemsize * 8 == storage.cache_bits


def test_operations() -> None:
    layer = 64 * 64 * 2 + 2 * 32 * 64 + 3 * 96 * 64  # q and o, k and v, the MLP
    head = 320 * 64
    assert prefill_operations(SMALL, 1) == 2 * (2 * layer + head) + 4 * 2 * 64
    assert prefill_operations(SMALL, 3) == 2 * (2 * 3 * layer + head) + 4 * 2 * 64 * 6
    assert step_operations(SMALL, past=0, rows=1) == prefill_operations(SMALL, 1)
    assert step_operations(SMALL, past=9, rows=5) == 5 * (2 * (2 * layer + head) + 4 * 2 * 64 * 10)


def test_kernels_of_a_trace_are_divided_by_the_steps_and_overlaps_count_once() -> None:
    def event(name: str, ts: float, dur: float, cat: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("a", 0, 10), event("a", 5, 10), event("b", 30, 2), event("c", 40, 1, "gpu_memcpy"),
        event("host", 0, 100, "cuda_runtime"), {"ph": "M", "cat": "kernel", "name": "meta"},
    ]  # fmt: skip
    found = cuda_trace.kernels(events, 2)
    assert found["rows"] == [
        {"name": "a", "calls": 1.0, "us": 10.0},
        {"name": "b", "calls": 0.5, "us": 1.0},
        {"name": "c", "calls": 0.5, "us": 0.5},
    ]
    assert (found["busy_us"], found["span_us"]) == (9.0, 20.5)
    with pytest.raises(RuntimeError, match="saw no kernel"):
        cuda_trace.kernels([event("host", 0, 1, "cuda_runtime")], 1)


@pytest.mark.parametrize(
    ("name", "what", "called"),
    [
        ("void onnxruntime::contrib::cuda::MatMulFloatInt4Kernel<__half, 32, false>(__half*)", "matrices",
         "MatMulFloatInt4Kernel"),
        ("void gemv2T_kernel_val<int, __half, __half>(T1)", "matrices", "gemv2T_kernel_val"),
        ("nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", "matrices", "nvjet_hsh_64x8_64x16_4x1_v_bz_TNT"),
        ("void onnxruntime::flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128> >(Flash)", "attention",
         "flash_fwd_splitkv_kernel"),
        ("void onnxruntime::contrib::cuda::SkipLayerNormKernelSmall<__half>(int)", "norms",
         "SkipLayerNormKernelSmall"),
        ("device_linear_norm", "matrices", "device_linear_norm"),
        ("device_attention_split", "attention", "device_attention_split"),
        ("Memcpy DtoH (Device -> Pinned)", "copies", "Memcpy DtoH"),
        ("void (anonymous namespace)::elementwise_kernel<4>(int)", "activations", "elementwise_kernel"),
        ("unheard_of", "others", "unheard_of"),
    ],
)  # fmt: skip
def test_kinds_of_kernels(name: str, what: str, called: str) -> None:
    assert kind(name) == what
    assert short(name) == called


def test_rates_of_kinds() -> None:
    step = {"rows": [{"name": "gemm", "calls": 2, "us": 4.0}, {"name": "flash", "calls": 1, "us": 2.0},
                     {"name": "x", "calls": 1, "us": 1.0}]}  # fmt: skip
    found = {row["kind"]: row for row in by_kind(step, SMALL, HALF, 10)}
    assert list(found) == ["attention", "matrices", "others"]
    assert found["matrices"]["gigabytes_per_second"] == pytest.approx(weight_bytes(SMALL, HALF) / 4e-6 * 1e-9)
    assert found["attention"]["gigabytes_per_second"] == pytest.approx(cache_bytes(SMALL, HALF, 10) / 2e-6 * 1e-9)
    assert found["others"]["gigabytes_per_second"] is None


def test_budget() -> None:
    now = [0.0]
    budget = Budget(2, clock=lambda: now[0])
    budget.need(120, "all of it")
    now[0] = 90.0
    assert (budget.spent, budget.left, budget.at_most(60), budget.at_most(10)) == (90, 30, 30, 10)
    with pytest.raises(OutOfTimeError, match="a round takes about 31 s, and 30 s are left"):
        budget.need(31, "a round")
    now[0] = 500.0
    assert budget.at_most(60) == 1.0


def test_figures_of_a_visit() -> None:
    clock = Clock()
    clock._times = [0.0, 1.0, 1.5, 2.5, 3.0]
    assert clock.figures(1) == {"seconds": 2.0, "steps": 3, "each": [0.5, 1.0, 0.5]}
    figure = parts.step_figure({"seconds": 2.0, "steps": 4, "each": [0.5, 0.25, 0.75, 0.5], "tokens": [7]})
    assert figure == {"ms": 500.0, "median_ms": 500.0, "p95_ms": 750.0, "tokens": [7]}
    assert parts.step_figure({"failed": "no"}) == {"failed": "no"}
    assert "failed" in parts.step_figure({"seconds": 1.0, "steps": 0})
    assert parts.prefill_figure({"each": [0.003, 0.002]})["ms"] == 2.0
    assert [parts.percentile([1, 2, 3, 4], rank) for rank in (25, 50, 51, 100)] == [1, 2, 3, 4]


def test_prompts_are_equal_for_all_and_another_in_each_turn() -> None:
    first = random_ids(320, 2, 8, 1)
    assert first == random_ids(320, 2, 8, 1) != random_ids(320, 2, 8, 2)
    assert first[0] != first[1] and random_ids(320, 1, 8, 1)[0] == first[0]
    assert all(4 <= token < 320 for row in first for token in row)


def test_every_row_names_what_is_there() -> None:
    names = [contender.name for contender in CONTENDERS]
    assert len(set(names)) == len(names)
    for contender in CONTENDERS:
        assert contender.build is None or contender.build in BUILDS
        assert contender.equal is None or contender.equal in names
        assert (cuda_run.ROOT / "benchmarks/cuda_workers" / contender.script).is_file()
    assert sorted(BATCHES) == [2**i for i in range(9)]
    assert set(contenders.BATCH_BUILDS) == set(cuda_tables.STORAGES) <= set(BUILDS)
    assert Path(BUILDS["int4"].command(Path("c"), Path("o"))[7]).is_file()


def results() -> dict[str, Any]:
    """What a run would find in which ours reaches its bars at int4 alone."""
    ms = {"fp16": 1.6, "bf16": 1.5, "int4": 0.9}
    round_: dict[str, Any] = {}
    for contender in CONTENDERS:
        build = contender.build or "bf16"
        scale = 2.0 if contender.equal else 1.0
        round_[contender.name] = {
            f"{how}@{past}": {
                "ms": scale * ms[build.removeprefix("genai-").partition("-")[0]],
                "tokens": [5, 6, 8 if contender.equal else 7],
            }
            for how in contender.hows
            for past in contender.pasts
        } | {f"prefill@{tokens}": {"ms": 20.0} for tokens in contender.prefills}
    round_["transformers bf16, compiled"]["prefill@512"] = {"failed": "RuntimeError: no\nmore"}
    trace = {"rows": [{"name": "gemm", "calls": 97.0, "us": 900.0}, {"name": "x", "calls": 1, "us": 1.0}],
             "busy_us": 901.0, "span_us": 950.0, "steps": 16}  # fmt: skip
    return {
        "conditions": {"gpu": "A GPU", "cpu": "a CPU", "cores": 16, "python": "3.12", "date": "2026-01-01"},
        "config": PREVIEW_2B,
        "limits": [{"when": "before", "clocks": {"clocks.sm": "1980"}, "copy_gigabytes_per_second": 4300.0,
                    "bfloat16_matrix_teraflops": 700.0, "float16_matrix_teraflops": 690.0},
                   {"when": "after", "failed": "gone"}],
        "steps": {"steps": 96, "workers": {}, "rounds": [round_, round_]},
        "batches": {"past": 512, "builds": {"bf16": {"sizes": {
            "64": [{"ms": 5.0}, {"ms": 5.2}], "1": [{"ms": 1.5}], "256": [{"failed": "too little memory"}]}}}},
        "kernels": {"past": 512, "prompt": 2048, "helium-onnx fp16": {"step": trace}},
        "prepare": {"checkpoint": {}, "fp16": {"seconds": 60.0, "bytes": 4_350_000_000},
                    "genai-fp16": {"failed": "absent: there is no package"}},
        "part_seconds": {"steps": 120.0},
        "ended_early": {"kernels": "left out: no time"},
    }  # fmt: skip


def line(text: str, *beginning: str) -> list[str]:
    """The cells of the row of a table that begins so."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]
    (found,) = [row for row in rows if row[: len(beginning)] == list(beginning)]
    return found


def test_tables() -> None:
    found = results()
    floor = step_bytes(PREVIEW_2B, HALF, 512) / 4.3e9
    row = line(cuda_tables.decode(found), "helium-onnx fp16")
    assert row[1:] == ["4.23", f"{floor:.2f}", "1.600", "1.600", "1.600", f"{100 * floor / 1.6:.0f} %", "1.600",
                       "1.600", "-"]  # fmt: skip
    assert line(cuda_tables.peers(found), "helium-onnx int4")[1:] == [
        "onnxruntime-genai int4",
        "2.00 x",
        "2.00-2.00",
        "2 of 3",
    ]
    rate = prefill_operations(PREVIEW_2B, 2048) / 20e-3 * 1e-12
    assert line(cuda_tables.prefill(found), "helium-onnx bf16", "2048")[2:] == [
        "20.00", f"{rate:.0f}", f"{100 * rate / 700:.0f} %",
    ]  # fmt: skip
    assert "transformers" not in cuda_tables.prefill(found)
    batch = line(cuda_tables.batches(found), "64")
    assert batch[1:3] == ["5.10", "12,549"]
    assert line(cuda_tables.batches(found), "256")[1] == "failed"
    assert line(cuda_tables.kernels(found), "matrices")[1:3] == ["97", "900.0"]
    assert line(cuda_tables.kernels(found), "1 others")[2:] == ["1", "1.0", "0.1 %"]
    assert line(cuda_tables.limits(found), "before")[1:4] == ["4300", "-", "700"]


def test_bars_say_what_is_reached() -> None:
    text = cuda_tables.bars(results())
    assert line(text, "decode fp16, after 512")[1:] == ["<= 1.45 ms", "1.600 ms", "NO"]
    assert line(text, "decode int4, after 512")[1:] == ["<= 1.0 ms", "0.900 ms", "yes"]
    assert line(text, "beside onnxruntime-genai int4")[1:] == [">= 1.4 x", "2.00 x", "yes"]
    assert line(text, "64 rows, bf16")[1:] == [">= 12,000 tokens/s", "12,549", "yes"]
    assert line(text, "64 rows, fp16")[1:] == [">= 12,000 tokens/s", "-", "-"]
    assert line(text, "prefill of 2048, bf16")[3] == "yes"
    bare = {**results(), "steps": {"steps": 96, "rounds": [], "workers": {}}}
    assert line(cuda_tables.bars(bare), "decode int4, after 512")[2:] == ["-", "-"]


def test_whatever_is_missing_the_rest_is_shown() -> None:
    whole = cuda_tables.show(results())
    assert "cannot be shown" not in whole
    for heading in (
        "Conditions",
        "Bars",
        "Limits",
        "Decode",
        "Beside peers",
        "Prefill",
        "Batches",
        "Kernels",
        "Models",
    ):
        assert f"## {heading}" in whole
    assert "- prepare, genai-fp16: absent: there is no package" in whole
    assert "- part kernels: left out: no time" in whole
    assert "- steps, rounds, transformers bf16, compiled, prefill@512: RuntimeError: no; more" in whole
    for name in results():
        text = cuda_tables.show({key: value for key, value in results().items() if key != name})
        assert "## Conditions" in text
    assert "## Conditions" in cuda_tables.show({})


def test_builds_run_beside_each_other_and_say_how_they_failed(tmp_path: Path) -> None:
    python = cuda_run.parts.rows.sys.executable
    found = run_beside(
        {
            "good": [python, "-c", "import os; assert os.environ['X'] == '1'"],
            "bad": [python, "-c", "print('why'); raise SystemExit(3)"],
            "slow": [python, "-c", "import time; time.sleep(600)"],
        },
        tmp_path / "logs",
        4.0,
        {"X": "1"},
    )
    assert found["good"]["seconds"] < 4
    assert found["bad"]["failed"] == "ended with 3; why"
    assert found["slow"]["failed"].startswith("not done after 4 s")


def test_a_worker_answers_errors_and_goes_on(sample_bundle_fp32: Path, tmp_path: Path) -> None:
    worker = Worker(
        "cuda_ours.py", {"path": str(sample_bundle_fp32), "context": 128, "provider": "cpu"}, tmp_path / "l"
    )
    try:
        ready = worker.ready(60)
        assert "onnxruntime" in ready["versions"] and ready["session"] == "OnnxRuntimeSession"
        with pytest.raises(WorkerError, match="AttributeError"):
            worker.ask("decode", 30, how="greedy", rows=1, past=8, steps=2, warm=1, turn=1)
        ran = worker.ask("decode", 30, how="run", rows=2, past=8, steps=3, warm=1, turn=1)
        assert ran["steps"] == 3 == len(ran["each"]) and len(ran["tokens"]) == 5
        again = worker.ask("decode", 30, how="run", rows=1, past=8, steps=3, warm=1, turn=1)
        assert again["tokens"] == ran["tokens"]  # the first row's prompt is the same
        assert len(worker.ask("decode", 30, how="sample", rows=1, past=8, steps=2, warm=1, turn=1)["tokens"]) == 4
        assert len(worker.ask("prefill", 30, tokens=16, turn=1, repeats=2)["each"]) == 2
        assert worker.ask("generate", 60, past=16, steps=4)["steps"] >= 1
        assert set(worker.ask("memory", 30)) == {"free", "total"}
        with pytest.raises(WorkerError, match=r"no answer in 0 s"):
            worker.ask("prefill", 0.001, tokens=100, turn=1, repeats=50)
        with pytest.raises(WorkerError, match="the worker ended with -9"):
            worker.ask("memory", 30)
    finally:
        worker.close()


def test_a_model_that_does_not_load_is_an_error_in_words(tmp_path: Path) -> None:
    worker = Worker("cuda_ours.py", {"path": str(tmp_path), "context": 64, "provider": "cpu"}, tmp_path / "l")
    with pytest.raises(WorkerError, match=r"helium\.json"):
        worker.ready(60)
    worker.close()


@pytest.mark.slow
def test_a_whole_run_on_the_cpu(
    sample_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parts over the sample: what needs a GPU fails in words, and what does not is measured."""
    builds = {"fp16": Build("fp16", export("cpu-fp32")), "genai-fp16": dataclasses.replace(BUILDS["genai-fp16"])}
    row = Contender(
        "helium-onnx fp16", "cuda_ours.py", "fp16", HALF, {"provider": "cpu", "kernels": "onnxruntime"},
        ("run", "greedy"), (16, 64), (32,), whole=True,
    )  # fmt: skip
    rows = (
        row,
        dataclasses.replace(next(c for c in CONTENDERS if c.build == "genai-fp16"), pasts=(16,)),
        Contender(
            "transformers bf16, compiled", "cuda_hf.py", None, HALF, {"dtype": "float32", "mode": None},
            ("run",), (16, 64), (32,), "helium-onnx fp16",
        ),
    )  # fmt: skip
    for module in (contenders, parts, cuda_run.parts.rows):
        monkeypatch.setattr(module, "BUILDS", builds, raising=False)
    monkeypatch.setattr("cuda_bench.run.BUILDS", builds)
    monkeypatch.setattr(cuda_run, "CONTENDERS", rows)
    monkeypatch.setattr(parts, "BATCH_PAST", 64)
    monkeypatch.setattr(parts, "BATCHES", (1, 2))
    out = tmp_path / "results.json"
    options = ["--out", out, "--work", tmp_path / "work", "--checkpoint", sample_checkpoint, "--device", "cpu"]
    options += ["--rounds", 2, "--steps", 4, "--context", 128, "--minutes", 5]
    monkeypatch.setattr("sys.argv", ["cuda_run.py", *map(str, options)])
    cuda_run.main()
    found = json.loads(out.read_text())
    assert found["prepare"]["fp16"]["bytes"] > 1e6
    assert "no package onnxruntime_genai" in found["prepare"]["genai-fp16"]["failed"]
    assert "no package onnxruntime_genai" in found["steps"]["workers"]["onnxruntime-genai fp16"]["failed"]
    assert [len(found["steps"]["rounds"]), len(found["limits"])] == [2, 3]
    for round_ in found["steps"]["rounds"]:
        mine = round_["helium-onnx fp16"]
        assert set(mine) == {"prefill@32", "run@16", "run@64", "greedy@64", "generate@64"}
        assert "AttributeError" in mine["greedy@64"]["failed"]
        assert mine["run@16"]["tokens"] == round_["transformers bf16, compiled"]["run@16"]["tokens"]
        assert all(figure["ms"] > 0 for what, figure in mine.items() if what != "greedy@64")
    assert "failed" in found["kernels"]["helium-onnx fp16"]["step"]
    assert set(found["batches"]["builds"]["fp16"]["sizes"]) == {"1", "2"}
    assert found["ended_early"] == {} and set(found["part_seconds"]) == set(cuda_run.PARTS)
    printed = capsys.readouterr().out
    assert "## Decode, one row" in printed and "## What failed" in printed
    monkeypatch.setattr("sys.argv", ["cuda_run.py", "--parts", "show", "--out", str(out)])
    cuda_run.main()
    assert "## Decode, one row" in capsys.readouterr().out
