"""A request: the caller's arguments, checked before the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal, Self, TypeAlias, TypedDict, get_args

from helium_onnx.errors import ContextOverflowError, PromptError, UsageError
from helium_onnx.generation.sampling import SamplingOptions, draw_seed
from helium_onnx.generation.stopping import StopStrings
from helium_onnx.tokenizer import Tokenizer

#: ``auto``: the draft model, where one is loaded; else prompt lookup, where it changes no token
#: (``Session.exact_split`` is 1). ``prompt-lookup``: prompt lookup in any case. ``off``: plain decoding.
SpeculationChoice: TypeAlias = Literal["auto", "off", "prompt-lookup"]


class GenerationOptions(TypedDict, total=False):
    """The keywords of ``generate`` and ``stream``; ``SamplingOptions`` says more of the first six.

    temperature, top_k, top_p, min_p, repetition_penalty, seed: how a token is chosen; by default greedily. Several
    seeds are one for each prompt, which then gets the tokens that it has alone with that seed.
    max_new_tokens: tokens to generate at most; 128.
    stop: one stop string or several; none. They are no part of the text.
    logprobs: report the log-probability of each token and of this many alternatives; None.
    parse_special: let ``</s>`` and the like in the prompt be control tokens; False, since a prompt is a user's.
    ignore_eos: go on after the eos token; False.
    speculation: several tokens a step, for one prompt: "auto", "off" or "prompt-lookup"; "auto".
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | Sequence[int] | None
    stop: str | Sequence[str]
    logprobs: int | None
    parse_special: bool
    ignore_eos: bool
    speculation: SpeculationChoice


@dataclass(frozen=True)
class Request:
    """A checked request: what ``make_request`` makes of the caller's arguments.

    ``prompt_ids`` fit the context together with ``max_new_tokens``; ``logprobs`` is the number of alternatives to
    report for each token, None for no log-probabilities at all. ``seeds`` has one for each prompt, where the caller
    gave them; the one in ``sampling`` counts for nothing then.
    """

    prompt_ids: tuple[list[int], ...]
    max_new_tokens: int
    sampling: SamplingOptions
    stop: tuple[str, ...]
    logprobs: int | None
    ignore_eos: bool
    speculation: SpeculationChoice = "auto"
    seeds: tuple[int, ...] | None = None

    @property
    def takes_largest(self) -> bool:
        """Whether each token is the one of the largest logit, and nothing else of the logits is asked for."""
        sampling = self.sampling
        return sampling.temperature == 0 and sampling.repetition_penalty == 1 and self.logprobs is None

    def seeded(self) -> Self:
        """With a seed, drawn where the caller left it open. The rows derive theirs from it."""
        if self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=draw_seed()))


def make_request(
    tokenizer: Tokenizer, context_length: int, prompts: str | Sequence[str], options: GenerationOptions
) -> Request:
    """Check everything that can be checked before the model runs.

    Raises:
        UsageError: an option has a value that it cannot have, or there is no prompt.
        PromptError: a prompt is not text that can be tokenized.
        ContextOverflowError: a prompt and ``max_new_tokens`` do not fit the context.
    """
    unknown = set(options) - set(GenerationOptions.__annotations__)
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    sampling, seeds = _sampling(options)
    max_new_tokens = options.get("max_new_tokens", 128)
    logprobs = options.get("logprobs")
    check_integer("max_new_tokens", max_new_tokens, minimum=1)
    if logprobs is not None:
        check_integer("logprobs", logprobs, minimum=0)
    stop = options.get("stop", ())
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    StopStrings(stop)  # raises UsageError
    speculation = checked_speculation(options.get("speculation", "auto"))
    parse_special = options.get("parse_special", False)
    encoded = tuple(tokenizer.encode(prompt, parse_special=parse_special) for prompt in _as_list(prompts))
    for index, ids in enumerate(encoded):
        _check_fit(index, len(ids), int(max_new_tokens), context_length)
    if seeds is not None and len(seeds) != len(encoded):
        raise UsageError(
            "seed has a value that it cannot have",
            found=f"{len(seeds)} seeds for {len(encoded)} prompts",
            expected="one seed for all, or one for each",
        )
    return Request(
        prompt_ids=encoded,
        max_new_tokens=int(max_new_tokens),
        sampling=sampling,
        stop=stop,
        logprobs=None if logprobs is None else int(logprobs),
        ignore_eos=options.get("ignore_eos", False),
        speculation=speculation,
        seeds=seeds,
    )


def checked_speculation(choice: object) -> SpeculationChoice:
    """``choice``; raises UsageError unless it is one."""
    names: tuple[SpeculationChoice, ...] = get_args(SpeculationChoice)
    for name in names:
        if choice == name:
            return name
    raise UsageError(
        "speculation has a value that it cannot have", found=repr(choice), expected=f"one of {', '.join(names)}"
    )


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def _sampling(options: GenerationOptions) -> tuple[SamplingOptions, tuple[int, ...] | None]:
    """With the seeds of the prompts, where there are several; what drafts for a single prompt takes its own."""
    named = {name: options[name] for name in _SAMPLING if name in options}  # type: ignore[literal-required]
    seed = options.get("seed")
    if not isinstance(seed, Sequence):
        return SamplingOptions(**named, seed=seed), None
    for one in seed:
        SamplingOptions(seed=one)  # raises UsageError
        if one is None:
            raise UsageError("seed has a value that it cannot have", found="None among several", expected="integers")
    sampling = SamplingOptions(**named, seed=seed[0] if len(seed) else None)
    return sampling, tuple(int(one) for one in seed)


def _as_list(prompts: object) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise PromptError("The prompt is no text", found=f"a {type(prompts).__name__}", expected="a str or several")
    if not prompts:
        raise UsageError("There is no prompt", found="an empty sequence", expected="at least one str")
    return list(prompts)


def _check_fit(index: int, prompt_tokens: int, max_new_tokens: int, context: int) -> None:
    room = context - prompt_tokens
    if max_new_tokens <= room:
        return
    if room < 1:
        raise ContextOverflowError(
            f"Prompt {index} leaves no room in the context",
            found=f"{prompt_tokens} prompt tokens",
            expected=f"at most {context - 1} of a context of {context}",
            remedy="shorten the prompt, or export with a larger context",
        )
    raise ContextOverflowError(
        f"Prompt {index} and the new tokens do not fit the context",
        found=f"{prompt_tokens} prompt tokens and max_new_tokens={max_new_tokens}",
        expected=f"a sum of at most {context}",
        remedy=f"max_new_tokens={room} would fit, or shorten the prompt",
    )


def check_integer(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise UsageError(
            f"{name} has a value that it cannot have", found=repr(value), expected=f"an integer >= {minimum}"
        )
