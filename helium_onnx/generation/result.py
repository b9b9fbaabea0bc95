"""What a request gives back: texts, token ids, why each ended, and how long it took."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from helium_onnx.errors import UsageError

#: ``eos``: the model ended the text. ``stop``: a stop string did. ``length``: max_new_tokens were generated.
#: ``interrupted``: the caller (Ctrl-C, ``close()``) ended it; the text so far is kept.
FinishReason: TypeAlias = Literal["eos", "stop", "length", "interrupted"]
#: Who drafts: the text's own repetitions, or a second model.
SpeculationMethod: TypeAlias = Literal["prompt-lookup", "draft-model"]


@dataclass(frozen=True)
class Timings:
    """Wall-clock times of one request, all its prompts together.

    ``prefill_seconds`` and ``decode_seconds`` hold running the model (and a draft model: over the prompt, and to make
    drafts), sampling and decoding text, not what the caller does with a piece of it; ``total_seconds`` holds everything
    from the first prefill to the end, and ``time_to_first_token_seconds`` from there to the first token of the first
    prompt. ``prefill_tokens_per_second`` counts the prompt tokens that were computed, not those from the prefix cache;
    ``decode_tokens_per_second`` the tokens of all prompts that decode steps gave (the first token of each comes from
    prefill). A rate over no time is 0.
    """

    prefill_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float
    total_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class TokenLogprob:
    """One token and its natural log-probability under the model itself (before penalty, temperature and filters).

    ``text`` is for display: a byte of a longer character reads ``<0xE6>``. ``top`` holds the likeliest tokens of the
    same step, likeliest first, each with an empty ``top``.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class SpeculationStatistics:
    """What drafting did in one request.

    Attributes:
        method: who drafted.
        steps: decode steps, those without a draft included.
        drafting_steps: those with a draft.
        drafted: tokens of all drafts.
        accepted: those that became tokens of the text.
        tokens_per_step: tokens that decode steps gave, for each; 1 is plain decoding.
    """

    method: SpeculationMethod
    steps: int
    drafting_steps: int
    drafted: int
    accepted: int
    tokens_per_step: float


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt.

    Attributes:
        text: without the prompt, the eos token and the stop string.
        token_ids: every token generated, the eos included (as ``transformers`` does), and also those of a stop string
            and after it in the same token: ``text`` may be shorter than they are.
        finish_reason: see ``FinishReason``.
        prompt_tokens: tokens of the prompt, ``<s>`` included.
        seed: the seed in use, to repeat this request with; None where the choice was greedy.
        logprobs: one for each of ``token_ids``; None where none were asked for.
        stop: the stop string that ended the text, for ``finish_reason`` ``stop``.
        cached_tokens: tokens of the prompt that came from the prefix cache, and were not computed.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    stop: str | None = None
    cached_tokens: int = 0


@dataclass(frozen=True)
class GenerationResult:
    """One ``Generation`` for each prompt, in their order, and the timings of the request.

    ``speculation`` is None where every step was a plain one by rule: several prompts, or speculation switched off.
    """

    generations: tuple[Generation, ...]
    timings: Timings
    speculation: SpeculationStatistics | None = None

    def __len__(self) -> int:
        return len(self.generations)

    def __iter__(self) -> Iterator[Generation]:
        return iter(self.generations)

    def __getitem__(self, index: int) -> Generation:
        return self.generations[index]

    @property
    def text(self) -> str:
        """The text of a single prompt's result.

        Raises:
            UsageError: there are several.
        """
        if len(self.generations) != 1:
            raise UsageError(
                "A result of several prompts has no one text",
                found=f"{len(self.generations)} generations",
                remedy="read result[i].text, or [g.text for g in result]",
            )
        return self.generations[0].text

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings under the names of the fields, for JSON.

        JSON has no infinity: the log-probability of a token that a mask had excluded becomes None.
        """
        return {
            "generations": [_plain(asdict(generation)) for generation in self.generations],
            "timings": asdict(self.timings),
            "speculation": None if self.speculation is None else asdict(self.speculation),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
