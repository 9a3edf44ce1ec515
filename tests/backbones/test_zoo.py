"""Every network of the zoo: its published size, and what each may be relied on for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from okdc import backbones
from okdc.backbones.densenet import DenseLayer, densenet, densenet_bc
from okdc.backbones.mobilenet import InvertedResidual, mobilenetv2
from okdc.backbones.resnet import resnet
from okdc.backbones.wide_resnet import PreActivationBlock, wide_resnet
from okdc.cohort import Backbone, Cohort
from okdc.deploy.count import count
from okdc.errors import RecipeError
from okdc.seeds import seeded


@dataclass(frozen=True)
class Published:
    """Parameters with 10 and with 100 classes, MACs (convolutions and linear layers, 10 classes, 3×32×32), the maps."""

    params: int
    params_100: int
    macs: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    raw: tuple[bool, ...] = ()
    smallest: int = 1  # pixels of the smallest image


RESNET = ((16, 16, 32, 64), (1, 1, 2, 4))
WRN_1 = ((16, 16, 32, 64), (1, 1, 2, 4), (True, True, True, False))
WRN_2 = ((16, 32, 64, 128), (1, 1, 2, 4), (True, True, True, False))
SMALL_STEM = ((64, 64, 128, 256, 512), (1, 1, 2, 4, 8))
ZOO = {
    "resnet8": Published(78_042, 83_892, 12_501_632, *RESNET),
    "resnet14": Published(175_258, 181_108, 26_657_408, *RESNET),
    "resnet20": Published(272_474, 278_324, 40_813_184, *RESNET),
    "resnet32": Published(466_906, 472_756, 69_124_736, *RESNET),
    "resnet56": Published(855_770, 861_620, 125_747_840, *RESNET),
    "resnet110": Published(1_730_714, 1_736_564, 253_149_824, *RESNET),
    "wrn16_1": Published(175_066, 180_916, 26_657_408, *WRN_1),
    "wrn16_2": Published(691_674, 703_284, 101_106_944, *WRN_2),
    "wrn16_8": Published(10_961_370, 11_007_540, 1_548_145_664, (16, 128, 256, 512), *WRN_2[1:]),
    "wrn40_2": Published(2_243_546, 2_255_156, 327_599_360, *WRN_2),
    "densenet40_12": Published(176_122, 188_092, 72_365_352, (24, 48, 60, 132), (1, 2, 4, 4), smallest=4),
    "densenet40_12_vanilla": Published(
        1_019_722, 1_060_132, 264_812_928, (16, 160, 304, 448), (1, 2, 4, 4), smallest=4
    ),
    "mobilenetv2": Published(2_296_922, 2_412_212, 91_154_944, (32, 32, 96, 320), (1, 2, 4, 8)),
    "resnet18": Published(11_173_962, 11_220_132, 555_422_720, *SMALL_STEM),
    "resnet34": Published(21_282_122, 21_328_292, 1_159_402_496, *SMALL_STEM),
}
every = pytest.mark.parametrize("name", ZOO)
# Deeper ones are the same blocks again.
of_each_kind = pytest.mark.parametrize(
    "name", ["resnet8", "wrn16_1", "wrn16_2", "densenet40_12", "densenet40_12_vanilla", "mobilenetv2", "resnet18"]
)


def build(name: str, classes: int = 10, size: int = 32, seed: int = 0) -> Backbone:
    with seeded(seed, "student", 0):
        return backbones.build(name, classes, torch.Size((3, size, size)))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(n: int = 2, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_every_network_that_a_recipe_may_name_is_held_to_numbers_here() -> None:
    assert list(ZOO) == list(backbones.NETWORKS.own)
    assert set(backbones.DEEPER) < set(ZOO)


# ---------------------------------------------------------------------------------------------------------------------
# Size


@every
def test_parameters_and_macs_are_the_published_ones_to_the_unit(name: str) -> None:
    with torch.device("meta"):  # sizes alone
        network, wide = (backbones.build(name, k, torch.Size((3, 32, 32))).eval() for k in (10, 100))
        assert (parameters(network), parameters(wide)) == (ZOO[name].params, ZOO[name].params_100)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * ZOO[name].macs


@pytest.mark.parametrize("added", [1, 4])
@pytest.mark.parametrize("name", backbones.DEEPER)
def test_a_block_more_costs_two_convolutions_and_two_normalisations_at_the_size_of_the_last_map(
    name: str, added: int
) -> None:
    channels, side = ZOO[name].channels[-1], 32 // ZOO[name].strides[-1]
    convs = 2 * 9 * channels**2
    with torch.device("meta"):
        network, plain = (backbones.build(n, 10, torch.Size((3, 32, 32))).eval() for n in (f"{name}+{added}", name))
        assert parameters(network) == ZOO[name].params + added * (convs + 4 * channels)
        assert parameters(network.stages[:-1]) == parameters(plain.stages[:-1])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * (ZOO[name].macs + added * convs * side**2)
    assert (network.channels, network.strides, network.raw) == (plain.channels, plain.strides, plain.raw)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet32+4", 762_842, 87_999_104),
        ("resnet18+1", 15_894_602, 630_920_192),
        ("wrn16_2+2", 1_282_522, 138_855_680),
    ],
)
def test_deeper_networks_have_these_numbers(name: str, params: int, macs: int) -> None:
    counts = count(build(name), torch.zeros(1, 3, 32, 32))
    assert (counts.params, counts.macs) == (params, macs)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "wrn16_1"])
def test_blocks_that_change_nothing_leave_the_plain_network(name: str) -> None:
    """The added ones stand behind those of the plain network's last stage, and before what follows its blocks."""
    plain, deeper = build(name).eval(), build(f"{name}+2", seed=1).eval()
    last, longer = list(plain.stages[-1].children()), list(deeper.stages[-1].children())
    kind = type(last[0])
    count = sum(isinstance(module, kind) for module in last)
    for block in longer[count : count + 2]:
        assert isinstance(block, kind)
        nn.init.zeros_(block.get_submodule("conv2").weight)  # type: ignore[arg-type]
    pairs = [
        *zip(plain.stages[:-1], deeper.stages[:-1], strict=True),
        *zip(last, longer[:count] + longer[count + 2 :], strict=True),
        (plain.head, deeper.head),
    ]
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())
    x = images()
    torch.testing.assert_close(deeper(x), plain(x))
    assert not torch.equal(build(f"{name}+2").eval()(x), build(name).eval()(x))


