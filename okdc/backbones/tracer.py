"""A torch.fx tracer with stand-ins that know their sizes, and that records what a forward says of gradients.

`okdc.backbones.tracing` makes one graph of what it records in training and in evaluation.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils.checkpoint import CheckpointFunction

from okdc.backbones.behaviour import chance
from okdc.backbones.sizes import Axes, Size, Sizes, read_axis

NET = "net"  # the path of the network below the root of the graph, and so the start of every path in it
NO_GRAD = "okdc_no_grad"  # in the meta of a node that a forward computes under torch.no_grad()
A_MODULE = "put that part into an nn.Module of its own, without children: it is kept as its author wrote it"

CHECKPOINT = "it uses torch.utils.checkpoint", "leave it out: it runs a part twice, batch statistics too"
AUTOCAST = "it uses torch.autocast", "leave it out: engine.dtype says what a training computes in"

_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Untraceable(Exception):  # noqa: N818
    """A forward that no graph holds. The message is the reason, `hint` the way out."""

    def __init__(self, reason: str, hint: str = A_MODULE) -> None:
        super().__init__(reason)
        self.hint = hint


class Traced(fx.Proxy):
    """The stand-in for a tensor: it knows its sizes."""

    tracer: Tracer

    def _axes(self) -> Axes | None:
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

    @property
    def data(self) -> Any:
        """Without its gradient. The exporter has no form of `.data` itself."""
        return self.tracer.create_proxy("call_method", "detach", (self,), {})

    @data.setter
    def data(self, value: object) -> None:  # noqa: ARG002
        raise Untraceable("it assigns to the data of a tensor")

    ndim = property(dim)
    ndimension = dim

    def numel(self) -> Any:
        axes = self._axes()
        return self.tracer.create_proxy("call_method", "numel", (self,), {}) if axes is None else axes.numel()

    nelement = numel

    @property
    def device(self) -> fx.Proxy:
        """That of the images: a network lies on one device, and every stage gets its input there."""
        return self.tracer.device()

    @property
    def dtype(self) -> Any:
        """Of a parameter or a buffer itself: in a stage, reading it would ask for the weights."""
        if self.node.op == "get_attr":
            return self.tracer.tensor(self.node).dtype
        return fx.proxy.Attribute(self, "dtype")

    def __len__(self) -> int:
        length = self.tracer.length(self.node)
        if length is None:
            raise Untraceable("it takes the number of images by len()", "x.shape[0] is the same, and no Python number")
        return length

    def __setitem__(self, key: Any, item: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, item), {})

    def _number(self) -> Any:
        if _counts_images(self.node):
            raise Untraceable("it makes the number of images a Python number", "write x.shape[0] without int()")
        raise Untraceable("it makes the value of a tensor a Python number (int(), float(), .item())")

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
        self.entered: set[nn.Module] = set()  # the modules whose forward was traced
        self.failed: str | None = None  # the innermost module whose forward could not be traced
        self.sizes: Sizes | None = None
        self.running = False  # the graph runs to tell sizes: nothing is traced
        self.count: Count | None = None
        self.placed: Traced | None = None
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
            path = self.path_of_module(m)
        except NameError:  # a slice of a Sequential, which the forward made; its layers have paths
            return forward(*args, **kwargs)
        entered = not self.is_leaf_module(m, path)
        try:
            draws = _draws()
            output = super().call_module(m, forward, args, kwargs)
            if entered and _draws() != draws:
                raise Untraceable("it draws random numbers in Python, or for tensors of its own")
            self.entered |= {m} if entered else set()
            return output
        except Exception:
            if entered:  # that the call of another cannot be traced lies with its caller
                self.failed = self.failed or path
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Traced(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise Untraceable(*AUTOCAST)
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            raise Untraceable(*CHECKPOINT)
        node = super().create_node(kind, *args, **kwargs)
        if kind not in ("get_attr", "placeholder", "output") and not torch.is_grad_enabled():
            node.meta[NO_GRAD] = True
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.device):  # of a parameter, say: the one that the network is traced on
            return self.device().node
        if isinstance(a, np.integer):
            return int(a)
        if isinstance(a, torch.Tensor) and a.grad_fn is not None:
            raise Untraceable(
                "it computes with parameters that it does not read as attributes of a module",
                "read them by their names, as self.fc.weight: what parameters() gives is frozen in a trace",
            )
        argument = super().create_arg(a)
        if isinstance(a, fx.Proxy) and torch.is_grad_enabled() and NO_GRAD in a.node.meta:
            if a.node not in self.detached:
                detached = self.create_node("call_method", "detach", (a.node,), {})
                detached.meta = {}  # it ends the part before it, whichever module reads it
                self.detached[a.node] = detached
            return self.detached[a.node]
        return argument

    def to_bool(self, obj: fx.Proxy) -> bool:
        by = "the number of images" if _counts_images(obj.node) else "a tensor: its values, its type or its gradient"
        raise Untraceable(f"it decides (if, while or assert) by {by}")

    def iter(self, obj: Any) -> Any:
        length = self.length(obj.node)
        if length is None:
            raise Untraceable("it loops over the images, or over what is no tensor")
        return iter([obj[i] for i in range(length)])

    @contextmanager
    def _asking(self) -> Iterator[Sizes]:
        """The graph so far may run in the block."""
        self.sizes = self.sizes or Sizes(self.root, self.graph, self.images)
        self.running = True
        try:
            with chance():
                yield self.sizes
        finally:
            self.running = False

    def tensor(self, node: fx.Node) -> torch.Tensor:
        """The parameter or buffer that a node reads."""
        with self._asking():  # otherwise a stand-in for it
            tensor: torch.Tensor = attribute(self.root, str(node.target))
        return tensor

    def axes(self, node: fx.Node) -> Axes | None:
        """The sizes of a tensor, with stand-ins for those that grow with the batch. None where they are unknown."""
        with self._asking() as sizes:
            axes = sizes.of(node)
        if axes is None:
            return None
        return Axes(
            self._images(number) if of_batch else Size(number, read_axis(node, axis))
            for axis, (number, of_batch) in enumerate(axes)
        )

    def length(self, node: fx.Node) -> int | None:
        """The length of a tensor or a tuple; None where that is the number of images, or is unknown."""
        with self._asking() as sizes:
            return sizes.length(node)

    def device(self) -> fx.Proxy:
        """The device of the images, read before anything else."""
        if self.placed is None:
            self.placed = Traced(self._first("call_function", getattr, "device"), self)
        return self.placed

    def _images(self, times: int) -> Any:
        """The number of images, `times` that: read from the images, before anything else."""
        if self.count is None:
            self.count = Count(self._first("call_method", "size", 0), self)
        return self.count if times == 1 else operator.mul(self.count, times)

    def _first(self, kind: str, target: Any, what: Any) -> fx.Node:
        """A node of the images, outside of all modules and in front of all other nodes."""
        images = next(iter(self.graph.nodes))
        with self.graph.inserting_after(images):
            return self.graph.create_node(kind, target, (images, what), {})


def _draws() -> tuple[Any, ...]:
    """The states of the generators that a forward may draw from in Python."""
    of_numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), of_numpy[1].tobytes(), of_numpy[2]


def attribute(root: nn.Module, path: str) -> Any:
    """The module, parameter, buffer or constant at a dotted path."""
    target: Any = root
    for name in path.split("."):
        target = getattr(target, name)
    return target


def _counts_images(node: fx.Node) -> bool:
    """Whether a node is the number of images, or computed of it and of constants alone."""
    if node.op == "call_method" and node.target == "size":
        return True
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(map(_counts_images, inputs))


def _built_on_a_layer(m: nn.Module) -> bool:
    """Whether the module is, or derives from, a layer of torch.nn (timm's BatchNormAct2d counts batches in Python)."""
    return any(c.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and c not in _CONTAINERS for c in type(m).__mro__)


@contextmanager
def intercepting(tracer: Tracer) -> Iterator[None]:
    """What takes stand-ins and would not show in a graph.

    A torch.autograd.Function is one node: traced, its forward would lose the backward that its author wrote.
    torch.autocast is refused by name: of a stand-in for a device it says only that the type is wrong.
    """
    function, autocast = torch.autograd.Function, torch.autocast
    apply, init = function.__dict__["apply"], autocast.__init__

    def traced(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if tracer.running or not any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values())):
            return apply.__func__(cls, *args, **kwargs)
        if issubclass(cls, CheckpointFunction):
            raise Untraceable(*CHECKPOINT)
        return tracer.create_proxy("call_function", _applied(cls), args, kwargs)

    def refused(self: torch.autocast, device_type: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(device_type, fx.Proxy):
            raise Untraceable(*AUTOCAST)
        init(self, device_type, *args, **kwargs)

    function.apply, autocast.__init__ = classmethod(traced), refused  # type: ignore[method-assign]
    try:
        yield
    finally:
        function.apply, autocast.__init__ = apply, init  # type: ignore[method-assign]


@cache
def _applied(kind: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`kind.apply` as a function with a name, by which a graph calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return kind.apply(*args, **kwargs)

    call.__name__ = call.__qualname__ = kind.__name__
    return call
