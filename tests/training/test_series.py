"""Several seeds trained as one thing: stopped, killed and continued, each run equals the one that was trained alone."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Answer, ask, write_tree
from harness import CALLS, Quiet, outcome, series_in_child, signalled, uninterrupted, write_recipe
from making import write_json

from okdc.assembly.job import Job
from okdc.cli import console
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.runs.series import SeriesDir
from okdc.training import loop as engine
from okdc.training import result

Captured = pytest.CaptureFixture[str]
SEEDS = (0, 1, 2)
PATH = Path("runs/tiny-1")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class AtNote(Quiet):
    """Signals this process at the first note that starts with `text`: between two trainings."""

    def __init__(self, text: str, number: signal.Signals) -> None:
        super().__init__()
        self.text, self.number = text, number

    def note(self, text: str) -> None:
        super().note(text)
        if text.startswith(self.text):
            os.kill(os.getpid(), self.number)


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[Quiet], Quiet]:
    """Let a command talk to this listener."""

    def use(listener: Quiet) -> Quiet:
        monkeypatch.setattr(console, "Talk", lambda: listener)
        return listener

    return use


Tell = Callable[[Quiet], Quiet]


def distill(capsys: Captured, *words: str) -> Answer:
    return ask(capsys, "distill", str(write_recipe()), "--seeds", "0,1,2", *words)


def equal_to_runs_alone(*seeds: int) -> bool:
    """Whether each seed's log, numbers, weights and last state are those of `distill seed=k`, to the bit."""
    for k in seeds or SEEDS:
        assert outcome(RunDir.open(PATH / f"seed{k}")) == uninterrupted(f"seed={k}")
    return True


# --- in one go


def test_each_seed_of_a_series_is_the_run_of_that_seed_to_the_bit(capsys: Captured) -> None:
    answer = distill(capsys, "--json")
    assert answer.code == 0, answer.err
    assert equal_to_runs_alone()
    assert len({read_json(PATH / f"seed{k}/result.json")["weights_sha256"] for k in SEEDS}) == 3
    assert SeriesDir.open(PATH).state() == "complete"


def test_the_facts_of_a_series_are_those_of_its_runs(capsys: Captured) -> None:
    facts = json.loads(distill(capsys, "--json").out)
    assert set(facts) == {
        "series", "state", "method", "judged_on", "images", "runs", "n", "top1_pct_mean", "top1_pct_sd",
    }  # fmt: skip
    results = [read_json(PATH / f"seed{k}/result.json") for k in SEEDS]
    top1 = [found["kept"]["top1_pct"] for found in results]
    assert [row["top1_pct"] for row in facts["runs"]] == top1
    assert [row["weights_sha256"] for row in facts["runs"]] == [found["weights_sha256"] for found in results]
    assert [row["seed"] for row in facts["runs"]] == [found["seed"] for found in results] == list(SEEDS)
    assert facts["top1_pct_mean"] == pytest.approx(statistics.mean(top1), abs=1e-4)
    assert facts["top1_pct_sd"] == pytest.approx(statistics.stdev(top1), abs=1e-4)
    assert (facts["series"], facts["n"], facts["images"]) == ("runs/tiny-1", 3, 797)


def test_a_series_prints_a_line_a_seed_and_the_spread_over_them(capsys: Captured) -> None:
    answer = distill(capsys)
    assert [line.split()[0] for line in answer.out.splitlines()[1:4]] == ["0", "1", "2"]
    facts = SeriesDir.open(PATH).summary()
    spread = f"{facts['top1_pct_mean']:.2f} ± {facts['top1_pct_sd']:.2f} % (mean ± standard deviation)"
    assert f"fefr, kept student: {spread} on 797 test images, n = 3 seeds" in answer.out
    assert answer.err.count("device cpu") == 1, "what holds for all seeds is said once"
    assert "next: okdc profile runs/tiny-1/seed" in answer.err


def test_one_seed_is_a_series_without_a_spread(capsys: Captured) -> None:
    answer = ask(capsys, "distill", str(write_recipe()), "--seeds", "7", "-o", "here")
    assert answer.code == 0
    assert "n = 1 seed: its spread is unknown" in answer.out
    assert "deviation" not in answer.out
    assert outcome(RunDir.open(Path("here/seed7"))) == uninterrupted("seed=7")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0,0"], "seed 0 is named twice"),
        (["--seeds", "0,1", "seed=3"], "both --seeds and seed= were given"),
        (["--seeds", "0", "1"], "1 is no recipe\n\nhint: --seeds 0,1\n"),
    ],
)
def test_a_bad_command_line_is_refused_before_anything_is_made(capsys: Captured, words: list[str], said: str) -> None:
    answer = ask(capsys, "distill", *words)
    assert answer.code == 2
    assert answer.err.startswith("error[usage]: ")
    assert said in answer.err
    assert not Path("runs").exists()


