"""helium-onnx embed, classify and tag, as users meet them, over tiny models with large weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import PROGRAM, invoke, names_in, run
from tiny import write_checkpoint

import helium_onnx

TEXTS = ["Once upon a time the table", "é", "an inn of the 3 tables, in the ß", "la table", "the table on an inn " * 3]
TASKS: dict[str, dict[str, Any]] = {
    "feature-extraction": {"architectures": ["HeliumModel"]},
    "text-classification": {
        "architectures": ["HeliumForSequenceClassification"],
        "id2label": {"0": "no", "1": "yes", "2": "été"},
    },
    "token-classification": {
        "architectures": ["HeliumForTokenClassification"],
        "id2label": {"0": "O", "1": "B-KEY", "2": "I-KEY"},
    },
}
VERBS = {"embed": "feature-extraction", "classify": "text-classification", "tag": "token-classification"}
KEYS = {"embed": "embedding", "classify": "labels", "tag": "entities"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the verb that runs each."""
    folder = tmp_path_factory.mktemp("tasks")
    found = {}
    for verb, task in VERBS.items():
        checkpoint = write_checkpoint(folder / f"{verb}-checkpoint", **TASKS[task])
        found[verb] = helium_onnx.export(checkpoint, folder / verb, recipe="cpu-fp32").path
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": f"{TEXTS[i % 5]} {i}"}) + "\n" for i in range(30)))
    return path


def rows_of(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_embed_gives_the_vectors_of_the_model(bundles: dict[str, Path]) -> None:
    rows = rows_of(invoke("embed", bundles["embed"], *TEXTS).stdout)
    assert [row["text"] for row in rows] == TEXTS
    with helium_onnx.load(bundles["embed"], task="feature-extraction") as model:
        for pooling, args in (("mean", []), ("last", ["--pooling", "last", "--no-normalize"])):
            rows = rows_of(invoke("embed", bundles["embed"], *TEXTS, *args).stdout)
            expected = model.embed(TEXTS, pooling=pooling, normalize=not args)  # type: ignore[call-overload]
            found = np.array([row["embedding"] for row in rows], np.float32)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        tokens = rows_of(invoke("embed", bundles["embed"], TEXTS[0], "--pooling", "none").stdout)[0]["embedding"]
        expected = model.embed([TEXTS[0]], pooling="none")[0]
        assert len(tokens) == len(expected) > 5
        # A number is written in as few digits as give the same float32 back.
        assert np.array_equal(np.array(tokens, np.float32), expected)
        assert max(len(repr(value)) for value in tokens[0]) <= 16


def test_classify_gives_the_labels_of_the_model(bundles: dict[str, Path]) -> None:
    for top_k in (1, 3):
        rows = rows_of(invoke("classify", bundles["classify"], *TEXTS, "--top-k", top_k).stdout)
        with helium_onnx.load(bundles["classify"], task="text-classification") as model:
            expected = model.classify(TEXTS, top_k=top_k)
        for row, labels in zip(rows, expected, strict=True):
            assert [label["label"] for label in row["labels"]] == [label.label for label in labels]
            assert [label["score"] for label in row["labels"]] == pytest.approx([one.score for one in labels], abs=1e-5)
            assert len(row["labels"]) == top_k


@pytest.mark.parametrize("aggregation", ["simple", "none", "first", "average", "max"])
def test_tag_gives_the_entities_of_the_model(aggregation: str, bundles: dict[str, Path]) -> None:
    rows = rows_of(invoke("tag", bundles["tag"], *TEXTS, "--aggregation", aggregation).stdout)
    with helium_onnx.load(bundles["tag"], task="token-classification") as model:
        expected = model.tag(TEXTS, aggregation=aggregation)  # type: ignore[call-overload]
    assert sum(len(row["entities"]) for row in rows) > 5
    for row, entities in zip(rows, expected, strict=True):
        places = [(one["label"], one["start"], one["end"], one["text"]) for one in row["entities"]]
        assert places == [(one.label, one.start, one.end, one.text) for one in entities]
        assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row["entities"])


