"""What a model needs on a GPU, counted before anything is loaded, and what would fit instead.

weights           as the bundle stores them, once for all sessions
key_value_cache   2 x layers x rows x key/value heads x context x head_dim, in the recipe's type
activations       of one prefill chunk, and of one decode step of all rows; ONNX Runtime's attention over int8 keys and
                  values needs one layer's in the type of the activations
workspace         the CUDA context, the libraries' kernels and scratch memory: WORKSPACE_BYTES
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import ResourceError
from helium_onnx.kernels.cuda import max_rows
from helium_onnx.recipe import MatrixSettings, Recipe, list_recipes
from helium_onnx.runtimes.cuda_driver import DeviceInfo
from helium_onnx.runtimes.device_tensors import ELEMENT_TYPES
from helium_onnx.runtimes.device_weights import used_tensors, weights_bytes
from helium_onnx.runtimes.providers import CUDA

#: The CUDA context (kernels of the driver and of ONNX Runtime are loaded into it), cuBLAS's workspace, what arenas
#: round up, captured graphs. An estimate.
WORKSPACE_BYTES = 600_000_000
#: Contexts that are proposed are multiples of this, and no smaller.
_CONTEXT_STEP = 256


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device."""

    weights: int
    key_value_cache: int
    activations: int
    workspace: int = WORKSPACE_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.key_value_cache + self.activations + self.workspace


def estimate(config: HeliumConfig, recipe: Recipe, *, rows: int, context_length: int) -> DeviceMemory:
    """What this model under a CUDA recipe would need for ``rows`` sequences of up to ``context_length`` tokens."""
    return DeviceMemory(
        _weights(config, recipe),
        key_value_bytes(config, recipe, rows=rows, context_length=context_length),
        _activations(config, recipe, rows=rows, context_length=context_length),
    )


def of_bundle(bundle: Bundle, *, rows: int, context_length: int) -> DeviceMemory:
    """The same of a bundle, whose weights are known to the byte. Raises BundleError."""
    config, recipe = config_of(bundle), recipe_of(bundle)
    graphs = [graph for graph in ("prefill", "decode", "native_decode") if graph in bundle.manifest.graphs]
    return DeviceMemory(
        weights_bytes(used_tensors(bundle, graphs)),
        key_value_bytes(config, recipe, rows=rows, context_length=context_length),
        _activations(config, recipe, rows=rows, context_length=context_length),
    )


def config_of(bundle: Bundle) -> HeliumConfig:
    return HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")


def recipe_of(bundle: Bundle) -> Recipe:
    return Recipe.from_dict(bundle.manifest.recipe, source=f"{bundle.path}/helium.json")


def key_value_bytes(config: HeliumConfig, recipe: Recipe, *, rows: int, context_length: int) -> int:
    """Keys and values of ``rows`` sequences, and the logits and ids of a step of theirs."""
    size = ELEMENT_TYPES[recipe.precision.key_value_cache].itemsize
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size
    step = 4 * config.vocab_size + 12
    return rows * (context_length * token + step)


def check_load(bundle: Bundle, device: DeviceInfo, free_bytes: int, *, context_length: int) -> None:
    """Raise ResourceError unless the bundle fits with one row of ``context_length`` tokens; it says what would fit."""
    needed = of_bundle(bundle, rows=1, context_length=context_length)
    if needed.total <= free_bytes:
        return
    config, recipe = config_of(bundle), recipe_of(bundle)

    def with_context(context: int) -> int:
        return of_bundle(bundle, rows=1, context_length=context).total

    remedies = [
        *_smaller_recipe(config, recipe, needed.total, free_bytes, context_length),
        *_smaller_context(with_context, free_bytes, context_length),
    ]
    parts = f"{_gb(needed.weights)} weights, {_gb(needed.key_value_cache)} keys and values for {context_length} tokens"
    raise ResourceError(
        f"the model needs {_gb(needed.total)} GB on the device ({parts}, {_gb(needed.activations)} activations, "
        f"{_gb(needed.workspace)} workspace): {_gb(free_bytes)} GB of {device.name} are free: "
        + (f"use {' or '.join(remedies)}" if remedies else "close what uses it (nvidia-smi lists the processes)")
    )


def check_rows(bundle: Bundle, device: DeviceInfo, free_bytes: int, *, rows: int, context_length: int) -> None:
    """Raise ResourceError unless the keys and values of ``rows`` rows fit ``free_bytes``; the model is loaded."""
    config, recipe = config_of(bundle), recipe_of(bundle)
    ours = max_rows(quantized=recipe.quantization.method != "none")

    def needs(rows: int, context: int) -> int:
        more = _unpacked_bytes(config, recipe, rows=rows, context_length=context) if rows > ours else 0
        return key_value_bytes(config, recipe, rows=rows, context_length=context) + more

    if (needed := needs(rows, context_length)) <= free_bytes:
        return
    fewer = free_bytes // needs(1, context_length)
    remedies = [f"{fewer} at once"] if fewer > 0 else []
    remedies += _smaller_context(lambda context: needs(rows, context), free_bytes, context_length)
    raise ResourceError(
        f"{rows} prompts at once need {_gb(needed)} GB on the device for their keys and values ({context_length} "
        f"tokens each): {_gb(free_bytes)} GB of {device.name} are free: "
        + (f"use {' or '.join(remedies)}" if remedies else "close what uses it (nvidia-smi lists the processes)")
    )


