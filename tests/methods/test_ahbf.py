"""AHBF-OKD against its public code's formula; fusion modules, gates and losses by loops in float64."""

from __future__ import annotations

from contextlib import chdir
from typing import Any

import harness
import numpy as np
import pytest
import torch
from byhand import (
    ALPHA,
    POSITIONS,
    SMALL,
    Array,
    K,
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
    softened,
    spread,
    table,
    weight,
)
from harness import start
from safetensors.torch import load_file
from torch import Tensor

from okdc import backbones
from okdc.assembly.resolve import resolve
from okdc.methods.ahbf import AHBF, AHBFConfig
from okdc.methods.base import Batch
from okdc.progress import WARNING
from okdc.recipe.draft import load
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import selection as keep

MS = pytest.mark.parametrize("m", [2, 3, 4])
RAMP = 240 / 300


def ahbf(m: int = 3, share: str = "low", **keys: Any) -> AHBF:
    method = make("ahbf", m, share, **keys)
    assert isinstance(method, AHBF)
    return method


def fused(method: AHBF, maps: list[list[Tensor]], z: Tensor) -> list[Array]:
    """The logits e_0 .. e_{m-2}: each module joins the result so far with the next branch."""
    U, u = array(maps[0][-1]), array(z[0])
    found: list[Array] = []
    for j, fusion in enumerate(method.fusions):
        conv = fusion.get_submodule("conv")
        joined = np.concatenate([U, array(maps[j + 1][-1])], 1)
        U = normalised(convolved(joined, array(conv.weight)), fusion.get_submodule("bn"))  # type: ignore[arg-type]
        pooled = U.mean((2, 3))
        scores = normalised(linear(pooled, fusion.get_submodule("gate.linear")), fusion.get_submodule("gate.bn"))
        e = np.zeros((len(u), K))
        for image in range(len(e)):
            a = softened(np.maximum(scores[image], 0))
            for c in range(K):
                e[image, c] = a[0] * u[image, c] + a[1] * float(z[j + 1, image, c])
        found.append(e)
        u = e
    return found


def transcription(
    z: Tensor,
    e: list[Array],
    labels: Tensor,
    t: float,
    T: float,
    alpha: float,
    k: float,
    l1: float,
    l2: float,
    teachers: tuple[Tensor, list[Array]] | None = None,
) -> dict[str, float]:
    """The code's loops: e[j - 1] is what module j is given in place of branch 0. `teachers`: z and e that are held."""
    m, w = len(z), 0.5 * k * weight(t, alpha)
    z_t, e_t = teachers or (z, e)
    heads = [*(f"fused{j}" for j in range(m - 2)), "fused"]
    terms = {f"ce_student{b}": cross_entropy(z[b], labels) for b in range(m)}
    for j in range(m - 1):
        terms[f"ce_{heads[j]}"] = cross_entropy(e[j], labels)
        if j == 0:
            terms["kl_student1_student0"] = w * l2 * divergence(z_t[1], z[0], T)
            terms[f"kl_{heads[0]}_student0"] = w * l1 * divergence(e_t[0], z[0], T)
            terms[f"kl_{heads[0]}_student1"] = w * l1 * divergence(e_t[0], z[1], T)
        else:
            terms[f"kl_student{j + 1}_{heads[j - 1]}"] = w * l2 * divergence(z_t[j + 1], e[j - 1], T)
            terms[f"kl_{heads[j]}_{heads[j - 1]}"] = w * l1 * divergence(e_t[j], e[j - 1], T)
            terms[f"kl_{heads[j]}_student{j + 1}"] = w * l1 * divergence(e_t[j], z[j + 1], T)
    return terms


def used(method: AHBF, images: Tensor, labels: Tensor) -> AHBF:
    """With batch statistics that have left 0 and 1, and gates that tell images apart."""
    for _ in range(2):
        method(Batch(images + 0.3, labels), torch.tensor(0.0))
    for fusion in method.fusions:
        bn = fusion.get_submodule("gate.bn")
        torch.nn.init.uniform_(bn.weight, 0.5, 1.5)  # type: ignore[arg-type]
        torch.nn.init.uniform_(bn.bias, -0.5, 0.5)  # type: ignore[arg-type]
    return method


