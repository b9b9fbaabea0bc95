"""Our CUDA kernels, an operator at a time, against their specification in numpy (tests/device_operators.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import device_operators
import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from helium_onnx.kernels import cuda
from helium_onnx.runtimes.cuda_driver import DeviceInfo

Array = NDArray[Any]
TYPES = {"half": np.dtype(np.float16), "bfloat": np.dtype(ml_dtypes.bfloat16)}
#: Of the largest value of a result. Plain weights are multiplied by activations in two parts of 11 (float16) or 8
#: (bfloat16) bits each, and sums are float32.
PLAIN = {"half": 1e-5, "bfloat": 5e-5}


def rounding(x: Array, norm: Array | None, weights: Array) -> Array:
    """What rounding the activations may change, at most: float32 ``[tokens, 1, rows]``. Quantized weights are
    multiplied by whole numbers, 32512 for the largest activation of 256 columns.
    """
    scaled = x if norm is None else x * norm.astype(np.float32)
    padded = np.pad(scaled, ((0, 0), (0, 0), (0, -x.shape[-1] % 256)))
    tops = np.abs(padded).reshape(*x.shape[:2], -1, 256).max(-1)
    halves = np.repeat(tops / 32512 / 2, 256, axis=-1)[..., : x.shape[-1]]
    if norm is not None:
        halves = halves / np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
    bounds: Array = halves @ np.abs(weights).T
    return bounds


@pytest.fixture(scope="module")
def library(gpu: DeviceInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = cuda.library(gpu.index, gpu.compute_capability, tmp_path_factory.mktemp("cache"))
    assert found is not None, cuda.reason()
    return found


class Operator:
    """One node: ``weights`` are its constants, in their places among the inputs behind ``given`` ones."""

    def __init__(
        self, library: Path, op_type: str, given: Sequence[Array], weights: Sequence[Array], outputs: Sequence[Any],
        **attributes: Any,
    ) -> None:  # fmt: skip
        names = [f"given{i}" for i in range(len(given))]
        constants = [f"weight{i}" for i in range(len(weights))]
        results = [f"result{i}" for i in range(len(outputs))]
        node = helper.make_node(op_type, [*names, *constants], results, domain=device_operators.DOMAIN, **attributes)
        value = helper.make_tensor_value_info
        types = [helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in outputs]
        graph = helper.make_graph(
            [node], "one",
            [value(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in zip(names, given, strict=True)],
            [value(name, kind, None) for name, kind in zip(results, types, strict=True)],
            [numpy_helper.from_array(array, name) for name, array in zip(constants, weights, strict=True)],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(device_operators.DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.register_custom_ops_library(str(library))
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])

    def __call__(
        self, given: Sequence[Array], shapes: Sequence[tuple[int, ...]], in_place: dict[int, int]
    ) -> list[Any]:
        """The results; ``in_place``: of which result is the buffer that of which input."""
        binding = self.session.io_binding()
        tensors = [to_device(array) for array in given]
        for info, tensor, array in zip(self.session.get_inputs(), tensors, given, strict=True):
            kind = int(helper.np_dtype_to_tensor_dtype(array.dtype))
            binding.bind_input(info.name, "cuda", 0, kind, array.shape, tensor.data_ptr())
        results = []
        for i, (info, shape) in enumerate(zip(self.session.get_outputs(), shapes, strict=True)):
            dtype = {
                "tensor(float)": torch.float32,
                "tensor(int64)": torch.int64,
                "tensor(int8)": torch.int8,
                "tensor(float16)": torch.float16,
            }
            made = torch.full(shape, -7, dtype=dtype.get(info.type, torch.bfloat16), device="cuda")
            results.append(tensors[in_place[i]] if i in in_place else made)
            kind = {
                torch.float32: TensorProto.FLOAT,
                torch.int64: TensorProto.INT64,
                torch.int8: TensorProto.INT8,
                torch.float16: TensorProto.FLOAT16,
            }
            element = kind.get(results[-1].dtype, TensorProto.BFLOAT16)
            binding.bind_output(info.name, "cuda", 0, element, shape, results[-1].data_ptr())
        torch.cuda.synchronize()
        self.session.run_with_iobinding(binding)
        torch.cuda.synchronize()
        return [r.float().cpu().numpy() if r.is_floating_point() else r.cpu().numpy() for r in results]


def to_device(array: Array) -> torch.Tensor:
    if array.dtype == TYPES["bfloat"]:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def stored(
    rng: np.random.Generator, rows: int, columns: int, bits: int, block: int, zeros: bool, dtype: np.dtype[Any],
    *, gathered: bool = False,
) -> list[Array]:  # fmt: skip
    """A random matrix as a bundle has it."""
    if bits == 16:
        return [(rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(dtype)]
    blocks = -(-columns // block)
    width = (columns if gathered else blocks * block) * bits // 8
    quanta = rng.integers(0, 256, (rows, width), np.uint8)
    scales = ((0.5 + rng.random((rows, blocks))) / np.sqrt(columns) / (1 << bits - 2)).astype(dtype)
    packed = rng.integers(0, 256, (rows, -(-blocks * bits // 8)), np.uint8)
    shaped = quanta if gathered else quanta.reshape(rows, blocks, -1)
    return [shaped, scales, *([packed] if zeros else [])]


PLAIN16 = (16, 0, 0)
#: Of Helium's own shapes, of blocks that end in the middle of a unit, of single groups.
SHAPES: dict[tuple[int, int], list[tuple[int, int, int]]] = {
    (7680, 2560): [PLAIN16, (8, 32, 0), (8, 128, 1), (4, 32, 0), (4, 32, 1), (4, 64, 1)],
    (2560, 7040): [PLAIN16, (8, 64, 0), (8, 256, 1), (4, 64, 0), (4, 128, 1), (4, 256, 1)],
    (328, 256): [PLAIN16, (8, 32, 1), (4, 32, 0)],
    (8, 32): [PLAIN16, (8, 32, 1), (4, 32, 0)],
    (64, 1408): [PLAIN16, (8, 64, 1), (4, 256, 0)],
    (48000, 2560): [(4, 32, 1)],
}
LINEAR = [
    (rows, columns, *storage, kind, tokens)
    for (rows, columns), storages in SHAPES.items()
    for i, storage in enumerate(storages)
    for kind in (TYPES if i in (0, len(storages) - 1) else ["half"])
    for tokens in ([1, 3, 8] if rows < 400 else [1, 5])
]


@pytest.mark.parametrize(("rows", "columns", "bits", "block", "zeros", "kind", "tokens"), LINEAR)
def test_a_product(
    rows: int, columns: int, bits: int, block: int, zeros: int, tokens: int, kind: str, library: Path
) -> None:
    rng = np.random.default_rng(rows + columns + bits)
    dtype = TYPES[kind]
    x = rng.standard_normal((tokens, 1, columns)).astype(np.float32)
    x[:, :, ::37] *= 50  # as activations are: a few are large
    norm = rng.standard_normal(columns).astype(dtype)
    residual = rng.standard_normal((tokens, 1, rows)).astype(np.float32)
    weights = stored(rng, rows, columns, bits, block, bool(zeros), dtype)
    attributes: dict[str, Any] = {
        "columns": columns, "rows": [rows], "bits": [bits], "block_size": [block], "has_zeros": [zeros],
        "norm": 0, "residual": 0, "epsilon": 1e-8, "gated": 0,
    }  # fmt: skip
    for changes, given in (({"norm": 1}, [x]), ({"residual": 1}, [x, residual])):
        chosen = {**attributes, **changes}
        constants = [norm, *weights] if chosen["norm"] else weights
        operator = Operator(library, "DeviceLinear", given, constants, [np.float32], **chosen)
        (found,) = operator(given, [(tokens, 1, rows)], {})
        scale = norm if chosen["norm"] else None
        others = given[1:] if scale is None else [scale]
        (expected,) = device_operators.device_linear(x, *others, *weights, **chosen)
        bound = PLAIN[kind] * np.abs(expected).max()
        if bits != 16:
            bound = bound + rounding(x, scale, device_operators.matrix(weights, bits, block, columns))
        assert (np.abs(found - expected) <= bound).all()
        (again,) = operator(given, [(tokens, 1, rows)], {})
        np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("storages", [((16, 0, 0), (16, 0, 0)), ((4, 64, 1), (4, 64, 1)), ((8, 32, 0), (4, 64, 1))])
@pytest.mark.parametrize("gated", [0, 1])
def test_two_matrices(storages: tuple[tuple[int, int, int], ...], gated: int, kind: str, library: Path) -> None:
    """One behind the other, or as a gate; alike and of different storage."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 1, 2560)).astype(np.float32)
    norm = rng.standard_normal(2560).astype(TYPES[kind])
    matrices = [stored(rng, 7040, 2560, bits, block, bool(zeros), TYPES[kind]) for bits, block, zeros in storages]
    bits, blocks, zeros = (list(values) for values in zip(*storages, strict=True))
    attributes = {
        "columns": 2560, "rows": [7040, 7040], "bits": bits, "block_size": blocks, "has_zeros": zeros,
        "norm": 1, "residual": 0, "epsilon": 1e-8, "gated": gated,
    }  # fmt: skip
    constants = [norm, *matrices[0], *matrices[1]]
    operator = Operator(library, "DeviceLinear", [x], constants, [np.float32], **attributes)
    (expected,) = device_operators.device_linear(x, *constants, **attributes)  # type: ignore[arg-type]
    (found,) = operator([x], [expected.shape], {})
    assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(("heads", "shared", "size"), [(20, 20, 128), (16, 8, 128), (8, 2, 64), (4, 4, 32), (4, 2, 16)])
