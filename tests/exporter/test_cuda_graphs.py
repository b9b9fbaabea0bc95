"""The graphs of every CUDA recipe: their operators, inputs and weights, for models of any depth and form.

Graphs are built of a trace alone; no weight is read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx import contract
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Graph, NativeGraph
from helium_onnx.exporter.graphs import build_graphs
from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.exporter.passes.rewriting import KERNELS
from helium_onnx.exporter.pipelines import has_native_graphs
from helium_onnx.exporter.trace import trace
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import MatrixSettings, Override, Precision, Quantization, Recipe, list_recipes, load_recipe

BENCHMARKED = Path(__file__).parents[2] / "benchmarks" / "cuda_int4.toml"
SHIPPED = [recipe for recipe in list_recipes() if recipe.execution_provider == "cuda"]
#: Keys and values in int8.
CODED = [
    dataclasses.replace(load_recipe(f"cuda-{short}"), name=f"{short}-kv8", precision=Precision(compute, "int8"))
    for short, compute in (("fp16", "float16"), ("bf16", "bfloat16"))
]
RECIPES = {recipe.name: recipe for recipe in (*SHIPPED, load_recipe(BENCHMARKED), *CODED)}
#: Shipped recipes pack query, key and value, and so does every one that stores them alike.
CONFIGS = {
    "2 layers": graph_making.config(num_hidden_layers=2),
    "24 layers": graph_making.config(num_hidden_layers=24),
    "1 layer, equal heads": graph_making.config(num_hidden_layers=1, num_key_value_heads=4),
    "llama": graph_making.config("llama", num_hidden_layers=2),
    "tied": graph_making.config(num_hidden_layers=2, tie_word_embeddings=True),
}
GRAPHS: tuple[Graph | NativeGraph, ...] = (*contract.GRAPHS, "native_decode")
#: What the CUDA provider would hand to the CPU, or copy to the device at each step.
ON_THE_HOST = {"Shape", "Split", "Slice", "Size", "Range", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Concat"}


@dataclasses.dataclass(frozen=True)
class Built:
    config: HeliumConfig
    recipe: Recipe
    plan: WeightPlan
    graphs: dict[Graph | NativeGraph, ir.Model]


@functools.cache
def traced(name: str) -> ir.Model:
    return trace(CONFIGS[name])


def build(name: str, recipe: Recipe) -> Built:
    plan, config = WeightPlan(), CONFIGS[name]
    one = np.ones((config.num_key_value_heads, config.head_dim), np.float32)
    scales = [LayerScales(one, one)] * config.num_hidden_layers if is_coded(recipe) else None
    return Built(config, recipe, plan, build_graphs(traced(name).clone(), plan, config, recipe, scales))


def is_coded(recipe: Recipe) -> bool:
    return recipe.precision.key_value_cache == "int8"


@pytest.fixture(scope="module", params=[(c, r) for c in CONFIGS for r in RECIPES], ids="-".join)
def built(request: pytest.FixtureRequest) -> Built:
    name, recipe = request.param
    return build(name, RECIPES[recipe])


def other(quantization: Quantization) -> Recipe:
    return dataclasses.replace(load_recipe("cuda-fp16"), name="other", quantization=quantization)


FOUR, EIGHT = MatrixSettings(4, 32, False, "float16"), MatrixSettings(8, 32, True, "float16")
#: What --budget may come to: every matrix for itself.
ALLOCATED = other(
    Quantization(
        "round-to-nearest",
        0,
        FOUR,
        EIGHT,
        EIGHT,
        overrides=(
            Override("model.layers.*.self_attn.v_proj", bits=8, symmetric=True),
            Override("model.layers.*.mlp.up_proj", block_size=64),
        ),
    )
)


def test_files(built: Built) -> None:
    assert set(built.graphs) == set(GRAPHS)


@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_nothing_runs_on_the_host(graph: Graph, built: Built) -> None:
    model = built.graphs[graph]
    assert not ON_THE_HOST & {node.op_type for node in model.graph}
    assert "attention_mask" not in {value.name for value in model.graph.inputs}
    constants = [node for node in model.graph if node.op_type == "Constant"]
    assert len(constants) == (graph == "prefill")  # the last position, [-1]


@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_operators(graph: Graph, built: Built) -> None:
    layers, quantization = built.config.num_hidden_layers, built.recipe.quantization
    product = "com.microsoft.MatMulNBits" if quantization.linear.quantized else "com.microsoft.FusedMatMul"
    expected = Counter(
        {
            product: 5 * layers + 1,  # q, k and v in one; gate and up apart
            "com.microsoft.GroupQueryAttention": layers,
            "SimplifiedLayerNormalization": 1,
            "com.microsoft.SkipSimplifiedLayerNormalization": 2 * layers,
            "com.microsoft.QuickGelu": layers,
            "Mul": layers,
            "com.microsoft.GatherBlockQuantized" if quantization.embedding.quantized else "Gather": 1,
            "Cast": 1,  # of logits
            "ArgMax": 1,
        }
    )
    if graph == "prefill":
        expected += Counter({"Gather": 1, "Constant": 1})
    assert graph_making.operators(built.graphs[graph]) == expected


@pytest.mark.parametrize("graph", GRAPHS)
def test_inputs_and_outputs_are_the_contracts_alone(graph: Graph | NativeGraph, built: Built) -> None:
    compute, cache = built.recipe.precision.compute, built.recipe.precision.key_value_cache
    for direction, values in (
        ("input", built.graphs[graph].graph.inputs),
        ("output", built.graphs[graph].graph.outputs),
    ):
        specs = contract.tensors(
            graph, direction, built.config, compute=compute, cache=cache, execution_provider="cuda"  # type: ignore[arg-type]
        )  # fmt: skip
        assert [(v.name, v.dtype.numpy().name, v.shape) for v in values] == [  # type: ignore[union-attr]
            (spec.name, spec.dtype, ir.Shape(spec.dims)) for spec in specs
        ]
        if graph != "model":
            assert all(value.uses() for value in values if direction == "input")


def attributes(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def test_attention(built: Built) -> None:
    for graph in ("prefill", "decode"):
        for node in [node for node in built.graphs[graph].graph if node.op_type == "GroupQueryAttention"]:
            assert attributes(node) == {
                "num_heads": 4,
                "kv_num_heads": built.config.num_key_value_heads,
                "do_rotary": 1,
                "rotary_interleaved": int(built.config.model_type == "helium"),
                **(PER_CHANNEL if is_coded(built.recipe) else {}),
            }
            names = [None if value is None else value.name for value in node.inputs]
            assert names[1:3] == [None, None]  # packed
            assert names[5:9] == ["seqlens_k", "total_sequence_length", "cos", "sin"]
            assert names[9:] == ([None, None, None, *scales_of(node)] if is_coded(built.recipe) else [])


PER_CHANNEL = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


def scales_of(attention: ir.Node) -> list[str]:
    """The names of its layer's scales."""
    layer = next(str(v.name).split(".")[1] for v in attention.inputs if v and str(v.name).startswith("past_"))
    return [f"model.layers.{layer}.self_attn.{kind}_cache.scales" for kind in ("key", "value")]


