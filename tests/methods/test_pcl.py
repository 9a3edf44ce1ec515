"""PCL against its losses by loops; the ensemble's features, the mean teachers' weights, statistics and start."""

from __future__ import annotations

import copy
from typing import Any

import harness
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
    batch,
    cross_entropy,
    divergence,
    hold,
    linear,
    make,
    names,
    reached,
    spread,
    weight,
)
from torch import Tensor

from okdc.methods.base import Batch
from okdc.methods.pcl import PCL, PCLConfig
from okdc.training.device import Settings
from okdc.training.step import TrainStep

NS = pytest.mark.parametrize("n", [2, 3, 4])
PLAIN = Settings("cpu", "float32", "contiguous", 1)


def pcl(n: int = 3, share: str = "low", **keys: Any) -> PCL:
    method = make("pcl", n, share, **keys)
    assert isinstance(method, PCL)
    return method


def views_of(count: int, images: int = 4) -> Batch:
    """A batch with so many views of each image, all different."""
    first, labels, *_ = batch(n=images)
    generator = torch.Generator().manual_seed(5)
    more = (first + 0.5 * torch.randn(first.shape, generator=generator) for _ in range(count - 1))
    return Batch(first, labels, views=tuple(more))


def transcription(z: Tensor, z_e: Array, z_mean: Tensor, labels: Tensor, t: float, T: float, alpha: float) -> Any:
    n, w = len(z), weight(t, alpha)
    terms = {"ce_fused": cross_entropy(z_e, labels)}
    for k in range(n):
        terms[f"ce_student{k}"] = cross_entropy(z[k], labels)
        terms[f"kl_fused_student{k}"] = w * divergence(z_e, z[k], T)
        total = 0.0
        for j in range(n):
            if j != k:
                total += divergence(z_mean[j], z[k], T)
        terms[f"kl_means_student{k}"] = w * total / (n - 1)
    return terms


@NS
@pytest.mark.parametrize("t", POSITIONS)
@pytest.mark.parametrize(("T", "alpha"), [(3.0, ALPHA), (1.0, 0.0)])
def test_every_term_equals_a_slow_transcription(
    T: float, alpha: float, t: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = pcl(n, temperature=T, rampup=alpha).eval()
    images, labels, *_ = batch(n=5)
    g = np.concatenate([array(own[-1]).mean((2, 3)) for own in method.cohort(images)], 1)
    z_e, z, z_mean = linear(g, method.fc), spread(n), spread(n, seed=1)
    hold(monkeypatch, method, z)
    monkeypatch.setattr(method.mean, "logits", lambda _: list(z_mean.unbind()))
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(step, transcription(z, z_e, z_mean, labels, t, T, alpha))
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), *(f"mean{k}" for k in range(n)), "fused"]
    assert array(step.logits["fused"]) == pytest.approx(z_e, rel=1e-4, abs=1e-5)
    assert torch.equal(step.logits["mean1"], z_mean[1])


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


@NS
def test_the_ensemble_learns_from_labels_alone_and_teaches_without_being_taught(n: int) -> None:
    method = pcl(n, "none")
    own = [names(method, f"cohort.students.{k}.") for k in range(n)]
    bodies = {name for name in set().union(*own) if ".head." not in name}
    assert reached(method, "ce_fused") == names(method, "fc.") | bodies
    for k in range(n):
        assert reached(method, f"ce_student{k}") == own[k]
        assert reached(method, f"kl_fused_student{k}") == own[k]


def test_the_means_teach_and_learn_nothing() -> None:
    method = moved(pcl(3, "none"))
    for k in range(3):
        assert reached(method, f"kl_means_student{k}") == names(method, f"cohort.students.{k}.")
    assert not any(p.requires_grad for p in method.mean.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# The mean teachers


def moved(method: PCL) -> PCL:
    """Its peers have left their mean teachers."""
    with torch.no_grad():
        for p in method.cohort.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return method


@pytest.mark.parametrize("decay", [0.5, 0.999])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("share", ["low", "none"])
def test_a_mean_teacher_is_the_average_by_hand_of_its_peers_parameters(
    share: str, memory_format: str, decay: float
) -> None:
    words = ("method.name=pcl", f"method.decay={decay}", f"cohort.share={share}")
    job = harness.built(harness.recipe(*words))
    method = job.method.train()
    assert isinstance(method, PCL)
    step = TrainStep(method, job.recipe.optim, Settings("cpu", "float32", memory_format, 1))
    expected = {name: p.detach().double() for name, p in method.cohort.named_parameters()}
    for t in range(4):
        step(batch(n=16), t / 4)
        d = min(1 - 1 / (t + 1), decay)
        for name, p in method.cohort.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * p.detach().double()
        for name, p in method.mean.named_parameters():
            torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
            assert p.stride() == method.cohort.get_parameter(name).stride()
        if t == 0:
            assert all(map(torch.equal, method.mean.parameters(), method.cohort.parameters())), "d = 0"
    assert any(not torch.equal(p, q) for p, q in zip(method.mean.parameters(), method.cohort.parameters(), strict=True))
    assert method.steps.item() == 4


def test_its_batch_statistics_are_those_of_its_own_passes() -> None:
    """In training it normalises by its batch; what it then has for evaluation comes from its own maps."""
    method = moved(pcl(2, "none")).train()
    by_itself = copy.deepcopy(method.mean).train()
    images, labels, *_ = batch(n=8)
    step = method(Batch(images, labels), torch.tensor(1.0))
    expected = by_itself.logits(by_itself(images))
    assert all(torch.equal(step.logits[f"mean{k}"], z) for k, z in enumerate(expected))
    statistics = dict(by_itself.named_buffers())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in method.mean.named_buffers())
    name = "students.1.stages.2.0.bn1.running_mean"
    assert not torch.equal(method.mean.get_buffer(name), method.cohort.get_buffer(name))
    assert all(m.training for m in method.mean.modules())
    method.eval()
    assert not any(m.training for m in method.mean.modules())


