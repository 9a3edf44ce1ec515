"""Relay against its losses by loops; who learns in which part, the mean weights, the handover, and what it costs."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from byhand import CIFAR, SMALL, K, agrees, array, batch, cross_entropy, divergence, hold, make, names, reached, spread
from safetensors.torch import save_file
from torch import Tensor

from okdc import backbones
from okdc.errors import Interrupted, RecipeError
from okdc.methods.base import Batch
from okdc.methods.relay import Relay, RelayConfig, _mixed
from okdc.progress import Silent
from okdc.training import device, memory, timing
from okdc.training import start as starts
from okdc.training.cost import step_macs
from okdc.training.device import Settings
from okdc.training.loop import work
from okdc.training.step import TrainStep

PLAIN = Settings("cpu", "float32", "contiguous", 1)
TAU = 1 / 3


def relay(n: int = 2, alone: bool = False, **keys: Any) -> Relay:
    method = make("relay", n, **keys)
    assert isinstance(method, Relay)
    if alone:
        assert "learns alone now" in method.begin(TAU)
    return method.train()


class Answering(torch.nn.Module):
    """A network that answers row i of NK to the image whose first pixel is i."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def forward(self, images: Tensor) -> Tensor:
        return self.z[images[:, 0, 0, 0].long()]


def numbered(n: int) -> Tensor:
    """n images that know their number."""
    return torch.arange(n).float()[:, None, None, None].expand(n, *SMALL).clone()


# ---------------------------------------------------------------------------------------------------------------------
# The losses


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_apart_each_student_learns_from_labels_alone(n: int, progress: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method, z = relay(n), spread(n)
    images, labels, *_ = batch(n=5)
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(progress))
    agrees(step, {f"ce_student{k}": cross_entropy(z[k], labels) for k in range(n)})
    assert list(step.logits) == [f"student{k}" for k in range(n)]


