"""FEFR's other reading, the code that is public under its name: each difference to the text's by itself, and the whole.

The loops follow the public file's steps (github.com/JSJ515-Group/FEFR), with its attention trained.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import (
    ALPHA,
    CIFAR,
    SMALL,
    Array,
    agrees,
    array,
    batch,
    convolved,
    hold,
    linear,
    make,
    mutual,
    names,
    normalised,
    reached,
    refused,
    spread,
    table,
)
from torch import Tensor, nn

from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.backbones.parts import PoolLinear
from okdc.blocks import DualAttention, PatchConv, RandomAttention
from okdc.cohort import Backbone, Cohort
from okdc.methods.base import Batch
from okdc.methods.fefr import DRAWS, FEFR, RELEASED, FeaturePath, FEFRConfig, reconstruct
from okdc.recipe.draft import load
from okdc.training.metrics import count
from okdc.training.optim import build_optimizer

TEXT = {key: FEFRConfig.model_fields[key].default for key in RELEASED}


def fefr(n: int = 2, share: str = "low", images: torch.Size = SMALL, **keys: Any) -> FEFR:
    method = make("fefr", n, share, images, **{"reading": "released", **keys})
    assert isinstance(method, FEFR)
    return method


def paths(method: FEFR) -> list[FeaturePath]:
    return [path for path in method.paths if isinstance(path, FeaturePath)]


def parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# What it is made of


def test_resnet20_pairs_carry_14464_parameters_of_matching_and_35082_of_fusion() -> None:
    """And 2,402 of attention; none of the 6,208 that the public file has and never uses."""
    method = make("fefr", ["resnet20"] * 2, "low", CIFAR, reading="released")
    assert isinstance(method, FEFR)
    early = paths(method)[0].early_fusion
    assert early is not None
    assert [parameters(part) for part in (early.a, early.b, early.c)] == [2_080, 8_256, 4_128]
    assert parameters(early) == 14_464
    assert parameters(method.fusion) == 192 * 128 + 128 + 128 * 9 + 256 + 128 * 64 + 128 + 650 == 35_082
    inside = {id(p) for p in method.cohort.parameters()}
    auxiliary = sum(p.numel() for p in method.parameters() if id(p) not in inside)
    assert auxiliary == 14_464 + 35_082 + 2 * 96 * 12 + 2 * 49
    assert paths(method)[0].size == (96, 8, 8)


def test_the_split_of_96_channels_is_the_public_files() -> None:
    f = torch.arange(96.0)[None, :, None, None].expand(2, 96, 3, 3)
    order = [*range(24), *range(36, 48), *range(54, 72), *range(24, 36), *range(48, 54), *range(72, 96)]
    assert reconstruct("split", f, 4)[1, :, 2, 0].tolist() == order


def test_a_permutation_before_attention_and_a_learned_1x1_leaves_the_functions_that_can_be_learned() -> None:
    """The same answers without it, by weights whose rows and columns are moved."""
    split, none = fefr(), fefr(reconstruct="none")
    weights = {name: t.clone() for name, t in split.state_dict().items()}
    order = reconstruct("split", torch.arange(96.0)[None, :, None, None], 4).flatten().long()
    for name in [name for name in weights if "attention.0.mlp" in name]:
        moved = weights[name].clone()
        if name.endswith("mlp.0.weight"):
            moved[:, order] = weights[name]
        else:
            moved[order] = weights[name]
        weights[name] = moved
    mixing = weights["fusion.premix.weight"]
    moved = mixing.clone()
    for k in range(2):
        moved[:, 96 * k + order] = mixing[:, 96 * k : 96 * (k + 1)]
    weights["fusion.premix.weight"] = moved
    none.load_state_dict(weights)
    found, expected = (method(batch(), torch.tensor(0.5)).logits["fused"] for method in (none, split))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# The forward, written a second time


def patched(x: Array, module: nn.Module) -> Array:
    """PatchConv by its definition: one weighted sum a patch, zeros below and on the right."""
    *before, conv = module.children() if isinstance(module, nn.Sequential) else [module]
    assert isinstance(conv, PatchConv)
    if before:
        x = np.maximum(normalised(x, before[0]), 0)
    w, (r, s) = array(conv.conv.weight), conv.conv.stride
    left, right, top, bottom = conv.padding
    assert left == top == 0
    x = np.pad(x, ((0, 0), (0, 0), (0, bottom), (0, right)))
    y = np.zeros((len(x), len(w), x.shape[2] // r, x.shape[3] // s))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            patch = x[:, :, i * r : (i + 1) * r, j * s : (j + 1) * s]
            for o in range(len(w)):
                y[:, o, i, j] = (patch * w[o]).sum((1, 2, 3))
    if conv.bn is None:
        assert conv.conv.bias is not None
        return y + array(conv.conv.bias)[None, :, None, None]
    assert conv.conv.bias is None
    return np.maximum(normalised(y, conv.bn), 0)


def early(maps: list[Tensor], path: FeaturePath, keys: dict[str, Any]) -> Array:
    """f of one student. The steps are those of either reading, and of any between them."""
    part, (f1, f2, f3) = path.early_fusion, (array(m) for m in maps[-3:])
    assert part is not None
    share = 0.5 if keys["combine"] == "mean" else 1.0
    if keys["scale"] == "native":
        if isinstance(part.ready, nn.Sequential):
            f2 = np.maximum(normalised(f2, part.ready[0]), 0)
        f12 = patched(share * (patched(f1, part.a) + f2), part.c)
    else:
        f12 = share * (patched(f1, part.a) + patched(f2, part.b))
    return np.concatenate([f12, share * (patched(f2, part.b) + f3)], 1)


def regrouped(f: Array, keys: dict[str, Any]) -> Array:
    """Four groups A, B, C, D. split: of B and of what is passed on with C, the first half is passed on."""
    A, B, C, D = np.array_split(f, 4, 1)
    if keys["reconstruct"] == "skip":
        return np.concatenate([(A + C) / 2, (B + D) / 2], 1)
    half = B.shape[1] // 2
    B1, B2 = B[:, :half], B[:, half:]
    BC = np.concatenate([B1, C], 1)
    half = BC.shape[1] // 2
    BC1, BC2 = BC[:, :half], BC[:, half:]
    return np.concatenate([A, B2, BC2, BC1, D], 1)


def attended(x: Array, attention: nn.Module) -> Array:
    assert isinstance(attention, nn.Sequential)
    channel, spatial = attention
    reduce, expand = channel.get_submodule("mlp.0"), channel.get_submodule("mlp.2")
    total = sum(linear(np.maximum(linear(pooled, reduce), 0), expand) for pooled in (x.mean((2, 3)), x.max((2, 3))))
    x = x / (1 + np.exp(-np.asarray(total)))[:, :, None, None]
    where = convolved(np.stack([x.mean(1), x.max(1)], 1), array(spatial.get_submodule("conv").get_parameter("weight")))
    norm = spatial.get_submodule("bn")
    result: Array = x / (1 + np.exp(-(normalised(where, norm) if isinstance(norm, nn.BatchNorm2d) else where)))
    return result


def classified(maps: list[Array], fusion: nn.Module) -> Array:
    x = np.concatenate(maps, 1)
    premix = fusion.get_submodule("premix")
    if isinstance(premix, nn.Conv2d):
        assert premix.bias is not None
        x = np.einsum("oc,nchw->nohw", array(premix.weight)[:, :, 0, 0], x) + array(premix.bias)[None, :, None, None]
    for name, groups in (("depthwise", x.shape[1]), ("pointwise", 1)):
        conv, bn, _ = fusion.get_submodule(name).children()
        x = np.maximum(normalised(convolved(x, array(conv.get_parameter("weight")), groups), bn), 0)
    return linear(x.mean((2, 3)), fusion.get_submodule("fc"))


def by_hand(method: FEFR, maps: list[list[Tensor]], keys: dict[str, Any]) -> Array:
    f_re = [regrouped(early(own, path, keys), keys) for own, path in zip(maps, paths(method), strict=True)]
    return classified([attended(f, path.attention) for f, path in zip(f_re, paths(method), strict=True)], method.fusion)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("share", ["low", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_the_whole_forward_and_every_term_equal_a_slow_transcription(
    training: bool, share: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = fefr(n, share).train(training), spread(n)
    assert isinstance(method, FEFR)
    images, labels, *_ = batch(n=5)
    z_f = torch.from_numpy(by_hand(method, method.cohort(images), RELEASED))
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(0.1))
    torch.testing.assert_close(step.logits["fused"].double(), z_f, rtol=1e-4, atol=1e-5)
    agrees(step, mutual(z, z_f, labels, 0.1, 3.0, ALPHA))


def alone(base: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """One key at a time as the other reading has it."""
    rows = [base | {key: other[key]} for key in base]
    return [row for row in rows if (row["scale"], row["width"]) != ("last", "native")]


@pytest.mark.parametrize(
    "keys",
    [TEXT, RELEASED, *alone(TEXT, RELEASED), *alone(RELEASED, TEXT), RELEASED | {"scale": "last", "width": "last"}],
    ids=lambda keys: " ".join(f"{k}={v}" for k, v in keys.items() if v != TEXT[k]),
)
def test_each_difference_can_be_had_by_itself(keys: dict[str, Any]) -> None:
    """By loops again, each key once as one reading and once as the other, all others alike."""
    method = fefr(reading="text", **keys)
    images, labels, *_ = batch()
    maps = method.cohort(images)
    expected = torch.from_numpy(by_hand(method, maps, keys))
    found = method(Batch(images, labels), torch.tensor(0.5)).logits["fused"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)

    (one, two), trunk = paths(method), method.cohort.shared > 0
    assert trunk
    assert (one.early_fusion is two.early_fusion) is keys["share_match"]
    assert (one.attention is two.attention) is keys["share_attention"]
    attention = one.attention
    assert isinstance(attention, DualAttention)
    hidden = attention.get_submodule("0.mlp.0")
    assert isinstance(hidden, nn.Linear)
    assert hidden.out_features == max(one.size[0] // keys["reduction"], 4)
    assert (hidden.bias is not None) is keys["attention_bias"]
    assert isinstance(attention.get_submodule("1.bn"), nn.BatchNorm2d) is keys["attention_norm"]
    assert isinstance(method.fusion.premix, nn.Conv2d) is keys["premix"]


def test_a_raw_map_is_normalised_before_it_is_added_at_its_own_size() -> None:
    """WRN's second map goes into a sum and into a convolution: both get BN-ReLU of it, and of one normalisation."""
    method = make("fefr", ["wrn16_1"] * 2, "none", SMALL, reading="released")
    assert isinstance(method, FEFR)
    for path in paths(method):
        assert path.early_fusion is not None
        assert sum(isinstance(m, nn.BatchNorm2d) for m in path.early_fusion.modules()) == 2
    images, labels, *_ = batch()
    expected = torch.from_numpy(by_hand(method, method.cohort(images), RELEASED))
    found = method(Batch(images, labels), torch.tensor(0.5)).logits["fused"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# First weights, decay, one set for a trunk


@pytest.mark.parametrize(("name", "keys"), [("ffl", {}), ("mfef", {}), ("fefr", {}), ("fefr", {"reading": "released"})])
def test_first_weights_are_ffls_where_the_recipe_says_so(name: str, keys: dict[str, Any]) -> None:
    """N(0, 2/(k²·outputs)): the depthwise convolution's deviation is a fifth of PyTorch's, the 1×1's three times."""
    usual = make(name, ["resnet20"] * 2, "low", CIFAR, **keys, init="pytorch")
    method = make(name, ["resnet20"] * 2, "low", CIFAR, **keys, init="he")
    for (part, p), before in zip(method.named_parameters(), usual.parameters(), strict=True):
        if part.startswith("cohort.") or p.ndim != 4 or re.match(r"paths\.\d\.(1|attention)\.", part):
            assert torch.equal(p, before), part
            continue
        outputs, _, height, width = p.shape
        expected = (2 / (height * width * outputs)) ** 0.5
        assert p.std().item() == pytest.approx(expected, rel=0.1), part
        assert p.mean().item() == pytest.approx(0, abs=expected / 5), part
    depthwise, usually = (m.get_parameter("fusion.depthwise.0.weight").std().item() for m in (method, usual))
    assert depthwise == pytest.approx((2 / 9 / 128) ** 0.5, rel=0.1)
    assert usually > 4 * depthwise


@pytest.mark.parametrize("share", ["low", "none"])
def test_the_matching_convolutions_decay_as_the_students_do_and_nothing_else_does(share: str) -> None:
    method = fefr(share=share)
    optimizer = build_optimizer(method, table("fefr").recipe.optim)
    of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    decay = {name: of[id(p)] for name, p in method.named_parameters()}
    matching = {name for name in decay if ".early_fusion." in name}
    assert len(matching) == (6 if share == "low" else 12)
    assert {decay[name] for name in matching} == {1e-4}
    assert {decay[name] for name in names(method, "fusion.", "paths.") - matching} == {1e-5}
    text = fefr(share=share, match_decay="aux_weight_decay")
    assert text.decayed_as_students == ()


@pytest.mark.parametrize(("share", "sets", "runs"), [("low", 1, 1), ("stem1", 1, 3), ("none", 3, 3)])
def test_students_of_a_trunk_have_one_set_which_runs_once_on_what_they_share(share: str, sets: int, runs: int) -> None:
    method = fefr(3, share)
    assert len({id(path.early_fusion) for path in paths(method)}) == sets
    counts: Counter[str] = Counter()
    for path in paths(method):
        assert path.early_fusion is not None
    for own in {id(path.early_fusion): path.early_fusion for path in paths(method)}.values():
        assert own is not None
        for name in "abc":
            own.get_submodule(name).register_forward_hook(lambda *_, name=name: counts.update(name))
    method(batch(), torch.tensor(0.5))
    assert counts == dict.fromkeys("abc", runs)


@pytest.mark.parametrize("term", ["ce_fused", "kl_ensemble_fused"])
def test_the_fused_terms_reach_all_scaffolding_and_the_students_features_unless_detached(term: str) -> None:
    method = fefr()
    features = names(method, "cohort.students.0.stages.", "cohort.students.1.stages.")
    assert reached(method, term) == names(method, "paths.", "fusion.") | features
    assert reached(fefr(detach_features=True), term) == names(method, "paths.", "fusion.")


# ---------------------------------------------------------------------------------------------------------------------
# Other networks, sizes and numbers


def plain(channels: tuple[int, ...], strides: tuple[int, ...]) -> Backbone:
    inputs, steps = (3, *channels), (1, *strides)
    stages = [
        nn.Sequential(nn.Conv2d(inputs[i], c, 3, steps[i + 1] // steps[i], 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        for i, c in enumerate(channels)
    ]
    return Backbone(stages, PoolLinear(channels[-1], 10), channels, strides)


def config(**keys: Any) -> FEFRConfig:
    return FEFRConfig.model_validate({"name": "fefr", "reading": "released", **keys})


def takes_a_step(method: FEFR, images: torch.Size) -> None:
    losses = method.train()(batch(images), torch.tensor(0.5)).losses
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("match", ["patch", "conv3x3_s2", "pool1x1"])
@pytest.mark.parametrize("size", [8, 32, 50])
def test_it_takes_a_step_at_any_image_size(size: int, match: str) -> None:
    images = torch.Size((3, size, size))
    takes_a_step(fefr(3, images=images, match=match), images)


@pytest.mark.parametrize("size", [(3, 8, 8), (3, 9, 12), (3, 50, 50)])
def test_it_takes_a_step_with_students_of_different_sizes(size: tuple[int, ...]) -> None:
    """13 and 10 channels do not divide by four, 25 pixels are no multiple of 13: nothing of it is a ResNet's."""
    students = [plain((6, 7, 6), (1, 2, 4)), plain((8, 12, 20), (1, 2, 2)), plain((4, 8, 16, 5, 5), (1, 1, 2, 4, 8))]
    images = torch.Size(size)
    method = FEFR(Cohort(students), config(), images, 10)
    assert [path.size[0] for path in paths(method)] == [13, 32, 10]
    assert method.fusion.fc.in_features == 5
    assert isinstance(method.fusion.premix, nn.Conv2d)
    assert method.fusion.premix.out_channels == 6 + 20 + 5
    takes_a_step(method, images)


@pytest.mark.parametrize(("channels", "size"), [((4, 8, 16), (24, 8)), ((4, 8, 8), (16, 8))])
def test_the_width_of_the_shallow_sum_is_its_own_or_that_of_the_last_map(
    channels: tuple[int, ...], size: tuple[int, int]
) -> None:
    students = [plain(channels, (1, 2, 4)) for _ in range(2)]
    method = FEFR(Cohort(students), config(), SMALL, 10)
    assert [path.size[0] for path in paths(method)] == [size[0]] * 2
    wide = FEFR(Cohort(students), config(width="last"), SMALL, 10)
    assert [path.size[0] for path in paths(wide)] == [2 * channels[-1]] * 2


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    "keys",
    [
        {"reading": "text", "width": "native"},
        {"scale": "last"},
        {"reading": "text", "attention": "random"},
        {"attention": "random", "attention_norm": True},
        {"attention": "random", "attention_bias": True},
        {"reading": "code"},
        {"match_decay": "none"},
        {"premix": 1},
        {"attention": False, "reduction": 16},
        {"early_fusion": False, "match_norm": True},
        {"early_fusion": False, "scale": "last", "width": "last"},
    ],
)
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=[*keys][-1]):
        config(**keys)


@pytest.mark.parametrize("keys", [{"attention": False}, {"early_fusion": False}, {"reconstruct": "none"}])
def test_what_the_reading_sets_without_effect_is_taken(keys: dict[str, Any]) -> None:
    """Its ablation without attention has the reduction that the reading brings, and that nobody has asked for."""
    assert config(**keys).reading == "released"


def test_what_is_undefined_for_the_students_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"method\.groups=25: 24 fused channels .*=17, 18, .*24 would"):
        FEFR(Cohort([plain((4, 8, 16), (1, 2, 4)) for _ in range(2)]), config(groups=25), SMALL, 10)
    with pytest.raises(ValueError, match="early_fusion=false"):
        FEFR(Cohort([plain((4, 8), (1, 2)) for _ in range(2)]), config(), SMALL, 10)
    takes_a_step(FEFR(Cohort([plain((4, 8), (1, 2)) for _ in range(2)]), config(early_fusion=False), SMALL, 10), SMALL)
    with refused("at least 2 students"):
        fefr(1)


