"""What is measured: prompts of some lengths, and decode steps at some pasts and batch sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from helium_onnx.errors import UsageError

#: Keys and values of one case take at most this share of the memory that is available.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Prefill:
    """A prompt of ``tokens`` tokens, to its first token."""

    tokens: int

    def __str__(self) -> str:
        return f"prefill of {self.tokens} tokens"


@dataclass(frozen=True)
class Decode:
    """Steps of ``batch`` rows that hold ``past`` tokens each before the first of them."""

    past: int
    batch: int

    def __str__(self) -> str:
        return f"decode at past {self.past}, batch {self.batch}"


Case: TypeAlias = Prefill | Decode


@dataclass(frozen=True)
class LeftOut:
    """A case that cannot be measured here, and why."""

    case: str
    reason: str


@dataclass(frozen=True)
class Preset:
    """Lengths in tokens, rows, and how often: ``rounds`` over all cases, ``steps`` of decode in each, ``loads``."""

    prompt: tuple[int, ...]
    past: tuple[int, ...]
    batch: tuple[int, ...]
    rounds: int
    steps: int
    loads: int


FULL = Preset(prompt=(32, 128, 512, 2048), past=(0, 512, 2048), batch=(1, 4, 16), rounds=5, steps=16, loads=3)
QUICK = Preset(prompt=(32, 128), past=(0, 512), batch=(1, 4), rounds=2, steps=8, loads=1)


def preset(
    *, quick: bool, prompt: Sequence[int] | None, past: Sequence[int] | None, batch: Sequence[int] | None,
    rounds: int | None,
) -> Preset:  # fmt: skip
    """What the caller asks for; where they say nothing, the full or the quick preset. Raises UsageError."""
    base = QUICK if quick else FULL
    if rounds is not None and not 1 <= rounds <= 1000:
        raise UsageError("the number of rounds is out of range", found=rounds, expected="1 to 1000")
    return Preset(
        prompt=_lengths("prompt", prompt, base.prompt, least=1),
        past=_lengths("past", past, base.past, least=0),
        batch=_lengths("batch", batch, base.batch, least=1),
        rounds=base.rounds if rounds is None else rounds,
        steps=base.steps,
        loads=base.loads,
    )


def plan(
    asked: Preset, *, context_length: int, cache_token_bytes: int, available_bytes: int | None
) -> tuple[tuple[Case, ...], tuple[LeftOut, ...]]:
    """The cases, and those that the model's context or the memory leaves out.

    Every past is measured with the smallest batch, and every batch at the middle past. Raises UsageError where nothing
    is left.
    """
    cases: list[Case] = []
    left_out: list[LeftOut] = []

    def add(case: Case, tokens: int, rows: int) -> None:
        needed = rows * tokens * cache_token_bytes
        if tokens > context_length:
            left_out.append(LeftOut(str(case), f"needs {tokens:,} tokens; the model's context is {context_length:,}"))
        elif available_bytes is not None and needed > _MEMORY_SHARE * available_bytes:
            have = f"{available_bytes / 1e9:.1f} GB of memory are available, half of which it may take"
            left_out.append(LeftOut(str(case), f"needs {needed / 1e9:.1f} GB for keys and values; {have}"))
        else:
            cases.append(case)

    for tokens in asked.prompt:
        add(Prefill(tokens), tokens, 1)
    fitting = [past for past in asked.past if past + asked.steps <= context_length] or asked.past
    middle = fitting[len(fitting) // 2]
    pairs = [(past, asked.batch[0]) for past in asked.past] + [(middle, batch) for batch in asked.batch]
    for past, batch in dict.fromkeys(pairs):
        add(Decode(past, batch), past + asked.steps, batch)
    if not cases:
        raise UsageError(
            "no case is left to measure",
            found="; ".join(f"{left.case}: {left.reason}" for left in left_out[:4]),
            remedy="ask for shorter lengths or smaller batches",
        )
    return tuple(cases), tuple(left_out)


def _lengths(name: str, asked: Sequence[int] | None, default: Iterable[int], *, least: int) -> tuple[int, ...]:
    if asked is None:
        return tuple(default)
    wrong = [value for value in asked if type(value) is not int or not least <= value <= 1 << 31]
    if wrong or not asked:
        found = repr(wrong[0]) if wrong else "no number"
        raise UsageError(f"{name} is out of range", found=found, expected=f"whole numbers from {least}")
    return tuple(sorted(set(asked)))
