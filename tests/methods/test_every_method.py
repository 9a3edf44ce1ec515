"""What holds for all methods, switch by switch: gradients, optimiser groups, sharing, heads, the ramp, the cost."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from byhand import CIFAR, SMALL, batch, make, pairwise, table, teacher
from torch import Tensor, nn

from okdc import methods
from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.cohort import count_macs
from okdc.errors import RecipeError
from okdc.methods.base import Batch, Method
from okdc.recipe.draft import load
from okdc.training.optim import build_optimizer

BRANCHES = ("one", "ffl", "mfef", "fefr", "okddip", "ahbf", "pcl")  # made for a shared trunk
SINGLE = ("baseline", "kd", "byot")
RAMPED = ("one", "ffl", "mfef", "fefr", "okddip", "ahbf", "pcl")  # the others have no ramp-up, DualNet nothing to ramp


class Case(NamedTuple):
    name: str
    keys: dict[str, Any]


def means_something(msfe: bool, attention: bool, distill: bool, in_path: bool, detach: bool) -> bool:
    """Of MFEF's switches; test_mfef.py tries which combinations are refused."""
    paths = msfe or attention
    return (msfe if in_path else distill or not paths) and ((distill and paths) or not detach)


def mfef_cases() -> list[Case]:
    """Every two of its switches."""
    switches = ("msfe", "attention", "distill", "in_path", "detach_features")
    rows = pairwise(*[(True, False)] * 5, valid=means_something)
    return [Case("mfef", dict(zip(switches, row, strict=True))) for row in rows]


SWITCHES = [
    Case("baseline", {}),
    Case("kd", {}),
    Case("kd", {"alpha": 0.0}),
    Case("kd", {"ce_weight": 0.0}),
    Case("dml", {}),
    Case("dml", {"peers": "sum"}),
    Case("one", {}),
    Case("one", {"rampup": 0.0}),
    Case("ffl", {}),
    Case("ffl", {"detach_features": True}),
    Case("ffl", {"init": "he"}),
    *mfef_cases(),
    Case("fefr", {}),
    Case("fefr", {"reading": "released"}),
    Case("dualnet", {}),
    Case("dualnet", {"combine": "mean", "weight": 0.3}),
    Case("okddip", {}),
    *(Case("kdcl", {"target": kind}) for kind in ("naive", "linear", "minlogit")),
    *(Case("byot", {"loss": kind}) for kind in ("conference", "journal")),
    Case("byot", {"hint_skips": "shallowest", "block": "patch"}),
    Case("ahbf", {}),
    Case("ahbf", {"detach_targets": True, "aux": 0}),
    Case("kdcl", {"views": "own"}),
    Case("switokd", {}),
    Case("switokd", {"teacher_indices": [0]}),
    *(Case("pcl", {"views": views}) for views in ("one", "own")),
    *(Case("okdph", {"hybrid": hybrid}) for hybrid in ("mean", "dirichlet")),
    Case("relay", {}),
]
PLAIN = [Case(name, {}) for name in methods.METHODS.own]
RELEASED = Case("fefr", {"reading": "released"})


def called(value: object) -> str | None:
    if not isinstance(value, Case):
        return None
    return " ".join([value.name, *(f"{key}={v}" for key, v in value.keys.items())])


def sharings(name: str) -> tuple[str, ...]:
    if name in ("one", "ahbf"):
        return ("low", "stem1")
    return ("low", "stem1", "none") if name in BRANCHES else ("none",)


def counts(name: str) -> tuple[int, ...]:
    return (1,) if name in SINGLE else (2, 3)


def grid(cases: list[Case]) -> pytest.MarkDecorator:
    """Of each method every case, number of students and sharing, any two of them together."""
    rows = []
    for name in dict.fromkeys(case.name for case in cases):
        own = [case for case in cases if case.name == name]
        rows += pairwise(own, counts(name), sharings(name))
    return pytest.mark.parametrize(("case", "n", "share"), rows, ids=called)


def of(case: Case, n: int, share: str) -> Method:
    return make(case.name, n, share, **case.keys)


