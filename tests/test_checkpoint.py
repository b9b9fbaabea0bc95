"""Checkpoints: what is read equals what safetensors reads, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helium_onnx import safetensors_file
from helium_onnx.checkpoint import Checkpoint, expected_tensors
from helium_onnx.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    WeightsError,
)

ROOT = Path(__file__).parents[1]
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "helium")


def refused(folder: Path, kind: type[CheckpointError] = WeightsError) -> CheckpointError:
    """The error of opening and checking ``folder``: of exactly this kind, with found or expected, and a remedy."""
    with pytest.raises(kind) as caught:
        check(folder)
    assert type(caught.value) is kind
    assert caught.value.remedy
    assert caught.value.found or caught.value.expected
    return caught.value


def check(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(folder)
    checkpoint.check_tensors(checkpoint.config)
    return checkpoint


def rewrite(folder: Path, changes: dict[str, Any], *drop: str, dtype: str = "F32") -> None:
    """Write model.safetensors again, with the tensors of ``changes`` and without those of ``drop``."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.float().numpy() for name, tensor in load_file(path).items() if name not in drop}
    tiny.write_tensors(path, {**tensors, **changes}, dtype)


# Reading


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_equals_what_safetensors_reads(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = tiny.write_checkpoint(tmp_path, dtype=dtype, shards=shards)
    theirs = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    checkpoint = check(folder)
    assert set(checkpoint.tensors) == set(theirs)
    for name, tensor in theirs.items():
        ours = checkpoint.read(name)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, tensor.float().numpy())
        assert checkpoint.tensors[name].dtype == dtype


@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("tie", [False, True])
def test_the_names_and_shapes_are_those_of_transformers(tmp_path: Path, model_type: str, tie: bool) -> None:
    folder = tiny.write_checkpoint(tmp_path, model_type=model_type, tie=tie, dtype="F32")
    config = Checkpoint.open(folder).config
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert shapes == expected_tensors(config)
    assert sum(np.prod(shape) for shape in shapes.values()) == config.num_parameters


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_rows_and_pieces_are_parts_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, block: int
) -> None:
    monkeypatch.setattr(safetensors_file, "_BLOCK", block)  # smaller than a row, and larger than the tensor
    checkpoint = check(tiny.write_checkpoint(tmp_path, dtype=dtype))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        whole = checkpoint.read(name)
        np.testing.assert_array_equal(checkpoint.read_rows(name, 5, 23), whole[5:23])
        assert checkpoint.read_rows(name, 4, 4).shape == (0, *whole.shape[1:])
        for max_bytes in (1, 5000, 1 << 24):
            pieces = [(start, piece.copy()) for start, piece in checkpoint.iter_rows(name, max_bytes)]
            np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), whole)
            assert [start for start, _ in pieces] == list(np.cumsum([0, *(len(piece) for _, piece in pieces)])[:-1])
            assert all(piece.nbytes <= max_bytes or len(piece) == 1 for _, piece in pieces)


def test_reading_in_pieces_takes_the_memory_of_a_piece(tmp_path: Path) -> None:
    tensor = np.ones((4096, 1024), np.float32)  # 16 MiB as float32
    tiny.write_checkpoint(tmp_path)
    tiny.write_tensors(tmp_path / "model.safetensors", {"big": tensor}, "BF16")
    checkpoint = Checkpoint.open(tmp_path)
    del tensor
    tracemalloc.start()
    assert sum(len(piece) for _, piece in checkpoint.iter_rows("big", 1 << 20)) == 4096
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20  # the piece, and a block of bfloat16


