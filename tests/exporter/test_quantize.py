"""Quantization: the error is what rounding allows, and ONNX Runtime reads the layout as `dequantize` says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import reference
import tiny
import torch
from onnx import TensorProto, helper

import helium_onnx
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.exporter.quantize import QuantizedRows, dequantize, quantizer
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe

BITS = (4, 8)
#: rows and columns: whole blocks of 32, an odd number of them, a last block that is not full, less than one block
SHAPES = ((6, 128), (6, 96), (5, 80), (3, 24))


def settings(bits: int, symmetric: bool, block_size: int = 32) -> MatrixSettings:
    return MatrixSettings(bits=bits, block_size=block_size, symmetric=symmetric)  # type: ignore[arg-type]


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def steps(rows: QuantizedRows, columns: int, block_size: int) -> np.ndarray:
    """Each weight's step |scale|: ``[rows, columns]``."""
    return np.abs(rows.scales).repeat(block_size, axis=1)[:, :columns]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int], bits: int, symmetric: bool) -> None:
    (count, columns), blocks = shape, -(-shape[1] // 32)
    rows = quantize_rows(weights(*shape), settings(bits, symmetric))
    assert (rows.data.dtype, rows.data.shape) == (np.uint8, (count, blocks, 32 * bits // 8))
    assert (rows.scales.dtype, rows.scales.shape) == (np.float32, (count, blocks))
    if symmetric:
        assert rows.zero_points is None
    else:
        assert rows.zero_points is not None
        assert rows.zero_points.shape == (count, -(-blocks * bits // 8))
    assert dequantize(rows, settings(bits, symmetric), columns).shape == shape


@pytest.mark.parametrize("offset", [0.0, 3.0, -3.0], ids=["both signs", "positive", "negative"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_asymmetric_error_is_half_a_step(shape: tuple[int, int], bits: int, offset: float) -> None:
    x, how = weights(*shape) + np.float32(offset), settings(bits, symmetric=False)
    rows = quantize_rows(x, how)
    error = np.abs(dequantize(rows, how, shape[1]) - x)
    # The zero point is rounded too; still no code is clamped by more than the rounding it would have had anyway.
    assert (error <= steps(rows, shape[1], 32) / 2 * 1.001).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_symmetric_error(shape: tuple[int, int], bits: int) -> None:
    x, how = weights(*shape), settings(bits, symmetric=True)
    rows = quantize_rows(x, how)
    step, half = steps(rows, shape[1], 32), 1 << (bits - 1)
    error = np.abs(dequantize(rows, how, shape[1]) - x)
    # Codes reach half steps on the extreme's side, and half - 1 on the other.
    beyond = x / np.sign(-rows.scales).repeat(32, axis=1)[:, : shape[1]] < -(half - 0.5) * step
    assert (error <= np.where(beyond, step, step / 2) * 1.001).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_symmetric_extreme_is_exact_and_uses_the_lowest_code(bits: int) -> None:
    for extreme in (-2.0, 2.0):
        x = np.linspace(-1, 1, 32, dtype=np.float32)[None]
        x[0, 7] = extreme
        how = settings(bits, symmetric=True)
        rows = quantize_rows(x, how)
        assert rows.scales[0, 0] == -extreme / (1 << (bits - 1))
        assert dequantize(rows, how, 32)[0, 7] == extreme
        code = rows.data[0, 0, 7] if bits == 8 else rows.data[0, 0, 3] >> 4
        assert code == 0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zeros_are_exact(bits: int, symmetric: bool) -> None:
    x = weights(8, 96)
    x[:, ::3] = 0
    x[2, 32:64] = 0  # a block of zeros
    x[3] = 0
    x[4] = np.abs(x[4]) + 1.0
    x[4, ::3] = 0
    how = settings(bits, symmetric)
    rows = quantize_rows(x, how)
    assert (dequantize(rows, how, 96)[x == 0] == 0).all()
    assert np.isfinite(rows.scales).all()
    assert (rows.scales != 0).all()  # a kernel may divide by it


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_an_outlier_costs_its_own_block_only(bits: int, symmetric: bool) -> None:
    x = weights(1, 96)
    how = settings(bits, symmetric)
    before = dequantize(quantize_rows(x, how), how, 96)
    x[0, 40] = 1000.0
    after = dequantize(quantize_rows(x, how), how, 96)
    assert after[0, 40] == pytest.approx(1000.0, rel=1e-6 if symmetric else 1 / (1 << bits))
    assert (after[0, :32] == before[0, :32]).all()
    assert (after[0, 64:] == before[0, 64:]).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_subnormals_and_the_smallest_normals(bits: int, symmetric: bool) -> None:
    tiny_ = float(np.finfo(np.float32).tiny)
    x = np.concatenate([weights(1, 32) * np.float32(scale) for scale in (1e-42, tiny_, 100 * tiny_, 1e-30)], axis=1)
    how = settings(bits, symmetric)
    rows = quantize_rows(x, how)
    y = dequantize(rows, how, 128)
    assert np.isfinite(y).all()
    assert (np.abs(y - x).reshape(4, 32).max(axis=1) <= [1e-41, 1e-37, 1e-36, 1e-30]).all()


def test_rows_are_independent() -> None:
    x, how = weights(7, 96), settings(4, symmetric=False)
    whole = quantize_rows(x, how)
    for i in range(7):
        one = quantize_rows(x[i : i + 1], how)
        assert (one.data[0] == whole.data[i]).all()
        assert (one.scales[0] == whole.scales[i]).all()


def test_methods_are_found_by_name() -> None:
    assert quantizer("round-to-nearest") is quantize_rows


def one_node(op: str, inputs: dict[str, np.ndarray], feed: dict[str, np.ndarray], **attributes: int) -> np.ndarray:
    """The output of one ``com.microsoft`` node over constant ``inputs`` and the run's ``feed``, in operator order."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    names = ["x", *inputs] if op == "MatMulNBits" else [next(iter(inputs)), "x", *list(inputs)[1:]]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", kinds[feed["x"].dtype], list(feed["x"].shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in inputs.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    (y,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
    result: np.ndarray = y
    return result


@pytest.mark.parametrize(("accuracy_level", "tolerance"), [(1, 1e-5), (4, 2e-2)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "columns", "block_size"), [(24, 128, 32), (24, 96, 32), (17, 80, 32), (5, 144, 64)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_matmulnbits_reads_the_layout(
    rows: int,
    columns: int,
    block_size: int,
    bits: int,
    symmetric: bool,
    accuracy_level: int,
    tolerance: float,
    tokens: int,
) -> None:
    how = settings(bits, symmetric, block_size)
    parts = quantize_rows(weights(rows, columns), how)
    x = weights(tokens, columns, seed=1)
    constants = {"b": parts.data, "scales": parts.scales}
    if parts.zero_points is not None:
        constants["zero_points"] = parts.zero_points
    y = one_node(
        "MatMulNBits", constants, {"x": x},
        K=columns, N=rows, bits=bits, block_size=block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    expected = x @ dequantize(parts, how, columns).T
    assert reference.error(y, expected) <= tolerance


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "columns", "block_size"), [(24, 128, 32), (24, 96, 32), (9, 64, 64)])
def test_gatherblockquantized_reads_the_layout(
    rows: int, columns: int, block_size: int, bits: int, symmetric: bool
) -> None:
    how = settings(bits, symmetric, block_size)
    parts = quantize_rows(weights(rows, columns), how)
    constants = {"data": parts.data.reshape(rows, -1)[:, : columns * bits // 8], "scales": parts.scales}
    if parts.zero_points is not None:
        constants["zero_points"] = parts.zero_points
    ids = np.array([[0, rows - 1, 3]])
    y = one_node(
        "GatherBlockQuantized", constants, {"x": ids},
        bits=bits, block_size=block_size, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    np.testing.assert_array_equal(y, dequantize(parts, how, columns)[ids])


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("linear", "head", "embedding"),
    [
        (settings(4, False), settings(4, False), settings(4, False)),
        (settings(8, True), settings(8, True), settings(8, True)),
        (settings(4, True, 16), settings(8, False, 64), MatrixSettings()),
        (MatrixSettings(), MatrixSettings(), settings(4, True, 128)),
        (settings(4, True, 128), settings(4, True, 128), settings(4, True, 128)),
    ],
    ids=["int4", "int8", "embedding float32", "embedding alone", "blocks longer than rows"],
)
def test_a_quantized_bundle_is_the_model_of_dequantized_weights(
    tie: bool, linear: MatrixSettings, head: MatrixSettings, embedding: MatrixSettings, tmp_path: Path
) -> None:
    """The whole way: accuracy_level 1 leaves no error but that of rounding weights, which the reference has too."""
    folder = tiny.write_checkpoint(tmp_path / "checkpoint", tie=tie, num_hidden_layers=1)
    recipe = Recipe("mine", "", quantization=Quantization("round-to-nearest", 1, linear, head, embedding))
    bundle = helium_onnx.export(folder, tmp_path / "bundle", recipe=recipe)

    checkpoint = Checkpoint.open(folder)
    model = HeliumForCausalLM.from_checkpoint(checkpoint)

    def rounded(values: torch.Tensor, how: MatrixSettings) -> torch.nn.Parameter:
        x = values.numpy()
        y = dequantize(quantize_rows(x, how), how, x.shape[1]) if how.quantized else x
        return torch.nn.Parameter(torch.from_numpy(y), requires_grad=False)

    model.lm_head.weight = rounded(model.lm_head.weight.clone(), head)
    model.model.embed_tokens.weight = rounded(model.model.embed_tokens.weight.clone(), embedding)
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = rounded(module.weight, linear)
    ids = reference.random_ids(1, 48)
    (expected, *_) = model(torch.from_numpy(ids), torch.ones(1, 48, dtype=torch.long), model.empty_past())
    logits, _ = reference.Graphs(bundle.path, checkpoint.config, ["model"]).run("model", ids)
    assert reference.error(logits, expected.numpy()) <= reference.TOLERANCE
