"""From a checkpoint to text, in one file: export the sample, load the bundle, stream, then a batch.

python samples/quickstart.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import helium_onnx

CHECKPOINT = Path(__file__).parent / "helium-docs-7m"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = helium_onnx.export(CHECKPOINT, Path(folder) / "bundle", recipe="cpu-int4")
        print(f"exported {bundle.total_bytes / 1e6:.1f} MB\n")

        with helium_onnx.load(bundle.path) as model:
            prompt = "To insert a table in a text document,"
            print(prompt, end="")
            for piece in model.stream(prompt, max_new_tokens=30):
                print(piece, end="", flush=True)
            print("\n")

            prompts = ["Pour insérer un tableau,", "Para insertar una tabla,", "Um eine Tabelle einzufügen,"]
            result = model.generate(prompts, max_new_tokens=20, temperature=0.7, top_p=0.95, seed=0)
            for text, generation in zip(prompts, result, strict=True):
                print(f"{text}{generation.text}   [{generation.finish_reason}]")
            print(f"\n{result.timings.decode_tokens_per_second:.0f} tokens/s")


if __name__ == "__main__":
    main()
