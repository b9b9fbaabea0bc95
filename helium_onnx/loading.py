"""From a bundle to a model that generates: tokenizer and session, put together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import BundleError
from helium_onnx.generation.model import LanguageModel
from helium_onnx.progress import ProgressCallback
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.tokenizer import Tokenizer


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
    cache: bool | None,
    cache_dir: Path | None,
    progress: ProgressCallback,
) -> LanguageModel:
    """See :func:`helium_onnx.load`."""
    if bundle.task != "text-generation":
        raise BundleError(f"{bundle.path} does not generate text", found=bundle.task, expected="text-generation")
    with ThreadPoolExecutor(1, thread_name_prefix="helium-onnx-tokenizer") as beside:
        tokenizer = beside.submit(load_tokenizer, bundle)
        session = OnnxRuntimeSession(
            bundle,
            provider=provider,
            context_length=context_length,
            threads=threads,
            cache=cache,
            cache_dir=cache_dir,
            progress=progress,
        )
        try:
            return LanguageModel(session, tokenizer.result())
        except BaseException:
            session.close()
            raise
