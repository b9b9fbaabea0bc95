"""``HeliumOnnxLM``: a bundle as a model of lm-evaluation-harness. Its answers are those of the harness's ``hf`` model.

Where the two could differ, this follows ``hf`` (lm_eval 0.4.13, lm_eval/models/huggingface.py), since a benchmark's
published figures were made in its way: the tokenizer's names of control tokens count in a text, ``<s>`` stands before
each text, over-long inputs lose their first tokens, and a generated text loses its first space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import Collator, handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import PromptError, UsageError
from helium_onnx.evaluation.harness_prefix import PrefixSession
from helium_onnx.evaluation.harness_scoring import scores
from helium_onnx.generation.loop import Loop
from helium_onnx.generation.request import Request
from helium_onnx.generation.sampling import SamplingOptions

#: The harness shows what is logged under its own name.
_log = logging.getLogger("lm_eval.helium_onnx")

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
#: Arguments of other models that ask for nothing when they have this value.
_NEUTRAL = {"num_beams": 1}


class HeliumOnnxLM(TemplateLM):  # type: ignore[misc]
    """The harness's ``--model helium-onnx``; the keywords are its ``--model_args``.

    Args:
        path: a bundle.
        provider, threads, cache, cache_dir: as in ``helium_onnx.load``.
        max_length: tokens that the model reads at once (default: the model's context).
        max_gen_toks: new tokens where a task does not say.
        batch_size: prompts that generate together. Log-probabilities are computed one by one, whatever it is.
        prefix_cache: compute the tokens that neighbouring requests share only once; with a batch_size above 1, in
            log-probabilities alone.
        add_bos_token: put ``<s>`` before each text; None does what the tokenizer does, which for Helium is the same.
        seed: of sampling tasks; each batch adds one.
        device, max_batch_size: given by the harness to every model ("cuda:0" by default), and ignored: ``provider``
            says where a bundle runs.

    Raises:
        UsageError: an argument is unknown or has a value that it cannot have.
        Those of ``helium_onnx.load``.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        provider: str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = 1,
        threads: int | None = None,
        cache: bool | None = None,
        cache_dir: str | None = None,
        prefix_cache: bool = True,
        add_bos_token: bool | None = None,
        seed: int = 0,
        device: object = None,  # noqa: ARG002
        max_batch_size: object = None,  # noqa: ARG002
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown or path is None:
            raise UsageError(
                "The model arguments are not those of helium-onnx",
                found=", ".join(f"{name}={value}" for name, value in unknown.items()) or "no path",
                expected=f"path=BUNDLE and any of {', '.join(_ARGUMENTS)}",
            )
        self.batch_size = _at_least(1, "batch_size", batch_size)
        self.max_gen_toks = _at_least(1, "max_gen_toks", max_gen_toks)
        path = str(path)  # the harness reads a name such as 2 as a number
        self._bundle = Bundle.open(Path(path))
        self._model = helium_onnx.load(
            path,
            provider=provider,
            context_length=None if max_length is None else _at_least(1, "max_length", max_length),
            threads=None if threads is None else _at_least(1, "threads", threads),
            cache=cache,
            cache_dir=cache_dir,
        )
        self._tokenizer = self._model.tokenizer
        self._add_bos_token = True if add_bos_token is None else bool(add_bos_token)
        self._seed = _at_least(0, "seed", seed)
        self._session = PrefixSession(self._model.session, enabled=prefix_cache)

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self._model.session.context_length

    @property
    def eot_token_id(self) -> int:
        """The first of the config's eos ids."""
        return self._tokenizer.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: ``<s>``, or eos where there is none."""
        bos = self._tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's cache of requests."""
        return f"helium-onnx__{self._bundle.digest}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids of ``string``, after ``<s>`` unless ``add_special_tokens`` is False or the text begins with it."""
        if add_special_tokens is None:
            bos = self._tokenizer.id_to_text(self.prefix_token_id)
            add_special_tokens = self._add_bos_token and not string.startswith(bos)
        return self._tokenizer.encode(string, parse_special=True, add_bos=add_special_tokens)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: object,
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each ((context, continuation), context ids, continuation ids).

        Raises:
            PromptError: a continuation has no token of its own.
            Those of ``harness_scoring.scores``.
        """
        for texts, context_ids, continuation_ids in requests:
            if not context_ids or not continuation_ids:
                raise PromptError(
                    "A continuation has no token of its own",
                    found=f"{texts}" if texts else "an empty text",
                    expected="text that the tokenizer does not merge into the context's last token",
                )
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        scored = scores(self._session, [(context, continuation) for _, context, continuation in requests])
        for index, score in tqdm(scored, "Scoring continuations", len(requests), disable=disable_tqdm):
            answers[index] = (score.logprob, score.is_greedy)
            if (texts := requests[index][0]) is not None:  # None: windows of a longer text
                self.cache_hook.add_partial("loglikelihood", texts, answers[index])
        _log.info("loglikelihood, so far: %s", self._session.count)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows of ``max_length`` tokens that overlap by one, after ``<s>``.

        As in ``hf`` the text's own ``<s>`` is scored too, after a first one, unless ``add_bos_token=False``.
        """
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for owner, text in enumerate(texts):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text) if text or self._add_bos_token else [],
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(texts)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += logprob
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each prompt, up to a stop string of its task, ``batch_size`` prompts at a time.

        Raises:
            UsageError: a task asks for a way of generating that there is not. All tasks are looked at first.
        """
        # In the order of their texts, in which neighbours share the longest prefixes.
        collator = Collator(
            [request.args for request in requests],
            sort_fn=lambda args: args[0],
            group_by="gen_kwargs",
            group_fn=lambda args: args[1],
        )
        batches = [(batch, self._options(batch[0][1])) for batch in collator.get_batched(n=self.batch_size)]
        texts: list[str] = []
        with tqdm(desc="Generating", total=len(requests), disable=disable_tqdm) as bar:
            for number, (batch, (stop, max_gen_toks, sampling)) in enumerate(batches):
                options = SamplingOptions(**sampling, seed=self._seed + number)
                for args, text in zip(batch, self._generate(batch, stop, max_gen_toks, options), strict=True):
                    self.cache_hook.add_partial("generate_until", args, text)
                    texts.append(text)
                bar.update(len(batch))
        _log.info("generate_until, so far: %s", self._session.count)
        answers: list[str] = collator.get_original(texts)
        return answers

    def _generate(
        self, batch: Sequence[tuple[str, object]], stop: list[str], max_gen_toks: int, sampling: SamplingOptions
    ) -> list[str]:
        room = self.max_length - max_gen_toks
        request = Request(
            prompt_ids=tuple(self.tok_encode(context)[-room:] for context, _ in batch),
            max_new_tokens=max_gen_toks,
            sampling=sampling,
            stop=tuple(stop),
            logprobs=None,
            ignore_eos=False,
        )
        loop = Loop(self._session, self._tokenizer, request, is_current=lambda: True)
        for _ in loop.events():
            pass
        until = handle_stop_sequences([*stop], eos=self._tokenizer.id_to_text(self.eot_token_id))
        return [
            postprocess_generated_text(self._tokenizer.decode(generation.token_ids), until, None)
            for generation in loop.result().generations
        ]

    def _options(self, gen_kwargs: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
        """(stop strings, new tokens at most, sampling) of a task's ``generation_kwargs``."""
        options = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until = handle_stop_sequences(options.pop("until"), eos=None)
        max_gen_toks = _at_least(1, "max_gen_toks", options.pop("max_gen_toks"))
        if max_gen_toks >= self.max_length:
            raise UsageError(
                "A task's new tokens leave no room for its prompts",
                found=f"max_gen_toks={max_gen_toks}",
                expected=f"less than {self.max_length}, the context",
                remedy="lower it with --gen_kwargs max_gen_toks=N",
            )
        sampled = options.pop("do_sample")
        sampling = {name: options.pop(name) for name in _SAMPLING if name in options}
        unknown = {name: value for name, value in options.items() if _NEUTRAL.get(name, value is None) != value}
        if unknown:
            raise UsageError(
                "A task asks for a way of generating that helium-onnx does not have",
                found=", ".join(f"{name}={value}" for name, value in unknown.items()),
                expected=f"until, max_gen_toks, do_sample and any of {', '.join(_SAMPLING)}",
            )
        if sampled and not sampling.get("temperature"):
            raise UsageError("do_sample=True needs a temperature", remedy="--gen_kwargs do_sample=True,temperature=0.7")
        SamplingOptions(**sampling)  # raises UsageError
        return [string for string in until if string], max_gen_toks, sampling

    def apply_chat_template(self, *_: object, **__: object) -> str:
        """Helium is a base model and has no chat template: raises UsageError."""
        raise UsageError(
            "Helium has no chat template: it is a base model", found="--apply_chat_template", remedy="leave it out"
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """None; raises UsageError where a template is asked for."""
        return self.apply_chat_template() if chat_template else None

    def get_model_info(self) -> dict[str, object]:
        """What the harness stores with its results: which bundle, and how many tokens the prefix cache saved."""
        return {
            "bundle_sha256": self._bundle.digest,
            "bundle_recipe": self._bundle.manifest.recipe["name"],
            "helium_onnx_version": helium_onnx.__version__,
            "tokens_requested": self._session.count.requested,
            "tokens_computed": self._session.count.computed,
        }


_ARGUMENTS = (
    "provider", "max_length", "max_gen_toks", "batch_size", "threads", "cache", "cache_dir", "prefix_cache",
    "add_bos_token", "seed",
)  # fmt: skip


def _at_least(least: int, name: str, value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise UsageError(f"{name} has a value that it cannot have", found=value, expected=f"an integer >= {least}")
    return number
