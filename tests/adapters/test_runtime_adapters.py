"""One bundle, several adapters chosen per request: logits are peft's, and nothing of one adapter reaches another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from peft_adapters import adapted, load_base

import helium_onnx
from helium_onnx import Bundle
from helium_onnx.adapters.bundle_adapters import BundleAdapters
from helium_onnx.errors import AdapterError, ProviderError, SavedSessionError, UsageError
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.runtimes.opening import KernelChoice, open_session
from helium_onnx.runtimes.webgpu_session import WebGpuSession

Bundles = Callable[[str], Bundle]
IDS = reference.random_ids(1, 40)
#: More tokens than a block of the prefix cache has.
PROMPT = "Once upon a time the table of the era is in the an of a la le de on in er. " * 2


def texts(model: Any, prompts: str | list[str], adapter: str | None, tokens: int = 12) -> list[str]:
    result = model.generate(prompts, adapter=adapter, max_new_tokens=tokens)
    return [generation.text for generation in result.generations]


def logits(
    bundle: Bundle, adapter: str | None = None, kernels: KernelChoice = "onnxruntime", prefill: int = 36
) -> NDArray[np.float32]:
    """Of the last position of a prefill, and of each token after it, fed one by one: ``[positions, vocab_size]``."""
    session = open_session(bundle, choice=kernels)
    try:
        session.use_adapter({} if adapter is None else BundleAdapters(bundle).get(adapter).matrices)
        past = session.new_past(1)
        rows = [session.run("prefill", IDS[:, :prefill], past)[0, -1].copy()]
        rows += [session.run("decode", IDS[:, i : i + 1], past)[0, -1].copy() for i in range(prefill, IDS.shape[1])]
    finally:
        session.close()
    return np.stack(rows)


def of_peft(base: Path, adapter: Path | None, weights: BundleWeights | None = None) -> NDArray[np.float32]:
    """Likewise of transformers, with peft's adapter beside the weights (of a bundle, as it has them)."""
    model = load_base(base) if adapter is None else adapted(base, adapter, merge=False)
    if weights is not None:
        for name, parameter in model.named_parameters():
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            if "lora_" not in plain:
                parameter.data = torch.from_numpy(weights.read(plain))
    with torch.inference_mode():
        result: NDArray[np.float32] = model(torch.from_numpy(IDS)).logits[0, 35:].numpy()
    return result


class TestParity:
    @pytest.mark.parametrize("recipe", ["fp32", "fp32-standard"])
    def test_logits_are_those_of_peft(
        self, recipe: str, helium: Path, small: Path, large: Path, runtime_bundle: Bundles
    ) -> None:
        """Two adapters of different rank through one bundle, and none."""
        bundle = runtime_bundle(recipe)
        expected = {"small": of_peft(helium, small), "large": of_peft(helium, large), None: of_peft(helium, None)}
        for name, wanted in expected.items():
            scale = np.abs(wanted).max()
            assert np.abs(logits(bundle, name) - wanted).max() <= reference.TOLERANCE * scale
            for other, theirs in expected.items():
                assert other == name or np.abs(theirs - wanted).max() > reference.MUTATION * scale

    def test_over_quantized_weights(self, helium: Path, small: Path, large: Path, runtime_bundle: Bundles) -> None:
        """In float32 arithmetic, against peft over the same 4-bit weights."""
        bundle = runtime_bundle("int4-exact")
        for name, folder in {"small": small, "large": large, None: None}.items():
            wanted = of_peft(helium, folder, BundleWeights(bundle))
            assert np.abs(logits(bundle, name) - wanted).max() <= reference.TOLERANCE * np.abs(wanted).max()

    @pytest.mark.usefixtures("native_kernels")
    @pytest.mark.parametrize("recipe", ["int4", "int8"])
    def test_native_kernels(self, recipe: str, helium: Path, small: Path, large: Path, runtime_bundle: Bundles) -> None:
        """Activations are rounded to 8 bits, in ours as in ONNX Runtime's; the update is in float32 in either."""
        bundle = runtime_bundle(recipe)
        for name, folder in {"small": small, "large": large}.items():
            wanted = of_peft(helium, folder, BundleWeights(bundle))
            native, theirs = logits(bundle, name, "native"), logits(bundle, name)
            away = np.linalg.norm(logits(bundle, None, "native") - wanted)
            assert np.linalg.norm(native - wanted) < 1.5 * np.linalg.norm(theirs - wanted) < 0.4 * away

    @pytest.mark.parametrize("recipe", ["fp32", "int4", "int8"])
    def test_without_an_adapter_it_is_the_bundle_that_takes_none(
        self, recipe: str, runtime_bundle: Bundles, plain_bundle: Bundles
    ) -> None:
        for kernels in ("onnxruntime", "auto"):
            found = logits(runtime_bundle(recipe), None, kernels)
            np.testing.assert_array_equal(found, logits(plain_bundle(recipe), None, kernels))

    def test_the_weights_are_those_of_the_bundle_that_takes_none(
        self, runtime_bundle: Bundles, plain_bundle: Bundles
    ) -> None:
        one, other = (bundle("int4").path / "onnx/model.onnx_data" for bundle in (runtime_bundle, plain_bundle))
        assert one.read_bytes() == other.read_bytes()

    def test_it_passes_verify(self, runtime_bundle: Bundles) -> None:
        assert all(check.ok for check in helium_onnx.verify(runtime_bundle("int4").path))

    @pytest.mark.usefixtures("native_kernels")
    def test_natively_a_text_may_be_split_anywhere(self, runtime_bundle: Bundles) -> None:
        whole, split = (logits(runtime_bundle("int4"), "large", "native", prefill=n) for n in (39, 20))
        np.testing.assert_array_equal(split[-2:], whole)

    def test_the_prepacked_cache_takes_adapters(self, runtime_bundle: Bundles, tmp_path: Path) -> None:
        bundle = runtime_bundle("int4")
        found = []
        for cached in (False, True):
            options: dict[str, Any] = {"kernels": "onnxruntime", "cache": cached, "cache_dir": tmp_path}
            with helium_onnx.load(bundle.path, **options) as model:
                found.append([texts(model, PROMPT, name) for name in ("large", None, "small")])
        assert list(tmp_path.rglob("weights.data"))
        assert found[0] == found[1]


