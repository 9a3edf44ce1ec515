"""BYOT against the losses of its two public codes; exits, attention and distances by loops in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from byhand import (
    CIFAR,
    SMALL,
    Array,
    agrees,
    array,
    batch,
    convolved,
    cross_entropy,
    divergence,
    hold,
    linear,
    make,
    names,
    normalised,
    reached,
    refused,
    spread,
)
from harness import start
from safetensors.torch import load_file
from torch import Tensor, nn

from okdc import backbones
from okdc.backbones.parts import PoolLinear
from okdc.blocks import PatchConv
from okdc.cohort import Backbone, Cohort, count_macs
from okdc.methods.base import Batch
from okdc.methods.byot import BYOT, Attention, BYOTConfig, Exit, Separable, _interpolation, _step
from okdc.runs.files import read_json

LOSSES = pytest.mark.parametrize("loss", ["conference", "journal"])
BLOCKS = pytest.mark.parametrize("block", ["bottleneck", "separable", "patch"])
LAST = ("cohort.students.0.stages.3.", "cohort.students.0.head.")


def byot(student: str = "resnet8", images: torch.Size = SMALL, **keys: Any) -> BYOT:
    method = make("byot", [student], "none", images, **keys)
    assert isinstance(method, BYOT)
    return method


def configured(**keys: Any) -> BYOTConfig:
    """A table of its own, checked."""
    return BYOTConfig.model_validate({"name": "byot", **keys})


# ---------------------------------------------------------------------------------------------------------------------
# The exits, once more


def patched(x: Array, patch: PatchConv) -> Array:
    """Each output pixel from one patch: zeros below and on the right, where the map does not reach."""
    w = array(patch.conv.weight)
    outputs, _, rows, columns = w.shape
    _, right, _, below = patch.padding
    x = np.pad(x, ((0, 0), (0, 0), (0, below), (0, right)))
    y = np.zeros((len(x), outputs, x.shape[2] // rows, x.shape[3] // columns))
    for o in range(outputs):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                part = x[:, :, rows * i : rows * (i + 1), columns * j : columns * (j + 1)]
                y[:, o, i, j] = (part * w[o]).sum((1, 2, 3))
    assert patch.bn is not None
    return np.maximum(normalised(y, patch.bn), 0)


def separated(x: Array, block: Separable) -> Array:
    layers = list(block)
    for first in (0, 4):
        depthwise, pointwise, bn = layers[first : first + 3]
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(pointwise, nn.Conv2d)
        x = convolved(x, array(depthwise.weight), groups=x.shape[1])
        x = x[:, :, :: depthwise.stride[0], :: depthwise.stride[1]]
        x = np.maximum(normalised(convolved(x, array(pointwise.weight)), bn), 0)
    return x


def attended(x: Array, attention: Attention) -> Array:
    small = torch.from_numpy(separated(x, attention.separable))
    large = F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False).numpy()
    result: Array = x / (1 + np.exp(-large))
    return result


def left(f: Array, leave: nn.Module) -> tuple[Array, Array]:
    """g_i and z_i of an exit."""
    assert isinstance(leave, Exit)
    x = f
    for module in leave.block:
        if isinstance(module, PatchConv):
            x = patched(x, module)
        elif isinstance(module, Separable):
            x = separated(x, module)
        elif isinstance(module, Attention):
            x = attended(x, module)
        else:
            x = normalised(x, module) if isinstance(module, nn.BatchNorm2d) else np.maximum(x, 0)
    g = x.mean((2, 3))
    return g, linear(g, leave.fc)


def transcription(
    method: BYOT, maps: list[Tensor], z_m: Tensor, labels: Tensor, loss: str, a: float, b: float, T: float, skip: str
) -> tuple[dict[str, float], dict[str, Array]]:
    """The terms, and the logits of the exits."""
    g_m = array(maps[-1]).mean((2, 3))
    terms, logits = {"ce_student0": (1 - a if loss == "conference" else 1) * cross_entropy(z_m, labels)}, {}
    hinted = {"none": method.taps, "deepest": method.taps[:-1], "shallowest": method.taps[1:]}[skip]
    adapters = dict(zip(hinted, method.adapters, strict=True))
    for i, leave in zip(method.taps, method.exits, strict=True):
        g_i, z_i = left(array(maps[i]), leave)
        logits[f"exit{i}"] = z_i
        terms[f"ce_exit{i}"] = (1 - a) * cross_entropy(z_i, labels)
        divided = T**2 if loss == "journal" else 1
        terms[f"kl_student0_exit{i}"] = a * divergence(z_m, z_i, T) / divided
        if i not in hinted:
            continue
        if loss == "journal":
            g_i = linear(g_i, adapters[i])
        total = 0.0
        for image in range(len(g_i)):
            for c in range(g_i.shape[1]):
                if loss == "journal" or g_i[image, c] > 0 or g_m[image, c] > 0:
                    total += (g_i[image, c] - g_m[image, c]) ** 2
        terms[f"hint_exit{i}"] = b * (total**0.5 if loss == "journal" else total)
    return terms, logits


PUBLISHED = {"conference": (0.1, 1e-6, "none"), "journal": (0.3, 0.03, "deepest")}


@LOSSES
@BLOCKS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keys", [{}, {"alpha": 0.4, "beta": 0.5, "temperature": 2.0, "hint_skips": "shallowest"}])
def test_every_term_equals_a_slow_transcription(
    keys: dict[str, Any], training: bool, block: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = byot(loss=loss, block=block, **keys)
    images, labels, *_ = batch(n=5)
    for _ in range(2):
        method(Batch(images + 0.3, labels), torch.tensor(0.0))  # batch statistics leave 0 and 1
    method.train(training)
    a, b, skip = PUBLISHED[loss]
    a, b, skip = keys.get("alpha", a), keys.get("beta", b), keys.get("hint_skips", skip)
    z = spread(1)
    maps = method.cohort(images)[0]
    expected, exits = transcription(method, maps, z[0], labels, loss, a, b, keys.get("temperature", 3.0), skip)
    assert any(name.startswith("hint") for name in expected)
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(0.5))
    agrees(step, expected)
    assert list(step.logits) == ["student0", "exit1", "exit2", "ensemble"]
    for name, z_i in exits.items():
        torch.testing.assert_close(step.logits[name].double(), torch.from_numpy(z_i), rtol=1e-4, atol=1e-5)
    mean = sum((step.logits[name] for name in ("student0", "exit1", "exit2")), torch.zeros(())) / 3
    torch.testing.assert_close(step.logits["ensemble"], mean)


@LOSSES
def test_what_a_recipe_leaves_out_is_what_the_code_of_its_loss_has(loss: str) -> None:
    method = byot(loss=loss)
    a, b, _ = PUBLISHED[loss]
    assert (method.alpha, method.beta) == (a, b)
    assert method.hinted == {"conference": (1, 2), "journal": (1,)}[loss]
    blocks = [[type(module) for module in leave.get_submodule("block").children()] for leave in method.exits]
    assert (
        blocks
        == {
            "conference": [[PatchConv] * 3] * 2,
            "journal": [[Attention, Separable, Separable], [Attention, Separable]],
        }[loss]
    )


def test_features_count_where_one_of_both_is_above_0() -> None:
    """As in the port: after a ReLU this changes nothing, and a last map may be negative."""
    method = byot(beta=1.0)
    g = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    g_m = torch.tensor([[-3.0, -1.0, 0.5, 1.5]])
    found = method._hints({1: g, 2: 2 * g}, g_m)
    assert found["hint_exit1"].item() == pytest.approx(3.0**2 + 0.5**2 + 0.5**2)
    assert found["hint_exit2"].item() == pytest.approx(5.0**2 + 0.5**2 + 0.5**2)
    journal = byot(loss="journal", beta=2.0)._hints({1: g}, g_m)
    assert journal["hint_exit1"].item() == pytest.approx(2 * (9 + 9 + 0.25 + 0.25) ** 0.5)


def test_features_that_are_equal_have_no_gradient_instead_of_an_infinite_one() -> None:
    method, g = byot(loss="journal"), torch.ones(2, 3, requires_grad=True)
    loss = method._hints({1: g}, torch.ones(2, 3))["hint_exit1"]
    loss.backward()
    assert loss.item() < 1e-9
    assert g.grad is not None
    assert (g.grad == 0).all()


@pytest.mark.parametrize(("size", "target"), [(1, 1), (1, 2), (2, 3), (2, 4), (4, 7), (4, 8), (7, 13)])
def test_interpolation_is_pytorchs(size: int, target: int) -> None:
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    rows = _interpolation(size, target).double()
    expected = F.interpolate(x, size=(target, target), mode="bilinear", align_corners=False)
    torch.testing.assert_close(rows @ (x @ rows.T), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


@LOSSES
@pytest.mark.parametrize("i", [1, 2])
def test_what_teaches_an_exit_learns_nothing_by_it(i: int, loss: str) -> None:
    """The last stage and the head have the labels alone; an exit reaches the stages up to its own."""
    method = byot(loss=loss, hint_skips="none")
    behind = names(method, *(f"cohort.students.0.stages.{k}." for k in range(i + 1, 4)), "cohort.students.0.head.")
    assert names(method, *LAST) <= behind
    for term in (f"kl_student0_exit{i}", f"hint_exit{i}", f"ce_exit{i}"):
        found = reached(method, term)
        assert not found & behind, term
        assert names(method, *(f"cohort.students.0.stages.{k}." for k in range(i + 1))) <= found
        assert found & names(method, "exits.")
        assert not found & names(method, f"exits.{2 - i}."), "the other exit"


@LOSSES
def test_the_last_stage_and_the_head_learn_from_their_own_labels_alone(loss: str) -> None:
    method = byot(loss=loss, alpha=0.5, beta=1.0, hint_skips="none")
    others = [term for term in method(batch(), torch.tensor(0.5)).losses if term != "ce_student0"]
    assert len(others) == 6
    assert not reached(method, *others) & names(method, *LAST)
    assert names(method, *LAST) <= reached(method, "ce_student0")


@LOSSES
def test_without_its_weights_the_gradient_is_the_baselines_and_that_of_the_exits_labels(loss: str) -> None:
    method = byot(loss=loss, alpha=0.0, beta=0.0)
    baseline = make("baseline", 1)
    baseline.cohort.load_state_dict(method.cohort.state_dict())
    losses = method(batch(), torch.tensor(0.5)).losses
    exits = torch.stack([losses["ce_exit1"], losses["ce_exit2"]]).sum()
    parameters = list(method.cohort.parameters())
    of_exits = torch.autograd.grad(exits, parameters, retain_graph=True, materialize_grads=True)
    whole = torch.autograd.grad(torch.stack(list(losses.values())).sum(), parameters)
    (alone,) = baseline(batch(), torch.tensor(0.5)).losses.values()
    expected = torch.autograd.grad(alone, list(baseline.cohort.parameters()))
    for found, theirs, own in zip(whole, expected, of_exits, strict=True):
        torch.testing.assert_close(found, theirs + own, rtol=1e-4, atol=1e-6)
    assert sum(bool(own.abs().sum() > 0) for own in of_exits) > 10


# ---------------------------------------------------------------------------------------------------------------------
# Which stages, which networks, which sizes


@pytest.mark.parametrize(
    ("taps", "found"), [(None, (1, 2)), ([0, 1, 2], (0, 1, 2)), ([2], (2,)), ([-3], (1,)), ([0, -2], (0, 2))]
)
def test_exits_stand_where_the_recipe_says_and_by_default_between_stem_and_last(
    taps: list[int] | None, found: tuple[int, ...]
) -> None:
    keys: dict[str, Any] = {} if taps is None else {"taps": taps}
    method = byot(**keys)
    assert method.taps == found
    step = method(batch(), torch.tensor(0.5))
    assert list(step.logits) == ["student0", *(f"exit{i}" for i in found), "ensemble"]
    assert len(method.notes) == len(found)
    for note, i in zip(method.notes, found, strict=True):
        assert f"{(16, 16, 32)[i]}×" in note


@pytest.mark.parametrize("taps", [[3], [-1], [4], [-5], [2, 1], [1, 1], [1, -3]])
def test_stages_that_are_not_there_or_in_another_order_are_refused(taps: list[int]) -> None:
    with refused(r"method\.taps=.*0 to 2.*resnet8 has 4 stages"):
        byot(taps=taps)


@LOSSES
def test_a_single_exit_that_the_journal_skips_has_no_feature_term_and_no_layer_for_it(loss: str) -> None:
    method = byot(loss=loss, taps=[1])
    terms = method(batch(), torch.tensor(0.5)).losses
    assert ("hint_exit1" in terms) == (loss == "conference")
    assert (names(method, "adapters.") == set()) == (loss == "conference" or "hint_exit1" not in terms)


def stages(count: int) -> Cohort:
    """A network of so many convolutions that each halve the map."""
    convs = [nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(count)]
    network = Backbone(convs, PoolLinear(4, 10), (4,) * count, [2 ** (i + 1) for i in range(count)])
    network.architecture = "small"
    return Cohort([network])


def test_a_network_without_a_stage_between_the_first_and_the_last_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"small, which has 2: method\.taps=\[0\]"):
        BYOT(stages(2), configured(), SMALL, 10)
    assert BYOT(stages(2), configured(taps=[0]), SMALL, 10).taps == (0,)
    assert BYOT(stages(3), configured(), SMALL, 10).taps == (1,)
    with pytest.raises(ValueError, match="which has 1"):
        BYOT(stages(1), configured(), SMALL, 10)
    with pytest.raises(ValueError, match="taps"):
        BYOT(stages(1), configured(taps=[0]), SMALL, 10)


@BLOCKS
@pytest.mark.parametrize(
    ("student", "size"),
    [
        *(("resnet8", 25), ("resnet8+2", 8), ("wrn16_1", 13), ("densenet40_12", 20), ("mobilenetv2", 16)),
        *(("resnet18", 8), ("torchvision:resnet18", 64), ("torchvision:squeezenet1_1", 65), ("resnet8+msfe", 9)),
    ],
)
def test_any_network_takes_exits_for_images_of_any_size(student: str, size: int, block: str) -> None:
    images = torch.Size((3, size, size))
    method = byot(student, images, block=block, loss="journal", hint_skips="none")
    assert len(method.taps) == len(method.cohort.backbone(0).stages) - 2
    losses = method(batch(images, 3), torch.tensor(0.5)).losses
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [name for name, p in method.named_parameters() if p.grad is None] == []


def test_a_raw_map_is_normalised_before_its_exit_and_another_is_not() -> None:
    for student, first in (("wrn16_1", nn.BatchNorm2d), ("resnet8", PatchConv)):
        for leave in byot(student).exits:
            assert type(leave.get_submodule("block.0")) is first


@pytest.mark.parametrize(
    ("side", "next_side", "kind"),
    [
        *((8, 4, Separable), (13, 7, Separable), (4, 4, Separable), (1, 1, Separable)),
        *(
            (5, 2, PatchConv),
            (8, 2, PatchConv),
            (5, 4, PatchConv),
            (3, 4, PatchConv),
        ),  # no stride of 1 or 2 leads there
    ],
)
def test_a_step_between_stages_is_a_separable_block_where_a_stride_leads_there(
    side: int, next_side: int, kind: type[nn.Module]
) -> None:
    step = _step(torch.Size((4, side, 8)), torch.Size((6, next_side, 4)))
    assert type(step) is kind
    assert step(torch.zeros(2, 4, side, 8)).shape == (2, 6, next_side, 4)


# ---------------------------------------------------------------------------------------------------------------------
# What it costs, and what is kept


def bottleneck(channels: int, side: int, last: int, last_side: int) -> int:
    """Multiply-adds: 1×1, one patch, 1×1 at a quarter of the channels; the linear layer."""
    middle, ratio = last // 4, side // last_side
    convs = channels * middle * side**2 + middle**2 * ratio**2 * last_side**2 + middle * last * last_side**2
    return convs + last * 10


def separable(inputs: int, outputs: int, side: int) -> int:
    """Two depthwise 3×3 and two pointwise convolutions at `side`."""
    return (2 * 9 * inputs + inputs**2 + inputs * outputs) * side**2


def attention(channels: int, side: int) -> int:
    """A separable block at half the size, and two products that interpolate it."""
    half = side // 2
    return separable(channels, channels, half) + channels * (half * half * side + side * half * side)


@torch.no_grad()
@pytest.mark.parametrize(
    ("student", "keys", "macs"),
    [
        ("resnet20", {}, 40_813_184 + 590_464 + 262_784),
        ("resnet20", {"loss": "journal"}, 40_813_184 + 1_102_464 + 500_352 + 64 * 64),
        ("resnet20", {"block": "patch"}, 40_813_184 + 2 * (64 * 16 * 16 * 64 + 640) - 64 * 128 * 64),
        ("resnet18", {}, 555_422_720 + 26_219_520 + 9_442_304 + 4_199_424),
    ],
)
def test_a_training_step_costs_what_its_parts_do(student: str, keys: dict[str, Any], macs: int) -> None:
    method = byot(student, CIFAR, **keys).eval()
    images, labels, *_ = batch(CIFAR, 1)
    assert count_macs(method, Batch(images, labels), torch.tensor(0.5)) == macs


def test_those_numbers_add_up() -> None:
    assert bottleneck(16, 32, 64, 8) == 590_464
    assert bottleneck(32, 16, 64, 8) == 262_784
    assert attention(16, 32) + separable(16, 32, 16) + separable(32, 64, 8) + 640 == 1_102_464
    assert attention(32, 16) + separable(32, 64, 8) + 640 == 500_352
    exits = [bottleneck(c, side, 512, 4) for c, side in ((64, 32), (128, 16), (256, 8))]
    assert exits == [26_219_520, 9_442_304, 4_199_424]


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({}, 6_218 + 3_402),  # test_every_method.py has the sum
        (
            {"loss": "journal"},
            2 * 650 + 64 * 65 + (16 * 50 + 64) + (16 * 66 + 96) + 2 * (32 * 114 + 192) + (32 * 82 + 128),
        ),
        ({"block": "patch"}, 2 * 650 + 2 * 2 * 64 + 64 * 16 * 16 + 64 * 32 * 4),
    ],
)
def test_scaffolding_is_the_exits_and_where_a_norm_compares_a_linear_layer(keys: dict[str, Any], count: int) -> None:
    method = byot(**keys)
    inside = {id(p) for p in method.cohort.parameters()}
    assert sum(p.numel() for p in method.parameters() if id(p) not in inside) == count


@LOSSES
def test_a_run_keeps_the_plain_network(loss: str) -> None:
    run = start("method.name=byot", f"method.loss={loss}", "optim.epochs=1")
    assert read_json(run.student)["architecture"] == "resnet8"
    assert load_file(run.weights).keys() == backbones.build("resnet8", 10, SMALL).weights().keys()
    result = read_json(run.result)
    assert result["students"] == ["resnet8"]
    assert set(result["heads_last_epoch_top1_pct"]) == {"student0", "exit1", "exit2", "ensemble"}
    assert result["kept"]["params"] == 78_042


@pytest.mark.parametrize(
    "keys",
    [{"alpha": 1.5}, {"beta": -1.0}, {"temperature": 0.0}, {"loss": "both"}, {"block": "conv"}, {"taps": []},
     {"hint_skips": "all"}, {"rampup": 0.1}],
)  # fmt: skip
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        configured(**keys)


def test_labels_that_no_classifier_would_see_are_refused() -> None:
    """In the journal's loss α is the shallow exits' alone, and may be 1."""
    with pytest.raises(ValueError, match="alpha=1 with loss='conference'"):
        configured(alpha=1.0)
    assert byot(loss="journal", alpha=1.0).alpha == 1


def test_a_key_that_does_nothing_for_one_exit_is_named() -> None:
    assert "beta does nothing" in byot(loss="journal", taps=[1]).notes[-1]
    assert not any("beta" in note for note in byot(loss="conference", taps=[1]).notes)