def transcription(z_0: Tensor, z_mean: Tensor, T: float, judges: str) -> float:
    """1/N·Σ_i T²·KL(z̄_{k(i)} ‖ z_0), or of the mean of all, image by image."""
    n, images = z_mean.shape[:2]
    total = 0.0
    for i in range(images):
        answer = array(z_mean[:, i]).mean(0) if judges == "all" else array(z_mean[i * n // images, i])
        total += divergence(answer[None], array(z_0[i])[None], T)
    return total / images


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("images", [1, 6, 9, 10])
@pytest.mark.parametrize(("T", "judges"), [(1.0, "one"), (3.0, "one"), (2.0, "all")])
def test_alone_the_first_learns_from_the_means(
    judges: str, T: float, images: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = relay(n, alone=True, temperature=T, judges=judges, mix="none")
    z_0, z_mean = spread(1, images, seed=1)[0], spread(n, images)
    monkeypatch.setattr(method.means, "backbones", lambda: [Answering(z) for z in z_mean])
    monkeypatch.setattr(method.cohort, "backbone", lambda _: Answering(z_0))
    step = method(Batch(numbered(images), torch.zeros(images, dtype=torch.int64)), torch.tensor(0.5))
    agrees(step, {"kl_means_student0": transcription(z_0, z_mean, T, judges)})
    assert torch.equal(step.logits["student0"], z_0)


def test_teacher_and_student_see_the_same_mixed_images() -> None:
    method, seen = relay(2, alone=True), []
    for cohort in (method.cohort, method.means):
        cohort.backbone(0).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        cohort.backbone(1).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    one = batch(n=6)
    method(one, torch.tensor(0.5))
    first, second, student = seen
    assert torch.equal(torch.cat([first, second]), student)
    assert not torch.equal(student, one.images)


# ---------------------------------------------------------------------------------------------------------------------
# Who learns


def test_apart_no_loss_reaches_another_student_or_the_means() -> None:
    method = relay(3)
    for k in range(3):
        assert reached(method, f"ce_student{k}") == names(method, f"cohort.students.{k}.")


def test_alone_the_loss_reaches_the_first_student_and_no_other_runs() -> None:
    method, runs = relay(3, alone=True), []
    for k, student in enumerate(method.cohort.backbones()):
        student.register_forward_hook(lambda *_, k=k: runs.append(k))
    assert reached(method, "kl_means_student0") == names(method, "cohort.students.0.")
    assert runs == [0]


def trained(epochs: Sequence[int], of: int = 6, **keys: Any) -> tuple[Relay, TrainStep]:
    """A method after two steps in each of these epochs, of so many."""
    words = [f"method.{key}={value}" for key, value in keys.items()]
    job = harness.built(harness.recipe("method.name=relay", "cohort.share=none", f"optim.epochs={of}", *words))
    assert isinstance(job.method, Relay)
    step = TrainStep(job.method, job.recipe.optim, PLAIN)
    generator = torch.Generator().manual_seed(0)
    for epoch in epochs:
        step.begin(epoch)
        for _ in range(2):
            images, labels = torch.randn(8, *SMALL, generator=generator), torch.randint(K, (8,), generator=generator)
            step(Batch(images, labels), epoch / of)
    return job.method, step


def state(method: Relay) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def test_alone_all_else_stays_what_it_was() -> None:
    """Weight decay and momenta would move it on, and a pass its batch statistics."""
    method, step = trained([0, 1])
    before = state(method)
    step.begin(2)
    for _ in range(3):
        step(batch(n=8), 0.5)
    moved = {name for name, tensor in state(method).items() if not torch.equal(tensor, before[name])}
    own = {name for name in before if name.startswith("cohort.students.0.")}
    assert moved == own | {"handed"}


def test_the_first_student_starts_alone_from_its_mean_once() -> None:
    method, step = trained([0, 1])
    weights = [part.get_parameter("students.0.head.fc.weight") for part in (method.cohort, method.means)]
    assert not torch.equal(*weights)
    assert "learns alone" in step.begin(2)
    mean, own = (dict(part.backbone(0).state_dict()) for part in (method.means, method.cohort))
    assert all(torch.equal(own[name], mean[name]) for name in own if own[name].is_floating_point())
    step(batch(n=8), 0.4)
    after = state(method)
    assert step.begin(3) == ""
    assert all(torch.equal(tensor, after[name]) for name, tensor in state(method).items())


def test_a_method_that_is_loaded_within_the_second_part_is_not_handed_over_again() -> None:
    method, step = trained([0, 1, 2])
    other, again = trained([])
    again.load(step.state())
    assert again.begin(3)
    assert all(torch.equal(tensor, method.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("call", [2, 4, 5, 8])
def test_a_run_that_is_stopped_in_either_part_continues_to_the_bit(call: int) -> None:
    words = ("method.name=relay", "cohort.share=none", "optim.ema=0.9", "optim.epochs=3")
    with pytest.raises(Interrupted):
        harness.start(*words, tell=harness.signalled(call, signal.SIGINT), out=Path("run"))
    assert harness.outcome(harness.resume(Path("run"))) == harness.uninterrupted(*words)


# ---------------------------------------------------------------------------------------------------------------------
# The mean weights


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.998])
def test_the_means_are_averages_by_hand_of_weights_and_statistics(decay: float) -> None:
    method, step = trained([], decay=decay)
    expected = {name: tensor.double() for name, tensor in method.cohort.state_dict().items()}
    step.begin(0)
    for t in range(4):
        step(batch(n=16), t / 20)
        d = min((1 + t) / (10 + t), decay)
        for name, tensor in method.cohort.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * tensor.double()
    for name, tensor in method.means.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
    assert method.steps.item() == 4


def test_the_means_are_judged_in_evaluation_and_are_no_part_of_a_step() -> None:
    method = relay(3)
    images, labels, *_ = batch()
    assert "means" not in method(Batch(images, labels), torch.tensor(0.1)).logits
    method.eval()
    answers = [network(images).float() for network in method.means.backbones()]
    logits = method(Batch(images, labels), torch.tensor(0.1)).logits
    torch.testing.assert_close(logits["means"], torch.stack(answers).mean(0))
    assert not any(p.requires_grad for p in method.means.parameters())
    method.train()
    assert not any(module.training for module in method.means.modules())


# ---------------------------------------------------------------------------------------------------------------------
# Mixed images


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_each_image_has_a_rectangle_of_the_one_before_it(memory_format: torch.memory_format) -> None:
    images = numbered(9).to(memory_format=memory_format)
    torch.manual_seed(3)
    mixed = _mixed(images)
    assert mixed.is_contiguous(memory_format=memory_format)
    assert sum((image != i).any() for i, image in enumerate(mixed)) > 4
    for i, image in enumerate(mixed):
        other = image != i
        assert set(image[other].tolist()) <= {float((i - 1) % 9)}
        rows, columns = other[0].any(1), other[0].any(0)
        assert torch.equal(other, (rows[:, None] & columns[None]).expand_as(other)), "the same in all colours"
        for line in (rows, columns):
            (inside,) = line.nonzero(as_tuple=True)
            assert len(inside) in (0, int(inside.max() - inside.min()) + 1 if len(inside) else 0)


def test_the_share_of_a_rectangle_is_even_before_the_edges_cut_it() -> None:
    """Of a side s, with its middle anywhere on a side of 1, s - s²/4 is inside on average, and s² is even in 0..1."""
    torch.manual_seed(0)
    images = torch.arange(4000).float()[:, None, None, None].expand(4000, 1, 16, 16)
    share = (_mixed(images) != images).float().mean((1, 2, 3))
    # E[(s - s²/4)²] for s² even: E[s²] - E[s³]/2 + E[s⁴]/16 = 1/2 - 1/5 + 1/48
    assert share.mean().item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.015)
    assert share.max() > 0.9
    assert share.min() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Its price, and what is refused


def test_apart_a_step_costs_all_students_and_alone_the_first_and_a_forward_pass() -> None:
    """A baseline's step is three forward passes but for the gradient of its images."""
    baseline = step_macs(make("baseline", 1, images=CIFAR), 12)
    assert baseline is not None
    first = 12 * 32 * 32 * 3 * 16 * 9  # the multiply-adds of the first convolution
    forward = (baseline + first) / 3
    for n, tau in ((2, 0.5), (4, 1 / 3), (3, 0.9)):
        found = step_macs(make("relay", n, images=CIFAR, apart=tau), 12)
        assert found == pytest.approx(tau * n * baseline + (1 - tau) * (baseline + forward), rel=1e-6)
    dear = step_macs(make("relay", 4, images=CIFAR, judges="all"), 12)
    assert dear == pytest.approx(4 / 3 * baseline + 2 / 3 * (baseline + 4 * forward), rel=1e-6)


@pytest.mark.parametrize(("tau", "epochs"), [(0.05, 6), (0.001, 100), (1 / 3, 2)])
def test_a_part_of_one_epoch_costs_what_its_steps_compute(tau: float, epochs: int) -> None:
    """It may begin before τ and have its middle behind it."""
    baseline = step_macs(make("baseline", 1, images=CIFAR), 12)
    assert baseline is not None
    forward = (baseline + 12 * 32 * 32 * 3 * 16 * 9) / 3
    method = make("relay", 4, images=CIFAR, apart=tau)
    assert method.first_epochs(epochs) == [0, 1]
    expected = (4 * baseline + (epochs - 1) * (baseline + forward)) / epochs
    assert step_macs(method, 12, epochs) == pytest.approx(expected, rel=1e-6)


def test_the_time_left_is_reckoned_with_what_the_parts_cost() -> None:
    """Two students apart for two epochs of six: a step costs 2 baseline steps of them, then about 4/3."""
    job = harness.built(harness.recipe("method.name=relay", "cohort.share=none", "optim.epochs=6"))
    own, steps = work(job), job.steps // 6
    assert own.of(2 * steps - 1) == 1
    assert own.of(2 * steps) == pytest.approx(4 / 3 / 2, rel=0.05)
    assert own.left(0) == pytest.approx(2 * steps + 4 * steps * own.of(2 * steps))
    other = harness.built(harness.recipe("method.name=dml", "cohort.share=none", "optim.epochs=6"))
    assert work(other).left(0) == other.steps


@pytest.mark.parametrize(
    "keys",
    [{"apart": 0.0}, {"apart": 1.0}, {"decay": 1.0}, {"temperature": 0.0}, {"mix": "mixup"}, {"judges": "two"}],
)
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        RelayConfig.model_validate({"name": "relay", **keys})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("optim.epochs=1",), r"has 2 parts: expected at least 2 epochs, found 1"),
        (("optim.epochs=3", "method.apart=0.9"), r"has 2 parts: expected at least 10 epochs, found 3"),
        (
            ("optim.epochs=3", "method.apart=0.9999999999"),
            r"has 2 parts: expected at least [0-9,]{13} epochs",
        ),
        (("optim.patience=2", "cohort.keep_epoch=best"), r"optim\.patience=2 could end"),
    ],
)
def test_a_training_without_one_of_its_parts_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        harness.start("method.name=relay", "cohort.share=none", *words)
    assert re.search(said, "\n".join(caught.value.details))
    assert not Path("runs").exists()


