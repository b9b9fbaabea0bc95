"""Texts to measure on, and to calibrate with: a file of JSON Lines in, windows of token ids out.

One object a line: ``{"text": "...", "lang": "fr"}``; ``lang`` and any other key may be absent. Imports no framework.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helium_onnx.errors import TextError, UsageError
from helium_onnx.tokenizer import Tokenizer

#: A larger file is some other file; it is read into memory.
MAX_BYTES = 256 << 20
#: Of bytes and unknown tokens in all windows. Text in Helium's six languages has less than 1 %; one whose script the
#: vocabulary lacks has nearly 100 %, and a perplexity over its bytes says nothing about the model.
MAX_FALLBACK_SHARE = 0.3
#: Characters that are tokenized of a page for each token that is wanted: the longest pieces have 16.
_CHARACTERS_A_TOKEN = 64
_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>|<unk>")
_FORM = 'one JSON object a line, as {"text": "...", "lang": "en"}'


@dataclass(frozen=True)
class Text:
    """One page: ``text``, its language where the file says it, and its line in the file, counted from 1."""

    text: str
    lang: str | None = None
    line: int = 0


@dataclass(frozen=True)
class Window:
    """Token ids that are scored together, ``<s>`` first; language and line of the page they are from."""

    ids: tuple[int, ...]
    lang: str | None = None
    line: int = 0


def read_texts(path: str | os.PathLike[str]) -> tuple[Text, ...]:
    """The pages of a file of JSON Lines, in its order; blank lines are skipped.

    Raises:
        TextError: no such file, a folder, no text at all, too large, not UTF-8, not JSON Lines, or a line without
            ``text``. The error names the line.
    """
    name = os.fspath(path)
    texts = []
    for number, line in enumerate(_read(name).split(b"\n"), 1):
        if line.strip():
            texts.append(_text(line, number, name))
    if not texts:
        raise TextError(f"{name} is empty", found="no line with text", expected=_FORM)
    return tuple(texts)


def token_windows(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    *,
    max_tokens: int = 1024,
    min_tokens: int = 64,
    limit: int | None = 100,
    every_window: bool = False,
) -> tuple[Window, ...]:
    """One window a page: its first ``max_tokens`` tokens, ``<s>`` among them; at most ``limit`` windows (None: all).

    Pages of fewer than ``min_tokens`` are left out. ``every_window`` cuts the rest of a page into further windows,
    each with ``<s>`` before it, for texts that are not cut into pages.

    Raises:
        UsageError: ``max_tokens`` below 2, ``min_tokens`` below 2 or above it, ``limit`` below 1.
        TextError: no page is long enough, or the tokenizer does not know the text's script.
    """
    if max_tokens < 2 or not 2 <= min_tokens <= max_tokens or (limit is not None and limit < 1):
        raise UsageError(
            "no window of tokens can be cut so",
            found=f"max_tokens={max_tokens}, min_tokens={min_tokens}, limit={limit}",
            expected="2 <= min_tokens <= max_tokens, and a limit from 1",
        )
    windows: list[Window] = []
    longest = 0
    for text in texts:
        if not text.text:
            continue
        part = text.text if every_window else text.text[: _CHARACTERS_A_TOKEN * max_tokens]
        ids = tokenizer.encode(part)
        longest = max(longest, len(ids))
        bos = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        body, step = ids[len(bos) :], max_tokens - len(bos)
        for start in range(0, len(body) if every_window else 1, step):
            cut = (*bos, *body[start : start + step])
            if len(cut) >= min_tokens:
                windows.append(Window(cut, text.lang, text.line))
            if len(windows) == limit:
                break
        if len(windows) == limit:
            break
    if not windows:
        raise TextError(
            "no text is long enough",
            found=f"{len(texts)} of at most {longest} tokens",
            expected=f"one of at least {min_tokens} tokens",
            remedy="give longer texts; lines that belong together are one object",
        )
    _check_script(windows, tokenizer)
    return tuple(windows)


def _read(name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise TextError(f"{name} is a folder", expected="a file of JSON Lines") from None
    except FileNotFoundError:
        raise TextError(f"there is no file {name}", expected="a file of JSON Lines", remedy="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise TextError(f"{name} cannot be read", found=reason, expected="a file of JSON Lines") from error
    if len(data) > MAX_BYTES:
        raise TextError(
            f"{name} is too large",
            found=f"more than {MAX_BYTES >> 20} MiB",
            expected=_FORM,
            remedy="cut it: some hundred pages measure a model well",
        )
    return data.removeprefix(b"\xef\xbb\xbf")


def _text(line: bytes, number: int, name: str) -> Text:
    where = f"{name}, line {number}"
    try:
        raw = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TextError(
            f"{where} is not UTF-8",
            found=f"byte 0x{line[error.start]:02X} at column {error.start + 1}",
            remedy="convert the file: iconv -t UTF-8",
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, a nest of 10,000 brackets
        raise TextError(f"{where} is not JSON", found=_shown(error), expected=_FORM) from None
    if not isinstance(raw, dict):
        raise TextError(f"{where} is no object", found=_shown(raw), expected=_FORM)
    text, lang = raw.get("text"), raw.get("lang")
    if not isinstance(text, str):
        found = _shown(text) if "text" in raw else f"the keys {', '.join(map(_shown, raw)) or 'of no value at all'}"
        raise TextError(f'{where} has no "text"', found=found, expected=_FORM)
    if lang is not None and not isinstance(lang, str):
        raise TextError(f'{where}: "lang" is no string', found=_shown(lang), expected=_FORM)
    try:
        f"{text}{lang}".encode()
    except UnicodeEncodeError:
        raise TextError(f"{where} holds half a character (a lone surrogate)", expected="Unicode text") from None
    return Text(text, lang, number)


def _check_script(windows: Sequence[Window], tokenizer: Tokenizer) -> None:
    """Refuse text that the tokenizer mostly spells in bytes: it is in a language that the model was not made for."""
    ids = [token_id for window in windows for token_id in window.ids]
    fallback = {token_id for token_id in set(ids) if _FALLBACK.fullmatch(tokenizer.id_to_text(token_id))}
    share = sum(token_id in fallback for token_id in ids) / len(ids)
    if share > MAX_FALLBACK_SHARE:
        raise TextError(
            "the tokenizer does not know this text's script",
            found=f"{100 * share:.0f} % of the tokens are single bytes or unknown",
            expected=f"at most {100 * MAX_FALLBACK_SHARE:.0f} %",
            remedy="give text in a language of the model",
        )


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