@pytest.mark.parametrize("name", ["wrn16_1", "densenet40_12", "mobilenetv2"])
def test_what_profile_counts_is_the_published_number(name: str) -> None:
    counts = count(build(name), torch.zeros(1, 3, 32, 32))
    assert (counts.macs, counts.params, counts.uncounted) == (ZOO[name].macs, ZOO[name].params, ())
    assert sum(n for part, n in counts.modules.items() if re.fullmatch(r"stages\.\d+|head", part)) == counts.macs


@every
def test_channels_and_strides_are_what_an_image_shows(name: str) -> None:
    network, expected = build(name), ZOO[name]
    (maps,) = Cohort([network]).probe(torch.Size((3, 32, 32)))
    assert network.channels == expected.channels == tuple(size[0] for size in maps)
    assert network.strides == expected.strides == tuple(32 // size[1] for size in maps)
    assert all(size[1] == size[2] for size in maps)


@every
def test_a_map_is_called_raw_where_the_next_stage_begins_by_normalising_a_sum(name: str) -> None:
    network = build(name)
    assert network.raw == (ZOO[name].raw or (False,) * len(network.stages))
    first = [next(m for m in stage.modules() if not list(m.children())) for stage in network.stages]
    for i, raw in enumerate(network.raw[:-1]):
        assert not raw or isinstance(first[i + 1], nn.BatchNorm2d)
    assert not network.raw[-1], "the head pools what it gets"


# ---------------------------------------------------------------------------------------------------------------------
# Forward and backward


@of_each_kind
def test_stages_and_head_in_order_are_the_forward(name: str) -> None:
    network = build(name).eval()
    x = images()
    with torch.inference_mode():
        expected = network(x)
        for stage in network.stages:
            x = stage(x)
        assert torch.equal(network.head(x), expected)
    assert expected.shape == (2, 10)


@of_each_kind
def test_no_stage_changes_a_map_that_was_tapped_before_it(name: str) -> None:
    """Later modules read these maps in training: an in-place ReLU would change what they see."""
    network = build(name).train()
    x, seen = images(2, 16), []
    for stage in network.stages:
        x = stage(x)
        seen.append((x, x.detach().clone()))
    network.head(x)
    assert all(torch.equal(x, copy) for x, copy in seen)
    assert not [m for m in network.modules() if getattr(m, "inplace", False)]


@of_each_kind
def test_every_parameter_gets_a_gradient_and_none_of_them_is_there_twice(name: str) -> None:
    network = build(name).train()
    network(images(4, 8)).logsumexp(1).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert len(list(network.named_parameters(remove_duplicate=False))) == len(list(network.parameters()))


@of_each_kind
@pytest.mark.parametrize("size", [8, 25, 64])
def test_other_image_sizes_work_for_training_and_for_answers(name: str, size: int) -> None:
    network = build(name, size=size)
    for mode in (True, False):
        logits = network.train(mode)(images(2, size))
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()


@of_each_kind
def test_the_smallest_image_works_and_a_smaller_one_is_refused_in_words(name: str) -> None:
    network, smallest = build(name).eval(), ZOO[name].smallest
    assert network(images(1, smallest)).shape == (1, 10)
    if smallest > 1:
        with pytest.raises(RecipeError, match=f"{smallest}×{smallest}") as caught:
            network(images(1, smallest - 1))
        assert "data.image_size" in caught.value.hint


@of_each_kind
def test_bfloat16_and_channels_last_give_the_same_answer_but_for_rounding(name: str) -> None:
    network, x = build(name).eval(), images(4, 16)
    with torch.inference_mode():
        expected = network(x)
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            for stage in network.stages:
                x = stage(x)
                assert x.is_contiguous(memory_format=torch.channels_last), "a stage went back to plain memory"
            logits = network.head(x)
    assert logits.dtype == torch.bfloat16
    assert torch.linalg.norm(logits.float() - expected) < 0.1 * torch.linalg.norm(expected)


# ---------------------------------------------------------------------------------------------------------------------
# Weights, cohorts


@of_each_kind
def test_the_keys_of_the_weights_are_plain_and_fill_another_of_the_kind(name: str) -> None:
    network = build(name)
    network.train()(images(2, 8))
    kinds = "weight|bias|running_mean|running_var|num_batches_tracked"
    strange = [key for key in network.weights() if not re.fullmatch(rf"(stages\.\d+|head)(\.\w+)*\.({kinds})", key)]
    assert not strange
    other = build(name, seed=1)
    other.load_weights(network.weights())
    x = images(2, 8)
    assert torch.equal(other.eval()(x), network.eval()(x))


@every
def test_two_that_share_all_but_the_last_stage_are_one_trunk_and_two_branches(name: str) -> None:
    alone = build(name)
    trunk = parameters(alone.stages[:-1])
    branch = parameters(alone.stages[-1]) + parameters(alone.head)
    cohort = Cohort([build(name, seed=0), build(name, seed=1)], "low")
    first, second = cohort.backbone(0), cohort.backbone(1)
    assert parameters(cohort) == trunk + 2 * branch
    assert trunk + branch == ZOO[name].params

    def of(*modules: nn.Module) -> set[int]:
        return {id(p) for module in modules for p in module.parameters()}

    assert of(first.stages[:-1]) == of(second.stages[:-1])
    branches = of(first.stages[-1], first.head), of(second.stages[-1], second.head)
    assert not branches[0] & branches[1]
    assert not (branches[0] | branches[1]) & of(first.stages[:-1])


@of_each_kind
def test_convolutions_start_by_he_and_the_rest_as_pytorch_makes_it(name: str) -> None:
    network = build(name)
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            if module.weight.numel() > 5_000:
                expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.06), key
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, key


