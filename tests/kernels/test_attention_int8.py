"""CausalAttentionInt8 against its definition in float64, over the same 8 bits."""

from __future__ import annotations

import ctypes

import kernel_graphs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_graphs import Array, assert_same_bits
from test_causal_attention import Sizes, turned

pytestmark = pytest.mark.usefixtures("native_kernels")
each_instruction_set = pytest.mark.usefixtures("instruction_set")

#: Keys whose shares have one scale.
BLOCK = 128
#: Of the largest output: most numbers, and any, since what lies between two of its 8 bits may be rounded either way.
TOLERANCE, TIPPED = 2e-6, 1 / 127
SIZES = [Sizes(), Sizes(4, 4, 64, 0, tables="float16"), Sizes(5, 1, 48)]
each_form = pytest.mark.parametrize("sizes", SIZES, ids=["paired", "half-split", "48"])


def rounded(x: Array, block: int) -> Array:
    """``x`` in 8 bits, with a scale for each ``block`` along its last axis, as float64."""
    x = x.astype(np.float32)
    blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)]).reshape(*x.shape[:-1], -1, block)
    peak = np.abs(blocks).max(-1, keepdims=True)
    factor = np.divide(np.float32(127), peak, where=peak > 1e-36, out=np.zeros_like(peak))
    back = np.rint(blocks * factor).astype(np.float64) * (peak / np.float32(127))
    flat: Array = back.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return flat


def feed(sizes: Sizes, rows: int, tokens: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    positions = max(tokens, sizes.capacity)
    angles = np.arange(positions)[:, None] / 10 ** rng.uniform(0, 3, sizes.head_dim // 2)
    return {
        "qkv": (1.5 * rng.standard_normal((rows, tokens, sizes.width))).astype(np.float32),
        "cos": np.cos(angles).astype(sizes.tables),
        "sin": np.sin(angles).astype(sizes.tables),
    }


def definition(sizes: Sizes, operands: dict[str, Array]) -> Array:
    """In float64 over rounded queries, keys, values and shares."""
    rows, tokens, _ = operands["qkv"].shape
    parts = operands["qkv"].reshape(rows, tokens, -1, sizes.head_dim)
    block = next(size for size in (64, 32, 16) if sizes.head_dim % size == 0)
    split = sizes.heads + sizes.groups
    angles = (operands["cos"][:tokens, None], operands["sin"][:tokens, None], sizes.interleaved)
    first = rounded(turned(parts[:, :, :split], *angles), block)
    values = rounded(parts[:, :, split:], sizes.head_dim)
    scales = np.abs(parts[:, :, split:]).max(-1) / np.float32(127)
    output = np.empty((rows, tokens, sizes.heads, sizes.head_dim))
    for head in range(sizes.heads):
        group = head * sizes.groups // sizes.heads
        queries, keys = first[:, :, head], first[:, :, sizes.heads + group]
        scores = queries @ keys.swapaxes(1, 2) / np.sqrt(sizes.head_dim)
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        scale = scales[:, None, :, group].astype(np.float64)
        output[:, :, head] = (
            rounded(shares * scale, BLOCK) / scale @ values[:, :, group] / shares.sum(-1, keepdims=True)
        )
    return output.reshape(rows, tokens, -1)


def run(sizes: Sizes, operands: dict[str, Array], threads: int = 1, **changes: int) -> Array:
    attributes = {"num_heads": sizes.heads, "kv_num_heads": sizes.groups, "head_dim": sizes.head_dim}
    made = kernel_graphs.model(
        "CausalAttentionInt8", operands, {"y": np.float32}, interleaved=sizes.interleaved, **{**attributes, **changes}
    )
    output: Array = kernel_graphs.session(made, threads).run(None, operands)[0]
    return output


@each_instruction_set
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (5, 1)]),
    head_dim=st.sampled_from([16, 32, 48, 64, 80, 96, 128]),
    interleaved=st.sampled_from([0, 1]),
    tables=st.sampled_from(["float32", "float16"]),
    rows=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 6), st.integers(30, 70), st.integers(126, 260)),
)
def test_the_definition(
    seed: int, heads: tuple[int, int], head_dim: int, interleaved: int, tables: str, rows: int, tokens: int
) -> None:
    sizes = Sizes(*heads, head_dim, interleaved, tables=tables)
    operands = feed(sizes, rows, tokens, seed)
    expected = definition(sizes, operands)
    errors = np.abs(run(sizes, operands) - expected) / np.abs(expected).max()
    assert np.median(errors) <= TOLERANCE
    assert errors.max() <= TIPPED


@each_instruction_set
@each_form
@pytest.mark.parametrize("tokens", [1, 33, 200])
def test_a_row_is_the_same_alone_and_among_others(tokens: int, sizes: Sizes) -> None:
    operands = feed(sizes, 3, tokens)
    together = run(sizes, operands)
    for row in range(3):
        assert_same_bits(run(sizes, {**operands, "qkv": operands["qkv"][row : row + 1]}), together[row : row + 1])


@each_instruction_set
@each_form
def test_what_follows_is_not_seen(sizes: Sizes) -> None:
    operands = feed(sizes, 1, 150)
    other = operands["qkv"].copy()
    other[:, 100:] = np.random.default_rng(7).uniform(-5, 5, other[:, 100:].shape)
    found, changed = run(sizes, operands), run(sizes, {**operands, "qkv": other})
    assert_same_bits(found[:, :100], changed[:, :100])
    assert np.abs(found[:, 100:] - changed[:, 100:]).max() > 0.1


@each_form
@pytest.mark.parametrize("tokens", [1, 200])
def test_threads_and_instruction_sets_change_nothing(tokens: int, sizes: Sizes, native_kernels: ctypes.CDLL) -> None:
    operands = feed(sizes, 2, tokens)
    expected, before = run(sizes, operands), native_kernels.helium_kernels_name()
    for threads in (2, 3, 5):
        assert_same_bits(run(sizes, operands, threads), expected)
    try:
        for name in kernel_graphs.INSTRUCTION_SETS:
            if native_kernels.helium_use_kernels(name.encode()):
                assert_same_bits(run(sizes, operands), expected)
    finally:
        native_kernels.helium_use_kernels(before)


@each_instruction_set
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_shows(wrong: float) -> None:
    """From its token on, in its row alone."""
    sizes = Sizes()
    operands = feed(sizes, 2, 40)
    operands["qkv"][0, 20] = wrong
    found = run(sizes, operands)
    assert np.isnan(found[0, 20:]).all()
    assert np.isfinite(found[0, :20]).all()
    assert np.isfinite(found[1]).all()


def test_no_tokens() -> None:
    assert run(Sizes(), feed(Sizes(), 2, 0)).shape == (2, 0, 128)
    assert run(Sizes(), feed(Sizes(), 0, 3)).shape == (0, 3, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 24}, "no multiple of 16"),
        ({"kv_num_heads": 3}, "heads do not group"),
        ({"num_heads": 8}, "another shape|tables"),
    ],
)
def test_wrong_attributes(changes: dict[str, int], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(Sizes(), feed(Sizes(), 1, 3), **changes)


def test_more_tokens_than_the_tables_have() -> None:
    operands = feed(Sizes(), 1, 30)
    with pytest.raises(Exception, match="more tokens than the tables have"):
        run(Sizes(), {**operands, "cos": operands["cos"][:20], "sin": operands["sin"][:20]})