# ---------------------------------------------------------------------------------------------------------------------
# Random attention


def test_random_attention_has_other_weights_at_every_call_and_the_same_for_all_students() -> None:
    method = fefr(attention="random").eval()
    one, two = (path.attention for path in paths(method))
    x = torch.randn(4, 96, 2, 2)
    first, again = one(x), one(x)
    assert not torch.allclose(first, again)
    assert torch.equal(first, two(x))
    assert torch.equal(again, two(x))


def test_random_attention_is_never_trained_and_its_heads_are_single_draws() -> None:
    method = fefr(attention="random")
    assert names(method, "paths.") == {
        f"paths.0.early_fusion.{p}.0.conv.{w}" for p in "abc" for w in ("weight", "bias")
    }
    images, labels, *_ = batch()
    assert list(method(Batch(images, labels), torch.tensor(0.5)).logits)[2:] == ["ensemble", "fused_draw0"]
    drawn = method.eval()(Batch(images, labels), torch.tensor(0.5)).logits
    assert list(drawn)[2:] == ["ensemble", *(f"fused_draw{i}" for i in range(DRAWS))]
    draws = [drawn[f"fused_draw{i}"] for i in range(DRAWS)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert any("warning" in note for note in method.notes)
    assert not any("warning" in note for note in fefr().notes)
    totals = count(method, [(images, labels)], torch.device("cpu"))
    assert {"fused_draw0", "fused_draw3"} <= set(totals.read().top1_pct)
    assert "fused" not in totals.read().top1_pct


def test_random_attention_repeats_to_the_bit_from_its_state_and_moves_no_generator() -> None:
    method = fefr(attention="random").eval()
    state = {name: t.clone() for name, t in method.state_dict().items()}
    shown = batch()
    generator = torch.get_rng_state()
    first = method(shown, torch.tensor(0.5)).logits["fused_draw0"]
    assert torch.equal(torch.get_rng_state(), generator)
    assert not torch.equal(method(shown, torch.tensor(0.5)).logits["fused_draw0"], first)
    method.load_state_dict(state)
    assert torch.equal(method(shown, torch.tensor(0.5)).logits["fused_draw0"], first)
    another = make("fefr", 2, "low", SMALL, reading="released", attention="random")
    assert torch.equal(another.eval()(shown, torch.tensor(0.5)).logits["fused_draw0"], first)


def test_random_weights_are_pytorchs_first_ones() -> None:
    attention = RandomAttention(96, torch.tensor(5), 8)
    draws = [torch.cat([part.flatten() * part[0].numel() ** 0.5 for part in attention.draw()]) for _ in range(20)]
    u = torch.stack(draws)  # uniform in -1..1, once more
    assert u.abs().max() <= 1
    assert u.mean().item() == pytest.approx(0, abs=0.01)
    assert u.std().item() == pytest.approx(3**-0.5, rel=0.01)
    assert torch.corrcoef(u).fill_diagonal_(0).abs().max() < 0.1
    quarters = torch.histc(u, 4, -1, 1) / u.numel()
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.01)


