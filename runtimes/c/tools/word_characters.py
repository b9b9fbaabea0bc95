"""Writes src/word_characters.inl: python runtimes/c/tools/word_characters.py

What the `tokenizers` library takes for a part of a word, asked of the library itself: beside such a character an added
token that is a single word is text.
"""

from __future__ import annotations

from pathlib import Path

import tokenizers

TARGET = Path(__file__).parents[1] / "src/word_characters.inl"


def main() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.Unigram([("?", 0.0)], 0, False))
    library.add_special_tokens([tokenizers.AddedToken("<x>", single_word=True, normalized=False)])
    token = library.token_to_id("<x>")
    ranges: list[list[int]] = []
    for first in range(0, 0x110000, 4096):
        codes = [code for code in range(first, first + 4096) if not 0xD800 <= code < 0xE000]
        for code, encoding in zip(codes, library.encode_batch([f"{chr(code)}<x>" for code in codes]), strict=True):
            if token in encoding.ids:
                continue
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    items = [f"{{0x{first:x}, 0x{last:x}}}," for first, last in ranges]
    lines = [" ".join(items[start : start + 6]) for start in range(0, len(items), 6)]
    version = tokenizers.__version__
    head = f"// Written by tools/word_characters.py from tokenizers {version}: first and last of each range."
    TARGET.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
