"""inspect: every byte of the weights is in one place of each division."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import bundles
import pytest
from rich.console import Console

from helium_onnx.bundle import BundleWriter
from helium_onnx.contract import WEIGHTS_FILE, TensorSpec, tensors
from helium_onnx.errors import BundleError, IntegrityError
from helium_onnx.inspection import _weights, fold, inspect, render
from helium_onnx.manifest import TensorRecord
from helium_onnx.tasks import Task


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return bundles.write_bundle(tmp_path / "bundle").path


def test_every_byte_is_somewhere(target: Path) -> None:
    weights = inspect(target)["weights"]
    assert weights["bytes"] == (target / WEIGHTS_FILE).stat().st_size
    for division in ("by_part", "by_layer", "by_kind"):
        assert sum(weights[division].values()) + weights["padding"] == weights["bytes"], division


def test_parts_layers_and_kinds(target: Path) -> None:
    weights = inspect(target)["weights"]
    # int4: half a byte a weight; a block of 8 has 4 bytes of scale; zero points half a byte a block, rows rounded up
    attention = 2 * ((8 + 4 + 4 + 8) * 8 // 2 + 24 * 4 + 24)
    mlp = 2 * (3 * 16 * 8 // 2 + (16 + 16 + 16) * 4 + 16 + 16 + 8)
    assert weights["by_part"] == {
        "embedding": 32 * 8 * 4,
        "attention": attention,
        "mlp": mlp,
        "norms": 5 * 8 * 4,
        "head": 32 * 8 // 2 + 32 * 4 + 32,
        "rope tables": 2 * 16 * 2 * 4,
    }
    assert list(weights["by_layer"]) == ["outside the layers", "layer 0", "layer 1"]
    assert weights["by_layer"]["layer 0"] == weights["by_layer"]["layer 1"] == (attention + mlp) // 2 + 2 * 8 * 4
    assert set(weights["by_kind"]) == {
        "plain (float32)",
        "quantized weights (uint8)",
        "scales (float32)",
        "zero points (uint8)",
    }


def test_bits_per_weight(target: Path) -> None:
    bits = inspect(target)["weights"]["bits_per_weight"]
    assert bits["embedding"] == 32
    assert bits["attention"] == 4 + 32 / 8 + 1  # one block a row, so that a byte holds one zero point alone
    elements = 32 * 8 + 2 * (24 * 8 + 3 * 16 * 8)  # the tied head has none of its own
    parts = inspect(target)["weights"]["by_part"]
    stored = sum(parts[part] for part in ("embedding", "attention", "mlp", "head"))
    assert bits["all"] == round(8 * stored / elements, 4)
    assert "norms" not in bits


@pytest.mark.parametrize("lacking", [{}, {"hidden_size": "8"}, {"hidden_size": True}, {"hidden_size": 0}])
def test_no_bits_where_the_config_lacks_a_size(lacking: dict[str, object], tmp_path: Path) -> None:
    config = {**bundles.CONFIG, **lacking} if lacking else {}
    with BundleWriter(tmp_path / "b", force=False, expected_bytes=0) as writer:
        bundles.write_files(writer.folder)
        writer.commit(dataclasses.replace(bundles.manifest(), model_config=config))
    assert inspect(tmp_path / "b")["weights"]["bits_per_weight"] is None


def test_packed_matrices_count_each_of_their_sources() -> None:
    prefix = "model.layers.0.self_attn."
    source = "+".join(f"{prefix}{x}_proj.weight" for x in "qkv")
    packed = TensorRecord(f"{prefix}qkv.quantized", "uint8", (16, 1, 4), 0, 64, source)
    weights = _weights(dataclasses.replace(bundles.manifest(), tensors=(packed,)), 64)
    assert weights["bits_per_weight"] == {"all": 4.0, "attention": 4.0}


def test_shared_bytes_and_gaps() -> None:
    records = [
        TensorRecord("model.embed_tokens.weight", "float32", (4,), 0, 16, "model.embed_tokens.weight"),
        TensorRecord("lm_head.weight", "float32", (4,), 0, 16, "model.embed_tokens.weight"),
        TensorRecord("cos", "float32", (2,), 12, 8, "config.json"),
        TensorRecord("mystery", "float32", (2,), 32, 8, ""),
        TensorRecord("empty", "float32", (0,), 40, 0, ""),
    ]
    weights = _weights(dataclasses.replace(bundles.manifest(), tensors=tuple(records)), 64)
    assert weights["by_part"] == {"embedding": 0, "head": 16, "rope tables": 4, "other": 8}
    assert weights["padding"] == 64 - 28


def test_layers_are_folded() -> None:
    class Sizes:
        num_hidden_layers, num_key_value_heads, head_dim, vocab_size = 24, 20, 128, 48000
        hidden_size, num_labels, pad_token_id = 2560, 0, 3
        task: Task = "text-generation"

    assert fold(tensors("decode", "input", Sizes())) == [
        "input_ids [batch_size, sequence_length] int64",
        "attention_mask [batch_size, total_sequence_length] int64",
        "past_key_values.{0..23}.key [batch_size, 20, past_sequence_length, 128] float32",
        "past_key_values.{0..23}.value [batch_size, 20, past_sequence_length, 128] float32",
    ]


def test_folding_keeps_what_differs() -> None:
    specs = [TensorSpec(f"present.{i}.key", "float32", (2 if i == 2 else 1,)) for i in (0, 1, 2, 3, 5)]
    assert fold(specs) == ["present.{0..1,3,5}.key [1] float32", "present.{2}.key [2] float32"]


def test_graphs_and_files(target: Path) -> None:
    info = inspect(target)
    assert info["graphs"]["prefill"]["file"] == "onnx/prefill.onnx"
    assert info["graphs"]["prefill"]["bytes"] == 128
    assert list(info["graphs"]["prefill"]["operators"].items()) == [("com.microsoft.MatMulNBits", 15), ("Add", 4)]
    assert info["total_bytes"] == sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    json.dumps(info, allow_nan=False)


def test_inspect_changes_nothing(target: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [target, *target.rglob("*")]}
    inspect(target)
    assert before == {path: path.stat().st_mtime_ns for path in [target, *target.rglob("*")]}


def test_damage_is_refused(target: Path, tmp_path: Path) -> None:
    (target / "config.json").unlink()
    with pytest.raises(IntegrityError):
        inspect(target)
    with pytest.raises(BundleError):
        inspect(tmp_path / "nothing")


@pytest.mark.parametrize("width", [40, 120])
def test_render(width: int, target: Path) -> None:
    stream = io.StringIO()
    render(inspect(target), Console(file=stream, width=width))
    text = stream.getvalue()
    joined = "".join(text.split())
    for expected in (
        "past_key_values.{0..1}.key[batch_size,1,past_sequence_length,4]float32",
        "padding",
        "layer1",
        "100.0%",
    ):
        assert expected in joined if width == 120 else expected[:5] in joined
    assert max(map(len, text.splitlines())) <= width


def test_render_without_weights(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b", force=False, expected_bytes=0) as writer:
        bundles.write_files(writer.folder)
        (writer.folder / WEIGHTS_FILE).unlink()
        writer.commit(dataclasses.replace(bundles.manifest(), tensors=(), licence=None))
    info = inspect(tmp_path / "b")
    assert info["weights"] is None
    stream = io.StringIO()
    render(info, Console(file=stream, width=120))
    assert "not stated" in stream.getvalue()