def _smaller_recipe(
    config: HeliumConfig, recipe: Recipe, needed: int, free_bytes: int, context_length: int
) -> Iterator[str]:
    """The shipped CUDA recipe that loses least among those that fit: the one with most bytes."""
    fitting = []
    for other in list_recipes():
        if other.execution_provider == CUDA.name and other.name != recipe.name:
            total = estimate(config, other, rows=1, context_length=context_length).total
            if total <= free_bytes and total < needed:
                fitting.append((total, other.name))
    if fitting:
        total, name = max(fitting)
        yield f"{name} ({_gb(total)} GB)"


def _smaller_context(needs: Callable[[int], int], free_bytes: int, context_length: int) -> Iterator[str]:
    """The largest that fits, of halves of ``context_length``."""
    context = context_length // 2 // _CONTEXT_STEP * _CONTEXT_STEP
    while context >= _CONTEXT_STEP:
        if (total := needs(context)) <= free_bytes:
            yield f"--context {context} ({_gb(total)} GB)"
            return
        context = context // 2 // _CONTEXT_STEP * _CONTEXT_STEP


def _weights(config: HeliumConfig, recipe: Recipe) -> int:
    """As the exporter stores them: matrices by their settings, all else in the type of the activations."""
    size = ELEMENT_TYPES[recipe.precision.compute].itemsize
    channels = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    steps = 2 * 4 * channels if recipe.precision.key_value_cache == "int8" else 0  # scales of keys and of values
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size * size
    tables = 2 * config.max_position_embeddings * config.head_dim // 2 * size
    matrices = 0
    for name, (rows, columns) in _matrices(config):
        settings = recipe.quantization.settings_of(name)
        if settings.quantized:
            matrices += _quantized_bytes(rows, columns, settings, gathered=name == _EMBEDDING)
        elif not (name == _HEAD and config.tie_word_embeddings and not recipe.quantization.embedding.quantized):
            matrices += rows * columns * size  # a tied head is the embedding itself where both are stored alike
    return norms + tables + steps + matrices


def _quantized_bytes(rows: int, columns: int, settings: MatrixSettings, *, gathered: bool) -> int:
    """Data, scales and, unless symmetric, zero points, in the layout of MatMulNBits or GatherBlockQuantized."""
    blocks = -(-columns // settings.block_size)
    data = columns * settings.bits // 8 if gathered else blocks * settings.block_size * settings.bits // 8
    scales = blocks * ELEMENT_TYPES[settings.scales].itemsize
    zero_points = 0 if settings.symmetric else -(-blocks * settings.bits // 8)
    return rows * (data + scales + zero_points)


_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _matrices(config: HeliumConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """The checkpoint's names and shapes."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    yield _EMBEDDING, (config.vocab_size, hidden)
    yield _HEAD, (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"{prefix}.mlp.{name}_proj.weight", shape


def _activations(config: HeliumConfig, recipe: Recipe, *, rows: int, context_length: int) -> int:
    """The most that is alive at once in a prefill chunk, and beside it, in an arena of its own, in a decode step."""
    size = ELEMENT_TYPES[recipe.precision.compute].itemsize
    hidden, inner = config.hidden_size, config.intermediate_size
    packed = hidden + 2 * config.num_key_value_heads * config.head_dim
    # The residual stream, its sum and its norm, and then attention (packed, rotated, its result and a float32 a head)
    # or the MLP (gate, up, and their product).
    token = 3 * hidden * size + max(
        2 * packed * size + hidden * size + 4 * config.num_attention_heads, 3 * inner * size
    )
    tokens = min(CUDA.prefill_chunk, context_length)
    # Several rows of a quantized matrix are multiplied by cuBLAS, with the matrix in the type of the activations.
    unpacked = 0
    if recipe.quantization.linear.quantized:
        unpacked = max(inner, packed) * hidden * size
    if rows > 1 and recipe.quantization.head.quantized:
        unpacked = max(unpacked, config.vocab_size * hidden * size)
    logits = config.vocab_size * (4 + size)  # beside the rows' own: in float32, and as the head's product
    past = _unpacked_bytes(config, recipe, rows=1 + rows, context_length=context_length)
    return (tokens + rows) * token + unpacked + (1 + rows) * logits + past


def _unpacked_bytes(config: HeliumConfig, recipe: Recipe, *, rows: int, context_length: int) -> int:
    """What ONNX Runtime's attention makes of int8 buffers, whatever they hold: numbers of one layer at a time. Source:
    ONNX Runtime, contrib_ops/cuda/bert/group_query_attention_impl.h at 020ac15. Our kernels need nothing of it.
    """
    if recipe.precision.key_value_cache != "int8":
        return 0
    channels = config.num_key_value_heads * config.head_dim
    return rows * context_length * 2 * channels * ELEMENT_TYPES[recipe.precision.compute].itemsize


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 50_000_000 else f"{count / 1e9:.3f}"
