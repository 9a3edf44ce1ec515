"""The average of a method's weights: what it is, when it is in the method, and that everything after it goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import EPOCHS, STEPS, Quiet, built, no_waiting, outcome, recipe, result, resume, rows, signalled, start
from torch import Tensor, nn

from okdc.assembly import student as students
from okdc.data.batches import Normalise, eval_batches
from okdc.errors import Interrupted
from okdc.methods.base import Batch
from okdc.runs.files import read_json
from okdc.training import checkpoint, selection
from okdc.training.averaging import Average
from okdc.training.device import Settings
from okdc.training.metrics import Summary, count
from okdc.training.step import TrainStep

CPU = torch.device("cpu")
PLAIN = Settings("cpu", "float32", "contiguous", 1)
EMA = ("optim.ema=0.9", "optim.lr=0.1")


def a_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(16, 3, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))


def stepped(settings: Settings, *words: str, steps: int = 3) -> tuple[TrainStep, list[dict[str, Tensor]]]:
    """A training step with an average, and the method's state before the first step and after each."""
    job = built(recipe("optim.lr=0.05", *words))
    step = TrainStep(job.method.train(), job.recipe.optim, settings)
    states = [copy.deepcopy(step.method.state_dict())]
    for number in range(steps):
        step(a_batch(number), number / steps)
        states.append(copy.deepcopy(step.method.state_dict()))
    return step, states


