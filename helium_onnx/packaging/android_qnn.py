"""The target ``android-qnn``: prefill and decode compiled ahead of time for the NPU of one Snapdragon chip.

What a phone would compile at its first start, in minutes and gigabytes, is done here: each graph becomes one node,
``EPContext``, which names a binary of the NPU's code and weights beside it. Prefill and decode share one binary, and
so one copy of the weights, unless the caller says otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from helium_onnx import contract
from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError, UsageError
from helium_onnx.packaging.context_graphs import COMPILED, check_context_graphs
from helium_onnx.packaging.copying import copy_files, small_files
from helium_onnx.packaging.qnn_compiler import compile_graphs
from helium_onnx.packaging.target import Contents, Options, Target
from helium_onnx.progress import ProgressCallback
from helium_onnx.runtimes.plugins import check_installed
from helium_onnx.runtimes.providers import QNN, on_x86
from helium_onnx.runtimes.session import Phase
from helium_onnx.runtimes.static_session import window_of

PHASES: tuple[Phase, ...] = ("prefill", "decode")
_SMALL_FILES_BYTES = 8 << 20


@dataclass(frozen=True)
class Soc:
    """A chip: ``htp_arch`` is the generation of its NPU, ``soc_model`` its number in Qualcomm's SDK, ``chip`` what
    ``adb shell getprop ro.soc.model`` prints on a phone that has it.
    """

    htp_arch: int
    soc_model: int
    chip: str
    device: str

    @property
    def name(self) -> str:
        return f"{self.htp_arch}/{self.soc_model}"

    @property
    def provider_options(self) -> dict[str, str]:
        return {"htp_arch": str(self.htp_arch), "soc_model": str(self.soc_model)}


#: Source of the numbers: the enumeration Qnn_SocModel_t in QnnTypes.h of Qualcomm's AI Runtime SDK, as PyTorch's
#: executorch repeats it with the NPU's generations in backends/qualcomm/serialization/qc_schema.py.
SOCS: tuple[Soc, ...] = (
    Soc(73, 43, "SM8550", "Snapdragon 8 Gen 2"),
    Soc(75, 57, "SM8650", "Snapdragon 8 Gen 3"),
    Soc(79, 69, "SM8750", "Snapdragon 8 Elite"),
    Soc(81, 87, "SM8850", "Snapdragon 8 Elite Gen 5"),
)


def soc_of(asked: str | None) -> Soc:
    """The row of SOCS whose name (``75/57``) or chip (``SM8650``) is ``asked``. Raises UsageError, which lists them."""
    for soc in SOCS:
        if asked is not None and asked.strip().upper() in (soc.name, soc.chip):
            return soc
    raise UsageError(
        "no chip is named to compile for" if asked is None else "there is no such chip to compile for",
        found="no --soc" if asked is None else f"--soc {asked}",
        expected="one of " + ", ".join(f"{soc.name} ({soc.device}, {soc.chip})" for soc in SOCS),
        remedy="the phone tells its chip: adb shell getprop ro.soc.model",
    )


def refusal(bundle: Bundle) -> str | None:
    made_for = bundle.manifest.recipe.get("execution_provider", "cpu")
    if made_for != QNN.name:
        return f"it is for the execution provider {made_for}"
    if window_of(bundle) is None or not set(PHASES) <= set(bundle.manifest.graphs):
        return "its graphs have no fixed shapes"
    return None


def check(_bundle: Bundle, options: Options) -> None:
    """Raise for a chip that is not known, or where the compiler is missing."""
    soc_of(options.soc)
    check_installed(QNN)
    if options.share_weights and not on_x86():
        raise ProviderError(
            "the compiler shares weights on x86-64 alone",
            expected="a machine with an x86-64 processor",
            remedy="compile on one, or give each graph its own weights: --unshared",
        )


def needed_bytes(bundle: Bundle, options: Options) -> int:
    weights = next(file.size for file in bundle.manifest.files if file.path == contract.WEIGHTS_FILE)
    # The binaries of helium-docs-7m have 2 % more than the weights, shared as well as each for itself.
    return weights * 11 // 10 * (1 if options.share_weights else 2) + _SMALL_FILES_BYTES


def make(bundle: Bundle, folder: Path, options: Options, progress: ProgressCallback) -> Contents:
    """Compile both graphs into ``folder``, and copy the small files."""
    soc = soc_of(options.soc)
    copy_files(bundle, small_files(bundle), folder, progress)
    paths = {phase: folder / bundle.manifest.graphs[phase].file for phase in PHASES}
    paths["prefill"].parent.mkdir(exist_ok=True)
    compile_graphs(bundle, paths, soc.provider_options, share_weights=options.share_weights, progress=progress)
    check_context_graphs(bundle, paths, share_weights=options.share_weights)
    records = bundle.manifest.graphs
    return Contents(
        graphs={phase: dataclasses.replace(records[phase], operators={COMPILED: 1}) for phase in PHASES},
        record={
            "execution_provider": QNN.name,
            "soc": soc.name,
            "chip": soc.chip,
            "device": soc.device,
            "provider_options": soc.provider_options,
            "shared_weights": options.share_weights,
        },
        tools={name: metadata.version(name) for name in ("onnxruntime", "onnxruntime-qnn")},
    )


ANDROID_QNN = Target(
    name="android-qnn",
    summary="for the NPU of a Snapdragon phone: prefill and decode compiled ahead of time",
    form="a bundle for QNN, whose graphs have fixed shapes",
    recipes=QNN.recipes,
    options=("soc", "share_weights"),
    refusal=refusal,
    check=check,
    needed_bytes=needed_bytes,
    make=make,
)