@pytest.mark.parametrize("key", ["optim.freeze_epochs=1", "optim.freeze_epochs=3", "optim.backbone_lr=0.5"])
def test_peers_that_started_from_trained_weights_stop_too(key: str) -> None:
    """What `optim.freeze_epochs` fixes and lets learn again is not what the method fixes."""
    save_file(backbones.build("resnet8", 7, SMALL).weights(), "w.safetensors")
    run = harness.start(
        "method.name=relay", "cohort.share=none", "cohort.weights=w.safetensors", "optim.epochs=6", key, out=Path("run")
    )
    assert [len(row["losses"]) for row in run.rows()] == [2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("call", [2, 3, 4])
def test_what_is_kept_has_learned_alone(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation was best in the first part: no epoch of it is kept."""
    from okdc.training import selection

    monkeypatch.setattr(selection, "_accuracy", lambda _, record: -record["epoch"])
    words = ("method.name=relay", "cohort.share=none", "cohort.keep_epoch=best", "optim.epochs=6")
    with pytest.raises(Interrupted):
        harness.start(*words, tell=harness.signalled(4 * call, signal.SIGINT), out=Path("run"))
    assert harness.result(harness.resume(Path("run")))["kept"]["epoch"] == 3


def test_a_check_counts_the_memory_of_the_part_that_needs_the_most() -> None:
    needed = {}
    for name in ("dml", "relay"):
        job = harness.built(harness.recipe(f"method.name={name}", "cohort.share=none"))
        settings = starts.decided(device.choose(job.recipe.engine, 8), job)
        _, training = timing.measure(job, settings, Silent(), 0.0)
        needed[name] = memory.needed(training)
    assert needed["relay"].gradients == needed["dml"].gradients
    assert needed["relay"].weights > needed["dml"].weights
    assert needed["relay"].maps == pytest.approx(needed["dml"].maps, rel=0.05)


@pytest.mark.parametrize("apart", [1 / 3, 0.3333333334, 0.33333333334, 0.5, 0.999])
@pytest.mark.parametrize("epochs", [6, 7, 900, 3000])
def test_a_part_begins_where_it_is_reckoned_to_begin(apart: float, epochs: int) -> None:
    method = relay(2, apart=apart)
    _, first = method.first_epochs(epochs)
    assert [method.part(epoch / epochs) for epoch in range(epochs)] == [0] * first + [1] * (epochs - first)


def test_whole_epochs_are_what_a_training_costs() -> None:
    """A third of four epochs are two."""
    apart, alone, baseline = (
        step_macs(made, 12)
        for made in (make("relay", 4, apart=0.999), make("relay", 4, apart=0.001), make("baseline", 1))
    )
    assert apart is not None and alone is not None and baseline is not None
    found = step_macs(make("relay", 4), 12, epochs=4)
    assert found == pytest.approx(apart / 2 + alone / 2, rel=2e-3)
    assert step_macs(make("relay", 4), 12, epochs=6) == step_macs(make("relay", 4), 12)


def test_students_may_differ() -> None:
    method = make("relay", ["resnet14", "resnet8"], images=CIFAR)
    method.begin(0.5)
    step = method.train()(batch(CIFAR), torch.tensor(0.5))
    step.losses["kl_means_student0"].backward()
    assert all(p.grad is not None for p in method.cohort.backbone(0).parameters())
