"""A run that was stopped and continued equals one that was not: the log, the numbers and every tensor, to the bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ask, write_tree
from harness import (
    CALLS,
    STEPS,
    Quiet,
    in_child,
    outcome,
    recipe,
    resume,
    signalled,
    start,
    uninterrupted,
    write_recipe,
)

from okdc.assembly.resolve import resolve
from okdc.errors import DataError, DeviceError, Interrupted, RunError
from okdc.methods.base import Method
from okdc.recipe.draft import load
from okdc.runs.artefacts import Provenance
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import checkpoint, compiling, device, optim, step
from okdc.training import loop as engine
from okdc.training import start as starts

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EVERYTHING = (
    *("optim.optimizer=adamw", "optim.lr=0.03", "optim.schedule=onecycle", "optim.decay_norm_and_bias=false"),
    *("optim.label_smoothing=0.1", "optim.sampler=balanced", "optim.ema=0.9", "optim.patience=1", "optim.epochs=9"),
    "cohort.keep_metric=balanced",
)
BFLOAT16 = ("engine.dtype=bfloat16", "engine.memory_format=channels_last")


def interrupted(call: int, *words: str, number: signal.Signals = signal.SIGINT, out: Path = Path("run")) -> Path:
    """A run that got a signal at one call of its progress bar."""
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(call, number), out=out)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_ends_the_compiler_too_is_no_failure_of_it(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """Ctrl-C in a terminal goes to all that runs there."""

    def killed(*_: object) -> None:
        os.kill(os.getpid(), number)
        raise RuntimeError("C++ compile error")

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "without_compiler", lambda _: "")
    monkeypatch.setattr(step, "compiled", lambda method, *_: torch.compile(method, backend=killed))
    tell = Quiet()
    with pytest.raises(Interrupted) as caught:
        start("engine.compile=on", tell=tell, out=Path("run"))
    assert caught.value.exit_code == code
    assert caught.value.message == f"{number.name}: no epoch was finished in run"
    assert caught.value.hint == "okdc resume run"
    said = f"{number.name}: stopping after this step, which may still be compiling; another one stops at once"
    assert tell.notes[-1] == said
    assert RunDir.open(Path("run")).state() == "resumable"


def test_sigterm_before_the_first_step_is_called_by_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TrainStep", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    answer = ask(capsys, "distill", str(write_recipe()), "-o", "run")
    assert answer.code == 143
    assert "interrupted: SIGTERM: no epoch was finished in run" in answer.err


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_a_run_stopped_at_any_moment_continues_to_the_bit(call: int) -> None:
    """After each step, at an epoch's last step, and after its checkpoint."""
    number = SIGNALS[call % 2]
    with pytest.raises(Interrupted) as caught:
        start(tell=signalled(call, number), out=Path("run"))
    assert caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert number.name in caught.value.message
    assert caught.value.hint == "okdc resume run"
    run = RunDir.open(Path("run"))
    assert RunDir.newest("resumable", Path()).path.name == "run"
    assert len(run.rows()) == call // (STEPS + 1) + (call % (STEPS + 1) == STEPS)
    assert outcome(resume(run.path)) == uninterrupted()
    assert run.state() == "complete"


def test_a_run_on_varied_and_mixed_images_continues_to_the_bit() -> None:
    keys = ("rotation=20.0", "hue=0.2", "blur=0.3", "erasing=0.5", "policy=trivial", "mixup=0.4", "cutmix=1.0")
    words = tuple(f"augment.{key}" for key in keys)
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(STEPS + 3, signal.SIGINT), out=Path("run"))
    assert outcome(resume(Path("run"))) == uninterrupted(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("method.name=switokd", "optim.ema=0.9"),
        ("method.name=pcl", "method.views=own", "optim.ema=0.9", "optim.optimizer=adamw", "optim.lr=0.01"),
        ("method.name=okdph", "method.hybrid=dirichlet", "method.interval=0.15", "method.gamma=1"),
        ("method.name=relay", "optim.ema=0.9", "optim.optimizer=adamw", "optim.lr=0.01"),
    ],
    ids=" ".join,
)
def test_a_method_with_a_state_of_its_own_continues_to_the_bit(words: tuple[str, ...]) -> None:
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(STEPS + 3, signal.SIGINT), out=Path("run"))
    assert outcome(resume(Path("run"))) == uninterrupted(*words)