@pytest.mark.parametrize("built", [(c, r.name) for c in CONFIGS for r in CODED], ids="-".join, indirect=True)
def test_attention_over_codes(built: Built) -> None:
    """In every graph past and present are codes beside float32 scales, and tables have the type of the rest."""
    compute = ir.DataType[built.recipe.precision.compute.upper()]
    for graph in GRAPHS:
        nodes = [n for n in built.graphs[graph].graph if n.op_type in ("GroupQueryAttention", "DeviceAttentionInt8")]
        assert len(nodes) == built.config.num_hidden_layers
        for node in nodes:
            at = 3 if node.op_type == "GroupQueryAttention" else 1
            caches = (*node.inputs[at : at + 2], *node.outputs[1:])
            assert [cache.dtype for cache in caches if cache is not None] == [ir.DataType.INT8] * 4
            key, value = node.inputs[-2:]
            assert key is not None and value is not None
            assert [key.name, value.name] == scales_of(node)
            assert {key.dtype, value.dtype} == {ir.DataType.FLOAT}
            assert key.shape == value.shape == ir.Shape([1, built.config.num_key_value_heads, 1, 16])
        tables = built.graphs[graph].graph.initializers
        assert tables["cos"].dtype == tables["sin"].dtype == compute
        casts = [n for n in built.graphs[graph].graph if n.op_type == "Cast"]
        floats = [n for n in casts if n.attributes["to"].as_int() in (compute, ir.DataType.FLOAT)]
        assert len(floats) == (graph in ("prefill", "decode"))  # of logits


@pytest.mark.parametrize("graph", GRAPHS)
def test_products_read_rows_as_the_checkpoint_has_them(graph: Graph | NativeGraph, built: Built) -> None:
    for node in built.graphs[graph].graph:
        if node.op_type == "FusedMatMul":
            assert attributes(node) == {"transB": 1}
            weight = node.inputs[1]
            assert weight is not None and weight.is_initializer()
            assert str(weight.name).endswith(".weight")
        if node.op_type == "MatMulNBits":
            assert node.attributes["accuracy_level"].as_int() == 0
            assert all(value is not None and value.is_initializer() for value in node.inputs[1:])  # no Cast of scales


