"""The maps of a traced network, and the nodes after which it may be cut.

A cut is legal after a node of the graph
- whose value is the only one that later nodes read: no skip connection crosses the cut;
- whose value is an NCHW map: its last axis, and no other, grows when the images get wider. A pooled map does not grow,
  and a map of NHWC or of tokens grows in another axis, so the last map is the input of the global pooling;
- that ends every block around it. Without this, the last node of a resolution would lie inside a block of MobileNetV2;
- before and after which no weights are the same: each stage owns its weights.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from okdc.backbones.behaviour import preserved
from okdc.backbones.sizes import fix
from okdc.backbones.tracer import NET, NO_GRAD, attribute
from okdc.backbones.tracing import FLAG, Entry, owners

WIDER = 64  # pixels: more than the stride of any classifier, so that every map grows, and a multiple of most strides
LAYERS = 4  # with weights, in a plain nn.Sequential that is one block: an inverted residual has three
_DROPOUTS = (F.dropout, F.dropout2d, F.dropout3d, F.alpha_dropout)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the size of every tensor."""

    def __init__(self, entry: nn.Module, graph: fx.Graph, widened: Collection[fx.Node]) -> None:
        super().__init__(entry, graph=graph)
        self.sizes: dict[fx.Node, torch.Size] = {}
        self.widened = widened

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.widened:
            result = F.pad(result, (0, WIDER))
        if isinstance(result, Tensor):
            self.sizes[n] = result.shape
        return result


def _sizes(
    entry: Entry, graph: fx.Graph, images: Tensor, widened: Collection[fx.Node] = ()
) -> dict[fx.Node, torch.Size]:
    """The size of every tensor up to the first node that raises for such images; the results of `widened` are wider."""
    recorder = _Recorder(entry, graph, widened)
    with contextlib.suppress(Exception):  # `adapters` has run the network on its own image size before
        recorder.run(images)
    return recorder.sizes


