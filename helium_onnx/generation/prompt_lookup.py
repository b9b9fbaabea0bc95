"""Prompt lookup: a draft that copies what followed the same tokens earlier in prompt and generated text.

(Saxena: Prompt Lookup Decoding, 2023.) Text that quotes, lists or edits its prompt repeats itself, and the copy costs
no second model.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Final

from helium_onnx.generation.rejection import Proposal

#: Lengths of the n-grams that are looked up, and how likely the first copied token is the model's, to begin with.
#: (Measured on 40 pages of benchmarks/data/valid.jsonl, continued by helium-docs-7m: greedily 0.99, 0.86, 0.72, 0.53;
#: at temperature 0.8 0.89, 0.71, 0.62, 0.44.) Four lengths tell apart what pays; each costs 0.3 microseconds a token.
MATCH_PRIORS = {8: 0.9, 5: 0.75, 3: 0.6, 2: 0.5}


class PromptLookup:
    """An index of one growing text: for each n-gram of some lengths, where it occurred last.

    Work is constant for each token of the text, however long it is.
    """

    method: Final = "prompt-lookup"
    setup_seconds = seconds_per_token = prefill_seconds = 0.0  # next to none
    proposals: ClassVar[list[Proposal]] = []  # a copy is certain of each token

    def __init__(self, lengths: Collection[int] = MATCH_PRIORS.keys()) -> None:
        # n-gram -> the position after its last occurrence, among those that end before the text does. Shortest first:
        # where a shorter one is new, so is a longer one.
        self._tables: list[tuple[int, dict[tuple[int, ...], int]]] = [(n, {}) for n in sorted(lengths)]
        self._longest = max(lengths)
        self._indexed = 0  # positions up to here are in the tables, as what follows an n-gram
        self._found = 0

    def look(self, history_ids: list[int]) -> int:
        """Length of the longest n-gram at the end of the text that occurs earlier; 0 where none does.

        ``history_ids`` is the text: what it was at the call before, and what has come since.
        """
        length = len(history_ids)
        end = tuple(history_ids[-self._longest - 1 :])
        if self._indexed == length - 1 >= self._longest:
            for n, table in self._tables:
                table[end[-n - 1 : -1]] = length - 1
            self._indexed = length
        else:
            self._catch_up(history_ids)
        found = 0
        for n, table in self._tables:
            position = table.get(end[-n:])
            if position is None:
                break
            found, self._found = n, position
        return found

    def propose(self, history_ids: list[int], count: int) -> list[int]:
        """``count`` tokens: what follows the occurrence that ``look`` has just found, over and over if it is short."""
        draft = history_ids[self._found : self._found + count]
        period = len(history_ids) - self._found
        while len(draft) < count:  # the copy runs into the text's end, and goes on with its own beginning
            draft.append(draft[len(draft) - period])
        return draft

    def _catch_up(self, history_ids: list[int]) -> None:
        """Index several positions at once: slices and zip need no line of Python for each."""
        stop = len(history_ids)
        for n, table in self._tables:
            first = max(self._indexed, n)
            if first < stop:
                columns = (history_ids[first - n + i : stop - n + i] for i in range(n))
                table.update(zip(zip(*columns, strict=True), range(first, stop), strict=True))
        self._indexed = stop
