"""One's own networks, `module:callable`: what is cut where, what stays true in both modes, and what is refused."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from okdc import kernels
from okdc.backbones import adapters, outside
from okdc.backbones.adapters import Adapted
from okdc.backbones.outside import bare_network
from okdc.backbones.resnet import cifar_resnet
from okdc.errors import RecipeError

CLASSES = 5
IMAGES = torch.Size((3, 32, 32))

HEAD = """
    import torch, torch.nn.functional as F
    from torch import nn

    def cbr(i, o, s=1, k=3, inplace=True):
        return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=inplace))

    class Block(nn.Module):
        def __init__(self, i, o, s):
            super().__init__()
            self.a, self.b = cbr(i, o, s), cbr(o, o)
            self.down = nn.Conv2d(i, o, 1, s) if i != o else nn.Identity()

        def forward(self, x):
            return F.relu(self.b(self.a(x)) + self.down(x))

    class Pool(nn.Module):
        def __init__(self, c, k):
            super().__init__()
            self.fc = nn.Linear(c, k)

        def forward(self, x):
            return self.fc(x.mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder stays on sys.path after a name of it was looked up: not after a test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "broken", "inner"):  # another file's test may have left one of its own
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("mine", "broken", "inner"):
        sys.modules.pop(name, None)


def write(code: str, file: str = "mine.py") -> None:
    Path(file).write_text(textwrap.dedent(HEAD) + textwrap.dedent(code), encoding="utf-8")


def adapt(code: str, images: torch.Size = IMAGES) -> Adapted:
    write(code)
    network = adapters.adapt("mine:net", CLASSES, images)
    assert isinstance(network, Adapted)
    return network


def pictures(count: int = 4) -> Tensor:
    return torch.randn(count, *IMAGES, generator=torch.Generator().manual_seed(1))


def ends(network: Adapted) -> list[str]:
    return [cut.after for cut in network.cuts]


def assert_same_in_both_modes(network: Adapted) -> None:
    """As the bare network of the same weights, with the same generator; buffers too."""
    twin = bare_network("mine:net", CLASSES)
    with torch.no_grad():
        twin.eval()(pictures())  # lazy layers
    twin.load_state_dict(network.weights(), strict=True)
    for training in (True, False, True):
        network.train(training)
        twin.train(training)
        with torch.no_grad():
            torch.manual_seed(2)
            expected = twin(pictures())
            torch.manual_seed(2)
            torch.testing.assert_close(network(pictures()), expected, rtol=0, atol=1e-6)
        left = twin.state_dict()
        assert all(torch.equal(tensor, left[key]) for key, tensor in network.weights().items())


def assert_maps_stay(network: Adapted) -> None:
    for training in (True, False):
        network.train(training)
        x, seen = pictures(), []
        with torch.no_grad():
            for part in (*network.stages, network.head):
                seen.append((x, x.clone()))
                x = part(x)
        assert all(torch.equal(x, copied) for x, copied in seen)


def refused(code: str, name: str = "mine:net") -> str:
    write(code)
    with pytest.raises(RecipeError) as caught:
        adapters.adapt(name, CLASSES, IMAGES)
    assert name in caught.value.message
    return f"{caught.value.message}; {caught.value.hint}"


FUNCTIONAL = """
    class Net(nn.Module):
        def __init__(self, k):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.conv2, self.conv3 = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
            self.fc1, self.fc2 = nn.Linear(32 * 8 * 8, 20), nn.Linear(20, k)

        def forward(self, x, features=False):
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
            x = F.dropout(F.max_pool2d(F.relu(self.conv2(x)), 2), 0.3, self.training)
            x = F.relu(self.conv3(x))
            if features:
                return x
            x = F.relu(self.fc1(x.view(x.size(0), -1)))
            return self.fc2(F.dropout(x, training=self.training))

    net = Net
"""


