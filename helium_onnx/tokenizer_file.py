"""Reads tokenizer.json and holds it against the model's config, before anything is built from it.

The ``tokenizers`` library itself loads a vocabulary in which one piece has two ids, or an added token that it gives
another id than the file says, without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helium_onnx.errors import TokenizerError

COPY_IT = "copy the checkpoint's own tokenizer.json again"
_SAME_CHECKPOINT = "take tokenizer.json and config.json from the same checkpoint"


def read_spec(
    folder: Path, vocab_size: int, bos_token_id: int | None, eos_token_ids: tuple[int, ...]
) -> dict[str, Any]:
    """The parsed ``folder/tokenizer.json``.

    Raises:
        TokenizerError: as ``Tokenizer.from_folder``.
    """
    path = folder / "tokenizer.json"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TokenizerError("The tokenizer is missing", found=f"no {path}", remedy=COPY_IT) from error
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read", found=error, remedy="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is malformed", found=error, expected="JSON", remedy=COPY_IT) from error
    try:
        _check_spec(spec, vocab_size, bos_token_id, eos_token_ids)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TokenizerError(
            f"{path} is malformed", found=repr(error), expected="a Unigram tokenizer", remedy=COPY_IT
        ) from error
    checked: dict[str, Any] = spec
    return checked


def appended(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The added tokens that stand behind the model's own pieces, by id."""
    size = len(spec["model"]["vocab"])
    return sorted((token for token in spec["added_tokens"] if token["id"] >= size), key=lambda token: int(token["id"]))


def _check_spec(spec: Any, vocab_size: int, bos_token_id: int | None, eos_token_ids: Iterable[int]) -> None:
    """Hold a parsed tokenizer.json against the model. Raises TokenizerError; KeyError and the like on wrong types."""
    kind = spec["model"]["type"]
    if kind != "Unigram":
        raise TokenizerError("The tokenizer is none of Helium's", found=f"a {kind} model", expected="a Unigram model")
    pieces = [str(piece) for piece, _ in spec["model"]["vocab"]]
    unk_id = spec["model"].get("unk_id")
    if not isinstance(unk_id, int) or not 0 <= unk_id < len(pieces):
        # Without it the library raises at the first unknown character of a prompt, byte fallback or not.
        raise TokenizerError("The tokenizer has no unknown token", found=f"unk_id {unk_id}", expected="an id")
    ids = {piece: index for index, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if ids[piece] != index)
        raise TokenizerError("A piece of the tokenizer has two ids", found=repr(twice), remedy=COPY_IT)
    for token in spec["added_tokens"]:
        index, content = int(token["id"]), str(token["content"])
        bool(token["special"])
        holder = pieces[index] if 0 <= index < len(pieces) else content
        if index < 0 or holder != content or ids.setdefault(content, index) != index:
            raise TokenizerError(
                "An id of the tokenizer is used twice",
                found=f"added token {content!r} with id {index}, where the vocabulary has "
                f"{holder!r} and gives {content!r} the id {ids.get(content, index)}",
                expected="one id for each token",
                remedy=COPY_IT,
            )
    taken = set(ids.values())
    if len(taken) != len(ids):
        raise TokenizerError("An id of the tokenizer is used twice", found=f"{len(ids)} tokens, {len(taken)} ids")
    if taken != set(range(vocab_size)):
        raise TokenizerError(
            "The tokenizer does not fit the model's vocabulary",
            found=f"{len(taken)} ids, the largest {max(taken, default=None)}",
            expected=f"{vocab_size} ids, 0 to {vocab_size - 1}",
            remedy=_SAME_CHECKPOINT,
        )
    named = {"bos_token_id": [] if bos_token_id is None else [bos_token_id], "eos_token_id": list(eos_token_ids)}
    for name, wanted in named.items():
        for token_id in wanted:
            if token_id not in taken:
                raise TokenizerError(
                    f"The tokenizer lacks the {name} of config.json",
                    found=token_id,
                    expected=f"0 to {vocab_size - 1}",
                    remedy=_SAME_CHECKPOINT,
                )
