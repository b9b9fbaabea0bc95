"""Writes what a runtime in another language must give: tokens, ids and texts of this package's own Python.

    python tests/vectors/write.py

writes ``generation.json``, ``matrices.json``, ``sampling.json``, ``stopping.json`` and ``tokenizer.json`` beside this
file, the same bytes each time.
Logits are not stored: each is made from 24 bits of SplitMix64, exactly, in float32.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tokenizers
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.generation.sampling import Sampler, SamplingOptions, SplitMix64
from helium_onnx.generation.stopping import StopStrings
from helium_onnx.tokenizer import Tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CHECKPOINT = ROOT / "samples/helium-docs-7m"
TEXTS = ROOT / "benchmarks/data/valid.jsonl"

#: Of all scripts that Helium's users write in, and some that no piece of the sample's vocabulary covers.
SCRIPTS = [
    "", " ", "  ", "\n", "\n\n", "a", " a", "a ", "a\nb", "a\n\n b \n", "\t", "a\tb\r\nc", "a\u00a0b", "e\u0301",
    "\u00e9", "L'été, où êtes-vous ?", "Größe, Straße, ÄÖÜ", "¿Qué pasó, señor?", "perché città più", "coração, ação",
    "łódź żółć",
    "Привет, мир", "Ελληνικά", "עברית", "العربية", "हिन्दी", "ไทย", "日本語のテスト", "中文字符", "한국어", "ქართული",
    "👍🏽", "👨‍👩‍👧", "a👍b", "🇫🇷", "\u200b", "\ufeff", "\u0000", "\ufffd", "\U0010ffff", "▁", "▁▁a", "a▁b", "…—–“”",
    "<s>", "</s>", "<unk>", "<pad>", "<0x41>", "a</s>b", "<0x0A>", "x<unk><unk>y", "$& $1 \\",
    "def f(x):\n    return x",
    "1234567890", "3.14159", "ǅ ﬁ ½ ①", "Ａ Ｂ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "thethethe the  the   the",
]  # fmt: skip


def sampling() -> list[dict[str, Any]]:
    """Cases: options, how the logits are made, the prompt's ids, and the tokens of consecutive steps."""
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 0.7, "top_k": 50},
        {"temperature": 1.3, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.9, "repetition_penalty": 1.2, "top_p": 0.8},
        {"temperature": 0.9, "repetition_penalty": 0.8, "top_k": 5},
        {"temperature": 0.01},
        {"temperature": 1e-300},
        {"temperature": 5.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "min_p": 1.0},
    ]
    shapes: list[dict[str, Any]] = [
        {"size": 7, "scale": 4.0, "levels": 3, "masked": 0, "steps": 12},
        {"size": 300, "scale": 12.0, "levels": 0, "masked": 0, "steps": 12},
        {"size": 300, "scale": 6.0, "levels": 8, "masked": 5, "steps": 12},
        {"size": 6000, "scale": 24.0, "levels": 0, "masked": 0, "steps": 4},
        {"size": 6000, "scale": 3.0, "levels": 0, "masked": 3, "steps": 4},
    ]
    seeds = [0, 1, 42, 2**53 - 1, 2**53 + 1, 2**64 - 1]
    cases = []
    for index, (chosen, shape) in enumerate((o, s) for o in options for s in shapes):
        seed = seeds[index % len(seeds)]
        sampler = Sampler(SamplingOptions(seed=seed, **chosen))
        prompt_ids = [(index * 31 + i * 7) % shape["size"] for i in range(index % 4)]
        history_ids = list(prompt_ids)
        for step in range(shape["steps"]):
            history_ids.append(sampler.sample(logits(index * 1000 + step, shape), history_ids))
        tokens = history_ids[len(prompt_ids) :]
        # A seed above 2^53 is no number for JavaScript's JSON reader.
        cases.append({"options": {**chosen, "seed": str(seed)}, "logits": {"seed": index * 1000, **shape},
                      "prompt_ids": prompt_ids, "tokens": tokens})  # fmt: skip
    return cases


def logits(seed: int, shape: dict[str, Any]) -> NDArray[np.float32]:
    """``[size]``: uniform in +-scale/2; of ``levels`` > 0 values, so that many are equal; each masked-th is -inf."""
    stream = SplitMix64(seed)
    values = np.empty(shape["size"], np.float32)
    for index in range(shape["size"]):
        share = (stream.next_uint64() >> 40) * 2.0**-24
        if shape["levels"]:
            share = np.floor(share * shape["levels"]) / shape["levels"]
        values[index] = np.float32((share - 0.5) * shape["scale"])
    if shape["masked"]:
        values[:: shape["masked"]] = -np.inf
    return values


