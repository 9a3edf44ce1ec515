"""MFEF against its equations: extraction (4), attention (5-8), fusion, losses (9-11), and the cases of its table 5."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from byhand import (
    ALPHA,
    CIFAR,
    POSITIONS,
    Array,
    agrees,
    array,
    attended,
    batch,
    cross_entropy,
    divergence,
    fused,
    hold,
    make,
    mutual,
    names,
    pairwise,
    reached,
    refused,
    split_hierarchically,
    spread,
    weight,
)
from torch import Tensor, nn

from okdc import backbones
from okdc.methods.base import Batch
from okdc.methods.mfef import MFEF, MFEFConfig

NS = pytest.mark.parametrize("n", [2, 3, 4])
SWITCHES = ("msfe", "attention", "distill", "in_path", "detach_features")
CASES: dict[str, dict[str, Any]] = {
    "A": {"msfe": False, "attention": False, "distill": False},
    "B": {"attention": False, "distill": False, "in_path": True},
    "C": {"msfe": False, "attention": False},
    "D": {"attention": False},
    "E": {},
}


def mfef(n: int = 2, share: str = "low", **keys: Any) -> MFEF:
    method = make("mfef", n, share, **keys)
    assert isinstance(method, MFEF)
    return method


def config(**keys: Any) -> MFEFConfig:
    return MFEFConfig.model_validate({"name": "mfef", **keys})


def refined(method: MFEF, maps: list[list[Tensor]], msfe: bool, attention: bool, groups: int) -> list[Array]:
    found = []
    for path, own in zip(method.paths, maps, strict=True):
        assert isinstance(path, nn.Sequential)
        x = array(own[-1])
        if msfe:
            convs = path[0].get_submodule("convs")
            assert isinstance(convs, nn.ModuleList)
            x = split_hierarchically(x, list(convs), groups)
        if attention:
            x = attended(x, path[-1])
        found.append(x)
    return found


@pytest.mark.parametrize(("msfe", "attention"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("n", "groups"), [(2, 4), (3, 4), (2, 3), (2, 2)])
def test_the_fused_classifier_equals_a_slow_transcription(
    groups: int, n: int, attention: bool, msfe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"msfe": msfe, "attention": attention, "groups": groups}
    method = mfef(n, **keys)
    images, labels, *_ = batch(n=5)
    for _ in range(3):
        method(Batch(images + 0.2, labels), torch.tensor(0.0))  # batch statistics leave 0 and 1
    method.eval()
    z_f = torch.from_numpy(fused(refined(method, method.cohort(images), msfe, attention, groups), method.fusion))
    z = spread(n)
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(0.1))
    torch.testing.assert_close(step.logits["fused"].double(), z_f, rtol=1e-4, atol=1e-5)
    agrees(step, mutual(z, z_f, labels, 0.1, 3.0, ALPHA))


SCALES = ((3.0, ALPHA), (1.0, 0.0), (4.0, 1.0))


@pytest.mark.parametrize(
    ("T", "alpha", "in_path", "t", "n"),
    [
        (*scale, *rest)
        for scale, *rest in pairwise([(3.0, ALPHA), (1.0, 0.0), (4.0, 1.0)], [False, True], POSITIONS, [2, 3])
    ],
)
def test_every_term_equals_a_slow_transcription(
    T: float, alpha: float, in_path: bool, t: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = mfef(n, in_path=in_path, temperature=T, rampup=alpha).eval(), spread(n)
    hold(monkeypatch, method, z)
    images, labels, *_ = batch(n=5)
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(step, mutual(z, step.logits["fused"], labels, t, T, alpha))
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "fused", "ensemble"]
    assert array(step.logits["ensemble"]) == pytest.approx(sum(array(z_k) for z_k in z) / n, rel=1e-5)


@NS
@pytest.mark.parametrize("t", POSITIONS)
def test_case_c_is_distillation_of_the_ensembles_logits(t: float, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 5 prints no fused result for it: Σ CE(z_k) + w·T²·Σ KL(z_a ‖ z_k)."""
    method, z = mfef(n, **CASES["C"]).eval(), spread(n)
    hold(monkeypatch, method, z)
    images, labels, *_ = batch(n=5)
    z_a = sum((array(z_k) for z_k in z), np.zeros((5, 10))) / n
    expected = {f"ce_student{k}": cross_entropy(z[k], labels) for k in range(n)}
    expected |= {f"kl_ensemble_student{k}": weight(t, ALPHA) * divergence(z_a, z[k], 3.0) for k in range(n)}
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(step, expected)
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "ensemble"]
    torch.testing.assert_close(step.logits["ensemble"].double(), torch.from_numpy(z_a), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["A", "B"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_without_distillation_every_student_learns_from_the_labels_alone(
    n: int, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = mfef(n, "none", **CASES[case]), spread(n)
    inside = {id(p) for p in method.cohort.parameters()}
    assert {id(p) for p in method.parameters()} == inside
    hold(monkeypatch, method, z)
    images, labels, *_ = batch(n=5)
    step = method(Batch(images, labels), torch.tensor(0.5))
    agrees(step, {f"ce_student{k}": cross_entropy(z[k], labels) for k in range(n)})
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), *(["ensemble"] if n > 1 else [])]


# ---------------------------------------------------------------------------------------------------------------------
# What it is made of


@pytest.mark.parametrize(
    ("keys", "each", "fusion"),
    [
        ({}, 14_680 + 680, 10_378),
        ({"attention": False}, 14_680, 10_378),
        ({"msfe": False}, 680, 10_378),
        ({"in_path": True}, 0, 10_378),
        (CASES["C"], 0, 0),
    ],
)
def test_resnet20_pairs_carry_two_paths_and_one_fused_classifier(keys: dict[str, Any], each: int, fusion: int) -> None:
    method = make("mfef", ["resnet20"] * 2, "low", CIFAR, **keys)
    inside = {id(p) for p in method.cohort.parameters()}
    assert sum(p.numel() for p in method.parameters() if id(p) not in inside) == 2 * each + fusion


@pytest.mark.parametrize(
    ("keys", "network"),
    [
        ({}, "resnet8"),
        ({"in_path": True}, "resnet8+msfe"),
        ({"in_path": True, "attention": False}, "resnet8+msfe-da"),
        (CASES["B"], "resnet8+msfe-da"),
        ({"in_path": True, "distill": False}, "resnet8+msfe"),
    ],
)
def test_what_is_kept_is_the_plain_network_unless_extraction_is_in_its_path(keys: dict[str, Any], network: str) -> None:
    method = mfef(**keys)
    for student in method.cohort.backbones():
        assert student.architecture == network
        assert list(student.state_dict()) == list(backbones.build(network, 10, torch.Size((3, 8, 8))).state_dict())


def test_in_its_path_the_extraction_decides_what_the_student_says() -> None:
    """Beside it, it does not: a student's logits are its plain backbone's."""
    images, labels, *_ = batch()
    for in_path in (False, True):
        method = mfef(2, "none", in_path=in_path).eval()
        before = method(Batch(images, labels), torch.tensor(0.0)).logits
        for name, p in method.named_parameters():
            if "convs" in name:
                nn.init.zeros_(p)
        after = method(Batch(images, labels), torch.tensor(0.0)).logits
        assert torch.equal(before["student0"], after["student0"]) is not in_path
        assert not torch.equal(before["fused"], after["fused"])


@pytest.mark.parametrize("share", ["low", "none"])
def test_in_its_path_the_extraction_is_each_students_own(share: str) -> None:
    method = mfef(3, share, in_path=True)
    own = [{id(p) for p in student.stages[-1].parameters()} for student in method.cohort.backbones()]
    assert len(set().union(*own)) == sum(map(len, own))


def test_students_of_other_widths_each_have_a_path_of_their_own_width() -> None:
    method = make("mfef", ["resnet8", "wrn16_2"], "none", CIFAR)
    assert isinstance(method, MFEF)
    assert "64×8×8 + 128×8×8" in method.notes[0]
    assert method(batch(CIFAR), torch.tensor(0.5)).logits["fused"].shape == (4, 10)


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


@NS
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("in_path", [False, True])
def test_a_students_own_terms_reach_that_student_and_nothing_else(in_path: bool, detach: bool, n: int) -> None:
    method = mfef(n, "none", in_path=in_path, detach_features=detach)
    for k in range(n):
        own = names(method, f"cohort.students.{k}.")
        assert reached(method, f"ce_student{k}") == own
        assert reached(method, f"kl_fused_student{k}") == own


@pytest.mark.parametrize("term", ["ce_fused", "kl_ensemble_fused"])
@pytest.mark.parametrize("in_path", [False, True])
def test_the_fused_terms_reach_the_scaffolding_and_unless_detached_the_features(in_path: bool, term: str) -> None:
    method = mfef(2, "none", in_path=in_path)
    features = names(method, "cohort.students.0.stages.", "cohort.students.1.stages.")
    assert reached(method, term) == names(method, "paths.", "fusion.") | features
    method = mfef(2, "none", in_path=in_path, detach_features=True)
    assert reached(method, term) == names(method, "paths.", "fusion.")


@NS
def test_in_case_c_the_ensemble_is_a_detached_teacher(n: int) -> None:
    method = mfef(n, "none", **CASES["C"])
    for k in range(n):
        assert reached(method, f"kl_ensemble_student{k}") == names(method, f"cohort.students.{k}.")


# ---------------------------------------------------------------------------------------------------------------------
# What it refuses


def allowed(msfe: bool, attention: bool, distill: bool, in_path: bool) -> bool:
    """In the path of the student there has to be an extraction; beside it somebody has to be taught by it."""
    return msfe if in_path else distill or not (msfe or attention)


@pytest.mark.parametrize("switches", list(product([False, True], repeat=5)))
def test_every_combination_of_switches_means_something_or_is_refused_and_why(
    switches: tuple[bool, ...],
) -> None:
    keys = dict(zip(SWITCHES, switches, strict=True))
    fuses = keys["distill"] and (keys["msfe"] or keys["attention"])
    if allowed(*switches[:4]) and (fuses or not keys["detach_features"]):
        config(**keys)
        return
    reason = "needs msfe=true" if keys["in_path"] else "distill=false leaves no fused"
    if allowed(*switches[:4]):
        reason = "detach_features .*: here is none"
    with pytest.raises(ValueError, match=reason):
        config(**keys)


@pytest.mark.parametrize("key", ["groups", "reduction", "spatial_kernel"])
def test_in_its_path_the_extraction_has_the_numbers_that_its_name_stands_for(key: str) -> None:
    with pytest.raises(ValueError, match="groups=4, reduction=16, spatial_kernel=7"):
        config(in_path=True, **{key: 3})
    assert getattr(config(**{key: 3}), key) == 3


@pytest.mark.parametrize(
    "keys", [{"spatial_kernel": 4}, {"groups": 1}, {"temperature": 0.0}, {"rampup": 1.5}, {"reconstruct": "skip"}]
)
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        config(**keys)


@pytest.mark.parametrize("case", ["C", "D", "E"])
def test_one_student_has_nobody_to_learn_from(case: str) -> None:
    with refused("at least 2 students"):
        mfef(1, "none", **CASES[case])


def test_more_groups_than_channels_are_refused() -> None:
    with refused(r"method\.groups=65: 64 channels do not divide into 65 groups; method\.groups from 2 to 64 "):
        mfef(groups=65)