class Plan:
    """The nodes of a graph in order, the size of each NCHW map, and where cuts are legal."""

    def __init__(self, entry: Entry, graph: fx.Graph, images: torch.Size) -> None:
        """Runs the graph on two images of CHW size `images`, one of them wider, in evaluation mode.

        The graph then holds for images of that size alone.
        """
        self.entry = entry
        self.fixed: tuple[str, ...] = ()  # the modules around the first operation that takes one size of images alone
        self.stop: fx.Node | None = None  # that operation: no map behind it can be told from other tensors
        self.other_batch = False  # whether there are maps of another number of images
        self.sizes: dict[fx.Node, torch.Size] = {}
        with preserved(entry.net):
            self.maps = self._maps(graph, images)
        fix(graph)
        self.nodes: list[fx.Node] = list(graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.maps = {node: size for node, size in self.maps.items() if node in self.index}
        self.weighted = [self._is_weighted(node) for node in self.nodes]
        self.spans = self._spans()
        self.single = self._single()
        self.blocks = self._blocks(self.single, images)
        self.legal = [
            i
            for i in self.single
            if all(self.blocks.get(call, i) == i for call in owners(self.nodes[i]))
            and not self.shared_across(i)
            and NO_GRAD not in self.nodes[i].meta  # a loss on that map would train what has no gradient
        ]

    @torch.no_grad()
    def _maps(self, graph: fx.Graph, images: torch.Size) -> dict[fx.Node, torch.Size]:
        """NCHW nodes -> CHW."""
        self.entry.eval()
        c, h, w = images
        normal = _sizes(self.entry, graph, torch.zeros(1, c, h, w))
        wider, widened = _sizes(self.entry, graph, torch.zeros(1, c, h, w + WIDER)), set[fx.Node]()
        while resized := self._resized(graph, normal, wider, widened):
            widened.add(resized)
            wider = _sizes(self.entry, graph, torch.zeros(1, c, h, w + WIDER), widened)
        if len(wider) < len(normal):  # a window or a linear layer has a fixed size; two windows may fit side by side
            wider = max(wider, _sizes(self.entry, graph, torch.zeros(1, c, h, 2 * w)), key=len)
            first = next((node for node in graph.nodes if node in normal and node not in wider), None)
            self.stop = first
            self.fixed = () if first is None else tuple(call.split("@")[0] for call in owners(first))
        self.sizes = normal
        maps = {}
        for node, a in normal.items():
            b = wider.get(node)
            if b is not None and len(a) == len(b) == 4 and a[:3] == b[:3] and a[3] != b[3]:
                self.other_batch |= a[0] != 1
                if a[0] == 1:
                    maps[node] = torch.Size(a[1:])
        return {node: size for node, size in maps.items() if node.op != "placeholder"}

    def _resized(
        self,
        graph: fx.Graph,
        normal: dict[fx.Node, torch.Size],
        wider: dict[fx.Node, torch.Size],
        widened: Collection[fx.Node],
    ) -> fx.Node | None:
        """The first node that brings maps of any size to one size, though a convolution of neighbours follows.

        The convolutions behind it would not be seen to grow. A pooling before linear layers is not meant.
        """
        nodes: list[fx.Node] = list(graph.nodes)
        fixed = [i for i, n in enumerate(nodes) if n in normal and wider.get(n) == normal[n]]
        convolutions = [i for i in fixed if is_spatial(self.entry, nodes[i], normal)]
        for i in fixed:
            size = normal[nodes[i]]
            grows = any(normal.get(before) != wider.get(before) for before in nodes[i].all_input_nodes)
            is_map = len(size) == 4 and min(size[2:]) > 1
            if is_map and grows and nodes[i] not in widened and any(i < conv for conv in convolutions):
                return nodes[i]
        return None

    def _spans(self) -> dict[str, tuple[int, int]]:
        """The first and the last node that read each parameter and buffer, by key."""
        keys = [key for key, _ in (*self.entry.named_parameters(remove_duplicate=False), *self.entry.named_buffers())]
        spans: dict[str, tuple[int, int]] = {}
        for i, node in enumerate(self.nodes):
            if node.op not in ("call_module", "get_attr"):
                continue
            readers = [i] if node.op == "call_module" else [self.index[user] for user in node.users]
            for key in keys if readers else []:
                if key == node.target or key.startswith(f"{node.target}."):
                    first, last = spans.get(key, (min(readers), max(readers)))
                    spans[key] = min(first, *readers), max(last, *readers)
        return spans

    def shared_across(self, i: int) -> str:
        """A parameter or buffer that is read both before and after the end of node i, or nothing."""
        return next((key for key, (first, last) in self.spans.items() if first <= i < last), "")

    def _single(self) -> list[int]:
        """The nodes whose value is a map and the only one alive. Every stage can read parameters and the flag anew."""
        last = {n: max((self.index[user] for user in n.users), default=-1) for n in self.nodes if not free(n)}
        single, alive = [], set[fx.Node]()
        for i, node in enumerate(self.nodes):
            alive = {n for n in alive if last[n] > i}
            if last.get(node, -1) > i:
                alive.add(node)
            if alive == {node} and node in self.maps:
                single.append(i)
        return single

    def _blocks(self, single: list[int], images: torch.Size) -> dict[str, int]:
        """The module calls that are one block, each with the index of its last node.

        A call holds several blocks if it is the network itself, passes through three resolutions or more, or is a plain
        nn.Sequential of modules that have modules themselves (resnet18 layer1, but not a conv-bn-relu), or of many
        layers.
        """
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            for call in owners(node):
                first.setdefault(call, i)
                last[call] = i
        blocks = {}
        for call, end in last.items():
            before = [self.resolution(i) for i in single if i < first[call]][-1:] or [torch.Size(images[1:])]
            passes = {*before, *(self.resolution(i) for i in single if first[call] <= i <= end)}
            if call != NET and len(passes) < 3 and not _is_chain(attribute(self.entry, call.split("@")[0])):
                blocks[call] = end
        return blocks

    def _is_weighted(self, node: fx.Node) -> bool:
        """A convolution or a linear layer: it has a weight of more than one axis, which norms have not."""
        if node.op not in ("call_module", "get_attr"):
            return False
        target = attribute(self.entry, str(node.target))
        parameters = list(target.parameters()) if isinstance(target, nn.Module) else [target]
        return any(isinstance(p, nn.Parameter) and p.ndim > 1 for p in parameters)

    def has_weights(self, after: int, until: int) -> bool:
        return any(self.weighted[after + 1 : until + 1])

    def resolution(self, i: int) -> torch.Size:
        return self.maps[self.nodes[i]][1:]

    def is_glue(self, i: int) -> bool:
        """A norm or an activation, which belongs to the convolution or the block before it."""
        same = self.maps.get(self.nodes[i]) == self.maps.get(self.nodes[i].prev)
        return i in self.legal and i - 1 in self.legal and same and not self.weighted[i] and not self.is_noise(i)

    def is_noise(self, i: int) -> bool:
        """A dropout or an identity that the next stage can take: a cut before it is legal too."""
        node = self.nodes[i]
        if i - 1 not in self.legal:
            return False
        if node.op != "call_module":
            return node.target in _DROPOUTS
        return isinstance(attribute(self.entry, str(node.target)), nn.modules.dropout._DropoutNd | nn.Identity)


def is_spatial(entry: Entry, node: fx.Node, sizes: Mapping[fx.Node, torch.Size]) -> bool:
    """Whether a node is a convolution of neighbouring pixels; one that makes a single pixel of a map is linear."""
    module = attribute(entry, str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, nn.Conv2d) or module.kernel_size == (1, 1):
        return False
    before, after = sizes.get(node.all_input_nodes[0], ()), sizes.get(node, ())
    return tuple(after[2:]) != (1, 1) or tuple(before[2:]) == (1, 1)


def free(node: fx.Node) -> bool:
    """A node that every stage can compute for itself: a parameter, the training flag, what all maps have in common."""
    return node.op in ("get_attr", "output") or node.target == FLAG or is_batch_size(node) or is_device(node)


def is_device(node: fx.Node) -> bool:
    """`images.device`: every map lies there."""
    return node.target is getattr and node.args[1:] == ("device",) and _is_images(node.args[0])


def is_batch_size(node: fx.Node) -> bool:
    """`images.size(0)` or `images.shape[0]`: every map has the same, so a forward may ask for it at its start."""
    if node.op == "call_function" and node.target is operator.getitem and node.args[1] == 0:
        sizes = node.args[0]
        whole = isinstance(sizes, fx.Node) and (sizes.target, *sizes.args[1:]) in ((getattr, "shape"), ("size",))
        return whole and isinstance(sizes, fx.Node) and _is_images(sizes.args[0])
    return node.op == "call_method" and (node.target, *node.args[1:]) == ("size", 0) and _is_images(node.args[0])


def _is_images(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "placeholder"


def _is_chain(module: nn.Module) -> bool:
    """A plain sequence of blocks (resnet18 layer1), or of more layers with weights than a block has."""
    if type(module) is not nn.Sequential:
        return False
    layers = [m for m in module.children() if any(p.ndim > 1 for p in m.parameters())]
    return len(layers) > LAYERS or any(next(m.children(), None) is not None for m in module.children())