def test_copies_of_branches_of_one_trunk_share_a_trunk() -> None:
    method = pcl(3, "low")
    first, *others = method.mean.backbones()
    assert all(other.stages[0] is first.stages[0] for other in others)
    assert first.stages[0] is not method.cohort.backbone(0).stages[0]
    assert first.stages[-1] is not others[0].stages[-1]


def test_no_mean_teacher_is_averaged_again_or_trained() -> None:
    job = harness.built(harness.recipe("method.name=pcl", "optim.ema=0.9"))
    step = TrainStep(job.method, job.recipe.optim, PLAIN)
    assert step.average is not None
    averaged = step.average.state()["values"]
    assert averaged
    assert not [name for name in averaged if name.startswith("mean.")]
    assert {id(p) for p in step.parameters}.isdisjoint(id(p) for p in job.method.get_submodule("mean").parameters())


@pytest.mark.parametrize("share", ["low", "none"])
def test_a_mean_teacher_starts_as_a_peer_whose_head_was_given_back_after_the_method_was_built(
    share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("method.name=pcl", f"cohort.share={share}")
    job = harness.begun_elsewhere(monkeypatch, "abcdefghij", ("ab", "ab"), *words)
    method = job.method
    assert isinstance(method, PCL)
    assert [start.head for start in job.starts if start] == ["new", "new"]
    expected = method.cohort.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in method.mean.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# Views


def test_each_peer_and_its_mean_teacher_see_a_view_of_their_own() -> None:
    method = moved(pcl(3, "none", views="own")).eval()
    assert method.views == 2
    several = views_of(3)
    logits = method(several, torch.tensor(0.5)).logits
    for k in range(3):
        for head, cohort in ((f"student{k}", method.cohort), (f"mean{k}", method.mean)):
            assert torch.equal(logits[head], cohort.backbone(k)(several.view(k)))
    assert not torch.equal(logits["student1"], method.cohort.backbone(1)(several.images))


def test_by_default_all_see_one_view() -> None:
    assert pcl(3).views == 0


# ---------------------------------------------------------------------------------------------------------------------
# What it is made of


@pytest.mark.parametrize("share", ["low", "stem1", "none"])
def test_its_scaffolding_is_one_linear_layer_and_the_means_are_no_part_of_the_cohort(share: str) -> None:
    method = pcl(3, share)
    assert sum(p.numel() for p in method.fc.parameters()) == 3 * 64 * 10 + 10
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert trained == names(method, "cohort.", "fc.")


def test_peers_of_other_widths_are_taken_without_a_trunk() -> None:
    method = make("pcl", ["resnet8", "wrn16_2"])
    assert method.get_submodule("fc").get_parameter("weight").shape == (10, 64 + 128)


@pytest.mark.parametrize("name", ["weights:weight_norm_by_hook", "weights:tied", "attention:gru", "modes:dropout2d"])
def test_foreign_peers_have_mean_teachers_of_their_own(name: str) -> None:
    """A computed weight or a traced module is copied with what it is computed from."""
    method = make("pcl", [f"networks.{name}"] * 2, images=CIFAR).train()
    assert isinstance(method, PCL)
    shared = {id(t) for t in (*method.mean.parameters(), *method.mean.buffers())}
    assert shared.isdisjoint(id(t) for t in (*method.cohort.parameters(), *method.cohort.buffers()))
    moved(method)
    step = method(batch(CIFAR), torch.tensor(0.5))
    torch.stack(list(step.losses.values())).sum().backward()
    with torch.no_grad():
        method.after_step()
    method.eval()
    logits = method(batch(CIFAR), torch.tensor(0.5)).logits
    for k in range(2):
        torch.testing.assert_close(logits[f"mean{k}"], method.mean.backbone(k)(batch(CIFAR).images))
        for p, q in zip(method.mean.backbone(k).parameters(), method.cohort.backbone(k).parameters(), strict=True):
            assert torch.equal(p, q), "after the first step"


@pytest.mark.parametrize("keys", [{"decay": 1.0}, {"decay": -0.1}, {"views": "two"}, {"temperature": 0.0}])
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        PCLConfig.model_validate({"name": "pcl", **keys})