def test_a_series_that_came_to_nothing_leaves_no_folder(capsys: Captured) -> None:
    answer = ask(capsys, "distill", "folder_resnet20", "data.root=nowhere", "--seeds", "0,1")
    assert answer.code == 2
    assert "nowhere" in answer.err
    assert list(Path("runs").iterdir()) == []


# --- stopped and continued


@pytest.mark.parametrize("call", [1, CALLS, CALLS + 1, 3 * CALLS])
def test_a_series_stopped_in_a_training_goes_on_to_the_bit(capsys: Captured, tell: Tell, call: int) -> None:
    number = list(SIGNALS)[call % 2]
    tell(signalled(call, number))
    stopped = distill(capsys)
    assert stopped.code == SIGNALS[number]
    assert stopped.err.endswith("\nhint: okdc resume runs/tiny-1\n")
    assert number.name in stopped.err
    assert SeriesDir.open(PATH).left()[0] == (call - 1) // CALLS
    tell(Quiet())
    assert ask(capsys, "resume").code == 0
    assert equal_to_runs_alone()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("seed 0", signal.SIGINT),
        ("the students", signal.SIGTERM),
        ("seed 1", signal.SIGTERM),
        ("run runs/tiny-1/seed1", signal.SIGINT),
        ("seed 2", signal.SIGINT),
    ],
)
def test_a_series_stopped_between_trainings_goes_on_to_the_bit(
    capsys: Captured, tell: Tell, text: str, number: signal.Signals
) -> None:
    tell(AtNote(text, number))
    stopped = distill(capsys)
    assert stopped.code == SIGNALS[number], stopped.err
    assert number.name in stopped.err
    assert stopped.err.endswith("\nhint: okdc resume runs/tiny-1\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    tell(Quiet())
    assert ask(capsys, "resume", "runs/tiny-1").code == 0
    assert equal_to_runs_alone()


@pytest.mark.parametrize("seed", range(2))
def test_a_series_stopped_again_and_again_ends_as_if_it_had_not_been(capsys: Captured, tell: Tell, seed: int) -> None:
    choose = random.Random(seed)
    codes: list[int] = []
    while not codes or codes[-1]:
        tell(signalled(choose.randint(1, 9), choose.choice(list(SIGNALS))))
        codes.append((ask(capsys, "resume") if codes else distill(capsys)).code)
    assert len(codes) > 3
    assert set(codes) <= {0, 130, 143}
    assert equal_to_runs_alone()


def test_seeds_that_are_complete_are_not_trained_again(capsys: Captured, tell: Tell) -> None:
    tell(signalled(CALLS + 2, signal.SIGINT))
    distill(capsys)
    before = (PATH / "seed0/result.json").stat().st_mtime_ns
    listener = tell(Quiet())
    facts = json.loads(ask(capsys, "resume", "--json").out)
    assert facts["n"] == 3
    assert len(listener.counts) == 2 * CALLS - 2
    assert (PATH / "seed0/result.json").stat().st_mtime_ns == before


def test_a_complete_series_has_nothing_to_resume_and_shows_its_result(capsys: Captured, tell: Tell) -> None:
    first = distill(capsys)
    listener = tell(Quiet())
    again = ask(capsys, "resume", "runs/tiny-1")
    assert (again.code, again.out) == (0, first.out)
    assert listener.notes == ["runs/tiny-1: no seed is left to train"]


def test_one_seed_of_an_interrupted_series_can_be_continued_alone(capsys: Captured, tell: Tell) -> None:
    tell(signalled(CALLS + 2, signal.SIGINT))
    distill(capsys)
    tell(Quiet())
    assert ask(capsys, "resume", "runs/tiny-1/seed1").code == 0
    assert SeriesDir.open(PATH).left() == [2]
    assert ask(capsys, "resume").code == 0
    assert equal_to_runs_alone()


def test_a_series_that_another_process_trains_is_refused_and_loses_nothing(capsys: Captured, tell: Tell) -> None:
    tell(signalled(CALLS + 2, signal.SIGINT))
    distill(capsys)
    with SeriesDir.open(PATH).held():
        answer = ask(capsys, "resume", "runs/tiny-1")
        assert "no resumable run" in ask(capsys, "resume").err
        assert "runs/tiny-1 is being trained by another process" in ask(capsys, "resume", "runs/tiny-1/seed1").err
    assert answer.code == 2
    assert "runs/tiny-1 is being trained by another process" in answer.err
    with RunDir.open(PATH / "seed1").held():
        assert "runs/tiny-1/seed1 is being trained by another process" in ask(capsys, "resume", "runs/tiny-1").err
    tell(Quiet())
    assert ask(capsys, "resume").code == 0
    assert equal_to_runs_alone()


# --- what must not differ between seeds


def test_seeds_to_come_are_not_trained_with_other_settings(capsys: Captured, tell: Tell) -> None:
    tell(AtNote("seed 1", signal.SIGINT))
    ask(capsys, "distill", str(write_recipe()), "engine.threads=auto", "--seeds", "0,1")
    torch.set_num_threads(2)
    answer = ask(capsys, "resume")
    assert answer.code == 2
    assert "error[device]: runs/tiny-1: the seeds to come would be trained otherwise: threads 2 now, 1" in answer.err
    assert "OMP_NUM_THREADS=1 okdc resume runs/tiny-1" in answer.err
    torch.set_num_threads(1)
    tell(Quiet())
    assert ask(capsys, "resume").code == 0


def test_seeds_to_come_do_not_learn_from_other_images(capsys: Captured, tell: Tell) -> None:
    root = write_tree(Path("root"), {"train": {"a": 30, "b": 30}, "test": {"a": 9, "b": 9}})
    words = ["data.name=folder", "data.root=root", "data.train_images=32"]
    tell(AtNote("seed 1", signal.SIGINT))
    assert distill(capsys, *words).code == 130
    tell(Quiet())
    moved = root / "train/a/029.png"
    moved.rename(root / "train/b/100.png")
    answer = ask(capsys, "resume")
    assert answer.code == 2
    assert "error[data]: the images are not those of runs/tiny-1/seed0" in answer.err
    assert SeriesDir.open(PATH).left() == [1, 2]
    (root / "train/b/100.png").rename(moved)
    root.rename("elsewhere")
    assert ask(capsys, "resume").code == 2
    assert ask(capsys, "resume", "--data-root", "elsewhere").code == 0
    hashes = {read_json(PATH / f"seed{k}/run.json")["data_sha256"] for k in SEEDS}
    assert len(hashes) == 1


def test_other_versions_than_the_seeds_before_are_said(capsys: Captured, tell: Tell) -> None:
    tell(AtNote("seed 1", signal.SIGINT))
    distill(capsys)
    series = SeriesDir.open(PATH)
    write_json(series.info, read_json(series.info) | {"versions": {"torch": "1.0"}})
    listener = tell(Quiet())
    assert ask(capsys, "resume").code == 0
    assert any(note.startswith("not exact to the bit: torch 1.0 then") for note in listener.notes)


# --- a seed that fails


@pytest.fixture
def ruined(monkeypatch: pytest.MonkeyPatch) -> int:
    """Seed 1 starts from a weight that is not a number."""
    train = engine.train

    def ruin(job: Job, *rest: Any) -> None:
        if job.recipe.seed == 1:
            with torch.no_grad():
                next(job.method.parameters()).fill_(torch.nan)
        train(job, *rest)

    monkeypatch.setattr(engine, "train", ruin)
    return 1


@pytest.mark.usefixtures("ruined")
def test_a_seed_that_fails_is_named_at_the_end_and_the_others_are_trained(capsys: Captured) -> None:
    answer = distill(capsys)
    assert answer.code == 2
    assert "error[training]: 1 of 3 seeds of runs/tiny-1 failed: 1\n  seed 1: the loss term" in answer.err
    assert [line.split()[:2] for line in answer.out.splitlines()[1:4]] == [
        ["0", "complete"],
        ["1", "failed"],
        ["2", "complete"],
    ]
    assert "n = 2 seeds" in answer.out
    assert equal_to_runs_alone(0, 2)


@pytest.mark.usefixtures("ruined")
def test_a_failed_seed_is_one_json_with_the_facts_of_the_others_and_fails_again(capsys: Captured, tell: Tell) -> None:
    first = distill(capsys, "--json")
    facts = json.loads(first.out)
    assert (first.code, facts["error"], facts["state"], facts["n"]) == (2, "training", "failed", 2)
    assert "not finite" in facts["runs"][1]["failed"]
    assert facts["runs"][1]["top1_pct"] is None
    listener = tell(Quiet())
    again = ask(capsys, "resume", "runs/tiny-1", "--json")
    assert (again.code, json.loads(again.out)) == (2, facts)
    assert listener.counts == []


def test_ctrl_c_while_a_seed_is_judged_is_continued(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(result, "judge", interrupted)
        answer = distill(capsys)
    assert answer.code == 130
    assert answer.err.endswith("\nhint: okdc resume runs/tiny-1\n")
    assert ask(capsys, "resume").code == 0
    assert equal_to_runs_alone()


# --- death


def test_a_series_killed_at_any_write_loses_no_exactness() -> None:
    choose = random.Random(3)
    codes: list[int] = []
    while not codes or codes[-1]:
        if PATH.exists() and not SeriesDir.is_at(PATH):
            (PATH / "recipe.toml").unlink(missing_ok=True)  # killed while it was being made: nothing to continue
            for path in PATH.iterdir():
                path.unlink()
        codes.append(series_in_child(choose.randint(12, 60), PATH, SEEDS))
        assert codes[-1] in (0, -signal.SIGKILL)
    assert set(codes) == {0, -signal.SIGKILL}
    assert len(codes) > 4
    assert equal_to_runs_alone()