def test_a_forward_of_functions_is_cut_after_its_activations() -> None:
    """Its optional argument, its flags for dropout and its view by batch size are no obstacle."""
    network = adapt(FUNCTIONAL)
    assert ends(network) == ["bn1 + relu", "conv2 + relu", "conv3 + relu"]
    assert [cut.size for cut in network.cuts] == [(8, 32, 32), (16, 16, 16), (32, 8, 8)]
    assert network.strides == (1, 2, 4)
    assert_same_in_both_modes(network)
    assert_maps_stay(network)
    for count in (1, 2, 5):
        assert network.eval()(pictures(count)).shape == (count, CLASSES)


def test_a_stem_a_stage_and_a_container_of_ones_own_are_looked_into() -> None:
    network = adapt("""
        class Body(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = cbr(3, 8)
                self.one = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
                self.two = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
                self.three = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))

            def forward(self, x):
                return self.three(self.two(self.one(self.stem(x))))

        def net(k):
            return nn.Sequential(Body(), Pool(32, k))
    """)
    assert ends(network) == ["0.stem", "0.one.1", "0.two.1", "0.three.1"]
    assert network.strides == (1, 1, 2, 4)
    assert_same_in_both_modes(network)
    assert_maps_stay(network)


def test_no_cut_lies_inside_a_block_that_has_no_skip_connection() -> None:
    """An inverted residual that changes the resolution: after its expansion one map is alive, of the old resolution."""
    network = adapt("""
        class Inverted(nn.Module):
            def __init__(self, i, o, s):
                super().__init__()
                self.conv = nn.Sequential(
                    nn.Conv2d(i, 4 * i, 1), nn.BatchNorm2d(4 * i), nn.ReLU6(inplace=True),
                    nn.Conv2d(4 * i, 4 * i, 3, s, 1, groups=4 * i), nn.ReLU6(inplace=True), nn.Conv2d(4 * i, o, 1))

            def forward(self, x):
                return self.conv(x)

        def net(k):
            body = [cbr(3, 8, 2), Inverted(8, 12, 1), Inverted(12, 16, 2), Inverted(16, 24, 2), cbr(24, 96, 1, 1)]
            return nn.Sequential(nn.Sequential(*body), Pool(96, k))
    """)
    assert ends(network) == ["0.0", "0.1", "0.2", "0.3"]
    assert network.channels == (8, 12, 16, 24)
    assert "0.4.0.weight" in network.head.state_dict()  # the closing 1×1 convolution


def test_a_sequence_through_three_resolutions_is_no_block() -> None:
    """A stem that ends with a pooling is cut before it; a layer that halves once is a block, pooling included."""
    network = adapt("""
        def net(k):
            stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
            more = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
            once = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
            return nn.Sequential(stem, more, once, Pool(32, k))
    """)
    assert ends(network) == ["0.2", "1.1", "2"]
    assert [cut.size[1] for cut in network.cuts] == [16, 4, 1]
    assert_same_in_both_modes(network)


def test_a_layer_built_on_one_of_torch_stays_whole() -> None:
    """timm's BatchNormAct2d has children and counts its batches in Python: traced, it would count once."""
    network = adapt("""
        class NormAct(nn.BatchNorm2d):
            def __init__(self, c):
                super().__init__(c)
                self.act = nn.ReLU(inplace=True)

            def forward(self, x):
                if self.training:
                    self.num_batches_tracked.add_(1)
                return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                                             self.training, self.momentum, self.eps))

        def net(k):
            body = [nn.Conv2d(3, 8, 3, 1, 1), NormAct(8), Block(8, 16, 2), Block(16, 32, 2)]
            return nn.Sequential(*body, Pool(32, k))
    """)
    assert ends(network) == ["1", "2", "3"]
    assert_same_in_both_modes(network)
    network.train()
    network(pictures())
    assert network.weights()["1.num_batches_tracked"] == 3


def test_a_network_of_one_resolution_still_has_three_maps() -> None:
    network = adapt("""
        def net(k):
            return nn.Sequential(cbr(3, 8, 4), Block(8, 8, 1), Block(8, 8, 1), Block(8, 8, 1), Pool(8, k))
    """)
    assert ends(network) == ["0", "2", "3"] or ends(network) == ["0", "1", "3"]
    assert_same_in_both_modes(network)