def test_no_file_stays_open(folder: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    checkpoint = check(folder)
    checkpoint.read(Q)
    pieces = checkpoint.iter_rows(Q, 1)
    next(pieces)
    del pieces  # left in the middle
    assert len(list(descriptors.iterdir())) == before


def test_source_files_are_all_that_an_export_reads(tmp_path: Path) -> None:
    one = check(tiny.write_checkpoint(tmp_path / "one")).source_files()
    assert [path.name for path in one] == [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
    ]  # fmt: skip
    two = check(tiny.write_checkpoint(tmp_path / "two", shards=2)).source_files()
    assert [path.name for path in two[-3:]] == [
        "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (None, None),
        ("# no front matter\nlicense: mit\n", None),
        ("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# Helium\n", "cc-by-4.0"),
        ("---\r\nlicense: 'apache-2.0'  # ours\r\n---\r\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: helium-terms\n---\n", "helium-terms"),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
    ],
)
def test_licence(folder: Path, readme: str | None, licence: str | None) -> None:
    if readme is not None:
        (folder / "README.md").write_bytes(readme.encode())
    assert Checkpoint.open(folder).licence == licence


def test_reading_a_checkpoint_loads_no_framework(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from helium_onnx.checkpoint import Checkpoint\n"
        "from helium_onnx.hub import resolve_checkpoint\n"
        f"c = Checkpoint.open(resolve_checkpoint({str(folder)!r})); c.read({Q!r})\n"
        "print([m for m in ('torch', 'huggingface_hub', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# Folders


def test_a_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    assert "is no checkpoint" in refused(tmp_path / "none", CheckpointNotFoundError).what
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file", CheckpointNotFoundError).found == "a file"


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert f"{folder}/config.json is missing" in refused(folder, ConfigError).what


def test_no_weights_and_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refused(folder).found == "none"
    (folder / "pytorch_model.bin").touch()
    error = refused(folder)
    assert "pytorch_model.bin" in str(error.found)
    assert "save_pretrained" in str(error.remedy)


def test_a_git_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 15004200\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in str(refused(folder).remedy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(Path("..") / name)
    kind = {"config.json": ConfigError, "tokenizer.json": CheckpointError}.get(name, WeightsError)
    assert "lies outside the checkpoint" in refused(folder, kind).what


def test_a_link_that_stays_inside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    check(folder)


def test_a_link_in_a_loop_and_one_to_nothing(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to("model.safetensors")
    refused(folder)
    path.unlink()
    path.symlink_to("nothing")
    assert "is missing" in refused(folder).what


@pytest.mark.parametrize("shared", [False, True], ids=["blobs", "shared-blobs"])
def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path, shared: bool) -> None:
    cache = tmp_path / "hub"
    snapshot = tiny.write_checkpoint(cache / "models--kyutai--helium" / "snapshots" / "abc")
    blobs = (cache if shared else snapshot.parents[1]) / "blobs"
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(os.path.relpath(blobs / path.name, snapshot))
    check(snapshot)
    shutil.copy(blobs / "model.safetensors", tmp_path / "elsewhere")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "lies outside" in refused(snapshot).what


# The shard index


@pytest.mark.parametrize(
    "file", ["../../etc/passwd", "/etc/passwd", "..", "", "a/b", "a\\b", "a\0b", "\ud800", "x" * 300]
)
def test_an_index_that_points_elsewhere(tmp_path: Path, file: str) -> None:
    folder = tiny.write_checkpoint(tmp_path, shards=2)
    path = folder / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    tiny.edit_json(path, weight_map={**weight_map, Q: file})
    error = refused(folder)
    assert "model.safetensors.index.json" in error.what
    assert re.search("lies outside the checkpoint|cannot be found", error.what)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert (
        "'model-00002-of-00003.safetensors', named by model.safetensors.index.json, is missing" in refused(folder).what
    )


def test_a_shard_without_a_tensor_that_the_index_places_there(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, shards=2)
    path = folder / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    other = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} - {weight_map[Q]}
    tiny.edit_json(path, weight_map={**weight_map, Q: other.pop()})
    assert Q in str(refused(folder).found)


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": null}', '{"weight_map": {"a": 1}}', '{"a": 1, "a": 2}'])
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    folder = tiny.write_checkpoint(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refused(folder).what


# Tensors


def test_missing_tensors_are_counted_and_the_first_named(folder: Path) -> None:
    rewrite(folder, {}, *(f"model.layers.{i}.mlp.{name}_proj.weight" for i in range(3) for name in ("up", "down")))
    found = str(refused(folder).found)
    assert found.startswith("6 missing: 'model.layers.0.mlp.up_proj.weight'")
    assert found.count("layers") == 5


def test_a_head_is_needed_exactly_if_it_is_not_tied(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, tie=True)
    assert "lm_head.weight" not in check(folder).tensors
    rewrite(folder, {"lm_head.weight": np.ones((1, 1), np.float32)})
    check(folder)  # present and ignored, whatever its shape
    rewrite(folder, {}, "lm_head.weight")
    tiny.edit_json(folder / "config.json", tie_word_embeddings=False)
    assert "tie_word_embeddings" in str(refused(folder).remedy)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    rewrite(folder, {"model.norm.weight": np.ones(63, np.float32)})
    error = refused(folder)
    assert "model.norm.weight" in error.what
    assert (error.found, error.expected) == ("[63]", "[64]")


@pytest.mark.parametrize(("kind", "name"), [(np.int8, "I8"), (np.float64, "F64")])
def test_a_tensor_of_another_type(folder: Path, kind: type, name: str) -> None:
    rewrite(folder, {"model.norm.weight": np.ones(64, kind)})
    error = refused(folder)
    assert "model.norm.weight" in error.what
    assert error.found == name
    with pytest.raises(WeightsError, match="dtype"):
        Checkpoint.open(folder).read("model.norm.weight")


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "lm_head.bias", "model.layers.3.mlp.up_proj.weight",
             "model.layers.0.self_attn.q_norm.weight"]
)  # fmt: skip
def test_a_tensor_that_would_change_the_model(folder: Path, name: str) -> None:
    rewrite(folder, {name: np.ones(64, np.float32)})
    assert name in str(refused(folder).found)


