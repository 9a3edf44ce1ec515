"""A foreign network as one torch.fx graph that holds in training and in evaluation.

Tracing runs a forward once with stand-ins for tensors, which freezes every decision that Python takes on the way into
the graph. Modules that may decide something therefore stay whole: modules without children (StochasticDepth, DropPath,
a layer that the user wrote), modules derived from a layer of torch.nn, and modules whose forward cannot be traced or
differs between training and evaluation. Where the two modes differ in nothing but a flag
(`F.dropout(x, training=self.training)`), the graph reads the flag at each call.

Python may decide by the sizes of tensors, but for the number of images (`okdc.backbones.sizes`). What a forward
computes under torch.no_grad() stays without gradients: its results are detached where the rest reads them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from okdc.backbones import outputs
from okdc.backbones.behaviour import State, preserved
from okdc.backbones.dead import drop_dead, paths
from okdc.backbones.naming import Key
from okdc.backbones.outputs import NoLogits
from okdc.backbones.tracer import A_MODULE, NET, Tracer, Untraceable, attribute, intercepting
from okdc.errors import one_line

FLAG = "_in_training"  # the path of the graph's Training module

CONVOLUTIONAL = "use a convolutional network, whose blocks hand on NCHW maps, such as torchvision:resnet18"


class CannotCut(ValueError):  # noqa: N818  (it reads as what it is)
    """A network cannot become stages. The message is the reason, without the network's name; `hint` is a way out."""

    def __init__(self, reason: str, hint: str = CONVOLUTIONAL) -> None:
        super().__init__(reason)
        self.hint = hint


class Training(nn.Module):
    """`self.training` of a traced forward as a module: train() and eval() set it, each call reads it."""

    def forward(self) -> bool:
        return self.training


class Entry(nn.Module):
    """The network called with images alone: fx would pass stand-ins for the network's optional arguments too."""

    def __init__(self, net: nn.Module, key: Key | None = None) -> None:
        super().__init__()
        self.net = net
        self.key = key
        self.several = False  # outputs: seen at a forward
        self.auxiliary: set[str] = set()  # paths of what only the outputs beside the logits read
        self.add_module(FLAG, Training())

    def forward(self, images: Tensor) -> Any:
        output = self.net(images)
        self.several |= not isinstance(output, Tensor | fx.Proxy)
        return outputs.select(output, self.key, self.training)


def trace(
    net: nn.Module, images: torch.Size, key: Key | None = None, whole: Iterable[str] = ()
) -> tuple[Entry, fx.Graph]:
    """The graph of `net`, below an Entry; the modules at the paths in `whole` are not looked into.

    Raises CannotCut where the outermost forward itself cannot be traced, NoLogits where what it returns has no logits
    at the key.
    """
    entry, whole = Entry(net, key), set(whole)
    while True:
        graphs = []
        for training in (True, False):
            tracer = Tracer(whole, images)
            try:
                with intercepting(tracer), preserved(net) as before:
                    graphs.append(tracer.trace(entry.train(training)))
                    _refuse_changes(tracer, net, before)
            except NoLogits:
                raise
            except Exception as error:  # a forward may do anything with a stand-in that is no tensor
                culprit, hint = tracer.failed or NET, getattr(error, "hint", A_MODULE)
                reason = str(error) if isinstance(error, Untraceable) else one_line(error)
                break
        else:
            dead = set[str]().union(*map(drop_dead, graphs if entry.several else ()))
            entry.auxiliary = dead.difference(*(paths(graph.nodes) for graph in graphs))
            differs = _join(entry, *graphs)
            if differs is None:
                _own_tensors(entry, graphs[0])
                return entry, graphs[0]
            culprit, reason, hint = differs, "it does other things in training than in evaluation", A_MODULE
        if culprit == NET or culprit in whole:
            raise CannotCut(f"its forward cannot be traced: {reason}", hint)
        whole.add(culprit)