@MS
@pytest.mark.parametrize("t", [*POSITIONS, 0.9])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("keys", "numbers"),
    [
        ({}, (3.0, RAMP, 1.5, 1.0, 1.0)),
        (
            {"temperature": 2.0, "rampup": 0.0, "weight": 0.7, "fused_weight": 2.0, "branch_weight": 4.0},
            (2.0, 0.0, 0.7, 2.0, 4.0),
        ),
    ],
)
def test_every_term_equals_a_slow_transcription(
    keys: dict[str, Any], numbers: tuple[float, ...], training: bool, t: float, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, *_ = batch(n=5)
    method, z = used(ahbf(m, **keys), images, labels), spread(m)
    method.train(training)
    e = fused(method, method.cohort(images), z)
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(step, transcription(z, e, labels, t, *numbers))  # type: ignore[arg-type]
    heads = [*(f"fused{j}" for j in range(m - 2)), "fused"]
    assert list(step.logits) == [*(f"student{b}" for b in range(m)), *heads]
    for head, e_j in zip(heads, e, strict=True):
        torch.testing.assert_close(step.logits[head].double(), torch.from_numpy(e_j), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


@pytest.mark.parametrize("detach", [False, True])
def test_a_teacher_learns_from_teaching_unless_it_is_detached(detach: bool) -> None:
    method = ahbf(3, "low", detach_targets=detach)
    branch = [names(method, f"cohort.students.{b}.stages.3.", f"cohort.students.{b}.head.") for b in range(3)]
    fusion = [names(method, f"fusions.{j}.") for j in range(2)]
    # whatever a bias adds to a batch, BatchNorm takes away: its gradient is 0 but for rounding
    fusion = [{name for name in of_one if not name.endswith("linear.bias")} for of_one in fusion]
    trunk = names(method, *(f"cohort.students.0.stages.{i}." for i in range(3)))
    first = reached(method, "kl_student1_student0")
    assert first == trunk | branch[0] | (set() if detach else branch[1])
    ensemble = reached(method, "kl_fused0_student0")
    taught_by = branch[1] | fusion[0]
    assert branch[0] <= ensemble
    assert taught_by <= ensemble if not detach else not taught_by & ensemble
    deeper = reached(method, "kl_student2_fused0")  # the fused result is the student: its module learns either way
    assert branch[0] | branch[1] | fusion[0] <= deeper
    assert branch[2] <= deeper if not detach else not branch[2] & deeper
    assert not deeper & fusion[1]


@MS
@pytest.mark.parametrize("detach", [False, True])
def test_gradients_are_those_of_the_formula(detach: bool, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With respect to the logits, by finite differences of the transcription, in which detached teachers are held."""
    images, labels, *_ = batch(n=2)
    method = used(ahbf(m, detach_targets=detach), images, labels).eval()
    maps, z = method.cohort(images), spread(m, images=2).requires_grad_()
    hold(monkeypatch, method, z)
    (gradient,) = torch.autograd.grad(
        torch.stack(list(method(Batch(images, labels), torch.tensor(0.5)).losses.values())).sum(), z
    )
    held = (z.detach(), fused(method, maps, z.detach()))
    generator = torch.Generator().manual_seed(2)
    for b in range(m):
        direction = torch.zeros(m, 2, 10, dtype=torch.float64)
        direction[b] = torch.randn(2, 10, generator=generator, dtype=torch.float64)

        def total(s: float, along: Tensor = direction) -> float:
            moved = z.detach().double() + s * 1e-4 * along
            e = fused(method, maps, moved)
            return sum(transcription(moved, e, labels, 0.5, 3.0, RAMP, 1.5, 1, 1, held if detach else None).values())

        found = (gradient.double() * direction).sum().item()
        assert found == pytest.approx((total(1) - total(-1)) / 2e-4, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Its branches


@pytest.mark.parametrize(
    ("students", "keys", "trained"),
    [
        (["resnet8"] * 2, {}, ("resnet8", "resnet8+2")),
        (["resnet8"] * 4, {"aux": 4}, ("resnet8", "resnet8+4", "resnet8+8", "resnet8+12")),
        (["resnet8+1"] * 3, {"aux": 1}, ("resnet8+1", "resnet8+2", "resnet8+3")),
        (["wrn16_1+msfe"] * 2, {}, ("wrn16_1+msfe", "wrn16_1+2+msfe")),
        (["resnet8"] * 3, {"aux": 0}, ("resnet8", "resnet8", "resnet8")),
        (["densenet40_12"] * 2, {"aux": 0}, ("densenet40_12", "densenet40_12")),
        (["resnet8", "resnet8+3"], {}, ("resnet8", "resnet8+3")),  # whose names say their depths themselves
        (["resnet8", "resnet8", "resnet8+1"], {"aux": 4}, ("resnet8", "resnet8", "resnet8+1")),
    ],
)
def test_equal_students_become_branches_of_growing_depth(
    students: list[str], keys: dict[str, Any], trained: tuple[str, ...]
) -> None:
    recipe = table("ahbf", students, "low", **keys)
    assert recipe.recipe.cohort.students == tuple(students), "the recipe keeps the names that it has"
    assert recipe.architectures == trained
    method = make("ahbf", students, "low", **keys)
    assert tuple(student.architecture for student in method.cohort.backbones()) == trained
    assert method.cohort.shared == 3
    assert method.leader == 0
    assert [student.stages[0] is method.cohort.backbone(0).stages[0] for student in method.cohort.backbones()] == [
        True
    ] * len(trained)


@pytest.mark.parametrize("share", ["low", "stem1"])
@pytest.mark.parametrize("others", [["resnet8", "resnet14"], ["resnet8", "wrn16_1"], ["resnet8", "resnet8+msfe"]])
def test_students_of_several_trunks_are_refused_with_the_way_out(others: list[str], share: str) -> None:
    with refused(rf"cohort\.share='{share}' needs students of one architecture.*method\.aux"):
        make("ahbf", others, share)


def test_without_a_trunk_there_are_no_branches() -> None:
    with refused(r"share='none'.*cohort\.share=low.*dml, kdcl, ffl, mfef, fefr"):
        ahbf(2, "none")


def test_the_deepest_first_is_refused_with_the_order_that_is_meant() -> None:
    with refused(r"cohort\.students=\[resnet8,resnet8\+1,resnet8\+2\]"):
        make("ahbf", ["resnet8+2", "resnet8", "resnet8+1"], "low")


@pytest.mark.parametrize("name", ["densenet40_12", "mobilenetv2", "torchvision:resnet18"])
def test_networks_that_cannot_be_deepened_are_refused_with_the_key_that_takes_them(name: str) -> None:
    with refused(r"method\.aux=2.*" + name):
        make("ahbf", [name, name], "low", torch.Size((3, 32, 32)))
    method = make("ahbf", [name, name], "low", torch.Size((3, 32, 32)), aux=0)
    losses = method(batch(torch.Size((3, 32, 32))), torch.tensor(0.5)).losses
    torch.stack(list(losses.values())).sum().backward()
    assert [key for key, p in method.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("share", "words"), [("low", "all stages but the last"), ("stem1", "the first stage")])
def test_what_is_shared_and_who_leads_is_said(share: str, words: str) -> None:
    job = harness.built(harness.recipe("method.name=ahbf", f"cohort.share={share}"))
    (sharing,) = [note for note in job.notes if words in note]
    assert sharing.endswith("resnet8, resnet8+2")
    assert sum("student0" in note for note in job.notes) == 1
    assert job.method.cohort.share == share
    assert not [note for note in job.notes if note.startswith(WARNING)]


# ---------------------------------------------------------------------------------------------------------------------
# Who is kept


def test_the_shallowest_is_kept_and_another_one_only_with_a_warning() -> None:
    for value, kept, warned in (("best", 0, 0), ("smallest", 0, 0), ("0", 0, 0), ("1", 1, 1)):
        job = harness.built(harness.recipe("method.name=ahbf", f"cohort.keep={value}"))
        assert keep.candidates(job) == [kept]
        assert sum(note.startswith(WARNING) and "cohort.keep=0" in note for note in job.notes) == warned


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Of four branches; nobody writes into it."""
    four = 'cohort.students=["resnet8", "resnet8", "resnet8", "resnet8"]'
    folder = tmp_path_factory.mktemp("ahbf")
    with chdir(folder):
        return start("method.name=ahbf", "method.aux=1", four, "optim.epochs=2", out=folder / "run")


def test_a_run_keeps_the_plain_network_under_its_own_name(run: RunDir) -> None:
    assert read_json(run.student)["architecture"] == "resnet8"
    assert load_file(run.weights).keys() == backbones.build("resnet8", 10, SMALL).weights().keys()
    result = read_json(run.result)
    assert result["students"] == ["resnet8", "resnet8+1", "resnet8+2", "resnet8+3"]
    assert (result["leader"], result["share"]) == (0, "low")
    assert (result["kept"]["architecture"], result["kept"]["params"]) == ("resnet8", 78_042)
    assert [row["params"] for row in result["cohort"]] == [78_042 + b * 73_984 for b in range(4)]
    heads = ["student0", "student1", "student2", "student3", "fused0", "fused1", "fused"]
    assert list(result["heads_last_epoch_top1_pct"]) == heads
    assert result["variant"] == "ahbf aux=1"
    others = [read_json(run.files_of_other(b)[1])["architecture"] for b in (1, 2, 3)]
    assert others == ["resnet8+1", "resnet8+2", "resnet8+3"]


@pytest.mark.parametrize(
    "keys",
    [{"aux": -1}, {"aux": 101}, {"temperature": 0.0}, {"rampup": 1.5}, {"weight": -1.0}, {"branch_weight": -1.0},
     {"fused_weight": float("inf")}, {"detach_features": True}],
)  # fmt: skip
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        AHBFConfig.model_validate({"name": "ahbf", **keys})


def test_its_ramp_is_longer_than_that_of_the_others() -> None:
    assert AHBFConfig.model_validate({"name": "ahbf"}).rampup == RAMP != ALPHA
    assert resolve(load(["digits_resnet8", "method=ahbf"])).recipe.method["rampup"] == RAMP
