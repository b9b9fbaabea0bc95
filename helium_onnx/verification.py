"""Verify a bundle: from its manifest to one real forward pass through every graph.

The checks are a list, in the order in which each one relies on those before it; the first that fails ends it. Every
graph is loaded once, alone, and released before the next, so memory is that of one session.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helium_onnx import contract, kernels
from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Graph, NativeGraph
from helium_onnx.errors import BundleError, HeliumOnnxError, IntegrityError
from helium_onnx.loading import load_tokenizer
from helium_onnx.manifest import MANIFEST_FILE, Manifest
from helium_onnx.progress import ProgressCallback, ProgressEvent
from helium_onnx.runtimes.graph_loading import AGAIN
from helium_onnx.runtimes.native_session import NativeSession
from helium_onnx.runtimes.session import Phase
from helium_onnx.runtimes.static_session import StaticSession, window_of
from helium_onnx.tasks import ROWS
from helium_onnx.verification_runs import (
    check_finite,
    check_record,
    check_signature,
    provider_of,
    run_graph,
    runtime_error,
)
from helium_onnx.verification_texts import TextGraphs

#: What the forward pass reads: accents and digits, so that byte fallback and whole words both occur.
TEXT = "Once upon a time, il était une fois 12 étoiles."
_TEXT_TOKENS = 16
_NOT_PACKAGED = "not in a package for this target"

#: Largest difference of two graphs' logits at one position, as a part of their largest magnitude. Both compute the
#: same sums in another order. In float32 that leaves about 1e-6. With activations rounded to int8 (accuracy_level 4)
#: the same 3e-7 mostly, but a last bit can tip a rounding by a step of 1/127, which the next layers carry on, up to the
#: error that the rounding itself makes: seen were 1.1e-2 (6 layers, trained, cpu-int8) and 4e-2 (24 layers of 2560,
#: random, cpu-int4, where level 4 differs from level 1 by 6e-2). A flipped RoPE gives 0.22 to 0.47: beyond both.
#: Keys and values rounded to int8 tip in the same way; rounded to float16 by steps of 1/2048, a sixteenth of those.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "quantized": 1e-1}


@dataclass(frozen=True)
class Check:
    """One check: ``detail`` is what was seen, or (``ok`` False) what was found, what was expected and the remedy."""

    name: str
    ok: bool
    detail: str


def verify_bundle(path: str | os.PathLike[str], *, progress: ProgressCallback) -> list[Check]:
    """Check the bundle at ``path``; nothing in it is changed. Raises no error of ``helium_onnx.errors``.

    In order: ``manifest`` (readable, and describes a Helium), ``files`` (there, of their sizes and SHA-256),
    ``tokenizer`` (has exactly the model's vocabulary), ``prefill``, ``decode``, ``model`` (each loads in ONNX Runtime,
    takes and gives what contract and manifest say, and gives finite logits for a short text; prefill and decode of
    fixed shapes together, by their session), ``agreement`` (the three give the same logits), ``native`` (so do the
    native graphs, where bundle and machine have them). Of a task without generation: ``model``, ``padding`` (rows of
    different lengths give together, padded on either side, what each gives alone) and ``native``. Everything runs on
    the CPU, a bundle for a GPU or an NPU too; where the CPU has no kernels, graphs are held against contract and
    manifest alone. ``progress`` gets the bytes hashed and the graph being run.
    """
    subject = _Subject(Path(path), progress)
    checks: list[Check] = []
    waiting = list(CHECKS)
    while waiting:
        name, check = waiting.pop(0)
        try:
            checks.append(Check(name, True, check(subject)))
        except HeliumOnnxError as error:
            checks.append(Check(name, False, str(error)))
            break
        if name == "manifest" and subject.manifest.known_task != "text-generation":
            waiting = list(TEXT_CHECKS[1:])
    return checks


@dataclass
class _Subject:
    """The bundle being verified, and what earlier checks have found out for later ones."""

    path: Path
    progress: ProgressCallback
    manifest: Manifest = field(init=False)
    bundle: Bundle = field(init=False)
    config: HeliumConfig = field(init=False)
    ids: NDArray[np.int64] = field(init=False)  # [1, tokens]: the prompt, and as its last the token that decode gets
    past: list[NDArray[Any]] = field(init=False)  # prefill's keys and values
    texts: TextGraphs = field(init=False)  # of a task without generation
    logits: dict[Graph | NativeGraph, NDArray[np.float32]] = field(default_factory=dict)  # [1, positions, vocab_size]

    @property
    def not_run(self) -> str | None:
        """Why ONNX Runtime's CPU provider, which all that is checked here runs on, cannot run the graphs."""
        if compiled_for := self.manifest.package.get("execution_provider"):
            return f"it is compiled for {compiled_for}"
        precision = self.manifest.recipe.get("precision", {})
        return "a CPU has no kernels for bfloat16" if precision.get("compute") == "bfloat16" else None