def _refuse_changes(tracer: Tracer, net: nn.Module, before: State) -> None:
    """Raises Untraceable where a forward changed its module in a way that no graph would do again."""
    paths = {module: path for path, module in net.named_modules(prefix=NET)}
    for module, path in paths.items():
        for name, buffer in module._buffers.items():
            if isinstance(buffer, fx.Proxy):
                tracer.failed = path
                raise Untraceable(f"it changes its buffer {path}.{name}".replace(f" {NET}.", " "))
    if changed := before.changed_number(tracer.entered):
        tracer.failed = path = paths[changed[0]]
        raise Untraceable(f"it changes {path}.{changed[1]}, a number in Python".replace(f" {NET}.", " "))


def owners(node: fx.Node) -> list[str]:
    """The calls that a node belongs to, outermost first, as paths: `a.b@1` is the second call of a.b."""
    return list(node.meta.get("nn_module_stack", {}))


class _Differs(Exception):  # noqa: N818
    pass


def _join(entry: nn.Module, training: fx.Graph, evaluation: fx.Graph) -> str | None:
    """Make the graph `training` hold for both modes. Where it cannot, returns the first module that must stay whole."""
    pairs: dict[fx.Node, fx.Node] = {}

    def merged(a: Any, b: Any) -> Any:
        """The argument that is `a` in training and `b` in evaluation. Raises _Differs where no flag gives both."""
        if isinstance(a, fx.Node) and isinstance(b, fx.Node) and pairs.get(b) is a:
            return a
        if type(a) is not type(b) or isinstance(a, fx.Node):
            raise _Differs
        if isinstance(a, tuple | list):
            if len(a) != len(b):
                raise _Differs
            return type(a)([merged(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict):
            if a.keys() != b.keys():
                raise _Differs
            return {key: merged(a[key], b[key]) for key in a}
        if isinstance(a, slice):
            return slice(*(merged(x, y) for x, y in zip(_ends(a), _ends(b), strict=True)))
        if a is True and b is False:
            return training.call_module(FLAG)
        if a != b:
            raise _Differs
        return a

    for a, b in itertools.zip_longest(list(training.nodes), list(evaluation.nodes)):
        if a is None or b is None or a.op != b.op or not _same_target(entry, a, b):
            return max((_owner(node) for node in (a, b) if node is not None), key=lambda path: path.count("."))
        pairs[b] = a
        try:
            with training.inserting_before(a):
                a.args, a.kwargs = tuple(merged(list(a.args), list(b.args))), merged(dict(a.kwargs), dict(b.kwargs))
        except _Differs:
            return _owner(a)
    return None


def _same_target(entry: nn.Module, a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes call or read the same. A constant tensor of a forward gets a new name at each tracing."""
    if a.op == "get_attr" and a.target != b.target:
        x, y = (attribute(entry, str(node.target)) for node in (a, b))
        return isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)
    return a.target == b.target


def _own_tensors(entry: Entry, graph: fx.Graph) -> None:
    """Make tensors that are neither parameters nor buffers buffers: they follow `.to()`, and no file holds them."""
    for k, node in enumerate(graph.nodes):
        if node.op != "get_attr":
            continue
        path, _, name = str(node.target).rpartition(".")
        holder = attribute(entry, path) if path else entry
        tensor = getattr(holder, name)
        if not path:  # a constant of a forward
            node.target, holder, name = f"{NET}._constant{k}", entry.net, f"_constant{k}"
        elif isinstance(tensor, nn.Parameter) or name in dict(
            holder.named_buffers(recurse=False, remove_duplicate=False)
        ):
            continue
        else:
            delattr(holder, name)
        holder.register_buffer(name, tensor, persistent=False)


def _owner(node: fx.Node) -> str:
    """The path of the module whose forward made the node."""
    calls = owners(node)[: -1 if node.op == "call_module" else None]
    return calls[-1].split("@")[0] if calls else NET


def _ends(s: slice) -> tuple[Any, Any, Any]:
    return s.start, s.stop, s.step
