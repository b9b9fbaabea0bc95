"""Keys and values of token prefixes, kept for later prompts that begin with the same tokens.

Prefixes are kept in blocks, as a tree: a block is found under the blocks before it, by its own token ids, so what two
prompts share is stored once. A block holds what its tokens left in the past when they were first run, and is only
taken where the session would compute the very same bits again (``Session.exact_split``): the logits of a prompt do not
depend on what was found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helium_onnx.runtimes.session import Past

#: Of a session whose texts may be split anywhere. Smaller finds more, larger has fewer Python objects and copies.
_BLOCK_TOKENS = 32


class Block:
    """Some tokens after those of ``parent``, and their keys and values as ``Past.read_slots`` gives them."""

    __slots__ = ("children", "parent", "tensors", "token_ids")

    def __init__(self, parent: Block | None, token_ids: tuple[int, ...], tensors: list[NDArray[Any]]) -> None:
        self.parent, self.token_ids, self.tensors = parent, token_ids, tensors
        self.children: dict[tuple[int, ...], Block] = {}


class Entry(NamedTuple):
    """A block as it is saved: ``parent`` is the number of an earlier entry, -1 at a text's beginning."""

    parent: int
    token_ids: tuple[int, ...]
    tensors: list[NDArray[Any]]


class Layout(NamedTuple):
    """What the keys and values of one token are: for each tensor (dtype's name, key/value heads, head_dim)."""

    tensors: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, past: Past) -> Layout:
        """That of a one-row past."""
        return cls(tuple((t.dtype.name, t.shape[0], t.shape[2]) for t in past.read_slots(0, 0)))

    @property
    def token_bytes(self) -> int:
        return sum(np.dtype(dtype).itemsize * heads * head_dim for dtype, heads, head_dim in self.tensors)


class PrefixCache:
    """At most ``max_bytes`` of keys and values, of one session; what was used longest ago goes first.

    An interruption at any point leaves it sound: a block is found only when it is whole, what is counted is never less
    than what is held, and no block outlives its parent.
    """

    def __init__(self, exact_split: int, max_bytes: int) -> None:
        """``exact_split`` is the session's, and not 0."""
        assert exact_split > 0 and max_bytes >= 0
        self.block_tokens = _BLOCK_TOKENS if exact_split == 1 else exact_split
        self.takes_decoded = exact_split == 1
        """Whether tokens that decode steps wrote may be kept, or those of prefill calls alone."""
        self.max_bytes = max_bytes
        self._root = Block(None, (), [])
        self._roots = {"": self._root}
        # All blocks of the tree, least recently used first. A path is always touched from its end to its beginning, so
        # the first one has no children (but for an interruption in between, which _evict looks out for). A block is
        # here before it is in the tree, and longer: never uncounted.
        self._order: OrderedDict[Block, None] = OrderedDict()
        self._token_bytes = 0  # until the first past is seen

    @property
    def nbytes(self) -> int:
        """Bytes of the stored keys and values."""
        return len(self._order) * self.block_tokens * self._token_bytes

    def switch(self, key: str) -> None:
        """Go on with what was kept under ``key``: keys and values of one adapter are no others'. The bytes are one sum.

        At first the key is empty.
        """
        self._root = self._roots.setdefault(key, Block(None, (), []))

    def restore(self, prompt_ids: Sequence[int], past: Past) -> int:
        """Fill the empty one-row ``past`` with the longest known prefix; return its tokens. The last is always left."""
        assert past.lengths[0] == 0
        path = self._path(prompt_ids[:-1])
        for block in path:
            past.write_slots(block.tensors)
        self._touch(path)
        return len(path) * self.block_tokens

    def keep(self, token_ids: Sequence[int], past: Past) -> None:
        """Copy the whole blocks of ``token_ids`` that are not known yet out of ``past``, whose first slots hold them.

        Where they do not all fit, the first are kept.
        """
        path = self._path(token_ids)
        self._touch(path)
        capacity = self.capacity(Layout.of(past))
        needed = set(path)
        for index in range(len(path), min(len(token_ids) // self.block_tokens, capacity)):
            self._evict(capacity - 1, needed)
            start, end = index * self.block_tokens, (index + 1) * self.block_tokens
            block = Block(path[-1] if path else self._root, tuple(token_ids[start:end]), past.read_slots(start, end))
            self._insert(block)
            path.append(block)
            needed.add(block)
        self._touch(path)

    def entries(self) -> list[Entry]:
        """All blocks under the current key, parents before children, else most recently used first."""
        numbers: dict[Block, int] = {self._root: -1}
        for block in reversed(self._order):
            path = [block, *_parents(block)]
            if _in_tree(block) and path[-1] is self._root:
                for step in reversed(path):
                    numbers.setdefault(step, len(numbers) - 1)
        return [
            Entry(numbers[block.parent], block.token_ids, block.tensors)
            for block in numbers
            if block.parent is not None
        ]

    def merge(self, entries: Iterable[Entry], layout: Layout) -> None:
        """Take in what ``entries`` gave; where there is too little room, the first of them, and instead of others."""
        capacity = self.capacity(layout)
        blocks: list[Block] = []
        needed: set[Block] = set()
        for entry in entries:
            if len(blocks) == capacity:
                break
            parent = self._root if entry.parent < 0 else blocks[entry.parent]
            block = parent.children.get(entry.token_ids)
            if block is None:
                self._evict(capacity - 1, needed)
                block = Block(parent, entry.token_ids, entry.tensors)
                self._insert(block)
            blocks.append(block)
            needed.add(block)
        self._touch(blocks)

    def capacity(self, layout: Layout) -> int:
        """Blocks that fit."""
        self._token_bytes = layout.token_bytes
        return self.max_bytes // (self.block_tokens * self._token_bytes)

    def _path(self, token_ids: Sequence[int]) -> list[Block]:
        """The known blocks that ``token_ids`` begin with."""
        path: list[Block] = []
        block: Block | None = self._root
        for start in range(0, len(token_ids) - self.block_tokens + 1, self.block_tokens):
            assert block is not None
            block = block.children.get(tuple(token_ids[start : start + self.block_tokens]))
            if block is None:
                break
            path.append(block)
        return path

    def _touch(self, parents_first: Sequence[Block]) -> None:
        for block in reversed(parents_first):
            self._order.move_to_end(block)

    def _insert(self, block: Block) -> None:
        assert block.parent is not None
        self._order[block] = None
        block.parent.children[block.token_ids] = block

    def _evict(self, limit: int, needed: Collection[Block]) -> None:
        """Down to ``limit`` blocks, which ``needed``, with all their parents among them, do not exceed."""
        while len(self._order) > limit:
            block = next(block for block in self._order if not block.children and block not in needed)
            if _in_tree(block):
                assert block.parent is not None
                del block.parent.children[block.token_ids]
            del self._order[block]


def _in_tree(block: Block) -> bool:
    """Not so for one that an interruption left out of the tree before it came in, or after it was taken out."""
    return block.parent is not None and block.parent.children.get(block.token_ids) is block


def _parents(block: Block) -> Iterator[Block]:
    """The block before it, and so on to the tree's root."""
    while block.parent is not None:
        block = block.parent
        yield block