def test_every_method_is_here() -> None:
    assert {case.name for case in SWITCHES} == set(methods.METHODS.own)
    for name in methods.METHODS.own:
        kind = methods.find(name)
        assert (kind.branches, kind.single) == (name in BRANCHES, name in SINGLE)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients and the optimiser


@grid(SWITCHES)
def test_every_trainable_parameter_gets_a_gradient_and_is_in_one_group(case: Case, n: int, share: str) -> None:
    """Distributed training stops at a parameter without one. What lies outside the cohort has a decay of its own."""
    method = of(case, n, share).train()
    images, labels, *_ = batch()
    step = method(Batch(images, labels), torch.tensor(0.3))
    assert all(torch.isfinite(loss) for loss in step.losses.values())
    optim = table("fefr").recipe.optim
    optimizer = build_optimizer(method, optim)
    torch.stack(list(step.losses.values())).sum().backward()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trained.values() if p.grad is not None)

    students = {id(p) for p in method.cohort.parameters()}
    named = [method.get_submodule(part) for part in method.decayed_as_students]
    decayed = students | {id(p) for part in named for p in part.parameters()}
    assert bool(named) is (case.keys.get("reading") == "released")
    expected = [(optim.weight_decay, {id(p) for p in trained.values() if id(p) in decayed})]
    if auxiliary := {id(p) for p in trained.values() if id(p) not in decayed}:
        expected.append((optim.aux_weight_decay, auxiliary))
    found = [(group["weight_decay"], [id(p) for p in group["params"]]) for group in optimizer.param_groups]
    assert [(decay, set(ids)) for decay, ids in found] == expected
    assert sum(len(ids) for _, ids in found) == len(trained), "no parameter is in two groups, or twice in one"
    assert all(not name.startswith("cohort.") for name, p in method.named_parameters() if id(p) not in students)

    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer.step()
    for k in range(n):
        moved = [not torch.equal(p, before[name]) for name, p in trained.items() if f"students.{k}." in name]
        assert all(moved)
        assert moved


def test_a_second_step_of_a_run_is_as_good_as_the_first() -> None:
    for case in PLAIN:
        method = of(case, counts(case.name)[0], sharings(case.name)[0]).train()
        optimizer = build_optimizer(method, table("fefr").recipe.optim)
        seen = []
        for t in (0.0, 0.01, 0.9):
            losses = method(batch(), torch.tensor(t)).losses
            total = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            seen.append(total.item())
        assert all(map(torch.isfinite, torch.tensor(seen))), case.name
        assert len(set(seen)) == 3, case.name


# ---------------------------------------------------------------------------------------------------------------------
# What is shared


@grid([*PLAIN, RELEASED])
def test_branches_are_never_the_same_module(case: Case, n: int, share: str) -> None:
    """One block put under several names would give all students one set of weights, as in public DenseNet branches."""
    method = of(case, n, share)
    students = method.cohort.backbones()
    shared = {"low": 3, "stem1": 2, "none": 0}[share if n > 1 else "none"]
    parts = [[*student.stages[shared:], student.head] for student in students]
    own = [{id(t) for part in parts_of for t in (*part.parameters(), *part.buffers())} for parts_of in parts]
    assert len(set().union(*own)) == sum(map(len, own))
    modules = [{id(m) for part in parts_of for m in part.modules()} for parts_of in parts]
    assert len(set().union(*modules)) == sum(map(len, modules))
    for student in students[1:]:
        assert all(student.stages[i] is students[0].stages[i] for i in range(shared))

    trunk = sum(p.numel() for stage in students[0].stages[:shared] for p in stage.parameters())
    branch = 78_042 - trunk
    deeper = 2 * n * (n - 1) // 2 * 73_984 if case.name == "ahbf" else 0  # each has two blocks more than the one before
    inside = {id(p) for p in method.cohort.parameters()}
    auxiliary = sum(p.numel() for p in method.parameters() if id(p) not in inside)
    assert sum(p.numel() for p in method.parameters()) == trunk + n * branch + deeper + auxiliary
    assert auxiliary == (scaffolding_released(n, share) if case == RELEASED else scaffolding(case.name, n, share))