def five_nodes(layer: int, graph: ir.Graph) -> Iterator[tuple[str, dict[str, object]]]:
    nodes = [node for node in graph if f"layers.{layer}." in str(node.name)]
    yield from ((node.op_type, attributes(node)) for node in nodes)


DEVICE_ATTENTION = {False: "DeviceAttention", True: "DeviceAttentionInt8"}


def test_a_native_layer_is_five_nodes(built: Built) -> None:
    graph, config = built.graphs["native_decode"].graph, built.config
    assert {node.domain for node in graph} == {KERNELS}
    queries, keys, hidden, inner = 64, 16 * config.num_key_value_heads, 64, config.intermediate_size
    for layer in range(config.num_hidden_layers):
        (qkv, attention, o, gated, down) = five_nodes(layer, graph)
        assert [op for op, _ in (qkv, attention, o, gated, down)] == [
            "DeviceLinear", DEVICE_ATTENTION[is_coded(built.recipe)], "DeviceLinear", "DeviceLinear", "DeviceLinear",
        ]  # fmt: skip
        flags = [(a["norm"], a["residual"], a["gated"]) for _, a in (qkv, o, gated, down)]
        assert flags == [(1, 0, 0), (0, 1, 0), (1, 0, 1), (0, 1, 0)]
        assert [tuple(a["rows"]) for _, a in (qkv, o, gated, down)] == [  # type: ignore[arg-type]
            (queries + 2 * keys,), (hidden,), (inner, inner), (hidden,),
        ]  # fmt: skip
        assert [a["columns"] for _, a in (qkv, o, gated, down)] == [hidden, queries, hidden, inner]
        assert [round(a["epsilon"], 12) for _, a in (qkv, o, gated, down)] == [  # type: ignore[call-overload]
            config.rms_norm_eps, 0, config.rms_norm_eps, 0,
        ]  # fmt: skip
    first, *_, head, chosen = list(graph)
    assert (first.op_type, head.op_type, chosen.op_type) == ("DeviceEmbedding", "DeviceLinear", "DeviceArgMax")
    assert (head.attributes["norm"].as_int(), head.attributes["rows"].as_ints()) == (1, (320,))
    assert len(list(graph)) == 5 * config.num_hidden_layers + 3


