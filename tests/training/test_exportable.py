"""Before its first step a training asks whether its students can be exported; it is none the worse for the question."""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path

import pytest
import torch
from asking import ask
from harness import Quiet, recipe, start, write_recipe

import okdc
from okdc.assembly import job as assembly
from okdc.cohort import Backbone
from okdc.deploy import trial
from okdc.errors import CheckFailed, Interrupted, RecipeError
from okdc.progress import WARNING
from okdc.runs.artefacts import Provenance
from okdc.runs.run import RunDir
from okdc.runs.series import SeriesDir
from okdc.training import series as training

Captured = pytest.CaptureFixture[str]

NETS = """
import torch
from torch import nn

class Counted(nn.Module):
    def forward(self, x):
        return x + 0 * torch.nonzero(x).sum()

def made(classes, *more):
    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.Dropout(0.1), nn.ReLU())
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes), *more]
    return nn.Sequential(block(3, 8), block(8, 8), *last)

def plain(classes):
    return made(classes)

def counted(classes):
    return made(classes, Counted())

def soft(classes):
    return made(classes, nn.Softmax(1))
"""
SHORT = ("method.name=dml", "cohort.share=none", "optim.epochs=1")


@pytest.fixture(autouse=True)
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tried_nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "tried_nets", raising=False)


def words(*names: str) -> tuple[str, ...]:
    return (*SHORT, f"cohort.students={[f'tried_nets:{name}' for name in names]}")


Tried = list[str]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Tried:
    """The architectures that are tried: no export is made."""
    names: Tried = []

    def attempt(network: Backbone, *_: int) -> list[str]:
        names.append(network.architecture)
        return []

    monkeypatch.setattr(trial, "attempt", attempt)
    return names


def verdict(run: RunDir) -> str:
    return run.read_info().export_check


# ---------------------------------------------------------------------------------------------------------------------
# Who is tried


def test_every_architecture_that_okdc_has_not_proven_is_tried_once(tried: Tried) -> None:
    tell = Quiet()
    assert verdict(start(*words("plain", "plain", "soft"), tell=tell)) == "passed"
    assert tried == ["tried_nets:plain", "tried_nets:soft"]
    assert sum("tried_nets:plain" in note and "export" in note for note in tell.notes) == 2, "before and after"
    assert verdict(start("optim.epochs=1")) == "proven"
    assert verdict(start("optim.epochs=1", "method.name=mfef", "method.in_path=true")) == "proven"
    assert len(tried) == 2


@pytest.mark.usefixtures("tried")
def test_what_a_method_makes_of_a_student_is_tried(tried: Tried) -> None:
    start("optim.epochs=1", "cohort.students=['tried_nets:plain', 'tried_nets:plain']", "method.name=mfef",
          "method.in_path=true")  # fmt: skip
    assert tried == ["tried_nets:plain+msfe"]


def test_it_is_left_out_where_nobody_wants_it(tried: Tried, capsys: Captured) -> None:
    tell = Quiet()
    tables = recipe(*words("plain", "plain"))
    run = okdc.distill(tables, "unasked", export_check=False, progress=tell)
    assert verdict(run.folder) == "skipped"
    answer = ask(capsys, "distill", str(write_recipe()), *words("plain", "plain"), "--no-export-check", "-o", "flag")
    assert answer.code == 0, answer.err
    assert verdict(RunDir(Path("flag"))) == "skipped"
    assert all("--no-export-check" in text for text in (answer.err, "\n".join(tell.notes)))
    assert tried == []


def test_a_series_asks_once_and_remembers_the_answer(tried: Tried) -> None:
    done = okdc.distill_seeds(recipe(*words("plain", "plain")), (0, 1), "asked")
    assert [verdict(run.folder) for run in done.runs.values()] == ["passed"] * 2
    assert tried == ["tried_nets:plain"]