def scaffolding_released(n: int, share: str) -> int:
    """Of n ResNet-8 with 10 classes: matching and attention once for a trunk, and a 1×1 convolution more."""
    sets = 1 if share in ("low", "stem1") and n > 1 else n
    matching = (16 * 4 + 1) * 32 + (32 * 4 + 1) * 64 + (32 * 4 + 1) * 32
    attention = 2 * 96 * 12 + 2 * 49
    return sets * (matching + attention) + (n * 96 + 1) * n * 64 + scaffolding("ffl", n, share)


def scaffolding(name: str, n: int, share: str) -> int:
    """Of n ResNet-8 with 10 classes. Fused classifier: depthwise and pointwise convolution, their BNs, linear."""
    fusion = n * 64 * 9 + 2 * n * 64 + n * 64 * 64 + 2 * 64 + 650
    trunk = {"low": 32, "stem1": 16, "none": 0}[share]
    exits = 16 * 16 + 16 * 16 * 16 + 32 * 16 + 16 * 16 * 4 + 2 * (16 * 64 + 2 * (16 + 16 + 64) + 650)
    shared = {"low": 464 + 4_672 + 14_528, "stem1": 464 + 4_672, "none": 0}[share]  # parameters of ResNet-8's stages
    matching = 64 * 16 * 16 + 64 * 32 * 4 + 2 * 2 * 64  # patches of 4×4 and 2×2
    return {
        "one": n * trunk + n + 2 * n,
        "ffl": fusion,
        "mfef": fusion + n * (14_680 + 680),
        "fefr": fusion + n * (matching + 680),
        "dualnet": 650,
        "okddip": 2 * 64 * 8,
        "kd": 78_042,  # the teacher
        "byot": exits,
        "ahbf": (n - 1) * (2 * 64 * 64 + 2 * 64 + 64 * 2 + 2 + 2 * 2),
        "pcl": n * 64 * 10 + 10 + shared + n * (78_042 - shared),  # the mean teachers
        "relay": n * 78_042,  # the mean students
    }.get(name, 0)


@grid([*PLAIN, RELEASED, Case("mfef", {"in_path": True}), Case("kdcl", {"target": "linear"})])
def test_a_shared_stage_runs_once_and_an_own_one_once_a_student(case: Case, n: int, share: str) -> None:
    """And a teacher once. Running a student again for each of its peers would also move its batch statistics twice.

    OKDPH's hybrid model is the first student with other weights and statistics.
    """
    method = of(case, n, share).train()
    runs: Counter[int] = Counter()
    watched = [m for student in method.cohort.backbones() for m in (*student.stages, student.head)]
    if case.name == "kd":
        watched += [m for m in method.get_submodule("teacher").modules() if not list(m.children())]
    for module in {id(m): m for m in watched}.values():
        module.register_forward_hook(lambda m, *_: runs.update([id(m)]))
    method(batch(), torch.tensor(0.5))
    first = method.cohort.backbone(0)
    twice = {id(m) for m in (*first.stages, first.head)} if case.name == "okdph" else set()
    assert runs == Counter({id(m): 1 + (id(m) in twice) for m in watched})


@pytest.mark.parametrize("name", ["dml", "kdcl", "dualnet", "kd", "baseline", "byot", "switokd", "okdph", "relay"])
def test_methods_of_separate_networks_share_nothing_whatever_the_recipe_says(name: str) -> None:
    recipe = table(name, ["resnet8"] * 3, "low")
    method, words = assembly.method(recipe, SMALL, 10, teacher() if name == "kd" else None)
    assert method.cohort.shared == 0
    assert ("alone" if name in SINGLE else "share nothing") in words


# ---------------------------------------------------------------------------------------------------------------------
# Heads


