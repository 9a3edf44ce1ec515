from __future__ import annotations

import math

import pytest
import torch
from harness import no_waiting, recipe
from torch import Tensor, nn

from okdc.assembly import job as assembly
from okdc.assembly.student import logits_of
from okdc.methods.base import Batch, Method, Step
from okdc.runs.predictions import by_class
from okdc.training.metrics import Totals, count, top1_pct

CPU = torch.device("cpu")


def step(ce: float, kl: float, right: int, of: int = 4) -> tuple[Step, Tensor]:
    """One student that is right `right` times of `of`, and one that never is."""
    labels = torch.zeros(of, dtype=torch.int64)
    good, bad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    z = torch.stack([good if i < right else bad for i in range(of)])
    losses = {"ce": torch.tensor(ce), "kl": torch.tensor(kl)}
    return Step(losses, {"student0": z, "student1": bad.expand(of, 2)}), labels


def test_losses_are_means_over_steps_and_accuracies_over_images() -> None:
    totals = Totals(CPU)
    totals.add(*step(1.0, 0.5, 3, of=4), 0)
    totals.add(*step(3.0, 0.0, 1, of=1), 1)
    read = totals.read()
    assert read.losses == {"ce": 2.0, "kl": 0.25}
    assert read.top1_pct == {"student0": 80.0, "student1": 0.0}
    assert read.bad is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_first_step_and_term_that_are_not_finite_are_named(wrong: float) -> None:
    totals = Totals(CPU)
    totals.add(*step(1.0, 1.0, 1), 40)
    totals.add(*step(1.0, wrong, 1), 41)
    totals.add(*step(math.nan, math.nan, 1), 42)
    assert totals.read().bad == (41, "kl")


def test_of_two_terms_that_are_not_finite_the_first_is_named() -> None:
    totals = Totals(CPU)
    totals.add(*step(math.nan, math.inf, 1), 3)
    assert totals.read().bad == (3, "ce")


def test_a_bad_first_step_of_a_run_is_step_0() -> None:
    totals = Totals(CPU)
    totals.add(*step(math.nan, 1.0, 1), 0)
    assert totals.read().bad == (0, "ce")


def test_counting_keeps_no_graph() -> None:
    totals = Totals(CPU)
    loss = torch.tensor(1.0, requires_grad=True) * 2
    totals.add(Step({"ce": loss}, {"student0": torch.zeros(1, 2)}), torch.zeros(1, dtype=torch.int64), 0)
    assert not totals.sums.requires_grad


def test_an_epoch_cut_in_two_by_a_checkpoint_counts_as_one() -> None:
    whole, first = Totals(CPU), Totals(CPU)
    for i in range(2):
        whole.add(*step(0.1 * i, 1 / 3, i), i)
        first.add(*step(0.1 * i, 1 / 3, i), i)
    second = Totals.restore(first.state(), CPU)
    for i in range(2, 5):
        whole.add(*step(0.1 * i, math.nan if i == 4 else 1 / 3, 1), i)
        second.add(*step(0.1 * i, math.nan if i == 4 else 1 / 3, 1), i)
    assert torch.equal(whole.sums.nan_to_num(), second.sums.nan_to_num())
    assert whole.read().top1_pct == second.read().top1_pct
    assert whole.read().bad == second.read().bad == (4, "kl")


def batches(n: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(5 + i, 3, 8, 8), torch.randint(10, (5 + i,))) for i in range(n)]


def fefr() -> Method:
    return assembly.method(recipe(), torch.Size((3, 8, 8)), 10)[0]


