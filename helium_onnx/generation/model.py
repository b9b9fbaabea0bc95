"""``LanguageModel``: prompts in, text out, over any session and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from helium_onnx.errors import AdapterError, PromptError, TokenizerError, UsageError
from helium_onnx.generation.draft_length import DraftLength
from helium_onnx.generation.draft_model import MODEL_PRIORS, DraftModel, DraftTimes, check_same_tokenizer
from helium_onnx.generation.loop import Loop
from helium_onnx.generation.prefix_cache import PrefixCache
from helium_onnx.generation.prompt_lookup import MATCH_PRIORS, PromptLookup
from helium_onnx.generation.request import GenerationOptions, Request, make_request
from helium_onnx.generation.result import GenerationResult
from helium_onnx.generation.speculation import Speculation
from helium_onnx.generation.text_iterator import TextIterator
from helium_onnx.runtimes.session import AdaptableSession, Session
from helium_onnx.tokenizer import Tokenizer

if TYPE_CHECKING:
    from helium_onnx.adapters.bundle_adapters import BundleAdapters, LoadedAdapter


class LanguageModel:
    """A session and its tokenizer. Serves one request at a time, and is not safe to share between threads."""

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        *,
        draft: LanguageModel | None = None,
        prefix_cache: int = 0,
        identity: str | None = None,
        adapters: BundleAdapters | None = None,
    ) -> None:
        """See :func:`helium_onnx.load`. The draft model is closed with this one.

        ``prefix_cache`` is in bytes. ``identity`` tells the session's keys and values from those of other models in
        saved sessions: for a bundle, its digest. Without one, sessions cannot be saved. ``adapters`` are what requests
        may choose from, where the session is an ``AdaptableSession``.

        Raises:
            TokenizerError: session and tokenizer have vocabularies of different sizes, or the draft model has another
                tokenizer.
            UsageError: ``prefix_cache`` is negative.
        """
        self.session: Session = session
        self.tokenizer: Tokenizer = tokenizer
        if session.vocab_size != tokenizer.vocab_size:
            raise TokenizerError(
                "The tokenizer does not fit the model",
                found=f"{tokenizer.vocab_size} ids",
                expected=f"{session.vocab_size}, the model's vocab_size",
                remedy="take the tokenizer.json of the same bundle",
            )
        if draft is not None:
            check_same_tokenizer(tokenizer, draft.tokenizer)
        if prefix_cache < 0:
            raise UsageError("prefix_cache is out of range", found=prefix_cache, expected="bytes; 0 for none")
        self._draft = draft
        self._identity = identity
        self._adapters = adapters
        # Where nothing could ever be taken from it, nothing is copied into it.
        reusable = prefix_cache > 0 and session.exact_split > 0
        self._prefix_cache = PrefixCache(session.exact_split, prefix_cache) if reusable else None
        # What steps take is learned once, not in each request.
        self._lookup_lengths = DraftLength(MATCH_PRIORS, makes_trials=False)
        self._model_lengths, self._draft_times = DraftLength(MODEL_PRIORS), DraftTimes()
        self._latest: object = None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the LoRA adapters in the bundle, which ``generate`` and ``stream`` take."""
        return () if self._adapters is None else self._adapters.names

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        on_text: Callable[[int, str], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResult:
        """Continue one prompt or several at once; the tokens of a prompt do not depend on its neighbours.

        ``on_text(i, piece)`` is called with each piece of prompt ``i``'s text as it becomes certain; the pieces add up
        to its text. Ctrl-C after the first prefill ends the request early, and the result holds what there is.

        ``adapter`` is a LoRA adapter for all prompts of this request: the name of one in the bundle, the path of an
        ``.onnx_adapter`` file, or that of a folder of peft's. The bundle has been exported with
        ``adapter_mode="runtime"``.

        Raises:
            UsageError: an option has a value that it cannot have, there is no prompt, or no such adapter.
            AdapterError: the bundle takes no adapters, or the adapter cannot be read, or is another model's.
            PromptError: a prompt is not text that can be tokenized.
            ContextOverflowError: a prompt and ``max_new_tokens`` do not fit the context.
            GenerationError: the model gave logits that are not numbers.
        """
        request, chosen = self._request(prompts, options), self._adapter(adapter)
        loop, events = self._begin(request, chosen, streams=on_text is not None)
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

    def stream(
        self, prompt: str, *, adapter: str | os.PathLike[str] | None = None, **options: Unpack[GenerationOptions]
    ) -> TextIterator:
        """Continue one prompt, piece by piece. Options are checked here, before the first piece is asked for.

        Raises:
            As ``generate``.
        """
        if not isinstance(prompt, str):
            raise PromptError("The prompt is no text", found=f"a {type(prompt).__name__}", expected="one str")
        request, chosen = self._request(prompt, options), self._adapter(adapter)
        return TextIterator(*self._begin(request, chosen))

    def save_session(self, path: str | os.PathLike[str], *, adapter: str | os.PathLike[str] | None = None) -> None:
        """Write the prefix cache to a file: the token ids of earlier texts, and their keys and values.

        Of one adapter, or of none: keys and values of the others are no part of the file. A file that is there is
        replaced, in one step: whatever interrupts it, the old one or the new one is whole.

        Raises:
            UsageError: the model has no prefix cache.
            SavedSessionError: the file cannot be written.
        """
        from helium_onnx.generation import saved_session

        cache, identity = self._saveable(self._adapter(adapter))
        saved_session.save(Path(path), cache, identity)

    def load_session(self, path: str | os.PathLike[str], *, adapter: str | os.PathLike[str] | None = None) -> None:
        """Take what ``save_session`` wrote into the prefix cache. Ends a stream that is in progress.

        ``adapter`` is the one that it was saved with. What does not fit the cache's bytes is left out, the least
        recently used first. After an error the cache is what it was.

        Raises:
            UsageError: the model has no prefix cache.
            SavedSessionError: the file is missing, damaged, of another format version, or of another bundle or adapter.
        """
        from helium_onnx.generation import saved_session

        chosen = self._adapter(adapter)
        self._latest = object()  # the past that is asked for here takes the place of a running request's
        cache, identity = self._saveable(chosen)
        saved_session.load(Path(path), cache, identity, self.session.new_past(1))

    def close(self) -> None:
        """Close the session, if it is one that can be closed, and the draft model."""
        close = getattr(self.session, "close", None)
        if close is not None:
            close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, prompts: str | Sequence[str], options: GenerationOptions) -> Request:
        return make_request(self.tokenizer, self.session.context_length, prompts, options)

    def _adapter(self, adapter: str | os.PathLike[str] | None) -> LoadedAdapter | None:
        """What ``adapter`` names; no file is read twice."""
        if adapter is None:
            return None
        if self._adapters is None or not isinstance(self.session, AdaptableSession):
            raise AdapterError(
                "this model takes no adapters",
                found=os.fspath(adapter),
                expected="a bundle that was exported with --adapter-mode runtime",
                remedy="export it so; or merge the adapter into a bundle: helium-onnx export --adapter",
            )
        return self._adapters.get(adapter)

    def _switch(self, adapter: LoadedAdapter | None) -> None:
        """Let session and prefix cache go on with ``adapter``, or with none."""
        if isinstance(self.session, AdaptableSession):
            self.session.use_adapter({} if adapter is None else adapter.matrices)
        if self._prefix_cache is not None:
            self._prefix_cache.switch("" if adapter is None else adapter.identity)

    def _begin(
        self, request: Request, adapter: LoadedAdapter | None, *, streams: bool = True
    ) -> tuple[Loop, Iterator[tuple[int, str]]]:
        token = self._latest = object()
        self._switch(adapter)
        request = request.seeded()
        loop = Loop(
            self.session,
            self.tokenizer,
            request,
            is_current=lambda: self._latest is token,
            prefix_cache=self._prefix_cache,
            speculation=self._speculation(request),
            streams=streams,
        )
        return loop, loop.events()

    def _speculation(self, request: Request) -> Speculation | None:
        """As the request's ``speculation`` says; None for several prompts, since verification takes one row."""
        if len(request.prompt_ids) > 1 or request.speculation == "off":
            return None
        if request.speculation == "auto" and self._draft is not None:
            drafter = DraftModel(self._draft.session, request.sampling, self._draft_times)
            return Speculation(drafter, self._model_lengths)
        if request.speculation == "auto" and self.session.exact_split != 1:
            return None
        # Another text repeats itself otherwise; a draft model's quality is much the same.
        self._lookup_lengths.begin_text()
        return Speculation(PromptLookup(), self._lookup_lengths)

    def _saveable(self, adapter: LoadedAdapter | None) -> tuple[PrefixCache, str]:
        """The prefix cache, switched to ``adapter``, and what tells its keys and values from others'."""
        if self._prefix_cache is not None and self._identity is not None:
            self._switch(adapter)
            return self._prefix_cache, self._identity + ("" if adapter is None else f"+{adapter.identity}")
        found, remedy = "no prefix cache", "load the bundle with prefix_cache (--prefix-cache) above 0"
        if self.session.exact_split == 0:
            found, remedy = "kernels whose keys and values cannot be reused exactly", "choose another provider"
        elif self._identity is None:
            found, remedy = "a model that no bundle identifies", "give LanguageModel an identity"
        raise UsageError("this model has no session to save or to continue", found=found, remedy=remedy)
