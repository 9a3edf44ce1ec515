"""What an author wrote about training stays: an adapted network learns as the bare one does, or is refused.

The bare network is the judge. Both take three steps from the same weights, images and random numbers; then all
parameters, buffers, gradients and logits are compared. An output alone shows neither a part without gradients nor batch
statistics that stand still.
"""

from __future__ import annotations

import copy
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from okdc import backbones
from okdc.backbones import adapters
from okdc.backbones.adapters import Adapted
from okdc.backbones.behaviour import behaviour, difference, preserved
from okdc.backbones.naming import Key, split_output
from okdc.backbones.outside import bare_network
from okdc.errors import RecipeError

CLASSES = 5
IMAGES = torch.Size((3, 32, 32))
HEAD = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def layer(i, o, stride=1):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a, self.b, self.c = layer(3, 8), layer(8, 16, 2), layer(16, 32, 2)
        self.fc = nn.Linear(32, classes)

    def maps(self, x):
        return self.c(self.b(self.a(x)))

    def forward(self, x):
        return self.fc(self.maps(x).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder stays on sys.path after a name of it was looked up: not after a test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "kept", raising=False)
    yield
    sys.modules.pop("kept", None)


def write(code: str) -> None:
    Path("kept.py").write_text(textwrap.dedent(HEAD) + textwrap.dedent(code), encoding="utf-8")


def adapt(code: str) -> Adapted:
    write(code)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as on a command line, where none is an error
        network = adapters.adapt("kept:Mine", CLASSES, IMAGES)
    assert isinstance(network, Adapted)
    return network


def pictures(count: int = 4) -> Tensor:
    return torch.randn(count, *IMAGES, generator=torch.Generator().manual_seed(1))