def test_a_block_that_ends_with_an_identity_or_a_dropout_can_be_cut_after() -> None:
    network = adapt("""
        class Closing(Block):
            def __init__(self, i, o, last):
                super().__init__(i, o, 2)
                self.last = last

            def forward(self, x):
                return self.last(super().forward(x))

        def net(k):
            body = [cbr(3, 8), nn.Dropout(), Closing(8, 16, nn.Identity()), Closing(16, 32, nn.Dropout(0.2))]
            return nn.Sequential(*body, Pool(32, k))
    """)
    assert ends(network) == ["0", "2", "3"]
    assert_same_in_both_modes(network)


def test_a_layer_that_cannot_be_traced_stays_whole_and_its_neighbours_are_cut() -> None:
    """Python decides on values, or on the mode, inside a block: the block is kept as it is."""
    network = adapt("""
        class Deciding(Block):
            def forward(self, x):
                if float(x.detach().mean()) > 1e6:
                    raise ValueError("far out")
                return super().forward(x)

        class DropPath(Block):
            def forward(self, x):
                y = super().forward(x)
                if not self.training:
                    return y
                return y * (torch.rand(y.shape[0], 1, 1, 1) > 0.2)

        def net(k):
            return nn.Sequential(cbr(3, 8), Deciding(8, 16, 2), DropPath(16, 16, 1), Block(16, 32, 2), Pool(32, k))
    """)
    assert ends(network) == ["0", "2", "3"]
    assert_same_in_both_modes(network)


@pytest.mark.parametrize(
    "start",
    [
        "nn.ReLU(inplace=True)",
        "nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))",
        "nn.Sequential(nn.Dropout(0.2), nn.ReLU(inplace=True))",  # in evaluation the dropout gives its input itself
        "InPlace(lambda x: F.relu(x, inplace=True))",
        "InPlace(lambda x: F.relu_(x))",
        "InPlace(lambda x: x.relu_())",
        "InPlace(lambda x: x.mul_(2))",
        "InPlace(lambda x: x.view(x.shape[0], -1).add_(1).view_as(x))",
    ],
)
def test_a_stage_that_starts_in_place_leaves_the_map_before_it_alone(start: str) -> None:
    network = adapt(f"""
        class InPlace(nn.Module):
            def __init__(self, f):
                super().__init__()
                self.f, self.child = f, nn.Identity()  # with a child it is traced

            def forward(self, x):
                return self.f(x)

        class Pre(nn.Module):
            def __init__(self, i, o):
                super().__init__()
                self.start, self.conv = {start}, nn.Conv2d(i, o, 3, 2, 1)

            def forward(self, x):
                return self.conv(self.start(x))

        def net(k):
            return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), Pre(8, 16), Pre(16, 32), nn.Dropout2d(0.1), Pool(32, k))
    """)
    assert len(network.stages) == 3
    assert_maps_stay(network)
    assert_same_in_both_modes(network)
    copies = any(node.target == "clone" for stage in network.stages for node in stage.graph.nodes)  # type: ignore[union-attr]
    assert copies is (start not in ("nn.ReLU(inplace=True)", "InPlace(lambda x: F.relu(x, inplace=True))"))


def test_keys_are_the_bare_ones_with_buffers_unread_tied_and_not_saved() -> None:
    """And a tensor that is a plain attribute, or made by the forward, follows the network and is in no file."""
    network = adapt("""
        class Net(nn.Module):
            def __init__(self, k):
                super().__init__()
                self.register_buffer("unread", torch.ones(2))
                self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1))
                self.register_buffer("scale", torch.full((1, 3, 1, 1), 2.0), persistent=False)
                self.plain = torch.full((1, 3, 1, 1), 0.5)
                self.gain = nn.Parameter(torch.full((1, 3, 1, 1), 0.5))
                self.body = nn.Sequential(cbr(3, 8, inplace=False), Block(8, 16, 2), Block(16, 32, 2))
                self.pool = Pool(32, k)

            def forward(self, x):
                x = (x - self.mean) * self.scale * self.gain + self.plain + torch.tensor([0.25])
                return self.pool(self.body(x))

        net = Net
    """)
    assert sorted(network.weights()) == sorted(bare_network("mine:net", CLASSES).state_dict())
    assert_same_in_both_modes(network)
    assert network.double().eval()(pictures().double()).dtype == torch.float64


