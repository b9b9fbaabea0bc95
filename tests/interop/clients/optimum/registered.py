"""optimum with helium_onnx.optimum in it: a JSON job on standard input, a JSON result on the last line of standard
output. PYTHONPATH names the checkout.

The job's ``steps`` are objects with ``do``; the result is the list of what each gave:

- ``register`` (``options`` of register()) and ``unregister``: for each place, whether main_export is optimum's own.
- ``load``: ``class`` of optimum.onnxruntime, ``model`` (a checkpoint to export, or a folder with a graph where
  ``export`` is false), ``options`` of from_pretrained. Keeps the model for the steps after it.
- ``generate``: ``prompts`` (lists of ids) as one batch padded on the left, ``options``; the new ids up to and with eos.
- ``forward``: the model's ``output`` for ``ids`` and ``mask`` (lists of rows), beside that of ``theirs``, a class of
  transformers that reads ``checkpoint``: the largest difference at real tokens as a part of the largest value.
- ``save``: save_pretrained to ``folder``.
- ``main_export``: its arguments by ``options``. Gives the error, if there is one.

``load``, ``save`` and ``main_export`` give the files of the folder with their SHA-256, and the graph's operators of
other domains than ONNX's own.
"""

import hashlib
import json
import sys
from pathlib import Path

import onnx
import optimum.onnxruntime
import torch
import transformers
from optimum.exporters.onnx import __main__ as exporter

import helium_onnx.optimum

PAD, EOS = 3, 2
OWN = exporter.main_export


def main():
    state = {}
    steps = json.load(sys.stdin)["steps"]
    print(json.dumps([globals()[step.pop("do")](state, **step) for step in steps]))


def register(_, options):
    helium_onnx.optimum.register(**options)
    return owned()


def unregister(_):
    helium_onnx.optimum.unregister()
    return owned()


def owned():
    return [sys.modules[name].main_export is OWN for name in helium_onnx.optimum._PLACES]


def load(state, model, export=True, options=(), **names):
    state["model"] = getattr(optimum.onnxruntime, names["class"]).from_pretrained(model, export=export, **dict(options))
    return described(Path(state["model"].session._model_path).parent)


def described(folder):
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return {"files": files, "operators": sorted({node.op_type for node in graph.node if node.domain})}


def generate(state, prompts, options):
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        output = state["model"].generate(input_ids=ids, attention_mask=mask, **options)
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in output[:, width:].tolist()]


def forward(state, ids, mask, output, theirs, checkpoint):
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    model = getattr(transformers, theirs).from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        found = state["model"](input_ids=ids, attention_mask=mask)[output]
        expected = model(input_ids=ids, attention_mask=mask)[output]
    if found.dim() == 3:  # a row of padding is nobody's
        found, expected = found[mask == 1], expected[mask == 1]
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def save(state, folder):
    state["model"].save_pretrained(folder)
    return described(Path(folder))


def main_export(_, options):
    try:
        optimum.exporters.onnx.main_export(**options)
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}
    return described(Path(options["output"]))


if __name__ == "__main__":
    main()
