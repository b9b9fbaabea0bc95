"""Which language is a text in? An adapter of 95 kB over helium-docs-7m, exported to a classifier, and asked.

python samples/language_id.py                       # some sentences, and the accuracy on pages never trained on
python samples/language_id.py "Ein Satz" "A text"   # your own
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import helium_onnx

HERE = Path(__file__).parent
PAGES = HERE.parent / "benchmarks/data/valid.jsonl"
SENTENCES = (
    "Wählen Sie Datei - Drucken, um das Dokument zu drucken.",
    "Choose File - Print to print the document.",
    "Seleccione Archivo - Imprimir para imprimir el documento.",
    "Choisissez Fichier - Imprimer pour imprimer le document.",
    "Scegliete File - Stampa per stampare il documento.",
    "Escolha Ficheiro - Imprimir para imprimir o documento.",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = helium_onnx.export(
            HERE / "helium-docs-7m",
            Path(folder) / "bundle",
            task="text-classification",
            adapter=HERE / "classifiers/language-id",
            recipe="cpu-int4",
        )
        print(f"exported {bundle.total_bytes / 1e6:.1f} MB\n")
        with helium_onnx.load(bundle.path, task="text-classification") as model:
            texts = sys.argv[1:] or list(SENTENCES)
            for text, labels in zip(texts, model.classify(texts, top_k=2), strict=True):
                print(f"{text}\n    " + ", ".join(f"{one.label} {one.score:.3f}" for one in labels))
            if not sys.argv[1:] and PAGES.is_file():
                with PAGES.open(encoding="utf-8") as lines:
                    pages = [json.loads(line) for line in lines]
                found = model.classify([page["text"] for page in pages], truncate=True)
                right = sum(labels[0].label == page["lang"] for page, labels in zip(pages, found, strict=True))
                print(f"\n{right} of {len(pages)} help pages as their files are marked; classifiers/README.md has more")


if __name__ == "__main__":
    main()