def test_lazy_layers_get_their_sizes() -> None:
    network = adapt("""
        def net(k):
            lazy = lambda o, s: nn.Sequential(nn.LazyConv2d(o, 3, s, 1), nn.LazyBatchNorm2d(), nn.ReLU())
            return nn.Sequential(lazy(8, 1), lazy(16, 2), lazy(32, 2), nn.Flatten(), nn.LazyLinear(k))
    """)
    assert network.channels == (8, 16, 32)


def test_a_module_without_weights_may_serve_in_several_stages() -> None:
    network = adapt("""
        class Net(nn.Module):
            def __init__(self, k):
                super().__init__()
                self.relu = nn.ReLU(inplace=True)
                self.a, self.b, self.c = (nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 8), (8, 16), (16, 32)))
                self.pool = Pool(32, k)

            def forward(self, x):
                return self.pool(self.relu(self.c(self.relu(self.b(self.relu(self.a(x)))))))

        net = Net
    """)
    assert ends(network) == ["relu", "relu@1", "relu@2"]
    assert_same_in_both_modes(network)
    assert_maps_stay(network)


def test_a_backbone_is_taken_as_it_is() -> None:
    write("""
        from okdc.backbones.resnet import cifar_resnet

        def net(k):
            return cifar_resnet(8, k)
    """)
    torch.manual_seed(0)
    network = adapters.adapt("mine:net", CLASSES, IMAGES)
    assert type(network) is type(cifar_resnet(8, CLASSES))
    assert sorted(network.weights()) == sorted(cifar_resnet(8, CLASSES).state_dict())
    assert network.description == ""
    assert network.training


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("net = lambda k: nn.Sequential(nn.Flatten(), nn.Linear(3072, 9), nn.ReLU(), nn.Linear(9, k))", "NCHW map"),
        ("net = lambda k: nn.Sequential(cbr(3, 8), Pool(8, k))", "one NCHW map, after 0; expected two or more"),
        ("net = lambda k: [k]", "expected a torch.nn.Module, found list"),
        ("net = lambda k: 1 / 0", "called with 5 classes, raised ZeroDivisionError: division by zero"),
        ("net = lambda k: nn.Sequential(cbr(1, 8), Pool(8, k))", "does not take an image of 3×32×32: RuntimeError"),
        ("net = lambda k: nn.Sequential(cbr(3, 8), Pool(8, 9))", "expected logits of 1×5 for one image, found 1×9"),
        ("net = lambda k: cbr(3, k)", "expected logits of 1×5 for one image, found 1×5×32×32"),
        ("from okdc.backbones.resnet import cifar_resnet\nnet = lambda k: cifar_resnet(8, 9)", "found 1×9"),
    ],
)
def test_what_is_no_network_of_maps_is_refused_with_the_reason(code: str, reason: str) -> None:
    assert reason in refused(textwrap.indent(code, "    "))


NET = """
    class Net(nn.Module):
        def __init__(self, k):
            super().__init__()
            self.body = nn.Sequential(cbr(3, 8), Block(8, 16, 2), Block(16, 32, 2))
            self.pool, self.more, self.k = Pool(32, k), {more}, 0

        def forward(self, x):
            {forward}

    net = Net
"""


