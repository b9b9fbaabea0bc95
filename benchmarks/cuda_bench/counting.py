"""What a prefill or a decode step must move and compute at least, counted from config.json and how weights are stored.

Counted as in helium_onnx/benchmark/traffic.py: weights once a call, of the embedding the rows of new tokens, each held
token's keys and values read once and each new one's written once; multiplications and additions of matrices and of
attention. Not counted: activations, norms, logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Bytes of a float16 or bfloat16, the type of activations in every row that is measured.
HALF = 2
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Storage:
    """How the matrices of layers and head are stored; norms and embedding are in 16 bits.

    ``block_size`` weights of a row share a 16-bit scale and, with ``zeros``, a zero point of ``bits``; 16 bits have
    neither. ``head_block_size``: the head's, where it is another. ``cache_bits``: of a key's or a value's number.
    """

    bits: int = 16
    block_size: int = 0
    zeros: bool = False
    head_block_size: int = 0
    cache_bits: int = 16

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Codes, scales and zero points of one matrix; rows are padded to whole blocks."""
        if self.bits == 16:
            return rows * columns * HALF
        blocks = -(-columns // self.block_size)
        codes = blocks * self.block_size * self.bits // 8
        zeros = -(-blocks * self.bits // 8) if self.zeros else 0
        return rows * (codes + blocks * HALF + zeros)


def layer_matrices(config: Config) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix of a layer."""
    hidden, middle, size = (int(config[name]) for name in ("hidden_size", "intermediate_size", "head_dim"))
    query, key = int(config["num_attention_heads"]) * size, int(config["num_key_value_heads"]) * size
    return {
        "q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query),
        "gate_proj": (middle, hidden), "up_proj": (middle, hidden), "down_proj": (hidden, middle),
    }  # fmt: skip


def weight_bytes(config: Config, storage: Storage) -> int:
    """All weights that a step reads whole: matrices, head and norms."""
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    matrices = sum(storage.matrix_bytes(*shape) for shape in layer_matrices(config).values())
    norms = (2 * layers + 1) * hidden * HALF
    head = dataclasses.replace(storage, block_size=storage.head_block_size or storage.block_size)
    return layers * matrices + head.matrix_bytes(int(config["vocab_size"]), hidden) + norms


def token_bytes(config: Config, storage: Storage) -> int:
    """One token's keys and values in all layers."""
    heads = int(config["num_key_value_heads"]) * int(config["head_dim"])
    return 2 * int(config["num_hidden_layers"]) * heads * storage.cache_bits // 8


def cache_bytes(config: Config, storage: Storage, past: int, rows: int = 1) -> int:
    """Keys and values that a step of ``rows`` rows reads and writes: those held, the new one's read and written."""
    return rows * (past + 2) * token_bytes(config, storage)


def step_bytes(config: Config, storage: Storage, past: int, rows: int = 1) -> int:
    """All that one decode step moves."""
    embedding = rows * int(config["hidden_size"]) * HALF
    return weight_bytes(config, storage) + embedding + cache_bytes(config, storage, past, rows)


def prefill_operations(config: Config, tokens: int) -> int:
    """Of a prompt: matrices for every token, the head for the last, each token attending to itself and those before."""
    layers = int(config["num_hidden_layers"])
    matrices = sum(rows * columns for rows, columns in layer_matrices(config).values())
    width = int(config["num_attention_heads"]) * int(config["head_dim"])
    pairs = tokens * (tokens + 1) // 2
    head = int(config["vocab_size"]) * int(config["hidden_size"])
    return 2 * (layers * tokens * matrices + head) + 4 * layers * width * pairs


def step_operations(config: Config, past: int, rows: int) -> int:
    """Of a decode step."""
    layers = int(config["num_hidden_layers"])
    matrices = layers * sum(r * c for r, c in layer_matrices(config).values())
    head = int(config["vocab_size"]) * int(config["hidden_size"])
    width = int(config["num_attention_heads"]) * int(config["head_dim"])
    return rows * (2 * (matrices + head) + 4 * layers * width * (past + 1))
