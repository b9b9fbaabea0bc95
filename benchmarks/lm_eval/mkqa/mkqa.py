"""MKQA for lm-evaluation-harness, which has no task of it: the published file, one language a task.

Longpre, Lu, Daiber: MKQA: A Linguistically Diverse Benchmark for Multilingual Open Domain Question Answering (TACL
2021). https://github.com/apple/ml-mkqa holds dataset/mkqa.jsonl.gz: 10,000 questions in 26 languages.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from datasets import Dataset, DatasetDict

from helium_onnx.errors import UsageError

#: Without a short answer to compare with. (The paper scores them as "No Answer", which a base model never says.)
_NO_SHORT_ANSWER = ("unanswerable", "long_answer")
#: Questions set apart for few-shot examples: MKQA has one split.
_EXAMPLES = 20


def questions(*, language: str, mkqa: str | None = None, **_: object) -> DatasetDict:
    """Splits ``examples`` and ``test`` of (question, answers and their aliases) in ``language``, a code such as "de".

    ``mkqa`` is the path of mkqa.jsonl or mkqa.jsonl.gz.

    Raises:
        UsageError: the file was not given, or is not there.
    """
    if mkqa is None or not Path(mkqa).is_file():
        raise UsageError(
            "MKQA's file is needed",
            found=mkqa,
            expected="--metadata mkqa=PATH/mkqa.jsonl.gz",
            remedy="download dataset/mkqa.jsonl.gz from https://github.com/apple/ml-mkqa",
        )
    path = Path(mkqa)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = []
    for line in data.decode("utf-8").splitlines():
        entry = json.loads(line)
        answers = [answer for answer in entry["answers"][language] if answer["type"] not in _NO_SHORT_ANSWER]
        texts = [text for answer in answers for text in (answer["text"], *answer.get("aliases", ())) if text]
        if texts:
            rows.append({"question": entry["queries"][language], "answers": list(dict.fromkeys(texts))})
    return DatasetDict(
        {"examples": Dataset.from_list(rows[:_EXAMPLES]), "test": Dataset.from_list(rows[_EXAMPLES:])},
    )