def _manifest(subject: _Subject) -> str:
    try:
        subject.bundle = Bundle.open(subject.path)
        subject.manifest = subject.bundle.manifest
    except IntegrityError:
        # Bundle.open reads the manifest and the files' sizes in one go. Where the manifest alone reads well, it is the
        # files that are damaged, and the next check says so.
        with contextlib.suppress(HeliumOnnxError, OSError, ValueError):
            text = (subject.path / MANIFEST_FILE).read_text(encoding="utf-8")
            subject.manifest = Manifest.from_json(text, source=MANIFEST_FILE)
        if not hasattr(subject, "manifest"):
            raise
    manifest, source = subject.manifest, f"{subject.path}/{MANIFEST_FILE}"
    subject.config = HeliumConfig.from_dict(manifest.model_config, source=source)
    if subject.config.task != manifest.known_task:
        raise BundleError(
            f"{source} names a class of another task than its own",
            found=f"the task {manifest.known_task}, and the class {', '.join(subject.config.architectures)}",
            expected=ROWS[manifest.known_task].architecture(subject.config.model_type),
            remedy=AGAIN,
        )
    graphs = contract.graphs_of(subject.manifest.known_task)
    possible = contract.native_graphs_of(subject.manifest.known_task, provider_of(manifest))
    native = set(possible) & set(manifest.graphs)
    others = set(manifest.graphs) - native
    complete = others == set(graphs)
    if manifest.package:  # the graphs that one place needs
        complete = {"prefill"} <= others <= set(contract.GRAPHS) or others == {"model"}
    if not complete or len(native) not in (0, len(possible)):
        raise BundleError(
            f"{source} does not list the contract's graphs",
            found=", ".join(manifest.graphs) or "none",
            expected=f"{', '.join(graphs)}; and {', '.join(possible)}, or none of these",
            remedy=AGAIN,
        )
    recipe = manifest.recipe.get("name", "without a name")
    made_for = f", packaged for {manifest.package.get('target')}" if manifest.package else ""
    version = f"format version {manifest.format_version}, written by helium-onnx {manifest.helium_onnx}"
    return f"{version}, recipe {recipe}{made_for}"


def _files(subject: _Subject) -> str:
    subject.bundle = Bundle.open(subject.path)

    def step(name: str, done: int, total: int) -> None:
        subject.progress(ProgressEvent("verify", name, done, total))

    subject.bundle.check_digests(step)
    count, size = len(subject.bundle.manifest.files), subject.bundle.total_bytes
    return f"{count} files of {size:,} bytes have their sizes and SHA-256"


def _tokenizer(subject: _Subject) -> str:
    tokenizer = load_tokenizer(subject.bundle)
    # At least a prompt of one token and one to decode, and no more positions than the model has.
    tokens = max(2, min(_TEXT_TOKENS, subject.config.max_position_embeddings))
    ids = tokenizer.encode(TEXT)[:tokens]
    subject.ids = np.array([ids], np.int64)
    return f"{tokenizer.vocab_size} ids, as many as the model has"


def _prefill(subject: _Subject) -> str:
    if "prefill" not in subject.manifest.graphs:
        return _NOT_PACKAGED
    if (reason := subject.not_run) is not None:
        return _described(subject, "prefill", reason)
    if window_of(subject.bundle) is not None:
        _run_static(subject)
        return _seen(subject, "prefill")
    past = [
        # A buffer for the whole text where the graph writes in place, and nothing yet where it appends.
        np.zeros(
            (1, int(heads), subject.ids.shape[1] if tokens == "context_length" else 0, int(size)), np.dtype(spec.dtype)
        )
        for spec in subject.manifest.graphs["prefill"].inputs
        if spec.name.startswith("past_key_values.")
        for _, heads, tokens, size in [spec.dims]
    ]
    subject.past = _run(subject, "prefill", subject.ids[:, :-1], past, 0)
    return _seen(subject, "prefill")