def three_steps(network: nn.Module) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """The logits of three steps and of an evaluation; the last gradients by name."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    logits = []
    network.train()
    for step in range(3):
        torch.manual_seed(step)
        optimizer.zero_grad()
        z = network(pictures())
        F.cross_entropy(z, torch.arange(4)).backward()
        optimizer.step()
        logits.append(z.detach())
    gradients = {adapters._bare(name): p.grad for name, p in network.named_parameters()}
    with torch.no_grad():
        network.eval()
        logits.append(network(pictures()))
    return logits, gradients


def assert_learns_as_written(network: Adapted) -> Adapted:
    twin = bare_network("kept:Mine", CLASSES)
    twin.load_state_dict(network.weights(), strict=True)
    (own, gradients), (theirs, expected) = three_steps(network), three_steps(twin)
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        mine = gradients[name]
        assert (mine is None) == (gradient is None), name
        if gradient is not None and mine is not None:
            torch.testing.assert_close(mine, gradient, rtol=0, atol=1e-6, msg=name)
    state = twin.state_dict()
    for name, tensor in network.weights().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-6, msg=name)
    return network


KEPT = {
    "a front without gradients": """
        class Mine(Net):
            def forward(self, x):
                with torch.no_grad():
                    x = self.a(x)
                return self.fc(self.c(self.b(x)).mean((2, 3)))
    """,
    "a sub-module without gradients": """
        class Front(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = layer(3, 8)

            @torch.no_grad()
            def forward(self, x):
                return self.body(x) * 0.5

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a = Front()
    """,
    "batch norm that train() keeps in evaluation": """
        class Mine(Net):
            def train(self, mode=True):
                super().train(mode)
                self.a.eval()
                return self
    """,
    "batch norm that a sub-module keeps in evaluation": """
        class Front(nn.Sequential):
            def train(self, mode=True):
                super().train(mode)
                for module in self.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.training = False
                return self

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a = Front(*self.a)
    """,
    "a sub-module whose train() was put out of action": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.b.eval()
                self.b.train = lambda mode=True: self.b
    """,
    "a train() that returns nothing": """
        class Mine(Net):
            def train(self, mode=True):
                super().train(mode)
                self.a.eval()
    """,
    "a layer under two names": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.again = self.b
                self.heads = nn.ModuleList([self.fc])
    """,
    "type and device of its weights": """
        class Mine(Net):
            def forward(self, x):
                x = x.to(self.fc.weight.dtype).to(self.fc.weight.device).to(next(self.parameters()).device)
                return super().forward(x + torch.linspace(-1, 1, 3, device=x.device).view(1, 3, 1, 1))
    """,
    "parameters that do not learn": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.b.requires_grad_(False)
    """,
    "data without its gradient": """
        class Mine(Net):
            def maps(self, x):
                y = super().maps(x)
                return y + 0.5 * y.data - 0.1 * y.detach()
    """,
    "a hook that changes an output": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.c.register_forward_hook(lambda module, inputs, output: output * 2)
                self.b.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    """,
    "a hook that changes a gradient": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.b.register_full_backward_hook(lambda module, inputs, outputs: tuple(g * 2 for g in inputs))
                self.fc.weight.register_hook(lambda gradient: gradient * 3)
    """,
    "a function with a backward of its own": """
        class Sign(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, scale):
                return x.sign() * scale

            @staticmethod
            def backward(ctx, gradient):
                return gradient * 0.5, None

        class Mine(Net):
            def maps(self, x):
                return Sign.apply(super().maps(x) - 0.5, 2.0)
    """,
    "noise in training, in a module of its own": """
        class Noise(nn.Module):
            def forward(self, x):
                return x + 0.1 * torch.randn_like(x) if self.training else x

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.noise = Noise()

            def maps(self, x):
                return super().maps(self.noise(x))
    """,
    "a buffer that a sub-module changes": """
        class Centre(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = layer(3, 8)
                self.register_buffer("mean", torch.zeros(8))
                self.register_buffer("seen", torch.zeros((), dtype=torch.long))

            def forward(self, x):
                y = self.body(x)
                if self.training:
                    self.mean = 0.9 * self.mean + 0.1 * y.detach().mean((0, 2, 3))
                    self.seen += len(x)
                return y - self.mean.view(1, -1, 1, 1)

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a = Centre()
    """,
    "a part that is computed twice to save memory": """
        class Saving(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = layer(8, 16, 2)

            def forward(self, x):
                return checkpoint(self.body, x, use_reentrant=False)

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.b = Saving()
    """,
    "a part that is computed twice in the older way": """
        class Saving(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = layer(8, 16, 2)

            def forward(self, x):
                return checkpoint(self.body, x, use_reentrant=True)

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.b = Saving()
    """,
    "what is computed of a buffer": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.register_buffer("variance", torch.full((3,), 4.0))

            def forward(self, x):
                return super().forward(x / torch.sqrt(self.variance).view(1, 3, 1, 1))
    """,
    "features kept on the module and in a list": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.seen = []
                self.c.register_forward_hook(lambda module, inputs, output: self.seen.append(output))

            def forward(self, x):
                self.last = self.maps(x)
                return self.fc(self.last.mean((2, 3)))
    """,
    "names that Python keeps for itself": """
        class Mine(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.body = nn.ModuleDict({"class": layer(3, 8), "for": layer(8, 16, 2), "import": layer(16, 32, 2)})
                self.add_module("in", nn.Linear(32, classes))

            def forward(self, x):
                for name in self.body:
                    x = self.body[name](x)
                return getattr(self, "in")(x.mean((2, 3)))
    """,
    "writes into a part of a map": """
        class Mine(Net):
            def maps(self, x):
                y = super().maps(x).clone()
                y[y < 0.1] = 0
                y[:, :4] += 1
                return y
    """,
    "weights of five axes, mixed for each image": """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.experts = nn.Parameter(torch.randn(4, 32, 32, 1, 1) * 0.1)
                self.gate = nn.Linear(32, 4)

            def maps(self, x):
                y = super().maps(x)
                n, c, h, w = y.shape
                shares = self.gate(y.mean((2, 3))).softmax(1)
                weights = torch.einsum("ne,eoikl->noikl", shares, self.experts).reshape(n * c, c, 1, 1)
                return F.conv2d(y.reshape(1, n * c, h, w), weights, groups=n).reshape(n, c, h, w)
    """,
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the older checkpoint, in evaluation
@pytest.mark.parametrize("what", KEPT)
def test_it_learns_as_the_bare_network_does(what: str) -> None:
    assert_learns_as_written(adapt(KEPT[what]))


@pytest.mark.parametrize("what", ["a front without gradients", "a sub-module without gradients"])
def test_a_loss_on_any_map_trains_nothing_that_has_no_gradient(what: str) -> None:
    """Methods of online distillation take losses on the maps between stages."""
    network = adapt(KEPT[what]).train()
    x, loss = pictures(), torch.zeros(())
    for stage in network.stages:
        x = stage(x)
        loss = loss + x.mean()
    loss.backward()
    gradients = {adapters._bare(name): p.grad for name, p in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if name.startswith("a.") and gradient is not None] == []
    assert gradients["b.0.weight"] is not None


STOCHASTIC = """
    import random

    class Block(nn.Module):
        def __init__(self, i, o, stride):
            super().__init__()
            self.body, self.shortcut = layer(i, o, stride), nn.Conv2d(i, o, 1, stride)

        def forward(self, x):
            if self.training and {draw} < 0.02:
                return self.shortcut(x)
            return self.shortcut(x) + self.body(x)

    class Mine(Net):
        def __init__(self, classes):
            super().__init__(classes)
            self.b, self.c = Block(8, 16, 2), Block(16, 32, 2)
"""


@pytest.mark.parametrize("draw", ["torch.rand(1).item()", "random.random()", "np.random.rand()"])
def test_stochastic_depth_in_blocks_of_ones_own_stays_random(draw: str) -> None:
    """A draw of Python's that tracing met once would otherwise hold for the whole training."""
    network = adapt("import numpy as np\n" + textwrap.dedent(STOCHASTIC.replace("{draw}", draw)))
    paths = {str(n.target) for part in network.graphs() for n in part.graph.nodes if n.op == "call_module"}
    assert {"b", "c"} <= paths, "each block is called as it is"


def test_okdcs_own_passes_leave_a_network_as_it_was() -> None:
    """Numbers in Python, hooks and requires_grad: the first pass of the training is the first."""
    network = adapt("""
        class Counting(nn.Module):
            calls = 0

            def forward(self, x):
                self.calls += 1
                return x

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a.append(Counting())
                handle = self.a[0].register_forward_hook(lambda m, i, o: handle.remove())

            def train(self, mode=True):
                super().train(mode)
                if not mode:
                    self.a.requires_grad_(False)
                return self
    """)
    (counting,) = (module for module in network.modules() if type(module).__name__ == "Counting")
    assert vars(counting).get("calls", 0) == 0
    assert sum(len(vars(module)["_forward_hooks"]) for module in network.modules()) == 1
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_what_is_computed_of_a_buffer_follows_the_weights_that_are_loaded() -> None:
    network = adapt(KEPT["what is computed of a buffer"]).eval()
    before = network(pictures())
    network.load_weights({**network.weights(), "variance": torch.ones(3)})
    assert not torch.allclose(network(pictures()), before)


def test_a_copy_keeps_the_modes_of_its_own_modules() -> None:
    network = adapt(KEPT["batch norm that train() keeps in evaluation"])
    other = copy.deepcopy(network)
    other.train()
    modes = [m.training for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    assert modes == [False, True, True]
    network.eval()
    assert [m.training for m in other.modules() if isinstance(m, nn.BatchNorm2d)] == modes


def test_frozen_statistics_stay_when_batch_norms_are_replaced() -> None:
    """As synchronised batch norms of several processes are: other modules at the same paths."""
    network = adapt(KEPT["batch norm that train() keeps in evaluation"])
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.train()
    assert [m.training for m in network.modules() if isinstance(m, nn.SyncBatchNorm)] == [False, True, True]


def test_no_stage_names_the_device_that_it_was_traced_on() -> None:
    """A network that asks a parameter for its device would otherwise send its images back to the CPU."""
    network = adapt(KEPT["type and device of its weights"])
    code = "".join(part.code for part in (*network.stages, network.head) if isinstance(part, fx.GraphModule))
    assert code.count(".device") + code.count("'device'") >= 2
    assert "torch.device" not in code
    assert "device(type" not in code


REFUSED = {
    "a buffer that the network itself changes": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.register_buffer("seen", torch.zeros(()))

            def forward(self, x):
                if self.training:
                    self.seen += 1
                return super().forward(x)
        """,
        "seen",
    ),
    "checkpointing in the network itself": (
        """
        class Mine(Net):
            def maps(self, x):
                return self.c(checkpoint(self.b, self.a(x), use_reentrant=False))
        """,
        "torch.utils.checkpoint",
    ),
    "checkpointing in the network itself, in the older way": (
        """
        class Mine(Net):
            def maps(self, x):
                return self.c(checkpoint(self.b, self.a(x), use_reentrant=True))
        """,
        "torch.utils.checkpoint",
    ),
    "a precision of its own": (
        """
        class Mine(Net):
            def forward(self, x):
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(x).float()
        """,
        "engine.dtype",
    ),
    "a hook on the gradient of the network": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.register_full_backward_hook(lambda module, inputs, outputs: None)
        """,
        "hook",
    ),
    "a number in Python that decides": (
        """
        class Late(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.calls = layer(8, 16, 2), 0

            def forward(self, x):
                if self.training:
                    self.calls += 1
                return self.body(x) if self.calls < 500 else self.body(x) * 2

        class Mine(Net):
            def forward(self, x):
                self.steps = getattr(self, "steps", 0) + 1
                return super().forward(x)

            steps = 0
        """,
        "it changes steps",
    ),
    "statistics that no file holds": (
        """
        class Norm(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("mean", torch.zeros(8), persistent=False)

            def forward(self, x):
                if self.training:
                    self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
                return x - self.mean.view(1, -1, 1, 1)

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a.append(Norm())
        """,
        "register_buffer",
    ),
    "a number that training counts and evaluation reads": (
        """
        class Scaled(nn.Module):
            calls = 0

            def forward(self, x):
                self.calls += self.training
                return x * (1 + 0.1 * self.calls)

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a.append(Scaled())
        """,
        "register_buffer",
    ),
    "a start that depends on the first images": (
        """
        class Once(nn.Module):
            def __init__(self):
                super().__init__()
                self.done, self.shift = False, nn.Parameter(torch.zeros(8))

            def forward(self, x):
                if not self.done:
                    self.shift.data.copy_(-x.mean((0, 2, 3)))
                    self.done = True
                return x + self.shift.view(1, -1, 1, 1)

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a.append(Once())
        """,
        "register_buffer",
    ),
    "gradients in evaluation": (
        """
        class Mine(Net):
            def forward(self, x):
                with torch.enable_grad():
                    z = x.detach().requires_grad_()
                    (g,) = torch.autograd.grad(z.pow(2).sum(), z)
                return super().forward(x + g)
        """,
        "inference_mode",
    ),
    "a part in TorchScript": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.b = torch.jit.script(self.b)
        """,
        "TorchScript",
    ),
    "complex weights": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.spectrum = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        """,
        "view_as_complex",
    ),
    "more in its state than tensors": (
        """
        class Counting(nn.Identity):
            def get_extra_state(self):
                return {"calls": 3}

            def set_extra_state(self, state):
                pass

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a.append(Counting())
        """,
        "a.3._extra_state",
    ),
    "a state without some of its tensors": (
        """
        class Mine(Net):
            def state_dict(self, *args, **kwargs):
                return {k: v for k, v in super().state_dict(*args, **kwargs).items() if "running_mean" not in k}
        """,
        "a.1.running_mean",
    ),
    "a module called as a part of torch.fx": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.graph = self.c

            def maps(self, x):
                return self.graph(self.b(self.a(x)))
        """,
        "rename",
    ),
    "logits in double precision": (
        """
        class Mine(Net):
            def forward(self, x):
                return super().forward(x).double()
        """,
        "return them by .float()",
    ),
    "a parameter that is no number": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.places = nn.Parameter(torch.arange(3), requires_grad=False)
        """,
        "buffer",
    ),
    "images that are read again": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.late = layer(3, 32, 4)

            def maps(self, x):
                return super().maps(x) + self.late(x)
        """,
        "reads its images again",
    ),
    "parameters read by no name": (
        """
        class Mine(Net):
            def forward(self, x):
                pooled = self.maps(x).mean((2, 3))
                return F.linear(pooled, F.normalize(next(self.fc.parameters()))) + self.fc.bias
        """,
        "self.fc.weight",
    ),
    "half precision": ("def Mine(classes):\n    return Net(classes).half()", "float16"),
    "double precision": ("def Mine(classes):\n    return Net(classes).double()", "float64"),
    "one parameter in double precision": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

            def forward(self, x):
                return (super().forward(x) * self.scale).float()
        """,
        "scale",
    ),
    "nothing that learns": ("def Mine(classes):\n    return Net(classes).requires_grad_(False)", "requires_grad"),
    "TorchScript": ("def Mine(classes):\n    return torch.jit.script(nn.Sequential(layer(3, 8)))", "TorchScript"),
    "a compiled network": ("def Mine(classes):\n    return torch.compile(Net(classes))", "torch.compile"),
    "a network for several devices": ("def Mine(classes):\n    return nn.DataParallel(Net(classes))", "torchrun"),
    "grey images": (
        """
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.a = layer(1, 8)
        """,
        "keepdim=True",
    ),
    "an image of another size": (
        """
        class Mine(Net):
            def forward(self, x):
                assert x.shape[-1] == 96
                return super().forward(x)
        """,
        "data.image_size=96",
    ),
    "an image that is large enough for evaluation alone": (
        """
        class Large(nn.Module):
            def forward(self, x):
                return x + F.max_pool2d(x, 9).mean() if self.training else x

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.large = Large()

            def maps(self, x):
                return self.large(super().maps(x))
        """,
        "data.image_size=64",
    ),
    "a backward that raises": (
        """
        class Mine(Net):
            def maps(self, x):
                y = super().maps(x)
                y[:, :4] += 1
                return y
        """,
        "without okdc",
    ),
    "an axis of images that is squeezed away": (
        """
        class Mine(Net):
            def forward(self, x):
                return self.fc(F.adaptive_avg_pool2d(self.maps(x), 1).squeeze())
        """,
        "squeeze()",
    ),
    "dropout that is on in evaluation": (
        """
        class Mine(Net):
            def forward(self, x):
                return self.fc(F.dropout(self.maps(x).mean((2, 3)), 0.3))
        """,
        "training=self.training",
    ),
    "numbers of numpy in evaluation": (
        """
        import numpy as np

        class Noisy(nn.Module):
            def forward(self, x):
                return x + float(np.random.rand())

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.c.append(Noisy())
        """,
        "random in evaluation",
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_kept_is_refused_with_the_reason_and_a_way_out(what: str) -> None:
    code, says = REFUSED[what]
    write(code)
    with pytest.raises(RecipeError) as caught:
        adapters.adapt("kept:Mine", CLASSES, IMAGES)
    assert "kept:Mine" in caught.value.message
    assert says in f"{caught.value.message}; {caught.value.hint}"
    assert caught.value.hint


# ---------------------------------------------------------------------------------------------------------------------
# The logits among several outputs

SEVERAL = """
    from collections import namedtuple
    from dataclasses import dataclass
    Out = namedtuple("Out", "logits features")

    @dataclass
    class Data:
        logits: object
        features: object

    class Mine(Net):
        def forward(self, x):
            y = self.maps(x)
            z = self.fc(y.mean((2, 3)))
            return {output}
"""


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ("{'logits': z, 'map': y}", "logits"),
        ("(y, z)", 1),
        ("[z, y]", 0),
        ("Out(z, y)", "logits"),
        ("Out(z, y)", 0),
        ("Data(z, y)", "logits"),
        ("{0: z, 1: y}", 0),
        ("{'logits': z, 'map': y} if self.training else z", "logits"),
        ("(z, y) if self.training else z", None),
    ],
)
def test_the_key_of_the_name_says_which_output_are_the_logits(output: str, key: Key | None) -> None:
    write(SEVERAL.replace("{output}", output))
    name = backbones.with_output("kept:Mine", key)
    network = backbones.build(name, CLASSES, IMAGES)
    assert network.architecture == name
    twin = bare_network("kept:Mine", CLASSES).eval()
    twin.load_state_dict(network.weights())
    result = twin(pictures())
    if not isinstance(result, Tensor):
        result = result[key] if isinstance(result, dict) or isinstance(key, int) else getattr(result, str(key))
    torch.testing.assert_close(network.eval()(pictures()), result, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("output", "key", "hint"),
    [
        ("{'logits': z, 'map': y}", None, "cohort.output='logits'"),
        ("{'logits': z, 'map': y}", "logit", "cohort.output='logits'"),
        ("(y, z)", None, "cohort.output=0 or cohort.output=1"),
        ("(y, z)", 2, "cohort.output=0 or cohort.output=1"),
        ("Out(z, y)", None, "cohort.output='logits'"),
        ("Data(z, y)", None, "cohort.output='logits'"),
        ("{0: z, 1: y}", None, "cohort.output=0 or cohort.output=1"),
        ("{'out': {'logits': z}, 'map': y}", "out", "cohort.output='map'"),
        ("{'logits': z, 'map': y} if self.training else z", None, "cohort.output='logits'"),
        ("3", None, "one tensor"),
    ],
)
def test_outputs_without_the_key_of_the_logits_are_named(output: str, key: Key | None, hint: str) -> None:
    write(SEVERAL.replace("{output}", output))
    with pytest.raises(RecipeError) as caught:
        backbones.build(backbones.with_output("kept:Mine", key), CLASSES, IMAGES)
    assert hint in caught.value.hint


