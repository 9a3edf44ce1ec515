"""A training that ends when validation has been no better for long enough."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from harness import STEPS, Quiet, built, outcome, recipe, resume, rows, signalled, start
from making import make_run

from okdc.assembly import job as assembly
from okdc.comparison.compare import compare
from okdc.errors import Interrupted, RecipeError
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import stopping

WORDS = ("optim.patience=2", "optim.epochs=12", "optim.lr=0.4", "cohort.share=none")


def log(*values: float, metric: str = "top1") -> list[dict[str, Any]]:
    """student1 is always as good as `values` says, student0 never any good."""
    return [{f"val_{metric}_pct": {"student0": 0.0, "student1": value, "fused": 99.0}} for value in values]


@pytest.mark.parametrize(
    ("values", "waited"),
    [((), 0), ((50.0,), 0), ((50.0, 60.0), 0), ((60.0, 50.0), 1), ((60.0, 60.0, 60.0), 2), ((5.0, 7.0, 6.0, 7.0), 2)],
)
def test_an_equal_epoch_is_no_better_one(values: tuple[float, ...], waited: int) -> None:
    assert stopping.waited(built(recipe("optim.patience=2")), log(*values)) == waited


def test_only_students_that_may_be_kept_are_waited_for() -> None:
    one, other = (built(recipe("optim.patience=2", f"cohort.keep={k}")) for k in (1, 0))
    rising = log(50.0, 60.0, 70.0)
    assert not stopping.stalled(one, rising)
    assert stopping.stalled(other, rising)


def test_the_metric_that_chooses_is_waited_for() -> None:
    job = built(recipe("optim.patience=2", "cohort.keep_metric=balanced"))
    rising, level = log(50.0, 60.0, 70.0, metric="balanced"), log(50.0, 50.0, 50.0)
    assert not stopping.stalled(job, [a | b for a, b in zip(rising, level, strict=True)])


def test_an_average_that_gets_better_is_waited_for() -> None:
    job = built(recipe("optim.patience=2", "optim.ema=0.9"))
    table = [
        {"val_top1_pct": {"student0": 5.0, "student1": 5.0, "student0_ema": 1.0, "student1_ema": v}} for v in (6, 7, 8)
    ]
    assert not stopping.stalled(job, table)


def test_without_patience_no_training_ends_early() -> None:
    assert not stopping.stalled(built(recipe()), log(*[50.0] * 99))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that ended early, and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("ended"))
        tell = Quiet()
        yield start(*WORDS, out=Path("ended").absolute(), tell=tell), tell


def test_a_run_ends_as_its_log_says_and_says_so(ended: Any) -> None:
    run, tell = ended
    values = [max(row["val_top1_pct"][f"student{k}"] for k in (0, 1)) for row in rows(run)]
    first = next(n for n in range(2, 99) if max(values[: n - 1]) >= max(values[n - 1 : n + 1]))
    assert len(values) == first + 1 < 12
    found = read_json(run.result)
    assert (found["epochs"], found["epochs_trained"]) == (12, len(values))
    (note,) = [note for note in tell.notes if "optim.patience" in note]
    assert f"epoch {len(values)} of 12" in note
    assert "the end of the schedule was not reached" in note
    assert run.summary()["epoch"] == len(values)
    assert run.state() == "complete"


def test_images_per_second_are_of_the_epochs_that_were_trained(ended: Any) -> None:
    found = read_json(ended[0].result)
    images = found["epochs_trained"] * STEPS * 16
    assert found["images_per_s"] == pytest.approx(images / found["seconds"], rel=0.01)


def test_a_run_of_all_its_epochs_says_nothing_of_them() -> None:
    tell = Quiet()
    run = start("optim.patience=3", tell=tell)
    assert "epochs_trained" not in read_json(run.result)
    assert not any("optim.patience" in note for note in tell.notes)


def test_a_run_that_was_stopped_at_any_moment_ends_at_the_same_epoch(ended: Any) -> None:
    """After its last epoch, too, whose checkpoint is the end."""
    run, _ = ended
    expected, calls = outcome(run), len(rows(run)) * (STEPS + 1)
    for number, call in enumerate((2, calls - STEPS - 1, calls - 1, calls)):
        path = Path(f"run{number}")
        with pytest.raises(Interrupted):
            start(*WORDS, tell=signalled(call, signal.SIGTERM), out=path)
        assert outcome(resume(path)) == expected


def test_patience_needs_validation_and_the_best_epoch() -> None:
    with pytest.raises(RecipeError, match=r"optim\.patience=2"):
        assembly.dataset(recipe("optim.patience=2", "data.val_fraction=0", "cohort.keep=0"))
    with pytest.raises(RecipeError) as caught:
        recipe("optim.patience=2", "cohort.keep_epoch=last")
    assert [problem.partition(":")[0] for problem in caught.value.details] == ["optim.patience"]


def test_a_comparison_names_runs_that_ended_early() -> None:
    early = {"epochs_trained": 30}
    patient = {"optim": {"epochs": 60, "batch_size": 32, "lr": 0.05, "patience": 5}}
    make_run("runs/a", "baseline", recipe=patient, result=early)
    make_run("runs/b", "fefr", recipe=patient)
    report = compare([Path("runs")])
    assert report["epochs"] == 60
    assert any("optim.patience" in note and "30 in runs/a" in note for note in report["notes"])
    assert RunDir(Path("runs/a")).summary()["epoch"] == 30