def test_random_attention_is_dual_attention_with_the_drawn_weights() -> None:
    drawn, trained = RandomAttention(96, torch.tensor(5), 8), DualAttention(96, 8, 7, bias=False, norm=False)
    x = torch.randn(4, 96, 3, 3)
    found = drawn(x)
    drawn.calls.zero_()
    with torch.no_grad():
        for p, value in zip(trained.parameters(), drawn.draw(), strict=True):
            p.copy_(value)
    torch.testing.assert_close(found, trained(x))


# ---------------------------------------------------------------------------------------------------------------------
# The reading and the recipe


def resolved(*words: str) -> ResolvedRecipe:
    return resolve(load(["digits_resnet8", *words]))


def test_the_reading_sets_defaults_and_a_key_that_is_given_wins() -> None:
    for key, value in RELEASED.items():
        assert TEXT[key] != value
        assert getattr(config(), key) == value
        described = FEFRConfig.model_fields[key].description or ""
        assert f"(released: {str(value).lower() if isinstance(value, bool) else value})" in described, key
    kept = config(reduction=16, init="pytorch")
    assert (kept.reduction, kept.init, kept.scale) == (16, "pytorch", "native")
    assert FEFRConfig.model_validate({"name": "fefr"}).reading == "text"


@pytest.mark.parametrize(
    ("words", "variant"),
    [
        ([], "fefr"),
        (["method.reading=text"], "fefr"),
        (["method.reading=released"], "fefr reading=released"),
        (["method.reading=released", "method.reduction=8"], "fefr reading=released"),
        (["method.reading=released", "method.reduction=16"], "fefr reading=released reduction=16"),
        (["method.reduction=8"], "fefr reduction=8"),
        (["method.reading=released", "method.attention=random"], "fefr attention=random reading=released"),
    ],
)
def test_a_row_of_a_comparison_names_the_reading_and_not_what_follows_from_it(words: list[str], variant: str) -> None:
    assert resolved(*words).variant == variant


