"""Execution providers: a frozen row each, with a reason beside each odd value. Callers do not branch; rows differ."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError


@dataclass(frozen=True)
class ExecutionProvider:
    """How ONNX Runtime is asked for one provider.

    ``config`` are session config entries. ``prefill_chunk`` is the most tokens that one prefill call takes,
    ``batch_tokens`` the most that a call of whole texts takes unless it is told another number. ``prepacks``: kernels
    reorder constant weights at load, so a cache of the reordered weights pays. ``recipes`` are shipped ones to name to
    who has none for this provider.

    Where the provider is a package beside onnxruntime, ``package`` is what pip calls it, ``plugin`` its module, and
    ``plugin_paths`` the options whose value a function of that module gives; ``plugin_devices`` is the most devices
    that it takes, and ``emulator_options`` are for machines where it imitates its device. ``absent`` says what to do
    where onnxruntime was built without the provider. ``also`` are other providers that run the same graphs when they
    are asked for by name.
    """

    name: str
    onnxruntime_name: str
    options: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    prefill_chunk: int = 512
    batch_tokens: int = 512
    prepacks: bool = False
    recipes: tuple[str, ...] = ()
    package: str | None = None
    plugin: str | None = None
    plugin_paths: Mapping[str, str] = field(default_factory=dict)
    plugin_devices: int | None = None
    emulator_options: Mapping[str, str] = field(default_factory=dict)
    absent: str | None = None
    also: tuple[str, ...] = ()


CPU = ExecutionProvider(
    name="cpu",
    onnxruntime_name="CPUExecutionProvider",
    # Scores are [heads, chunk, total] float32: 512 bounds them at 168 MB for 20 heads over 4096.
    prefill_chunk=512,
    # Activations of more leave the second cache: 4096 took a fifth longer on helium-docs-7m (2 cores of 1 MB).
    batch_tokens=512,
    prepacks=True,
    recipes=("cpu-int4", "cpu-fp32"),
    also=("webgpu",),
)

CUDA = ExecutionProvider(
    name="cuda",
    onnxruntime_name="CUDAExecutionProvider",
    options={
        # What is needed is planned before anything is loaded (cuda_memory.py); doubling would take up to twice of it.
        "arena_extend_strategy": "kSameAsRequested",
    },
    config={
        # A node that no kernel takes would run on the CPU without a word, each step waiting for its copies.
        "session.disable_cpu_ep_fallback": "1",
        # Whether all nodes are where they should be is asked after each load (check_assignment).
        "session.record_ep_graph_assignment_info": "1",
    },
    # Large enough that matrix products, not weights, take the time; 2048 tokens of a 2 B model take 0.2 GB.
    prefill_chunk=2048,
    batch_tokens=4096,
    recipes=("cuda-fp16", "cuda-bf16", "cuda-int4"),
)

QNN = ExecutionProvider(
    name="qnn",
    onnxruntime_name="QNNExecutionProvider",
    # On x86 the package emulates an NPU, and takes MatMulNBits only where it is told which: that of Snapdragon 8 Gen 3.
    # A device knows its own.
    emulator_options={"htp_arch": "75"},
    config={
        # It leaves nodes to the CPU without a word, a whole graph of dynamic shapes for one.
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
    },
    prefill_chunk=128,  # that of the recipes; a bundle's own is in its graphs
    recipes=("qnn-fp16", "qnn-int4"),
    package="onnxruntime-qnn==2.7.0",
    plugin="onnxruntime_qnn",
    plugin_paths={"backend_path": "get_qnn_htp_path"},
    also=("cpu",),
)

#: A desktop's GPU, whoever made it, with the graphs that are for the CPU.
WEBGPU = ExecutionProvider(
    name="webgpu",
    onnxruntime_name="WebGpuExecutionProvider",
    # GroupQueryAttention is wrong on SwiftShader, where it is tested, from 32 new tokens on: logits differ by 1.4 then,
    # and by 1e-5 below (onnxruntime-ep-webgpu 0.4.0).
    prefill_chunk=31,
    recipes=("cpu-fp32", "cpu-int4"),
    package="onnxruntime-ep-webgpu==0.4.0",
    plugin="onnxruntime_ep_webgpu",
    plugin_devices=1,  # it chooses the GPU itself
)

COREML = ExecutionProvider(
    name="coreml",
    onnxruntime_name="CoreMLExecutionProvider",
    # The other form, NeuralNetwork, computes in float32 alone and is no longer developed. RequireStaticInputShapes is
    # left out: shapes are fixed anyway, and with it macOS 15 computed wrongly in float16 (onnxruntime issue 32569).
    options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
    config={
        # It leaves nodes to the CPU without a word.
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
    },
    prefill_chunk=128,  # that of the recipe; a bundle's own is in its graphs
    recipes=("coreml-fp16",),
    absent="run it on macOS, whose onnxruntime has it, or run the same graphs on this CPU: --provider cpu",
    also=("cpu",),
)

PROVIDERS: dict[str, ExecutionProvider] = {row.name: row for row in (CPU, CUDA, QNN, WEBGPU, COREML)}
#: The provider that the bundle was exported for.
AUTO = "auto"


def execution_provider(name: str) -> ExecutionProvider:
    """The row of ``name``. Raises ProviderError for an unknown one."""
    if name not in PROVIDERS:
        raise ProviderError(
            f"there is no execution provider {name!r}", expected=f"one of {', '.join((AUTO, *PROVIDERS))}"
        )
    return PROVIDERS[name]


def bundle_provider(bundle: Bundle, asked: str) -> ExecutionProvider:
    """The provider that runs ``bundle`` where ``asked``, or ``auto``, was asked for: the one that it is for, or one
    that runs its graphs too and was asked for.

    Raises:
        ProviderError: there is no such provider, or the bundle is for another one.
    """
    row = None if asked == AUTO else execution_provider(asked)
    recipe = bundle.manifest.recipe
    made_for = str(recipe.get("execution_provider", CPU.name))
    if made_for not in PROVIDERS:
        raise ProviderError(
            f"{bundle.path} is for the execution provider {made_for!r}",
            expected=f"one of {', '.join(PROVIDERS)}, which this helium-onnx knows",
            remedy="upgrade: pip install --upgrade helium-onnx",
        )
    if row is not None and row.name not in (made_for, *PROVIDERS[made_for].also):
        raise ProviderError(
            f"{bundle.path} cannot run on the execution provider {row.name}",
            found=f"recipe {recipe.get('name')}, which is for {made_for}",
            expected=f"a recipe for {row.name}",
            remedy=f"export the checkpoint with --recipe {' or '.join(row.recipes)}, or leave --provider at auto",
        )
    return row or PROVIDERS[made_for]


def on_x86() -> bool:
    """Whether a plugin for an ARM chip's NPU can only emulate it here."""
    return platform.machine().lower() in ("x86_64", "amd64")


def default_threads() -> int:
    """Threads for one session: the physical cores that this process may use.

    Matrix kernels gain nothing from a second hardware thread on a core, and lose time when a container's quota stops
    them half-way; so affinity, siblings and the cgroup's quota all count.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    quota = _cgroup_quota()
    return max(1, min(len(cores), int(quota) if quota else len(cores)))


def _siblings(cpu: int) -> str:
    """The core of a logical CPU, as the list of its hardware threads."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_quota() -> float | None:
    """CPUs that the cgroup (version 2) grants, or None."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
