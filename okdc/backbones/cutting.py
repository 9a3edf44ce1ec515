"""Cutting a traced network into stages: the choice among the legal cuts, and the parts between them.

The network is cut after the stem and after the last legal cut of every resolution. A stage holds at least one
convolution: a pooling alone joins the stage that follows it. A closing 1×1 convolution (mobilenet_v2 features.18:
320 -> 1280 channels) belongs to the head, as in okdc's own MobileNetV2: it is a part of the classifier, and a fused
classifier on its map would cost many times more.
"""

from __future__ import annotations

import itertools
import keyword
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from okdc.backbones.maps import Plan, free, is_batch_size, is_device, is_spatial
from okdc.backbones.tracer import NET, attribute
from okdc.backbones.tracing import FLAG, CannotCut, Training, owners

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class ModulePath(str):
    """The path of a module. torch.fx writes it as Python, and a module may be called `class` or `in`."""

    def split(self, *args: Any) -> list[str]:
        return [_Name(name) for name in super().split(*args)]


class _Name(str):
    def isidentifier(self) -> bool:
        return super().isidentifier() and not keyword.iskeyword(self)


A_BACKBONE = "return an okdc.Backbone, which says where its stages end"


class Cut(NamedTuple):
    """The end of a stage."""

    after: str  # the block, and the functions, that the stage ends with
    size: torch.Size  # CHW of the map
    raw: bool  # the modules that read the map normalise it first