def stopped_again_and_again(choose: random.Random, *words: str) -> tuple[RunDir, int]:
    """Signals at random calls of the bar until the run is through; it, and how often it was stopped."""
    path, stops = Path("run"), 0
    while True:
        tell = signalled(choose.randint(1, 5), choose.choice(SIGNALS))
        try:
            return (resume(path, tell) if path.exists() else start(*words, tell=tell, out=path)), stops
        except Interrupted:
            stops += 1


@pytest.mark.parametrize("seed", range(3))
def test_a_run_stopped_again_and_again_ends_as_if_it_had_not_been(seed: int) -> None:
    run, stops = stopped_again_and_again(random.Random(seed))
    assert stops > 1
    assert outcome(run) == uninterrupted()


@pytest.mark.parametrize(
    "words",
    [
        BFLOAT16,
        ("engine.memory_format=channels_last",),
        ("method.name=baseline",),
        ("cohort.share=none", "optim.schedule=cosine", "optim.clip=1.0"),
        ("optim.optimizer=adamw", "optim.lr=0.01", "optim.schedule=onecycle", "optim.decay_norm_and_bias=false"),
        EVERYTHING,
        ("data.val_fraction=0.0", "cohort.keep=1"),
        ('cohort.students=["networks.modes:dropout_by_flag", "networks.modes:dropout2d"]', "method.name=dml"),
    ],
    ids=[
        "bfloat16-channels_last",
        "channels_last",
        "baseline",
        "separate-cosine-clip",
        "adamw-onecycle",
        "everything",
        "no-validation",
        "dropout",
    ],
)
def test_other_settings_continue_to_the_bit_too(words: tuple[str, ...]) -> None:
    run, stops = stopped_again_and_again(random.Random(1), *words)
    assert stops > 1
    assert outcome(run) == uninterrupted(*words)