def test_the_resolved_recipe_has_every_key_and_runs_again_as_it_is(tmp_path: Path) -> None:
    first = resolved("method.reading=released")
    assert {key: first.recipe.method[key] for key in RELEASED} == RELEASED
    written = tmp_path / "recipe.toml"
    written.write_text(first.recipe.text(), encoding="utf-8")
    again = resolve(load([str(written)]))
    assert again.config == first.config
    assert again.variant == first.variant


@pytest.mark.parametrize("words", [[], ["method.name=fefr"]])
@pytest.mark.parametrize(("first", "then"), [("text", "released"), ("released", "text")])
def test_another_reading_of_a_recipe_that_wrote_its_defaults_out_is_another_reading(
    first: str, then: str, words: list[str], tmp_path: Path
) -> None:
    written = tmp_path / "recipe.toml"
    written.write_text(resolved(f"method.reading={first}", "method.reduction=4").recipe.text(), encoding="utf-8")
    found = resolve(load([str(written), *words, f"method.reading={then}", "method.premix=true"]))
    expected = {"name": "fefr", "reading": then, "reduction": 4, "premix": True}
    assert found.config == FEFRConfig.model_validate(expected | {"rampup": 80 / 300})
    (note,) = [note for note in found.notes if "method.reading" in note]
    assert "scale" in note
    assert "reduction" not in note
