"""How contenders are grouped, asked by turns, and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer_tables
import peers
import pytest
import serving
from common import Environment
from contenders import CONTENDERS
from contenders.model import Contender, Runtime, Weights


def contender(name: str, runtime: str = "peer", equal: str | None = None) -> Contender:
    return Contender(name, Runtime(runtime, Environment(""), "", None), Weights(None), "", equal)


OURS = contender("ours", "helium-onnx")


def figures(prefill: float, decode: float) -> dict[str, Any]:
    quiet = {"idle_workers_cores": 0.0, "other_processes_cores": 0.02}
    return {"128": {"prefill_tokens_per_second": prefill, "decode_ms_per_token": decode, **quiet}}


def test_ours_is_in_every_group_and_no_group_exceeds_the_room() -> None:
    rows = [OURS, *(contender(name) for name in "abc")]
    found = peers.groups(rows, {"ours": 2, "a": 3, "b": 3, "c": 5}, room=8)
    assert [[c.name for c in group] for group in found] == [["ours", "a", "b"], ["ours", "c"]]


def test_a_peer_that_fits_nowhere_has_a_group_alone_with_ours() -> None:
    found = peers.groups([OURS, contender("a")], {"ours": 2, "a": 30}, room=8)
    assert [[c.name for c in group] for group in found] == [["ours", "a"]]


def test_without_peers_ours_is_measured_alone() -> None:
    assert peers.groups([OURS], {"ours": 2}, room=8) == [[OURS]]


def test_ratios_are_medians_of_the_rounds_own() -> None:
    rounds = [
        {"ours": figures(100, 10), "peer": figures(50, 30)},
        {"ours": figures(10, 100), "peer": figures(10, 100)},  # the machine was slow
        {"ours": figures(100, 20), "peer": figures(50, 30)},
    ]
    assert peer_tables.ratio(rounds, "ours", "peer", "128") == (2.0, 1.5)
    text = peer_tables.ratios([rounds], ["128"], [OURS, contender("peer", equal="ours")])
    assert "| ours | peer | equal | 2.00 x | 1.50 x |" in text


def test_a_table_of_costs_says_what_failed() -> None:
    text = peer_tables.costs({"peer": {"failed": "no such package\nand more"}}, {})
    assert "failed: no such package |" in text
    assert len({line.count("|") for line in text.strip().splitlines()}) == 1


def test_turns_ask_each_worker_the_same_prompt_in_a_round_and_another_in_the_next() -> None:
    asked: dict[str, list[tuple[int, ...]]] = {"a": [], "b": []}

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, ids: list[int], new: int) -> Any:
            asked[self.name].append((*ids, new))
            return SimpleNamespace(speed=lambda: {"prefill_tokens_per_second": 1.0, "decode_ms_per_token": 1.0})

        def cpu_seconds(self) -> float:
            return 0.0

        def close(self) -> None:
            asked[self.name].append(())

    plan = peers.Plan((), Path(), Path(), 2, 2, (3, 5), 7, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers.Plan, "vocab_size", 100)
        rounds = peers.take_turns(plan, {"a": Fake("a"), "b": Fake("b")})  # type: ignore[dict-item]
    assert asked["a"] == asked["b"]
    measured = [call for call in asked["a"] if call and call[-1] == 7]  # others wake the worker up, with fewer tokens
    assert [len(call) for call in measured] == [4, 6, 4, 6]  # two rounds of two prompts
    assert len({call for call in measured if len(call) == 4}) == 2
    assert asked["a"][-1] == ()  # closed, after all else
    assert [set(round_) for round_ in rounds] == [{"a", "b"}] * 2


def test_a_worker_measures_each_token() -> None:
    class Model:
        def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
            for i in range(new + 1):
                emit(ids[0] + i)

    found = serving.measured(Model(), [5, 6], 3)
    assert found["tokens"] == [5, 6, 7, 8]
    assert len(found["steps"]) == 3
    assert found["prefill"] > 0


def test_a_worker_that_stops_early_is_no_measurement() -> None:
    model = SimpleNamespace(generate=lambda _ids, _new, emit: emit(1))
    with pytest.raises(AssertionError, match="1 tokens instead of 4"):
        serving.measured(model, [5], 3)


def test_equal_rows_name_rows_of_ours() -> None:
    ours = {row.name for row in CONTENDERS if row.ours}
    assert {row.equal for row in CONTENDERS if row.equal} <= ours
    assert len({row.name for row in CONTENDERS}) == len(CONTENDERS)
    assert not [row for row in CONTENDERS if row.ours and row.equal]


def test_the_check_counts_tokens_before_the_first_difference_and_up_to_the_end_of_the_text() -> None:
    assert peers.leading([5, 6, 7], [5, 6, 8]) == 2
    assert peers.leading([5, 6], [5, 6, 8]) == 2
    assert peers.to_the_end([5, 2, 7]) == [5, 2]
    assert peers.to_the_end([5, 7]) == [5, 7]
