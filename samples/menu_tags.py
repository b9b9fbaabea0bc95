"""Which words of a help text are commands of a menu, and which are keys? An adapter over helium-docs-7m says so.

python samples/menu_tags.py                                          # some sentences
python samples/menu_tags.py "Choose File - Print, or press Ctrl+P."  # your own
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import helium_onnx

HERE = Path(__file__).parent
SENTENCES = (
    "Choose Insert - Image - From File, or press Ctrl+Shift+I.",
    "Wählen Sie Format – Absatz – Tabulatoren und drücken Sie Umschalt+Tab.",
    "Choisissez Outils - Options - LibreOffice Writer ou appuyez sur Maj+F3.",
    "Elija Herramientas ▸ Opciones o pulse Ctrl + F5.",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = helium_onnx.export(
            HERE / "helium-docs-7m",
            Path(folder) / "bundle",
            task="token-classification",
            adapter=HERE / "classifiers/menu-tags",
            recipe="cpu-int4",
        )
        print(f"exported {bundle.total_bytes / 1e6:.1f} MB\n")
        with helium_onnx.load(bundle.path, task="token-classification") as model:
            texts = sys.argv[1:] or list(SENTENCES)
            for text, entities in zip(texts, model.tag(texts), strict=True):
                print(text)
                for one in entities:
                    print(f"    {one.label:5}{one.score:6.3f}  characters {one.start}-{one.end}: {one.text}")


if __name__ == "__main__":
    main()
