"""Nodes of a traced graph that its output does not need: those of outputs beside the logits."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import fx

_VIEWS = ("view", "reshape", "flatten", "unflatten", "transpose", "permute", "unsqueeze", "squeeze", "narrow", "select")


def drop_dead(graph: fx.Graph) -> set[str]:
    """Erase the nodes that the output does not need. Returns the paths of what they call or read."""
    nodes = list(graph.nodes)
    live, waiting = set[fx.Node](), [nodes[-1]]
    while True:
        while waiting:
            node = waiting.pop()
            if node not in live:
                live.add(node)
                waiting += node.all_input_nodes
        # A write into a tensor that the output needs.
        waiting = [node for node in nodes if node not in live and _writes(node) and _viewed(node) in live]
        if not waiting:
            break
    dead = [node for node in nodes if node not in live and node.op != "placeholder"]
    for node in reversed(dead):
        graph.erase_node(node)
    return paths(dead)


def _writes(node: fx.Node) -> bool:
    """Whether a node may change its first argument."""
    if not node.all_input_nodes:
        return False
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("__")
    return node.target is operator.setitem or bool(node.kwargs.get("inplace"))


def _viewed(node: fx.Node) -> fx.Node:
    """The tensor that a node writes into: the one behind the views of it."""
    tensor = node.all_input_nodes[0]
    while (tensor.target is operator.getitem or tensor.target in _VIEWS) and tensor.all_input_nodes:
        tensor = tensor.all_input_nodes[0]
    return tensor


def paths(nodes: Iterable[fx.Node]) -> set[str]:
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}