def test_other_tensors_are_ignored(folder: Path) -> None:
    rewrite(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8), "vision.weight": np.ones(3)})
    check(folder)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_a_value_that_is_not_finite_is_placed(folder: Path, dtype: str, value: float, word: str) -> None:
    bad = Checkpoint.open(folder).read(Q)
    bad[5, 7], bad[40, 1] = value, value
    rewrite(folder, {Q: bad}, dtype=dtype)
    checkpoint = check(folder)  # headers only
    for read in (
        checkpoint.read,
        lambda name: checkpoint.read_rows(name, 3, 9),
        lambda name: [*checkpoint.iter_rows(name, 999)],
    ):
        with pytest.raises(WeightsError) as caught:
            read(Q)
        assert Q in caught.value.what
        assert re.fullmatch(rf"{word}.* at \[5, 7\]|an infinity at \[5, 7\]", str(caught.value.found))
        assert (word == "NaN") == ("NaN" in str(caught.value.found))
    checkpoint.read_rows(Q, 6, 40)  # the rows between are sound


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_largest_finite_numbers_pass(folder: Path, dtype: str) -> None:
    largest = {"BF16": 3.3895314e38, "F16": 65504.0, "F32": 3.4028235e38}[dtype]
    extreme = np.resize(np.array([largest, -largest, 1e-7, -0.0], np.float32), 64)
    rewrite(folder, {"model.norm.weight": extreme}, dtype=dtype)
    np.testing.assert_allclose(check(folder).read("model.norm.weight"), extreme, rtol=0.2)


def test_an_unknown_tensor(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"no tensor 'x\.weight'"):
        check(folder).read("x.weight")


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    assert "truncated" in str(refused(folder).found)


def test_a_file_that_shrinks_after_it_was_opened(folder: Path) -> None:
    checkpoint = check(folder)
    os.truncate(folder / "model.safetensors", checkpoint.tensors[Q].offset + 100)
    with pytest.raises(WeightsError, match="is truncated"):
        checkpoint.read(Q)


def test_gathered_rows_are_those_of_the_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(folder)
    whole = checkpoint.read("model.embed_tokens.weight")
    iter_rows = Checkpoint.iter_rows
    monkeypatch.setattr(Checkpoint, "iter_rows", lambda self, name: iter_rows(self, name, 4 * 64 * 7))  # 7 rows a piece
    for indices in (np.array([5, 0, 319, 5, 7, 6]), np.arange(320), np.array([], np.int64)):
        assert np.array_equal(checkpoint.gather_rows("model.embed_tokens.weight", indices), whole[indices])
