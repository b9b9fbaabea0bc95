"""A bundle of a few kilobytes for tests, and the folder it is written from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from helium_onnx.bundle import Bundle, BundleWriter
from helium_onnx.contract import GRAPH_FILES, GRAPHS, WEIGHTS_FILE, TensorSpec
from helium_onnx.manifest import FORMAT_VERSION, MANIFEST_FILE, FileRecord, GraphRecord, Manifest, TensorRecord

#: hidden 8, inner 16, 2 layers, 2 heads of 4, 1 key/value head, vocabulary 32
CONFIG = {
    "model_type": "helium",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 32,
    "rms_norm_eps": 1e-8,
    "eos_token_id": None,
}

PLAIN_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "genai_config.json")
FILES = tuple(sorted([*PLAIN_FILES, *GRAPH_FILES.values(), WEIGHTS_FILE]))

ALIGNMENT = 64


def tensors() -> tuple[TensorRecord, ...]:
    """Embedding float32, all linear layers int4 (block 8), norms and RoPE tables float32, a tied head stored again."""
    rows: list[tuple[str, str, tuple[int, ...], int, str]] = []

    def keep(name: str, *shape: int) -> None:
        size = 4
        for dim in shape:
            size *= dim
        rows.append((name, "float32", shape, size, name))

    def quantize(name: str, n: int, k: int, source: str | None = None) -> None:
        rows.append((f"{name}.quantized", "uint8", (n, k // 8, 4), n * k // 2, source or name))
        rows.append((f"{name}.scales", "float32", (n, k // 8), n * k // 8 * 4, source or name))
        rows.append((f"{name}.zero_points", "uint8", (n, -(-k // 16)), n * -(-k // 16), source or name))

    keep("model.embed_tokens.weight", 32, 8)
    for i in range(2):
        keep(f"model.layers.{i}.input_layernorm.weight", 8)
        for part, n in (("q", 8), ("k", 4), ("v", 4), ("o", 8)):
            quantize(f"model.layers.{i}.self_attn.{part}_proj.weight", n, 8)
        keep(f"model.layers.{i}.post_attention_layernorm.weight", 8)
        for part, n, k in (("gate", 16, 8), ("up", 16, 8), ("down", 8, 16)):
            quantize(f"model.layers.{i}.mlp.{part}_proj.weight", n, k)
    keep("model.norm.weight", 8)
    quantize("lm_head.weight", 32, 8, "model.embed_tokens.weight")
    rows += [(name, "float32", (16, 2), 128, "config.json") for name in ("cos", "sin")]
    records, offset = [], 0
    for name, dtype, shape, nbytes, source in rows:
        offset = -(-offset // ALIGNMENT) * ALIGNMENT
        records.append(TensorRecord(name, dtype, shape, offset, nbytes, source))
        offset += nbytes
    return tuple(records)


def manifest() -> Manifest:
    """All but ``files``, which the writer fills in."""
    past = ("batch_size", 1, "past_sequence_length", 4)
    inputs = (
        TensorSpec("input_ids", "int64", ("batch_size", "sequence_length")),
        *(TensorSpec(f"past_key_values.{i}.{x}", "float32", past) for i in range(2) for x in ("key", "value")),
    )
    outputs = (TensorSpec("logits", "float32", ("batch_size", "sequence_length", 32)),)
    operators = {"com.microsoft.MatMulNBits": 15, "Add": 4}
    return Manifest(
        format_version=FORMAT_VERSION,
        helium_onnx="0.1.0",
        task="text-generation",
        licence="CC-BY-4.0",
        recipe={"name": "cpu-int4", "quantization": {"bits": 4, "block_size": 8, "ratio": 0.5, "étiquette": "é"}},
        quantization={"method": "none", "calibration": None, "allocation": None},
        model_config=dict(CONFIG),
        graphs={name: GraphRecord(GRAPH_FILES[name], inputs, outputs, dict(operators)) for name in GRAPHS},
        tensors=tensors(),
        source=(FileRecord("model.safetensors", 123, "ab" * 32), FileRecord("config.json", 45, "cd" * 32)),
        tools={"torch": "2.13.0", "onnx": "1.23.2"},
        files=(),
    )


def contents(label: str = "") -> dict[str, bytes]:
    """Each file's bytes; another ``label`` gives others of the same size."""
    result = {name: hashlib.sha256((label + name).encode()).digest() * 4 for name in FILES}
    last = tensors()[-1]
    result[WEIGHTS_FILE] = hashlib.sha256(label.encode()).digest() * (-(-(last.offset + last.nbytes) // 32))
    return result


def write_files(folder: Path, label: str = "") -> None:
    for name, data in contents(label).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def write_bundle(
    target: Path,
    label: str = "",
    *,
    force: bool = False,
    expected_bytes: int = 10_000,
    before_commit: Callable[[Path], object] = lambda _: None,
) -> Bundle:
    """Write one; ``before_commit`` gets the folder being written, and may spoil it or raise."""
    with BundleWriter(target, force=force, expected_bytes=expected_bytes) as writer:
        write_files(writer.folder, label)
        before_commit(writer.folder)
        return writer.commit(manifest())


def forge(
    source: Path,
    target: Path,
    *,
    change: Callable[[Path], object] = lambda _: None,
    manifest: Callable[[Manifest], Manifest] = lambda m: m,
) -> Path:
    """A copy of a bundle, changed, whose manifest describes the change: nothing is damaged, and yet it is wrong."""
    with BundleWriter(target, force=False, expected_bytes=0) as writer:
        shutil.copytree(source, writer.folder, dirs_exist_ok=True)
        (writer.folder / MANIFEST_FILE).unlink()
        change(writer.folder)
        writer.commit(manifest(Bundle.open(source).manifest))
    return target


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_attribute(graph: Path, name: str) -> int:
    """Turn each of the nodes' attributes ``name`` of a graph's file, 0 or 1, into the other; how many there were."""
    model = onnx.load(graph, load_external_data=False)
    attributes = [attribute for node in model.graph.node for attribute in node.attribute if attribute.name == name]
    for attribute in attributes:
        attribute.i = 1 - attribute.i
    graph.write_bytes(model.SerializeToString())
    return len(attributes)


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files under ``folder`` with their content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(target: Path) -> list[str]:
    """Names beside the target: a lock, a half-written or an old folder, where one was left."""
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def assert_whole(target: Path, label: str) -> None:
    """The bundle is the one that was written with ``label``, to the last byte, and nothing was left beside it."""
    Bundle.open(target).check_digests()
    assert {name: data for name, data in snapshot(target).items() if name != "helium.json"} == contents(label)
    assert beside(target) == []