@pytest.mark.parametrize("note", ["series ", "seed 1"])
def test_a_series_that_is_continued_asks_no_more_than_it_did(tried: Tried, note: str) -> None:
    """Stopped before its first seed and after it."""

    class Stopped(Quiet):
        def note(self, text: str) -> None:
            if text.startswith(note):
                raise Interrupted("here", exit_code=130)

    for name, asked in (("asked", True), ("unasked", False)):
        with pytest.raises(Interrupted):
            training.start(recipe(*words("plain", "plain")), (0, 1), Path(name), Provenance(), Stopped(), asked)
        okdc.resume(name)
        series = SeriesDir.open(Path(name))
        assert [verdict(series.run(seed)) for seed in (0, 1)] == ["passed" if asked else "skipped"] * 2
    assert tried == ["tried_nets:plain"]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and what is not


def test_a_student_that_cannot_be_exported_is_refused_before_the_images_are_read(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object) -> None:
        raise AssertionError("the images were read before the students were tried")

    monkeypatch.setattr(assembly, "dataset", unread)
    answer = ask(capsys, "distill", str(write_recipe()), *words("plain", "counted"), "-o", "refused")
    assert answer.code == 2
    assert answer.err.count("error[recipe]: ") == answer.err.count("cohort.students: ") == 1
    assert "tried_nets:counted" in answer.err
    assert "\n  structure: " in answer.err
    assert "--no-export-check" in answer.err.rpartition("hint")[2]
    assert not Path("refused").exists()


def test_a_series_of_such_students_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(*_: object) -> list[str]:
        raise CheckFailed("counting", "it cannot be counted", hint="why", details=["more"])

    monkeypatch.setattr(trial, "attempt", attempt)
    with pytest.raises(RecipeError) as caught:
        okdc.distill_seeds(recipe(*words("plain", "plain")), (0, 1), "refused")
    assert caught.value.details == ("counting: it cannot be counted", "more", "why")
    assert not Path("refused").exists()


@pytest.mark.parametrize("check", [True, False])
def test_softmax_is_warned_of_with_and_without_the_trial(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    if check:  # the warning of a trial, without its export
        monkeypatch.setattr(trial, "attempt", trial.softmax)
    flags = [] if check else ["--no-export-check"]
    answer = ask(capsys, "distill", str(write_recipe()), *words("soft", "plain"), *flags, "-o", "run")
    assert answer.code == 0, answer.err
    assert [line for line in answer.err.splitlines() if line.startswith(WARNING) and "softmax" in line] == [
        line for line in answer.err.splitlines() if "tried_nets:soft: it ends in softmax" in line
    ]
    assert answer.err.count("ends in softmax") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is left behind


def test_the_training_is_the_same_to_the_bit_with_and_without_it() -> None:
    """Its dropout draws from the global generator, from where the trial leaves it."""
    hashes = []
    for asked in (True, False):
        torch.manual_seed(0)
        run = okdc.distill(recipe(*words("plain", "plain")), f"asked-{asked}", export_check=asked).folder
        assert verdict(run) == ("passed" if asked else "skipped")
        files = [run.weights, *sorted(run.students.glob("*.safetensors"))]
        hashes.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 2


@pytest.mark.parametrize("swallow", [False, True], ids=["raised", "turned into an error"])
def test_ctrl_c_while_it_tries_leaves_no_run(capsys: Captured, monkeypatch: pytest.MonkeyPatch, swallow: bool) -> None:
    def pressed(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not swallow:
                raise
            raise ValueError("of a library") from None

    monkeypatch.setattr(trial, "count", pressed)
    answer = ask(capsys, "distill", str(write_recipe()), *words("plain", "plain"), "-o", "run")
    assert answer.code == 130
    assert not Path("run").exists()


def test_a_full_memory_is_said_as_what_it_is(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(trial, "count", full)
    answer = ask(capsys, "distill", str(write_recipe()), *words("plain", "plain"), "-o", "run")
    assert answer.code == 2
    assert "error[memory]" in answer.err
    assert not Path("run").exists()
