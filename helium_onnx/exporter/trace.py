"""Trace the PyTorch module to one ONNX graph without holding a weight.

The module is built and traced under fake tensors, so a 2 B model costs no more memory than a tiny one. Since the
layers of a decoder are all alike, two of them are traced and the second is repeated in the graph
(``passes/repeat_layers.py``): a trace of 24 layers would take ten times as long and give the same nodes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helium_onnx.checkpoint import EMBEDDING, HEAD
from helium_onnx.config import HeliumConfig
from helium_onnx.exporter.passes.repeat_layers import RepeatLayers
from helium_onnx.exporter.passes.rewriting import static_shape
from helium_onnx.modeling import HeliumForCausalLM, HeliumWithoutHead

#: The standard operator set of all graphs: what torch's exporter writes without a version conversion. Set 23 would
#: ask for IR version 11, which device runtimes refuse (graphs.IR_VERSION).
OPSET = 18


def trace(config: HeliumConfig) -> ir.Model:
    """The canonical graph: inputs and outputs of the contract's ``model`` row, weights as initializers without data.

    Besides standard operators it holds nodes of ``modeling.DOMAIN``, which the passes lower. Initializers bear the
    checkpoint's tensor names, and ``cos`` and ``sin`` are the rotary tables.
    """
    traced_layers = min(config.num_hidden_layers, 2)
    model = _export(dataclasses.replace(config, num_hidden_layers=traced_layers))
    if config.tie_word_embeddings and (shared := model.graph.initializers.get(HEAD)) is not None:
        # The exporter keeps one of a tied pair's names for both, the head's; the checkpoint has the embedding's alone.
        shared.name = EMBEDDING
    for name, value in model.graph.initializers.items():
        value.const_value = placeholder(name, value.dtype or ir.DataType.FLOAT, static_shape(value))
    if config.num_hidden_layers > traced_layers:
        RepeatLayers(config.num_hidden_layers)(model)
    return model


def placeholder(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.ExternalTensor:
    """A tensor that stands in the graph until the weights file is laid out."""
    return ir.ExternalTensor("", 0, 0, dtype, shape=ir.Shape(shape), name=name)


def _export(config: HeliumConfig) -> ir.Model:
    with FakeTensorMode(), _quiet():
        module, arguments, names = (_language_model if config.task == "text-generation" else _without_head)(config)
        program = torch.onnx.export(
            module.eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # its folding wants real data, and our passes know what they look for
            verbose=False,
            input_names=names.inputs,
            output_names=names.outputs,
            dynamic_shapes=names.dynamic_shapes,
        )
    assert program is not None
    return program.model


@dataclass(frozen=True)
class _Names:
    inputs: list[str]
    outputs: list[str]
    dynamic_shapes: tuple[object, ...]


#: Example sizes differ from each other and from 0 and 1, so that the exporter cannot take one for another.
_BATCH, _NEW, _PAST = 2, 3, 5


def _language_model(config: HeliumConfig) -> tuple[torch.nn.Module, tuple[object, ...], _Names]:
    """The module, example arguments, and what the graph calls them."""
    kinds = [f".{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    past = [torch.zeros(_BATCH, config.num_key_value_heads, _PAST, config.head_dim) for _ in kinds]
    arguments = (
        torch.zeros(_BATCH, _NEW, dtype=torch.long),
        torch.ones(_BATCH, _PAST + _NEW, dtype=torch.long),
        past,
    )
    names = _Names(
        ["input_ids", "attention_mask", *("past_key_values" + k for k in kinds)],
        ["logits", *("present" + k for k in kinds)],
        (
            {0: "batch_size", 1: "sequence_length"},
            {0: "batch_size", 1: "total_sequence_length"},
            [{0: "batch_size", 2: "past_sequence_length"}] * len(kinds),
        ),
    )
    return HeliumForCausalLM(config), arguments, names


def _without_head(config: HeliumConfig) -> tuple[torch.nn.Module, tuple[object, ...], _Names]:
    """Likewise for the other tasks."""
    row = {0: "batch_size", 1: "sequence_length"}
    output = "last_hidden_state" if config.task == "feature-extraction" else "logits"
    arguments = (torch.zeros(_BATCH, _NEW, dtype=torch.long), torch.ones(_BATCH, _NEW, dtype=torch.long))
    return HeliumWithoutHead(config), arguments, _Names(["input_ids", "attention_mask"], [output], (row, row))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on packages that we do not use off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as void, contextlib.redirect_stdout(void):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
