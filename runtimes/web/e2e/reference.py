"""Exports the sample checkpoint and writes what Python generates from it: what a browser must give too.

    python reference.py OUT

makes OUT/<recipe>/ for each recipe and OUT/reference.json. The graphs are those that browsers run: a bundle's native
graphs round otherwise. So do ONNX Runtime's own kernels for 4-bit weights where they compute with activations in int8
(accuracy_level 4, which WebAssembly has no kernel for): the reference computes with them in float32 (accuracy_level 1).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.generation.model import LanguageModel
from helium_onnx.generation.request import GenerationOptions
from helium_onnx.loading import load_tokenizer
from helium_onnx.runtimes.key_value_cache import GrowingPast
from helium_onnx.runtimes.session import Past, Phase

CHECKPOINT = Path(__file__).parents[3] / "samples/helium-docs-7m"
RECIPES = ("cpu-fp32", "cpu-int4", "cpu-int8", "portable-fp32")
GREEDY: GenerationOptions = {"max_new_tokens": 200, "ignore_eos": True}
SAMPLED: GenerationOptions = {"max_new_tokens": 100, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01,
                              "repetition_penalty": 1.1, "seed": 2024, "ignore_eos": True}  # fmt: skip
STOPPED: GenerationOptions = {"max_new_tokens": 100, "stop": ["\n", ". "]}
PROMPTS: dict[str, tuple[str, GenerationOptions]] = {
    "greedy": ("Pour insérer un tableau dans un document texte,", GREEDY),
    "long": ("Open the dialog and choose a colour. " * 20, {**GREEDY, "max_new_tokens": 60}),
    # On a GPU a prompt is cut after 16 tokens, and the rest runs after a past.
    "chunked": ("Select the cells that you want to format, and then choose the menu Format. " * 2,
                {**GREEDY, "max_new_tokens": 8}),
    "sampled": ("Per inserire una tabella,", SAMPLED),
    "stopped": ("To insert a table,", STOPPED),
}  # fmt: skip


class ReferenceSession:
    """prefill.onnx and decode.onnx with float32 activations, one row at a time (a ``Session`` of the package)."""

    exact_split = 0

    def __init__(self, bundle: Bundle) -> None:
        self.vocab_size = int(bundle.model_config["vocab_size"])
        self.context_length = int(bundle.model_config["max_position_embeddings"])
        specs = bundle.manifest.graphs["prefill"].inputs
        self._specs = tuple(spec for spec in specs if spec.name.startswith("past_key_values."))
        self._sessions = {phase: _float32_session(bundle.graph_path(phase)) for phase in ("prefill", "decode")}

    def new_past(self, rows: int) -> Past:
        return GrowingPast.empty(self._specs, rows)

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        assert isinstance(past, GrowingPast) and len(past.tensors) == 1
        past.lengths += input_ids.shape[1]
        names = [spec.name for spec in self._specs]
        feed = {"input_ids": input_ids, "attention_mask": np.ones((1, int(past.lengths[0])), np.int64)}
        feed.update(zip(names, past.tensors[0], strict=True))
        presents = [name.replace("past_key_values", "present") for name in names]
        logits, *past.tensors[0][:] = self._sessions[phase].run(["logits", *presents], feed)
        result: NDArray[np.float32] = logits
        return result


def _float32_session(path: Path) -> ort.InferenceSession:
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 1
    changed = path.with_suffix(".float32.onnx")  # beside its weights
    try:
        onnx.save(graph, changed)
        return ort.InferenceSession(changed)
    finally:
        changed.unlink()


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    reference: dict[str, Any] = {}
    for recipe in RECIPES:
        folder = out / recipe
        if not (folder / "helium.json").exists():
            command = [sys.executable, "-m", "helium_onnx", "export", str(CHECKPOINT), str(folder), "-r", recipe, "-q"]
            subprocess.run(command, check=True)
        bundle = Bundle.open(folder)
        model = LanguageModel(ReferenceSession(bundle), load_tokenizer(bundle))
        for name, (prompt, options) in PROMPTS.items():
            plain: GenerationOptions = {**options, "speculation": "off"}
            [generation] = model.generate(prompt, **plain)
            reference.setdefault(recipe, {})[name] = {
                "prompt": prompt,
                "options": options,
                "text": generation.text,
                "token_ids": generation.token_ids,
                "finish_reason": generation.finish_reason,
                "stop": generation.stop,
                "prompt_tokens": generation.prompt_tokens,
            }
    (out / "reference.json").write_text(json.dumps(reference), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