def test_sources_and_names_are_in_the_manifest(runtime_bundle: Bundles) -> None:
    bundle = runtime_bundle("fp32")
    files = bundle.manifest.adapters["files"]
    assert {name: entry["ranks"] for name, entry in files.items()} == {"small": [2], "large": [3, 9]}
    for name in files:
        assert f"adapters/{name}.onnx_adapter" in {record.path for record in bundle.manifest.files}
    with helium_onnx.load(bundle.path) as model:
        assert model.adapters == ("large", "small")


def test_onnx_runtime_s_own_adapters_take_the_file(helium: Path, large: Path, runtime_bundle: Bundles) -> None:
    """As its C, C++ and JavaScript interfaces do, and onnxruntime-genai: run options, and no code of ours."""
    import onnxruntime as ort

    bundle = runtime_bundle("fp32")
    session = ort.InferenceSession(bundle.graph_path("model"), providers=["CPUExecutionProvider"])
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(bundle.path / "adapters/large.onnx_adapter"))
    options.add_active_adapter(adapter)
    feed: dict[str, Any] = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    for spec in bundle.manifest.graphs["model"].inputs[2:]:
        feed[spec.name] = np.zeros((1, spec.dims[1], 0, spec.dims[3]), np.float32)
    found = session.run(["logits"], feed, options)[0][0, 35:]
    wanted = of_peft(helium, large)
    assert np.abs(found - wanted).max() <= reference.TOLERANCE * np.abs(wanted).max()


class TestRequests:
    @pytest.fixture(params=["fp32", "int4"])
    def bundle(self, request: pytest.FixtureRequest, runtime_bundle: Bundles) -> Bundle:
        return runtime_bundle(request.param)

    def test_each_request_has_its_own(self, bundle: Bundle) -> None:
        """In any order, several prompts or one, streamed or not: as a model that has served nothing else."""
        expected = {}
        for name in (None, "small", "large"):
            with helium_onnx.load(bundle.path, prefix_cache=0) as model:
                expected[name] = texts(model, [PROMPT, "table"], name)
        assert len(set(map(tuple, expected.values()))) == 3
        with helium_onnx.load(bundle.path) as model:
            for name in ("large", None, "small", "large", "small", None):
                assert texts(model, [PROMPT, "table"], name) == expected[name]
                assert "".join(model.stream(PROMPT, adapter=name, max_new_tokens=12)) == expected[name][0]

    def test_a_stream_ends_when_another_adapter_comes(self, bundle: Bundle) -> None:
        with helium_onnx.load(bundle.path) as model:
            stream = model.stream(PROMPT, adapter="small")
            next(stream)
            model.generate("table", adapter="large", max_new_tokens=2)
            with pytest.raises(helium_onnx.errors.GenerationError, match="cannot go on"):
                list(stream)

    def test_a_batch_is_its_prompts_alone(self, bundle: Bundle) -> None:
        with helium_onnx.load(bundle.path) as model:
            together = texts(model, [PROMPT, "table"], "large")
            assert together == [texts(model, text, "large")[0] for text in (PROMPT, "table")]


