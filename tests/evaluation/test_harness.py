"""A bundle as a model of lm-evaluation-harness, beside the harness's own model over transformers."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: helium-onnx[eval]")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from helium_onnx.errors import BundleError, MissingDependencyError, PromptError, UsageError  # noqa: E402
from helium_onnx.evaluation import harness  # noqa: E402
from helium_onnx.evaluation.harness_model import HeliumOnnxLM  # noqa: E402

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "benchmarks" / "lm_eval"
#: Documents of each task; these pages are longer than the context below, so that they take several windows.
SAMPLES = {
    "helium_docs_choices": [0, 1],
    "helium_docs_pages": [2, 3],
    "helium_docs_continue": [0, 1, 2],
}
#: Of the longest requests, the beginning does not fit.
CONTEXT = 512
TOLERANCE = 1e-3

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and its libraries


@pytest.fixture(scope="module")
def tasks() -> Any:
    return TaskManager(include_path=str(TASKS), include_defaults=False)


@pytest.fixture(scope="module")
def evaluate(tasks: Any) -> Callable[[LM], dict[str, Any]]:
    """Run the three local tasks on a few documents each; the harness's results, samples in the order of documents."""

    def run(model: LM) -> dict[str, Any]:
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=list(SAMPLES),
            samples=SAMPLES,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=tasks,
        )
        for rows in results["samples"].values():
            rows.sort(key=lambda row: row["doc_id"])
        return results

    return run


@pytest.fixture(scope="module")
def model(sample_bundle_fp32: Path) -> HeliumOnnxLM:
    return HeliumOnnxLM(str(sample_bundle_fp32), max_length=CONTEXT, batch_size=2)


@pytest.fixture(scope="module")
def theirs(sample_checkpoint: Path) -> LM:
    """The harness's ``hf``; its sums in float64, as ours. (In float32 they are off by 0.003 over 2000 tokens.)"""
    pytest.importorskip("accelerate", reason="the harness's own model needs accelerate")
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        str(sample_checkpoint), dtype="float32", softmax_dtype="float64", device="cpu", max_length=CONTEXT, batch_size=2
    )


@pytest.fixture(scope="module")
def ours(evaluate: Callable[[LM], dict[str, Any]], model: HeliumOnnxLM) -> dict[str, Any]:
    return evaluate(model)


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """What the model answered to each request."""
    return [answer for row in results["samples"][task] for [answer] in row["resps"]]


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    choices, pages, texts = SAMPLES
    assert_scores(answers(found, choices), answers(expected, choices))
    assert answers(found, pages) == pytest.approx(answers(expected, pages), abs=TOLERANCE)
    assert answers(found, texts) == answers(expected, texts)
    for task, metrics in expected["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert found["results"][task][name] == pytest.approx(value, abs=TOLERANCE), (task, name)


def assert_scores(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in expected], abs=TOLERANCE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.slow
def test_answers_and_metrics_are_those_of_hf(
    evaluate: Callable[[LM], dict[str, Any]], ours: dict[str, Any], theirs: LM
) -> None:
    assert_equal(ours, evaluate(theirs))
    choices, pages, texts = SAMPLES
    assert (len(answers(ours, choices)), len(answers(ours, pages)), len(answers(ours, texts))) == (8, 2, 3)
    assert all(answers(ours, texts))


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("Le tableau", " est"),
        ("Le tableau ", "est"),  # the space belongs to the continuation
        ("Le tableau  \n", "est"),
        ("Le tableau\n", "\nest"),
        ("Le tabl", "eau est vide"),  # a word, cut in two
        ("", "Le tableau"),  # after <s>
        (" ", "Le tableau"),
        ("<s>Le tableau", " est"),  # <s> is there already
        ("Le </s> tableau", " est"),
        ("Übergröße 表 \U0001f600", " 表"),  # bytes
        ("Choisissez Format. " * 200, "Choisissez Format."),  # longer than the context
    ],
)
def test_tokenization_and_truncation_are_those_of_hf(
    model: HeliumOnnxLM, theirs: LM, context: str, continuation: str
) -> None:
    requests = [request(context, continuation)]
    assert_scores(model.loglikelihood(requests, disable_tqdm=True), theirs.loglikelihood(requests, disable_tqdm=True))


