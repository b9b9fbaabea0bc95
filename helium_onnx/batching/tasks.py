"""What a job does with its texts: the options of each task, and what the model's answers look like as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from helium_onnx.batching.rows import Row
from helium_onnx.batching.windows import Limits
from helium_onnx.errors import ContextOverflowError, UsageError
from helium_onnx.runtimes.providers import AUTO, CPU, bundle_provider

if TYPE_CHECKING:
    from helium_onnx.bundle import Bundle
    from helium_onnx.tokenizer import Tokenizer


@dataclass(frozen=True)
class TaskRow:
    """``defaults``: the task's options. ``keys``: what an output row gets. ``limits``: how much runs together."""

    defaults: Mapping[str, Any]
    keys: frozenset[str]
    limits: Limits


_ENCODING = Limits(window_rows=512, window_bytes=2 << 20, batch_rows=512, batch_tokens=CPU.batch_tokens)
TASKS: Mapping[str, TaskRow] = {
    "text-generation": TaskRow(
        {
            "max_new_tokens": 128,
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": None,
            "stop": (),
            "parse_special": False,
            "ignore_eos": False,
        },
        frozenset({"generated_text", "finish_reason", "prompt_tokens", "new_tokens"}),
        # Rows decode together until the last has ended: more than 16 at a time are no faster on a CPU.
        Limits(window_rows=64, window_bytes=1 << 20, batch_rows=16, batch_tokens=16384),
    ),
    "feature-extraction": TaskRow(
        {"pooling": "mean", "normalize": True, "truncate": False}, frozenset({"embedding"}), _ENCODING
    ),
    "text-classification": TaskRow({"top_k": 1, "truncate": False}, frozenset({"labels"}), _ENCODING),
    "token-classification": TaskRow({"aggregation": "simple", "truncate": False}, frozenset({"entities"}), _ENCODING),
}