# ---------------------------------------------------------------------------------------------------------------------
# What makes each family what it is


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights and statistics none of which is a neutral 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) / 4 - (0.125 if tensor.ndim > 1 else -0.5))
    return module


@pytest.mark.parametrize(("depth", "layers"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
@pytest.mark.parametrize("training", [True, False])
def test_the_trunk_of_resnet18_and_34_is_torchvisions(depth: int, layers: tuple[int, ...], training: bool) -> None:
    ours = resnet(depth, 10).stages[1:]
    other = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, list(layers))
    theirs = nn.Sequential(other.layer1, other.layer2, other.layer3, other.layer4)
    randomise(theirs, 3)
    named = {key.replace("downsample", "shortcut"): tensor for key, tensor in theirs.state_dict().items()}
    ours.load_state_dict(named, strict=True)
    x = images(2, 16).repeat(1, 22, 1, 1)[:, :64]
    y = x
    for stage in ours.train(training):
        y = stage(y)
    torch.testing.assert_close(y, theirs.train(training)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_trunk_of_densenet_bc_is_torchvisions(training: bool) -> None:
    ours = densenet_bc(40, 12, 10).stages[1:]
    theirs = torchvision.models.DenseNet(12, (6, 6, 6), num_init_features=24).features[4:]  # from the first block on
    randomise(theirs, 4)
    assert len(ours.state_dict()) == len(theirs.state_dict())
    pairs = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)  # the same order of layers
    ours.load_state_dict(dict(pairs), strict=True)
    x = images(2, 16).repeat(1, 8, 1, 1)
    y = x
    for stage in ours.train(training):
        y = stage(y)
    torch.testing.assert_close(y, theirs.train(training)(x).relu(), rtol=1e-5, atol=1e-5)


def test_a_pre_activation_block_passes_its_input_on_untouched() -> None:
    x = torch.randn(2, 8, 6, 6)
    same, wider = PreActivationBlock(8, 8, 1).eval(), PreActivationBlock(8, 16, 2).eval()
    for block in (same, wider):
        nn.init.zeros_(block.conv2.weight)
    assert torch.equal(same(x), x), "negative values too: nothing is behind the sum"
    assert wider.shortcut is not None
    torch.testing.assert_close(wider(x), wider.shortcut(wider.bn1(x).relu()), rtol=0, atol=0)


def test_maps_of_a_wide_resnet_are_raw_sums_until_the_last() -> None:
    x = images()
    for stage, raw in zip(network := wide_resnet(16, 1, 10).stages, (True, True, True, False), strict=True):
        x = stage(x)
        assert bool((x < 0).any()) == raw
    assert len(network) == 4


@pytest.mark.parametrize("bottleneck", [True, False])
def test_a_dense_layer_keeps_its_input_in_front(bottleneck: bool) -> None:
    x = torch.randn(2, 8, 5, 5)
    y = DenseLayer(8, 4, bottleneck)(x)
    assert y.shape == (2, 12, 5, 5)
    assert torch.equal(y[:, :8], x)


@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (4, 1), (8, 2)])
def test_an_inverted_residual_has_a_shortcut_wherever_its_stride_is_1(inputs: int, stride: int) -> None:
    block, x = InvertedResidual(inputs, 8, 6, stride).eval(), torch.randn(2, inputs, 6, 6)
    nn.init.zeros_(block.bn3.weight)
    if stride == 1:
        assert block.shortcut is not None
        assert torch.equal(block(x), block.shortcut(x))
        assert isinstance(block.shortcut, nn.Identity) == (inputs == 8)
    else:
        assert torch.equal(block(x), torch.zeros(2, 8, 3, 3))