@pytest.mark.parametrize("add_bos_token", [None, False])
def test_texts_of_any_length_are_scored_as_hf_does(
    sample_checkpoint: Path, sample_bundle_fp32: Path, add_bos_token: bool | None
) -> None:
    pytest.importorskip("accelerate", reason="the harness's own model needs accelerate")
    from lm_eval.models.huggingface import HFLM

    texts = [request(text) for text in ("Le tableau", "Le tableau est vide. " * 9, "a", "Le tableau " * 3)]
    options = {"max_length": 16, "add_bos_token": add_bos_token, "batch_size": 1}
    model = HeliumOnnxLM(str(sample_bundle_fp32), **options)
    theirs = HFLM(str(sample_checkpoint), dtype="float32", softmax_dtype="float64", device="cpu", **options)
    assert model.loglikelihood_rolling(texts, disable_tqdm=True) == pytest.approx(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True), abs=TOLERANCE
    )


def test_neither_the_prefix_cache_nor_the_batch_size_changes_an_answer(
    evaluate: Callable[[LM], dict[str, Any]], ours: dict[str, Any], sample_bundle_fp32: Path
) -> None:
    plain = evaluate(HeliumOnnxLM(str(sample_bundle_fp32), max_length=CONTEXT, batch_size=1, prefix_cache=False))
    assert_equal(ours, plain)
    assert plain["config"]["tokens_computed"] == plain["config"]["tokens_requested"]
    assert ours["config"]["tokens_computed"] < ours["config"]["tokens_requested"]


def test_prompts_that_generate_alone_share_prefixes_too(sample_bundle_fp32: Path, model: HeliumOnnxLM) -> None:
    prompts = ["Pour insérer un tableau, " + end for end in ("choisissez", "cliquez", "choisissez", "ouvrez")]
    requests = [request(prompt, {"until": ["\n"], "max_gen_toks": 8}) for prompt in prompts]
    alone = HeliumOnnxLM(str(sample_bundle_fp32), batch_size=1)

    assert alone.generate_until(requests, disable_tqdm=True) == model.generate_until(requests, disable_tqdm=True)

    info = alone.get_model_info()
    assert int(str(info["tokens_computed"])) < 0.8 * int(str(info["tokens_requested"]))


def request(*arguments: object) -> Instance:
    return Instance(request_type="", doc={}, arguments=arguments, idx=0)