def test_native_attributes_describe_the_weights(built: Built) -> None:
    for node in built.graphs["native_decode"].graph:
        if node.op_type not in ("DeviceLinear", "DeviceEmbedding"):
            continue
        alone = node.op_type == "DeviceEmbedding"
        at = 1 if alone else 1 + node.attributes["norm"].as_int() + node.attributes["residual"].as_int()
        weights = list(node.inputs[at:])
        columns = node.attributes["columns"].as_int()

        def each(name: str, node: ir.Node = node, alone: bool = alone) -> list[int]:
            return [node.attributes[name].as_int()] if alone else list(node.attributes[name].as_ints())

        rows = [320] if alone else each("rows")
        for n, bits, size, zeros in zip(rows, each("bits"), each("block_size"), each("has_zeros"), strict=True):
            taken, weights = weights[: (count := 1 if bits == 16 else 2 + zeros)], weights[count:]
            shapes = [tuple(value.shape or ()) for value in taken if value is not None]
            if bits == 16:
                assert (size, zeros, shapes) == (0, 0, [(n, columns)])
            else:
                blocks = -(-columns // size)
                quanta = (n, columns * bits // 8) if alone else (n, blocks, size * bits // 8)
                assert shapes == [quanta, (n, blocks), (n, -(-blocks * bits // 8))][:count]
        assert not weights


@pytest.mark.parametrize("graph", GRAPHS)
def test_stored_in_the_type_of_the_recipe(graph: Graph | NativeGraph, built: Built) -> None:
    kind = ir.DataType[built.recipe.precision.compute.upper()]
    for value in built.graphs[graph].graph.initializers.values():
        quanta = str(value.name).endswith((".quantized", ".zero_points"))
        steps = str(value.name).endswith("_cache.scales")
        expected = ir.DataType.UINT8 if quanta else ir.DataType.FLOAT if steps else kind
        assert value.dtype == expected, value.name
        assert isinstance(value.const_value, ir.ExternalTensor)
        assert value.const_value.location == "model.onnx_data"


def places(model: ir.Model) -> set[tuple[int | None, int | None]]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return {(tensor.offset, tensor.length) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def test_one_copy_of_each_weight(built: Built) -> None:
    """All graphs read the same bytes, no matrix is stored twice, and nothing is stored that nobody reads."""
    records = built.plan.records()
    stored = {(record.offset, record.nbytes) for record in records}
    for graph in GRAPHS:
        assert places(built.graphs[graph]) == stored
    sources = Counter(
        source for record in records if not record.name.endswith((".scales", ".zero_points", "cos", "sin"))
        for source in record.source.split("+")
    )  # fmt: skip
    # A tied head is the embedding's, or quantized in other blocks than it.
    tied = built.config.tie_word_embeddings
    quantization = built.recipe.quantization
    apart = tied and quantization.head != quantization.embedding and quantization.head.quantized
    assert sources.pop("model.embed_tokens.weight") == (2 if apart else 1)
    assert set(sources.values()) == {1}
    assert ("lm_head.weight" in sources) is not tied


def test_no_split_but_for_other_clients(built: Built) -> None:
    for graph in GRAPHS:
        splits = graph_making.operators(built.graphs[graph])["Split"]
        assert splits == (built.config.num_hidden_layers if graph == "model" else 0)


def test_an_allocation_that_packs_nothing() -> None:
    built = build("2 layers", ALLOCATED)
    attention = [node for node in built.graphs["decode"].graph if node.op_type == "GroupQueryAttention"]
    assert all(value is not None for node in attention for value in node.inputs[:3])
    for graph in ("prefill", "decode"):
        assert not ON_THE_HOST & {node.op_type for node in built.graphs[graph].graph}
    graph = built.graphs["native_decode"].graph
    assert len(list(graph)) == 2 * 5 + 3
    (_, qkv), _, _, (_, gated), _ = five_nodes(1, graph)
    assert (tuple(qkv["rows"]), tuple(qkv["bits"])) == ((64, 32, 32), (4, 4, 8))  # type: ignore[arg-type]
    assert (tuple(gated["bits"]), tuple(gated["block_size"])) == ((4, 4), (32, 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [("cuda-fp16", "cuda-bf16"), ("fp16-kv8", "bf16-kv8")], ids="-".join)
def test_bfloat16_graphs_are_float16s_in_another_type(pair: tuple[str, str]) -> None:
    """So that what is run of the one holds for the other."""
    half, brain = (build("2 layers", RECIPES[name]).graphs for name in pair)
    for graph in GRAPHS:
        one, other = (str(ir.serde.serialize_model(graphs[graph])) for graphs in (half, brain))
        # The lowest number of the type is a constant of model.onnx; else nothing differs.
        changed = [(a.strip(), b.strip()) for a, b in zip(one.splitlines(), other.splitlines(), strict=True) if a != b]
        types = {pair for pair in changed if "raw_data" not in pair[0]}
        assert types == {("elem_type: 10", "elem_type: 16"), ("data_type: 10", "data_type: 16")}
        assert len(changed) - len([pair for pair in changed if pair in types]) == (graph == "model")


@pytest.mark.parametrize(
    ("sizes", "native"),
    [
        ({"num_attention_heads": 2, "num_key_value_heads": 1}, True),
        ({"num_attention_heads": 1, "num_key_value_heads": 1}, True),
        ({"num_key_value_heads": 1}, True),
        ({"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 1}, False),
        ({"num_attention_heads": 8, "num_key_value_heads": 8}, False),
        ({"hidden_size": 192}, False),
        ({"hidden_size": 1024}, False),
        ({"intermediate_size": 100}, False),
        ({"vocab_size": 321}, False),
    ],
    ids=str,
)
def test_sizes_that_our_kernels_take(sizes: dict[str, int], native: bool) -> None:
    """Heads are ``hidden_size`` divided by their number."""
    assert has_native_graphs(graph_making.config(**sizes), load_recipe("cuda-fp16")) is native


@pytest.mark.parametrize(("block_size", "native"), [(16, False), (32, True), (64, True), (128, True), (256, True)])
@pytest.mark.parametrize("kind", ["linear", "head", "embedding"])
def test_blocks_that_our_kernels_take(kind: str, block_size: int, native: bool) -> None:
    settings = dataclasses.replace(FOUR, block_size=block_size)
    quantization = dataclasses.replace(Quantization("round-to-nearest", 0), **{kind: settings})
    assert has_native_graphs(CONFIGS["2 layers"], other(quantization)) is native
    plain = dataclasses.replace(quantization, **{kind: MatrixSettings(block_size=16)})  # without effect
    assert has_native_graphs(CONFIGS["2 layers"], other(plain))


def test_a_model_that_our_kernels_do_not_take_has_the_others() -> None:
    config = graph_making.config(num_attention_heads=8, num_key_value_heads=8, num_hidden_layers=1)
    graphs = build_graphs(trace(config), WeightPlan(), config, load_recipe("cuda-fp16"))
    assert set(graphs) == set(contract.GRAPHS)
