"""Steps on the GPU: captured as not captured, in flight as one by one, a row in a batch as alone, all nodes there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import device_models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.runtimes.cuda_calls import Call

Exported = Callable[[str, str], Path]
Ids = NDArray[np.int64]

KERNELS = ["native", "onnxruntime"]
CASES = [
    (model, recipe)
    for model, recipes in (("docs", ("cuda-fp16", "cuda-bf16", "cuda-int4")), ("wide", ("fp16", "bf16", "int4-32")))
    for recipe in recipes
]


def opened(path: Path, kernels: str, context: int = 512) -> Any:
    return helium_onnx.load(path, provider="cuda", kernels=kernels, context_length=context, prefix_cache=0)


def prompts(session: Any, lengths: list[int]) -> list[Ids]:
    rng = np.random.default_rng(3)
    return [rng.integers(4, session.vocab_size, (1, length)) for length in lengths]


def held(session: Any, rows: list[Ids]) -> tuple[Any, Ids]:
    """A past of these rows, and the likeliest token after each: ``[rows, 1]``."""
    past = session.new_past(len(rows))
    first = [int(session.run("prefill", ids, past.row(i))[0, -1].argmax()) for i, ids in enumerate(rows)]
    return past, np.array(first, np.int64)[:, None]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("model", "recipe"), CASES)
def test_captured_steps_are_those_that_are_not_to_the_bit(
    model: str, recipe: str, kernels: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Call.__init__
    found: list[NDArray[np.float32]] = []
    captures: list[bool] = []

    def make(self: Call, *args: Any, captured: bool, **options: Any) -> None:
        captures.append(captured and capture)
        made(self, *args, captured=captures[-1], **options)

    monkeypatch.setattr(Call, "__init__", make)
    for capture in (True, False):
        captures.clear()
        with opened(exported(model, recipe), kernels, 256) as loaded:
            session = loaded.session
            past, ids = held(session, prompts(session, [70]))
            steps = []
            for _ in range(40):
                logits = session.run("decode", ids, past)[:, -1].copy()
                steps.append(logits)
                ids = logits.argmax(-1)[:, None]
            found.append(np.stack(steps))
        assert any(captures) == capture
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("model", "recipe"), CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_greedy_in_flight_is_step_by_step(model: str, recipe: str, kernels: str, rows: int, exported: Exported) -> None:
    """200 tokens; a row that is held back in between; and lengths that count the tokens whose ids are given."""
    with opened(exported(model, recipe), kernels) as loaded:
        session = loaded.session
        texts = prompts(session, [33, 64, 7][:rows])
        past, ids = held(session, texts)
        first, single = ids, []
        for _ in range(200):
            ids = session.run("decode", ids, past)[:, -1].argmax(-1)[:, None]
            single.append(ids[:, 0])
        past, again = held(session, texts)
        np.testing.assert_array_equal(again, first)
        before = past.lengths.copy()
        flying = []
        for number, token_ids in enumerate(itertools.islice(session.greedy(again, past), 200), 1):
            np.testing.assert_array_equal(past.lengths, before + number)
            flying.append(token_ids.copy())
    np.testing.assert_array_equal(np.stack(flying), np.stack(single))
    assert len(np.unique(flying)) > 3  # not one token over and over


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_ended_iterator_leaves_the_session_as_it_was(kernels: str, exported: Exported) -> None:
    with opened(exported("docs", "cuda-fp16"), kernels) as loaded:
        session = loaded.session
        texts = prompts(session, [40])
        past, ids = held(session, texts)
        wanted = []
        for _ in range(12):
            ids = session.run("decode", ids, past)[:, -1].argmax(-1)[:, None]
            wanted.append(int(ids[0, 0]))
        past, ids = held(session, texts)
        running = session.greedy(ids, past)
        found = [int(next(running)[0]) for _ in range(5)]
        running.close()
        assert past.lengths.tolist() == [45]
        ids = np.array([[found[-1]]], np.int64)
        for _ in range(7):
            ids = session.run("decode", ids, past)[:, -1].argmax(-1)[:, None]
            found.append(int(ids[0, 0]))
        assert found == wanted


@pytest.mark.parametrize("kernels", KERNELS)
def test_greedy_ends_where_the_context_is_full(kernels: str, exported: Exported) -> None:
    with opened(exported("docs", "cuda-fp16"), kernels, context=64) as loaded:
        past, ids = held(loaded.session, prompts(loaded.session, [50]))
        assert sum(1 for _ in loaded.session.greedy(ids, past)) == 14
        assert past.lengths.tolist() == [64]


@pytest.mark.parametrize(
    ("kernels", "rows"), [("native", 2), ("native", 4), ("native", 5), ("native", 9), ("onnxruntime", 3)]
)
@pytest.mark.parametrize(("model", "recipe"), CASES)
def test_a_row_in_a_batch_of_ragged_rows_is_as_it_is_alone(
    model: str, recipe: str, kernels: str, rows: int, exported: Exported
) -> None:
    """Both read the same tokens. Rows compute by other kernels than one does, so logits differ by the type's rounding:
    no more than PyTorch in that type differs from float32, times three; and tokens where no two logits are that near.
    """
    bundle = Bundle.open(exported(model, recipe))
    with opened(bundle.path, kernels, context=256) as loaded:
        session = loaded.session
        texts = prompts(session, [5 + 17 * i % 90 for i in range(rows)])
        following = np.random.default_rng(5).integers(4, session.vocab_size, (rows, 24))
        alone = []
        for text, tokens in zip(texts, following, strict=True):
            past, _ = held(session, [text])
            alone.append(
                np.stack([session.run("decode", tokens[i : i + 1][None], past)[0, -1].copy() for i in range(24)])
            )
        past, _ = held(session, texts)
        together = np.stack([session.run("decode", following[:, i : i + 1], past)[:, -1].copy() for i in range(24)], 1)
    dtype = getattr(torch, str(bundle.manifest.recipe["precision"]["compute"]))
    exact, half = device_models.of_bundle(bundle.path), device_models.of_bundle(bundle.path, dtype)
    whole = [[*text[0].tolist(), *tokens.tolist()] for text, tokens in zip(texts, following, strict=True)]
    bound = 3 * max(float(np.abs(exact.logits(ids) - half.logits(ids)).max()) for ids in whole) + 1e-3
    worst = max(float(np.abs(a - b).max()) for a, b in zip(alone, together, strict=True))
    print(f"\n{model} {recipe} {kernels}, {rows} rows: max |d| {worst:.3g}, bound {bound:.3g}")
    assert worst <= bound
    for a, b in zip(alone, together, strict=True):
        ordered = np.sort(a, axis=-1)
        clear = ordered[:, -1] - ordered[:, -2] > 2 * bound
        np.testing.assert_array_equal(a.argmax(-1)[clear], b.argmax(-1)[clear])


@pytest.mark.parametrize(("model", "recipe"), [*CASES, ("wide", "int4-64-zeros"), ("wide", "int8-128")])
def test_every_node_is_on_the_gpu(model: str, recipe: str, exported: Exported) -> None:
    """Asked of ONNX Runtime itself, in sessions of its own, of every graph but the clients' one."""
    import onnxruntime as ort

    from helium_onnx.kernels import cuda as native

    bundle = Bundle.open(exported(model, recipe))
    capability = torch.cuda.get_device_capability(0)
    for graph in ("prefill", "decode", "native_decode"):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if graph == "native_decode":
            library = native.library(0, capability)
            assert library is not None, native.reason()
            options.register_custom_ops_library(str(library))
        session = ort.InferenceSession(bundle.graph_path(graph), options, providers=["CUDAExecutionProvider"])
        assert session.get_providers()[0] == "CUDAExecutionProvider"
        parts = session.get_provider_graph_assignment_info()
        assert {part.ep_name for part in parts} == {"CUDAExecutionProvider"}
        nodes = sum(len(list(part.get_nodes())) for part in parts)
        assert nodes > 0
        print(f"\n{model} {recipe} {graph}: {nodes} nodes")
        del session


@pytest.mark.parametrize("recipe", ["cuda-fp16", "cuda-int4"])
def test_generated_text_is_that_of_pytorch_while_no_choice_is_close(recipe: str, exported: Exported) -> None:
    """Through ``generate``: text in, text out, greedy, with several steps in flight and the stop at </s>."""
    bundle = Bundle.open(exported("docs", recipe))
    reference = device_models.of_bundle(bundle.path)
    dtype_bound = 0.1  # of logits whose size is 30
    with helium_onnx.load(bundle.path, provider="cuda") as model:
        for prompt in ("To insert a table in a text document,", "Um eine Tabelle in ein Textdokument einzufügen,"):
            ids = model.tokenizer.encode(prompt)
            result = model.generate(prompt, max_new_tokens=48)[0]
            for token in result.token_ids:
                logits = reference.logits(ids)[-1]
                if logits.max() - logits[token] > dtype_bound:
                    pytest.fail(f"{recipe}: token {token} has {logits.max() - logits[token]:.3f} less than the best")
                ids.append(token)
            assert result.token_ids[-1] == 2 or len(result.token_ids) == 48
