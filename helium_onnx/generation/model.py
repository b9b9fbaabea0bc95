"""``LanguageModel``: prompts in, text out, over any session and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from types import TracebackType
from typing import Self, TypedDict, Unpack

from helium_onnx.errors import ContextOverflowError, GenerationError, PromptError, TokenizerError, UsageError
from helium_onnx.generation.loop import Loop, Request
from helium_onnx.generation.result import GenerationResult
from helium_onnx.generation.sampling import SamplingOptions
from helium_onnx.generation.stopping import StopStrings
from helium_onnx.runtimes.session import Session
from helium_onnx.tokenizer import Tokenizer


class GenerationOptions(TypedDict, total=False):
    """The keywords of ``generate`` and ``stream``; ``SamplingOptions`` says more of the first six.

    temperature, top_k, top_p, min_p, repetition_penalty, seed: how a token is chosen; by default greedily.
    max_new_tokens: tokens to generate at most; 128.
    stop: one stop string or several; none. They are no part of the text.
    logprobs: report the log-probability of each token and of this many alternatives; None.
    parse_special: let ``</s>`` and the like in the prompt be control tokens; False, since a prompt is a user's.
    ignore_eos: go on after the eos token; False.
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    parse_special: bool
    ignore_eos: bool


class LanguageModel:
    """A session and its tokenizer. Serves one request at a time, and is not safe to share between threads.

    Raises:
        TokenizerError: the two have vocabularies of different sizes.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        if session.vocab_size != tokenizer.vocab_size:
            raise TokenizerError(
                "The tokenizer does not fit the model",
                found=f"{tokenizer.vocab_size} ids",
                expected=f"{session.vocab_size}, the model's vocab_size",
                remedy="take the tokenizer.json of the same bundle",
            )
        self.session = session
        self.tokenizer = tokenizer
        self._latest: object = None

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        on_text: Callable[[int, str], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResult:
        """Continue one prompt or several at once; the tokens of a prompt do not depend on its neighbours.

        ``on_text(i, piece)`` is called with each piece of prompt ``i``'s text as it becomes certain; the pieces add up
        to its text. Ctrl-C after the first prefill ends the request early, and the result holds what there is.

        Raises:
            UsageError: an option has a value that it cannot have, or there is no prompt.
            PromptError: a prompt is not text that can be tokenized.
            ContextOverflowError: a prompt and ``max_new_tokens`` do not fit the context.
            GenerationError: the model gave logits that are not numbers.
        """
        loop, events = self._begin(self._request(prompts, options))
        show = on_text or (lambda _index, _text: None)
        try:
            for index, text in events:
                show(index, text)
        except KeyboardInterrupt:
            if not loop.prefilled:
                raise
            for index, text in loop.interrupt():
                show(index, text)
        return loop.result()

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> TextIterator:
        """Continue one prompt, piece by piece. Options are checked here, before the first piece is asked for.

        Raises:
            As ``generate``.
        """
        if not isinstance(prompt, str):
            raise PromptError("The prompt is no text", found=f"a {type(prompt).__name__}", expected="one str")
        return TextIterator(*self._begin(self._request(prompt, options)))

    def close(self) -> None:
        """Close the session, if it is one that can be closed."""
        close = getattr(self.session, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, request: Request) -> tuple[Loop, Iterator[tuple[int, str]]]:
        token = self._latest = object()
        loop = Loop(self.session, self.tokenizer, request, is_current=lambda: self._latest is token)
        return loop, loop.events()

    def _request(self, prompts: str | Sequence[str], options: GenerationOptions) -> Request:
        """Check everything that can be checked before the model runs."""
        unknown = set(options) - set(GenerationOptions.__annotations__)
        if unknown:
            raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
        sampling = SamplingOptions(**{name: options[name] for name in _SAMPLING if name in options})  # type: ignore[literal-required]
        max_new_tokens = options.get("max_new_tokens", 128)
        logprobs = options.get("logprobs")
        _check_integer("max_new_tokens", max_new_tokens, minimum=1)
        if logprobs is not None:
            _check_integer("logprobs", logprobs, minimum=0)
        stop = options.get("stop", ())
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        StopStrings(stop)  # raises UsageError
        encoded = tuple(
            self.tokenizer.encode(prompt, parse_special=options.get("parse_special", False))
            for prompt in _as_list(prompts)
        )
        for index, ids in enumerate(encoded):
            self._check_fit(index, len(ids), int(max_new_tokens))
        return Request(
            prompt_ids=encoded,
            max_new_tokens=int(max_new_tokens),
            sampling=sampling,
            stop=stop,
            logprobs=None if logprobs is None else int(logprobs),
            ignore_eos=options.get("ignore_eos", False),
        )

    def _check_fit(self, index: int, prompt_tokens: int, max_new_tokens: int) -> None:
        context = self.session.context_length
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


class TextIterator:
    """The pieces of one text. ``result`` is there after the last, or after ``close()``.

    Ctrl-C in the middle of a step is raised as usual; ``result`` then holds what there is, as ``interrupted``.
    """

    def __init__(self, loop: Loop, events: Iterator[tuple[int, str]]) -> None:
        self._loop = loop
        self._events = events
        self._result: GenerationResult | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._result is not None:
            raise StopIteration
        try:
            return next(self._events)[1]
        except StopIteration:
            self._result = self._loop.result()
            raise
        except KeyboardInterrupt:
            self.close()
            raise

    def close(self) -> None:
        """End the text here, unless it has ended."""
        if self._result is None:
            self._loop.interrupt()
            self._result = self._loop.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def result(self) -> GenerationResult:
        """The whole result.

        Raises:
            GenerationError: the text has not ended yet.
        """
        if self._result is None:
            raise GenerationError(
                "The result is not there yet", found="a stream in progress", remedy="read it to its end, or close() it"
            )
        return self._result


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def _as_list(prompts: object) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise PromptError("The prompt is no text", found=f"a {type(prompts).__name__}", expected="a str or several")
    if not prompts:
        raise UsageError("There is no prompt", found="an empty sequence", expected="at least one str")
    return list(prompts)


def _check_integer(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise UsageError(
            f"{name} has a value that it cannot have", found=repr(value), expected=f"an integer >= {minimum}"
        )
