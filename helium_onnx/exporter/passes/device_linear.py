"""The operator ``DeviceLinear`` of our own CUDA kernels as the passes see it: read from a node, and made again."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import KERNELS, MICROSOFT, Rewriter, static_shape

DEVICE_LINEAR = "DeviceLinear"


@dataclass(frozen=True)
class Matrix:
    """One matrix of ``rows`` rows. ``weights`` are ``W [rows, columns]``, of 16 bits a weight and without blocks; or
    quanta, scales and, with ``has_zeros``, zero points in the layout of MatMulNBits.
    """

    weights: tuple[ir.Value, ...]
    rows: int
    bits: int = 16
    block_size: int = 0
    has_zeros: bool = False


@dataclass(frozen=True)
class DeviceLinear:
    """``helium_onnx.kernels::DeviceLinear(x, [norm_weight], [residual], weights of each matrix)``.

    ``x`` float32 ``[batch_size, 1, columns]`` gives float32 ``[batch_size, 1, rows]``: the products one behind the
    other. With ``norm_weight`` ``[columns]``, ``x`` is RMS-normed with ``epsilon`` first; ``residual``, of the output's
    shape, is added; where it is ``gated``, the two matrices (gate, up) give ``silu(gate x) * (up x)``. An input that is
    absent takes no place: the attributes ``norm`` and ``residual`` say what is there.
    """

    x: ir.Value
    matrices: tuple[Matrix, ...]
    columns: int
    norm_weight: ir.Value | None = None
    epsilon: float = 0.0
    residual: ir.Value | None = None
    gated: bool = False

    @property
    def rows(self) -> int:
        """Numbers that it gives for a token."""
        return self.matrices[0].rows if self.gated else sum(matrix.rows for matrix in self.matrices)

    def make(self, rewriter: Rewriter) -> ir.Value:
        """The node, where ``rewriter`` puts it."""
        y = rewriter.op(
            DEVICE_LINEAR,
            self.x,
            *(value for value in (self.norm_weight, self.residual) if value is not None),
            *(weight for matrix in self.matrices for weight in matrix.weights),
            domain=KERNELS,
            columns=self.columns,
            rows=[matrix.rows for matrix in self.matrices],
            bits=[matrix.bits for matrix in self.matrices],
            block_size=[matrix.block_size for matrix in self.matrices],
            has_zeros=[int(matrix.has_zeros) for matrix in self.matrices],
            norm=int(self.norm_weight is not None),
            residual=int(self.residual is not None),
            epsilon=self.epsilon,
            gated=int(self.gated),
        )
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch_size", 1, self.rows])
        return y

    @classmethod
    def of(cls, value: ir.Value | None) -> DeviceLinear | None:
        """The one that makes ``value``; None where something else does."""
        node = None if value is None else value.producer()
        if node is None or node.op_type != DEVICE_LINEAR:
            return None
        inputs = [value for value in node.inputs if value is not None]
        norm, residual, gated = (bool(node.attributes[name].as_int()) for name in ("norm", "residual", "gated"))
        each = [node.attributes[name].as_ints() for name in ("rows", "bits", "block_size", "has_zeros")]
        matrices, at = [], 1 + norm + residual
        for rows, bits, block_size, has_zeros in zip(*each, strict=True):
            count = 1 if bits == 16 else 2 + has_zeros
            matrices.append(Matrix(tuple(inputs[at : at + count]), rows, bits, block_size, bool(has_zeros)))
            at += count
        return cls(
            inputs[0],
            tuple(matrices),
            node.attributes["columns"].as_int(),
            inputs[1] if norm else None,
            node.attributes["epsilon"].as_float(),
            inputs[1 + norm] if residual else None,
            gated,
        )


def matrix_of(node: ir.Node) -> Matrix | None:
    """The matrix that ``FusedMatMul(x, W)`` or ``MatMulNBits(x, quanta, scales[, zeros])`` multiplies with."""
    weights = tuple(value for value in node.inputs[1:] if value is not None)
    if (node.domain, node.op_type) == (MICROSOFT, "FusedMatMul"):
        assert node.attributes["transB"].as_int() == 1
        return Matrix(weights, static_shape(weights[0])[0])
    if (node.domain, node.op_type) == (MICROSOFT, "MatMulNBits"):
        rows, bits, block_size = (node.attributes[name].as_int() for name in ("N", "bits", "block_size"))
        return Matrix(weights, rows, bits, block_size, len(weights) == 3)
    return None


def columns_of(node: ir.Node) -> int:
    """Columns of the matrix that ``node`` multiplies with, for which ``matrix_of`` gives one."""
    if "K" in node.attributes:
        return node.attributes["K"].as_int()
    weight = node.inputs[1]
    assert weight is not None
    return static_shape(weight)[1]
