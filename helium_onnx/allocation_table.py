"""The table of a mixed-precision allocation, as the exporter prints it and the manifest keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Matrices of a layer in the order of their use; shown without ``_proj``.
COLUMNS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def render(allocation: dict[str, Any], console: Console) -> None:
    """Print ``quantization.allocation`` of a manifest: bits/block of every matrix, a row a layer."""
    from rich.table import Table

    cells = {matrix["name"].removesuffix(".weight"): matrix for matrix in allocation["matrices"]}
    table = Table(
        title="bits/block size of each matrix, and the KL divergence it is estimated to cost",
        title_justify="left",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer")
    for column in COLUMNS:
        table.add_column(column.removesuffix("_proj"), justify="right")
    for column in ("bytes", "KL"):
        table.add_column(column, justify="right")
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name, matrix in cells.items():
        prefix, _, last = name.rpartition(".")
        if last in COLUMNS:
            rows.setdefault(prefix.split(".")[2], {})[last] = matrix
    for layer, matrices in rows.items():
        shown = [_cell(matrices.get(column)) for column in COLUMNS]
        table.add_row(layer, *shown, *_sums(list(matrices.values())))
    for name, matrix in cells.items():
        if name.rpartition(".")[2] not in COLUMNS:
            label = "head" if name == "lm_head" else "embed"
            table.add_row(label, _cell(matrix), *[""] * (len(COLUMNS) - 1), *_sums([matrix]))
    table.add_section()
    table.add_row("all", *[""] * len(COLUMNS), *_sums(list(cells.values())), style="bold")
    console.print(table)
    goal = " ".join(f"{key} {value:g}" for key, value in allocation["budget"].items())
    console.print(
        f"{allocation['bits_per_weight']:.3f} bits a weight for the budget {goal}; estimated mean KL divergence "
        f"{allocation['estimated_kl']:.4f} nats a token with plain rounding (GPTQ costs less).",
        highlight=False,
    )


def _cell(matrix: dict[str, Any] | None) -> str:
    return "float32" if matrix is None else f"{matrix['bits']}/{matrix['block_size']}"


def _sums(matrices: list[dict[str, Any]]) -> tuple[str, str]:
    nbytes = sum(matrix["nbytes"] for matrix in matrices)
    return f"{nbytes / 1e6:,.2f} MB", f"{sum(matrix['estimated_kl'] for matrix in matrices):.1e}"
