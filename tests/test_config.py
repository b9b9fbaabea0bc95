"""config.json: what is read, what is refused, and that nothing else can happen."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HeliumConfig as TheirHelium
from transformers import LlamaConfig as TheirLlama

from helium_onnx.config import HeliumConfig
from helium_onnx.config_fields import DTYPES
from helium_onnx.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HELIUM: dict[str, Any] = {"model_type": "helium", **SIZES}
LLAMA: dict[str, Any] = {"model_type": "llama", **SIZES}
PREVIEW: dict[str, Any] = {
    "model_type": "helium",
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read(data: dict[str, Any], **changes: Any) -> HeliumConfig:
    return HeliumConfig.from_dict({**data, **changes}, source="a/config.json")


def refused(data: dict[str, Any], **changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(data, **changes)
    return complete(caught.value)


def complete(error: ConfigError) -> ConfigError:
    assert "a/config.json" in error.what
    assert error.found
    assert error.expected
    assert error.remedy
    assert str(error).encode()  # printable, whatever was in the file
    return error


def test_absent_fields_take_the_defaults_of_transformers_helium() -> None:
    ours, theirs = read(PREVIEW), TheirHelium(**PREVIEW)
    for name in ("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
                 "tie_word_embeddings", "bos_token_id", "pad_token_id"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope_interleaved


def test_absent_fields_take_the_defaults_of_transformers_llama() -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    ours, theirs = read({"model_type": "llama", **sizes}), TheirLlama(**sizes)
    for name in ("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
                 "tie_word_embeddings", "bos_token_id", "pad_token_id"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert not ours.rope_interleaved


def test_parameters_of_the_published_preview() -> None:
    assert round(read(PREVIEW).num_parameters / 1e6, 1) == 2172.6


@pytest.mark.parametrize("tie", [False, True])
def test_parameters_are_those_of_transformers(tie: bool) -> None:
    from transformers import HeliumForCausalLM

    fields = {**SIZES, "head_dim": 16, "tie_word_embeddings": tie}
    theirs = HeliumForCausalLM(TheirHelium(**fields)).num_parameters()
    assert read({"model_type": "helium", **fields}).num_parameters == theirs


@pytest.mark.parametrize(
    ("value", "ids"), [(2, (2,)), ([2, 7], (2, 7)), ([], ()), (None, ())], ids=["int", "list", "empty", "null"]
)
def test_eos_is_an_int_a_list_or_null(value: Any, ids: tuple[int, ...]) -> None:
    assert read(HELIUM, eos_token_id=value).eos_token_ids == ids


def test_a_null_token_is_none_and_no_default() -> None:
    config = read(HELIUM, bos_token_id=None, pad_token_id=None)
    assert (config.bos_token_id, config.pad_token_id) == (None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 20000},
        {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 20000.0, "type": "default"}, "rope_theta": 20000},
    ],
    ids=["old", "new", "both"],
)
def test_theta_is_read_in_both_places(fields: dict[str, Any]) -> None:
    assert read(LLAMA, **fields).rope_theta == 20000.0


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_is_read_under_both_names(name: str) -> None:
    assert read(HELIUM, **{name: "bfloat16"}).dtype == "bfloat16"
    assert read(HELIUM).dtype is None


@pytest.mark.parametrize("eos", [2, [2, 7], None])
@pytest.mark.parametrize("base", [HELIUM, LLAMA, PREVIEW], ids=["helium", "llama", "preview"])
def test_to_dict_is_json_and_comes_back(base: dict[str, Any], eos: Any) -> None:
    config = read(
        base, eos_token_id=eos, pad_token_id=None, rope_theta=12345.5, dtype="float16", architectures=["HeliumModel"]
    )
    again = HeliumConfig.from_dict(json.loads(json.dumps(config.to_dict())), source="helium.json")
    assert again == config
    assert again.rope_theta == 12345.5


def test_to_dict_is_read_by_transformers() -> None:
    config = read(HELIUM, rope_theta=5000.0)
    theirs = TheirHelium(**config.to_dict())
    assert (theirs.rope_parameters["rope_theta"], theirs.head_dim, theirs.eos_token_id) == (5000.0, 16, 2)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        *(({name: bad}, name) for name in SIZES for bad in (-1, 0, 2**40, 10**400, 64.0, "64", True, math.nan, [64])),
        *(({name: None}, name) for name in SIZES if name != "num_key_value_heads"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"max_position_embeddings": 2**21}, "max_position_embeddings"),
        ({"head_dim": 32}, "head_dim"),
        ({"hidden_size": 60}, "head_dim"),  # 60 / 4 = 15: odd
        ({"hidden_size": 66}, "head_dim"),  # 66 / 4 = 16.5
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        *(({"rms_norm_eps": bad}, "rms_norm_eps") for bad in (0, -1e-8, 0.1, math.nan, math.inf, "1e-8", True)),
        *(({"rope_theta": bad}, "rope_theta") for bad in (0, 1, -5.0, math.nan, math.inf, "x", True, 10**400)),
        ({"rope_parameters": {"rope_theta": math.nan}}, "rope_theta"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"type": "linear"}}, "rope_parameters.type"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters"),
        *(
            ({"rope_parameters": {"rope_type": kind, "rope_theta": 2e4}}, "rope_parameters.rope_type")
            for kind in ("yarn", "linear", "dynamic", "longrope", "proportional")
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 2e4, "rope_type": "default"}}}, "rope_parameters"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"attention_bias": 0}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"no_rope_layers": [1, 0, 1]}, "no_rope_layers"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"residual_multiplier": 0.2}, "residual_multiplier"),
        ({"attention_multiplier": 0.02}, "attention_multiplier"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": [1]}, "architectures"),
        *(({"architectures": [name]}, "architectures") for name in ("MistralForCausalLM", "Qwen2ForCausalLM", "X", "")),
        ({"architectures": ["LlamaForCausalLM", "GraniteForCausalLM"]}, "architectures"),
        *(({name: bad}, name) for name in TOKENS for bad in (-1, 320, 1.0, True)),
        ({"eos_token_id": [2, 320]}, "eos_token_id"),
        ({"eos_token_id": [2, None]}, "eos_token_id"),
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "dtype"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("base", [HELIUM, LLAMA], ids=["helium", "llama"])
def test_refused_with_the_field_named(base: dict[str, Any], changes: dict[str, Any], field: str) -> None:
    assert f": {field} cannot be used" in refused(base, **changes).what


@pytest.mark.parametrize("value", ["mistral", "Helium", "gemma", None, 3, ["helium"]])
def test_another_model_type_is_no_helium(value: Any) -> None:
    error = refused(HELIUM, model_type=value)
    assert "model_type" in error.what
    assert "'helium' or 'llama'" in str(error.expected)
    assert "no Helium" in str(error.remedy)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 2e4, "factor": 4.0}},
        {"attention_bias": True},
        {"sliding_window": 4096},
    ],
)
def test_no_remedy_is_to_edit_a_field_that_the_weights_were_trained_with(changes: dict[str, Any]) -> None:
    remedy = str(refused(LLAMA, **changes).remedy)
    assert "pass a Helium checkpoint" in remedy
    assert "optimum-onnx" in remedy
    assert "correct the field" not in remedy


def test_fields_that_say_what_is_built_are_read() -> None:
    plain = {"rope_scaling": None, "sliding_window": None, "attention_bias": False, "mlp_bias": False,
             "partial_rotary_factor": 1.0, "hidden_act": "silu", "pretraining_tp": 1, "head_dim": None,
             "architectures": ["LlamaForCausalLM"]}  # fmt: skip
    config = read(LLAMA, **plain)
    assert (config.head_dim, config.architectures) == (16, ("LlamaForCausalLM",))


def test_heads_that_do_not_make_the_hidden_size_are_explained() -> None:
    error = refused(HELIUM, head_dim=32)
    assert error.found == "32"
    assert error.expected == "num_attention_heads 4 x head_dim to equal hidden_size 64"


def test_a_model_beyond_all_measure_is_refused() -> None:
    big = {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 1024, "num_attention_heads": 512}
    assert "parameters" in refused(HELIUM, **big).what


def test_a_long_value_does_not_flood_the_message() -> None:
    assert len(str(refused(HELIUM, hidden_act="x" * 100_000))) < 1000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"model_type": "helium", "model_type": "llama"}', "twice"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 100_000, "deep"),
    ],
    ids=["empty", "cut", "twice", "not-utf8", "deep"],
)
def test_a_file_that_is_no_json_object(tmp_path: Path, text: bytes, found: str) -> None:
    path = tmp_path / "config.json"
    if found == "twice":
        text = json.dumps(HELIUM).encode()[:-1] + b', "vocab_size": 320}'
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        HeliumConfig.from_file(path)
    assert str(path) in caught.value.what
    assert found in str(caught.value.found)
    assert caught.value.remedy


def test_nan_in_the_file_is_refused_by_its_field(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**HELIUM, "rms_norm_eps": math.nan}))
    with pytest.raises(ConfigError, match="rms_norm_eps cannot be used"):
        HeliumConfig.from_file(path)
    path.write_text(json.dumps({**HELIUM, "attention_dropout": math.nan}))
    with pytest.raises(ConfigError, match="no finite number"):
        HeliumConfig.from_file(path)


def test_a_file_that_is_missing_a_list_or_huge(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        HeliumConfig.from_file(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="the config cannot be used"):
        HeliumConfig.from_file(path)
    path.write_bytes(b" " * (2 << 20))
    with pytest.raises(ConfigError, match="too large"):
        HeliumConfig.from_file(path)


def test_reading_a_config_loads_no_framework() -> None:
    code = "import helium_onnx.config, sys; print([m for m in ('torch', 'numpy', 'onnxruntime') if m in sys.modules])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


FIELDS = [*HELIUM, "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters",
          "rope_scaling", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
          "torch_dtype", "architectures", "attention_bias", "sliding_window", "pretraining_tp"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([2, 4, 64, *DTYPES, "silu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["rope_theta"]), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3), base=st.sampled_from([HELIUM, LLAMA, {}]))
def test_any_object_is_a_config_or_a_config_error(changes: dict[str, Any], base: dict[str, Any]) -> None:
    try:
        config = read(base, **changes)
    except ConfigError as error:
        complete(error)
        return
    assert config.hidden_size == config.num_attention_heads * config.head_dim
    assert HeliumConfig.from_dict(json.loads(json.dumps(config.to_dict())), source="again") == config