@pytest.mark.parametrize("decay", [0.15, 0.9])
@pytest.mark.parametrize("settings", [PLAIN, replace(PLAIN, memory_format="channels_last")])
def test_it_is_the_average_by_hand_of_weights_and_statistics(settings: Settings, decay: float) -> None:
    step, states = stepped(settings, f"optim.ema={decay}")
    assert step.average is not None
    values, expected = step.average.state()["values"], states[0]
    for t, state in enumerate(states[1:]):
        d = min(decay, (1 + t) / (10 + t))
        expected = {
            name: d * expected[name] + (1 - d) * tensor if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
    assert any(name.endswith("running_var") for name in values)
    assert any("fusion" in name for name in values)
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
        assert value.stride() == step.method.state_dict()[name].stride(), name
    with step.average.applied():
        for name, tensor in step.method.state_dict().items():  # under the second student's names, too
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    for name, tensor in step.method.state_dict().items():
        assert torch.equal(tensor, states[-1][name]), name


def test_a_shared_trunk_is_averaged_once_and_a_teacher_not_at_all() -> None:
    method = built(recipe()).method
    method.teacher = nn.BatchNorm2d(3).eval().requires_grad_(False)
    values = Average(method, 0.9).state()["values"]
    learned = {id(t) for t in (*method.parameters(), *method.buffers()) if t.is_floating_point()}
    assert len(values) == len(learned - {id(t) for t in method.teacher.state_dict(keep_vars=True).values()})
    assert not any(name.startswith("teacher.") for name in values)


def test_a_moving_average_of_the_methods_own_is_not_averaged_and_statistics_without_parameters_are() -> None:
    method = built(recipe()).method
    expected = len(Average(method, 0.9).state()["values"])
    method.mean = copy.deepcopy(method.cohort).requires_grad_(False)
    method.norm = nn.BatchNorm2d(3, affine=False)
    values = Average(method, 0.9).state()["values"]
    assert not any(name.startswith("mean.") for name in values)
    assert len(values) == expected + 2


def test_training_goes_on_after_a_look_at_the_average_as_if_there_had_been_none() -> None:
    one, _ = stepped(PLAIN, "optim.ema=0.9")
    other, _ = stepped(PLAIN, "optim.ema=0.9")
    addresses = [p.data_ptr() for p in other.parameters]
    count(other.method, [(a_batch().images, a_batch().labels)], CPU, other.average)
    assert [p.data_ptr() for p in other.parameters] == addresses  # which a CUDA graph has
    for step in (one, other):
        step.method.train()
        step(a_batch(9), 0.5)
    assert_same(one, other)


def assert_same(one: TrainStep, other: TrainStep) -> None:
    assert one.average is not None
    assert other.average is not None
    for a, b in (
        (one.method.state_dict(), other.method.state_dict()),
        (one.average.state()["values"], other.average.state()["values"]),
    ):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(one.average.state()["steps"], other.average.state()["steps"])


def test_a_look_that_fails_leaves_the_method_its_own_weights() -> None:
    step, states = stepped(PLAIN, "optim.ema=0.9")
    assert step.average is not None
    with pytest.raises(KeyboardInterrupt), step.average.applied():
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, states[-1][name]) for name, tensor in step.method.state_dict().items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_copy_of_the_other_weights_is_left_in_autocast(context: Callable[[], AbstractContextManager[None]]) -> None:
    """autocast keeps copies of weights in bfloat16 until its end; in inference mode it keeps none."""
    step, _ = stepped(PLAIN, "optim.ema=0.9", "optim.lr=0.2")
    method, images, average = step.method.eval(), a_batch().images, step.average
    assert average is not None
    network = method.cohort.backbone(0)
    with average.applied(), torch.autocast("cpu", torch.bfloat16), context():
        expected = network(images)
    with torch.autocast("cpu", torch.bfloat16), context():
        own = network(images)
        with average.applied():
            averaged = network(images)
        assert torch.equal(network(images), own)
    assert torch.equal(averaged, expected)
    assert not torch.equal(averaged, own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_of_the_average_answer_with_its_weights(dtype: str) -> None:
    settings = replace(PLAIN, dtype=dtype)
    step, _ = stepped(settings, "optim.ema=0.9", "optim.lr=0.2")
    assert step.average is not None
    batches = [(a_batch(5).images, a_batch(5).labels), (a_batch(6).images, a_batch(6).labels)]
    seen: list[Tensor] = []
    step.method.register_forward_hook(lambda _, __, output: seen.append(output.logits["fused"].clone()))
    with settings.autocast():
        counted = count(step.method, batches, CPU, step.average).read().top1_pct
    assert set(counted) == {
        f"{head}{end}" for head in ("student0", "student1", "fused", "ensemble") for end in ("", "_ema")
    }
    averaged = copy.deepcopy(step.method)
    values = step.average.state()["values"]
    averaged.load_state_dict(averaged.state_dict() | values)  # under a second student's names the tensors of the first
    for images_labels, raw, of_average in zip(batches, seen[::2], seen[1::2], strict=True):
        assert not torch.equal(raw, of_average)
        with torch.inference_mode(), settings.autocast():
            own = step.method.eval()(Batch(*images_labels), torch.ones(()))
            expected = averaged.eval()(Batch(*images_labels), torch.ones(()))
        assert torch.equal(raw, own.logits["fused"])
        assert torch.equal(of_average, expected.logits["fused"])


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


def test_of_a_student_the_better_of_itself_and_its_average_is_kept_and_the_average_of_equals() -> None:
    job = built(recipe("optim.ema=0.9", "cohort.share=none"))
    average = Average(job.method, 0.9)
    for value in average.state()["values"].values():
        value.add_(1)
    own = job.method.cohort.backbone(0).state_dict()["head.fc.weight"].clone()

    def records(epoch: int, raw: float, of_average: float, before: Any = ()) -> list[selection.Record]:
        heads = {"student0": raw, "student0_ema": of_average, "student1": 1.0, "student1_ema": 0.0}
        return selection.best(job, epoch, Summary({}, heads, None), before, average)

    for raw, of_average, averaged in ((50.0, 60.0, True), (60.0, 60.0, True), (60.0, 50.0, False)):
        first, second = records(1, raw, of_average)
        assert (first["averaged"], first["val_top1_pct"]) == (averaged, max(raw, of_average))
        assert torch.equal(first["weights"]["head.fc.weight"], own + averaged)
        assert (second["averaged"], second["val_top1_pct"]) == (False, 1.0)
    better = records(1, 10.0, 60.0)
    assert records(2, 59.0, 10.0, better)[0] is better[0]
    assert records(2, 60.0, 10.0, better)[0]["epoch"] == 2
    assert [record["averaged"] for record in selection.best(job, 3, None, (), average)] == [True, True]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        made = start(*EMA, "cohort.share=none", out=Path("run").absolute())
        yield made


def test_the_log_and_the_result_have_heads_of_both(run: Any) -> None:
    heads = {f"{head}{end}" for head in ("student0", "student1", "fused", "ensemble") for end in ("", "_ema")}
    assert all(set(row["val_top1_pct"]) == heads for row in rows(run))
    assert not any("_ema" in head for row in rows(run) for head in row["train_top1_pct"])
    assert set(result(run)["heads_last_epoch_top1_pct"]) == heads
    assert run.read_result().leading_head == "student0_ema"  # what comparisons and studies call the student


def test_student_json_says_which_it_is_and_the_file_scores_so(run: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.path)
        job = built(recipe())
    for k, row in enumerate(result(run)["cohort"]):
        files = students.files(run, k, result(run)["kept"]["student"])
        averaged = read_json(files[1])["averaged"]
        assert row["averaged"] is averaged
        log = rows(run)[row["epoch"] - 1]["val_top1_pct"]
        assert (
            row["val_top1_pct"]
            == log[f"student{k}_ema" if averaged else f"student{k}"]
            == max(log[f"student{k}"], log[f"student{k}_ema"])
        )
        batches = eval_batches(job.dataset, job.dataset.val, Normalise(*job.normalisation), 500)
        z, y = students.logits_of(students.load(run, k).network, batches)
        assert 100 * (z.argmax(1) == y).double().mean().item() == pytest.approx(row["val_top1_pct"])


def test_without_an_average_no_file_names_one() -> None:
    made = start("optim.epochs=1")
    assert "averaged" not in read_json(made.student)
    assert "averaged" not in result(made)["kept"]
    state, _ = checkpoint.load(made)
    assert state is not None
    assert "average" not in state


@pytest.mark.parametrize("call", [2, STEPS, STEPS + 1, STEPS + 3])
def test_a_run_with_an_average_continues_to_the_bit(run: Any, call: int) -> None:
    with pytest.raises(Interrupted):
        start(*EMA, "cohort.share=none", tell=signalled(call, 2), out=Path("run"))  # type: ignore[arg-type]
    assert outcome(resume(Path("run"), Quiet())) == outcome(run)
    assert len(rows(run)) == EPOCHS


@pytest.mark.gpu
def test_an_average_on_a_gpu_is_updated_without_waiting() -> None:
    method = built(recipe()).method.cuda()
    average = Average(method, 0.9)
    average.update()
    with no_waiting():
        average.update()
    assert average.state()["steps"].item() == 2
