"""The tokenizer against the ``tokenizers`` library, and where the library is to be stepped around."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_onnx.errors import PromptError, TokenizerError
from helium_onnx.tokenizer import Tokenizer

SAMPLE = Path(__file__).parents[1] / "samples" / "helium-docs-7m"
TEXTS = [json.loads(line)["text"] for line in (Path(__file__).parent / "data" / "texts.jsonl").open(encoding="utf-8")]
ODD = [
    *["\n", "a\nb", "\n\n\nx\n", "\t", "a\tb", "\r\n", " ", "   x  ", "▁", "a▁b", "x\x00y", "\x7f", "\ufffd", "\ufeff"],
    *["日本語のテキスト", "한국어", "😀", "👩\u200d👩\u200d👧 family", "e\u0301", "naïve Œuvre ß"],
    *["<", "</", "<0x4", "< /s>", "0x41>"],
]
BYTE = {byte: byte + 4 for byte in range(256) if byte != 0x0A}  # the sample's byte pieces; id 14 is "\n" itself

A = 267  # "▁a"
LIBRARY = tokenizers.Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
TOKENIZER = Tokenizer.from_folder(SAMPLE, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))


@pytest.mark.parametrize("parse_special", [False, True])
@pytest.mark.parametrize("add_bos", [False, True])
def test_ordinary_text_gets_the_librarys_ids(parse_special: bool, add_bos: bool) -> None:
    assert len(TEXTS) == 30
    for text in TEXTS + ODD:
        expected = LIBRARY.encode(text, add_special_tokens=add_bos).ids
        assert TOKENIZER.encode(text, parse_special=parse_special, add_bos=add_bos) == expected, text


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_without_names_of_tokens_gets_the_librarys_ids(text: str) -> None:
    if "<" not in text:
        assert TOKENIZER.encode(text) == LIBRARY.encode(text).ids


@pytest.mark.parametrize(
    ("typed", "control"), [("</s>", 2), ("<s>", 1), ("<pad>", 3), ("<unk>", 0), ("<0x41>", 69), ("<0xE6>", 234)]
)
def test_names_of_tokens_stay_text(typed: str, control: int) -> None:
    for text in (typed, f"a{typed}b", f"a {typed} b", f"\n{typed}\n", f"{typed} {typed}"):
        # The trap is real: the library finds the control token in the same text.
        assert control in LIBRARY.encode(text, add_special_tokens=False).ids
        ids = TOKENIZER.encode(text, add_bos=False)
        assert not {control, *BYTE.values()} & set(ids)  # letters, and not bytes in their stead
        assert TOKENIZER.decode(ids).replace("\n ", "\n") == text
        assert TOKENIZER.encode(text, parse_special=True) == LIBRARY.encode(text).ids


def test_unknown_text_is_bytes_only_where_the_vocabulary_has_them_all(tmp_path: Path) -> None:
    spec = json.loads((SAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["vocab"][BYTE[0x97]][0] = "no byte"  # of 日 = E6 97 A5
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    ours = Tokenizer.from_folder(tmp_path, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("日", "a日b", "日 本", "日本", "é日 x"):
        assert ours.encode(text) == library.encode(text).ids
    assert 0 in ours.encode("日")


NAMES = st.sampled_from(["</s>", "<s>", "<pad>", "<unk>", "<0x00>", "<0xFF>", "<", "/s>", " ", "日", "😀", "x"])


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1).map("".join))
def test_text_with_names_of_tokens_comes_back_whole(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids[0] == 1
    assert not {0, 1, 2, 3} & set(ids[1:])
    assert TOKENIZER.decode(ids) == text


def test_a_lone_surrogate_is_named_with_its_place() -> None:
    for parse_special in (False, True):
        with pytest.raises(PromptError, match=r"U\+D83D at position 2"):
            TOKENIZER.encode("ab\ud83dc", parse_special=parse_special)


@pytest.mark.parametrize("prompt", [None, b"bytes", 3, ["list"]])
def test_a_prompt_that_is_no_text_is_refused(prompt: Any) -> None:
    with pytest.raises(PromptError, match=type(prompt).__name__):
        TOKENIZER.encode(prompt)


def test_an_empty_prompt_needs_the_bos() -> None:
    assert TOKENIZER.encode("") == [1]
    with pytest.raises(PromptError, match="empty"):
        TOKENIZER.encode("", add_bos=False)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for token_id in (-1, 6000):
        for read in (lambda i: TOKENIZER.decode([i]), TOKENIZER.id_to_text, TOKENIZER.stream([1]).push):
            with pytest.raises(TokenizerError, match=rf"{token_id}[\s\S]*0 to 5999"):
                read(token_id)


def test_single_tokens_are_displayed_with_their_space_or_their_name() -> None:
    shown = [TOKENIZER.id_to_text(token_id) for token_id in (A, 2, 0, 14, BYTE[0x41], BYTE[0xE6])]
    assert shown == [" a", "</s>", "<unk>", "\n", "A", "<0xE6>"]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_streamed_pieces_add_up_to_the_decoded_text(data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.sampled_from(TEXTS), st.text(min_size=1, max_size=40)))
    ids = TOKENIZER.encode(text)
    cut = data.draw(st.integers(1, len(ids)))
    while LIBRARY.decode(ids[:cut]).endswith("\ufffd") and "\ufffd" not in text:
        cut -= 1  # a prompt is whole text
    stream = TOKENIZER.stream(ids[:cut])
    pieces = [stream.push(token_id) for token_id in ids[cut:]]
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)
        assert TOKENIZER.decode(ids[:cut]) + "".join(pieces) + stream.finish() == TOKENIZER.decode(ids)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.integers(0, 5999), st.integers(4, 259)), max_size=40))
def test_any_tokens_can_be_streamed(ids: list[int]) -> None:
    stream = TOKENIZER.stream([1, 300])
    shown = "".join([*(stream.push(token_id) for token_id in ids), stream.finish()])
    shown.encode("utf-8")
    # Runs of bytes that are no UTF-8 aside, it is the library's text.
    decoded = LIBRARY.decode([300, *ids])
    if "\ufffd" not in decoded:
        assert LIBRARY.decode([300]) + shown == decoded


def test_a_character_is_shown_when_its_last_byte_is_there_and_never_half() -> None:
    stream = TOKENIZER.stream([1, 300])
    assert [stream.push(BYTE[byte]) for byte in "é日".encode()] == ["", "é", "", "", "日"]
    # The library's DecodeStream raises here: bytes that go on badly after a character that was shown.
    assert stream.push(BYTE[0xFF]) == "\ufffd"
    assert stream.push(BYTE[0xE6]) == ""
    assert stream.finish() == ""
    cut_off = TOKENIZER.stream([1, 300])
    assert cut_off.push(BYTE[0xE6]) == ""
    assert cut_off.push(A) == "\ufffd a"


def test_the_first_space_is_kept_after_a_prompt_and_dropped_after_none() -> None:
    after_text, after_bos = TOKENIZER.stream(TOKENIZER.encode("Hello")), TOKENIZER.stream([1])
    assert [after_text.push(A), after_text.push(A)] == [" a", " a"]
    assert [after_bos.push(A), after_bos.push(A)] == ["a", " a"]


def test_streaming_is_linear() -> None:
    stream = TOKENIZER.stream([1])
    begun = time.perf_counter()
    for _ in range(20_000):
        stream.push(BYTE[0xFF])
    assert time.perf_counter() - begun < 3  # the library's DecodeStream takes half a minute


def _piece(index: int, piece: str) -> Callable[[dict[str, Any]], None]:
    return lambda spec: spec["model"]["vocab"].__setitem__(index, [piece, 0.0])


def _added(content: str, token_id: int) -> Callable[[dict[str, Any]], None]:
    return lambda spec: spec["added_tokens"].append({**spec["added_tokens"][0], "id": token_id, "content": content})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec["model"]["vocab"].pop(), r"5999 ids, the largest 5998[\s\S]*6000 ids"),
        (lambda spec: spec["model"]["vocab"].append(["new piece", -1.0]), r"6001 ids[\s\S]*6000 ids"),
        (_added("<new>", 6000), "6001 ids"),
        (_added("<new>", 7000), "the largest 7000"),
        (_added("<new>", 5), "used twice"),
        (_added("<0x00>", 6000), "used twice"),
        (_added("<new>", -1), "used twice"),
        (_piece(700, "<s>"), "two ids"),
        (lambda spec: spec["model"].update(type="BPE"), r"BPE[\s\S]*Unigram"),
        (lambda spec: spec["model"].update(unk_id=None), "no unknown token"),
        (lambda spec: spec["model"].update(unk_id=6000), "no unknown token"),
        (lambda spec: spec.pop("model"), "malformed"),
        (lambda spec: spec.update(added_tokens=3), "malformed"),
        (lambda spec: spec["model"].update(vocab=[["a"]]), "malformed"),
        (lambda spec: spec.update(normalizer={"type": "Nonsense"}), "malformed"),
        (lambda spec: spec.update(normalizer=None), "could spell a control token"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    spec = json.loads((SAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(TokenizerError, match=said):
        Tokenizer.from_folder(tmp_path, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="malformed"):
        Tokenizer.from_folder(tmp_path, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"missing[\s\S]*tokenizer\.json"):
        Tokenizer.from_folder(tmp_path, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))


def test_bos_and_eos_must_be_in_the_vocabulary(sample_checkpoint: Path) -> None:
    with pytest.raises(TokenizerError, match=r"bos_token_id[\s\S]*6000"):
        Tokenizer.from_folder(sample_checkpoint, vocab_size=6000, bos_token_id=6000, eos_token_ids=(2,))
    with pytest.raises(TokenizerError, match=r"eos_token_id[\s\S]*9999"):
        Tokenizer.from_folder(sample_checkpoint, vocab_size=6000, bos_token_id=None, eos_token_ids=(2, 9999))


def test_truncation_and_padding_left_in_the_file_have_no_effect(tmp_path: Path) -> None:
    spec = json.loads((SAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    spec["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    spec["padding"]["strategy"] = {"Fixed": 512}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))
    assert tokenizer.encode(TEXTS[0]) == TOKENIZER.encode(TEXTS[0])
    assert tokenizer.encode(TEXTS[0], parse_special=True) == TOKENIZER.encode(TEXTS[0])
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_ids) == (6000, 1, (2,))
