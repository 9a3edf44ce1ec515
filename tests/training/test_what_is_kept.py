"""What a training leaves of its answers and of its time: predictions.npz, and the seconds of log.jsonl."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import EPOCHS, STEPS, Quiet, built, recipe, resume, start, train
from pictures import streamed, write_imagenet

from okdc.assembly import student as students
from okdc.data.batches import Normalise, TrainBatches, eval_batches
from okdc.data.images import Pixels
from okdc.data.ondemand import OnDemand
from okdc.errors import DiskError, Interrupted, TrainingError
from okdc.runs import predictions
from okdc.runs.artefacts import Result
from okdc.runs.files import read_json
from okdc.runs.predictions import Predictions
from okdc.runs.run import RunDir
from okdc.training import loop, result
from okdc.training.metrics import count


def read(run: RunDir) -> tuple[Predictions, Result]:
    judged = run.read_result()
    return predictions.read(run.predictions, judged), judged


def same_logits(found: predictions.Answers, logits: torch.Tensor) -> None:
    """As float16 keeps them: the distance from the largest to 11 bits."""
    np.testing.assert_allclose(found.logits, logits.numpy(), rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------------------------------------------------------------
# predictions.npz


@pytest.mark.parametrize("keep", [0, 1])
def test_the_answers_are_those_of_every_student_and_head(keep: int) -> None:
    job = built(recipe(f"cohort.keep={keep}", "cohort.share=none", "optim.lr=0.2"))
    run = train(job)
    found, judged = read(run)
    data = job.dataset
    for k, bits in enumerate(found.students):
        logits, labels = students.answers(students.load(run, k), data, data.test)
        assert (bits == (logits.argmax(1) == labels).numpy()).all()
        assert 100 * bits.mean() == pytest.approx(judged.cohort[k].top1_pct, abs=1e-4)
    kept = students.load(run)
    assert kept.info.student == keep
    for split, rows in ((found.test, data.test), (found.validation, data.val)):
        logits, labels = students.answers(kept, data, rows)
        assert (split.rows == rows.numpy()).all()
        assert (split.labels == labels.numpy()).all()
        same_logits(split, logits)
    batches = eval_batches(data, data.test, Normalise(*job.normalisation), 500)
    heads = count(job.method, batches, torch.device("cpu")).read().top1_pct  # the method is as the last epoch left it
    assert {name: 100 * bits.mean() for name, bits in found.heads.items()} == pytest.approx(heads)


def test_without_test_images_the_validation_images_judge() -> None:
    job = built(recipe("optim.epochs=1"))
    run = train(replace(job, dataset=replace(job.dataset, test=job.dataset.test[:0])))
    found, judged = read(run)
    assert (judged.judged_on, judged.images) == ("validation", 50)
    assert found.judging is found.validation
    assert (len(found.test.rows), len(found.validation.rows)) == (0, 50)
    assert {len(bits) for bits in (*found.students, *found.heads.values())} == {50}
    logits, _ = students.answers(students.load(run), job.dataset, job.dataset.val)
    same_logits(found.validation, logits)


def test_without_validation_images_there_are_no_answers_to_them() -> None:
    found, _ = read(start("data.val_fraction=0", "optim.epochs=1", "cohort.keep=0"))
    assert (len(found.validation.rows), len(found.test.rows)) == (0, 797)
    assert found.validation.relative.shape == (0, 10)


def test_a_file_is_decoded_once_for_all_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[int] = Counter()
    decode, judge = OnDemand.decode, result.judge

    def counted(self: OnDemand, row: int, transform: Callable[..., Pixels]) -> Pixels:
        decoded[row] += 1
        return decode(self, row, transform)

    def judged(*args: Any) -> None:
        decoded.clear()
        judge(*args)

    monkeypatch.setattr(OnDemand, "decode", counted)
    monkeypatch.setattr(result, "judge", judged)
    words = streamed(write_imagenet(tmp_path / "root"), "optim.epochs=1", "engine.workers=0")
    found, _ = read(start(*words))
    rows = [*found.test.rows.tolist(), *found.validation.rows.tolist()]
    assert (len(found.test.rows), len(found.validation.rows)) == (8, 8)
    assert decoded == dict.fromkeys(rows, 1)


def test_a_kept_student_whose_answers_are_no_numbers_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = students.open_written

    def ruined(*args: Any) -> Any:
        network, info = opened(*args)
        next(network.parameters()).data.fill_(float("nan"))
        return network, info

    monkeypatch.setattr(students, "open_written", ruined)
    with pytest.raises(TrainingError, match="a logit of the kept student is not finite"):
        start("optim.epochs=1", out=Path("run"))
    assert RunDir(Path("run")).state() == "failed"


def test_a_full_disk_at_the_predictions_leaves_a_run_that_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start(out=Path("whole"))

    def full(path: Path, content: bytes) -> None:  # noqa: ARG001
        raise DiskError(f"{path}: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "write_file", full)
        with pytest.raises(DiskError) as caught:
            start(out=Path("run"))
    assert "okdc resume run" in caught.value.hint
    run = RunDir(Path("run"))
    assert run.state() == "resumable"
    assert resume(run.path).state() == "complete"
    assert run.predictions.read_bytes() == whole.predictions.read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Seconds, on a clock that only the work moves

DATA, STEP, VALIDATION = 10.0, 1.0, 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A batch takes 10 seconds, the rest of a step 1 (see `ticking`), the pass over the validation images 100."""
    clock = SimpleNamespace(now=0.0)
    epoch = TrainBatches.epoch

    def slow(self: TrainBatches, number: int, start: int = 0) -> Iterator[Any]:
        for batch in epoch(self, number, start):
            clock.now += DATA
            yield batch

    def validated(*args: Any) -> Any:
        clock.now += VALIDATION
        return count(*args)

    monkeypatch.setattr(TrainBatches, "epoch", slow)
    monkeypatch.setattr(loop, "count", validated)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def ticking(clock: SimpleNamespace, stop_at: int | None = None) -> Quiet:
    """A progress that each step moves the clock at, and that sends Ctrl-C at one of its calls."""

    def tick(call: int) -> None:
        clock.now += STEP
        if call == stop_at:
            signal.raise_signal(signal.SIGINT)

    return Quiet(tick)


def seconds(run: RunDir) -> list[tuple[float, ...]]:
    names = ("seconds_steps", "seconds_data", "seconds_validation", "seconds")
    return [tuple(row[name] for name in names) for row in run.rows()]


def test_the_log_tells_steps_data_and_validation_apart(clock: SimpleNamespace) -> None:
    run = start(tell=ticking(clock))
    epoch = (STEPS * STEP, STEPS * DATA, VALIDATION)
    assert seconds(run) == [(*epoch, sum(epoch))] * EPOCHS
    assert read_json(run.result)["seconds"] == EPOCHS * STEPS * (STEP + DATA)


@pytest.mark.parametrize("call", [1, 2, STEPS + 1 + 1, STEPS + 1 + 2])
def test_an_epoch_that_was_interrupted_has_the_seconds_of_all_its_starts(clock: SimpleNamespace, call: int) -> None:
    """The batch that was drawn as the signal came is drawn again: it is waited for twice."""
    with pytest.raises(Interrupted):
        start(tell=ticking(clock, call), out=Path("run"))
    clock.now += 5000  # until somebody resumes it
    rows = seconds(resume(Path("run"), ticking(clock)))
    within = call // (STEPS + 1)
    for number, row in enumerate(rows):
        epoch = (STEPS * STEP, (STEPS + (number == within)) * DATA, VALIDATION)
        assert row == (*epoch, sum(epoch))
