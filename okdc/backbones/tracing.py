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
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from okdc.backbones import Key, outputs
from okdc.backbones.behaviour import unchanged
from okdc.backbones.outputs import NoLogits
from okdc.backbones.sizes import Size, Sizes, read_axis
from okdc.errors import one_line

NET = "net"  # the path of the network inside Entry, and so the start of every path in the graph
FLAG = "_in_training"  # the path of the graph's Training module
NO_GRAD = "okdc_no_grad"  # in the meta of a node that a forward computes under torch.no_grad()

_VIEWS = ("view", "reshape", "flatten", "unflatten", "transpose", "permute", "unsqueeze", "squeeze", "narrow", "select")
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


CONVOLUTIONAL = "use a convolutional network, whose blocks hand on NCHW maps, such as torchvision:resnet18"
A_MODULE = "put that part into an nn.Module of its own, without children: it is kept as its author wrote it"


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


class _Untraceable(Exception):  # noqa: N818
    """A forward that no graph holds. The message is the reason, `hint` the way out."""

    def __init__(self, reason: str, hint: str = A_MODULE) -> None:
        super().__init__(reason)
        self.hint = hint


class Traced(fx.Proxy):
    """The stand-in for a tensor: it knows its sizes."""

    tracer: Tracer

    def _axes(self) -> tuple[Any, ...] | None:
        return self.tracer.axes(self.node)

    @property
    def shape(self) -> Any:
        axes = self._axes()
        return fx.proxy.Attribute(self, "shape") if axes is None else axes

    def size(self, dim: int | None = None) -> Any:
        axes = self._axes()
        if axes is None:
            return self.tracer.create_proxy("call_method", "size", (self,) if dim is None else (self, dim), {})
        return axes if dim is None else axes[dim]

    def dim(self) -> Any:
        axes = self._axes()
        return self.tracer.create_proxy("call_method", "dim", (self,), {}) if axes is None else len(axes)

    ndim = property(dim)
    ndimension = dim

    def __len__(self) -> int:
        axes = self._axes()
        if axes is None or not axes or not isinstance(axes[0], Size):
            raise _Untraceable("it takes the number of images by len()", "x.shape[0] is the same, and no Python number")
        return int(axes[0])

    def __setitem__(self, key: Any, item: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, item), {})

    def _number(self) -> Any:
        if _counts_images(self.node):
            raise _Untraceable("it makes the number of images a Python number", "write x.shape[0] without int()")
        raise _Untraceable("it makes the value of a tensor a Python number (int(), float(), .item())")

    __int__ = __float__ = __index__ = item = tolist = _number


class Count(Traced):
    """The number of images. One stand-in for all tensors, so that two sizes can be compared."""

    def __eq__(self, other: object) -> Any:
        return True if other is self else super().__eq__(other)

    def __ne__(self, other: object) -> Any:
        return False if other is self else super().__ne__(other)

    __hash__ = fx.Proxy.__hash__


