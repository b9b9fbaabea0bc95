"""What settings.py and operators.py compare, and that a session is set as they say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import operators
import own_sessions
import performance_tables
import pytest
import settings
from tiny import write_checkpoint

import helium_onnx
from helium_onnx.bundle import Bundle

pytestmark = pytest.mark.filterwarnings("error")
needs_kernels = pytest.mark.usefixtures("native_kernels")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("settings")
    checkpoint = write_checkpoint(folder / "tiny", dtype="F32")
    helium_onnx.export(checkpoint, folder / "out", recipe="cpu-int4-fast")
    return Bundle.open(folder / "out")


def test_ratios_above_one_are_faster_of_rates_and_of_times() -> None:
    rounds = [{"a": {"x_per_second": 2.0, "x_ms": 2.0}, "b": {"x_per_second": 1.0, "x_ms": 1.0}}] * 2
    found = own_sessions.summary(rounds, "b", ("x_per_second", "x_ms"))
    assert found["a"]["ratio"]["x_per_second"] == {"median": 2.0, "least": 2.0, "most": 2.0}
    assert found["a"]["ratio"]["x_ms"]["median"] == 0.5
    assert found["b"]["ratio"]["x_ms"]["median"] == 1.0
    assert found["a"]["median"] == {"x_per_second": 2.0, "x_ms": 2.0}


def test_batches_of_all_sizes_hold_as_much_a_row() -> None:
    for rows in (1, 4, 16):
        lengths = settings.ragged(rows, 512)
        assert len(lengths) == rows and max(lengths) <= 512
        assert sum(lengths) / rows == pytest.approx(320, abs=1)
    assert len(set(settings.ragged(16, 512))) == 16


def test_numbers_of_threads() -> None:
    assert settings.counts(2, 2) == [1, 2]
    assert settings.counts(16, 8) == [1, 2, 3, 4, 8, 16]
    assert settings.counts(12, 6) == [1, 2, 3, 4, 6, 8, 12]


def test_threads_go_to_different_cores_first() -> None:
    allowed = os.sched_getaffinity(0)
    assert sorted(settings.one_a_core(allowed)) == sorted(allowed)
    assert list(settings._range("2-5")) == [2, 3, 4, 5] and list(settings._range("7")) == [7]


def masks() -> list[set[int]]:
    """The processors that each thread of the process may run on (it is called in the process of a session)."""
    return [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]


def chunk() -> int:
    module: Any = settings.native_session
    return int(module.CPU.prefill_chunk)


@needs_kernels
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
@pytest.mark.slow
def test_a_pinned_session_has_its_threads_on_single_processors_and_a_free_one_has_not(bundle: Bundle) -> None:
    everywhere = os.sched_getaffinity(0)
    first, second = settings.one_a_core(everywhere)[:2]
    pinned = settings.Apart(bundle.path, settings.Setting(2, 64, pinned=True, chunk=32))
    free = settings.Apart(bundle.path, settings.Setting(2, 64))
    try:
        found = pinned.call(masks)
        assert found.count({second}) == 2  # of the prefill and of the decode session
        assert {first} in found  # the calling thread
        assert all(mask == everywhere for mask in free.call(masks))
        assert (pinned.call(chunk), free.call(chunk)) == (32, settings.CPU.prefill_chunk)
    finally:
        pinned.close()
        free.close()


@needs_kernels
@pytest.mark.slow
def test_all_parts_are_measured(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CHUNKS", (16,))
    monkeypatch.setattr(settings, "counts", lambda cores, default: [default])  # noqa: ARG005
    path = tmp_path / "settings.json"
    monkeypatch.setattr("sys.argv", ["settings.py", "--bundle", str(bundle.path), "--json", str(path), "--rounds", "1"])
    settings.main()
    found = json.loads(path.read_text())
    assert list(found) == ["threads", "chunks", "batches"]
    for part in found.values():
        assert part["default"] in part["summary"] and len(part["read_gigabytes_per_second"]) == 2
        for figures in part["rounds"][0].values():
            assert all(value >= 0 for value in figures.values())
    assert found["chunks"]["summary"]["16"]["median"]["peak_private_mb"] > 1
    assert "tokens a call" in performance_tables.settings_tables(found)


@needs_kernels
def test_every_node_of_the_calls_that_count_is_profiled_once(bundle: Bundle) -> None:
    found = operators.measure(bundle, rounds=1)
    layers = int(bundle.model_config["num_hidden_layers"])
    for phase in ("decode", "prefill"):
        for kind, graph in (("before", phase), ("after", f"native_{phase}")):
            row = found[phase][kind]
            assert row["nodes"] == sum(part["nodes"] for part in row["operators"])
            assert sum(part["share"] for part in row["operators"]) == pytest.approx(1)
            counts = {part["operator"]: part["nodes"] for part in row["operators"]}
            matrices = {"MatMulNBits", "QuantizedLinear"} & set(counts)
            stored = {key.rpartition(".")[2]: n for key, n in bundle.manifest.graphs[graph].operators.items()}
            assert matrices and all(counts[name] == stored[name] for name in matrices)
        attention = next(
            part for part in found[phase]["after"]["operators"] if part["operator"].startswith("CausalAttention")
        )
        assert attention["nodes"] == layers and attention["bytes"] > 0
        weights = sum(p["bytes"] for p in found[phase]["after"]["operators"]) - attention["bytes"]
        assert weights == found[phase]["after"]["weight_bytes"]
    assert found["decode"]["after"]["nodes"] < found["decode"]["before"]["nodes"]


def test_nodes_belong_to_the_run_that_began_before_them() -> None:
    def node(ts: int, name: str) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": 5, "args": {"op_name": name}}

    def run(ts: int) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 50, "args": {}}

    events = [
        {"name": "session_initialization", "ts": 0},
        node(11, "A"),
        node(20, "B"),
        run(10),
        node(70, "A"),
        run(60),
    ]
    runs = operators.nodes_of_runs(events)
    assert [[n["args"]["op_name"] for n in nodes] for nodes in runs] == [["A", "B"], ["A"]]
    rows = operators.by_operator(runs[:1] * 3, {"A": 10**6})
    assert [(row["operator"], row["nodes"], row["ms"], row["share"], row["bytes"]) for row in rows] == [
        ("A", 1, 0.005, 0.5, 10**6),
        ("B", 1, 0.005, 0.5, 0),
    ]