def _decode(subject: _Subject) -> str:
    if "decode" not in subject.manifest.graphs:
        return _NOT_PACKAGED
    if (reason := subject.not_run) is not None:
        return _described(subject, "decode", reason)
    if window_of(subject.bundle) is not None:
        return _seen(subject, "decode")  # run by the session that ran prefill
    _run(subject, "decode", subject.ids[:, -1:], subject.past, subject.ids.shape[1] - 1)
    return _seen(subject, "decode")


def _model(subject: _Subject) -> str:
    if "model" not in subject.manifest.graphs:
        return _NOT_PACKAGED
    if (reason := subject.not_run) is not None:
        return _described(subject, "model", reason)
    past = [
        np.zeros((1, int(spec.dims[1]), 0, int(spec.dims[3])), np.dtype(spec.dtype))
        for spec in subject.manifest.graphs["model"].inputs
        if spec.name.startswith("past_key_values.")
    ]
    _run(subject, "model", subject.ids, past, 0)
    return _seen(subject, "model")


def _run(
    subject: _Subject, graph: Graph, ids: NDArray[np.int64], past: list[NDArray[Any]], before: int
) -> list[NDArray[Any]]:
    """Run one graph, keep its logits; return its keys and values."""
    record = subject.manifest.graphs[graph]
    subject.progress(ProgressEvent("verify", record.file))
    check_record(subject.manifest, graph, subject.config)
    positions = 1 if graph == "prefill" else ids.shape[1]
    expected = (1, positions, subject.config.vocab_size)
    subject.logits[graph], present = run_graph(subject.bundle, graph, ids, past, before, expected)
    return present


def _run_static(subject: _Subject) -> None:
    """Run prefill and decode graphs of fixed shapes by the session that knows how, and keep their logits."""
    graphs: tuple[Phase, Phase] = ("prefill", "decode")
    for phase in graphs:
        subject.progress(ProgressEvent("verify", subject.manifest.graphs[phase].file))
        check_record(subject.manifest, phase, subject.config)
    with contextlib.closing(StaticSession(subject.bundle, provider="cpu")) as session:
        past = session.new_past(1)
        for phase, ids in zip(graphs, (subject.ids[:, :-1], subject.ids[:, -1:]), strict=True):
            path = subject.bundle.graph_path(phase)
            try:
                subject.logits[phase] = session.run(phase, ids, past)
            except HeliumOnnxError:
                raise
            except Exception as error:  # ONNX Runtime's exceptions have no base of their own
                raise runtime_error("run", error, path) from error
            check_finite(subject.logits[phase], path)


def _seen(subject: _Subject, graph: Graph) -> str:
    record, shape = subject.manifest.graphs[graph], list(subject.logits[graph].shape)
    return (
        f"{record.file} loads, takes {len(record.inputs)} inputs and gives {len(record.outputs)} outputs as the "
        f"contract says; its logits {shape} are finite"
    )


def _described(subject: _Subject, graph: Graph | NativeGraph, reason: str) -> str:
    """Hold a graph that cannot be run here against contract and manifest."""
    record = subject.manifest.graphs[graph]
    subject.progress(ProgressEvent("verify", record.file))
    check_record(subject.manifest, graph, subject.config)
    check_signature(subject.bundle, graph)
    return (
        f"{record.file} takes {len(record.inputs)} inputs and gives {len(record.outputs)} outputs as the contract "
        f"says; not run, since {reason}"
    )


def _agreement(subject: _Subject) -> str:
    """model.onnx, over all tokens at once, against prefill (last of the prompt) and decode (the token after it)."""
    if not {"model", "prefill"} <= set(subject.manifest.graphs):
        return "nothing to compare in a package"
    if (reason := subject.not_run) is not None:
        return f"not compared, since {reason}"
    return _agree(subject, "prefill", "decode")