@pytest.mark.usefixtures("native_kernels")
class TestReuse:
    """Keys and values of one adapter are never another's."""

    @pytest.fixture
    def model(self, runtime_bundle: Bundles) -> Any:
        with helium_onnx.load(runtime_bundle("int4").path, kernels="native") as model:
            yield model

    @staticmethod
    def cached(model: Any, adapter: str | None) -> int:
        result = model.generate(PROMPT, adapter=adapter, max_new_tokens=2)
        return int(result.generations[0].cached_tokens)

    def test_the_prefix_cache_is_of_one_adapter(self, model: Any) -> None:
        names = (None, "small", "large")
        assert [self.cached(model, name) for name in names] == [0, 0, 0]
        assert all(self.cached(model, name) >= 32 for name in names)

    def test_its_bytes_are_one_sum(self, runtime_bundle: Bundles) -> None:
        """Room for one block alone: the other adapter's goes."""
        block = 32 * 3 * 2 * 2 * 16 * 2
        with helium_onnx.load(runtime_bundle("int4").path, kernels="native", prefix_cache=block) as model:
            assert self.cached(model, "small") == 0
            assert self.cached(model, "small") > 0
            assert self.cached(model, "large") == 0
            assert self.cached(model, "large") > 0
            assert self.cached(model, "small") == 0

    def test_a_saved_session_is_of_one_adapter(self, model: Any, runtime_bundle: Bundles, tmp_path: Path) -> None:
        for name in (None, "small", "large"):
            model.generate(PROMPT, adapter=name, max_new_tokens=2)
            model.save_session(tmp_path / str(name), adapter=name)
        with helium_onnx.load(runtime_bundle("int4").path, kernels="native") as fresh:
            for wrong in (None, "small"):
                with pytest.raises(SavedSessionError, match="of another bundle"):
                    fresh.load_session(tmp_path / "large", adapter=wrong)
            with pytest.raises(SavedSessionError, match="of another bundle"):
                fresh.load_session(tmp_path / "None", adapter="large")
            fresh.load_session(tmp_path / "large", adapter="large")
            assert [self.cached(fresh, name) > 0 for name in (None, "small", "large")] == [False, False, True]


class TestWhatIsRefused:
    def test_a_bundle_that_takes_none(self, small: Path, plain_bundle: Bundles) -> None:
        with (
            helium_onnx.load(plain_bundle("fp32").path) as model,
            pytest.raises(AdapterError, match="takes no adapters"),
        ):
            model.generate("table", adapter=small)

    def test_a_name_that_it_does_not_have(self, runtime_bundle: Bundles) -> None:
        with helium_onnx.load(runtime_bundle("fp32").path) as model:
            with pytest.raises(UsageError, match="there is no adapter 'french'") as caught:
                model.generate("table", adapter="french")
            assert "large, small" in str(caught.value)

    def test_a_changed_file_in_the_bundle(self, runtime_bundle: Bundles, tmp_path: Path) -> None:
        folder = tmp_path / "bundle"
        shutil.copytree(runtime_bundle("fp32").path, folder)
        file = folder / "adapters/small.onnx_adapter"
        data = bytearray(file.read_bytes())
        data[-40] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(helium_onnx.errors.IntegrityError, match="damaged"):
            helium_onnx.load(folder)

    def test_a_package_has_the_base_model_alone(self, runtime_bundle: Bundles, tmp_path: Path) -> None:
        package = helium_onnx.package(runtime_bundle("int4").path, tmp_path / "package", target="web")
        assert not package.manifest.adapters
        assert not (package.path / "adapters").exists()
        with pytest.raises(AdapterError, match="take no adapters"):
            BundleAdapters(package)

    def test_webgpu(self) -> None:
        """Without a GPU: the session says so before anything runs."""
        session = WebGpuSession.__new__(WebGpuSession)
        session.use_adapter({})
        with pytest.raises(ProviderError, match="cannot be chosen on WebGPU"):
            session.use_adapter({"model.layers.0.mlp.up_proj.lora_A.weight": np.ones((64, 2), np.float32)})

    @pytest.mark.parametrize("recipe", ["cuda-fp16", "qnn-fp16", "coreml-fp16"])
    def test_recipes_for_other_devices(self, recipe: str, helium: Path, small: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="take no adapters at run time"):
            helium_onnx.export(helium, tmp_path / "out", recipe=recipe, adapter=small, adapter_mode="runtime")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("names", [["a/b"], [""], ["x" * 65], ["One", "one"], ["é"]])
    def test_names_that_cannot_be_file_names(self, names: list[str], helium: Path, small: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"needs (a|another) name"):
            helium_onnx.export(
                helium, tmp_path / "out", recipe="cpu-fp32", adapter=dict.fromkeys(names, small), adapter_mode="runtime"
            )

    def test_an_unknown_mode(self, helium: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such adapter mode"):
            helium_onnx.export(helium, tmp_path / "out", adapter_mode="late")  # type: ignore[arg-type]
