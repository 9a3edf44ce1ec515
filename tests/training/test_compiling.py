"""When a training compiles its step, and one that really does. The compiled runs share one folder of compiled code."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ask
from compilers import broken_by, traced
from harness import Quiet, built, digest, outcome, recipe, resume, rows, signalled, start, write_recipe
from safetensors import safe_open
from torch._dynamo.utils import counters

from okdc.assembly import student as students
from okdc.assembly.job import Job
from okdc.errors import DeviceError, Interrupted
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import checkpoint, compiling
from okdc.training import step as steps
from okdc.training.device import Settings

CPU = Settings("cpu", "float32", "contiguous", 1, compile="auto", reasons=("device cpu",))
NO_COMPILER = "InvalidCxxCompiler: No working C++ compiler found"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has one, by its word."""
    monkeypatch.setattr(compiling, "without_compiler", lambda _: "")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "without_compiler", lambda _: NO_COMPILER)


def job(*words: str) -> Job:
    return built(recipe("method.name=baseline", *words))


def epochs_to_pay() -> int:
    """How many epochs of the recipe it takes, on one thread."""
    made = job()
    images = 3 * 16
    return math.ceil(
        compiling.ENOUGH_GMACS_A_THREAD * 1e9 / (images * compiling.forward_macs(made.method, made.dataset.size))
    )


# ---------------------------------------------------------------------------------------------------------------------
# The decision


@pytest.mark.usefixtures("compiler")
def test_a_short_training_is_not_compiled_and_a_long_one_is_by_its_work() -> None:
    enough = epochs_to_pay()
    for epochs, expected in ((3, "off"), (enough - 1, "off"), (enough, "on"), (10 * enough, "on")):
        settings = compiling.decide(CPU, job(f"optim.epochs={epochs}"))
        assert settings.compile == expected
        assert settings.reasons[0] == "device cpu"
        assert settings.reasons[-1].startswith(f"compile {expected} (")
        assert f" GMACs in {3 * epochs:,} steps" in settings.reasons[-1]


@pytest.mark.usefixtures("compiler")
def test_two_threads_need_twice_the_work() -> None:
    long = job(f"optim.epochs={epochs_to_pay() + 1}")
    assert compiling.decide(CPU, long).compile == "on"
    assert compiling.decide(replace(CPU, threads=2), long).compile == "off"


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("dtype", "layout"), [("bfloat16", "channels_last"), ("bfloat16", "contiguous"), ("float32", "channels_last")]
)
def test_what_is_fast_already_on_a_cpu_is_not_compiled_however_long_it_takes(dtype: str, layout: str) -> None:
    fast = replace(CPU, dtype=dtype, memory_format=layout)
    settings = compiling.decide(fast, job("optim.epochs=10000000"))
    assert settings.reasons[-1] == f"compile off (gains too little over {dtype} in {layout} on a CPU)"


@pytest.mark.usefixtures("compiler")
def test_a_gpu_counts_steps_alone() -> None:
    enough = math.ceil(compiling.ENOUGH_STEPS_ON_CUDA / 3)
    gpu = replace(CPU, device="cuda", dtype="bfloat16")
    assert [compiling.decide(gpu, job(f"optim.epochs={n}")).compile for n in (enough - 1, enough)] == ["off", "on"]


def test_counting_the_work_moves_no_weight_and_no_statistics() -> None:
    made = job()
    before = digest(made.method.state_dict())
    assert compiling.forward_macs(made.method, made.dataset.size) > 1e6 / 8
    assert digest(made.method.state_dict()) == before


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("asked", ["on", "off"])
def test_what_is_asked_for_is_taken_however_short_the_training(asked: str) -> None:
    settings = compiling.decide(replace(CPU, compile=asked), job())
    assert settings.compile == asked
    assert settings.reasons[-1] == f"compile {asked} (as asked)"


@pytest.mark.usefixtures("no_compiler")
def test_a_machine_without_a_compiler_trains_eagerly_and_says_so() -> None:
    settings = compiling.decide(CPU, job(f"optim.epochs={epochs_to_pay()}"))
    assert settings.compile == "off"
    assert settings.reasons[-1] == f"compile off (it would pay, and nothing can be compiled here: {NO_COMPILER})"


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_a_short_training_is_not_told_of_one() -> None:
    assert NO_COMPILER not in compiling.decide(CPU, job()).reasons[-1]
    assert compiling.decide(replace(CPU, compile="off"), job()).reasons[-1] == "compile off (as asked)"


@pytest.mark.usefixtures("no_compiler")
def test_compilation_that_was_asked_for_and_cannot_be_had_is_an_error() -> None:
    with pytest.raises(DeviceError, match="No working C") as caught:
        compiling.decide(replace(CPU, compile="on"), job())
    assert len(caught.value.message.splitlines()) == 1
    assert "g++" in caught.value.hint
    assert "--compile off" in caught.value.hint


def test_the_compilers_report_is_told_by_its_first_error() -> None:
    report = "C++ compile error\n\nCommand:\ng++ -c x.cpp\n\nOutput:\nx.cpp:3:10: fatal error: Python.h: none\n3 |"
    assert compiling.in_a_line(RuntimeError(report)) == "RuntimeError: x.cpp:3:10: fatal error: Python.h: none"
    assert compiling.in_a_line(RuntimeError("\n  plain\n words")) == "RuntimeError: plain"
    assert compiling.in_a_line(RuntimeError("RuntimeError: plain")) == "RuntimeError: plain"
    assert compiling.in_a_line(RuntimeError()) == "RuntimeError: "
    assert len(compiling.in_a_line(RuntimeError("error: " + "x" * 999))) == 300