@pytest.mark.parametrize("verb", VERBS)
class TestEachVerb:
    def test_stdin_has_a_text_a_line(self, verb: str, bundles: dict[str, Path]) -> None:
        text = "\n".join([TEXTS[0], "", TEXTS[2]])
        expected = invoke(verb, bundles[verb], TEXTS[0], TEXTS[2]).stdout
        assert invoke(verb, bundles[verb], stdin=text).stdout == expected
        assert invoke(verb, bundles[verb], "-", stdin=text.replace("\n", "\r\n")).stdout == expected

    def test_json_lines(self, verb: str, bundles: dict[str, Path], source: Path) -> None:
        result = invoke(verb, bundles[verb], "--input", source)
        rows = rows_of(result.stdout)
        assert [list(row) for row in rows] == [["id", "text", KEYS[verb]]] * 30
        assert invoke(verb, bundles[verb], "-i", "-", stdin=source.read_bytes()).stdout == result.stdout
        dropped = rows_of(invoke(verb, bundles[verb], "-i", source, "--drop-text").stdout)
        assert [list(row) for row in dropped] == [["id", KEYS[verb]]] * 30
        plain = rows_of(invoke(verb, bundles[verb], "-i", source, "--lines").stdout)
        assert [row["text"] for row in plain] == source.read_text().splitlines()

    def test_a_file_and_what_goes_on_with_it(
        self, verb: str, bundles: dict[str, Path], source: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "out.jsonl"
        args = (verb, bundles[verb], "--input", source, "--batch-tokens", 64, "--output", output)
        result = invoke(*args)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"{output}: 30 rows, in ")
        whole = output.read_bytes()
        expected = rows_of(invoke(verb, bundles[verb], "--input", source, "--batch-tokens", 64).stdout)
        assert rows_of(whole) == expected
        assert "is there already" in invoke(*args).stderr
        for size in (0, 1, len(whole) // 3, len(whole) - 1):
            output.write_bytes(whole[:size])
            assert invoke(*args, "--resume").exit_code == 0
            assert output.read_bytes() == whole
        assert "30 rows, 0 of them new" in invoke(*args, "--resume").stdout
        job = json.loads((tmp_path / "out.jsonl.job.json").read_text())
        assert job["task"] == VERBS[verb]

    def test_texts_that_do_not_fit(self, verb: str, bundles: dict[str, Path]) -> None:
        long = "table " * 300
        result = invoke(verb, bundles[verb], "é", long)
        assert result.exit_code == 1
        assert "the texts, line 2 cannot be used" in result.stderr and "--truncate" in result.stderr
        assert result.stdout == ""
        rows = rows_of(invoke(verb, bundles[verb], "é", long, "--truncate").stdout)
        assert rows[1]["text"] == long and KEYS[verb] in rows[1]
        rows = rows_of(invoke(verb, bundles[verb], "é", long, "--bad-rows", "report").stdout)
        assert rows[1]["error"].startswith("the text does not fit the context")
        assert KEYS[verb] in rows[0]

    @pytest.mark.parametrize(
        ("args", "code", "words"),
        [
            (["a", "--resume"], 2, "add --output FILE"),
            (["a", "--input", "x"], 2, "exclude each other"),
            (["a", "--lines"], 2, "lines of stdin are texts"),
            (["a", "-"], 2, "stdin cannot be read among other texts"),
            (["--input", "missing.jsonl"], 1, "there is no file missing.jsonl"),
            (["a", "--batch-tokens", "0"], 2, "batch-tokens"),
            (["a", "--kernels", "x"], 2, "kernels"),
            (["a", "--output", "missing/out"], 1, "there is no folder missing"),
        ],
        ids=str,
    )
    def test_wrong_uses(self, args: list[str], code: int, words: str, verb: str, bundles: dict[str, Path]) -> None:
        result = invoke(verb, bundles[verb], *args, stdin="")
        assert result.exit_code == code
        assert words in result.stderr
        assert result.stdout == ""

    def test_another_task(self, verb: str, bundles: dict[str, Path]) -> None:
        other = next(path for name, path in bundles.items() if name != verb)
        result = invoke(verb, other, "a")
        assert result.exit_code == 1
        assert "cannot do that" in result.stderr and f"--task {VERBS[verb]}" in result.stderr

    def test_the_batch_command_does_the_same(
        self, verb: str, bundles: dict[str, Path], source: Path, tmp_path: Path
    ) -> None:
        done = invoke("batch", bundles[verb], source, tmp_path / "out.jsonl", "--task", VERBS[verb])
        assert done.exit_code == 0, done.stderr
        expected = invoke(verb, bundles[verb], "--input", source).stdout
        assert (tmp_path / "out.jsonl").read_text() == expected


def test_options_of_other_verbs(bundles: dict[str, Path], source: Path, tmp_path: Path) -> None:
    for verb, option in (("embed", "top_k"), ("classify", "pooling"), ("tag", "top_k")):
        value = {"top_k": "2", "pooling": "mean"}[option]
        name = f"--{option.replace('_', '-')}"
        result = invoke("batch", bundles[verb], source, tmp_path / "out.jsonl", name, value)
        assert result.exit_code == 2
        assert f"{option} is no option of {VERBS[verb]}" in result.stderr
    assert names_in(tmp_path) == ["in.jsonl"]


def test_a_reader_that_has_enough(bundles: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("the table in an inn\n" * 3000)
    command = " ".join([*PROGRAM, "embed", str(bundles["embed"]), "-q", "-i", str(path), "--lines"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -2"], capture_output=True, timeout=120, check=False
    )
    assert done.stdout.count(b"\n") == 2
    assert done.returncode == 141  # as a process that SIGPIPE killed
    assert done.stderr == b""


def test_a_classifier_without_a_padding_id(tmp_path: Path) -> None:
    """Such a model takes one text at a time, and a file of them all the same."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", **TASKS["text-classification"], pad_token_id=None)
    path = helium_onnx.export(checkpoint, tmp_path / "bundle", recipe="cpu-fp32").path
    done = run("classify", path, *TEXTS)
    assert done.returncode == 0, done.stderr
    with helium_onnx.load(path, task="text-classification") as model:
        expected = [model.classify(text)[0].label for text in TEXTS]
    assert [row["labels"][0]["label"] for row in rows_of(done.stdout)] == expected
