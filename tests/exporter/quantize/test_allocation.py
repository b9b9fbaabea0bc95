"""The allocator against exhaustive search, and the estimate it works from against the measured divergence."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_checkpoint

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import UsageError
from helium_onnx.exporter.quantize import dequantize
from helium_onnx.exporter.quantize.allocation import CANDIDATES, Budget, allocate, stored_bytes
from helium_onnx.exporter.quantize.packing import QuantizedRows
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows
from helium_onnx.exporter.quantize.sensitivity import Sensitivity
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.recipe import MatrixSettings

SHAPES = {"a.weight": (64, 128), "b.weight": (32, 256), "c.weight": (128, 128), "d.weight": (16, 512)}


def costs(seed: int = 0) -> dict[str, dict[MatrixSettings, float]]:
    """Losses that fall with the bits, each matrix by its own measure."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in SHAPES:
        scale = 10 ** rng.uniform(-4, -1)
        made[name] = dict(zip(CANDIDATES, scale * np.array([1, 0.8, 0.6, 0.004]), strict=True))
    return made


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [64, 80])
def test_bytes_are_those_of_the_layout(bits: int, symmetric: bool, columns: int) -> None:
    settings = MatrixSettings(bits, 32, symmetric)  # type: ignore[arg-type]
    rows: QuantizedRows = quantize_rows(np.ones((6, columns), np.float32), settings)
    arrays = [rows.data, rows.scales, *([] if rows.zero_points is None else [rows.zero_points])]
    assert stored_bytes((6, columns), settings) == sum(array.nbytes for array in arrays)
    half = dataclasses.replace(settings, scales="float16")
    assert stored_bytes((6, columns), half) == stored_bytes((6, columns), settings) - rows.scales.nbytes // 2


@pytest.mark.parametrize("seed", range(5))
def test_it_is_nearly_the_best_there_is(seed: int) -> None:
    given = costs(seed)
    ways = [[(stored_bytes(SHAPES[n], s), kl) for s, kl in given[n].items()] for n in SHAPES]
    everything = [tuple(map(sum, zip(*choice, strict=True))) for choice in itertools.product(*ways)]
    sizes = sorted(size for size, _ in everything)
    for limit in np.quantile(sizes, [0.2, 0.5, 0.8]).astype(int):
        found = allocate(SHAPES, given, Budget(bytes=int(limit)), other_bytes=0)
        assert found.nbytes <= limit
        largest_step = max(max(w)[0] - min(w)[0] for w in ways)
        # As good as the best for the bytes it would have had with one step less to spend.
        assert found.kl <= min(kl for size, kl in everything if size <= max(limit - largest_step, min(sizes))) + 1e-12


def test_more_budget_is_never_worse() -> None:
    given = costs(7)
    bits = np.linspace(4.4, 8.3, 30)
    found = [allocate(SHAPES, given, Budget(bits=float(b)), other_bytes=0) for b in bits]
    assert all(a.kl >= b.kl for a, b in itertools.pairwise(found))
    assert all(f.bits_per_weight <= b for f, b in zip(found, bits, strict=True))
    assert {c.settings.bits for c in found[-1].choices} == {8}
    overrides = found[3].overrides()
    assert [o.match for o in overrides] == [name.removesuffix(".weight") for name in SHAPES]


def test_a_loss_is_reached_with_no_more_than_it_takes() -> None:
    given = costs(3)
    most = allocate(SHAPES, given, Budget(bits=4.4), other_bytes=0).kl
    found = allocate(SHAPES, given, Budget(max_kl=most / 3), other_bytes=0)
    assert found.kl <= most / 3
    assert found.bits_per_weight < 8
    with pytest.raises(UsageError, match="no allocation reaches"):
        allocate(SHAPES, given, Budget(max_kl=1e-9), other_bytes=0)


@pytest.mark.parametrize("budget", [Budget(bytes=1000), Budget(bits=3.9)], ids=str)
def test_a_budget_below_the_minimum(budget: Budget) -> None:
    with pytest.raises(UsageError, match="below the minimum") as caught:
        allocate(SHAPES, costs(), budget, other_bytes=10)
    assert "at least" in caught.value.expected


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1.2GB", Budget(bytes=1_200_000_000)),
        ("850 MiB", Budget(bytes=850 << 20)),
        ("4.8bits", Budget(bits=4.8)),
        ("7000000B", Budget(bytes=7_000_000)),
    ],
)
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert Budget.parse(text, None) == budget


@pytest.mark.parametrize(
    ("text", "max_kl"), [("1.2", None), ("-1GB", None), ("many", None), ("1GB", 0.1), (None, 0.0), (None, float("nan"))]
)
def test_budgets_that_mean_nothing(text: str | None, max_kl: float | None) -> None:
    with pytest.raises(UsageError):
        Budget.parse(text, max_kl)


def test_the_estimate_ranks_matrices_as_the_measured_divergence_does(sample_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(sample_checkpoint)
    rng = np.random.default_rng(0)
    windows = [rng.integers(4, 6000, 96) for _ in range(6)]
    settings = MatrixSettings(4, 64, False)
    names = [
        *(f"model.layers.{i}.{n}.weight" for i in (0, 3, 5) for n in ("self_attn.v_proj", "self_attn.q_proj")),
        *(f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 5)),
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]
    estimated = Sensitivity(checkpoint, windows).measure({name: [settings] for name in names})
    assert list(estimated) == names
    model = HeliumForCausalLM.from_checkpoint(checkpoint)
    weights = dict(model.named_parameters())
    ids = torch.from_numpy(np.stack(windows))

    def log_p() -> torch.Tensor:
        return model(ids, torch.ones_like(ids), model.empty_past(len(ids)))[0].log_softmax(-1)

    with torch.inference_mode():
        reference = log_p()
        measured = {}
        for name in names:
            kept = weights[name].clone()
            rows = quantize_rows(kept.numpy(), settings)
            weights[name].copy_(torch.from_numpy(dequantize(rows, settings, kept.shape[1])))
            measured[name] = float((reference.exp() * (reference - log_p())).sum(-1).mean())
            weights[name].copy_(kept)
    ratios = np.array([estimated[name][settings] / measured[name] for name in names])
    assert np.all((ratios > 0.5) & (ratios < 2)), dict(zip(names, ratios, strict=True))
    logs = np.log([[estimated[name][settings], measured[name]] for name in names]).T
    assert np.corrcoef(logs)[0, 1] > 0.97


def test_gradients_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    from helium_onnx.errors import CheckpointError

    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "huge", dtype="F32", std=1e18))
    with pytest.raises(CheckpointError, match="is no number"):
        Sensitivity(checkpoint, [np.arange(40)]).measure({"lm_head.weight": [MatrixSettings(4, 32)]})
