"""GPTQ against its definition, written down slowly, and against round-to-nearest on what it is meant to lower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import write_checkpoint
from torch import Tensor

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import CheckpointError
from helium_onnx.exporter import read_tokenizer
from helium_onnx.exporter.calibration import load_calibration
from helium_onnx.exporter.quantize import dequantize, gptq, round_to_nearest
from helium_onnx.exporter.quantize.calibrated import Calibrated
from helium_onnx.exporter.quantize.k_quant import search_scale_zero
from helium_onnx.recipe import MatrixSettings, Quantization

SETTINGS = [
    MatrixSettings(4, 16, True),
    MatrixSettings(4, 16, False),
    MatrixSettings(4, 32, False),
    MatrixSettings(8, 64, True),
    MatrixSettings(2, 16, False),
]


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix, and inputs whose columns are as correlated as a layer's."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 3, columns, generator=rng)
    inputs = torch.randn(400, columns // 3, generator=rng) @ mixing + 0.3 * torch.randn(400, columns, generator=rng)
    return torch.randn(rows, columns, generator=rng), inputs


def by_definition(weight: Tensor, inputs: Tensor, settings: MatrixSettings) -> NDArray[np.float64]:
    """Optimal brain quantization in float64, its inverse eliminated column by column (Frantar et al., equation 3)."""
    h = (inputs.double().T @ inputs.double()).numpy()
    damping = gptq.DAMPING + gptq.DAMPING_PER_COLUMN * len(h) / len(inputs)
    h += damping * np.diag(h).mean() * np.eye(len(h))
    inverse = np.linalg.inv(h)
    w = weight.double().numpy().copy()
    size, levels = settings.block_size, (1 << settings.bits) - 1
    # What counts in a block's scale: each column's error once all to its right make up for it.
    remaining = [1 / np.linalg.inv(h[c:, c:])[0, 0] for c in range(len(h))]
    for column in range(w.shape[1]):
        if column % size == 0:
            last = min(column + size, w.shape[1])
            block, weights = np.zeros((len(w), size)), np.zeros((1, size))
            block[:, : last - column] = w[:, column:last]
            weights[0, : last - column] = remaining[column:last]
            scale, zero = (
                t.double().numpy()
                for t in search_scale_zero(
                    torch.from_numpy(block).float(), torch.from_numpy(weights).float(), settings, coarse=True
                )
            )
        rounded = (np.clip(np.rint(w[:, column] / scale + zero), 0, levels) - zero) * scale
        error = w[:, column] - rounded
        w[:, column + 1 :] -= np.outer(error / inverse[column, column], inverse[column, column + 1 :])
        w[:, column] = rounded
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return w


def loss(weight: Tensor, stored: Tensor, inputs: Tensor) -> float:
    return float((inputs.double() @ (stored - weight).double().T).square().sum())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("columns", [64, 72])
def test_it_follows_the_definition(settings: MatrixSettings, columns: int) -> None:
    weight, inputs = problem(12, columns)
    packed, seen = gptq.quantize(weight, gptq.InverseHessian.of(inputs), settings)
    expected = by_definition(weight, inputs, settings)
    # A weight on the edge between two codes may fall to either side in float32, and its row then goes another way.
    same = np.isclose(seen.numpy(), expected, atol=1e-3 * float(weight.abs().max()))
    assert same.all(axis=1).mean() >= 2 / 3
    assert loss(weight, seen, inputs) <= 1.02 * loss(weight, torch.from_numpy(expected).float(), inputs)
    assert np.array_equal(dequantize(packed, settings, columns), seen.numpy())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_its_output_error_is_below_round_to_nearest(settings: MatrixSettings) -> None:
    weight, inputs = problem(64, 96)
    _, seen = gptq.quantize(weight, gptq.InverseHessian.of(inputs), settings)
    nearest = dequantize(round_to_nearest.quantize_rows(weight.numpy(), settings), settings, 96)
    assert loss(weight, seen, inputs) < 0.8 * loss(weight, torch.from_numpy(nearest), inputs)


def test_scales_in_float16() -> None:
    """Columns make up for the errors of the scale that is stored, and of no other."""
    weight, inputs = problem(24, 96)
    how = MatrixSettings(4, 32, symmetric=False, scales="float16")
    packed, values = gptq.quantize(weight, gptq.InverseHessian.of(inputs), how)
    np.testing.assert_array_equal(packed.scales, packed.scales.astype(np.float16))
    np.testing.assert_array_equal(values.numpy(), dequantize(packed, how, 96))
    full = gptq.quantize(weight, gptq.InverseHessian.of(inputs), MatrixSettings(4, 32, symmetric=False))[1]
    assert loss(weight, values, inputs) <= 1.05 * loss(weight, full, inputs)


def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem(10, 64)
    hessian = gptq.InverseHessian.of(inputs)
    whole = gptq.quantize(weight, hessian, SETTINGS[1])[1]
    monkeypatch.setattr(gptq, "_FEWEST_ROWS", 3)
    torch.testing.assert_close(gptq.quantize(weight, hessian, SETTINGS[1])[1], whole)


def test_corrected_is_least_squares() -> None:
    weight, inputs = problem(8, 24)
    wanted = inputs @ weight.T + torch.randn(400, 8, generator=torch.Generator().manual_seed(5))
    hessian = gptq.InverseHessian.of(inputs, damping=1e-6)
    found = gptq.corrected(weight, (wanted - inputs @ weight.T).T @ inputs, hessian)
    expected = torch.linalg.lstsq(inputs.double(), wanted.double()).solution.T.float()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


HOSTILE = {
    "zeros": torch.zeros(6, 64),
    "one outlier": torch.zeros(6, 64).index_put((torch.tensor(2), torch.tensor(40)), torch.tensor(1e30)),
    "subnormal": torch.full((6, 64), 1e-42),
    "constant": torch.full((6, 64), -3.0),
}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_matrices_stay_finite(name: str, settings: MatrixSettings) -> None:
    _, inputs = problem(6, 64)
    packed, seen = gptq.quantize(HOSTILE[name], gptq.InverseHessian.of(inputs), settings)
    assert torch.isfinite(seen).all()
    assert np.isfinite(packed.scales).all()


def test_inputs_that_are_zero_or_equal_do_not_stop_it() -> None:
    weight, inputs = problem(6, 64)
    inputs[:, 3] = 0
    inputs[:, 10:20] = inputs[:, 10:11]
    for x in (inputs, torch.zeros_like(inputs), 1e-15 * inputs, 1e12 * inputs, inputs[:2]):
        _, seen = gptq.quantize(weight, gptq.InverseHessian.of(x), SETTINGS[1])
        assert torch.isfinite(seen).all()
        assert float((seen - weight).abs().max()) < 3


def test_inputs_that_are_not_finite_are_refused() -> None:
    inputs = torch.ones(9, 4)
    inputs[2, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        gptq.InverseHessian.of(inputs)


@pytest.mark.parametrize("columns", [3, 64, 1100])
def test_the_factor_is_that_of_the_inverse(columns: int) -> None:
    inputs = torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(1))
    hessian = gptq.InverseHessian.of(inputs, damping=0.5)
    h = (inputs.T @ inputs).double()
    h += 0.5 * h.diagonal().mean() * torch.eye(columns)
    torch.testing.assert_close(
        hessian.upper.double(), torch.linalg.cholesky(h.inverse(), upper=True), rtol=1e-3, atol=1e-5
    )
    rows = torch.randn(5, columns, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(hessian.divide(rows).double(), rows.double() @ h.inverse(), rtol=1e-3, atol=1e-5)


class Spy(Calibrated):
    """Compares each matrix, on the inputs it was calibrated with, with round-to-nearest."""

    def _quantize(
        self, prefix: str, weights: dict[str, Tensor], inputs: Tensor, residual: Tensor | None = None
    ) -> dict[str, Tensor]:
        result = super()._quantize(prefix, weights, inputs, residual)
        for short, weight in weights.items():
            name = f"{prefix}{short}.weight"
            settings = self.quantization.settings_of(name)
            nearest = dequantize(round_to_nearest.quantize_rows(weight.numpy(), settings), settings, weight.shape[1])
            wanted = inputs @ weight.T if residual is None else residual
            self.errors[name] = tuple(
                float((wanted - inputs @ matrix.T).double().square().sum())
                for matrix in (result[short], torch.from_numpy(nearest))
            )
        return result

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.errors: dict[str, tuple[float, ...]] = {}


def test_the_error_of_every_matrix_is_below_round_to_nearests(sample_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(sample_checkpoint)
    four = MatrixSettings(4, 64, False)
    windows = load_calibration(None, read_tokenizer(checkpoint), checkpoint.config, tokens=2048).windows
    spy = Spy(checkpoint, Quantization("gptq", linear=four, head=four, embedding=four), windows)
    with torch.inference_mode():
        spy._advance(checkpoint.config.num_hidden_layers - 1)
    assert len(spy.errors) == 7 * checkpoint.config.num_hidden_layers
    for name, (ours, nearest) in spy.errors.items():
        assert ours < 0.95 * nearest, name


def test_activations_that_overflow_are_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "huge", dtype="F32", std=1e18)
    checkpoint = Checkpoint.open(folder)
    four = MatrixSettings(4, 32, False)
    windows = [np.arange(250, dtype=np.int64)]
    for method in ("gptq", "k-quant"):
        quantizer = Calibrated(checkpoint, Quantization(method, linear=four), windows)  # type: ignore[arg-type]
        with torch.inference_mode(), pytest.raises(CheckpointError, match=r"layers\.\d\.\w+\.\w+ while calibrating"):
            quantizer._advance(2)
