"""Prompt lookup: a draft that copies what followed the same tokens earlier in prompt and generated text.

(Saxena: Prompt Lookup Decoding, 2023.) Text that quotes, lists or edits its prompt repeats itself, and the copy costs
no second model.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import ClassVar, Final

from helium_onnx.generation.rejection import Proposal

#: Lengths of the n-grams that are told apart, and how likely the first copied token is the model's, to begin with.
#: (Measured on 40 pages of benchmarks/data/valid.jsonl, continued by helium-docs-7m: greedily 0.99, 0.86, 0.72, 0.53;
#: at temperature 0.8 0.89, 0.71, 0.62, 0.44.) Four lengths tell apart what pays.
MATCH_PRIORS = {8: 0.9, 5: 0.75, 3: 0.6, 2: 0.5}
#: Occurrences of the shortest n-gram that are looked at, the latest first.
_CANDIDATES = 16


class PromptLookup:
    """An index of one growing text: where each n-gram of the shortest length occurred.

    Work is constant for each token of the text, however long it is: half a microsecond where nothing is found.
    """

    method: Final = "prompt-lookup"
    setup_seconds = seconds_per_token = prefill_seconds = 0.0  # next to none
    proposals: ClassVar[list[Proposal]] = []  # a copy is certain of each token

    def __init__(self, lengths: Collection[int] = MATCH_PRIORS.keys(), *, candidates: int = _CANDIDATES) -> None:
        self.source = 0
        """Where the copy begins that the last ``look`` has found: the position after the earlier occurrence."""
        assert min(lengths) > 1
        self._shortest, self._longest, self._candidates = min(lengths), max(lengths), candidates
        self._ngram = operator.itemgetter(*range(-self._shortest, 0))
        # The longest of the lengths up to each number.
        self._kinds = [max((n for n in lengths if n <= reach), default=0) for reach in range(self._longest + 1)]
        self._latest: dict[tuple[int, ...], int] = {}  # n-gram -> the position after its latest occurrence
        self._earlier: list[int] = []  # position -> the one before it that follows the same n-gram; 0 for none
        self._end: tuple[int, ...] = ()  # the n-gram at the end of the text, not yet in the index,
        self._end_latest = 0  # and where it is there

    def look(self, history_ids: list[int]) -> int:
        """Length of the longest n-gram at the end of the text that occurs earlier; 0 where none does.

        ``history_ids`` is the text: what it was at the call before, and what has come since. Of several occurrences of
        the length it is the latest.
        """
        length, earlier = len(history_ids), self._earlier
        if length < self._shortest:
            return 0
        if len(earlier) == length - 1 and self._end:
            earlier.append(self._end_latest)
            self._latest[self._end] = length - 1
        else:
            self._catch_up(history_ids)
        end = self._end = self._ngram(history_ids)
        position = self._end_latest = self._latest.get(end, 0)
        return self._longest_match(history_ids, position) if position else 0

    def propose(self, history_ids: list[int], count: int) -> list[int]:
        """``count`` tokens: what follows the occurrence that ``look`` has just found, over and over if it is short."""
        draft = history_ids[self.source : self.source + count]
        period = len(history_ids) - self.source
        while len(draft) < count:  # the copy runs into the text's end, and goes on with its own beginning
            draft.append(draft[len(draft) - period])
        return draft

    def _longest_match(self, history_ids: list[int], position: int) -> int:
        length, longest, found = len(history_ids), self._longest, 0
        for _ in range(self._candidates):
            matched, reach = self._shortest, min(longest, position)
            while matched < reach and history_ids[position - matched - 1] == history_ids[length - matched - 1]:
                matched += 1
            if self._kinds[matched] > found:
                found, self.source = self._kinds[matched], position
            position = self._earlier[position]
            if found == longest or not position:
                break
        return found

    def _catch_up(self, history_ids: list[int]) -> None:
        """Index several positions at once."""
        n, stop = self._shortest, len(history_ids)
        latest, earlier = self._latest, self._earlier
        earlier.extend(0 for _ in range(len(earlier), min(n, stop)))
        first = len(earlier)
        columns = (history_ids[first - n + i : stop - n + i] for i in range(n))
        for position, ngram in enumerate(zip(*columns, strict=True), first):
            earlier.append(latest.get(ngram, 0))
            latest[ngram] = position
