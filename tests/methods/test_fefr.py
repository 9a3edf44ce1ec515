"""FEFR against what the paper and the public code of FFL say, term by term and switch by switch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from byhand import pairwise, resolved
from harness import no_waiting
from torch import Tensor, nn

from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe
from okdc.backbones.parts import PoolLinear
from okdc.backbones.resnet import cifar_resnet
from okdc.cohort import Backbone, Cohort
from okdc.methods.base import Batch, Step
from okdc.methods.fefr import FEFR, FeaturePath, FEFRConfig, reconstruct
from okdc.recipe.schema import Recipe
from okdc.seeds import seeded
from okdc.training.optim import build_optimizer

CIFAR = torch.Size((3, 32, 32))
SMALL = torch.Size((3, 8, 8))
MATCHES, RECONSTRUCTIONS = ("patch", "conv3x3_s2", "pool1x1"), ("skip", "cyclic", "loo", "cross", "split", "none")


def config(**keys: Any) -> FEFRConfig:
    return FEFRConfig.model_validate({"name": "fefr", **keys})


def plain(channels: Sequence[int], strides: Sequence[int], raw: Sequence[bool] | None = None) -> Backbone:
    """One conv-BN-ReLU a stage."""
    inputs, steps = (3, *channels), (1, *strides)
    stages = [
        nn.Sequential(nn.Conv2d(inputs[i], c, 3, steps[i + 1] // steps[i], 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        for i, c in enumerate(channels)
    ]
    return Backbone(stages, PoolLinear(channels[-1], 10), channels, strides, raw)


def fefr(n: int = 2, share: str = "none", images: torch.Size = SMALL, depth: int = 8, **keys: Any) -> FEFR:
    students = []
    for k in range(n):
        with seeded(0, "student", k):
            students.append(cifar_resnet(depth, 10))
    with seeded(0, "method"):
        return FEFR(Cohort(students, share), config(**keys), images, 10)


def batch(images: torch.Size = SMALL, n: int = 4) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(n, *images), torch.randint(10, (n,)))


def takes_a_step(method: FEFR, images: torch.Size) -> None:
    """Losses are finite, every trainable parameter gets a gradient, and one step of the optimiser moves every one.

    A parameter without a gradient would stop distributed training.
    """
    method.train()
    step = method(batch(images), torch.tensor(0.5))
    total = torch.stack(list(step.losses.values())).sum()
    assert torch.isfinite(total)
    optimizer = build_optimizer(method, OPTIM)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    total.backward()
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    optimizer.step()
    assert not [name for name, p in method.named_parameters() if torch.equal(p, before[name])]
    assert all(torch.isfinite(p).all() for p in method.parameters())


OPTIM = Recipe.model_validate(
    {"data": {"name": "digits"}, "cohort": {"students": ["resnet8"]}, "method": {"name": "fefr"}}
).optim


# ---------------------------------------------------------------------------------------------------------------------
# What it is made of


def auxiliary(method: FEFR) -> int:
    inside = {id(p) for p in method.cohort.parameters()}
    return sum(p.numel() for p in method.parameters() if id(p) not in inside)


def test_resnet20_pairs_carry_61402_parameters_of_scaffolding() -> None:
    """2 · (24,832 matching + 680 attention) + 10,378 for the fused classifier; the students are untouched."""
    method = fefr(2, "low", CIFAR, depth=20)
    assert auxiliary(method) == 61_402
    assert sum(p.numel() for p in method.cohort.backbone(0).parameters()) == 272_474


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("share", ["low", "none"])
def test_parameters_are_one_trunk_n_branches_and_n_paths(share: str, n: int) -> None:
    method = fefr(n, share)
    alone = cifar_resnet(8, 10)
    trunk = sum(p.numel() for stage in alone.stages[:3] for p in stage.parameters()) if share == "low" else 0
    path = sum(p.numel() for p in method.paths[0].parameters())
    fusion = sum(p.numel() for p in method.fusion.parameters())
    assert sum(p.numel() for p in method.parameters()) == trunk + n * (78_042 - trunk) + n * path + fusion
    own = [{id(p) for p in path.parameters()} for path in method.paths]
    assert len(set().union(*own)) == sum(map(len, own))


def test_students_start_differently_and_alone() -> None:
    """Equal starts and equal batches would give equal students; a student's start depends on nothing but its place."""

    def recipe(n: int, share: str) -> ResolvedRecipe:
        return resolved(
            {
                "data": {"name": "digits", "image_size": 8},
                "cohort": {"students": ["resnet8"] * n, "share": share},
                "method": {"name": "fefr"},
            }
        )

    three, words = assembly.cohort(recipe(3, "none"), SMALL, 10)
    assert "nothing" in words
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for (name, p), q in zip(three.backbone(a).named_parameters(), three.backbone(b).parameters(), strict=True):
            if p.dim() > 1:  # weights; BatchNorm starts at 1 and 0 everywhere
                assert not torch.equal(p, q), name
    two, _ = assembly.cohort(recipe(2, "low"), SMALL, 10)
    for k in range(2):
        for name, value in two.backbone(k).head.state_dict().items():
            assert torch.equal(value, three.backbone(k).head.state_dict()[name])
    for value, other in zip(
        two.backbone(1).stages[3].parameters(), three.backbone(1).stages[3].parameters(), strict=True
    ):
        assert torch.equal(value, other)