def test_sampling_follows_the_seed_and_stop_strings_are_cut_off(sample_bundle_fp32: Path, model: HeliumOnnxLM) -> None:
    kwargs = {"until": ["", " de"], "do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 40}
    requests = [request("Le tableau", kwargs)] * 3
    texts = model.generate_until(requests, disable_tqdm=True)
    assert texts == model.generate_until(requests, disable_tqdm=True)
    assert len(set(texts)) == 3  # each batch has another seed
    assert not any(" de" in text for text in texts)
    other = HeliumOnnxLM(str(sample_bundle_fp32), seed=100)
    assert other.generate_until(requests, disable_tqdm=True) != texts


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"typical_p": 0.5, "num_beams": 1}, "typical_p=0.5"),
        ({"do_sample": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_gen_toks": 5000}, "max_gen_toks=5000"),
    ],
)
def test_a_task_that_asks_for_too_much_is_refused_before_any_work(
    model: HeliumOnnxLM, kwargs: dict[str, object], message: str
) -> None:
    before = model.get_model_info()
    with pytest.raises(UsageError, match=message):
        model.generate_until([request("A", {"until": ["\n"]}), request("B", kwargs)], disable_tqdm=True)
    assert model.get_model_info() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no path"),
        ({"path": "x", "context_length": 5}, "context_length=5"),
        ({"path": "x", "batch_size": "auto"}, "batch_size"),
        ({"path": "x", "max_gen_toks": 0}, "max_gen_toks"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HeliumOnnxLM(**arguments)


def test_a_chat_template_is_an_error(model: HeliumOnnxLM) -> None:
    with pytest.raises(UsageError, match="base model"):
        model.chat_template(True)
    with pytest.raises(UsageError, match="base model"):
        model.apply_chat_template([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(("context", "continuation"), [("Le tableau", ""), ("Insert", "ion")])  # one token together
def test_a_continuation_without_a_token_is_an_error(model: HeliumOnnxLM, context: str, continuation: str) -> None:
    with pytest.raises(PromptError, match="no token of its own"):
        model.loglikelihood([request(context, continuation)], disable_tqdm=True)


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "helium_onnx.evaluation.harness", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, **offline}, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_prints_the_harness_table(sample_bundle_fp32: Path, tmp_path: Path) -> None:
    done = run_command(
        "run", "--model", "helium-onnx", "--model_args", f"path={sample_bundle_fp32},threads=1",
        "--include_path", TASKS, "--tasks", "helium_docs_choices", "--limit", "2", "--output_path", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\|helium_docs_choices *\|.*\|acc ", done.stdout)
    assert "taken from the prefix cache" in done.stderr
    (path,) = tmp_path.rglob("results_*.json")
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    assert config["bundle_recipe"] == "cpu-fp32"
    assert config["tokens_computed"] < config["tokens_requested"]


def test_a_wrong_path_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        HeliumOnnxLM.create_from_arg_obj({"path": str(tmp_path / "none")}, {"batch_size": 1, "device": "cuda:0"})

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", command)
    monkeypatch.setattr(sys, "argv", ["lm-eval"])
    assert harness.main(["run"]) == 1
    assert sys.argv == ["lm-eval", "run"]
    told = capsys.readouterr().err
    assert "There is no folder" in told
    assert "Traceback" not in told
    with pytest.raises(BundleError):
        command()


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(MissingDependencyError, match=r"helium-onnx\[eval\]"):
        harness.register()


def local_task(model: HeliumOnnxLM, task: str, **metadata: object) -> dict[str, Any]:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    results = lm_eval.simple_evaluate(
        model=model, tasks=[task], num_fewshot=1, limit=2, bootstrap_iters=0, log_samples=True, task_manager=manager
    )
    return dict(results)


def test_mkqa_reads_the_published_form(model: HeliumOnnxLM, tmp_path: Path) -> None:
    kinds = [("entity", "Paris"), ("unanswerable", None), ("long_answer", None)] + [("date", str(n)) for n in range(30)]
    lines = [
        {
            "query": f"question {n}",
            "answers": {"fr": [{"type": kind, "text": text, "aliases": [f"{text} alias"] if text else []}]},
            "queries": {"fr": f"quelle est la réponse {n}"},
            "example_id": n,
        }
        for n, (kind, text) in enumerate(kinds)
    ]
    path = tmp_path / "mkqa.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))

    results = local_task(model, "helium_mkqa_fr", mkqa=str(path))

    assert results["n-samples"]["helium_mkqa_fr"]["original"] == 31 - 20
    sample = results["samples"]["helium_mkqa_fr"][0]
    assert sample["doc"]["answers"] == ["19", "19 alias"]
    assert "Q: quelle est la réponse 0?\nA: Paris\nQ: quelle est la réponse 22?\nA:" in str(sample["arguments"][0][0])
    with pytest.raises(UsageError, match="--metadata mkqa"):
        local_task(model, "helium_mkqa_fr")


def test_flores_reads_the_published_form(model: HeliumOnnxLM, tmp_path: Path) -> None:
    for split in ("dev", "devtest"):
        (tmp_path / split).mkdir()
        for language, text in (("eng_Latn", "Select the table"), ("fra_Latn", "Sélectionnez le tableau")):
            lines = "".join(f"{text} {split} {n}.\n" for n in range(4))
            (tmp_path / split / f"{language}.{split}").write_text(lines, encoding="utf-8")

    results = local_task(model, "helium_flores_en-fr", flores=str(tmp_path))

    sample = results["samples"]["helium_flores_en-fr"][0]
    assert sample["target"] == "Sélectionnez le tableau devtest 0."
    assert "bleu,none" in results["results"]["helium_flores_en-fr"]
    with pytest.raises(UsageError, match="--metadata flores"):
        local_task(model, "helium_flores_en-fr")


@pytest.mark.slow
def test_every_command_of_the_documentation_is_known_to_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval._cli import HarnessCLI

    text = (ROOT / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    commands = re.findall(r"HARNESS (--(?!-).*?)(?:`|\n)", text)
    known = set(TaskManager(include_path=str(TASKS)).all_tasks)
    assert len(commands) >= 17
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["lm-eval", "run", "--model", "helium-onnx", *shlex.split(command)])
        arguments = HarnessCLI().parse_args()
        names = arguments.tasks if isinstance(arguments.tasks, list) else arguments.tasks.split(",")
        assert set(names) <= known, set(names) - known