HEADS = {
    "baseline": ["student0"],
    "kd": ["student0", "teacher"],
    "dml": ["student0", "student1", "student2", "ensemble"],
    "one": ["student0", "student1", "student2", "gated"],
    "ffl": ["student0", "student1", "student2", "fused", "ensemble"],
    "mfef": ["student0", "student1", "student2", "fused", "ensemble"],
    "fefr": ["student0", "student1", "student2", "fused", "ensemble"],
    "dualnet": ["student0", "student1", "student2", "fused", "ensemble"],
    "okddip": ["student0", "student1", "student2", "ensemble"],
    "kdcl": ["student0", "student1", "student2", "ensemble"],
    "byot": ["student0", "exit1", "exit2", "ensemble"],
    "ahbf": ["student0", "student1", "student2", "fused0", "fused"],
    "switokd": ["student0", "student1", "student2", "ensemble"],
    "pcl": ["student0", "student1", "student2", "mean0", "mean1", "mean2", "fused"],
    "okdph": ["student0", "student1", "student2", "hybrid", "ensemble"],
    "relay": ["student0", "student1", "student2", "means", "ensemble"],
}
# Whose mean is the ensemble: OKDDip's leader is taught by the peers' mean and no part of it.
MEMBERS = {"okddip": ("student0", "student1"), "byot": ("student0", "exit1", "exit2")}
LEADERS = {"okddip": 2, "ahbf": 0, "switokd": 0, "relay": 0}


@pytest.mark.parametrize("case", PLAIN, ids=called)
def test_every_head_has_a_name_and_one_row_an_image(case: Case) -> None:
    name = case.name
    method = of(case, 1 if name in SINGLE else 3, sharings(name)[0]).eval()
    images, labels, *_ = batch()
    logits = method(Batch(images, labels), torch.tensor(0.5)).logits
    assert list(logits) == HEADS[name]
    assert {tuple(z.shape) for z in logits.values()} == {(4, 10)}
    assert {z.dtype for z in logits.values()} == {torch.float32}
    for k, student in enumerate(method.cohort.backbones()):
        torch.testing.assert_close(logits[f"student{k}"], student(images), rtol=0, atol=1e-5)
    if "ensemble" in logits:
        members = MEMBERS.get(name, ("student0", "student1", "student2"))
        mean = sum((logits[member] for member in members), torch.zeros(())) / len(members)
        torch.testing.assert_close(logits["ensemble"], mean)
    assert method.leader == LEADERS.get(name)


@pytest.mark.parametrize("case", SWITCHES, ids=called)
def test_an_answer_in_eval_mode_depends_on_no_other_image_of_the_batch_and_moves_nothing(case: Case) -> None:
    method = of(case, 1 if case.name in SINGLE else 2, sharings(case.name)[0])
    method(batch(), torch.tensor(0.5))
    method.eval()
    before = {name: t.clone() for name, t in method.state_dict().items()}
    images, labels, *_ = batch()
    whole = method(Batch(images, labels), torch.tensor(1.0)).logits
    alone = method(Batch(images[:1], labels[:1]), torch.tensor(1.0)).logits
    for name in whole:
        torch.testing.assert_close(whole[name][:1], alone[name], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], t) for name, t in method.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("case", SWITCHES, ids=called)
def test_losses_and_logits_are_float32_under_autocast(case: Case) -> None:
    method = of(case, counts(case.name)[0], sharings(case.name)[0])
    with torch.autocast("cpu", torch.bfloat16):
        step = method(batch(), torch.tensor(0.5))
    assert {t.dtype for t in (*step.losses.values(), *step.logits.values())} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("case", SWITCHES, ids=called)
