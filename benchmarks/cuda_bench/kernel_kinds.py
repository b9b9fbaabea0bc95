"""Kernels by what they do, told from their names, and the rate at which each kind moves what it must."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cuda_bench.counting import Config, Storage, cache_bytes, weight_bytes

#: The first pattern that is found in a kernel's name (any case) says what it does.
_KINDS = (
    ("copies", re.compile(r"memcpy|memset|^copy")),
    (
        "attention",
        re.compile(r"attention|flash|fmha|gqa|rotary|rope|softmax|kv_?cache|concat.*past|unpackqkv|appendkv"),
    ),
    ("norms", re.compile(r"layer_?norm|rms_?norm|skipnorm|simplified")),
    (
        "matrices",
        re.compile(
            r"gemm|gemv|matmul|linear|nvjet|cutlass|xmma|sm\d\d_|ampere|hopper|splitk|4bits|nbits|dequant|head_kernel"
        ),
    ),
    ("choice", re.compile(r"arg_?max|topk|top_k|reduce|sort")),
    ("activations", re.compile(r"gelu|silu|swish|elementwise|binary|unary|mul|add|cast|gather|triton")),
)
KINDS = (*(name for name, _ in _KINDS), "others")


def kind(name: str) -> str:
    """What a kernel does, as far as its name says it."""
    lower = name.lower()
    return next((what for what, pattern in _KINDS if pattern.search(lower)), "others")


def short(name: str) -> str:
    """A kernel's name without its template arguments, parameters and namespaces."""
    plain = re.sub(r"^void\s+", "", name)
    depth, kept = 0, []
    for character in plain:
        depth += character == "<"
        if not depth:
            kept.append(character)
        depth -= character == ">"
    text = re.sub(r"\(anonymous namespace\)", "", "".join(kept)).split("(", 1)[0]
    return text.rsplit("::", 1)[-1].strip() or name


def by_kind(step: Mapping[str, Any], config: Config, storage: Storage, past: int) -> list[dict[str, Any]]:
    """Of a traced decode step, each kind's kernels, microseconds, and bytes a second, where it must move bytes.

    Matrices read the weights, attention the keys and values.
    """
    moved = {"matrices": weight_bytes(config, storage), "attention": cache_bytes(config, storage, past)}
    found = []
    for what in KINDS:
        rows = [row for row in step["rows"] if kind(row["name"]) == what]
        if rows:
            microseconds = sum(row["us"] for row in rows)
            rate = moved[what] / microseconds * 1e-3 if what in moved else None
            calls = sum(row["calls"] for row in rows)
            found.append({"kind": what, "calls": calls, "us": microseconds, "gigabytes_per_second": rate})
    return found
