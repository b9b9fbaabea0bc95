"""How many pieces a provider's nodes fall into: what ONNX Runtime cuts a graph into, and copies tensors between."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from helium_onnx.placement.graph import Node


def partitions(nodes: Sequence[Node], taken: Collection[int]) -> list[list[int]]:
    """The groups of ``taken`` (indices of ``nodes``, which are in topological order) that run without a break.

    A group grows along the topological order, past nodes of others that wait for it, until nothing is left that does
    not need what another provider computes from it: an estimate of what ONNX Runtime does, whose own cuts may be fewer
    or more.
    """
    made_by = {name: index for index, node in enumerate(nodes) for name in node.outputs}
    needs = [{made_by[name] for name in node.inputs if name in made_by} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for index, needed in enumerate(needs):
        for one in needed:
            users[one].append(index)
    missing = [len(needed) for needed in needs]
    ready = deque(index for index, count in enumerate(missing) if not count)
    later: deque[int] = deque()
    groups: list[list[int]] = []
    group: list[int] = []
    while ready or later:
        if not ready:
            groups.append(group)
            group, ready, later = [], later, deque()
            continue
        index = ready.popleft()
        if index not in taken and group:
            later.append(index)  # after the group, which may hold what it does not need as well
            continue
        if index in taken:
            group.append(index)
        for user in users[index]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return [found for found in (*groups, group) if found]