@pytest.mark.parametrize(
    ("more", "forward", "reason"),
    [
        ("0", "return {'out': self.pool(self.body(x))}", "cohort.output='out'"),
        ("0", "z = self.pool(self.body(x)); return {'out': z} if self.training else z", "cohort.output='out'"),
        ("0", "return self.pool(self.body(x)) if x.sum() < 1e9 else None", "decides (if, while or assert) by a tensor"),
        ("0", "return self.pool(self.body(x)) * (2 if len(x) > 1 else 1)", "len()"),
        ("0", "return self.pool(self.body(x)) * (2 if x.size(0) > 1 else 1)", "by the number of images"),
        ("0", "return self.pool(self.body(x)).view(int(x.shape[0]), -1)", "write x.shape[0] without int()"),
        ("0", "return self.pool(self.body(x)) * float(x.max())", "Python number"),
        ("0", "for y in x: z = y\n            return self.pool(self.body(x))", "loops over the images"),
        ("0", "return self.pool(self.body(x)) * torch.rand(1)", "draws random numbers"),
        ("0", "return self.pool(self.body(x * torch.rand_like(x) if self.training else x))", "in training than"),
        (
            "nn.BatchNorm1d(1)",
            "self.more.running_var = self.more.running_var + 1; return self.pool(self.body(x))",
            "more.running_var",
        ),
        ("nn.Conv2d(8, 8, 3)", "return self.pool(self.body(x))", "parameter more.weight takes no part in the forward"),
        (
            "nn.Linear(3, 3)",
            "return self.pool(self.body(x * self.more.weight.sum())) * self.more.weight.sum()",
            "more.weight",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_with_the_reason(more: str, forward: str, reason: str) -> None:
    assert reason in refused(NET.replace("{more}", more).replace("{forward}", forward))


@pytest.mark.parametrize(
    "forward",
    [
        "n = x.size(0); return self.pool(self.body(x)).view(n, -1)",
        "n = x.shape[0]; return self.pool(self.body(x)).view(n, -1)",
        "n, c, h, w = x.size(); return self.pool(self.body(x)).view(n, -1)",
        "n, c, h, w = x.shape; return self.pool(F.interpolate(self.body(x), size=(h, w))).view(n, -1)",
        "return self.pool(self.body(x)).view(x.size(0), -1)",
        "y = self.body(x); n, c, h, w = y.shape; assert h == w and y.ndim == 4 and c > 3; return self.pool(y)",
        "y = self.body(x); n, c, h, w = y.shape; return self.pool(y.view(n, c, h * w).view(n, -1, h, w))",
        "y = self.body(x); return self.pool(y.view(-1, 4, *y.shape[2:]).view(y.shape[0], 32, *y.size()[2:]))",
        "y = F.avg_pool2d(x, 2) if x.shape[-1] > 16 else x; return self.pool(self.body(y))",
        "y = self.body(x); return self.pool(sum(y[:, i : y.shape[1] // 4].mean() for i in range(y.shape[1] // 8)) + y)",
        "y = self.body(x); assert x.shape[0] == y.shape[0]; return self.pool(y)",
        "y = self.body[0](x); y = F.interpolate(y, size=(24, 24)); return self.pool(self.body[2](self.body[1](y)))",
        "y = self.body[0](x); y = F.adaptive_avg_pool2d(y, 20); return self.pool(self.body[2](self.body[1](y)))",
        "a, b = self.body[0](x).chunk(2, 1); y = torch.cat([b, a], 1); return self.pool(self.body[2](self.body[1](y)))",
        "y = torch.cat([c + 1 for c in self.body[0](x).split(2, 1)], 1); return self.pool(self.body[1:](y))",
        "y = self.body(x); return self.pool(y / y.shape[2:].numel() * (y.numel() / y.numel()))",
        "y = self.body(x); return self.pool(sum(t for t in y.flatten(2).unbind(2))[:, :, None, None] + y)",
        "y = self.more(self.body[0](x)); y = self.body[1](self.more(y)); return self.pool(self.body[2](y))",
    ],
)
def test_sizes_and_a_layer_that_runs_twice_in_a_stage_are_no_obstacle(forward: str) -> None:
    network = adapt(NET.replace("{more}", "cbr(8, 8)" if "more" in forward else "0").replace("{forward}", forward))
    assert len(network.stages) >= 3
    assert_same_in_both_modes(network)
    program = torch.export.export(network.eval(), (pictures(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (1, 2, 5):
        assert network(pictures(count)).shape == (count, CLASSES)
        assert program.module()(pictures(count)).shape == (count, CLASSES)


@pytest.mark.parametrize("layer", ["nn.Identity()", "Flat()"])
def test_a_view_takes_maps_of_any_memory_format(layer: str) -> None:
    """`x.view(n, -1)` of a map is the commonest of heads, and raises for a map in channels_last."""
    network = adapt(
        """
        class Flat(nn.Module):
            def forward(self, x):
                return x.view(x.size(0), -1).view(x.shape)

        class Net(nn.Module):
            def __init__(self, k):
                super().__init__()
                self.body = nn.Sequential(cbr(3, 8), Block(8, 16, 2), {layer}, Block(16, 32, 2))
                self.fc = nn.Linear(32 * 8 * 8, k)

            def forward(self, x):
                return self.fc(self.body(x).view(x.size(0), -1))

        net = Net
    """.replace("{layer}", layer)
    )
    assert_same_in_both_modes(network)
    expected = network.eval()(pictures())
    kernels.lay_out(network, torch.channels_last)
    actual = network(pictures().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "forward",
    [
        "self.k += 1; return self.pool(self.body(x)) * self.k",
        "return self.pool(self.body(x)) * (2 if type(x) is torch.Tensor else 1)",  # only comparing the results shows it
    ],
)
def test_a_forward_of_which_tracing_freezes_something_is_refused(forward: str) -> None:
    said = refused(NET.replace("{more}", "0").replace("{forward}", forward))
    assert "cannot be cut into stages" in said
    assert "do something else than the network" in said or "it changes k" in said


def test_a_layer_of_ones_own_without_children_runs_as_python() -> None:
    """What it does beside tensors, here counting, is not frozen."""
    network = adapt("""
        class Counting(nn.Module):
            calls = 0

            def forward(self, x):
                self.calls += 1
                return x

        def net(k):
            return nn.Sequential(cbr(3, 8), Block(8, 16, 2), Counting(), Block(16, 32, 2), Pool(32, k))
    """)
    (counting,) = (module for module in network.modules() if type(module).__name__ == "Counting")
    network(pictures())
    assert counting.__dict__["calls"] == 1


def test_a_convolution_after_the_global_pooling_is_a_part_of_the_head() -> None:
    """As in MobileNetV3: a pooled map is no map, whatever still works on it."""
    network = adapt("""
        def net(k):
            pooled = [nn.AdaptiveAvgPool2d(2), nn.Conv2d(32, 40, 1), nn.ReLU(), nn.Flatten(), nn.Linear(160, k)]
            return nn.Sequential(cbr(3, 8), Block(8, 16, 2), Block(16, 32, 2), *pooled)
    """)
    assert ends(network) == ["0", "1", "2"]
    assert_same_in_both_modes(network)


def test_a_fixed_window_that_hides_the_later_maps_is_refused() -> None:
    """It fits no other width, so its maps were not seen to grow; a head with most of the network would be wrong."""
    said = refused("""
        class Windows(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.bias = nn.Conv2d(16, 32, 3, 2, 1), nn.Parameter(torch.zeros(1, 16, 16, 16))

            def forward(self, x):
                return self.conv(x + self.bias)

        def net(k):
            return nn.Sequential(cbr(3, 8), cbr(8, 16, 2), Windows(), Pool(32, k))
    """)
    assert "its last map, after 1, lies before another convolution, 2.conv: from 2" in said
    assert "okdc.Backbone" in said


def test_a_name_that_leads_nowhere_says_which_part_is_missing() -> None:
    write("net = 3\nclass Network(nn.Module): pass\n")
    Path("broken.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    Path("inner.py").write_text("raise OSError('no licence')\n", encoding="utf-8")
    for name, reason in {
        "absent:net": "absent:net: there is no module absent",
        "absent.deeper:net": "there is no module absent",
        "mine.deeper:net": "there is no module mine.deeper",
        "broken:net": "importing broken raised ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        "inner:net": "importing inner raised OSError: no licence",
        "mine:network": "mine has no network .did you mean 'Network'",
        "mine:net": "expected something to call, found int",
        "mine:": "'mine:' names nothing",
        "mine": "no network is called 'mine'",
    }.items():
        with pytest.raises(RecipeError, match=reason):
            outside.check(name)
    outside.check("mine:Network")
