"""Which nodes of an exported graph may lose precision: those between the first and the last that multiply weights.

In front of them the pixels are cast and normalised, behind them stand pooling or softmax: there float32 costs nothing,
and eight bits of a pixel's mean or of a probability would cost accuracy.
"""

from __future__ import annotations

import onnx

from okdc.errors import CheckFailed

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def parse(blob: bytes) -> onnx.ModelProto:
    """The model of a file, each node with a name: tools that leave nodes out know them by it."""
    model = onnx.load_model_from_string(blob)
    taken = {node.name for node in model.graph.node}
    for i, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{i}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
    return model


def outside(model: onnx.ModelProto, kind: str) -> list[str]:
    """Names of the nodes that no weighted node precedes or that none follows, in the graph's order.

    Raises CheckFailed (`kind`) for a graph without a weighted node: nothing in it could be made smaller.
    """
    nodes = list(model.graph.node)  # ONNX keeps them in topological order
    if not any(node.op_type in WEIGHTED for node in nodes):
        raise CheckFailed(kind, f"no {', '.join(sorted(WEIGHTED))} in the graph: nothing to reduce")
    behind: set[str] = set()  # tensors that a weighted node has had a part in
    inside = set()
    for node in nodes:
        if node.op_type in WEIGHTED or behind.intersection(node.input):
            behind.update(node.output)
            inside.add(node.name)
    leading: set[str] = set()  # tensors that a weighted node will read, at once or later
    for node in reversed(nodes):
        if node.op_type in WEIGHTED or leading.intersection(node.output):
            leading.update(node.input)
        else:
            inside.discard(node.name)
    return [node.name for node in nodes if node.name not in inside]