def stopping() -> list[dict[str, Any]]:
    """Cases: stop strings, the text's pieces, what each piece shows, what the end shows, and the match."""
    draw = random.Random(6)
    cases = []
    for stop in (["\n", "\n\n"], ["abc", "b"], ["ab", "abab"], ["👍", "a👍b"], ["aab", "ba", "abba"], [], ["a" * 9]):
        alphabet = sorted({character for string in stop for character in string} | {"a", "x", "👎"})
        for _ in range(12):
            text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(24)))
            cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(6)))
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            reader = StopStrings(stop)
            shown = [reader.push(piece) for piece in pieces]
            cases.append({"stop": stop, "pieces": pieces, "shown": [*shown, reader.finish()], "match": reader.match})
    return cases


def tokenizer() -> dict[str, list[Any]]:
    """``texts``: each with its ids. ``special``: with ``parse_special``, where that gives others.

    ``lines``: SHA-256 of the ids (little-endian int32) of each evaluation text. ``streams``: prompt ids, the ids that
    follow, and the text that each of them completes.
    """
    ours = Tokenizer.from_folder(CHECKPOINT, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))
    library = tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    library.no_padding()

    def encode(text: str) -> list[int]:
        ids = ours.encode(text)
        if not any(name in text for name in ("<s>", "</s>", "<unk>", "<pad>", "<0x")):
            assert ids == library.encode(text).ids, text  # what a user types as such a name is text here, not there
        return ids

    draw = random.Random(6)
    texts = list(SCRIPTS)
    planes = ((0, 0x80), (0, 0xD800), (0xE000, 0x110000))  # all but surrogates
    for _ in range(60):
        texts.append(bytes(draw.randrange(256) for _ in range(draw.randrange(1, 40))).decode("utf-8", "replace"))
        texts.append("".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(draw.randrange(1, 20))))
    with TEXTS.open(encoding="utf-8") as lines:
        digests = [
            hashlib.sha256(np.array(encode(json.loads(line)["text"]), "<i4").tobytes()).hexdigest() for line in lines
        ]
    streams = []
    for prompt in ("", "a", "Bonjour", "\n"):
        prompt_ids = encode(prompt)
        for text in texts[::5]:
            streams.append(read(ours, prompt_ids, encode(text)[1:]))
        for _ in range(8):  # any ids: halves of characters, control tokens, the unknown token
            streams.append(read(ours, prompt_ids, [draw.randrange(300) for _ in range(20)]))
    special = []
    names = ["</s></s>", " </s> a", "a</s>\n<s>b", "<pad>x<unk>é", "</s", "<0xE2><0x82><0xAC>", "x</s>日本", "a</s> b"]
    for text in [*texts, *names]:
        ids = ours.encode(text, parse_special=True)
        if ids != ours.encode(text):
            special.append({"text": text, "ids": ids})
    rows = [{"text": text, "ids": encode(text)} for text in texts]
    return {"texts": rows, "special": special, "lines": digests, "streams": streams}


def read(ours: Tokenizer, prompt_ids: list[int], ids: list[int]) -> dict[str, Any]:
    stream = ours.stream(prompt_ids)
    return {"prompt_ids": prompt_ids, "ids": ids, "pieces": [stream.push(token_id) for token_id in ids]}


def generation() -> list[dict[str, Any]]:
    """Cases: prompt, options, and what follows, of the sample in float32: the same on every processor."""
    greedy: dict[str, Any] = {}
    asked: list[tuple[str, dict[str, Any], int, list[str]]] = [
        ("To insert a table into a text document,", greedy, 40, []),
        ("Pour enregistrer un document,", greedy, 40, []),
        ("Um eine Datei zu speichern,", greedy, 40, []),
        ("Per modificare le dimensioni della pagina,", greedy, 40, []),
        ("Para abrir el documento,", greedy, 40, []),
        ("Para guardar o documento,", greedy, 40, []),
        ("日本 👍🏽", greedy, 12, []),
        ("", greedy, 12, []),
        ("a</s>b", greedy, 8, []),
        ("To insert a table into a text document,", greedy, 40, ["Table", "."]),
        ("Choose Format - ", {"temperature": 1.0, "seed": "1"}, 32, []),
        ("Choose Format - ", {"temperature": 0.8, "top_k": 40, "seed": "2"}, 32, []),
        ("Wählen Sie ", {"temperature": 1.2, "top_p": 0.9, "seed": str(2**64 - 1)}, 32, []),
        ("Cliquez sur ", {"temperature": 0.9, "min_p": 0.05, "repetition_penalty": 1.2, "seed": "4"}, 32, []),
        ("Haga clic en ", {"repetition_penalty": 1.3}, 32, ["\n"]),
    ]
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = helium_onnx.export(CHECKPOINT, Path(folder) / "out", recipe="cpu-fp32")
        model = helium_onnx.load(bundle.path)
        for prompt, options, count, stop in asked:
            seed = {"seed": int(options["seed"])} if "seed" in options else {}
            [made] = model.generate(prompt, max_new_tokens=count, stop=stop, **{**options, **seed}).generations
            cases.append(
                {"prompt": prompt, "options": options, "max_new_tokens": count, "stop": stop,
                 "ids": list(made.token_ids), "text": made.text, "finish_reason": made.finish_reason}
            )  # fmt: skip
        model.close()
    return cases