def test_dropout_by_function_in_a_head_that_is_left_out_is_no_obstacle() -> None:
    """It draws from the same stream as the dropout that stays, which then has other draws."""
    network = adapt("""
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.aux = nn.Linear(16, classes)

            def forward(self, x):
                y = self.b(self.a(x))
                early = self.aux(F.dropout(y, 0.5, self.training).mean((2, 3)))
                z = self.fc(F.dropout(self.c(y).mean((2, 3)), 0.5, self.training))
                return (z, early) if self.training else z
    """)
    assert "aux" in network.description
    assert not torch.equal(network.train()(pictures()), network(pictures()))


def test_parameters_of_the_other_outputs_are_in_no_file() -> None:
    network = adapt("""
        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                more = [nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4096, classes)]
                self.aux = nn.Sequential(*more)

            def forward(self, x):
                y = self.b(self.a(x))
                z = self.fc(self.c(y).mean((2, 3)))
                return (z, self.aux(y)) if self.training else z
    """)
    assert not [key for key in network.weights() if key.startswith("aux")]
    assert "aux" in network.description
    bare = bare_network("kept:Mine", CLASSES)
    missing, unexpected = bare.load_state_dict(network.weights(), strict=False)
    assert all(key.startswith("aux.") for key in missing)
    assert unexpected == []


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("a:b", ("a:b", None)),
        ("a:b[logits]", ("a:b", "logits")),
        ("a:b[0]", ("a:b", 0)),
        ("a:b[", ("a:b[", None)),
        ("resnet8", ("resnet8", None)),
    ],
)
def test_a_name_holds_the_key_of_its_logits(name: str, split: tuple[str, Key | None]) -> None:
    assert split_output(name) == split
    assert backbones.with_output(*split) == name


