"""Networks of torchvision and timm: the adapted one is the bare one, in every respect but its stages."""

from __future__ import annotations

import copy
import importlib.util
from functools import cache
from typing import Any

import pytest
import torch
from asking import case
from torch import Tensor, nn
from torchvision.models import get_model

from okdc.backbones import adapters, outside
from okdc.backbones.adapters import Adapted
from okdc.cohort import Backbone, Cohort
from okdc.errors import RecipeError

CLASSES = 7
NAMES = (
    "resnet18",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "vgg11_bn",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "convnext_tiny",
)
HEAVY = ("vgg11_bn", "convnext_tiny")  # tens of millions of weights, and nothing that the others lack
EACH = [case(name, long=name in HEAVY) for name in NAMES]
CASES = [
    *(case(name, 64, long=name in HEAVY) for name in NAMES),
    ("resnet18", 32),
    ("mobilenet_v2", 32),
    case("resnet18", 224, long=True),  # more of the same pixels
    case("mobilenet_v2", 224, long=True),
    ("alexnet", 64),
]
SMALL = ("resnet18", "mobilenet_v2", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0", "regnet_y_400mf")


@cache
def adapted(name: str, size: int = 64) -> Adapted:
    """One for all tests that leave it as it is."""
    torch.manual_seed(0)
    network = adapters.adapt(f"torchvision:{name}", CLASSES, torch.Size((3, size, size)))
    assert isinstance(network, Adapted)
    return network


def another(network: Adapted) -> Adapted:
    """A copy with buffers of its own and the same parameters: those of VGG are half a gigabyte."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters()})


def bare(name: str, weights: dict[str, Tensor] | None = None) -> Any:
    """The library's own network. With these weights: its parameters are theirs, its buffers are copies."""
    if not name.startswith(("vgg", "alexnet")):
        network = get_model(name, weights=None, num_classes=CLASSES)
    else:
        with torch.device("meta"):  # drawing them takes a second
            network = get_model(name, weights=None, num_classes=CLASSES)
    if weights is not None:
        buffers = {key for key, _ in network.named_buffers()}
        own = {key: tensor.clone() if key in buffers else tensor for key, tensor in weights.items()}
        network.load_state_dict(own, strict=True, assign=True)
    return network


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size"), CASES)
def test_in_both_modes_it_computes_what_the_bare_network_computes(name: str, size: int) -> None:
    """The same dropout and stochastic depth from the same generator, and the same batch statistics afterwards."""
    network = another(adapted(name, size))
    twin = bare(name, network.weights())
    for training in (True, False):
        network.train(training)
        twin.train(training)
        with torch.no_grad():
            torch.manual_seed(2)
            expected = twin(images(size))
            torch.manual_seed(2)
            found = network(images(size))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        left = dict(twin.named_buffers())
        for key, tensor in network.weights().items():
            if key in left:  # the parameters are the same tensors
                torch.testing.assert_close(tensor, left[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "name", [case(name, long=name not in ("resnet18", "mobilenet_v2", "efficientnet_b0")) for name in SMALL]
)
def test_dropout_and_stochastic_depth_follow_the_mode(name: str) -> None:
    """A flag that tracing froze would show in one of the two."""
    network, random = copy.deepcopy(adapted(name)), name in ("mobilenet_v2", "efficientnet_b0")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # batch statistics are no randomness
    with torch.no_grad():
        network.train()
        assert torch.equal(network(images(64)), network(images(64))) is not random
        network.eval()
        assert torch.equal(network(images(64)), network(images(64)))


@pytest.mark.parametrize("name", EACH)
def test_its_weights_are_the_bare_networks_state_dict_and_the_other_way(name: str) -> None:
    network = adapted(name)
    twin = bare(name)
    own, theirs = network.weights(), twin.state_dict()
    assert sorted(own) == sorted(theirs)
    assert {key: tensor.shape for key, tensor in own.items()} == {key: t.shape for key, t in theirs.items()}
    parameters = list(network.parameters())
    assert len(parameters) == len(list(twin.parameters())) == len({id(p) for p in parameters})


def test_what_weights_gave_is_what_load_weights_takes() -> None:
    network = adapted("mobilenet_v2")
    other = copy.deepcopy(network)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_weights(network.weights())
    assert all(torch.equal(network.weights()[key], tensor) for key, tensor in other.weights().items())


def test_it_starts_from_the_librarys_own_initialisation_and_draws_nothing_else() -> None:
    torch.manual_seed(3)
    expected = get_model("mobilenet_v2", weights=None, num_classes=CLASSES).state_dict()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    network = adapters.adapt("torchvision:mobilenet_v2", CLASSES, torch.Size((3, 32, 32)))
    assert torch.equal(torch.get_rng_state(), after)
    assert network.training
    assert all(torch.equal(expected[key], tensor) for key, tensor in network.weights().items())


def test_weights_of_other_names_or_sizes_are_refused_and_named() -> None:
    network = copy.deepcopy(adapted("resnet18"))
    weights = dict(network.weights())
    kept = weights.pop("layer1.0.conv1.weight")
    with pytest.raises(RuntimeError, match=r"missing keys: \['layer1.0.conv1.weight'\]; unexpected keys: none"):
        network.load_weights(weights)
    with pytest.raises(RuntimeError, match=r"missing keys: none; unexpected keys: \['stages.0.conv1.weight'\]"):
        network.load_weights({**weights, "layer1.0.conv1.weight": kept, "stages.0.conv1.weight": kept})
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.load_weights({**weights, "layer1.0.conv1.weight": kept[:1]})


# Where the stages end: read off the networks' own code.
ENDS = {
    "resnet18": ["relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1"],
    "mobilenet_v2": ["features.0", "features.1", "features.3", "features.6", "features.13", "features.17"],
    "efficientnet_b0": [
        "features.0", "features.1.0", "features.2.1", "features.3.1", "features.5.2", "features.7.0",
    ],
    "densenet121": [
        "features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3",
        "features.norm5 + relu",
    ],
    "vgg11_bn": ["features.2", "features.6", "features.13", "features.20", "features.27"],
    "shufflenet_v2_x1_0": ["conv1", "stage2.3", "stage3.7", "stage4.3"],
    "regnet_y_400mf": [
        "stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4",
    ],
    "convnext_tiny": ["features.0", "features.1.2", "features.3.2", "features.5.8", "features.7.2"],
}  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_a_stage_ends_with_the_last_block_of_a_resolution(name: str) -> None:
    network = adapted(name)
    assert [cut.after for cut in network.cuts] == ENDS[name]
    (sizes,) = Cohort([another(network)]).probe(torch.Size((3, 64, 64)))
    assert sizes == [cut.size for cut in network.cuts]
    assert network.channels == tuple(size[0] for size in sizes)
    assert network.strides == tuple(64 // size[1] for size in sizes)
    for cut in network.cuts:
        assert f"{cut.after} {'×'.join(map(str, cut.size))}" in network.description


def test_a_map_that_is_normalised_by_what_reads_it_is_raw() -> None:
    assert adapted("densenet121").raw == (False, True, True, True, False)
    assert adapted("convnext_tiny").raw == (False, True, True, True, False)
    assert adapted("resnet18").raw == (False,) * 5


@pytest.mark.parametrize(("name", "last", "channels"), [("mobilenet_v2", "18", 320), ("efficientnet_b0", "8", 320)])
def test_the_closing_pointwise_convolution_is_a_part_of_the_head(name: str, last: str, channels: int) -> None:
    network = adapted(name)
    assert network.channels[-1] == channels
    assert any(key.startswith(f"features.{last}.") for key in network.head.state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", EACH)
def test_a_later_stage_leaves_the_maps_before_it_as_they_are(name: str, training: bool) -> None:
    network = another(adapted(name)).train(training)
    x, seen = images(64), []
    with torch.no_grad():
        for part in (*network.stages, network.head):
            seen.append((x, x.clone()))
            x = part(x)
    assert all(torch.equal(x, copied) for x, copied in seen)


@pytest.mark.parametrize("name", SMALL)
def test_it_runs_in_bfloat16_and_channels_last(name: str) -> None:
    network = copy.deepcopy(adapted(name)).to(memory_format=torch.channels_last)
    x = images(64, 3).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        (maps,) = Cohort([network])(x)
        (logits,) = Cohort([network]).logits([maps])
    assert maps[-1].dtype == torch.bfloat16
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x1_0"])
def test_any_batch_size_goes_through_an_exported_program(name: str) -> None:
    network = copy.deepcopy(adapted(name)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (images(64),), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for count in (1, 2, 5):
            x = images(64, count)
            assert program(x).shape == (count, CLASSES)
            torch.testing.assert_close(program(x), network(x), rtol=0, atol=1e-5)


def test_a_copy_is_another_network_and_moves() -> None:
    network = adapted("mobilenet_v2")
    other = copy.deepcopy(network).double().eval()
    assert not {id(p) for p in network.parameters()} & {id(p) for p in other.parameters()}
    assert other.cuts == network.cuts
    assert other(images(64).double()).dtype == torch.float64
    assert not any(module.training for module in other.modules())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("name", ["mobilenet_v2", case("densenet121", long=True), "regnet_y_400mf"])
def test_two_students_share_their_low_stages_and_both_have_all_the_bare_keys(name: str) -> None:
    """With a step of training: every parameter gets a gradient, and the two stay one trunk."""
    students: list[Backbone] = []
    for seed in range(2):
        torch.manual_seed(seed)
        students.append(adapters.adapt(f"torchvision:{name}", CLASSES, torch.Size((3, 64, 64))))
    cohort = Cohort(students, "low")
    optimiser = torch.optim.SGD(cohort.parameters(), lr=0.01)
    logits = cohort.logits(cohort(images(64, 4)))
    loss = sum((nn.functional.cross_entropy(z, torch.arange(4)) for z in logits), torch.zeros(()))
    loss.backward()
    assert [key for key, p in cohort.named_parameters() if p.grad is None] == []
    optimiser.step()
    first, second = (student.weights() for student in students)
    twins = [bare(name, weights).eval() for weights in (first, second)]
    trunk = {key for stage in students[0].stages[: cohort.shared] for key in stage.state_dict()}
    assert trunk
    assert all(torch.equal(first[key], second[key]) for key in trunk)
    assert any(not torch.equal(first[key], second[key]) for key in first.keys() - trunk)
    cohort.eval()
    with torch.no_grad():
        for z, twin in zip(cohort.logits(cohort(images(64))), twins, strict=True):
            torch.testing.assert_close(z, twin(images(64)), rtol=0, atol=1e-5)


def refused(name: str, size: int = 64) -> str:
    with pytest.raises(RecipeError) as caught:
        adapters.adapt(name, CLASSES, torch.Size((3, size, size)))
    return f"{caught.value.message}; {caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "size", "reason", "hint"),
    [
        ("swin_t", 64, "hand on one NCHW map", "a convolutional network"),
        case("vit_b_32", 224, "hand on one NCHW map", "a convolutional network", long=True),
        ("vit_b_16", 64, "Wrong image height! Expected 224 but got 64!", "data.image_size=224"),
    ],
)
def test_what_hands_on_no_maps_is_refused_with_the_reason_and_a_way_out(
    name: str, size: int, reason: str, hint: str
) -> None:
    said = refused(f"torchvision:{name}", size)
    assert f"torchvision:{name}" in said
    assert reason in said
    assert hint in said


def test_auxiliary_heads_are_left_out_and_said_to_be() -> None:
    """GoogLeNet gives three outputs in training: the first are the logits, and the student has no other head."""
    network = adapted("googlenet")
    twin = get_model("googlenet", weights=None, num_classes=CLASSES, aux_logits=False, init_weights=False)
    twin.load_state_dict(network.weights(), strict=True)
    assert "aux1, aux2" in network.description
    for training in (True, False):
        network.train(training)
        twin.train(training)
        with torch.no_grad():
            torch.manual_seed(2)
            expected = twin(images(64))
            torch.manual_seed(2)
            torch.testing.assert_close(network(images(64)), expected, rtol=0, atol=1e-6)


def test_an_unknown_torchvision_name_is_refused_with_the_nearest_and_a_list() -> None:
    with pytest.raises(RecipeError, match=r"'resnet19'.*did you mean 'resnet1") as caught:
        outside.check("torchvision:resnet19")
    assert "list_models" in caught.value.hint
    with pytest.raises(RecipeError, match="no classifier"):
        outside.check("torchvision:fcn_resnet50")  # known there, and no classifier
    outside.check("torchvision:resnet18")


def test_timm_is_an_extra_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "timm" else real(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", without)
    with pytest.raises(RecipeError, match="timm:resnet18 needs timm") as caught:
        outside.check("timm:resnet18")
    assert caught.value.hint == "pip install 'okdc[timm]'"


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "convnext_atto"])
def test_a_network_of_timm_is_the_bare_one_in_both_modes(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra: pip install 'okdc[timm]'")
    network = adapters.adapt(f"timm:{name}", CLASSES, torch.Size((3, 64, 64)))
    assert isinstance(network, Adapted)
    assert len(network.stages) >= 3
    twin = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    twin.load_state_dict(network.weights(), strict=True)
    for training in (True, False):
        network.train(training)
        twin.train(training)
        with torch.no_grad():
            torch.manual_seed(2)
            expected = twin(images(64))
            torch.manual_seed(2)
            torch.testing.assert_close(network(images(64)), expected, rtol=0, atol=1e-6)


def test_an_unknown_timm_name_is_refused_with_the_nearest() -> None:
    pytest.importorskip("timm", reason="timm is an extra: pip install 'okdc[timm]'")
    with pytest.raises(RecipeError, match=r"'resnet19'.*did you mean"):
        outside.check("timm:resnet19")