@pytest.mark.parametrize("lengths", [[0], [1, 0, 7], [511, 300], [64, 65, 2000]])
def test_attention(
    lengths: list[int], heads: int, shared: int, size: int, interleaved: int, kind: str, library: Path
) -> None:
    rng = np.random.default_rng(sum(lengths) + size)
    dtype, rows, capacity = TYPES[kind], len(lengths), 2048
    qkv = rng.standard_normal((rows, 1, (heads + 2 * shared) * size)).astype(np.float32)
    past = [rng.standard_normal((rows, shared, capacity, size)).astype(dtype) for _ in range(2)]
    for row, length in enumerate(lengths):
        for tensor in past:
            tensor[row, :, length:] = np.nan  # what no token has reached must not be read
    angles = rng.random((capacity, size // 2)) * 6
    tables = [np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)]
    given = [qkv, *past, np.array(lengths, np.int32)]
    attributes = {"num_heads": heads, "kv_num_heads": shared, "head_dim": size, "interleaved": interleaved}
    expected = device_operators.device_attention(*given, *tables, **attributes)
    operator = Operator(library, "DeviceAttention", given, tables, [np.float32, dtype, dtype], **attributes)
    shapes = [(rows, 1, heads * size), *[past[0].shape] * 2]
    found = operator(given, shapes, {1: 1, 2: 2})
    assert np.abs(found[0] - expected[0]).max() <= 2e-2 * (0.1 if kind == "half" else 1)  # of values about 1
    for name, one, other in zip(("keys", "values"), found[1:], expected[1:], strict=True):
        wide = other.astype(np.float32)
        step = np.float32(2.0**-10 if kind == "half" else 2.0**-7)  # a rounding either way
        np.testing.assert_allclose(one, wide, rtol=step, atol=1e-6, err_msg=name)


#: Distance from a half, in steps, within which the last bits of a rotated key may decide between two codes.
TIE = 1e-3


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(("heads", "shared", "size"), [(20, 20, 128), (16, 8, 128), (8, 2, 64), (4, 4, 32), (4, 2, 16)])
@pytest.mark.parametrize("lengths", [[0], [1, 0, 7], [511, 300], [64, 65, 2000]])
def test_attention_int8(
    lengths: list[int], heads: int, shared: int, size: int, interleaved: int, kind: str, library: Path
) -> None:
    """Codes are the specification's but for ties; and the output is that of the codes that are stored."""
    rng = np.random.default_rng(sum(lengths) + size)
    given, constants, attributes = coded_attention(rng, lengths, heads, shared, size, interleaved, TYPES[kind])
    expected = device_operators.device_attention(*given, *constants, **attributes)
    operator = Operator(
        library, "DeviceAttentionInt8", given, constants, [np.float32, np.int8, np.int8], **attributes
    )  # fmt: skip
    rows = len(lengths)
    shapes = [(rows, 1, heads * size), *[given[1].shape] * 2]
    output, keys, values = operator(given, shapes, {1: 1, 2: 2})
    np.testing.assert_array_equal(values, expected[2])  # nothing is computed of them before the one division
    cos, sin, *steps = constants
    steps = [x.reshape(shared, 1, size) for x in steps]
    for row, position in enumerate(lengths):
        parts = given[0][row, 0].reshape(heads + 2 * shared, size)
        query, key, _ = np.split(parts, [heads, heads + shared])
        tables = cos[position].astype(np.float32), sin[position].astype(np.float32)
        exact = device_operators.rotate(key, *tables, interleaved) / steps[0][:, 0]
        tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < TIE
        apart = np.abs(keys[row].astype(int) - expected[1][row].astype(int))
        assert apart[:, position][~tie].max(initial=0) == 0
        assert apart[:, position].max() <= 1
        apart[:, position] = 0
        assert not apart.any()
        read = [
            np.repeat(cache[row, :, : position + 1].astype(np.float32) * step, heads // shared, axis=0)
            for cache, step in zip((keys, values), steps, strict=True)
        ]
        kept = device_operators.attend(device_operators.rotate(query, *tables, interleaved), *read)
        # Both are float32: sums in another order, and the scales in other places.
        np.testing.assert_allclose(output[row, 0], kept.reshape(-1), rtol=0, atol=2e-5 * np.abs(read[1]).max())


def coded_attention(
    rng: np.random.Generator, lengths: list[int], heads: int, shared: int, size: int, interleaved: int,
    dtype: np.dtype[Any],
) -> tuple[list[Array], list[Array], dict[str, Any]]:  # fmt: skip
    """What DeviceAttentionInt8 is given, its constants (tables and scales), and its attributes. Some numbers are beyond
    the largest code; what no token has reached has the largest, so that it shows where it is read.
    """
    rows, capacity = len(lengths), 2048
    qkv = rng.standard_normal((rows, 1, (heads + 2 * shared) * size)).astype(np.float32)
    past = [rng.integers(-128, 128, (rows, shared, capacity, size)).astype(np.int8) for _ in range(2)]
    for row, length in enumerate(lengths):
        for tensor in past:
            tensor[row, :, length:] = -128
    angles = rng.random((capacity, size // 2)) * 6
    tables = [np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)]
    steps = [((0.5 + rng.random((1, shared, 1, size))) * 2 / 127).astype(np.float32) for _ in range(2)]
    attributes = {"num_heads": heads, "kv_num_heads": shared, "head_dim": size, "interleaved": interleaved}
    return [qkv, *past, np.array(lengths, np.int32)], [*tables, *steps], attributes


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["key", "value"])
def test_what_no_code_can_say_is_no_number(part: str, wrong: float, kind: str, library: Path) -> None:
    """In the heads that read it, and in no other; and the code is that of the specification."""
    heads, shared, size, lengths = 8, 4, 64, [9, 700]
    given, constants, attributes = coded_attention(
        np.random.default_rng(3), lengths, heads, shared, size, 1, TYPES[kind]
    )
    first = (heads + (0 if part == "key" else shared)) * size
    given[0][1, 0, first + 2 * size + 5] = wrong  # of the third key/value head, in the second row
    operator = Operator(
        library, "DeviceAttentionInt8", given, constants, [np.float32, np.int8, np.int8], **attributes
    )  # fmt: skip
    expected = device_operators.device_attention(*given, *constants, **attributes)
    output, _, values = operator(given, [(2, 1, heads * size), *[given[1].shape] * 2], {1: 1, 2: 2})
    lost = np.isnan(output.reshape(2, heads, size))
    assert lost[1, 4:6].all() and lost.sum() == 2 * size
    np.testing.assert_array_equal(lost, np.isnan(expected[0].reshape(2, heads, size)))
    np.testing.assert_array_equal(values, expected[2])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("bits", "block", "zeros"), [(16, 0, 0), (8, 64, 1), (4, 32, 0), (4, 64, 1)])
def test_embedding(bits: int, block: int, zeros: int, kind: str, library: Path) -> None:
    rng = np.random.default_rng(bits)
    table = stored(rng, 6000, 704, bits, block, bool(zeros), TYPES[kind], gathered=True)
    ids = np.array([[0], [5999], [17]], np.int64)
    attributes = {"bits": bits, "block_size": block, "has_zeros": zeros, "columns": 704}
    operator = Operator(library, "DeviceEmbedding", [ids], table, [np.float32], **attributes)
    (found,) = operator([ids], [(3, 1, 704)], {})
    (expected,) = device_operators.device_embedding(ids, *table, **attributes)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("vocabulary", [1, 31, 6000, 48000])
def test_argmax(vocabulary: int, library: Path) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = rng.standard_normal((4, 1, vocabulary)).astype(np.float32)
    logits[0, 0, [vocabulary // 3, vocabulary - 1]] = 9  # two largest: the first
    logits[1] -= 100
    logits[2, 0, vocabulary // 2] = np.nan
    logits[3, 0, 0] = -np.inf
    operator = Operator(library, "DeviceArgMax", [logits], [], [np.int64])
    (found,) = operator([logits], [(4, 1)], {})
    expected = logits.argmax(-1)
    expected[2] = -1  # no number
    np.testing.assert_array_equal(found, expected)


def test_what_the_kernels_do_not_know_is_refused(library: Path) -> None:
    x = np.zeros((1, 1, 256), np.float32)
    weights = stored(np.random.default_rng(0), 12, 256, 16, 0, False, TYPES["half"])
    attributes = {
        "columns": 256, "rows": [12], "bits": [16], "block_size": [0], "has_zeros": [0],
        "norm": 0, "residual": 0, "epsilon": 1e-8, "gated": 0,
    }  # fmt: skip
    with pytest.raises(Exception, match="no device kernel for a matrix of 12 rows"):
        Operator(library, "DeviceLinear", [x], weights, [np.float32], **attributes)
