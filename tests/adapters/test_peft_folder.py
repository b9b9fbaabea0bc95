"""PEFT folders: what is read of them, and every way in which one can be wrong or not built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from peft_adapters import write_adapter
from safetensors.numpy import load_file, save_file

from helium_onnx.adapters.base import Base
from helium_onnx.adapters.config import AdapterConfig
from helium_onnx.adapters.merging import merged
from helium_onnx.adapters.peft_folder import PeftFolder
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import AdapterError, HeliumOnnxError, WeightsError

PREFIX = "base_model.model.model.layers."
Q = f"{PREFIX}0.self_attn.q_proj"
Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy of the small adapter, to be spoiled."""
    shutil.copytree(small, tmp_path / "adapter")
    return tmp_path / "adapter"


def opened(base: Path, folder: Path) -> PeftFolder:
    return PeftFolder.open(folder, Base.of(Checkpoint.open(base)))


def refused(base: Path, folder: Path, kind: type[HeliumOnnxError] = AdapterError) -> str:
    """The message of opening ``folder``: what, found, expected and remedy, no longer than a screen."""
    with pytest.raises(kind) as caught:
        opened(base, folder)
    error = caught.value
    assert error.found or error.expected
    assert "adapter" in str(error)
    assert len(str(error)) < 1500
    return str(error)


def edit_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, file)


def test_what_is_read(helium: Path, large: Path) -> None:
    adapter = opened(helium, large)
    assert len(adapter.updates) == 3 * 7
    assert not adapter.replaced
    update = adapter.updates["model.layers.1.self_attn.v_proj.weight"]
    assert (update.module, update.rank) == ("model.layers.1.self_attn.v_proj", 3)
    assert update.scale == pytest.approx(8 / np.sqrt(3))
    assert adapter.updates["model.layers.0.mlp.down_proj.weight"].scale == pytest.approx(4 / 3)
    left, right = update.factors()
    assert (left.shape, right.shape) == ((32, 3), (3, 64))
    assert left.dtype == right.dtype == np.float32


