"""What onnxruntime-qnn itself says of two bundles, beside our table of its operators.

The package is importable, or lies in a folder of its own, out/clients/qnn, as `make providers` puts it there
(HELIUM_CLIENTS names another folder than out/clients).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import PROGRAM
from placement_record import share

from helium_onnx.placement import by_table
from helium_onnx.placement.graph import nodes
from helium_onnx.placement.tables import TABLES

CLIENTS = Path(os.environ.get("HELIUM_CLIENTS", Path(__file__).parents[2] / "out" / "clients"))


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    if importlib.util.find_spec("onnxruntime_qnn") is not None:
        return dict(os.environ)
    folder = CLIENTS / "qnn"
    if not (folder / "onnxruntime_qnn").is_dir():
        reason = f"onnxruntime-qnn is not installed, nor in {folder}"
        if os.environ.get("HELIUM_REQUIRE_QNN") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def inspected(bundle: Path, environment: dict[str, str]) -> dict[str, Any]:
    command = [*PROGRAM, "inspect", str(bundle), "--provider", "qnn", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    info: dict[str, Any] = json.loads(done.stdout)
    assert info["method"] == "onnxruntime"
    assert "onnxruntime-qnn 2.7.0" in info["source"]
    return info


def test_free_shapes_are_left_but_for_a_scalar(
    sample_bundle_fp32: Path, environment: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    info = inspected(sample_bundle_fp32, environment)
    assert "it takes no MatMul of prefill" in info["problem"]
    for name in ("prefill", "decode"):
        graph = info["graphs"][name]
        table = by_table(nodes(sample_bundle_fp32 / graph["file"]), TABLES["qnn"])
        assert sorted(graph["names"]) == sorted(table["names"])
        assert graph["partitions"] == 1
        assert {operator for operator, count in graph["operators"].items() if count["taken"]} == {"Squeeze", "Cast"}
    record_property("placement", share("cpu-fp32", info))


def test_fixed_shapes_are_taken_whole(
    export_sample: Callable[[str], Path], environment: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    bundle = export_sample("qnn-fp16")
    info = inspected(bundle, environment)
    assert info["problem"] is None
    for name in ("prefill", "decode"):
        graph = info["graphs"][name]
        assert (graph["share"], graph["partitions"], graph["left"]) == (1.0, 1, [])
        table = by_table(nodes(bundle / graph["file"]), TABLES["qnn"])
        assert (table["taken"], table["partitions"]) == (graph["taken"], 1)
    record_property("placement", share("qnn-fp16", info))
