"""What each way to store the weights costs in fidelity: the table of export/README.md.

    python benchmarks/quantization_table.py        # helium-docs-7m, 40 held-out pages, some minutes on 2 cores

Weights are quantized and put back into the PyTorch model, so activations stay float32: the loss is the weights' alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.exporter.quantize import dequantize
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.recipe import MatrixSettings
from helium_onnx.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
PAGES, SHORTEST, LONGEST = 40, 64, 1024


@dataclass(frozen=True)
class Candidate:
    linear: MatrixSettings
    head: MatrixSettings
    embedding: MatrixSettings

    @classmethod
    def alike(cls, settings: MatrixSettings) -> Candidate:
        return cls(settings, settings, settings)

    def settings_of(self, name: str) -> MatrixSettings:
        return self.embedding if "embed_tokens" in name else self.head if "lm_head" in name else self.linear


def candidates() -> list[Candidate]:
    four = [MatrixSettings(4, block, symmetric) for block in (32, 64, 128) for symmetric in (True, False)]
    eight = MatrixSettings(8, 128, True)
    default = MatrixSettings(4, 64, False)
    return [*map(Candidate.alike, four), Candidate(default, eight, default), Candidate.alike(eight)]


def pages(checkpoint: Checkpoint) -> list[Tensor]:
    config = checkpoint.config
    tokenizer = Tokenizer.from_folder(
        checkpoint.folder,
        vocab_size=config.vocab_size,
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
    )
    lines = (ROOT / "benchmarks/data/valid.jsonl").read_text(encoding="utf-8").splitlines()
    encoded = (tokenizer.encode(json.loads(line)["text"])[:LONGEST] for line in lines)
    return [torch.tensor([ids]) for ids in encoded if len(ids) >= SHORTEST][:PAGES]


def log_probabilities(model: HeliumForCausalLM, texts: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(ids, torch.ones_like(ids), model.empty_past())[0][0].log_softmax(-1) for ids in texts]


def nll(rows: Tensor, ids: Tensor) -> float:
    return -float(rows[:-1].gather(1, ids[0, 1:, None]).sum())


def main() -> None:
    checkpoint = Checkpoint.open(ROOT / "samples/helium-docs-7m")
    texts = pages(checkpoint)
    reference = log_probabilities(HeliumForCausalLM.from_checkpoint(checkpoint), texts)
    predicted = sum(ids.shape[1] - 1 for ids in texts)
    print("| linear | head | embedding | bits a weight | ln(perplexity ratio) | mean KL | same top-1 |")
    print("|---|---|---|---|---|---|---|")
    for candidate in candidates():
        model, stored, weights = HeliumForCausalLM.from_checkpoint(checkpoint), 0, 0
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                continue
            settings = candidate.settings_of(name)
            rows = quantize_rows(parameter.numpy().copy(), settings)
            parameter.data = torch.from_numpy(dequantize(rows, settings, parameter.shape[1]))
            parts = (rows.data, rows.scales, rows.zero_points)
            stored += sum(part.nbytes for part in parts if part is not None)
            weights += parameter.numel()
        found = log_probabilities(model, texts)
        divergence = torch.cat([(r.exp() * (r - q)).sum(-1) for r, q in zip(reference, found, strict=True)])
        same = torch.cat([(r.argmax(-1) == q.argmax(-1)).float() for r, q in zip(reference, found, strict=True)])
        loss = sum(nll(q, t) - nll(r, t) for r, q, t in zip(reference, found, texts, strict=True)) / predicted
        kinds = [
            f"{s.bits}/{s.block_size}{'' if s.symmetric else ' zp'}"
            for s in (candidate.linear, candidate.head, candidate.embedding)
        ]
        print(
            f"| {' | '.join(kinds)} | {8 * stored / weights:.2f} | {loss:.4f} | {divergence.mean():.4f} "
            f"| {100 * same.mean():.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