class TestConfig:
    """adapter_config.json: one field wrong at a time."""

    @pytest.mark.parametrize(
        ("field", "value", "meaning"),
        [
            ("use_dora", True, "DoRA"),
            ("lora_bias", True, "bias"),
            ("use_qalora", True, "QALoRA"),
            ("use_bdlora", {"nblocks": 2}, "block-diagonal"),
            ("alora_invocation_tokens", [5, 6], "activated LoRA"),
            ("arrow_config", {"top_k": 3}, "Arrow"),
            ("kasa_config", {"beta": 1.0}, "KaSA"),
            ("monteclora_config", {"n": 1}, "MonteCLoRA"),
            ("layer_replication", [[0, 2], [1, 3]], "more than once"),
            ("trainable_token_indices", [1, 2], "rows of the embedding"),
            ("target_parameters", ["mlp.experts"], "no linear layer"),
            ("ensure_weight_tying", True, "share"),
            ("option_of_a_newer_peft", {"power": 2}, "may change"),
        ],
    )
    def test_what_is_not_built(self, field: str, value: object, meaning: str, helium: Path, folder: Path) -> None:
        tiny.edit_json(folder / "adapter_config.json", **{field: value})
        message = refused(helium, folder)
        assert f"{field} cannot be used" in message
        assert meaning in message
        assert "merge it with peft" in message

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("peft_type", "LOHA"),
            ("peft_type", None),
            ("bias", "all"),
            ("bias", "lora_only"),
            ("init_lora_weights", "pissa"),
            ("init_lora_weights", "loftq"),
            ("init_lora_weights", 1),
            ("task_type", "SEQ_2_SEQ_LM"),
            ("r", 0),
            ("r", 2.0),
            ("r", True),
            ("r", None),
            ("r", 10**400),
            ("lora_alpha", 0),
            ("lora_alpha", -8),
            ("lora_alpha", "8"),
            ("use_rslora", "yes"),
            ("target_modules", None),
            ("target_modules", []),
            ("target_modules", ["q_proj", 3]),
            ("target_modules", "(q_proj"),
            ("target_modules", "q" * 5000),
            ("exclude_modules", {"a": 1}),
            ("rank_pattern", ["q_proj"]),
            ("rank_pattern", {"q_proj": 0}),
            ("rank_pattern", {"*": 2}),
            ("alpha_pattern", {"q_proj": None}),
            ("layers_to_transform", [0, "1"]),
            ("layers_to_transform", -1),
            ("modules_to_save", "score"),
        ],
    )
    def test_a_field_that_cannot_be_used(self, field: str, value: object, helium: Path, folder: Path) -> None:
        tiny.edit_json(folder / "adapter_config.json", **{field: value})
        assert field in refused(helium, folder)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", '{"r": 1, "r": 2}', '{"r": NaN}', "[" * 100_000, '{"peft_type": "LORA"', "\udcff"]
    )
    def test_a_file_that_is_no_config(self, text: str, helium: Path, folder: Path) -> None:
        (folder / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert "adapter_config.json cannot be read" in refused(helium, folder)

    def test_what_says_nothing_of_the_arithmetic_may_be_there(self, helium: Path, folder: Path) -> None:
        values = {"lora_dropout": 0.1, "inference_mode": False, "revision": "main", "base_model_name_or_path": "x/y"}
        tiny.edit_json(folder / "adapter_config.json", **values, velora_config={"num_groups": 4}, newer_option=None)
        assert opened(helium, folder).updates

    def test_an_old_config_of_few_fields(self, helium: Path, folder: Path) -> None:
        """As peft 0.4 wrote it."""
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
        tiny.write_json(folder / "adapter_config.json", config)
        assert opened(helium, folder).config == AdapterConfig(
            None, 2, 8, False, {}, {}, ("q_proj", "up_proj"), (), (), (), ()
        )


class TestFolder:
    def test_there_is_none(self, helium: Path, tmp_path: Path) -> None:
        assert "found:    nothing" in refused(helium, tmp_path / "adapter")

    def test_a_file(self, helium: Path, small: Path) -> None:
        assert "found:    a file" in refused(helium, small / "adapter_config.json")

    def test_a_checkpoint(self, helium: Path, tmp_path: Path) -> None:
        shutil.copytree(helium, tmp_path / "adapter")
        assert "found:    a checkpoint" in refused(helium, tmp_path / "adapter")

    def test_a_folder_of_adapters(self, helium: Path, folder: Path) -> None:
        message = refused(helium, folder.parent)
        assert "adapters inside it: adapter" in message
        assert f"as {folder}" in message

    def test_pickled_weights(self, helium: Path, folder: Path) -> None:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        message = refused(helium, folder)
        assert "adapter_model.bin (pickled: reading it would run its code)" in message
        assert "save it again" in message

    def test_truncated_weights(self, helium: Path, folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        assert "truncated" in refused(helium, folder, WeightsError)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite(self, value: float, helium: Path, folder: Path) -> None:
        edit_tensors(folder, lambda t: t[f"{Q}.lora_B.weight"].__setitem__((3, 1), value))
        checkpoint = merged(Checkpoint.open(helium), [folder])
        with pytest.raises(WeightsError, match=r"lora_B\.weight is not finite"):
            checkpoint.read("model.layers.0.self_attn.q_proj.weight")

    def test_weights_of_a_dtype_that_cannot_be_read(self, helium: Path, folder: Path) -> None:
        edit_tensors(folder, lambda t: t.update({f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"].astype(np.float64)}))
        assert "F64" in refused(helium, folder, WeightsError)


class TestTensors:
    """adapter_model.safetensors: one tensor wrong at a time."""

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda t: t.pop(f"{Q}.lora_B.weight"), "one half of its matrices"),
            (lambda t: [t.pop(f"{Q}.lora_{x}.weight") for x in "AB"], "matrices are missing"),
            (lambda t: t.clear(), "matrices are missing"),
            (lambda t: t.update({f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"][:1]}), "rank 2"),
            (lambda t: t.update({f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"][:, :32]}), "[2, 64]"),
            (lambda t: t.update({f"{Q}.lora_B.weight": t[f"{Q}.lora_B.weight"].T}), "[64, 2]"),
            (lambda t: t.update({f"{Q}.lora_magnitude_vector": np.ones(64, np.float32)}), "DoRA"),
            (lambda t: t.update({f"{Q}.lora_B.bias": np.ones(64, np.float32)}), "no place"),
            (lambda t: t.update({f"{Q}.oft_r.weight": np.ones(64, np.float32)}), "the base model has no"),
            (lambda t: t.update({"transformer.h.0.lora_A.weight": np.ones((2, 64), np.float32)}), "base_model.model."),
            (lambda t: t.update({f"{Q}.weight": np.ones((64, 64), np.float32)}), "modules_to_save"),
            (lambda t: t.update({"base_model.model.score.weight": np.ones((3, 64), np.float32)}), "modules_to_save"),
            (lambda t: t.update({"base_model.model.lm_head.weight": np.ones((321, 64), np.float32)}), "vocabulary"),
            (
                lambda t: t.update({f"{PREFIX}0.self_attn.k_proj.lora_{x}.weight": np.ones(s, np.float32)
                                    for x, s in (("A", (2, 64)), ("B", (32, 2)))}),
                "does not ask for some of the matrices",
            ),
            (
                lambda t: t.update({f"{PREFIX}7.self_attn.q_proj.lora_{x}.weight": np.ones(s, np.float32)
                                    for x, s in (("A", (2, 64)), ("B", (64, 2)))}),
                "the base model has no 'model.layers.7.self_attn.q_proj'",
            ),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(
        self, change: Callable[[Tensors], object], expected: str, helium: Path, folder: Path
    ) -> None:
        edit_tensors(folder, change)
        assert expected in refused(helium, folder)

    def test_another_base_model(self, folder: Path, tmp_path: Path) -> None:
        other = tiny.write_checkpoint(tmp_path / "other", hidden_size=32, num_attention_heads=2)
        assert "does not fit the base model" in refused(other, folder)

    def test_a_base_model_of_more_layers(self, folder: Path, tmp_path: Path) -> None:
        other = tiny.write_checkpoint(tmp_path / "other", num_hidden_layers=4)
        assert "matrices are missing" in refused(other, folder)

    def test_a_tied_head(self, tmp_path: Path) -> None:
        base = tiny.write_checkpoint(tmp_path / "base", tie=True)
        adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
        assert "embedding and head share" in refused(base, adapter)

    def test_modules_to_save_that_are_not_there(self, helium: Path, folder: Path) -> None:
        tiny.edit_json(folder / "adapter_config.json", modules_to_save=["norm"])
        assert "modules_to_save is not there" in refused(helium, folder)

    def test_names_are_escaped(self, helium: Path, folder: Path) -> None:
        """They go to a terminal."""
        edit_tensors(folder, lambda t: t.update({"base_model.model.\x1b[31m.weight": np.ones(2, np.float32)}))
        assert "\x1b" not in refused(helium, folder)
        tiny.edit_json(folder / "adapter_config.json", task_type="\x1b[31m")
        assert "\x1b" not in refused(helium, folder)


def test_the_config_is_peft_s_own(small: Path) -> None:
    """Every field that peft writes today is known here: read, harmless, or refused where it says something."""
    from helium_onnx.adapters import config

    written = set(json.loads((small / "adapter_config.json").read_text()))
    assert written <= {*config._NOT_BUILT, *config._HARMLESS, *config._READ}
