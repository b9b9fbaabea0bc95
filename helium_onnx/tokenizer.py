"""Text to token ids and back, over the ``tokenizers`` library, with its three traps closed.

1. ``</s>``, ``<unk>`` or ``<0x41>`` typed by a user are pieces of Helium's Unigram vocabulary, so the library turns
   them into the control token, whatever ``encode_special_tokens`` says. Prompts are encoded by a second tokenizer in
   which those pieces cannot match; byte fallback, which looks bytes up by those names, is then done here.
2. The library's ``DecodeStream`` raises in the middle of a generation when bytes are no UTF-8, and is quadratic while
   they last. ``TextStream`` decodes token by token, in constant time each.
3. An id outside the vocabulary decodes to nothing, silently. Here it is an error.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from helium_onnx.errors import PromptError, TokenizerError
from helium_onnx.tokenizer_file import COPY_IT, appended, read_spec

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Helium's tokenizer: Unigram with byte fallback, ``<s>`` prepended by its post-processor."""

    def __init__(self, spec: dict[str, Any], *, bos_token_id: int | None, eos_token_ids: tuple[int, ...]) -> None:
        """``spec`` is a parsed tokenizer.json from ``read_spec``; ``from_folder`` is the way in."""
        self._bos_token_id = bos_token_id
        self._eos_token_ids = eos_token_ids
        self._unk_id: int = spec["model"]["unk_id"]
        self._special = {token["id"] for token in spec["added_tokens"] if token["special"]}
        pieces: list[str] = [piece for piece, _ in spec["model"]["vocab"]]
        pieces += [token["content"] for token in appended(spec)]
        self._pieces = pieces
        self._byte_ids: dict[int, int] = {}
        if spec["model"].get("byte_fallback"):
            matches = ((index, _BYTE_PIECE.fullmatch(piece)) for index, piece in enumerate(pieces))
            self._byte_ids = {int(match[1], 16): index for index, match in matches if match}
        self._byte_of = {index: bytes([byte]) for byte, index in self._byte_ids.items()}
        self._hidden = self._special | set(self._byte_of) | {self._unk_id}
        self._json = _json(spec)
        self._plain = self._build_plain(spec)
        # What a token reads as after another one: the decoder strips a space from the first, so one is put before.
        probe = self._plain.encode("a a", add_special_tokens=False).ids
        if self._unk_id in probe:  # a vocabulary without the letter: its byte serves
            probe = self._library.encode("a a", add_special_tokens=False).ids
        self._anchor: int = probe[-1]
        self._anchor_text: str = self._library_for(probe).decode([self._anchor], skip_special_tokens=False)
        self._strips_first_space = not self._library_for(probe).decode(probe).startswith(" ")
        self._bytes: dict[int, bytes] = {}

    @functools.cached_property
    def _library(self) -> tokenizers.Tokenizer:
        """The file as the library reads it. Made when first needed: most prompts never do, and it takes 0.1 s."""
        return _build(self._json)

    def _library_for(self, ids: Sequence[int]) -> tokenizers.Tokenizer:
        """The tokenizer that decodes ``ids``: the plain one, unless its names of control and byte tokens would show."""
        return self._library if self._hidden.intersection(ids) else self._plain

    @classmethod
    def from_folder(
        cls, folder: Path, *, vocab_size: int, bos_token_id: int | None, eos_token_ids: tuple[int, ...]
    ) -> Tokenizer:
        """Read ``folder/tokenizer.json`` and hold it against the model's config.

        ``vocab_size``, ``bos_token_id`` and ``eos_token_ids`` are those of config.json (ONNX Runtime answers an id
        outside the embedding with zeros, so a tokenizer that does not fit is refused here).

        Raises:
            TokenizerError: the file is missing or malformed, is no Unigram model, has other ids than
                0 .. ``vocab_size - 1``, uses an id twice, or lacks a bos or eos id.
        """
        spec = read_spec(Path(folder), vocab_size, bos_token_id, eos_token_ids)
        return cls(spec, bos_token_id=bos_token_id, eos_token_ids=tuple(eos_token_ids))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; equal to the model's."""
        return len(self._pieces)

    @property
    def definition(self) -> str:
        """tokenizer.json as it is used; tokenizers of equal definitions read and write texts alike."""
        return self._json

    @property
    def bos_token_id(self) -> int | None:
        return self._bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._eos_token_ids

    def encode(self, text: str, *, parse_special: bool = False, add_bos: bool = True) -> list[int]:
        """Token ids of ``text``, after ``<s>`` where ``add_bos``.

        ``parse_special`` lets ``<s>``, ``</s>`` and other control tokens in ``text`` count as such: only for text that
        no user wrote. On text without their names both ways give the ids of the ``tokenizers`` library.

        Raises:
            PromptError: ``text`` is no str, holds a lone surrogate, or gives no token at all.
        """
        _check_text(text)
        if parse_special:
            ids: list[int] = self._library.encode(text, add_special_tokens=add_bos).ids
        else:
            encoding = self._plain.encode(text, add_special_tokens=add_bos)
            ids = encoding.ids
            if self._byte_ids and self._unk_id in ids:
                ids = self._fall_back_to_bytes(ids, encoding.tokens)
        if not ids:
            raise PromptError(
                "The prompt is empty",
                expected="at least one character, or a tokenizer that prepends <s>",
                remedy="give a prompt",
            )
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """``encode(text)``, and for each token the characters of ``text`` that it stands for, from and to.

        A token's space before it (Helium writes ``▁``) is left out, so a token of spaces alone, and ``<s>``, stand for
        none; the bytes of one character stand for that character each.

        Raises:
            PromptError: as ``encode``.
        """
        _check_text(text)
        encoding = self._plain.encode(text, add_special_tokens=True)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        pieces = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
        for token_id, surface, (start, end), special in pieces:
            spelled = [token_id]
            if token_id == self._unk_id and self._byte_ids:
                spelled = self._fall_back_to_bytes([token_id], [surface])
            # The library gives the space that the normalizer prepends the place of what follows it.
            if special or not surface.strip("▁"):
                end = start
            while start < end and text[start] == " ":
                start += 1
            ids += spelled
            offsets += [(start, end)] * len(spelled)
        return ids, offsets

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Loses the first space, so a continuation is read with ``stream`` instead.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        for token_id in ids:
            self._check_id(token_id)
        text: str = self._library.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, prompt_ids: Sequence[int]) -> TextStream:
        """Reads the tokens that follow ``prompt_ids`` as text, one by one."""
        nothing_shown = all(not self.token_bytes(token_id) for token_id in prompt_ids)
        return TextStream(self, strip_first_space=nothing_shown and self._strips_first_space)

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 of one token in the middle of a text: ``b" the"``, one byte of a character, or nothing for ``<s>``.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._read_bytes(token_id)
        return known

    def id_to_text(self, token_id: int) -> str:
        """One token for display: ``" the"``, ``"</s>"``, or ``"<0xE6>"`` for a byte that is no character alone.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        try:
            return self.token_bytes(token_id).decode("utf-8") or self._pieces[token_id]
        except UnicodeDecodeError:
            return self._pieces[token_id]

    def _read_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        if token_id in self._special:
            return b""
        if token_id in self._byte_of:
            return self._byte_of[token_id]
        both = [self._anchor, token_id]
        text: str = self._library_for(both).decode(both, skip_special_tokens=False)
        return text[len(self._anchor_text) :].encode("utf-8")

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < len(self._pieces):
            raise TokenizerError(
                "A token id is outside the vocabulary", found=token_id, expected=f"0 to {len(self._pieces) - 1}"
            )

    def _fall_back_to_bytes(self, ids: list[int], surfaces: list[str]) -> list[int]:
        """Replace unknown text by its UTF-8 bytes, all of them or (as the library does) none."""
        out: list[int] = []
        for token_id, surface in zip(ids, surfaces, strict=True):
            spelled = [self._byte_ids.get(byte) for byte in surface.encode("utf-8")] if token_id == self._unk_id else []
            known = [byte_id for byte_id in spelled if byte_id is not None]
            out.extend(known if known and len(known) == len(spelled) else [token_id])
        return out

    def _build_plain(self, spec: dict[str, Any]) -> tokenizers.Tokenizer:
        """A tokenizer in which no text becomes a control token or a byte token."""
        # Helium's normalizer leaves no literal space in a text (it writes ▁), so a piece that holds one never matches.
        # The score stays: the penalty of unknown text is reckoned from the lowest one.
        vocab = [
            [f"{piece} " if index in self._hidden else piece, score]
            for index, (piece, score) in enumerate(spec["model"]["vocab"])
        ]
        plain = _build(
            _json(
                {
                    **spec,
                    "added_tokens": [token for token in spec["added_tokens"] if not token["special"]],
                    "model": {**spec["model"], "vocab": vocab, "byte_fallback": False},
                }
            )
        )
        for index in self._hidden - {self._unk_id}:
            typed = (self._pieces[index], f"{self._pieces[index]} ")
            if any(index in plain.encode(text, add_special_tokens=False).ids for text in typed):
                raise TokenizerError(
                    "A prompt could spell a control token",
                    found=f"{typed[0]!r} in a text becomes id {index}",
                    expected="a normalizer that writes ▁ for spaces, as Helium's does",
                    remedy=COPY_IT,
                )
        return plain


class TextStream:
    """Tokens in, text out, as soon as it is certain.

    A character whose bytes arrive one by one is shown when the last is there. Bytes that can be no character become
    U+FFFD, one for each maximal invalid part (the library's ``decode`` writes one for each byte of such a run); all
    other text is that of ``decode``.
    """

    def __init__(self, tokenizer: Tokenizer, *, strip_first_space: bool) -> None:
        self._tokenizer = tokenizer
        self._strip_first_space = strip_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes, possibly none. Raises TokenizerError outside the vocabulary."""
        data = self._tokenizer.token_bytes(token_id)
        if data and self._strip_first_space:
            self._strip_first_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """The end. Only half a character can be held back here, and it is dropped, never shown."""
        self._utf8.reset()
        return ""


def _json(spec: dict[str, Any]) -> str:
    # Truncation and padding that a training script left in the file would change prompts silently.
    return json.dumps({**spec, "truncation": None, "padding": None})


def _build(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError("tokenizer.json is malformed", found=error, remedy=COPY_IT) from error


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise PromptError("The prompt is no text", found=f"a {type(text).__name__}", expected="a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            "The prompt holds half a character (a lone surrogate)",
            found=f"U+{ord(text[error.start]):04X} at position {error.start}",
            expected="Unicode text",
            remedy="decode the source as UTF-8, or with errors='replace'",
        ) from None