def choose(plan: Plan) -> list[int]:
    """The nodes after which the stages end, in order. Raises CannotCut where there are fewer than two."""
    ends = [i for i in plan.legal if not plan.is_noise(i)]
    wanted = {list(nodes)[-1] for _, nodes in itertools.groupby(ends, plan.resolution)}
    units = [i for i in ends if i + 1 < len(plan.nodes) and not plan.is_glue(i + 1) and plan.has_weights(-1, i)]
    wanted.update(units[:1])  # the stem
    cuts = _with_weights(plan, wanted)
    if cuts:
        cuts = _without_expansion(plan, cuts)
    while len(cuts) < 3:  # early fusion joins three maps
        between = [i for i in units if cuts and i < cuts[-1] and len(_with_weights(plan, {*cuts, i})) > len(cuts)]
        if not between:
            break
        cuts = sorted({*cuts, between[len(between) // 2]})
    if cuts and (later := _spatial(plan, cuts[-1])):
        raise CannotCut(_too_early(plan, cuts[-1], later), A_BACKBONE)
    if len(cuts) < 2:
        raise _too_few(plan, cuts)
    return cuts


def _too_early(plan: Plan, last: int, later: str) -> str:
    """Why no cut after `last` can be made, though the convolution `later` follows."""
    reason = f"its last map, after {name(plan, last)}, lies before another convolution, {later}"
    if plan.stop is not None and last < plan.index.get(plan.stop, -1):
        calls = [call.split("@")[0].removeprefix(f"{NET}.") for call in owners(plan.stop)]
        where = calls[-1] if calls and calls[-1] != NET else plan.stop.name
        reason += f": from {where} on it takes images of one size alone, and its maps look like other tensors"
    return reason


def _too_few(plan: Plan, cuts: list[int]) -> CannotCut:
    """Why a network has fewer than two maps to cut after."""
    if plan.other_batch and not any(plan.weighted[plan.index[node]] for node in plan.maps):
        return CannotCut(
            "its maps are of another number of images than it takes: it repeats or splits them", A_BACKBONE
        )
    if not any(plan.weighted[plan.index[node]] for node in plan.maps):
        return CannotCut("it has no convolution that gives an NCHW map")
    shared = next((key for i in plan.single if (key := plan.shared_across(i))), "").removeprefix(f"{NET}.")
    if not cuts and shared:
        return CannotCut(f"{shared} is used from its start to its end, and two stages would share it", A_BACKBONE)
    first: int = min(plan.index[node] for node in plan.maps)
    late = [node for node in plan.nodes[0].users if not free(node) and plan.index[node] > first]
    if late or not plan.single:
        reason = f"it reads its images again at {late[-1].name}" if late else "it runs branches side by side"
        return CannotCut(f"{reason}: nowhere is one map all that later layers read", A_BACKBONE)
    maps = f"one NCHW map, after {name(plan, cuts[0])}" if cuts else "no NCHW map"
    return CannotCut(f"its blocks hand on {maps}; expected two or more (tokens and NHWC maps do not count)")


def _with_weights(plan: Plan, wanted: set[int]) -> list[int]:
    """The cuts of `wanted` with a convolution between them and the cut before."""
    cuts: list[int] = []
    for i in sorted(wanted):
        if plan.has_weights(cuts[-1] if cuts else -1, i):
            cuts.append(i)
    return cuts


def _without_expansion(plan: Plan, cuts: list[int]) -> list[int]:
    """The cuts, the last of them moved before a closing 1×1 convolution with norm and activation, if there is one."""
    *others, last = cuts
    before = others[-1] if others else -1
    for i in reversed([i for i in plan.legal if before < i < last and plan.resolution(i) == plan.resolution(last)]):
        modules = [j for j in range(i + 1, last + 1) if plan.weighted[j]]
        if modules:
            node = plan.nodes[modules[0]]
            conv = attribute(plan.entry, str(node.target))
            pointwise = isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1
            if len(modules) == 1 and pointwise and plan.has_weights(before, i):
                return [*others, i]
            break
    return cuts


def _spatial(plan: Plan, i: int) -> str:
    """The first convolution of neighbouring pixels after node i, or nothing: the head would be most of the network."""
    spatial = (node for node in plan.nodes[i + 1 :] if is_spatial(plan.entry, node, plan.sizes))
    return next((str(node.target).removeprefix(f"{NET}.") for node in spatial), "")


def name(plan: Plan, i: int) -> str:
    """The name of a cut: the block that ends there, and the functions after it in the network's own forward."""
    functions: list[str] = []
    for j in range(i, 0, -1):
        node = plan.nodes[j]
        ending = [call for call in owners(node) if plan.blocks.get(call) == j]
        if ending:
            return " + ".join([ending[0].removeprefix(f"{NET}."), *reversed(functions)])
        if not free(node):
            functions.append(getattr(node.target, "__name__", str(node.target)))
    return " + ".join(reversed(functions))


def cut(plan: Plan) -> tuple[list[fx.GraphModule], fx.GraphModule, list[Cut]]:
    """The network as stages and a head over its own modules, each key of the logits in one. Raises CannotCut."""
    ends = choose(plan)
    bounds = itertools.pairwise([0, *ends, len(plan.nodes) - 1])  # node 0 is the placeholder, the last the output
    _check_names(plan.entry.net)
    graphs = [_part(plan, before + 1, end + 1) for before, end in bounds]
    auxiliary = _auxiliary(plan)
    for key, graph in _aliases(plan, graphs):
        graph.create_node("get_attr", ModulePath(key))
    for key in _unread(plan, graphs):
        if key not in auxiliary:  # buffers: the head keeps them, so that the keys are those of the network
            graphs[-1].create_node("get_attr", key)
    parts = [fx.GraphModule(_root(plan.entry.net), graph, class_name="Stage") for graph in graphs]
    _check_keys(plan.entry.net.state_dict().keys() - auxiliary, parts)
    cuts = []
    for i in ends:
        node = plan.nodes[i]
        readers = [attribute(plan.entry, str(n.target)) for n in node.users if n.op == "call_module"]
        cuts.append(Cut(name(plan, i), plan.maps[node], any(isinstance(m, _NORMS) for m in readers)))
    return parts[:-1], parts[-1], cuts


def _root(net: nn.Module) -> nn.Module:
    """A module with the children, parameters and buffers of the network, and the training flag beside them.

    fx.GraphModule copies from it what its graph names. The flag cannot go into the network: a Sequential would call it.
    """
    root, saved = nn.Module(), net.state_dict()
    for path, module in net.named_modules(remove_duplicate=False):
        if path and "." not in path:
            root.add_module(path, module)
    root.add_module(FLAG, Training())
    for key, parameter in net.named_parameters(recurse=False, remove_duplicate=False):
        root.register_parameter(key, parameter)
    for key, buffer in net.named_buffers(recurse=False, remove_duplicate=False):
        root.register_buffer(key, buffer, persistent=key in saved)
    return root


def _part(plan: Plan, start: int, stop: int) -> fx.Graph:
    """Nodes start..stop-1 as a graph of one tensor; the modules and tensors that they read keep their keys."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    x = copies[plan.nodes[start - 1]] = graph.placeholder("x")

    def argument(node: fx.Node) -> fx.Node:
        if node not in copies:
            assert free(node), node
            if is_batch_size(node):
                copies[node] = graph.call_method("size", (x, 0))
            elif is_device(node):
                copies[node] = graph.call_function(getattr, (x, "device"))
            else:
                copies[node] = copied(node)
        return copies[node]

    def copied(node: fx.Node) -> fx.Node:
        new = graph.node_copy(node, argument)
        new.meta = {}
        if new.op in ("get_attr", "call_module"):
            new.target = ModulePath(str(new.target).removeprefix(f"{NET}."))
        return new

    for node in plan.nodes[start:stop]:
        if not free(node):
            copies[node] = copied(node)
    result = plan.nodes[-1].args[0] if stop == len(plan.nodes) - 1 else plan.nodes[stop - 1]
    assert isinstance(result, fx.Node)
    graph.output(argument(result))
    return graph


def out_of_place(part: fx.GraphModule) -> None:
    """Make the first operations of a part leave its input alone: it is a map that methods tap."""
    x = next(iter(part.graph.nodes))
    for node in list(x.users):
        module = attribute(part, str(node.target)) if node.op == "call_module" else None
        if getattr(module, "inplace", False):
            assert isinstance(module, nn.Module)
            setattr(module, "inplace", False)  # noqa: B010  (typed as a tensor or a module otherwise)
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    part.recompile()


def clone_first(part: fx.GraphModule) -> None:
    """Make a part work on a copy of its input, because a later operation of it writes into the input."""
    x = next(iter(part.graph.nodes))
    with part.graph.inserting_after(x):
        clone = part.graph.call_method("clone", (x,))
    x.replace_all_uses_with(clone, delete_user_cb=lambda user: user is not clone)
    part.recompile()


def _check_names(net: nn.Module) -> None:
    """Raises CannotCut for a module or a tensor whose name a stage, a torch.fx.GraphModule, needs for itself."""
    own = {*net._modules, *net._parameters, *net._buffers}
    if taken := sorted(own & (set(dir(fx.GraphModule)) - set(dir(nn.Module)) | {FLAG, "graph", "meta"})):
        raise CannotCut(f"it has a part called {taken[0]}, as torch.fx calls a part of every graph", "rename that part")


def _aliases(plan: Plan, graphs: Sequence[fx.Graph]) -> list[tuple[str, fx.Graph]]:
    """Parameters that the network has under a second name: each with the graph that reads them under the first."""
    tensors = dict(plan.entry.net.named_parameters(remove_duplicate=False))
    read = [{str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")} for graph in graphs]
    places = {key: [any(_starts(key, path) for path in paths) for paths in read] for key in tensors}
    pairs = []
    for key, tensor in tensors.items():
        if any(places[key]):
            continue
        others = [other for other, same in tensors.items() if same is tensor and any(places[other])]
        pairs += [(key, graphs[places[others[0]].index(True)])] if others else []
    return pairs


def _auxiliary(plan: Plan) -> set[str]:
    """The keys that outputs beside the logits alone read: no stage has them."""
    paths = [path.removeprefix(f"{NET}.") for path in plan.entry.auxiliary]
    return {key for key in plan.entry.net.state_dict() if any(_starts(key, path) for path in paths)}


def in_any_layout(part: fx.GraphModule, x: Tensor) -> Any:
    """The output of a part for the map `x` in any memory format; what asks for contiguous memory gets it from now on.

    `Tensor.view` is the usual case. Training lays maps out as the device likes; authors try contiguous ones.
    """
    asked = set[fx.Node]()
    while True:
        runner = _Stopping(part)
        try:
            return runner.run(x)
        except RuntimeError:
            node = runner.last
            if node is None or node in asked or not node.all_input_nodes:
                raise
            asked.add(node)
            for before in node.all_input_nodes:
                if isinstance(value := runner.env.get(before), Tensor) and value.ndim > 1:
                    with part.graph.inserting_before(node):
                        node.replace_input_with(before, part.graph.call_method("contiguous", (before,)))
            part.recompile()


class _Stopping(fx.Interpreter):
    """Remembers the node that it runs."""

    last: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.last = n
        return super().run_node(n)


def _unread(plan: Plan, graphs: Sequence[fx.Graph]) -> list[str]:
    """The keys that no graph reads. Raises CannotCut for a parameter that no output reads: it would get no gradient."""
    net = plan.entry.net
    read = {str(n.target) for graph in graphs for n in graph.nodes if n.op in ("call_module", "get_attr")}
    parameters = {key for key, _ in net.named_parameters(remove_duplicate=False)}
    unread = [key for key in net.state_dict() if not any(_starts(key, path) for path in read)]
    if lost := [key for key in unread if key in parameters - _auxiliary(plan)]:
        raise CannotCut(
            f"its parameter {lost[0]} takes no part in the forward", "leave out the layers that are not used"
        )
    return unread


def _starts(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.")


def _check_keys(expected: Set[str], parts: Sequence[nn.Module]) -> None:
    keys = [key for part in parts for key in part.state_dict()]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise CannotCut(
            f"{twice[0].rpartition('.')[0] or twice[0]} is used in two stages, which would share its weights"
        )
    assert set(keys) == expected, set(keys) ^ expected
