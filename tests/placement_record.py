"""What a test found of a provider's share of a bundle, as docs/targets.md prints it (tests/targets/targets_page.py)."""

from __future__ import annotations

from collections import Counter
from typing import Any


def share(recipe: str, info: dict[str, Any]) -> str:
    """The cells of one row, from what ``helium_onnx.inspect(bundle, provider=...)`` gave."""
    graph = info["graphs"]["prefill"]
    asked = "the table" if info["method"] == "table" else info["source"].partition(" and ")[2].partition(",")[0]
    left = Counter(one["reason"] for one in graph["left"]).most_common(1)
    operators = {one["operator"] for one in graph["left"]}
    why = ""
    if left:
        some = f"{len(operators)} kinds of operators" if len(operators) > 4 else ", ".join(sorted(operators))
        why = f"{some}: {left[0][0]}"
    taken = f"{graph['taken']} of {graph['nodes']}"
    return " | ".join([f"`{recipe}`", f"`{info['provider']}`", asked, taken, str(graph["partitions"]), why])