@pytest.mark.usefixtures("compiler")
def test_the_command_line_decides_and_the_run_keeps_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "compiled", traced)
    for word in ("on", "off"):
        answer = ask(capsys, "distill", str(write_recipe()), "optim.epochs=1", "--compile", word, "-o", word)
        assert answer.code == 0
        assert f"compile {word} (as asked)" in answer.err
        assert read_json(Path(word, "run.json"))["settings"]["compile"] == word
        assert ("images/s, compilation included" in answer.out) is (word == "on")
    assert ask(capsys, "distill", str(write_recipe()), "--compile", "maybe").code == 2


@pytest.mark.usefixtures("compiler")
def test_a_run_goes_on_as_it_began_whatever_would_be_decided_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a compiler that fails in between costs nothing but the time."""
    words = ("method.name=baseline", "engine.memory_format=contiguous")
    monkeypatch.setattr(steps, "compiled", traced)
    monkeypatch.setattr(compiling, "ENOUGH_GMACS_A_THREAD", 0)
    whole = outcome(start(*words))
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(6, signal.SIGINT))
    path = Path("runs/tiny-2")
    assert RunDir.open(path).read_info().settings.compile == "on"
    monkeypatch.setattr(compiling, "ENOUGH_GMACS_A_THREAD", 10**9)

    torch._dynamo.reset()
    with monkeypatch.context() as patch, pytest.raises(DeviceError, match="cannot be compiled: ValueError: no"):
        patch.setattr(steps, "compiled", broken_by(ValueError("no")))
        resume(path)
    torch._dynamo.reset()
    tell = Quiet()
    assert outcome(resume(path, tell)) == whole
    assert any(note.startswith("as it was started:") and "compile on" in note for note in tell.notes)


# ---------------------------------------------------------------------------------------------------------------------
# A real one: half a minute of one thread, nearly all of it for C++. Everything below shares its code on disk.


@dataclass(frozen=True)
class Compiled:
    """A complete run that was compiled because it pays."""

    run: RunDir
    notes: list[str]
    outcome: dict[str, Any]
    counts: dict[str, int]


WORDS = ("method.name=baseline", "optim.epochs=2", "engine.memory_format=contiguous")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiled]:
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "code"))
        patch.setenv("OKDC_CACHE", str(folder / "cache"))
        patch.setattr(compiling, "ENOUGH_GMACS_A_THREAD", 0)
        torch._dynamo.reset()
        assert compiling.without_compiler("cpu") == ""
        counters.clear()
        tell = Quiet()
        run = start(*WORDS, tell=tell, out=folder / "run")
        stats = counters["stats"] | counters["frames"] | {"breaks": len(counters["graph_break"])}
        yield Compiled(run, tell.notes, outcome(run), dict(stats))
    torch._dynamo.reset()


def test_a_compiled_training_is_the_eager_one_within_rounding(compiled: Compiled) -> None:
    assert any(note.startswith("compile on (") and " in 6 steps" in note for note in compiled.notes)
    eager = start(*WORDS, "engine.compile=off")
    for expected, found in zip(rows(eager), rows(compiled.run), strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert found["lr"] == expected["lr"]
    (theirs, _), (ours, _) = checkpoint.load(eager), checkpoint.load(compiled.run)
    assert theirs is not None
    assert ours is not None
    assert ours["method"].keys() == theirs["method"].keys()
    for name, weights in theirs["method"].items():
        torch.testing.assert_close(ours["method"][name], weights, rtol=1e-3, atol=1e-4)


def test_a_compiled_training_is_one_graph_and_validation_adds_none(compiled: Compiled) -> None:
    """All batches of a step have one shape; the 50 validation images come in another, uncompiled."""
    assert compiled.counts["unique_graphs"] == compiled.counts["total"] == compiled.counts["ok"] == 1
    assert compiled.counts["breaks"] == 0


def test_a_compiled_run_that_was_stopped_goes_on_to_the_bit(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "ENOUGH_GMACS_A_THREAD", 0)
    with pytest.raises(Interrupted):
        start(*WORDS, tell=signalled(2, signal.SIGTERM))
    torch._dynamo.reset()  # as another process would come to it
    monkeypatch.setattr(compiling, "ENOUGH_GMACS_A_THREAD", 10**9)
    assert outcome(resume(Path("runs/tiny-1"))) == compiled.outcome


def test_nothing_that_a_compiled_run_leaves_behind_knows_of_it(compiled: Compiled) -> None:
    state, _ = checkpoint.load(compiled.run)
    assert state is not None
    with safe_open(compiled.run.weights, "pt") as file:
        names = [*file.keys(), *state["method"]]
    assert names
    assert not [name for name in names if "_orig_mod" in name]
    student = students.load(compiled.run).network
    assert type(student).__name__ == "Backbone"
    assert (
        read_json(compiled.run.result)["cohort"][0]["top1_pct"] == compiled.outcome["result"]["cohort"][0]["top1_pct"]
    )


def test_a_trial_names_what_is_missing(compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
    with inductor.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        told = compiling.without_compiler("cpu")
    assert "No working C++ compiler" in told
    assert len(told.splitlines()) == 1
    assert compiled.run.state() == "complete"
