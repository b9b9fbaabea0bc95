"""The seam between generation and a runtime: one method wide.

Everything above (sampling, stopping, streaming) knows a runtime only through ``Session.run``; everything below
(ONNX Runtime, its execution providers, buffers) is hidden behind it. ``tests/fake_session.py`` is a session of forty
lines.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from helium_onnx.errors import GenerationError

Phase: TypeAlias = Literal["prefill", "decode"]


def closed() -> GenerationError:
    """What a session raises that is used after ``close``."""
    return GenerationError("this model has been closed", remedy="load the bundle again")


class Past(Protocol):
    """The keys and values of some rows (sequences), kept where the session wants them.

    ``lengths[i]`` is the number of tokens whose keys and values row ``i`` holds. Setting it back forgets the last
    tokens (their slots are written again); only ``Session.run`` moves it forward.
    """

    lengths: NDArray[np.int64]

    def row(self, index: int) -> Past:
        """Row ``index`` alone, sharing memory and length with this past."""
        ...

    def read_slots(self, start: int, stop: int) -> list[NDArray[Any]]:
        """A copy of what tokens ``start`` to ``stop`` of a one-row past left: keys and values, layer by layer.

        Each is ``[num_key_value_heads, stop - start, head_dim]``; ``stop`` is at most ``lengths[0]``.
        """
        ...

    def write_slots(self, tensors: list[NDArray[Any]]) -> None:
        """Append to a one-row past what ``read_slots`` gave, as if its tokens had been run."""
        ...


class Session(Protocol):
    """Runs the two graphs of one bundle over one copy of its weights."""

    @property
    def context_length(self) -> int:
        """Tokens (prompt and generated) that one row can hold."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def exact_split(self) -> int:
        """How a text may be split into calls of ``run`` without a bit of the logits, keys or values changing.

        1: anywhere, prefill or decode, several tokens or one, beside whatever rows. Larger: in prefill calls, at
        multiples of it, counted from the row's first token. 0: nowhere.
        """
        ...

    def new_past(self, rows: int) -> Past:
        """An empty past of ``rows`` rows. Buffers are reused: the pasts of earlier calls become invalid."""
        ...

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """Append ``input_ids`` ``[rows, sequence_length]`` to ``past`` and return the logits.

        ``prefill`` takes one row and any number of tokens and returns ``[1, 1, vocab_size]``, the logits of the last
        position. ``decode`` takes one token for each row (or, with one row, a few tokens to verify) and returns
        ``[rows, sequence_length, vocab_size]``. The array is only valid until the next call.
        """
        ...


@runtime_checkable
class AdaptableSession(Protocol):
    """A session whose graphs take LoRA adapters."""

    def use_adapter(self, matrices: Mapping[str, NDArray[np.float32]]) -> None:
        """Run with these matrices, by the graphs' names, from the next ``new_past`` on; with none where it is empty.

        They are not copied. A past goes on with the adapter that it was begun with, or not at all.
        """
        ...


@runtime_checkable
class GreedySession(Protocol):
    """A session that can choose the largest logit itself, and go on without its caller."""

    def greedy(self, input_ids: NDArray[np.int64], past: Past) -> Generator[NDArray[np.int64], None, None]:
        """Feed ``input_ids`` int64 ``[rows, 1]``, and then what each step chose, yielding it: int64 ``[rows]``.

        Of equal logits the lowest id is chosen. Steps may run ahead of the caller; to close the iterator forgets them.
        At each yield ``past.lengths`` counts what was fed until the step whose ids are yielded. The caller may set the
        length of a row back before asking for the next step: the row goes on from about there, and its further ids mean
        nothing. The iterator ends when a row's context is full.

        Raises:
            GenerationError: logits are no numbers.
        """
        ...


class WholeTexts(Protocol):
    """Runs the one graph of a task without generation: what the models of helium_onnx.encoding know of a runtime."""

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def batch_tokens(self) -> int:
        """The most tokens, padding included, that a call does well to take."""
        ...

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """The graph's output for int64 ``[batch, sequence]`` twice, rows padded on the right; see the contract."""
        ...

    def close(self) -> None: ...