def test_the_fused_optimiser_equals_the_plain_one_over_a_resume_in_channels_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU the fused kernel walks raw memory: a momentum that came back in another layout would go astray."""
    words = ("engine.memory_format=channels_last", "optim.lr=0.01", "optim.epochs=2")

    def final(out: str) -> dict[str, torch.Tensor]:
        state, _ = checkpoint.load(resume(interrupted(2, *words, out=Path(out))))
        assert state is not None
        found: dict[str, torch.Tensor] = state["method"]
        return found

    fused, build_optimizer = final("fused"), optim.build_optimizer

    def plain(method: Method, *settings: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(method, *settings)
        for group in optimizer.param_groups:
            group["fused"] = group["foreach"] = False
        return optimizer

    monkeypatch.setattr(optim, "build_optimizer", plain)
    for name, value in final("plain").items():
        torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_seconds_add_up_over_starts() -> None:
    path = interrupted(5)
    state, _ = checkpoint.load(RunDir(path))
    assert state is not None
    assert state["seconds"] > 0
    checkpoint.save(RunDir(path), state | {"seconds": 1000.0})
    assert read_json(resume(path).result)["seconds"] > 1000


def test_a_training_gives_back_the_handlers_that_it_found() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    interrupted(1)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_stops_at_once_and_the_last_checkpoint_stands(number: signal.Signals) -> None:
    """Nobody who asks twice wants to wait for the step."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal

    def kill_twice(call: int) -> None:
        for _ in range(2 if call == STEPS + 2 else 0):
            os.kill(os.getpid(), number)

    twice = Quiet(kill_twice)
    try:
        with pytest.raises(Interrupted) as caught:
            start(tell=twice, out=Path("run"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.exit_code == 128 + number
    assert len(twice.counts) == STEPS + 2
    assert outcome(resume(Path("run"))) == uninterrupted()


def test_a_thread_that_is_not_the_main_one_trains_and_leaves_the_signals_alone() -> None:
    """Python lets only the main thread set handlers: a program that calls okdc from a thread keeps its own."""
    before = [signal.getsignal(number) for number in SIGNALS]
    handlers: list[object] = []
    look = Quiet(lambda _: handlers.append([signal.getsignal(number) for number in SIGNALS]))
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(start, tell=look).result()
    assert outcome(run) == uninterrupted()
    assert handlers == [before] * CALLS


# ---------------------------------------------------------------------------------------------------------------------
# Death


def test_a_process_killed_before_any_of_its_writes_loses_no_exactness() -> None:
    """As a power cut would: again and again, before this or that file or rename reaches the disk."""
    path, choose, killed = Path("run"), random.Random(0), 0
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        # The end of a run alone is 24 of them: each life is longer, or it would never come.
        codes.append(in_child(choose.randint(4, 16 + 4 * killed), None, path))
        killed += codes[-1] == -signal.SIGKILL
        assert set(codes) <= {0, -signal.SIGKILL}
    assert killed > 2
    assert outcome(RunDir.open(path)) == uninterrupted()


@pytest.mark.long
def test_a_process_killed_at_random_moments_loses_no_exactness() -> None:
    path, long, choose, killed = Path("run"), "optim.epochs=20", random.Random(0), 0
    while (code := in_child(None, choose.uniform(0.05, 0.3) if killed < 5 else None, path, long)) != 0:
        assert code == -signal.SIGKILL
        killed += 1
        if path.exists() and not (path / "run.json").exists():
            shutil.rmtree(path)  # killed while the run was being made: nothing to continue
    assert killed
    assert outcome(RunDir.open(path)) == uninterrupted(long)


def okdc(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "okdc", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def trained_for(process: subprocess.Popen[str], run: RunDir, rows: int) -> None:
    """Wait until the log has that many rows."""
    while len(run.rows()) < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_the_command_killed_then_interrupted_then_resumed_gives_the_same_run() -> None:
    run, long = RunDir(Path("runs/a")), "optim.epochs=20"
    with okdc("distill", str(write_recipe()), long, "-o", str(run.path)) as process:
        trained_for(process, run, 2)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = len(run.rows())
    with okdc("resume", str(run.path)) as process:
        trained_for(process, run, done + 2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 143, err
    assert "okdc resume runs/a" in err
    assert "Traceback" not in err
    with okdc("resume", str(run.path), "--json") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["weights_sha256"] == uninterrupted(long)["weights"]
    assert outcome(run) == uninterrupted(long)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


@pytest.mark.parametrize(("call", "part"), [(7, 0.0), (10, 0.6)])  # where it may be cut: test_checkpoint.py
def test_a_checkpoint_cut_short_costs_some_steps_and_no_exactness(call: int, part: float) -> None:
    run = RunDir(interrupted(call))
    content = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(content[: int(part * len(content))])
    tell = Quiet()
    assert outcome(resume(run.path, tell)) == uninterrupted()
    assert any("checkpoint.pt is damaged" in note for note in tell.notes)


def test_a_run_whose_checkpoints_are_both_cut_is_refused_and_left_alone() -> None:
    run = RunDir(interrupted(10))
    for path in (run.checkpoint, run.previous_checkpoint):
        path.write_bytes(path.read_bytes()[:1000])
    before = run.log.read_bytes()
    with pytest.raises(RunError, match="no checkpoint can be read"):
        resume(run.path)
    assert run.log.read_bytes() == before


def test_a_log_that_is_ahead_of_its_checkpoint_or_cut_short_is_put_right() -> None:
    run = RunDir(interrupted(9))
    with run.log.open("a", encoding="utf-8") as stream:
        stream.write('{"epoch": 3, "loss": 1.0}\n{"epoch": 4, "lo')
    assert outcome(resume(run.path)) == uninterrupted()


def test_a_student_file_that_is_ahead_of_its_checkpoint_is_put_right() -> None:
    run = RunDir(interrupted(CALLS))
    run.weights.write_bytes(b"")
    run.student.unlink()
    assert outcome(resume(run.path)) == uninterrupted()


# ---------------------------------------------------------------------------------------------------------------------
# The settings of the start are those of every later one


def pictures() -> tuple[str, ...]:
    """Words for 16×16 images of a folder, large enough for bfloat16 to be chosen."""
    root = write_tree(Path("pictures"), {"train": {"a": 20, "b": 20}, "test": {"a": 6, "b": 6}}, size=16)
    return (
        "data.name=folder",
        f"data.root={root.absolute()}",
        "data.image_size=16",
        "data.train_images=32",
        "data.val_fraction=0.2",
    )


def processor(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(device, "processor", lambda: ("a processor", frozenset(flags)))


def test_automatic_choices_survive_a_move_to_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = (*pictures(), "engine.device=auto", "engine.dtype=auto", "optim.epochs=2")
    processor(monkeypatch, "amx_bf16")
    whole = start(*words, out=Path("whole"))
    path = interrupted(1, *words)
    processor(monkeypatch)
    resumed = resume(path)
    assert resumed.read_info().settings == whole.read_info().settings
    assert resumed.read_info().settings.dtype == "bfloat16"
    assert outcome(resumed) == outcome(whole)
    assert outcome(start(*words, out=Path("there"))) != outcome(whole)  # the move would have made a difference


def test_a_setting_that_this_machine_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = RunDir(interrupted(2))
    run.note(settings=run.read_info().settings.model_copy(update={"device": "cuda"}))
    before = run.checkpoint.read_bytes()
    with pytest.raises(DeviceError, match="cuda"):
        resume(run.path)
    assert run.checkpoint.read_bytes() == before
    assert run.state() == "resumable"


def test_threads_are_those_of_the_start() -> None:
    path = interrupted(2, "engine.threads=2", "optim.epochs=1")
    torch.set_num_threads(1)
    seen = set()
    resume(path, Quiet(lambda _: seen.add(torch.get_num_threads())))
    assert seen == {2}


# ---------------------------------------------------------------------------------------------------------------------
# What may not or need not be continued


def test_a_complete_run_is_left_as_it_is() -> None:
    run = start()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    tell = Quiet()
    resume(run.path, tell)
    assert any("nothing to do" in note for note in tell.notes)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_run_that_failed_is_refused_with_what_it_failed_of() -> None:
    run = RunDir(interrupted(2))
    run.note(failed="the loss term ce_fused is not finite at step 2 (epoch 1)")
    with pytest.raises(RunError, match="ce_fused is not finite"):
        resume(run.path)


def test_other_images_are_refused() -> None:
    """The labels are the same and the sizes too; only the contents differ."""
    words = (*pictures(), "optim.epochs=2")
    path = interrupted(1, *words)
    picture = Path("pictures/train/a/000.png")
    picture.write_bytes(Path("pictures/train/a/001.png").read_bytes())
    with pytest.raises(DataError, match="the images are not those of run"):
        resume(path)


def test_a_run_stopped_before_its_first_checkpoint_starts_from_its_first_step() -> None:
    run = RunDir(interrupted(1))
    run.checkpoint.unlink()
    tell = Quiet()
    assert outcome(resume(run.path, tell)) == uninterrupted()
    assert any("no checkpoint was written yet" in note for note in tell.notes)


def test_where_a_run_continues_is_said() -> None:
    tell = Quiet()
    resume(interrupted(6), tell)
    assert any(re.search("continues at epoch 2, step 3", note) for note in tell.notes)


def test_the_resolved_recipe_of_a_run_repeats_it() -> None:
    run = start("optim.lr=0.03", out=Path("first"))
    shutil.copy(run.recipe, "again.toml")
    again = starts.start(resolve(load(["again.toml"])), None, Provenance(), Quiet())
    assert outcome(again) == outcome(run)
    assert again.read_info().recipe_sha256 == run.read_info().recipe_sha256 != recipe().recipe.sha256()
