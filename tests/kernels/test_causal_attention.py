"""CausalAttention against its definition in float64; keys and values, which are turned and kept, to the last bit."""

from __future__ import annotations

import ctypes
import dataclasses

import kernel_graphs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_graphs import Array, assert_same_bits

pytestmark = pytest.mark.usefixtures("native_kernels")
each_instruction_set = pytest.mark.usefixtures("instruction_set")

#: Of the values' largest magnitude: a few roundings to float32 in scores of about 5 (seen: 5e-7).
TOLERANCE = 2e-6


@dataclasses.dataclass(frozen=True)
class Sizes:
    heads: int = 4
    groups: int = 2
    head_dim: int = 32
    interleaved: int = 1
    cache: str = "float32"
    tables: str = "float32"
    capacity: int = 100

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.groups) * self.head_dim


PAIRS = [Sizes(), Sizes(interleaved=0, cache="float16", tables="float16"), Sizes(4, 4, 64, 1, "float16")]
each_form = pytest.mark.parametrize("sizes", PAIRS, ids=["float32", "float16-half-split", "float16-equal-heads"])


def feed(sizes: Sizes, tokens: int, lengths: list[int], seed: int = 0) -> dict[str, Array]:
    """Random operands. Slots that hold no token are NaN."""
    rng = np.random.default_rng(seed)
    angles = np.arange(sizes.capacity)[:, None] / 10 ** rng.uniform(0, 3, sizes.head_dim // 2)
    past = rng.standard_normal((2, len(lengths), sizes.groups, sizes.capacity, sizes.head_dim)).astype(sizes.cache)
    for row, length in enumerate(lengths):
        past[:, row, :, length:] = np.nan
    return {
        "qkv": (1.5 * rng.standard_normal((len(lengths), tokens, sizes.width))).astype(np.float32),
        "past_key": past[0],
        "past_value": past[1],
        "past_lengths": np.array(lengths, np.int64),
        "cos": np.cos(angles).astype(sizes.tables),
        "sin": np.sin(angles).astype(sizes.tables),
    }


def turned(x: Array, cos: Array, sin: Array, interleaved: int) -> Array:
    """Rotary embedding of [..., head_dim] in float32, each product and each sum rounded."""
    out, half = np.empty_like(x), x.shape[-1] // 2
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    u, v, cos, sin = x[..., first], x[..., second], cos.astype(np.float32), sin.astype(np.float32)
    out[..., first], out[..., second] = u * cos - v * sin, v * cos + u * sin
    return out


def definition(sizes: Sizes, feed: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Output in float64; present key and value exactly."""
    qkv, keys, values = feed["qkv"], feed["past_key"].copy(), feed["past_value"].copy()
    batch, tokens, _ = qkv.shape
    output = np.empty((batch, tokens, sizes.heads, sizes.head_dim))
    parts = qkv.reshape(batch, tokens, -1, sizes.head_dim)
    for row, past in enumerate(feed["past_lengths"]):
        for token in range(tokens):
            at = past + token
            angles = (feed["cos"][at], feed["sin"][at], sizes.interleaved)
            keys[row, :, at] = turned(parts[row, token, sizes.heads : sizes.heads + sizes.groups], *angles)
            values[row, :, at] = parts[row, token, sizes.heads + sizes.groups :]
            for head in range(sizes.heads):
                group = head * sizes.groups // sizes.heads
                query = turned(parts[row, token, head], *angles).astype(np.float64)
                scores = keys[row, group, : at + 1].astype(np.float64) @ query / np.sqrt(sizes.head_dim)
                weights = np.exp(scores - scores.max())
                output[row, token, head] = weights @ values[row, group, : at + 1].astype(np.float64) / weights.sum()
    return output.reshape(batch, tokens, -1), keys, values


def model(sizes: Sizes, feed: dict[str, Array], **changes: int) -> bytes:
    outputs = {"y": np.float32, "present_key": sizes.cache, "present_value": sizes.cache}
    attributes = {"num_heads": sizes.heads, "kv_num_heads": sizes.groups, "head_dim": sizes.head_dim}
    name = "CausalAttentionFloat16" if sizes.cache == "float16" else "CausalAttention"
    return kernel_graphs.model(name, feed, outputs, interleaved=sizes.interleaved, **{**attributes, **changes})


def run(sizes: Sizes, feed: dict[str, Array], threads: int = 1) -> list[Array]:
    """With a past that is read, and a present that is made."""
    results: list[Array] = kernel_graphs.session(model(sizes, feed), threads).run(None, feed)
    return results


def run_in_place(sizes: Sizes, feed: dict[str, Array], calls: list[int], threads: int = 1) -> list[Array]:
    """The tokens in calls of some each, over one buffer for past and present."""
    buffers = {"past_key": feed["past_key"].copy(), "past_value": feed["past_value"].copy()}
    session, lengths, outputs = kernel_graphs.session(model(sizes, feed), threads), feed["past_lengths"].copy(), []
    start = 0
    for count in calls:
        binding = session.io_binding()
        new = np.ascontiguousarray(feed["qkv"][:, start : start + count])
        y = np.empty((*new.shape[:2], sizes.heads * sizes.head_dim), np.float32)
        arrays: dict[str, Array] = {**feed, **buffers, "qkv": new, "past_lengths": lengths}
        for name, array in arrays.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in (("y", y), ("present_key", buffers["past_key"]), ("present_value", buffers["past_value"])):
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
        outputs.append(y)
        start, lengths = start + count, lengths + count
    assert start == feed["qkv"].shape[1]
    return [np.concatenate(outputs, axis=1), *buffers.values()]


def assert_right(found: list[Array], sizes: Sizes, operands: dict[str, Array]) -> None:
    output, keys, values = definition(sizes, operands)
    assert_same_bits(found[1], keys)
    assert_same_bits(found[2], values)
    assert np.abs(found[0] - output).max() <= TOLERANCE * np.nanmax(np.abs(values.astype(np.float64)))


def assert_same(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


@each_instruction_set
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (5, 1)]),
    head_dim=st.sampled_from([16, 32, 48, 64, 80, 96, 128]),
    interleaved=st.sampled_from([0, 1]),
    dtypes=st.sampled_from([("float32", "float32"), ("float16", "float32"), ("float16", "float16")]),
    tokens=st.one_of(st.integers(1, 6), st.integers(30, 70)),
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=3),
)
def test_the_definition(
    seed: int, heads: tuple[int, int], head_dim: int, interleaved: int, dtypes: tuple[str, str], tokens: int,
    lengths: list[int],
) -> None:  # fmt: skip
    sizes = Sizes(*heads, head_dim, interleaved, *dtypes)
    operands = feed(sizes, tokens, lengths, seed)
    assert_right(run(sizes, operands), sizes, operands)


@each_instruction_set
@each_form
@pytest.mark.parametrize("tokens", [1, 3, 33, 70])
def test_past_and_present_may_be_one_buffer(tokens: int, sizes: Sizes) -> None:
    """And what is separate is copied, the slots that no token has reached as well: NaN stay what they were."""
    operands = feed(sizes, tokens, [30, 0, 17])
    apart, in_place = run(sizes, operands), run_in_place(sizes, operands, [tokens])
    assert_same(in_place, apart)
    for row, length in enumerate([30, 0, 17]):
        for before, after in zip((operands["past_key"], operands["past_value"]), apart[1:], strict=True):
            assert_same_bits(after[row, :, length + tokens :], before[row, :, length + tokens :])
            assert_same_bits(after[row, :, :length], before[row, :, :length])


@each_instruction_set
@each_form
def test_any_split_gives_the_same_bits(sizes: Sizes) -> None:
    operands = feed(sizes, 80, [5, 0, 17])
    whole = run(sizes, operands)
    for calls in ([1] * 80, [40, 40], [3, 32, 33, 1, 5, 6], [79, 1], [2, 7, 64, 7]):
        assert_same(run_in_place(sizes, operands, calls), whole)


@each_instruction_set
@each_form
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_row_is_the_same_alone_and_among_others(tokens: int, sizes: Sizes) -> None:
    operands = feed(sizes, tokens, [5, 0, 17, 60])
    together = run(sizes, operands)
    for row in range(4):
        alone = {**operands, **{name: operands[name][row : row + 1] for name in list(operands)[:4]}}
        assert_same(run(sizes, alone), [array[row : row + 1] for array in together])


@each_form
@pytest.mark.parametrize("tokens", [1, 40])
def test_threads_and_instruction_sets_change_nothing(tokens: int, sizes: Sizes, native_kernels: ctypes.CDLL) -> None:
    operands = feed(sizes, tokens, [5, 0, 17])
    expected, before = run(sizes, operands), native_kernels.helium_kernels_name()
    for threads in (2, 3, 5):
        assert_same(run(sizes, operands, threads), expected)
    try:
        for name in kernel_graphs.INSTRUCTION_SETS:  # `definition` above runs with each
            if native_kernels.helium_use_kernels(name.encode()):
                assert_same(run(sizes, operands), expected)
    finally:
        native_kernels.helium_use_kernels(before)


@each_instruction_set
def test_what_float16_cannot_hold_is_its_largest() -> None:
    sizes = Sizes(1, 1, 16, cache="float16")
    operands = feed(sizes, 1, [0])
    operands["qkv"] = np.array([[[1.0] * 16 + [1e6, -1e6] * 8 + [65504, 65519.0, -65520, 1e-8] * 4]], np.float32)
    output, _, values = run(sizes, operands)
    assert values[0, 0, 0].tolist() == [65504, 65504, -65504, 0] * 4
    assert np.isfinite(output).all()


# What the tolerance tells apart


@each_form
def test_a_wrong_rotation_mask_or_head_is_noticed(sizes: Sizes) -> None:
    operands = feed(sizes, 6, [9, 3])
    (found, *_), scale = run(sizes, operands), np.nanmax(np.abs(operands["past_value"].astype(np.float64)))
    parts = operands["qkv"].reshape(2, 6, -1, sizes.head_dim).copy()
    parts[:, :, [0, 1]] = parts[:, :, [1, 0]]
    wrong = {
        "pairs": (dataclasses.replace(sizes, interleaved=1 - sizes.interleaved), operands),
        "positions": (
            sizes,
            {**operands, "cos": np.roll(operands["cos"], 1, 0), "sin": np.roll(operands["sin"], 1, 0)},
        ),
        "lengths": (sizes, {**operands, "past_lengths": operands["past_lengths"] - 1}),
        "heads": (sizes, {**operands, "qkv": parts.reshape(2, 6, -1)}),
    }
    for name, (other_sizes, other) in wrong.items():
        assert np.abs(found - definition(other_sizes, other)[0]).max() > 1e4 * TOLERANCE * scale, name


# What is refused


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("qkv", (1, 11, 256), "more tokens than past has room for"),
        ("past_lengths", (2,), "qkv or past_lengths have another shape"),
        ("qkv", (1, 3, 128), "qkv or past_lengths have another shape"),
        ("qkv", (2, 3, 256), "qkv or past_lengths have another shape"),
        ("past_key", (1, 2, 100, 16), "past is not"),
        ("past_value", (1, 2, 99, 32), "past is not"),
        ("past_value", (1, 4, 100, 32), "past is not"),
        ("cos", (100, 32), "the tables are not"),
        ("sin", (99, 16), "the tables are not"),
    ],
)
def test_shapes_that_are_refused(name: str, shape: tuple[int, ...], said: str) -> None:
    operands = feed(Sizes(), 3, [90])
    session = kernel_graphs.session(model(Sizes(), operands))
    operands[name] = np.zeros(shape, operands[name].dtype)
    with pytest.raises(Exception, match=f"CausalAttention: {said}"):
        session.run(None, operands)


@pytest.mark.parametrize("cache", ["float32", "float16"])
@pytest.mark.parametrize(("length", "positions"), [(98, 100), (-1, 100), (90, 92)])
def test_more_tokens_than_there_is_room_for(length: int, positions: int, cache: str) -> None:
    """In the past's buffers, or in the tables."""
    sizes = Sizes(cache=cache)
    operands = feed(sizes, 3, [0])
    operands["past_lengths"][0] = length
    operands["cos"], operands["sin"] = operands["cos"][:positions], operands["sin"][:positions]
    with pytest.raises(Exception, match="CausalAttention: more tokens than past has room for"):
        run_in_place(sizes, operands, [3])


@pytest.mark.parametrize("changes", [{"head_dim": 24}, {"head_dim": 1040}, {"kv_num_heads": 3}, {"kv_num_heads": 0}])
def test_sizes_that_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(Exception, match="head_dim is no multiple of 16, or heads do not group"):
        kernel_graphs.session(model(Sizes(), feed(Sizes(), 1, [0]), **changes))
