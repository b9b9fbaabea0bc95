"""Which recipes fit this machine: bytes that a model takes under each, beside the memory that is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from helium_onnx import contract, kernels
from helium_onnx.bundle import Bundle
from helium_onnx.config import PREVIEW_2B, HeliumConfig
from helium_onnx.diagnosis.report import RecipeFit
from helium_onnx.recipe import Recipe, list_recipes
from helium_onnx.runtimes.cuda_probe import DeviceInfo

PREVIEW_2B_NAME = "helium-1-preview-2b"

#: Of a process on the CPU beside weights, keys and values: libraries, and a prefill's scores (168 MB in chunks of 512).
_CPU_WORKING_BYTES = 300_000_000
#: The shortest context that is worth a line.
_SHORTEST = 256
#: ONNX Runtime's attention computes in bfloat16 from the Ampere generation on.
_BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Target:
    """A model under a recipe; ``bundle`` where it is exported already."""

    config: HeliumConfig
    recipe: Recipe
    bundle: Bundle | None = None

    @property
    def longest_context(self) -> int:
        """The model's, or that of graphs whose shapes the recipe fixes."""
        window = self.recipe.graph.window(self.config.max_position_embeddings)
        return self.config.max_position_embeddings if window is None else window.context

    def needed_bytes(self, context_length: int) -> int:
        """Of one text of so many tokens: on the GPU for the provider cuda, in the process for others."""
        from helium_onnx.runtimes import cuda_memory  # which imports onnxruntime

        config, recipe = self.config, self.recipe
        if self.bundle is None:
            memory = cuda_memory.estimate(config, recipe, rows=1, context_length=context_length)
        else:
            memory = cuda_memory.of_bundle(self.bundle, rows=1, context_length=context_length)
        if recipe.execution_provider == "cuda":
            return memory.total
        if self._runs_natively():  # keys and values are float16 there, whatever the recipe says
            recipe = replace(recipe, precision=replace(recipe.precision, key_value_cache="float16"))
        cache = cuda_memory.key_value_bytes(config, recipe, rows=1, context_length=context_length)
        return memory.weights + cache + _CPU_WORKING_BYTES

    def _runs_natively(self) -> bool:
        """Whether the CPU runs it by our own kernels; docs/kernels.md says which recipes they take."""
        if not kernels.vectorized():
            return False
        if self.bundle is not None:
            return set(contract.NATIVE_GRAPHS) <= set(self.bundle.manifest.graphs)
        q = self.recipe.quantization
        bits = {q.linear.bits, q.head.bits, q.embedding.bits}
        return bits <= {4, 8} and q.accuracy_level == 4 and self.recipe.precision.key_value_cache != "int8"


@dataclass(frozen=True)
class Place:
    """Memory that a model may be put into; ``blocked`` says why nothing runs there at all, ``note`` what to know of
    what does.
    """

    name: str
    free_bytes: int | None
    total_bytes: int | None
    compute_capability: tuple[int, int] | None = None
    blocked: str | None = None
    note: str = ""


def shipped_targets() -> list[Target]:
    """The 2 B model under every recipe that comes with helium-onnx."""
    config = HeliumConfig.from_dict(dict(PREVIEW_2B), source=PREVIEW_2B_NAME)
    return [Target(config, recipe) for recipe in list_recipes()]


def bundle_target(path: str | os.PathLike[str]) -> Target:
    """Raises BundleError and its kin."""
    bundle = Bundle.open(path)
    source = f"{bundle.path}/helium.json"
    config = HeliumConfig.from_dict(bundle.model_config, source=source)
    return Target(config, Recipe.from_dict(bundle.manifest.recipe, source=source), bundle)


def device_place(device: DeviceInfo | None, blocked: str | None) -> Place:
    """The GPU's memory; ``blocked`` says why there is no CUDA."""
    if device is None or blocked is not None:
        return Place("the GPU", None, None, blocked=blocked or "no CUDA device")
    return Place("the GPU", device.free_bytes, device.total_bytes, device.compute_capability)


def fit(target: Target, place: Place) -> RecipeFit:
    """Whether the target runs there, with one text at a time, and with how long a context."""
    recipe, whole, need = target.recipe, target.longest_context, target.needed_bytes
    needed, free = _counted(need, whole, place), place.free_bytes

    def result(runs: bool, context: int | None, why: str = "") -> RecipeFit:
        why = why or (place.note if runs else "")
        return RecipeFit(recipe.name, recipe.execution_provider, runs, needed, free, context, why)

    if place.blocked is not None or needed is None:
        return result(False, None, place.blocked or "")
    capability = place.compute_capability
    if recipe.precision.compute == "bfloat16" and capability is not None and capability < _BFLOAT16_CAPABILITY:
        return result(False, None, f"bfloat16 needs compute capability {'.'.join(map(str, _BFLOAT16_CAPABILITY))}")
    if free is None or needed <= free:
        return result(True, whole, "" if free is not None else f"if {place.name} holds it")
    shorter = range(_SHORTEST, whole, _SHORTEST)
    context = max((length for length in shorter if need(length) <= free), default=None)
    if context is not None:
        return result(True, context, f"with --context {context}: {free / 1e9:.1f} GB of {place.name} are free")
    if place.total_bytes is not None and need(min(_SHORTEST, whole)) <= place.total_bytes:
        return result(False, None, f"only {free / 1e9:.1f} GB of {place.name} are free: close other programs")
    return result(False, None, f"more than {place.name} holds")


def _counted(need: Callable[[int], int], whole: int, place: Place) -> int | None:
    """The bytes; None where they cannot be counted, and nothing runs anyway: onnxruntime is broken."""
    try:
        return need(whole)
    except Exception:
        if place.blocked is None:
            raise
        return None
