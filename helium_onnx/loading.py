"""From a bundle to a model of its task: tokenizer and session, put together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from helium_onnx.adapters.bundle_adapters import BundleAdapters
from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.encoding.classification import TextClassifier
from helium_onnx.encoding.embedding import EmbeddingModel
from helium_onnx.encoding.tagging import TokenClassifier
from helium_onnx.encoding.text_model import TextModel
from helium_onnx.errors import BundleError, IntegrityError
from helium_onnx.generation.draft_model import check_same_tokenizer
from helium_onnx.generation.model import LanguageModel
from helium_onnx.progress import ProgressCallback
from helium_onnx.runtimes.opening import KernelChoice, open_session
from helium_onnx.runtimes.whole_text_session import WholeTextSession
from helium_onnx.tasks import ROWS
from helium_onnx.tokenizer import Tokenizer

TEXT_MODELS: tuple[type[TextModel], ...] = (EmbeddingModel, TextClassifier, TokenClassifier)


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer, checked against the model's vocabulary (an id outside it would embed as zeros)."""
    config = HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")
    return Tokenizer.from_folder(
        bundle.path,
        vocab_size=config.vocab_size,
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
    )


def load_model(
    bundle: Bundle,
    *,
    provider: str,
    context_length: int | None,
    threads: int | None,
    kernels: KernelChoice = "auto",
    spin: bool = True,
    cache: bool | None,
    cache_dir: Path | None,
    prefix_cache: int = 0,
    draft: Bundle | None = None,
    progress: ProgressCallback,
) -> LanguageModel:
    """See :func:`helium_onnx.load`."""
    for one in (bundle, draft):
        if one is not None and one.task != "text-generation":
            raise BundleError(f"{one.path} does not generate text", found=one.task, expected="text-generation")
    if draft is not None and _tokenizer_digest(draft) != _tokenizer_digest(bundle):
        check_same_tokenizer(load_tokenizer(bundle), load_tokenizer(draft))  # now, not after a load of minutes
    with ExitStack() as opened, ThreadPoolExecutor(1, thread_name_prefix="helium-onnx-tokenizer") as beside:
        tokenizer = beside.submit(load_tokenizer, bundle)
        session = open_session(
            bundle,
            provider=provider,
            context_length=context_length,
            threads=threads,
            choice=kernels,
            spin=spin,
            cache=cache,
            cache_dir=cache_dir,
            progress=progress,
        )
        opened.callback(session.close)
        drafting = None
        if draft is not None:
            longest = int(draft.model_config["max_position_embeddings"])
            drafting = load_model(
                draft,
                provider=provider,
                context_length=None if context_length is None else min(context_length, longest),
                threads=threads,
                kernels="auto" if kernels == "native" else kernels,  # a float32 draft has none
                spin=spin,
                cache=cache,
                cache_dir=cache_dir,
                progress=progress,
            )
            opened.callback(drafting.close)
        model = LanguageModel(
            session,
            tokenizer.result(),
            draft=drafting,
            prefix_cache=prefix_cache,
            identity=bundle.digest,
            adapters=BundleAdapters(bundle) if bundle.manifest.adapters else None,
        )
        opened.pop_all()
        return model


def load_text_model(
    bundle: Bundle,
    *,
    provider: str,
    context_length: int | None,
    threads: int | None,
    kernels: KernelChoice,
    spin: bool,
    cache_dir: Path | None,
    progress: ProgressCallback,
) -> TextModel:
    """See :func:`helium_onnx.load`: for a bundle of a task without generation.

    Raises IntegrityError where the class that its config names is of another task.
    """
    config = HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")
    if config.task != bundle.task:
        raise IntegrityError(
            f"{bundle.path} is not what its manifest says",
            found=f"the task {bundle.task}, and the class {', '.join(config.architectures) or 'not said'}",
            expected=f"{ROWS[bundle.task].architecture(config.model_type)}",
            remedy="copy or download the bundle again, or export it anew",
        )
    with ExitStack() as opened, ThreadPoolExecutor(1, thread_name_prefix="helium-onnx-tokenizer") as beside:
        tokenizer = beside.submit(load_tokenizer, bundle)
        session = WholeTextSession(
            bundle,
            provider=provider,
            context_length=context_length,
            threads=threads,
            choice=kernels,
            spin=spin,
            cache_dir=cache_dir,
            progress=progress,
        )
        opened.callback(session.close)
        model = next(model for model in TEXT_MODELS if model.task == bundle.task)(session, tokenizer.result(), config)
        opened.pop_all()
        return model


def _tokenizer_digest(bundle: Bundle) -> str | None:
    return next((file.sha256 for file in bundle.manifest.files if file.path == "tokenizer.json"), None)