class Tracer(fx.Tracer):
    """Goes into every module that has children, but not into the modules at the paths in `whole`."""

    proxy_buffer_attributes = True  # what is computed of a buffer would be frozen: a checkpoint fills buffers later

    def __init__(self, whole: set[str], images: torch.Size) -> None:
        super().__init__()
        self.whole = whole
        self.images = images
        self.failed: str | None = None  # the innermost module whose forward could not be traced
        self.sizes: Sizes | None = None
        self.running = False  # the graph runs to tell sizes: nothing is traced
        self.count: Count | None = None
        self.detached: dict[fx.Node, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == NET:
            return False
        childless = next(m.children(), None) is None
        hooked = bool(m._backward_hooks or m._backward_pre_hooks)  # no graph holds what they do to gradients
        return childless or hooked or module_qualified_name in self.whole or _built_on_a_layer(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            path = self.path_of_module(m)
            if not self.is_leaf_module(m, path):  # that a call of one cannot be traced lies with its caller
                self.failed = self.failed or path
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Traced(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise _Untraceable("it uses torch.autocast", "leave it out: engine.dtype says what a training computes in")
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            raise _Untraceable(
                "it uses torch.utils.checkpoint", "leave it out: it runs a part twice, batch statistics too"
            )
        node = super().create_node(kind, *args, **kwargs)
        if kind not in ("get_attr", "placeholder", "output") and not torch.is_grad_enabled():
            node.meta[NO_GRAD] = True
        return node

    def create_arg(self, a: Any) -> Any:
        argument = super().create_arg(a)
        if isinstance(a, fx.Proxy) and torch.is_grad_enabled() and NO_GRAD in a.node.meta:
            if a.node not in self.detached:
                self.detached[a.node] = self.create_node("call_method", "detach", (a.node,), {})
            return self.detached[a.node]
        return argument

    def to_bool(self, obj: fx.Proxy) -> bool:
        by = "the number of images" if _counts_images(obj.node) else "a tensor: its values, its type or its gradient"
        raise _Untraceable(f"it decides (if, while or assert) by {by}")

    def iter(self, obj: fx.Proxy) -> Any:  # noqa: ARG002
        raise _Untraceable("it loops over a tensor")

    def axes(self, node: fx.Node) -> tuple[Any, ...] | None:
        """The sizes of a tensor, with stand-ins for those that grow with the batch. None where they are unknown."""
        self.sizes = self.sizes or Sizes(self.root, self.graph, self.images)
        self.running = True
        try:
            axes = self.sizes.of(node)
        finally:
            self.running = False
        if axes is None:
            return None
        return tuple(
            self._images(number) if of_batch else Size(number, read_axis(node, axis))
            for axis, (number, of_batch) in enumerate(axes)
        )

    def _images(self, times: int) -> Any:
        """The number of images, `times` that: read from the images, before anything else."""
        if self.count is None:
            images = next(iter(self.graph.nodes))
            with self.graph.inserting_after(images):
                node = self.graph.create_node("call_method", "size", (images, 0), {})
            self.count = Count(node, self)
        return self.count if times == 1 else operator.mul(self.count, times)


def _counts_images(node: fx.Node) -> bool:
    """Whether a node is the number of images, or computed of it and of constants alone."""
    if node.op == "call_method" and node.target == "size":
        return True
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(map(_counts_images, inputs))


def _built_on_a_layer(m: nn.Module) -> bool:
    """Whether the module is, or derives from, a layer of torch.nn (timm's BatchNormAct2d counts batches in Python)."""
    return any(c.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and c not in _CONTAINERS for c in type(m).__mro__)


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
                with _autograd_functions_whole(tracer), unchanged(net):
                    graphs.append(tracer.trace(entry.train(training)))
                    _refuse_assigned(tracer, net)
            except NoLogits:
                raise
            except Exception as error:  # a forward may do anything with a stand-in that is no tensor
                culprit, hint = tracer.failed or NET, getattr(error, "hint", A_MODULE)
                reason = str(error) if isinstance(error, _Untraceable) else one_line(error)
                break
        else:
            dead = set[str]().union(*map(_drop_dead, graphs if entry.several else ()))
            entry.auxiliary = dead.difference(*(_paths(graph.nodes) for graph in graphs))
            differs = _join(entry, *graphs)
            if differs is None:
                _own_tensors(entry, graphs[0])
                return entry, graphs[0]
            culprit, reason, hint = differs, "it does other things in training than in evaluation", A_MODULE
        if culprit == NET or culprit in whole:
            raise CannotCut(f"its forward cannot be traced: {reason}", hint)
        whole.add(culprit)


def _refuse_assigned(tracer: Tracer, net: nn.Module) -> None:
    """Raises _Untraceable where a forward assigned what it traced to a buffer: no graph would do that again."""
    for path, module in net.named_modules(prefix=NET):
        for name, buffer in module._buffers.items():
            if isinstance(buffer, fx.Proxy):
                tracer.failed = path
                raise _Untraceable(f"it changes its buffer {path}.{name}".replace(f" {NET}.", " "))


@contextmanager
def _autograd_functions_whole(tracer: Tracer) -> Iterator[None]:
    """A torch.autograd.Function is one node: traced, its forward would lose the backward that its author wrote."""
    function = torch.autograd.Function
    apply = function.__dict__["apply"]

    def traced(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if tracer.running or not any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values())):
            return apply.__func__(cls, *args, **kwargs)
        return tracer.create_proxy("call_function", _applied(cls), args, kwargs)

    function.apply = classmethod(traced)
    try:
        yield
    finally:
        function.apply = apply


@cache
def _applied(kind: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`kind.apply` as a function with a name, by which a graph calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return kind.apply(*args, **kwargs)

    call.__name__ = call.__qualname__ = kind.__name__
    return call


def _drop_dead(graph: fx.Graph) -> set[str]:
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
    return _paths(dead)


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


def _paths(nodes: Iterable[fx.Node]) -> set[str]:
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


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
        x, y = (value(entry, str(node.target)) for node in (a, b))
        return isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)
    return a.target == b.target


def _own_tensors(entry: Entry, graph: fx.Graph) -> None:
    """Make tensors that are neither parameters nor buffers buffers: they follow `.to()`, and no file holds them."""
    for k, node in enumerate(graph.nodes):
        if node.op != "get_attr":
            continue
        path, _, name = str(node.target).rpartition(".")
        holder = value(entry, path) if path else entry
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


def value(root: nn.Module, path: str) -> Any:
    """The module, parameter, buffer or constant at a dotted path."""
    target: Any = root
    for name in path.split("."):
        target = getattr(target, name)
    return target


def _owner(node: fx.Node) -> str:
    """The path of the module whose forward made the node."""
    calls = owners(node)[: -1 if node.op == "call_module" else None]
    return calls[-1].split("@")[0] if calls else NET


def _ends(s: slice) -> tuple[Any, Any, Any]:
    return s.start, s.stop, s.step
