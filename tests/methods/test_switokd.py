"""SwitOKD against its public code's formula: distances, threshold and mode by loops; a teacher that really pauses."""

from __future__ import annotations

import math
from typing import Any

import harness
import pytest
import torch
from byhand import Array, agrees, array, batch, cross_entropy, divergence, hold, make, names, reached, refused, softened
from byhand import spread as logits
from exchanging import PLAIN, certain, decided, half
from processes import together
from torch import Tensor

from okdc.methods.base import Batch
from okdc.methods.switokd import SwitOKD, SwitOKDConfig
from okdc.training import selection
from okdc.training.device import Settings
from okdc.training.step import TrainStep


def switokd(n: int = 2, *teachers: int) -> SwitOKD:
    method = make("switokd", n, teacher_indices=list(teachers))
    assert isinstance(method, SwitOKD)
    return method


def distance(a: Array, b: Array) -> float:
    """The mean over the images of Σ_c |a_c - b_c|."""
    return sum(
        abs(float(x) - float(y)) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)
    ) / len(a)


def probabilities(z: Array) -> Array:
    p: Array = array(torch.tensor([softened(row) for row in z], dtype=torch.float64))
    return p


def is_expert(z_t: Array, z_s: Array, y: Array) -> bool:
    p_t, p_s = probabilities(z_t), probabilities(z_s)
    G, s, t = distance(p_s, p_t), distance(p_s, y), distance(p_t, y)
    delta = s - math.exp(-t / (t + s)) * t
    return delta < G and t < s


def hot(labels: Tensor) -> Array:
    return array(torch.nn.functional.one_hot(labels, 10))


def transcription(z: Array, labels: Tensor, teachers: tuple[int, ...]) -> dict[str, float]:
    """The pair's and Table 7's files; each pair has its own ε."""
    pupils = [k for k in range(len(z)) if k not in teachers]
    learns = {(i, j): 0.0 if is_expert(z[i], z[j], hot(labels)) else 1.0 for i in teachers for j in pupils}
    at_all = {i: max(learns[i, j] for j in pupils) for i in teachers}
    terms = {}
    for k in range(len(z)):
        terms[f"ce_student{k}"] = at_all.get(k, 1.0) * cross_entropy(z[k], labels)
        for j in range(len(z)):
            if j != k:
                weight = learns.get((k, j), at_all.get(k, 1.0))
                terms[f"kl_student{j}_student{k}"] = weight * divergence(z[j], z[k], 1.0)
    return terms