def test_features_are_what_the_linear_classifiers_read(case: Case) -> None:
    """A head without a classifier of its own, such as a gated one, has none; the ensemble has those of all joined."""
    method = of(case, 1 if case.name in SINGLE else 2, sharings(case.name)[0]).eval()
    one = batch()
    features, logits = method.features(one), method(one, torch.tensor(1.0)).logits
    layers = {f"student{k}": student.head.get_submodule("fc") for k, student in enumerate(method.cohort.backbones())}
    layers |= {name: method.get_submodule(path) for name, path in FUSED.get(case.name, {}).items() if name in logits}
    joined = JOINED.get(case.name, () if case.name in SINGLE else ("student0", "student1"))
    several = {"means"} & logits.keys()  # Relay's mean students have a layer each
    assert set(features) == {*layers, *joined, *several, *(("ensemble",) if joined else ())}
    if joined:
        together = torch.cat([features[name] for name in joined], 1)
        torch.testing.assert_close(features["ensemble"], together, rtol=0, atol=0)
    for name, layer in layers.items():
        torch.testing.assert_close(layer(features[name]).float(), logits[name], rtol=1e-4, atol=1e-5)


FUSED = {  # the linear layers of heads that are no students
    "ffl": {"fused": "fusion.fc"},
    "mfef": {"fused": "fusion.fc"},
    "fefr": {"fused": "fusion.fc"},
    "dualnet": {"fused": "fc"},
    "pcl": {"fused": "fc", "mean0": "mean.students.0.head.fc", "mean1": "mean.students.1.head.fc"},
    "byot": {"exit1": "exits.0.fc", "exit2": "exits.1.fc"},
}
JOINED = {  # what the ensemble's features are of, where these are not two students
    "byot": ("student0", "exit1", "exit2"),
    "okdph": ("student0", "student1", "hybrid"),
}


@torch.no_grad()
@pytest.mark.parametrize("case", SWITCHES, ids=called)
def test_the_logits_of_a_head_are_a_linear_layer_on_its_features(case: Case) -> None:
    """Found by least squares over more images than there are features: no layer is named, and none may be missing."""
    method = of(case, counts(case.name)[0], sharings(case.name)[0])
    many = batch(n=300)
    method.train()(batch(n=32), torch.tensor(0.1))  # batch statistics leave 0 and 1
    torch.manual_seed(0)
    for p in method.parameters():
        p.add_(0.1 * p.std(unbiased=False).clamp(min=0.1) * torch.randn_like(p))  # equal students and means part
    method.eval()
    features, logits = method.features(many), method(many, torch.tensor(1.0)).logits
    assert {*logits} - {*features} == NO_FEATURES.get(case.name, set())
    for head in {*logits} & {*features}:
        x = torch.cat([features[head], torch.ones(len(many.labels), 1)], 1).double()
        z = logits[head].double()
        assert x.shape[1] < len(x) / 1.5
        layer = torch.linalg.lstsq(x, z, driver="gelsd").solution
        assert (x @ layer - z).norm() < 1e-5 * z.norm(), head


# Heads whose answers depend on the image by more than one linear layer, or are a foreign network's.
NO_FEATURES = {"kd": {"teacher"}, "one": {"gated"}, "ahbf": {"fused"}}


# ---------------------------------------------------------------------------------------------------------------------
# The ramp