def test_evaluation_moves_no_batch_statistics_of_anything() -> None:
    """The fused classifier and the paths too: without gradients a training mode would still move theirs."""
    method = fefr()
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    count(method, batches(), CPU).read()
    assert not any(module.training for module in method.modules())
    after = method.state_dict()
    assert any("fusion" in name and "running_mean" in name for name in after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluation_counts_every_head_over_all_images() -> None:
    method = fefr().eval()
    read = count(method, batches(), CPU).read()
    with torch.no_grad():
        found = [(method(Batch(x, y), torch.ones(())), y) for x, y in batches()]
    assert set(read.top1_pct) == {"student0", "student1", "fused", "ensemble"}
    for head, value in read.top1_pct.items():
        right = sum(int((step.logits[head].argmax(1) == y).sum()) for step, y in found)
        assert value == pytest.approx(100 * right / 18)


def test_evaluation_weighs_distillation_as_at_the_end() -> None:
    method = fefr().eval()
    (x, y) = batches(1)[0]
    with torch.no_grad():
        last = method(Batch(x, y), torch.ones(())).losses["kl_ensemble_fused"]
    assert count(method, [(x, y)], CPU).read().losses["kl_ensemble_fused"] == pytest.approx(last.item())


def test_logits_come_in_order_in_eval_mode_as_float32() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(192, 10)).train()
    z, y = logits_of(network, batches())
    assert z.dtype == torch.float32
    assert torch.equal(y, torch.cat([labels for _, labels in batches()]))
    assert torch.equal(z, torch.cat([network.eval()(images) for images, _ in batches()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_balanced_accuracy_is_the_mean_of_the_classes_that_occur(dtype: torch.dtype) -> None:
    """Of batches of any size, of a network whose maps are bfloat16: numbers up to 256 alone are exact there."""
    labels = torch.cat([torch.zeros(700), torch.full((11,), 2.0), torch.full((5,), 3.0)]).long()
    z = torch.zeros(len(labels), 5)
    z[torch.arange(len(labels)), labels] = 1
    z[:13] = torch.tensor([0.0, 1, 0, 0, 0])  # 13 of 700 wrong
    z[700:704] = torch.tensor([0.0, 0, 0, 0, 1])  # 4 of 11
    perm = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    whole, parts = Totals(CPU, 5), [Totals(CPU, 5) for _ in range(2)]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for n, rows in enumerate(perm.split(90)):
            made = Step({"ce": torch.tensor(1.0)}, {"student0": z[rows], "student1": -z[rows]})
            whole.add(made, labels[rows], 0)
            parts[n % 2].add(made, labels[rows], 0)
    read = whole.read()
    assert read.balanced_pct["student0"] == pytest.approx(100 * (687 / 700 + 7 / 11 + 1) / 3)
    assert read.accuracy_pct("balanced") is read.balanced_pct
    assert read.accuracy_pct("top1")["student0"] == pytest.approx(100 * 699 / 716)
    assert Totals.together([part.state() for part in parts]).read() == read
    assert Totals.restore(whole.state(), CPU).read() == read
    found = by_class(labels.numpy(), (z.argmax(1) == labels).numpy(), 5)
    assert read.balanced_pct["student0"] == pytest.approx(found.balanced_pct, abs=1e-4)


def test_classes_are_counted_where_that_is_asked_for_alone() -> None:
    assert count(fefr(), batches(), CPU).read().balanced_pct == {}
    assert set(count(fefr(), batches(), CPU, classes=10).read().balanced_pct) == {
        "student0",
        "student1",
        "fused",
        "ensemble",
    }


def test_top1_is_a_percentage() -> None:
    z = torch.eye(4)
    assert top1_pct(z, torch.tensor([0, 1, 2, 0])) == 75.0


@pytest.mark.gpu
def test_counting_on_a_gpu_never_waits_for_it() -> None:
    device = torch.device("cuda")
    totals = Totals(device, classes=2)
    made, labels = step(1.0, 0.5, 3)
    made = Step({k: v.cuda() for k, v in made.losses.items()}, {k: v.cuda() for k, v in made.logits.items()})
    labels = labels.cuda()
    totals.add(made, labels, 0)
    with no_waiting():
        totals.add(made, labels, 1)
    assert totals.read().losses == {"ce": 1.0, "kl": 0.5}