def matrices() -> list[dict[str, Any]]:
    """Cases: a graph of one MatMulNBits, the file of its weights, and the float32 matrix ``[K, N]``; all in base64.

    The matrix is held against what ONNX Runtime answers to the identity.
    """
    draw = np.random.default_rng(6)
    cases = []
    for bits, k, n, block_size, half, zero_points in (
        (4, 64, 5, 16, True, True),
        (4, 40, 3, 16, False, True),  # three blocks: half a byte of zero points, half a block of weights
        (4, 32, 4, 32, True, False),
        (8, 48, 5, 16, True, False),
        (8, 40, 3, 32, False, True),
    ):
        blocks = -(-k // block_size)
        scales = draw.uniform(-0.1, 0.1, (n, blocks)).astype(np.float16 if half else np.float32)
        scales[0, 0] = 6e-8 if half else scales[0, 0]  # a subnormal number
        weights = {
            "weight": draw.integers(0, 256, (n, blocks, block_size * bits // 8), np.uint8),
            "scales": scales,
            "zero_points": draw.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8),
        }
        if not zero_points:
            del weights["zero_points"]
        file, model = _quantized_graph(weights, {"K": k, "N": n, "bits": bits, "block_size": block_size})
        embedded = onnx.load_model_from_string(model.SerializeToString())
        for tensor, array in zip(embedded.graph.initializer, weights.values(), strict=True):
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        session = ort.InferenceSession(embedded.SerializeToString())
        [answer] = session.run(None, {"x": np.eye(k, dtype=np.float32)})
        zeros = _unpacked(weights.get("zero_points", np.full((n, blocks), 2 ** (bits - 1))), bits, zero_points)[
            :, :blocks
        ]
        values = _unpacked(weights["weight"].reshape(n, -1), bits, True).reshape(n, blocks, block_size)
        rows = (values - zeros[..., None]).astype(np.float32) * scales.astype(np.float32)[..., None]
        matrix = rows.reshape(n, -1)[:, :k].T
        np.testing.assert_allclose(matrix, answer, rtol=1e-6)
        texts = (model.SerializeToString(), file, matrix.astype("<f4").tobytes())
        cases.append(
            dict(zip(("graph", "weights", "matrix"), (base64.b64encode(text).decode() for text in texts), strict=True))
        )
    return cases


def _unpacked(packed: NDArray[Any], bits: int, is_packed: bool) -> NDArray[np.int64]:
    """Numbers of ``bits`` in each row of bytes, the low bits first."""
    if bits == 8 or not is_packed:
        return packed.astype(np.int64)
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1).astype(np.int64)


def _quantized_graph(weights: dict[str, NDArray[Any]], shape: dict[str, int]) -> tuple[bytes, onnx.ModelProto]:
    """As bundles have it: weights in a file beside the graph, scales in float16 cast in the graph."""
    file = b""
    initializers = []
    for name, array in weights.items():
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", "weights"), ("offset", len(file)), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        initializers.append(tensor)
        file += array.tobytes() + b"\0" * 3  # so that the next one begins anywhere
    inputs = ["x", *weights]
    nodes = []
    if weights["scales"].dtype == np.float16:
        nodes.append(onnx.helper.make_node("Cast", ["scales"], ["scales.cast"], to=onnx.TensorProto.FLOAT))
        inputs[2] = "scales.cast"
    nodes.append(onnx.helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", accuracy_level=1, **shape))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "one_matrix",
        [value("x", onnx.TensorProto.FLOAT, ["rows", shape["K"]])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", shape["N"]])],
        initializers,
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    return file, onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def written() -> Iterator[tuple[str, str]]:
    """Names and texts of the files."""
    cases = {"generation": generation(), "matrices": matrices(), "sampling": sampling(), "stopping": stopping()}
    for name, rows in cases.items():
        yield f"{name}.json", _lines(rows) + "\n"
    parts = [f"{json.dumps(key)}: {_lines(rows)}" for key, rows in tokenizer().items()]
    yield "tokenizer.json", "{" + ",\n".join(parts) + "}\n"


def _lines(rows: list[Any]) -> str:
    """A case a line, so that a difference can be read."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]"


if __name__ == "__main__":
    for file_name, text in written():
        (HERE / file_name).write_text(text, encoding="utf-8")