def test_an_inverted_residual_ends_linear() -> None:
    """Without a shortcut: what that adds may be below 0 by itself."""
    assert (InvertedResidual(8, 8, 6, 2)(torch.randn(2, 8, 6, 6)) < 0).any()


def test_mobilenets_last_map_is_linear_and_its_activations_have_no_upper_end() -> None:
    network, x = mobilenetv2(10), 30 * images()
    for stage in network.stages:
        x = stage(x)
    assert (x < 0).any()
    assert network.stages[0].eval()(30 * images()).max() > 6, "ReLU, not ReLU6"


@pytest.mark.parametrize("depth", [-2, 4, 12, 18, 41])
def test_depths_that_no_whole_number_of_blocks_gives_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n\\+4"):
        wide_resnet(depth, 1, 10)
    with pytest.raises(ValueError, match="6n\\+4"):
        densenet_bc(depth, 12, 10)
    with pytest.raises(ValueError, match="3n\\+4"):
        densenet(depth - depth % 3, 12, 10)
    with pytest.raises(ValueError, match="18 or 34"):
        resnet(depth if depth != 18 else 50, 10)


def test_a_width_or_a_stride_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        wide_resnet(16, 0, 10)
    with pytest.raises(ValueError, match="channels"):
        PreActivationBlock(8, 8, 2)