def test_okdcs_own_networks_have_no_key_and_the_extraction_comes_last() -> None:
    assert backbones.with_output("resnet8", "logits") == "resnet8"
    assert backbones.with_output("resnet8+msfe", "logits") == "resnet8+msfe"
    assert backbones.with_output("a:b+msfe", "logits") == "a:b[logits]+msfe"
    assert backbones.with_output("a:b[x]", "logits") == "a:b[x]"
    assert backbones.is_name("torchvision:resnet18[0]")


# ---------------------------------------------------------------------------------------------------------------------
# The comparison itself


def small() -> Any:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 3))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda net: net[1].eval(), "training step 1"),
        (lambda net: setattr(net[1], "momentum", 0.2), "in evaluation"),
        (lambda net: net[0].weight.requires_grad_(False), "the gradient of 0.weight"),
        (lambda net: net[4].bias.register_hook(lambda g: g * 1.01), "the gradient of 4.bias"),
        (lambda net: net.register_forward_hook(lambda m, _, o: o * (1 if m.training else 1.001)), "in evaluation"),
    ],
)
def test_two_behaviours_differ_where_the_networks_do(change: object, names: str) -> None:
    assert callable(change)
    torch.manual_seed(0)
    net = small()
    state = copy.deepcopy(net.state_dict())
    images = pictures(2)
    first = behaviour(net, net, net.train, images, 3)
    assert difference(first, behaviour(net, net, net.train, images, 3)) == ""
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items()), "put back"
    change(net)
    modes = {module: module.training for module in net.modules()}

    def train(mode: bool) -> None:
        net.train(mode)
        if not modes[net[1]]:
            net[1].eval()

    second = behaviour(net, net, train, images, 3)
    assert names in difference(first, second)


def test_what_a_forward_leaves_on_its_modules_is_gone() -> None:
    net = small()
    buffer = net[1].running_mean
    with preserved(net):
        net.left = 3
        net[1].running_mean = torch.ones(4)
        net[1].running_var.fill_(7)
        net[2].inplace = True
    assert not hasattr(net, "left")
    assert net[1].running_mean is buffer
    assert torch.equal(net[1].running_var, torch.ones(4))
    assert not net[2].inplace


@pytest.mark.parametrize("hook", ["weight_norm(nn.Linear(32, classes))", "prune_half(nn.Linear(32, classes))"])
def test_a_network_whose_hook_computes_a_weight_can_be_copied(hook: str) -> None:
    """As the export does: copy.deepcopy refuses a tensor that has a graph."""
    network = adapt(f"""
        from torch.nn.utils import prune, weight_norm

        def prune_half(layer):
            return prune.l1_unstructured(layer, "weight", 0.5)

        class Mine(Net):
            def __init__(self, classes):
                super().__init__(classes)
                self.fc = {hook}
    """)
    x = pictures()
    assert torch.equal(copy.deepcopy(network.eval())(x), network.eval()(x))
