"""Start ONNX Runtime on one graph of a bundle, and turn what goes wrong into this package's errors."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from helium_onnx import contract
from helium_onnx.bundle import Bundle
from helium_onnx.contract import TensorSpec
from helium_onnx.errors import BundleError, IntegrityError, ProviderError, ResourceError, UsageError
from helium_onnx.manifest import GraphRecord
from helium_onnx.runtimes.plugins import add_plugin, own_stdout
from helium_onnx.runtimes.providers import ExecutionProvider, default_threads

#: The remedy where a bundle's files do not fit each other.
AGAIN = "copy or download the bundle again, or export it anew"

_DTYPES = {
    f"tensor({'float' if name == 'float32' else name})": name
    for name in ("float32", "float16", "bfloat16", "int8", "int32", "int64")
}
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "cannot allocate memory", "out of memory")
#: What the graphs are made for, and pyproject.toml asks for.
SUPPORTED = "1.31"


def load_graph(
    path: Path,
    options: ort.SessionOptions,
    row: ExecutionProvider,
    bundle: Bundle,
    record: GraphRecord,
    provider_options: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A session on the provider of ``row``, whose inputs and outputs are those of ``record``.

    ``provider_options`` are this session's own, beside the row's.

    Raises:
        BundleError: ONNX Runtime does not take the graph.
        ResourceError: there is too little memory.
        ProviderError: the provider did not start, or does not take a node where the row says that it has to take all;
            nothing is run on another in its place.
        IntegrityError: the graph is not what the manifest says.
    """
    asked: list[tuple[str, dict[str, str]]] | None = None
    if row.plugin is None:
        check_built_in(row)
        asked = [(row.onnxruntime_name, {**row.options, **(provider_options or {})})]
    else:
        add_plugin(options, row, provider_options or {})
    try:
        with own_stdout(row):
            try:
                session = ort.InferenceSession(path, options, providers=asked, enable_fallback=0)
            except Exception as error:
                if not _is_refused_fallback(error):
                    raise
                # Once more, only to name the nodes: ONNX Runtime's message does not.
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
                session = ort.InferenceSession(path, options, providers=asked, enable_fallback=0)
    except Exception as error:
        raise _load_error(error, path, bundle) from error
    if session.get_providers()[0] != row.onnxruntime_name:
        raise ProviderError(
            f"ONNX Runtime did not start {row.onnxruntime_name}",
            found=", ".join(session.get_providers()),
            remedy="see ONNX Runtime's message above; nothing is run on another provider in its place",
        )
    check_assignment(session, row, path)
    check_contract(session, record, path)
    return session


def check_built_in(row: ExecutionProvider) -> None:
    """Raise ProviderError where onnxruntime was built without the provider, and the row says what to do then."""
    if row.absent is not None and row.onnxruntime_name not in ort.get_available_providers():
        raise ProviderError(
            f"the execution provider {row.name} cannot be loaded",
            found=f"onnxruntime {ort.__version__} for {platform.system()} without {row.onnxruntime_name}",
            remedy=row.absent,
        )


def check_assignment(session: ort.InferenceSession, row: ExecutionProvider, path: Path) -> None:
    """Raise ProviderError if a node runs elsewhere than on the provider, where the row lets that be recorded."""
    if row.config.get("session.record_ep_graph_assignment_info") != "1":
        return
    elsewhere = [
        f"{node.name or 'a node without a name'} ({node.op_type}) on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != row.onnxruntime_name
    ]
    if elsewhere:
        more = f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else ""
        raise ProviderError(
            f"{row.onnxruntime_name} does not take all of {path.name}",
            found=", ".join(elsewhere[:5]) + more,
            expected=f"every node on {row.onnxruntime_name}",
            remedy=f"use onnxruntime {SUPPORTED}, for which these graphs are made; {ort.__version__} is installed",
        )


def session_options(row: ExecutionProvider, threads: int) -> ort.SessionOptions:
    """Options that every session of ours has."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors come as exceptions; warnings about placement are not for users
    for key, value in row.config.items():
        options.add_session_config_entry(key, value)
    return options


def check_contract(session: ort.InferenceSession, record: GraphRecord, path: Path) -> None:
    """Raise IntegrityError unless the graph takes and gives what the manifest says: names, dtypes, dimensions."""
    for what, args, specs in (
        ("inputs", session.get_inputs(), record.inputs),
        ("outputs", session.get_outputs(), record.outputs),
    ):
        found = [contract.TensorSpec(a.name, _DTYPES.get(a.type, a.type), tuple(a.shape)) for a in args]
        check_specs(found, specs, f"the {what} of {path.name} are not those of the manifest")


def check_specs(found: Sequence[TensorSpec], expected: Sequence[TensorSpec], problem: str) -> None:
    """Raise IntegrityError, which begins with ``problem``, for the first of ``found`` that is not as ``expected``."""
    for have, want in zip([*map(str, found), "nothing"], [*map(str, expected), "nothing"], strict=False):
        if have != want:
            raise IntegrityError(problem, found=have, expected=want, remedy=AGAIN)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ONNX Runtime's error says that an allocation failed; it has no exception of its own for that."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _OUT_OF_MEMORY)


def _is_refused_fallback(error: Exception) -> bool:
    """Whether a node had no kernel on the provider, and the row says that it must not run on the CPU."""
    return "fallback to CPU EP has been explicitly disabled" in str(error)


def _load_error(error: Exception, path: Path, bundle: Bundle) -> BundleError | ResourceError:
    text = str(error)
    if is_out_of_memory(error):
        return ResourceError(
            f"too little memory to load {path.name}",
            found=text.splitlines()[0][:200] if text else "out of memory",
            expected=f"room for {bundle.total_bytes / 1e9:.2f} GB of weights",
            remedy="close other programs, raise the memory limit (ulimit -v), or use a smaller recipe",
        )
    return BundleError(
        f"ONNX Runtime {ort.__version__} cannot load {path.name}",
        found=text.splitlines()[0][:300] if text else type(error).__name__,
        remedy="`helium-onnx verify` tells whether the bundle is whole",
    )


def checked_context_length(asked: int | None, limit: int) -> int:
    """``asked``, or the model's ``limit``; UsageError where it is out of range."""
    if asked is None:
        return limit
    if not 1 < asked <= limit:
        raise UsageError("the context length is out of range", found=asked, expected=f"2 to {limit}, the model's limit")
    return asked


def checked_threads(asked: int | None) -> int:
    """``asked``, or this machine's number; UsageError where it is out of range."""
    if asked is None:
        return default_threads()
    if not 1 <= asked <= 1024:
        raise UsageError("the number of threads is out of range", found=asked, expected="1 to 1024")
    return asked


def too_little_memory(
    specs: Iterable[TensorSpec], rows: int, context_length: int, error: BaseException
) -> ResourceError:
    """What to raise where the keys and values of ``rows`` rows found no memory."""
    per_row = sum(int(s.dims[1]) * int(s.dims[3]) * context_length * np.dtype(s.dtype).itemsize for s in specs)
    return ResourceError(
        f"no memory for the keys and values of {rows} rows of {context_length} tokens",
        found=f"{rows * per_row / 1e9:.2f} GB needed ({error})",
        remedy="ask for a smaller context (--context) or fewer prompts at once",
    )