def test_a_raw_tap_is_normalised_first_and_another_is_not() -> None:
    """Pre-activation networks (WRN) hand on sums; the last map has its BN-ReLU already."""
    students = [plain((4, 8, 16), (1, 2, 4), raw=(True, True, False)), plain((4, 8, 16), (1, 2, 4))]
    method = FEFR(Cohort(students), config(), SMALL, 10)
    kinds = [[type(m[0]).__name__ for m in _matching(path) if isinstance(m, nn.Sequential)] for path in _paths(method)]
    assert kinds == [["BatchNorm2d", "BatchNorm2d"], ["PatchConv", "PatchConv"]]
    takes_a_step(method, SMALL)


def _paths(method: FEFR) -> list[FeaturePath]:
    return [path for path in method.paths if isinstance(path, FeaturePath)]


def _matching(path: FeaturePath) -> tuple[nn.Module, nn.Module]:
    """What matches f1 and f2."""
    assert path.early_fusion is not None
    return path.early_fusion.a, path.early_fusion.b


def _f_re(path: FeaturePath, maps: list[Tensor]) -> Tensor:
    return path(maps, path.shallow(maps))  # type: ignore[no-any-return]


def test_a_path_is_matching_two_sums_and_their_mean() -> None:
    """Section 3.2.1 with the literal reconstruction: ½(F1' + 2·F2' + F3), where F2' is computed once."""
    method = fefr(attention=False)
    path = _paths(method)[0].eval()
    maps = method.cohort.eval()(batch()[0])[0]
    f1, f2 = (m(own) for m, own in zip(_matching(path), maps[1:3], strict=True))
    torch.testing.assert_close(_f_re(path, maps), (f1 + 2 * f2 + maps[3]) / 2)


def test_both_sums_are_joined_in_the_order_of_their_depth() -> None:
    """What `reconstruct` calls the first half of the channels is F12; skip alone would not tell."""
    method = fefr(attention=False, reconstruct="none")
    path = _paths(method)[0].eval()
    maps = method.cohort.eval()(batch()[0])[0]
    f1, f2 = (m(own) for m, own in zip(_matching(path), maps[1:3], strict=True))
    torch.testing.assert_close(_f_re(path, maps), torch.cat([f1 + f2, f2 + maps[3]], 1))


def test_without_early_fusion_a_path_sees_the_last_map_alone() -> None:
    method = fefr(early_fusion=False, attention=False, reconstruct="none")
    maps = method.cohort(batch()[0])[0]
    assert torch.equal(_f_re(_paths(method)[0], maps), maps[-1])
    assert _paths(method)[0].early_fusion is None


def test_the_fused_classifier_sees_every_students_refined_map() -> None:
    method = fefr(3).eval()
    images, labels, *_ = batch()
    maps = method.cohort(images)
    refined = [path.attention(_f_re(path, own)) for path, own in zip(_paths(method), maps, strict=True)]
    assert torch.equal(method(Batch(images, labels), torch.tensor(0.0)).logits["fused"], method.fusion(refined))
    for k in range(3):
        refined[k] = refined[k] + 1
        assert not torch.equal(method.fusion(refined), method(Batch(images, labels), torch.tensor(0.0)).logits["fused"])
        refined[k] = refined[k] - 1


