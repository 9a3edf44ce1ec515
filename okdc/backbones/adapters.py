"""Networks that are not okdc's own as backbones: `torchvision:NAME`, `timm:NAME`, `package.module:callable`.

An adapted network keeps its modules, its initialisation and its keys. Each time a network is adapted, two training
steps and an evaluation on a few images check that its stages do what it does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from okdc import torch_errors
from okdc.backbones import outputs
from okdc.backbones.behaviour import (
    EVALUATION,
    FROM_FILE,
    Fingerprint,
    WithoutDropout,
    behaviour,
    chance,
    difference,
    preserved,
    random_in_evaluation,
    same,
)
from okdc.backbones.cutting import A_BACKBONE, Cut, clone_first, cut, in_any_layout, out_of_place
from okdc.backbones.maps import Plan
from okdc.backbones.naming import Key, split_output
from okdc.backbones.outside import bare_network, check
from okdc.backbones.tracer import NET
from okdc.backbones.tracing import CannotCut, Entry, trace
from okdc.cohort import Backbone
from okdc.errors import OkdcError, RecipeError, by, one_line
from okdc.kernels import lay_out
from okdc.plugins import no_exit

IMAGES = 2  # of each training step that is compared: a layer of batch statistics needs two
NO_GRADIENTS = "evaluation is under torch.inference_mode(), where nothing has a gradient: keep torch.autograd out of it"
ONE_TENSOR = "okdc calls its forward with one tensor of images, N×3×H×W, and with nothing else"
SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 512)  # that a network is tried with for a hint


class Adapted(Backbone):
    """A foreign network in stages. `cuts` says where each stage ends; `weights` has the names of the bare network."""

    def __init__(
        self, stages: Sequence[fx.GraphModule], head: fx.GraphModule, cuts: Sequence[Cut], images: torch.Size
    ) -> None:
        strides = [max(1, round(images[1] / cut.size[1])) for cut in cuts]
        super().__init__(stages, head, [cut.size[0] for cut in cuts], strides, [cut.raw for cut in cuts])
        self.cuts = tuple(cuts)
        self.description = ", ".join(f"{cut.after} {'×'.join(map(str, cut.size))}" for cut in cuts)
        self._author: tuple[nn.Module, ...] = ()  # in a tuple, so that its modules are not registered twice

    def graphs(self) -> list[fx.GraphModule]:
        """The stages and the head."""
        return [part for part in (*self.stages, self.head) if isinstance(part, fx.GraphModule)]

    def keep_modes_of(self, net: nn.Module) -> None:
        """Let `net`, the bare network, say what train() and eval() mean for each module: it may keep some frozen."""
        self._author = (net,)

    def train(self, mode: bool = True) -> Adapted:
        """The author's own train() has the last word."""
        modes = [(module, module.training) for net in self._author for module in net.modules()]
        super().train(mode)
        for module, training in modes:
            module.training = training
        for net in self._author:
            net.train(mode)
            modules = dict(net.named_modules())
            for part in (*self.stages, self.head):
                for path, module in part.named_modules():
                    if path in modules and path:  # by path: synchronised batch norms are other modules
                        module.training = modules[path].training
        return self

    def weights(self) -> dict[str, Tensor]:
        """The bare network's state_dict."""
        return {_bare(key): tensor for key, tensor in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take a state_dict of the bare network. Raises RuntimeError with the names that are missing or too many."""
        keys = {_bare(key): key for key in self.state_dict()}
        missing, unexpected = sorted(keys.keys() - weights.keys()), sorted(weights.keys() - keys.keys())
        if missing or unexpected:
            raise RuntimeError(f"missing keys: {missing or 'none'}; unexpected keys: {unexpected or 'none'}")
        self.load_state_dict({keys[name]: tensor for name, tensor in weights.items()}, strict=True)


def _bare(key: str) -> str:
    """stages.3.layer2.0.conv1.weight -> layer2.0.conv1.weight"""
    return key.split(".", 2)[2] if key.startswith("stages.") else key.removeprefix("head.")


def adapt(name: str, classes: int, images: torch.Size) -> Backbone:
    """A freshly initialised network with `classes` outputs for images of CHW size `images`, from the global generator.

    A network that is a Backbone already is returned as it is. Raises RecipeError, with the reason, where the name leads
    to no network, or the network cannot become stages.
    """
    check(split_output(name)[0])
    with no_exit(name, RecipeError):
        return _adapt(name, classes, images)


def _adapt(name: str, classes: int, images: torch.Size) -> Backbone:
    base, key = split_output(name)
    net = bare_network(base, classes)
    with torch.random.fork_rng(devices=[]):
        _check_kind(base, net)
        _check_output(base, key, net, classes, images)
        if isinstance(net, Backbone):
            net.train()
            return net
        try:
            _check_weights(net)
            with preserved(net, tensors=False), chance():  # modes, hooks, numbers in Python: the blocks keep tensors
                adapted, entry = _stages(net, key, classes, images)
            for part in adapted.graphs():
                out_of_place(part)
        except CannotCut as error:
            raise RecipeError(f"{name} cannot be cut into stages: {error}", hint=error.hint) from None
        except outputs.NoLogits as error:
            raise RecipeError(f"{name}: expected logits, and in training {error}", hint=error.hint) from None
        except (OkdcError, MemoryError):
            raise
        except Exception as error:  # torch.fx and a network may meet in ways that nobody has thought of
            if torch_errors.out_of_memory(error):
                raise
            reason = f"{name} cannot be cut into stages: {one_line(error)}"
            raise RecipeError(reason, hint=f"{A_BACKBONE}; --debug shows where this is raised") from error
    if auxiliary := sorted({path.split(".")[1] for path in entry.auxiliary}):
        adapted.description += (
            f"; its logits are one of several outputs, the others are left out: {', '.join(auxiliary)}"
        )
    return adapted.train()


def _stages(net: nn.Module, key: Key | None, classes: int, images: torch.Size) -> tuple[Adapted, Entry]:
    """The network in stages that do what it does. Raises CannotCut, and NoLogits where training gives none."""
    entry, plan = _traced(net, images, key)
    stages, head, cuts = cut(plan)
    # Outputs beside the logits would draw random numbers from the same stream.
    dropout = not entry.auxiliary
    expected = _behaviour(entry, classes, images, dropout)
    adapted = Adapted(stages, head, cuts, images)
    if any(type(m).train is not nn.Module.train or "train" in vars(m) for m in net.modules()):
        adapted.keep_modes_of(net)
    _fit(adapted, net, images)
    _check_same(expected, entry, adapted, classes, images, dropout)
    return adapted, entry


def _traced(net: nn.Module, images: torch.Size, key: Key | None) -> tuple[Entry, Plan]:
    """The plan of a network. Raises CannotCut.

    A module whose trace holds for one size of images alone is left whole, with all of its kind, where its own forward
    takes others: its maps, and those behind it, can then be told from other tensors.
    """
    whole, hopeless = set[str](), set[str]()
    entry, graph = trace(net, images, key)
    plan = Plan(entry, graph, images)
    while inner := [path for path in plan.fixed if path not in (NET, *whole, *hopeless)]:
        kind = type(entry.get_submodule(inner[-1]))
        alike = {path for path, module in entry.named_modules() if type(module) is kind and path != NET}
        next_entry, graph = trace(net, images, key, whole | alike)
        following = Plan(next_entry, graph, images)
        if alike.intersection(following.fixed):
            hopeless |= alike
        else:
            whole, entry, plan = whole | alike, next_entry, following
    return entry, plan


# ---------------------------------------------------------------------------------------------------------------------
# What no graph is made of


def _check_kind(name: str, net: nn.Module) -> None:
    """Raises RecipeError for a network inside something that torch wraps around one."""
    wrappers = {
        torch.jit.ScriptModule: "TorchScript, which holds no Python to cut into stages",
        torch._dynamo.OptimizedModule: "compiled by torch.compile; engine.compile says whether a training is",
        nn.DataParallel: "wrapped in nn.DataParallel; torchrun trains on several devices",
        nn.parallel.DistributedDataParallel: "wrapped in DistributedDataParallel; torchrun trains on several devices",
    }
    if any(isinstance(module, torch.jit.ScriptModule) for module in net.modules() if module is not net):
        raise RecipeError(f"{name} has a part that is TorchScript", hint="build it without torch.jit.script")
    for kind, words in wrappers.items():
        if isinstance(net, kind):
            raise RecipeError(f"{name} returns a network that is {words}", hint="return the bare torch.nn.Module")


def _check_weights(net: nn.Module) -> None:
    """Raises CannotCut for weights of another type than training's images, or of which none learns."""
    for key, parameter in net.named_parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            hint = "return it by .float()" if parameter.is_floating_point() else "register it as a buffer"
            if parameter.is_complex():
                hint = "hold two real numbers for each: torch.view_as_complex makes them complex in the forward"
            raise CannotCut(f"its parameter {key} is {kind}, expected float32", hint)
    own = {key for key, _ in (*net.named_parameters(remove_duplicate=False), *_saved_buffers(net))}
    state = net.state_dict()
    if strange := sorted(own ^ state.keys()) or [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise CannotCut(
            f"its state_dict() is not that of its parameters and buffers: {strange[0]}",
            "leave state_dict(), its hooks and get_extra_state() as torch.nn has them",
        )
    if net._backward_hooks or net._backward_pre_hooks:
        raise CannotCut("a hook on its own gradient has no place in stages", "register the hook on a module inside it")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise CannotCut("none of its parameters learns: requires_grad is False for all", "let some of them learn")


def _saved_buffers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that a state_dict holds, by key."""
    for path, module in net.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}".removeprefix("."), buffer


@torch.no_grad()
def _check_output(name: str, key: Key | None, net: nn.Module, classes: int, images: torch.Size) -> None:
    """One image gives 1×K logits. Its pass also gives lazy layers their sizes. Raises RecipeError otherwise."""
    lazy = any(is_lazy(tensor) for tensor in (*net.parameters(), *net.buffers()))
    try:
        with nullcontext() if lazy else preserved(net), chance(), torch.inference_mode(not lazy):
            net.eval()
            output = net(_probe(1, images))
    except Exception as error:
        hint = NO_GRADIENTS if not lazy and _takes(net, images, 1) else _what_it_takes(net, images)
        raise RecipeError(f"{name} does not take an image of {by(images)}: {one_line(error)}", hint=hint) from error
    try:
        logits = outputs.select(output, key)
    except outputs.NoLogits as error:
        raise RecipeError(
            f"{name}: expected logits of 1×{classes} for one image, and {error}", hint=error.hint
        ) from None
    if logits.shape != (1, classes):
        raise RecipeError(
            f"{name}: expected logits of 1×{classes} for one image, found {by(logits.shape)}",
            hint="squeeze() takes the axis of the images away, too: name the axes, squeeze((2, 3)), or use flatten(1)"
            if logits.shape == (classes,)
            else "the callable gets the number of classes, and its network returns one tensor of logits",
        )
    if logits.dtype != torch.float32:
        kind = str(logits.dtype).removeprefix("torch.")
        raise RecipeError(f"{name}: expected logits in float32, found {kind}", hint="return them by .float()")


def _what_it_takes(net: nn.Module, images: torch.Size, otherwise: str = ONE_TENSOR) -> str:
    """A hint for a network that refuses images of CHW size `images`: the images that it takes, if they can be had."""
    if _takes(net, images):
        return f"it takes {IMAGES} images at once; a student has to take one as well"
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in net.parameters()}
    if dtypes - {"float32"}:
        return f"its parameters are {', '.join(sorted(dtypes))}, the images float32: return it by .float()"
    if _takes(net, torch.Size((1, *images[1:]))):
        return "it takes grey images; those of okdc have three channels: x.mean(1, keepdim=True) makes them grey"
    for size in SIZES:
        if _takes(net, torch.Size((3, size, size))):
            return f"it takes 3×{size}×{size}: data.image_size={size}"
    return otherwise


@torch.no_grad()
def _takes(net: nn.Module, images: torch.Size, count: int = IMAGES) -> bool:
    """Whether so many images of this size go through: in evaluation, and if there are several in training."""
    try:
        with preserved(net):
            for training in (False, True)[:count]:
                net.train(training)
                net(_probe(count, images))
    except Exception:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The stages do what the network does


def _behaviour(entry: Entry, classes: int, images: torch.Size, dropout: bool) -> Fingerprint:
    """What the network does by itself. Raises CannotCut where it cannot be trained, NoLogits without logits."""
    try:
        with nullcontext() if dropout else WithoutDropout():
            return behaviour(entry.net, entry, entry.train, _probe(IMAGES, images), classes)
    except outputs.NoLogits:
        raise
    except Exception as error:
        own = "the network raises that without okdc as well"
        hint = own if _takes(entry.net, images) else _what_it_takes(entry.net, images, own)
        raise CannotCut(f"in training it raised {one_line(error)}", hint) from error


def _check_same(
    expected: Fingerprint, entry: Entry, adapted: Adapted, classes: int, images: torch.Size, dropout: bool
) -> None:
    """Raises CannotCut where the stages train or evaluate otherwise than the network."""
    try:
        with nullcontext() if dropout else WithoutDropout():
            actual = behaviour(entry.net, adapted, adapted.train, _probe(IMAGES, images), classes)
    except Exception as error:
        raise CannotCut(f"its stages raised {one_line(error)}, the network itself did not", A_BACKBONE) from error
    if not same(expected[EVALUATION], expected[FROM_FILE]):
        if random_in_evaluation(entry.net, entry, _probe(1, images)):
            raise CannotCut(
                "it is random in evaluation: the same image gets another answer the second time",
                "F.dropout needs training=self.training, or nn.Dropout in its place; other draws need if self.training",
            )
        raise CannotCut(
            "training changes what no file of its weights holds, and its answers depend on that",
            "hold it in a buffer (register_buffer), not in an attribute or in a buffer with persistent=False",
        )
    own, theirs = (_without(entry, prints) for prints in (actual, expected))
    if first := difference(theirs, own):
        raise CannotCut(
            f"its stages do something else than the network, the first difference is in {first}: its forward keeps "
            "state, or does what tracing does not show",
            A_BACKBONE,
        )


def _without(entry: Entry, prints: Fingerprint) -> Fingerprint:
    """Without the tensors of the outputs that are left out."""
    paths = tuple(path.removeprefix(f"{NET}.") + "." for path in entry.auxiliary)
    return {of: tensor for of, tensor in prints.items() if not f"{of}.".startswith(paths)}


@torch.no_grad()
def _fit(adapted: Adapted, net: nn.Module, images: torch.Size) -> None:
    """Make every stage leave its input as it is, since methods tap the maps between them, and take any memory format.

    The stages hold parts of `net`.
    """
    parts = adapted.graphs()
    for part in parts:
        out_of_place(part)
    writing = set()
    # In channels_last first: a copy that is made there may be none in contiguous memory, where the writes then show.
    for layout, training in itertools.product((torch.channels_last, torch.contiguous_format), (False, True)):
        lay_out(adapted, layout)
        x = _probe(IMAGES, images).contiguous(memory_format=layout)
        with preserved(net):
            adapted.train(training)
            for part in parts:
                version = x._version  # counts the writes into a tensor
                try:
                    y = in_any_layout(part, x)
                except Exception as error:
                    raise CannotCut(f"a stage raised {one_line(error)}", A_BACKBONE) from error
                if x._version != version:
                    writing.add(part)
                x = y
    for part in writing:
        clone_first(part)


def _probe(count: int, images: torch.Size) -> Tensor:
    return torch.randn(count, *images, generator=torch.Generator().manual_seed(0))
