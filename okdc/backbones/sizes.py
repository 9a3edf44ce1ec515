"""Sizes of traced tensors: numbers where they are the same for every batch, one node for the number of images.

torch.fx gives a stand-in for `x.shape[2]`, on which Python can decide nothing: `if x.shape[-1] > 16`, `assert h == w`
and `range(h)` would all fail. Here the graph traced so far runs on two batches of other lengths. A size that both
agree on is a `Size`: an int for Python, and as an argument of an operation the node that reads it, so that the graph
still holds for wider images. A size that grows with the batch is the number of images, read from the images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

BATCHES = (2, 3)  # images: a layer of batch statistics needs two
SIZE = "okdc_size"  # in a node's meta: the number that the node reads, the same for every batch


class Size(int):
    """A size that no batch changes. `read(tracer)` makes the node that computes it."""

    read: Callable[[fx.Tracer], fx.Node]

    def __new__(cls, number: int, read: Callable[[fx.Tracer], fx.Node]) -> Size:
        size = super().__new__(cls, number)
        size.read = read
        return size

    def __fx_create_arg__(self, tracer: fx.Tracer) -> fx.Node:
        node = self.read(tracer)
        node.meta[SIZE] = int(self)
        return node

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)  # a module that keeps a size keeps no tracer

    def _with(self, function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        """A Size for `left` `function` `right`, one of which is this; what int says where the other is no int."""
        if not isinstance(left, int) or not isinstance(right, int):
            return NotImplemented

        def read(tracer: fx.Tracer) -> fx.Node:
            return tracer.create_node(
                "call_function", function, (tracer.create_arg(left), tracer.create_arg(right)), {}
            )

        return Size(function(int(left), int(right)), read)

    def __add__(self, other: int) -> Any:
        return self._with(operator.add, self, other)

    def __radd__(self, other: int) -> Any:
        return self._with(operator.add, other, self)

    def __sub__(self, other: int) -> Any:
        return self._with(operator.sub, self, other)

    def __rsub__(self, other: int) -> Any:
        return self._with(operator.sub, other, self)

    def __mul__(self, other: int) -> Any:
        return self._with(operator.mul, self, other)

    def __rmul__(self, other: int) -> Any:
        return self._with(operator.mul, other, self)

    def __floordiv__(self, other: int) -> Any:
        return self._with(operator.floordiv, self, other)

    def __mod__(self, other: int) -> Any:
        return self._with(operator.mod, self, other)


class Axes(tuple[Any, ...]):
    """The sizes of a tensor, as torch.Size: each a Size, or the stand-in for a number that grows with the batch."""

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, key: Any) -> Any:
        return Axes(super().__getitem__(key)) if isinstance(key, slice) else super().__getitem__(key)


class _Runner(fx.Interpreter):
    """Runs a graph that is still being traced as far as a node, each node once."""

    def __init__(self, root: nn.Module, graph: fx.Graph, images: Tensor) -> None:
        super().__init__(root, garbage_collect_values=False, graph=graph)
        self.traced, self.images = graph, images

    def value(self, node: fx.Node) -> Any:
        for before in self.traced.nodes:
            if before not in self.env:
                self.env[before] = self.images if before.op == "placeholder" else self.run_node(before)
            if before is node:
                break
        return self.env[node]


class Sizes:
    """The sizes of the tensors of one graph, as it is traced, for images of CHW size `images`."""

    def __init__(self, root: nn.Module, graph: fx.Graph, images: torch.Size) -> None:
        generator = torch.Generator().manual_seed(0)
        self.runners = [_Runner(root, graph, torch.randn(n, *images, generator=generator)) for n in BATCHES]

    @torch.no_grad()
    def of(self, node: fx.Node) -> tuple[tuple[int, bool], ...] | None:
        """For each axis a number and whether it counts images: then the number is how many a single image makes.

        None where the node gives no tensor, cannot be run, or has a size that is no multiple of the number of images.
        """
        try:
            shapes = [runner.value(node).shape for runner in self.runners]
        except Exception:  # whatever a network raises: it is asked again when it is traced to the end
            return None
        axes = []
        for sizes in zip(*shapes, strict=True):
            each = sizes[0] // BATCHES[0]
            if len(set(sizes)) == 1:
                axes.append((int(sizes[0]), False))
            elif sizes == tuple(n * each for n in BATCHES):
                axes.append((int(each), True))
            else:
                return None
        return tuple(axes)

    @torch.no_grad()
    def length(self, node: fx.Node) -> int | None:
        """The length of a tuple, or of a tensor whose first axis is not that of the images; None otherwise."""
        try:
            lengths = {len(runner.value(node)) for runner in self.runners}
        except Exception:
            return None
        return lengths.pop() if len(lengths) == 1 else None


def read_axis(node: fx.Node, axis: int) -> Callable[[fx.Tracer], fx.Node]:
    """What makes the node that reads one size of a traced tensor."""

    def read(tracer: fx.Tracer) -> fx.Node:
        return tracer.create_node("call_method", "size", (node, axis), {})

    return read


def fix(graph: fx.Graph) -> None:
    """Put the numbers in place of the nodes that read or compute them: the graph then holds for one size of image."""
    sizes = {node: node.meta[SIZE] for node in graph.nodes if SIZE in node.meta}

    def number(node: fx.Node) -> Any:
        return sizes.get(node, node)

    for user in {user for node in sizes for user in node.users} - sizes.keys():
        user.args, user.kwargs = fx.map_arg(user.args, number), fx.map_arg(user.kwargs, number)
    for node in reversed(list(sizes)):
        graph.erase_node(node)