def resolve_options(task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of ``task`` as JSON knows them, checked; None is an option that was not given.

    Raises:
        UsageError: one is of another task, or has a value that it cannot have.
    """
    defaults = TASKS[task].defaults
    named = {name: value for name, value in given.items() if value is not None}
    if foreign := sorted(named.keys() - defaults.keys()):
        raise UsageError(
            f"{foreign[0]} is no option of {task}", expected=", ".join(sorted(defaults)), remedy="leave it out"
        )
    options = {**defaults, **named}
    if task == "text-generation":
        _check_generation(options)
        stop = options["stop"]
        options["stop"] = [stop] if isinstance(stop, str) else list(stop)
    elif task == "feature-extraction":
        from helium_onnx.encoding.embedding import POOLINGS

        _check_choice("pooling", options["pooling"], POOLINGS)
    elif task == "token-classification":
        from helium_onnx.encoding.tagging import AGGREGATIONS

        _check_choice("aggregation", options["aggregation"], AGGREGATIONS)
    elif type(options["top_k"]) is not int or options["top_k"] < 1:
        raise UsageError("top_k has a value that it cannot have", found=repr(options["top_k"]), expected="from 1")
    return options


def limits_of(bundle: Bundle, options: Mapping[str, Any], batch_tokens: int | None) -> Limits:
    """How much runs together in a job of these options; ``batch_tokens`` is the caller's, or None.

    Raises:
        UsageError: ``batch_tokens`` is below 1.
    """
    limits = TASKS[bundle.task].limits
    if bundle.task == "text-classification" and bundle.model_config.get("pad_token_id") is None:
        limits = dataclasses.replace(limits, batch_rows=1)  # nothing would tell where a row ends
    if options.get("pooling") == "none":  # a vector for each token: a hundred times the text
        limits = dataclasses.replace(limits, window_rows=32, window_bytes=64 << 10)
    if batch_tokens is None and bundle.task != "text-generation":
        batch_tokens = bundle_provider(bundle, AUTO).batch_tokens
    if batch_tokens is None:
        return limits
    if batch_tokens < 1:
        raise UsageError("batch_tokens has a value that it cannot have", found=batch_tokens, expected="from 1")
    return dataclasses.replace(limits, batch_tokens=batch_tokens)


class TokenCounter:
    """Counts the tokens that a row takes up in the model, new ones included, and refuses what does not fit."""

    def __init__(self, bundle: Bundle, options: Mapping[str, Any], context_length: int | None) -> None:
        from helium_onnx.loading import load_tokenizer
        from helium_onnx.runtimes.static_session import window_of

        longest = int(bundle.model_config["max_position_embeddings"])
        if (window := window_of(bundle)) is not None:
            longest = window.context
        self._tokenizer: Tokenizer = load_tokenizer(bundle)
        self.context = longest if context_length is None else min(longest, context_length)
        self._new = int(options.get("max_new_tokens", 0))
        self._truncates: bool | None = options.get("truncate")  # None: a task that cannot
        self._parse_special = bool(options.get("parse_special", False))

    def __call__(self, text: str) -> int:
        """Tokens of ``text`` that the model gets, and those that may be generated.

        Raises:
            PromptError: no token comes of it.
            ContextOverflowError: they do not fit the context.
        """
        tokens = len(self._tokenizer.encode(text, parse_special=self._parse_special)) + self._new
        if tokens > self.context and self._truncates:
            return self.context
        if tokens > self.context:
            with_new = f" with {self._new} new ones" if self._new else ""
            remedy = "cut it, or ask for fewer new tokens" if self._truncates is None else "cut it, or give --truncate"
            raise ContextOverflowError(
                "the text does not fit the context",
                found=f"{tokens} tokens{with_new}",
                expected=f"at most {self.context}",
                remedy=remedy,
            )
        return tokens

    def surely_fits(self, text: str) -> bool:
        """Without tokenizing: no token is less than a byte of the text, but for <s> and a space before it."""
        return bool(text) and (self._truncates is True or len(text.encode()) + 2 + self._new <= self.context)


class Runner(Protocol):
    """A loaded model that answers batches."""

    def run(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What each row's output row gets. The rows fit the context."""
        ...

    def close(self) -> None: ...


def open_runner(path: Path, task: str, options: Mapping[str, Any], load_options: Mapping[str, Any]) -> Runner:
    """Load the bundle at ``path`` for ``task``; raises what ``helium_onnx.load`` raises."""
    import helium_onnx

    model = helium_onnx.load(path, **load_options)
    return _ANSWERS[task](model, options)


class _Generation:
    """Each row has a seed of its own, which follows from the job's and the row's number alone."""

    def __init__(self, model: Any, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)
        self._seed = self._options.pop("seed")

    def run(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        from helium_onnx.generation.sampling import row_seed

        seeds = None if self._seed is None else [row_seed(self._seed, row.number) for row in rows]
        result = self._model.generate([row.text for row in rows], seed=seeds, **self._options)
        if any(one.finish_reason == "interrupted" for one in result):
            raise KeyboardInterrupt  # half a text is no row
        return [
            {
                "generated_text": one.text,
                "finish_reason": one.finish_reason,
                "prompt_tokens": one.prompt_tokens,
                "new_tokens": len(one.token_ids),
            }
            for one in result
        ]

    def close(self) -> None:
        self._model.close()


class _Encoding:
    """The three tasks of one pass: a method of the model, and what its answers become."""

    def __init__(self, model: Any, method: Callable[..., Sequence[Any]], key: str, options: Mapping[str, Any]) -> None:
        self._model, self._method, self._key, self._options = model, method, key, options

    def run(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        # The rows are a batch: nothing is to divide them once more.
        answers = self._method([row.text for row in rows], batch_tokens=_ANY, **self._options)
        return [{self._key: _plain(answer)} for answer in answers]

    def close(self) -> None:
        self._model.close()


_ANY = 1 << 62
_ANSWERS: Mapping[str, Callable[[Any, Mapping[str, Any]], Runner]] = {
    "text-generation": _Generation,
    "feature-extraction": lambda model, given: _Encoding(model, model.embed, "embedding", given),
    "text-classification": lambda model, given: _Encoding(model, model.classify, "labels", given),
    "token-classification": lambda model, given: _Encoding(model, model.tag, "entities", given),
}


def _plain(answer: Any) -> Any:
    """Arrays as lists, records as objects. A float32 gets as few digits as tell it from its neighbours."""
    if hasattr(answer, "dtype"):
        if answer.ndim:
            return [_plain(item) for item in answer]
        return float(str(answer.item() if answer.dtype == "float64" else answer))
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: _plain(getattr(answer, field.name)) for field in dataclasses.fields(answer)}
    if isinstance(answer, list | tuple):
        return [_plain(item) for item in answer]
    return answer


def _check_generation(options: Mapping[str, Any]) -> None:
    from helium_onnx.generation.request import check_integer
    from helium_onnx.generation.sampling import SamplingOptions
    from helium_onnx.generation.stopping import StopStrings

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    SamplingOptions(**{name: options[name] for name in names})
    stop = options["stop"]
    StopStrings((stop,) if isinstance(stop, str) else tuple(stop))
    check_integer("max_new_tokens", options["max_new_tokens"], minimum=1)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(
            f"{name} has a value that it cannot have", found=repr(value), expected=f"one of {', '.join(choices)}"
        )
