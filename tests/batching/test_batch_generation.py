"""``helium_onnx.batch`` over a real bundle that generates: the texts are those of ``generate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import helium_onnx
from helium_onnx.errors import BundleError, TextError, UsageError
from helium_onnx.texts import read_texts

TEXTS = Path(__file__).parents[2] / "benchmarks/data/valid.jsonl"
OPTIONS: dict[str, Any] = {"max_new_tokens": 12}
SAMPLED: dict[str, Any] = {**OPTIONS, "temperature": 1.0, "top_p": 0.95, "seed": 2**63 + 5}


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [page.text[: 40 + 31 * (i % 9)] for i, page in enumerate(read_texts(TEXTS)[:90])]


@pytest.fixture
def source(prompts: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(prompts)))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("options", [OPTIONS, SAMPLED], ids=["greedy", "sampled"])
def test_texts_are_those_of_generate(
    options: dict[str, Any], sample_bundle: Path, source: Path, prompts: list[str], tmp_path: Path
) -> None:
    """A hundred prompts in one call, or a file in batches of other rows: a prompt's tokens are its own."""
    report = helium_onnx.batch(sample_bundle, source, tmp_path / "out.jsonl", batch_tokens=900, **options)
    assert report.rows == report.new_rows == len(prompts)
    with helium_onnx.load(sample_bundle) as model:
        expected = model.generate(prompts, **options)
    for row, text, one in zip(rows_of(tmp_path / "out.jsonl"), prompts, expected, strict=True):
        assert row == {
            "id": row["id"],
            "text": text,
            "generated_text": one.text,
            "finish_reason": one.finish_reason,
            "prompt_tokens": one.prompt_tokens,
            "new_tokens": len(one.token_ids),
        }


def test_neither_order_nor_batches_nor_resumption_change_a_sampled_text(
    sample_bundle: Path, source: Path, tmp_path: Path
) -> None:
    helium_onnx.batch(sample_bundle, source, tmp_path / "a.jsonl", **SAMPLED)
    expected = rows_of(tmp_path / "a.jsonl")
    assert len({row["generated_text"] for row in expected}) > 80
    helium_onnx.batch(sample_bundle, source, tmp_path / "b.jsonl", ordered=False, batch_tokens=300, **SAMPLED)
    unordered = rows_of(tmp_path / "b.jsonl")
    lines = [row.pop("line") for row in unordered]
    assert lines != sorted(lines)
    assert sorted(unordered, key=lambda row: row["id"]) == expected
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(whole[: len(whole) // 2])
    report = helium_onnx.batch(sample_bundle, source, tmp_path / "a.jsonl", resume=True, **{**SAMPLED, "seed": None})
    assert 0 < report.new_rows < 60
    assert (tmp_path / "a.jsonl").read_bytes() == whole


def test_seeds_for_each_prompt(sample_bundle: Path, prompts: list[str]) -> None:
    options = {**SAMPLED, "seed": None}
    with helium_onnx.load(sample_bundle) as model:
        several = model.generate(prompts[:3], **{**options, "seed": [7, 8, 2**64 - 1]})
        alone = [model.generate(prompts[i], **{**options, "seed": s})[0] for i, s in enumerate((7, 8, 2**64 - 1))]
        assert [one.token_ids for one in several] == [one.token_ids for one in alone]
        assert [one.seed for one in several] == [7, 8, 2**64 - 1]
        assert model.generate(prompts[0], **{**options, "seed": [8]})[0].seed == 8
        for seeds, words in (([1, 2], "2 seeds for 3"), ([1, 2, None], "None"), ([1, 2, -1], "-1"), ([], "0 seeds")):
            with pytest.raises(UsageError) as caught:
                model.generate(prompts[:3], **{**options, "seed": seeds})  # type: ignore[typeddict-item]
            assert words in (caught.value.found or "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "mean"}, "pooling is no option of text-generation"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": ""}, "stop"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"bad_rows": "skip"}, "bad_rows"),
        ({"resume": True, "force": True}, "exclude"),
        ({"workers": 2}, "workers"),
        ({"task": "chat"}, "task"),
        ({"seed": 2**64}, "seed"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], words: str, sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        helium_onnx.batch(sample_bundle, source, tmp_path / "out.jsonl", **options)
    assert list(tmp_path.iterdir()) == [source]


def test_a_bundle_of_another_task(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot do that") as caught:
        helium_onnx.batch(sample_bundle, source, tmp_path / "out.jsonl", task="text-classification")
    assert caught.value.found == "a bundle for text-generation"


def test_new_tokens_are_counted_against_the_context(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="line 1 cannot be used") as caught:
        helium_onnx.batch(sample_bundle, source, tmp_path / "out.jsonl", context_length=64, max_new_tokens=63)
    assert "with 63 new ones, expected at most 64" in (caught.value.found or "")
    report = helium_onnx.batch(
        sample_bundle, source, tmp_path / "out.jsonl", context_length=64, max_new_tokens=8, bad_rows="report"
    )
    rows = rows_of(tmp_path / "out.jsonl")
    assert 0 < report.bad_rows == sum("error" in row for row in rows) < len(rows)