def test_a_whole_step_leaves_every_tapped_map_as_it_was() -> None:
    method = fefr(2, "low").train()
    seen: list[list[list[Tensor]]] = []
    method.cohort.register_forward_hook(lambda module, args, out: seen.append(out))  # noqa: ARG005
    images, labels, *_ = batch()
    copies = [[m.detach().clone() for m in own] for own in method.cohort(images)]
    method(Batch(images, labels), torch.tensor(0.5))
    for own, copied in zip(seen[-1], copies, strict=True):
        assert all(torch.equal(m, c) for m, c in zip(own, copied, strict=True))


def test_a_student_alone_answers_as_it_does_in_the_method() -> None:
    for share in ("low", "stem1", "none"):
        method = fefr(2, share)
        for _ in range(3):
            method(batch(n=8), torch.tensor(0.5))
        method.eval()
        images, labels, *_ = batch()
        step = method(Batch(images, labels), torch.tensor(0.5))
        for k in range(2):
            alone = cifar_resnet(8, 10).eval()
            alone.load_state_dict(method.cohort.backbone(k).state_dict(), strict=True)
            torch.testing.assert_close(alone(images), step.logits[f"student{k}"], rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Reconstruction


@pytest.mark.parametrize("groups", [2, 4, 6, 12])
def test_skip_of_two_joined_maps_is_their_mean(groups: int) -> None:
    """So the literal reading of section 3.2.2 does nothing but average, for any even number of groups."""
    a, b = torch.randn(2, 12, 3, 3), torch.randn(2, 12, 3, 3)
    assert torch.equal(reconstruct("skip", torch.cat([a, b], 1), groups), (a + b) / 2)


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("mode", RECONSTRUCTIONS)
def test_reconstruction_equals_loops_over_the_groups(mode: str, groups: int) -> None:
    f = torch.randn(2, 16, 3, 2)
    size, p = 16 // groups, groups
    G = [f[:, i * size : (i + 1) * size] for i in range(p)]
    rows = {
        "skip": [(G[i] + G[i + p // 2]) / 2 for i in range(p // 2)],
        "cyclic": [(G[i] + G[(i + 1) % p]) / 2 for i in range(p)],
        "loo": [sum((G[j] for j in range(p) if j != i), torch.zeros(())) / (p - 1) for i in range(p)],
        "cross": [(G[i] + G[p - 1 - i]) / 2 for i in range(p // 2)],
        "split": split(G),
        "none": G,
    }[mode]
    torch.testing.assert_close(reconstruct(mode, f, groups), torch.cat(rows, 1))


def split(G: list[Tensor]) -> list[Tensor]:
    """Of each group and what is passed on to it, the first half is passed on and the second goes out."""
    out, passed = [G[0]], G[0][:, :0]
    for g in G[1:-1]:
        inside = torch.cat([passed, g], 1)
        half = inside.shape[1] // 2
        passed = inside[:, :half]
        out.append(inside[:, half:])
    return [*out, passed, G[-1]]


def test_odd_groups_go_where_no_pairs_are_needed() -> None:
    f = torch.randn(1, 6, 2, 2)
    G = f.split(2, 1)
    torch.testing.assert_close(reconstruct("loo", f, 3), torch.cat([G[1] + G[2], G[0] + G[2], G[0] + G[1]], 1) / 2)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [*RECONSTRUCTIONS, "released"])
def test_maps_and_their_gradients_stay_channels_last_through_the_side_paths(
    mode: str, dtype: torch.dtype, attention: bool
) -> None:
    """One that does not makes every layer before it mix two formats: the step is slower and its values are right."""
    images = torch.Size((3, 16, 16))
    keys: dict[str, Any] = {"reading": "released"} if mode == "released" else {"reconstruct": mode}
    method = fefr(2, "low", images, **keys, attention=attention).to(memory_format=torch.channels_last).train()
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str, y: Any) -> None:
        if isinstance(y, Tensor) and y.dim() == 4 and y.shape[1] > 1:
            seen.append((name, y))
            y.register_hook(lambda gradient: seen.append((f"gradient of {name}", gradient)))

    for name, module in method.named_modules():
        module.register_forward_hook(lambda _, __, y, name=name: watch(name, y))
    x, labels, *_ = batch(images)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = method(Batch(x.contiguous(memory_format=torch.channels_last), labels), torch.tensor(0.5)).losses
    torch.stack(list(losses.values())).sum().backward()
    # Of a map that is a part of another's channels, the others lie between its pixels.
    assert not [(name, y.shape, y.stride()) for name, y in seen if y.stride(1) != 1]
    assert {name.split(".")[0] for name, _ in seen} == {
        f"{which}{part}" for which in ("", "gradient of ") for part in ("cohort", "paths", "fusion")
    }


# ---------------------------------------------------------------------------------------------------------------------
# The losses, written a second time


def softened(row: Sequence[float], T: float) -> list[float]:
    top = max(row)
    weights = [math.exp((v - top) / T) for v in row]
    return [w / sum(weights) for w in weights]


def divergence(teacher: Sequence[float], student: Sequence[float], T: float) -> float:
    total = 0.0
    for p, q in zip(softened(teacher, T), softened(student, T), strict=True):
        total += p * math.log(p / q)
    return total


def transcription(step: Step, labels: Tensor, t: float, T: float, alpha: float) -> dict[str, float]:
    """Σ_k CE(z_k) + CE(z_f) + w·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], image by image and class by class."""
    z = {name: np.asarray(v.detach(), np.float64).tolist() for name, v in step.logits.items()}
    names = sorted(name for name in z if name.startswith("student"))
    B, M = len(labels), len(z["fused"][0])
    w = math.exp(-5 * (1 - min(t, alpha) / alpha) ** 2) if alpha else 1.0
    terms = dict.fromkeys(
        [f"ce_{n}" for n in names] + ["ce_fused", "kl_ensemble_fused"] + [f"kl_fused_{n}" for n in names], 0.0
    )
    for b in range(B):
        ensemble = [sum(z[n][b][m] for n in names) / len(names) for m in range(M)]
        for n in [*names, "fused"]:
            terms[f"ce_{n}"] -= math.log(softened(z[n][b], 1.0)[int(labels[b])]) / B
        terms["kl_ensemble_fused"] += w * T**2 * divergence(ensemble, z["fused"][b], T) / B
        for n in names:
            terms[f"kl_fused_{n}"] += w * T**2 * divergence(z["fused"][b], z[n][b], T) / B
    return terms


@pytest.mark.parametrize(("T", "alpha"), [(3.0, 80 / 300), (1.0, 0.0), (4.0, 1.0)])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.9])
def test_every_term_equals_a_slow_transcription(t: float, n: int, T: float, alpha: float) -> None:
    method = fefr(n, "low", temperature=T, rampup=alpha)
    images, labels, *_ = batch(n=5)
    step = method(Batch(images, labels), torch.tensor(t))
    expected = transcription(step, labels, t, T, alpha)
    assert set(step.losses) == set(expected)
    for name, value in expected.items():
        assert step.losses[name].item() == pytest.approx(value, rel=2e-4, abs=1e-6), name


def test_a_weight_multiplies_the_divergences_and_nothing_else() -> None:
    once, half = (fefr(2, weight=weight)(batch(n=5), torch.tensor(0.2)).losses for weight in (None, 0.5))
    for name, loss in once.items():
        torch.testing.assert_close(half[name], loss * (0.5 if name.startswith("kl_") else 1.0))


def test_every_head_has_an_accuracy_column() -> None:
    step = fefr(3)(batch(), torch.tensor(0.0))
    assert list(step.logits) == ["student0", "student1", "student2", "fused", "ensemble"]
    z = [step.logits[f"student{k}"] for k in range(3)]
    torch.testing.assert_close(step.logits["ensemble"], (z[0] + z[1] + z[2]) / 3)


def test_losses_and_logits_are_float32_under_autocast_and_softmax_is_not_rounded() -> None:
    method = fefr()
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    for name, value in transcription(step, labels, 0.5, 3.0, 80 / 300).items():
        assert step.losses[name].item() == pytest.approx(value, rel=2e-4, abs=1e-6), name


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


def reached(method: FEFR, term: str) -> set[str]:
    """The names of the parameters that one loss term moves."""
    method.zero_grad(set_to_none=True)
    method(batch(), torch.tensor(1.0)).losses[term].backward()
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def names(method: FEFR, *prefixes: str) -> set[str]:
    return {name for name, _ in method.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_a_students_own_terms_reach_that_student_and_nothing_else(n: int, detach: bool) -> None:
    """The fused classifier is a detached teacher: KL(z_f ‖ z_k) trains neither it, nor the paths, nor a peer."""
    method = fefr(n, detach_features=detach)
    for k in range(n):
        own = names(method, f"cohort.students.{k}.")
        assert reached(method, f"ce_student{k}") == own
        assert reached(method, f"kl_fused_student{k}") == own


@pytest.mark.parametrize("term", ["ce_fused", "kl_ensemble_fused"])
def test_the_fused_terms_reach_the_scaffolding_and_the_students_features_but_no_students_head(term: str) -> None:
    """FFL lets the fused classifier train the features; the ensemble, a detached teacher, trains no head."""
    method = fefr(2)
    features = names(method, "cohort.students.0.stages.", "cohort.students.1.stages.")
    assert reached(method, term) == names(method, "paths.", "fusion.") | features


@pytest.mark.parametrize("term", ["ce_fused", "kl_ensemble_fused"])
def test_with_detached_features_the_fused_terms_reach_the_scaffolding_alone(term: str) -> None:
    method = fefr(2, detach_features=True)
    assert reached(method, term) == names(method, "paths.", "fusion.")


def test_a_shared_trunk_is_reached_by_every_student_and_a_branch_by_its_own() -> None:
    method = fefr(2, "low")
    trunk = names(method, *(f"cohort.students.0.stages.{i}." for i in range(3)))
    for k in range(2):
        branch = names(method, f"cohort.students.{k}.stages.3.", f"cohort.students.{k}.head.")
        assert reached(method, f"kl_fused_student{k}") == trunk | branch


def test_the_gradient_of_a_shared_trunk_is_a_sum_over_students() -> None:
    """Equal branches give n times the gradient of one: not an average, as in FFL's and ONE's code."""
    method = fefr(3, "low").eval()
    for k in (1, 2):
        method.cohort.backbone(k).load_state_dict(method.cohort.backbone(0).state_dict())
    trunk = [p for stage in method.cohort.backbone(0).stages[:3] for p in stage.parameters()]

    def gradient(*terms: str) -> list[Tensor]:
        losses = method(batch(), torch.tensor(1.0)).losses
        return list(torch.autograd.grad(torch.stack([losses[t] for t in terms]).sum(), trunk))

    for kind in ("ce_", "kl_fused_"):
        one = gradient(f"{kind}student1")
        three = gradient(*(f"{kind}student{k}" for k in range(3)))
        for a, b in zip(one, three, strict=True):
            torch.testing.assert_close(3 * a, b, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# It trains, whatever is asked of it


@pytest.mark.parametrize("size", [8, 32, 50, 100])
@pytest.mark.parametrize("match", MATCHES)
def test_it_takes_a_step_at_image_size(match: str, size: int) -> None:
    images = torch.Size((3, size, size))
    takes_a_step(fefr(images=images, match=match), images)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("share", ["low", "stem1", "none"])
def test_it_takes_a_step_with_any_number_of_students_and_any_sharing(share: str, n: int) -> None:
    takes_a_step(fefr(n, share), SMALL)


@pytest.mark.parametrize(
    ("match", "mode", "early", "attention", "detach"),
    pairwise(
        MATCHES, RECONSTRUCTIONS, *[(True, False)] * 3, valid=lambda match, _, early, *__: early or match == "patch"
    ),
)
def test_it_takes_a_step_with_every_two_of_its_switches(
    match: str, mode: str, early: bool, attention: bool, detach: bool
) -> None:
    method = fefr(
        share="low", match=match, reconstruct=mode, early_fusion=early, attention=attention, detach_features=detach
    )
    takes_a_step(method, SMALL)


@pytest.mark.parametrize(
    "keys",
    [
        {"taps": (0, 1, 2)},
        {"taps": (0, 2, -1)},
        {"groups": 2},
        {"groups": 8},
        {"groups": 3, "reconstruct": "cyclic", "early_fusion": True, "taps": (-3, -2, -1)},
        {"reduction": 2},
        {"spatial_kernel": 1},
        {"rampup": 0},
        {"rampup": 1},
        {"temperature": 1.0},
    ],
)
def test_it_takes_a_step_with_other_numbers(keys: dict[str, Any]) -> None:
    students = [plain((6, 6, 12, 24), (1, 1, 2, 4)) for _ in range(2)]
    takes_a_step(FEFR(Cohort(students), config(**keys), SMALL, 10), SMALL)


@pytest.mark.parametrize("size", [8, 32, 50])
@pytest.mark.parametrize("match", ["patch", "pool1x1"])
def test_it_takes_a_step_with_students_of_different_sizes(match: str, size: int) -> None:
    """Other channels, other last strides, another number of stages: nothing is shared, and regressors join the maps."""
    students = [
        cifar_resnet(8, 10),
        plain((8, 12, 20), (1, 2, 2)),
        plain((4, 8, 16, 16, 32), (1, 1, 2, 4, 8)),
    ]
    images = torch.Size((3, size, size))
    method = FEFR(Cohort(students), config(match=match), images, 10)
    assert [path.size[0] for path in method.paths if isinstance(path, FeaturePath)] == [64, 20, 32]
    assert method.fusion.fc.in_features == 20
    takes_a_step(method, images)


@pytest.mark.parametrize("size", [(3, 12, 20), (3, 9, 8)])
def test_it_takes_a_step_on_images_that_are_not_square(size: tuple[int, int, int]) -> None:
    takes_a_step(fefr(images=torch.Size(size)), torch.Size(size))


# ---------------------------------------------------------------------------------------------------------------------
# What it refuses


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"taps": (-2, -3, -1)}, "from shallow to deep"),
        ({"taps": (1, 1, 2)}, "from shallow to deep"),
        ({"taps": (1, 2, 4)}, "outside the 4 maps"),
        ({"taps": (-5, 1, 2)}, "outside the 4 maps"),
        ({"groups": 6}, "128 fused channels do not divide into 6 groups"),
        ({"groups": 128, "early_fusion": False}, "64 fused channels do not divide into 128 groups"),
    ],
)
def test_a_setting_that_does_not_fit_the_students_is_refused_with_the_reason(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fefr(**keys)


@pytest.mark.parametrize(
    ("keys", "would"),
    [
        ({"groups": 6}, "method.groups=2, 4, 8, 16, 32, 64, 128 would"),
        ({"groups": 7, "reconstruct": "cyclic"}, "method.groups=2, 4, 8, 16, 32, 64, 128 would"),
        ({"groups": 4, "early_fusion": False, "channels": 30}, "method.groups=2, 6, 10, 30 would"),
        ({"groups": 4, "early_fusion": False, "channels": 30, "reconstruct": "loo"}, "=2, 3, 5, 6, 10, 15, 30 would"),
        ({"groups": 14, "early_fusion": False, "channels": 960}, "=4, 6, 8, 10, 12, 16, 20, 24 would"),
        ({"groups": 2, "early_fusion": False, "channels": 7}, "method.reconstruct=none"),
    ],
)
def test_channels_that_do_not_divide_name_the_key_and_what_would_divide(keys: dict[str, Any], would: str) -> None:
    channels, joined = keys.pop("channels", 64), 2 if keys.get("early_fusion", True) else 1
    students = [plain((4, 8, channels), (1, 2, 4)) for _ in range(2)]
    with pytest.raises(ValueError, match=f"{channels * joined} fused channels do not divide") as caught:
        FEFR(Cohort(students), config(**keys), SMALL, 10)
    assert str(caught.value).startswith(f"method.groups={keys['groups']}: ")
    assert would in str(caught.value)


def test_early_fusion_of_fewer_than_three_maps_is_refused_with_the_way_out() -> None:
    students = [plain((4, 8), (1, 2)) for _ in range(2)]
    with pytest.raises(ValueError, match="early_fusion=false"):
        FEFR(Cohort(students), config(), SMALL, 10)
    takes_a_step(FEFR(Cohort(students), config(early_fusion=False), SMALL, 10), SMALL)


@pytest.mark.parametrize(
    "keys",
    [
        {"spatial_kernel": 4},
        {"groups": 3},
        {"groups": 5, "reconstruct": "cross"},
        {"groups": 1},
        {"temperature": 0.0},
        {"temperature": math.inf},
        {"rampup": 1.5},
        {"rampup": -0.1},
        {"match": "conv"},
        {"match": "pool1x1", "early_fusion": False},
        {"reduction": 8, "attention": False},
        {"share_attention": True, "attention": False},
        {"groups": 2, "reconstruct": "none"},
        {"scale": "native", "early_fusion": False},
        {"taps": (1, 2)},
        {"attention": "yes"},
        {"in_path": True},
    ],
)
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        config(**keys)


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU


@pytest.mark.gpu
def test_steps_on_a_gpu_never_wait_for_it() -> None:
    method = fefr(2, "low").cuda()
    optimizer = build_optimizer(method, OPTIM)
    images, labels = (t.cuda() for t in batch()[:2])
    progress = torch.zeros((), device="cuda")

    def step() -> Tensor:
        progress.fill_(0.5)
        with torch.autocast("cuda", torch.bfloat16):
            losses = method(Batch(images, labels), progress).losses
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return total

    step()  # libraries load and allocate here
    with no_waiting():
        for _ in range(3):
            total = step()
    assert math.isfinite(total.item())
