"""A compiler that `auto` chose and that fails: the training goes on without it, as if it had never been tried."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compilers import broken_by, failing_at
from harness import Quiet, built, digest, outcome, recipe, resume, rows, signalled, start
from processes import FALLEN, fallen_back, together
from torch import nn

from okdc.errors import DeviceError, Interrupted
from okdc.methods.base import Batch
from okdc.runs.files import read_json
from okdc.training import compiling
from okdc.training import step as steps
from okdc.training.device import Settings
from okdc.training.step import TrainStep

EAGER = Settings("cpu", "float32", "contiguous", 1)
AUTO = replace(EAGER, compile="on", may_fall_back=True)

Compiler = Callable[..., nn.Module]  # what stands for `okdc.training.step.compiled`


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(16, 3, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))


def trained(settings: Settings, words: tuple[str, ...], count: int = 4) -> tuple[list[float], Any, TrainStep]:
    """The losses of a few steps, the state that they lead to, and the step."""
    torch._dynamo.reset()
    torch.manual_seed(7)  # dropout
    job = built(recipe(*words))
    step = TrainStep(job.method.train(), job.recipe.optim, settings)
    losses = [sum(loss.item() for loss in step(batch(i), i / count).losses.values()) for i in range(count)]
    return losses, digest(step.state()), step


CASES: dict[str, tuple[Compiler, tuple[str, ...]]] = {
    "at once": (broken_by(ValueError("no")), ()),
    "in the forward pass of the first step": (failing_at(1, "forward"), ()),
    "in the backward pass of the first step": (failing_at(1, "backward"), ()),
    "while launches are recorded, in the second step": (failing_at(2, "forward"), ("optim.clip=1.0",)),
    "in the backward pass of the third step": (failing_at(3, "backward"), ("method.name=ffl",)),
    "with random numbers drawn": (
        failing_at(2, "backward"),
        ("method.name=dml", 'cohort.students=["compilers:dropping", "compilers:dropping"]'),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_a_training_that_never_tried_to_the_bit(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, words = CASES[case]
    monkeypatch.setattr(steps, "compiled", compiler)
    losses, state, step = trained(AUTO, words)
    assert (step.settings.compile, step.settings.may_fall_back) == ("off", False)
    expected_losses, expected_state, _ = trained(EAGER, words)
    assert losses == expected_losses
    assert state == expected_state


def test_what_was_asked_for_or_fails_later_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "compiled", failing_at(1, "forward"))
    with pytest.raises(DeviceError, match="cannot be compiled"):
        trained(replace(AUTO, may_fall_back=False), ())
    monkeypatch.setattr(steps, "compiled", failing_at(4, "forward"))
    with pytest.raises(RuntimeError, match="captur"):
        trained(AUTO, ())


def test_an_error_that_is_no_fault_of_the_compiler_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "compiled", failing_at(1, "forward", RuntimeError("can't allocate memory")))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        trained(AUTO, ())


WORDS = ("engine.memory_format=contiguous", "optim.epochs=2")


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which compiling pays, and whose compiler passes the trial and fails at the method."""
    monkeypatch.setattr(compiling, "without_compiler", lambda _: "")
    monkeypatch.setattr(compiling, "ENOUGH_GMACS_A_THREAD", 0)
    monkeypatch.setattr(steps, "compiled", broken_by(ValueError("no such thing")))
    torch._dynamo.reset()


@pytest.mark.usefixtures("auto")
def test_a_run_says_and_records_that_it_is_not_compiled_and_goes_on_that_way(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = start(*WORDS, "engine.compile=off", out=Path("eager"))
    tell = Quiet()
    run = start(*WORDS, tell=tell, out=Path("run"))
    notes = [note for note in tell.notes if note.startswith("compile o")]
    assert [note.split(" (")[0] for note in notes] == ["compile on", "compile off"]
    assert "no such thing" in notes[1]
    info = run.read_info()
    assert info.settings.compile == "off"
    assert info.reasons[-2:] == tuple(notes)
    assert read_json(run.result)["compiled"] is False
    assert rows(run) == rows(eager)
    assert outcome(run)["weights"] == outcome(eager)["weights"]
    assert outcome(run)["state"] == outcome(eager)["state"]

    with pytest.raises(Interrupted):
        start(*WORDS, tell=signalled(2, signal.SIGINT), out=Path("stopped"))
    monkeypatch.setattr(steps, "compiled", lambda *_: pytest.fail("it is compiled again"))
    assert outcome(resume(Path("stopped"))) == outcome(run)


@pytest.mark.usefixtures("auto")
def test_ctrl_c_that_the_compiler_fails_of_stops_the_training_and_is_no_failure_of_the_compiler() -> None:
    """In a terminal it goes to the C++ compiler too."""

    def stopped(graph: object, inputs: object) -> Any:  # noqa: ARG001
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("g++ ended")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(steps, "compiled", lambda method, *_: torch.compile(method, backend=stopped, dynamic=False))
        start(*WORDS, out=Path("run"))
    assert read_json(Path("run/run.json"))["settings"]["compile"] == "on"


@pytest.mark.usefixtures("auto")
def test_a_method_that_compiling_would_unroll_stays_eager() -> None:
    three = 'cohort.students=["resnet8", "resnet8", "resnet8"]'
    for words, expected in (
        (("method.target=linear", three), "off"),
        (("method.target=linear",), "on"),
        (("method.target=naive", three), "on"),
    ):
        job = built(recipe("method.name=kdcl", *words))
        settings = compiling.decide(replace(EAGER, compile="auto"), job)
        assert settings.compile == expected
        assert settings.may_fall_back is (expected == "on")
        assert compiling.decide(replace(EAGER, compile="on"), job).compile == "on"
        assert compiling.decide(replace(EAGER, compile="on"), job).may_fall_back is False


@pytest.mark.parametrize("words", [(), ("optim.clip=0.1", "method.name=dml")], ids=["fefr", "dml, clipped"])
def test_all_processes_go_on_without_a_compiler_that_fails_in_one(words: tuple[str, ...]) -> None:
    """To the bit as if none had tried: the others have not taken the step yet."""
    for found in together(2, fallen_back, words):
        eager = found.pop("eager")
        assert found.keys() == FALLEN.keys()
        for name, learned in found.items():
            assert learned.compile == "off", name
            assert learned.losses == eager.losses
            for ours, theirs in ((learned.weights, eager.weights), (learned.buffers, eager.buffers)):
                assert all(np.array_equal(ours[key], theirs[key]) for key in theirs), name
            assert all(np.array_equal(x, y) for x, y in zip(learned.momenta, eager.momenta, strict=True)), name