# ---------------------------------------------------------------------------------------------------------------------
# The mode


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "teachers"), [(2, (0,)), (2, (1,)), (3, (2,)), (3, (0, 1)), (4, (1, 2))])
def test_every_term_equals_a_slow_transcription(
    n: int, teachers: tuple[int, ...], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = switokd(n, *teachers)
    images, labels, *_ = batch(n=5)
    z = logits(n, seed=seed)
    for i in teachers[: 1 + seed % 2]:  # one that knows more, so that some pairs are in expert mode
        z[i] += certain(labels, 2.0 * seed)
    hold(monkeypatch, method, z)
    agrees(method(Batch(images, labels), torch.tensor(0.3)), transcription(array(z), labels, teachers))


def test_those_pairs_have_both_modes_and_a_teacher_that_pauses_for_one_student_alone() -> None:
    seen = set()
    for seed in range(6):
        labels, z = batch(n=5).labels, logits(3, seed=seed)
        z[2] += certain(labels, 2.0 * seed)
        seen.add(tuple(is_expert(array(z[2]), array(z[j]), hot(labels)) for j in (0, 1)))
    assert {(True, True), (False, False)} < seen


@pytest.mark.parametrize(
    ("teacher", "student", "wrong", "expert"),
    [
        (0.0, 0.0, 0, False),  # alike: G = 0, and δ = s - ε·s > 0
        (200.0, 0.0, 0, False),  # perfect and uniform: t = 0, ε = 1, δ = s = G, and G > δ is false
        (200.0, 200.0, 1, False),  # perfect, and sure of another class: the same
        (200.0, 200.0, 0, False),  # both perfect: ε is 0/0, and nothing is greater than that
        (2.0, 200.0, 1, True),  # right with doubts, and sure of another class
        (2.0, 200.0, 0, False),  # t > s
    ],
)
def test_the_boundaries_of_the_two_modes(teacher: float, student: float, wrong: int, expert: bool) -> None:
    method, labels = switokd(2, 0), batch(n=5).labels
    z = torch.stack([certain(labels, teacher), certain((labels + wrong) % 10, student)])
    assert method.expert(z, torch.tensor(hot(labels)).float()).tolist() == [[expert]]
    if not (teacher == student == 200 and not wrong):
        assert is_expert(array(z[0]), array(z[1]), hot(labels)) is expert


def test_the_second_condition_alone_keeps_a_teacher_that_is_worse_learning() -> None:
    """G > δ holds here: the paper's text without the code's second condition would pause it."""
    labels = torch.arange(5)
    wrong = certain((labels + 1) % 10, 3.0)
    z = torch.stack([wrong, certain(labels, 3.0)])
    p_t, p_s, y = probabilities(array(z[0])), probabilities(array(z[1])), hot(labels)
    s, t = distance(p_s, y), distance(p_t, y)
    assert distance(p_s, p_t) > s - math.exp(-t / (t + s)) * t
    assert t > s
    assert not switokd(2, 0).expert(z, torch.tensor(y).float()).item()


def test_each_pair_has_its_own_epsilon() -> None:
    """A teacher that is right with doubts, a student that is surely right, and one that is wrong: the slip in Table 7's
    files, the first pair's ε for the second, would let the teacher learn from the wrong one.
    """
    labels = torch.arange(5)
    z = torch.stack([certain(labels, 1.5), certain(labels, 5.0), certain((labels + 1) % 10, 3.0)])
    p_t, p_1, p_2 = (probabilities(array(z_k)) for z_k in z)
    y = hot(labels)
    t, s_1, s_2 = (distance(p, y) for p in (p_t, p_1, p_2))
    assert distance(p_2, p_t) < s_2 - math.exp(-t / (t + s_1)) * t
    assert distance(p_2, p_t) > s_2 - math.exp(-t / (t + s_2)) * t
    assert switokd(3, 0).expert(z, torch.tensor(y).float()).tolist() == [[False, True]]


def test_targets_of_smoothed_labels_are_what_distances_are_measured_to(monkeypatch: pytest.MonkeyPatch) -> None:
    method = switokd(2, 0)
    method.label_smoothing = 0.1
    seen: list[Tensor] = []
    expert = method.expert

    def watched(z: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return expert(z, y)

    monkeypatch.setattr(method, "expert", watched)
    method(batch(), torch.tensor(0.0))
    assert seen[0].max().item() == pytest.approx(0.91)


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


def forced(method: SwitOKD, *expert: bool) -> SwitOKD:
    """Each pair in the mode that is said, row by row."""
    shape = len(method.teachers), len(method.pupils)
    method.expert = lambda *_: torch.tensor(expert).view(shape)  # type: ignore[method-assign]
    return method


def test_each_term_reaches_the_network_that_it_teaches_alone() -> None:
    method = forced(switokd(3, 2), False, False)
    for k in range(3):
        own = names(method, f"cohort.students.{k}.")
        assert reached(method, f"ce_student{k}") == own
        for j in range(3):
            if j != k:
                assert reached(method, f"kl_student{j}_student{k}") == own


def test_a_paused_teachers_terms_are_zero_and_reach_nothing_yet_every_parameter_has_a_gradient() -> None:
    method = forced(switokd(2, 1), True)
    step = method(batch(), torch.tensor(0.0))
    assert step.losses["ce_student1"].item() == step.losses["kl_student0_student1"].item() == 0
    assert reached(method, "ce_student0", "kl_student1_student0") == names(method, "cohort.students.0.")
    assert not reached(method, "ce_student1", "kl_student0_student1")
    assert all(p.grad is not None for p in method.cohort.backbone(1).parameters())


def test_a_teacher_that_is_the_expert_to_one_of_two_students_learns_from_labels_and_the_other() -> None:
    losses = forced(switokd(3, 2), True, False)(batch(), torch.tensor(0.0)).losses
    assert losses["kl_student0_student2"].item() == 0
    assert losses["kl_student1_student2"].item() > 0
    assert losses["ce_student2"].item() > 0


# ---------------------------------------------------------------------------------------------------------------------
# A teacher that pauses


def trained(modes: list[bool], *words: str, settings: Settings = PLAIN) -> list[dict[str, Tensor]]:
    """The method's state before the first step and after each, the teacher in the mode of each."""
    job = harness.built(harness.recipe("method.name=switokd", "optim.lr=0.05", "optim.weight_decay=0.1", *words))
    method = job.method.train()
    assert isinstance(method, SwitOKD)
    step = TrainStep(method, job.recipe.optim, settings)
    states = []
    for number, expert in enumerate([*modes, False]):
        states.append({name: tensor.clone() for name, tensor in method.state_dict().items()})
        if number < len(modes):
            forced(method, expert)
            generator = torch.Generator().manual_seed(number)
            images = torch.randn(16, 3, 8, 8, generator=generator)
            step(Batch(images, torch.randint(10, (16,), generator=generator)), number / 10)
    return states


KINDS = [(), ("optim.optimizer=adamw",), ("optim.clip=0.1",), ("optim.ema=0.9",)]


@pytest.mark.parametrize("words", KINDS, ids=" ".join)
@pytest.mark.parametrize(
    "settings", [PLAIN, Settings("cpu", "bfloat16", "channels_last", 1), Settings("cpu", "float16", "contiguous", 1)]
)
def test_a_paused_teacher_keeps_its_parameters_to_the_bit_and_moves_in_the_next_step(
    settings: Settings, words: tuple[str, ...]
) -> None:
    """The first step gives it a momentum and weight decay is large, so that it would move in a step without loss."""
    first, learnt, paused, paused_again, last = trained([False, True, True, False], *words, settings=settings)
    teacher = [name for name in first if name.startswith("cohort.students.1.")]
    parameters = [name for name in teacher if "running" not in name and "num_batches" not in name]
    assert len(parameters) > 20
    for name in parameters:
        assert torch.equal(learnt[name], paused[name]), name
        assert torch.equal(paused[name], paused_again[name]), name
    assert not any(torch.equal(paused_again[name], last[name]) for name in parameters if "conv" in name)
    if settings.dtype != "float16":  # whose first steps may overflow and be skipped
        assert not any(torch.equal(first[name], learnt[name]) for name in parameters if "conv" in name)
        student = [name.replace("students.1.", "students.0.") for name in parameters if "conv" in name]
        assert not any(torch.equal(learnt[name], paused[name]) for name in student)
    statistics = [name for name in teacher if name.endswith("running_mean")]
    assert not any(torch.equal(learnt[name], paused[name]) for name in statistics), "it stays in training mode"


def test_a_learning_step_is_the_optimisers_alone() -> None:
    """Nothing is put back: the teacher's weights are those of a method that never held any."""
    states = trained([False, False])
    job = harness.built(harness.recipe("method.name=switokd", "optim.lr=0.05", "optim.weight_decay=0.1"))
    method = job.method.train()
    assert isinstance(method, SwitOKD)
    method.after_step = lambda: None  # type: ignore[method-assign]
    step = TrainStep(forced(method, False), job.recipe.optim, PLAIN)
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(16, 3, 8, 8, generator=generator)
        step(Batch(images, torch.randint(10, (16,), generator=generator)), number / 10)
    assert all(torch.equal(tensor, states[-1][name]) for name, tensor in method.state_dict().items())


def test_every_teacher_that_is_the_expert_to_one_of_two_students_still_moves() -> None:
    words = 'cohort.students=["resnet8", "resnet8", "resnet8"]'
    job = harness.built(harness.recipe("method.name=switokd", words))
    method = job.method.train()
    assert isinstance(method, SwitOKD)
    step = TrainStep(forced(method, True, False), job.recipe.optim, PLAIN)
    before = [p.detach().clone() for p in method.cohort.backbone(2).parameters()]
    step(batch(), 0.0)
    pairs = zip(before, method.cohort.backbone(2).parameters(), strict=True)
    assert not any(torch.equal(p, q) for p, q in pairs)


def test_of_two_teachers_the_one_that_pauses_stays() -> None:
    words = 'cohort.students=["resnet8", "resnet8", "resnet8"]'
    job = harness.built(harness.recipe("method.name=switokd", "method.teacher_indices=[0, 1]", words))
    method = job.method.train()
    assert isinstance(method, SwitOKD)
    step = TrainStep(method, job.recipe.optim, PLAIN)
    for expert in ((False, False), (True, False)):
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        forced(method, *expert)
        step(batch(), 0.0)
    moved = {name.split(".")[2] for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1", "2"}


def test_what_a_teacher_is_put_back_to_is_in_no_file() -> None:
    method = switokd()
    assert not [name for name in method.state_dict() if not name.startswith("cohort.")]


def test_two_processes_take_one_mode_where_their_halves_alone_would_take_two() -> None:
    first, second = together(2, decided)
    assert sorted(first[1]) == [False, True]
    assert first[0] == second[0]
    whole = array(torch.cat([half(0), half(1)], 1))
    assert first[0] == is_expert(whole[0], whole[1], hot(torch.arange(4).repeat(2)))
    assert first[2] == second[2] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Who is who


@pytest.mark.parametrize(
    ("networks", "keys", "teachers", "leader"),
    [
        (["resnet8", "resnet14"], {}, (1,), 0),
        (["resnet14", "resnet8"], {}, (0,), 1),
        (["resnet8", "resnet8"], {}, (1,), 0),
        (["resnet14", "resnet20", "resnet8"], {}, (1,), 2),
        (["resnet14", "resnet20", "resnet8"], {"teacher_indices": [0, 1]}, (0, 1), 2),
        (["resnet8", "resnet14"], {"teacher_indices": [0]}, (0,), 1),
    ],
)
def test_the_largest_network_teaches_unless_said_and_the_smallest_other_is_kept(
    networks: list[str], keys: dict[str, Any], teachers: tuple[int, ...], leader: int
) -> None:
    method = make("switokd", networks, **keys)
    assert isinstance(method, SwitOKD)
    assert method.teachers == teachers
    assert method.leader == leader
    assert f"student{leader}" in method.notes[0]


def test_a_run_keeps_the_student() -> None:
    job = harness.built(harness.recipe("method.name=switokd", "cohort.students=[resnet14, resnet8]"))
    assert selection.candidates(job) == [1]


@pytest.mark.parametrize("indices", [[2], [-1], [0, 0], [0, 1]])
def test_indices_of_no_network_or_of_all_are_refused(indices: list[int]) -> None:
    with refused(r"teacher_indices: expected some of 0 to 1"):
        switokd(2, *indices)


@pytest.mark.parametrize("value", ["resnet8", 1, [0.5]])
def test_a_table_that_means_nothing_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="teacher_indices"):
        SwitOKDConfig.model_validate({"name": "switokd", "teacher_indices": value})