def _native(subject: _Subject) -> str:
    """The native graphs likewise, by the session that runs them."""
    provider = provider_of(subject.manifest)
    graphs = contract.NATIVE_GRAPHS_OF.get(provider, contract.NATIVE_GRAPHS)
    if not graphs or not set(graphs) <= set(subject.manifest.graphs):
        return "none in this bundle: our kernels do not know its recipe, or the size of its heads"
    if provider == "cuda":
        reason = "its kernels are those of a GPU"
        return "; ".join(_described(subject, graph, reason) for graph in graphs)
    for graph in graphs:
        subject.progress(ProgressEvent("verify", subject.manifest.graphs[graph].file))
        check_record(subject.manifest, graph, subject.config)
    if kernels.library() is None:
        return "there, and as the contract says; not run, since this machine has no native kernels"
    length = subject.ids.shape[1]
    with contextlib.closing(NativeSession(subject.bundle, context_length=length)) as session:
        past = session.new_past(1)
        try:
            subject.logits["native_prefill"] = session.run("prefill", subject.ids[:, :-1], past).copy()
            subject.logits["native_decode"] = session.run("decode", subject.ids[:, -1:], past).copy()
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise runtime_error("run", error, subject.bundle.graph_path("native_decode")) from error
    return _agree(subject, "native_prefill", "native_decode")


def _agree(subject: _Subject, prefill: Graph | NativeGraph, decode: Graph | NativeGraph) -> str:
    kind = _kind(subject.manifest)
    if "model" in subject.logits:
        other, expected = "model.onnx", subject.logits["model"][0, -2:]
    else:  # a package
        other, expected = "prefill and decode", np.stack([subject.logits[g][0, -1] for g in ("prefill", "decode")])
    scale = float(np.abs(expected).max())
    seen = []
    for graph, row in ((prefill, 0), (decode, 1)):
        difference = float(np.abs(subject.logits[graph][0, -1] - expected[row]).max())
        relative = difference / scale if scale else difference
        if not relative <= TOLERANCE[kind]:  # NaN is no agreement
            name = Path(subject.manifest.graphs[graph].file).name
            raise IntegrityError(
                f"{name} and {other} give different logits for the same text",
                found=f"a difference of {difference:.3g}, {relative:.2g} of the largest logit {scale:.3g}",
                expected=f"at most {TOLERANCE[kind]:g} of it ({kind} weights or cache)",
                remedy="export the bundle anew; if that does not help, report it with this text",
            )
        seen.append(f"{graph} {relative:.1g}")
    return f"differences from {other}, as parts of the largest logit: {', '.join(seen)}"


def _text_model(subject: _Subject) -> str:
    if (reason := subject.not_run) is not None:
        return _described(subject, "model", reason)
    subject.progress(ProgressEvent("verify", subject.manifest.graphs["model"].file))
    subject.texts = TextGraphs(subject.bundle, subject.config, subject.ids)
    return subject.texts.run_alone("model")


def _text_padding(subject: _Subject) -> str:
    if (reason := subject.not_run) is not None:
        return f"not compared, since {reason}"
    return subject.texts.check_padding(TOLERANCE[_kind(subject.manifest)])


def _text_native(subject: _Subject) -> str:
    if (reason := subject.not_run) is not None:
        return f"not compared, since {reason}"
    return subject.texts.check_native(TOLERANCE[_kind(subject.manifest)])


#: All checks in their order: what `verify_bundle` runs, for text generation and for the other tasks.
CHECKS: tuple[tuple[str, Callable[[_Subject], str]], ...] = (
    ("manifest", _manifest),
    ("files", _files),
    ("tokenizer", _tokenizer),
    ("prefill", _prefill),
    ("decode", _decode),
    ("model", _model),
    ("agreement", _agreement),
    ("native", _native),
)
TEXT_CHECKS: tuple[tuple[str, Callable[[_Subject], str]], ...] = (
    *CHECKS[:3],
    ("model", _text_model),
    ("padding", _text_padding),
    ("native", _text_native),
)


def _kind(manifest: Manifest) -> str:
    """The row of TOLERANCE: that of the coarsest rounding in the graphs."""
    cache = {spec.dtype for graph in manifest.graphs.values() for spec in graph.inputs if spec.name.endswith(".key")}
    rounded = any("MatMulNBits" in operator for graph in manifest.graphs.values() for operator in graph.operators)
    return "quantized" if rounded or "int8" in cache else "float16" if "float16" in cache else "float32"
