"""Results as data."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from helium_onnx.errors import UsageError
from helium_onnx.generation.result import Generation, GenerationResult, Timings, TokenLogprob

TIMINGS = Timings(0.5, 2.0, 0.5, 2.6, 20.0, 30.0)
ONE = Generation("Hi", (5, 2), "eos", 3, seed=7, logprobs=(TokenLogprob(5, "Hi", -0.5, (TokenLogprob(6, "x", -1.0),)),))
TWO = Generation("Ho", (6,), "stop", 4, stop="\n")


def test_a_result_is_a_sequence_of_generations() -> None:
    result = GenerationResult((ONE, TWO), TIMINGS)
    assert (len(result), list(result), result[1]) == (2, [ONE, TWO], TWO)
    assert GenerationResult((ONE,), TIMINGS).text == "Hi"
    with pytest.raises(UsageError, match="2 generations"):
        _ = result.text


def test_nothing_of_a_result_can_be_changed() -> None:
    for part, field in ((ONE, "text"), (TIMINGS, "total_seconds"), (GenerationResult((ONE,), TIMINGS), "timings")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, 1)


def test_to_dict_survives_strict_json() -> None:
    masked = dataclasses.replace(ONE, logprobs=(TokenLogprob(5, "Hi", -math.inf),))
    data = GenerationResult((ONE, TWO, masked), TIMINGS).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["timings"]["decode_tokens_per_second"] == 30.0
    first, second, third = data["generations"]
    assert first == {
        "text": "Hi",
        "token_ids": [5, 2],
        "finish_reason": "eos",
        "prompt_tokens": 3,
        "seed": 7,
        "logprobs": [
            {
                "token_id": 5,
                "text": "Hi",
                "logprob": -0.5,
                "top": [{"token_id": 6, "text": "x", "logprob": -1.0, "top": []}],
            }
        ],
        "stop": None,
        "cached_tokens": 0,
    }
    assert (second["finish_reason"], second["stop"], second["logprobs"]) == ("stop", "\n", None)
    assert third["logprobs"][0]["logprob"] is None
