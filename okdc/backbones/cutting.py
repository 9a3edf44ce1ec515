"""Cutting a traced network into stages: which of the legal cuts are taken, and the parts themselves.

Taken are the stem and the last legal cut of every resolution. A stage holds at least one convolution: a pooling alone
goes to what follows it. A closing 1×1 convolution (mobilenet_v2 features.18: 320 -> 1280 channels) belongs to the head,
as in okdc's own MobileNetV2: it is a part of the classifier, and a fused classifier on its map costs many times more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from okdc.backbones.maps import Plan, free, is_batch_size
from okdc.backbones.tracing import FLAG, NET, CannotCut, Training, owners, value

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class Cut(NamedTuple):
    """The end of a stage: what it follows, and the CHW size of the map there."""

    after: str
    size: torch.Size
    raw: bool  # what reads the map normalises it first


def choose(plan: Plan) -> list[int]:
    """The nodes after which the stages end, in order. Raises CannotCut where there are fewer than two."""
    ends = [i for i in plan.legal if not plan.is_noise(i)]
    wanted = {list(own)[-1] for _, own in itertools.groupby(ends, plan.resolution)}
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
        raise CannotCut(f"its last map, after {name(plan, cuts[-1])}, lies before another convolution, {later}")
    if len(cuts) < 2:
        found = f"one NCHW map, after {name(plan, cuts[0])}" if cuts else "no NCHW map"
        raise CannotCut(f"its blocks hand on {found}; expected two or more (tokens and NHWC maps do not count)")
    return cuts


def _with_weights(plan: Plan, wanted: set[int]) -> list[int]:
    """Those of `wanted` that have a convolution since the one before."""
    cuts: list[int] = []
    for i in sorted(wanted):
        if plan.has_weights(cuts[-1] if cuts else -1, i):
            cuts.append(i)
    return cuts


def _without_expansion(plan: Plan, cuts: list[int]) -> list[int]:
    """The last cut before a closing 1×1 convolution, norm and activation, where such follow the last block."""
    *others, last = cuts
    before = others[-1] if others else -1
    for i in reversed([i for i in plan.legal if before < i < last and plan.resolution(i) == plan.resolution(last)]):
        modules = [j for j in range(i + 1, last + 1) if plan.weighted[j]]
        if modules:
            node = plan.nodes[modules[0]]
            found = value(plan.entry, str(node.target))
            pointwise = isinstance(found, nn.Conv2d) and found.kernel_size == (1, 1) and found.groups == 1
            if len(modules) == 1 and pointwise and plan.has_weights(before, i):
                return [*others, i]
            break
    return cuts


def _spatial(plan: Plan, i: int) -> str:
    """A convolution that looks at neighbours after the last cut: then the head would be most of the network."""
    for node in plan.nodes[i + 1 :]:
        found = value(plan.entry, str(node.target)) if node.op == "call_module" else None
        if isinstance(found, nn.Conv2d) and found.kernel_size != (1, 1):
            return str(node.target).removeprefix(f"{NET}.")
    return ""


def name(plan: Plan, i: int) -> str:
    """What a cut follows: the block that ends there, and the functions after it in the network's own forward."""
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
    """The network as stages and a head over its own modules, every key once. Raises CannotCut."""
    ends = choose(plan)
    bounds = itertools.pairwise([0, *ends, len(plan.nodes) - 1])  # node 0 is the placeholder, the last the output
    graphs = [_part(plan, before + 1, end + 1) for before, end in bounds]
    for key in _unread(plan, graphs):  # buffers: kept in the head, so that the keys are those of the network
        graphs[-1].create_node("get_attr", key)
    parts = [fx.GraphModule(_root(plan.entry.net), graph, class_name="Stage") for graph in graphs]
    _check_keys(plan.entry.net, parts)
    cuts = []
    for i in ends:
        node = plan.nodes[i]
        readers = [value(plan.entry, str(n.target)) for n in node.users if n.op == "call_module"]
        cuts.append(Cut(name(plan, i), plan.maps[node], any(isinstance(m, _NORMS) for m in readers)))
    return parts[:-1], parts[-1], cuts


def _root(net: nn.Module) -> nn.Module:
    """What a part finds its modules and tensors in: the network's own, and a flag (a Sequential would run it)."""
    root = nn.Module()
    root._parameters, root._buffers = net._parameters, net._buffers
    root._non_persistent_buffers_set = net._non_persistent_buffers_set
    root._modules = {**net._modules, FLAG: Training()}
    return root


def _part(plan: Plan, start: int, stop: int) -> fx.Graph:
    """Nodes start..stop-1 as a graph of one tensor; what they read of the network keeps its key."""
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    given = env[plan.nodes[start - 1]] = graph.placeholder("x")

    def there(node: fx.Node) -> fx.Node:
        if node not in env:
            assert free(node), node
            env[node] = graph.call_method("size", (given, 0)) if is_batch_size(node) else copied(node)
        return env[node]

    def copied(node: fx.Node) -> fx.Node:
        new = graph.node_copy(node, there)
        new.meta = {}
        if new.op in ("get_attr", "call_module"):
            new.target = str(new.target).removeprefix(f"{NET}.")
        return new

    for node in plan.nodes[start:stop]:
        if not free(node):
            env[node] = copied(node)
    result = plan.nodes[-1].args[0] if stop == len(plan.nodes) - 1 else plan.nodes[stop - 1]
    assert isinstance(result, fx.Node)
    graph.output(there(result))
    return graph


def out_of_place(part: fx.GraphModule) -> None:
    """The first operations of a part leave what it is given alone: methods tap the map before."""
    given = next(iter(part.graph.nodes))
    for node in list(given.users):
        module = value(part, str(node.target)) if node.op == "call_module" else None
        if getattr(module, "inplace", False):
            assert isinstance(module, nn.Module)
            setattr(module, "inplace", False)  # noqa: B010  (typed as a tensor or a module otherwise)
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    part.recompile()


def clone_first(part: fx.GraphModule) -> None:
    """Where an operation further in writes into what the part is given, it works on a copy."""
    given = next(iter(part.graph.nodes))
    with part.graph.inserting_after(given):
        clone = part.graph.call_method("clone", (given,))
    given.replace_all_uses_with(clone, delete_user_cb=lambda user: user is not clone)
    part.recompile()


def _unread(plan: Plan, graphs: Sequence[fx.Graph]) -> list[str]:
    """The buffers that no forward reads. Raises CannotCut for such a parameter: no step would give it a gradient."""
    net = plan.entry.net
    read = {str(n.target) for graph in graphs for n in graph.nodes if n.op in ("call_module", "get_attr")}
    parameters = {key for key, _ in net.named_parameters(remove_duplicate=False)}
    unread = [key for key in net.state_dict() if not any(_starts(key, path) for path in read)]
    if lost := [key for key in unread if key in parameters]:
        raise CannotCut(f"its parameter {lost[0]} takes no part in the forward")
    return unread


def _starts(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.")


def _check_keys(net: nn.Module, parts: Sequence[nn.Module]) -> None:
    keys = [key for part in parts for key in part.state_dict()]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise CannotCut(
            f"{twice[0].rpartition('.')[0] or twice[0]} is used in two stages, which would share its weights"
        )
    assert set(keys) == set(net.state_dict()), set(keys) ^ set(net.state_dict())