class Replayed(nn.Module):
    """A cohort that computes its maps once."""

    def __init__(self, maps: list[list[Tensor]]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> list[list[Tensor]]:  # noqa: ARG002
        return self.maps


def divergences(method: Method, t: float) -> dict[str, float]:
    losses = method(batch(), torch.tensor(t)).losses
    return {name: loss.item() for name, loss in losses.items() if name.startswith("kl_")}


@torch.no_grad()
@pytest.mark.parametrize("name", RAMPED)
def test_the_mean_weight_of_distillation_does_not_depend_on_the_epochs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every term that a run logs. With 80 epochs whatever the run, twenty of them would have a mean of 0.024."""
    method = make(name, 3, "low", rampup=80 / 300).eval()
    maps = method.cohort(batch()[0])
    monkeypatch.setattr(method.cohort, "forward", Replayed(maps).forward)
    whole = divergences(method, 1.0)
    assert whole
    assert min(whole.values()) > 0
    steps = 100  # twenty epochs of five steps
    sums = dict.fromkeys(whole, 0.0)
    for step in range(steps):
        for term, value in divergences(method, step / steps).items():
            sums[term] += value / whole[term] / steps
    for term, mean in sums.items():
        assert mean == pytest.approx(0.837, abs=0.005), term


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in methods.METHODS.own if name not in RAMPED])
def test_the_others_weigh_every_term_alike_from_the_first_step_on(name: str) -> None:
    method = make(name, 1 if name in SINGLE else 3).eval()
    first, last = (method(batch(), torch.tensor(t)).losses for t in (0.0, 1.0))
    assert all(torch.equal(first[term], last[term]) for term in first)


@pytest.mark.parametrize("name", RAMPED)
def test_cross_entropies_are_never_ramped(name: str) -> None:
    method = make(name, 3, "low").eval()
    first, last = (method(batch(), torch.tensor(t)).losses for t in (0.0, 1.0))
    for term in first:
        assert torch.equal(first[term], last[term]) is term.startswith("ce_"), term


# ---------------------------------------------------------------------------------------------------------------------
# Students that differ


def resolved(name: str, students: list[str], share: str, **keys: object) -> list[str]:
    """What is wrong with that recipe, as a user is told."""
    words = [f"method.name={name}", f"cohort.students={students}", f"cohort.share={share}"]
    words += [f"method.{key}={value}" for key, value in keys.items()]
    try:
        assembly.method(resolve(load(["digits_resnet8", *words])), SMALL, 10)
    except RecipeError as error:
        return list(error.details)
    return []


UNLIKE = [["resnet8", "wrn16_1"], ["resnet8", "resnet14"], ["resnet8", "wrn16_2"]]


@pytest.mark.parametrize("students", UNLIKE, ids="+".join)
@pytest.mark.parametrize(
    ("name", "share"), [(name, share) for name in ("dml", "kdcl", "switokd", "pcl") for share in ("low", "none")]
    + [("ffl", "none")] + [(name, share) for name in ("mfef", "fefr") for share in ("low", "stem1", "none")],
)  # fmt: skip
def test_students_that_differ_are_taken(name: str, share: str, students: list[str]) -> None:
    assert resolved(name, students, share) == []


@pytest.mark.parametrize("students", UNLIKE, ids="+".join)
@pytest.mark.parametrize("share", ["low", "stem1", "none"])
def test_one_refuses_students_that_differ_and_names_methods_that_take_them(share: str, students: list[str]) -> None:
    (told,) = resolved("one", students, share)
    assert "trunk" in told
    for other in ("dml", "kdcl", "mfef", "fefr"):
        assert other in told
        assert resolved(other, students, share) == []


@pytest.mark.parametrize("students", UNLIKE, ids="+".join)
@pytest.mark.parametrize("share", ["low", "stem1"])
def test_ffl_with_a_trunk_refuses_students_that_differ_and_says_how_it_takes_them(
    share: str, students: list[str]
) -> None:
    (told,) = resolved("ffl", students, share)
    assert told.startswith(f"cohort.share='{share}' needs students of one architecture")
    assert ", ".join(students) in told
    assert "cohort.share=none" in told
    assert resolved("ffl", students, "none") == []


@pytest.mark.parametrize("share", ["low", "stem1", "none"])
@pytest.mark.parametrize("name", ["okddip", "dualnet"])
def test_features_of_other_widths_are_refused_and_of_one_width_taken(name: str, share: str) -> None:
    (told,) = resolved(name, ["resnet8", "wrn16_2"], share)
    assert told.startswith(f"[method] {name}: ")
    assert "64, 128 channels" in told
    assert "method.name=" in told
    assert resolved(name, ["resnet8", "wrn16_1"], share) == []


DEEPER = ["resnet8", "resnet8+2", "resnet8+3"]


@pytest.mark.parametrize("share", ["low", "stem1"])
@pytest.mark.parametrize("name", BRANCHES)
def test_students_that_differ_in_the_depth_of_their_last_stage_share_a_trunk(name: str, share: str) -> None:
    method, words = assembly.method(table(name, DEEPER, share), SMALL, 10)
    shared = {"low": 3, "stem1": 2}[share]
    assert (method.cohort.shared, method.cohort.share) == (shared, share)
    assert words.endswith(", ".join(DEEPER))
    first, *others = method.cohort.backbones()
    for student in others:
        assert [a is b for a, b in zip(student.stages, first.stages, strict=True)] == [i < shared for i in range(4)]
    torch.stack(list(method(batch(), torch.tensor(0.5)).losses.values())).sum().backward()
    assert [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["ffl", "mfef", "fefr", "okddip"])
def test_they_share_nothing_where_the_recipe_says_so(name: str) -> None:
    method, words = assembly.method(table(name, DEEPER, "none"), SMALL, 10)
    assert (method.cohort.shared, method.cohort.share) == (0, "none")
    assert "nothing" in words


@pytest.mark.parametrize(
    "students", [["resnet8+2", "resnet14"], ["resnet8+2", "resnet8+msfe"], ["resnet8+1", "wrn16_1+1"]]
)
def test_names_that_differ_otherwise_share_nothing(students: list[str]) -> None:
    method, words = assembly.method(table("fefr", students, "low"), SMALL, 10)
    assert method.cohort.shared == 0
    assert words == "the students share nothing: they differ"


@pytest.mark.parametrize("name", ["dml", "kdcl", "ffl", "mfef", "fefr", "dualnet", "okddip", "switokd", "pcl", "relay"])
def test_students_that_differ_learn_together(name: str) -> None:
    method = make(name, ["resnet8", "wrn16_1", "resnet14"], "none", CIFAR)
    assert method.cohort.shared == 0
    step = method(batch(CIFAR), torch.tensor(0.5))
    torch.stack(list(step.losses.values())).sum().backward()
    assert [k for k, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", [name for name in methods.METHODS.own if name not in SINGLE])
def test_one_student_is_refused_with_the_method_that_trains_one(name: str) -> None:
    (told,) = resolved(name, ["resnet8"], "low")
    assert told.startswith(f"[method] {name}: {name} needs at least 2 students")
    assert "cohort.students=[resnet8,resnet8]" in told
    assert "method.name=baseline" in told


# ---------------------------------------------------------------------------------------------------------------------
# The cost of a training step's forward, ResNet-20 on 32×32 images of ten classes: multiply-adds

ALONE, LAST_STAGE, HEAD = 40_813_184, 13_107_200, 640
FUSION = 128 * 9 * 64 + 128 * 64 * 64 + HEAD
ATTENTION = 2 * 2 * 64 * 4 + 7 * 7 * 2 * 64
EXTRACTION = 9 * (16**2 + 24**2 + 28**2) * 64
BRANCH = LAST_STAGE + HEAD


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "n", "share", "macs", "millions"),
    [
        ("baseline", 1, "none", 40_813_184, 40.8),
        ("kd", 1, "none", 293_963_008, 40.8 + 253.2),
        ("dml", 2, "none", 81_626_368, 81.6),
        ("kdcl", 2, "none", 81_626_368, 81.6),
        ("one", 3, "low", 67_028_960, 67.0),
        ("ffl", 2, "low", 54_519_680, 54.5),
        ("mfef", 2, "low", 56_395_904, 56.4),
        ("fefr", 2, "low", 57_680_000, 57.7),
        ("ffl", 2, "none", 82_225_024, 82.2),
        ("mfef", 2, "none", 84_101_248, 84.1),
        ("fefr", 2, "none", 85_385_344, 85.4),
        ("dualnet", 2, "none", 81_627_008, 81.6),
        ("fefr released", 2, "low", 57_425_024, 57.4),
        ("fefr released", 3, "low", 72_808_832, 72.8),
        ("fefr released", 2, "none", 86_441_088, 86.4),
        ("byot", 1, "none", 41_666_432, 41.7),
        ("ahbf", 2, "low", 63_882_624, 63.9),
        ("ahbf", 4, "low", 138_333_056, 138.3),
        ("switokd", 2, "none", 81_626_368, 81.6),
        ("pcl", 3, "low", 134_059_648, 134.1),
        ("okdph", 2, "none", 122_439_552, 122.4),
        ("relay", 2, "none", 163_252_736, 163.3),  # an evaluation runs the mean students, too
    ],
)
def test_a_training_step_costs_what_its_parts_do(name: str, n: int, share: str, macs: int, millions: float) -> None:
    name, _, reading = name.partition(" ")
    if name == "kd":
        big = teacher("resnet110", CIFAR)
        method = assembly.method(table(name, ["resnet20"], share, 32), CIFAR, 10, big)[0]
    else:
        keys = {"reading": reading} if reading else {}
        method = make(name, ["resnet20"] * n, share, CIFAR, **keys)
    images, labels, *_ = batch(CIFAR, 1)
    assert count_macs(method.eval(), Batch(images, labels), torch.tensor(0.5)) == macs
    assert macs / 1e6 == pytest.approx(millions, abs=0.06)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "n", "share", "macs"), [("pcl", 3, "low", 244_881_024), ("kdcl", 2, "none", 81_626_368)]
)
def test_a_shared_trunk_costs_as_much_as_separate_networks_where_each_student_sees_a_view_of_its_own(
    name: str, n: int, share: str, macs: int
) -> None:
    method = make(name, ["resnet20"] * n, share, CIFAR, views="own")
    images, labels, *_ = batch(CIFAR, 1)
    several = Batch(images, labels, views=(images,) * method.views)
    assert count_macs(method.eval(), several, torch.tensor(0.5)) == macs


def test_those_numbers_add_up() -> None:
    pair = ALONE + BRANCH + FUSION
    assert pair == 54_519_680
    assert pair + 2 * (EXTRACTION + ATTENTION) == 56_395_904
    assert 64 * 64 * (16 * 16 + 32 * 4) == 1_572_864
    assert pair + 2 * (1_572_864 + ATTENTION) == 57_680_000
    assert ALONE + 2 * BRANCH + 3 * 32 == 67_028_960
    assert ALONE + 253_149_824 == 293_963_008
    assert 2 * ALONE + HEAD == 81_627_008
    block, join = 2 * 9 * 64 * 64 * 64, 2 * 64 * 64 * 64 + 2 * 64  # of the last stage; of two maps, and its gate
    assert ALONE + BRANCH + 2 * block + join == 63_882_624
    assert ALONE + 3 * BRANCH + (2 + 4 + 6) * block + 3 * join == 138_333_056
    exits = (16 * 16 * 32**2 + 16 * 16 * 4 * 4 * 8**2, 32 * 16 * 16**2 + 16 * 16 * 2 * 2 * 8**2)
    assert ALONE + sum(exits) + 2 * (16 * 64 * 8**2 + HEAD) == 41_666_432


def test_those_of_the_released_reading_add_up() -> None:
    """FEFR released, ResNet-20, n=2, share=low: 40.8 M + a second last stage 13.1 + matching 1.3 + fusion 2.2."""
    a, b, c = 16 * 32 * 2 * 2 * 16 * 16, 32 * 64 * 2 * 2 * 8 * 8, 32 * 32 * 2 * 2 * 8 * 8
    assert (a, b, c) == (524_288, 524_288, 262_144)
    matching = a + b + c
    attention = 2 * (96 * 12 + 12 * 96) + 7 * 7 * 2 * 8 * 8  # of one student: the mean's and the maximum's layers
    assert attention == 10_880
    premix = 192 * 128 * 8 * 8
    pair = ALONE + BRANCH + FUSION
    assert pair + matching + premix + 2 * attention == 57_425_024
    wide = 192 * 9 * 64 + 192 * 64 * 64 + HEAD  # the fused classifier of three students, behind 288 -> 192 channels
    assert ALONE + 2 * BRANCH + matching + 288 * 192 * 64 + wide + 3 * attention == 72_808_832
    assert 2 * ALONE + FUSION + 2 * matching + premix + 2 * attention == 86_441_088
    assert 2 * (ALONE + 2 * BRANCH) + 3 * HEAD == 134_059_648  # peers and their means, and the layer of the ensemble
    assert 2 * 3 * ALONE + 3 * HEAD == 244_881_024
    assert 3 * ALONE == 122_439_552
