"""Several processes train one run: what they come to is what one would have, one of them writes and talks, and whatever
happens to one of them ends all.

What may differ from one process: rounding, since sums are taken in parts; and, without engine.sync_batchnorm, what
batch normalisation makes of fewer images at a time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import processes
import pytest
from asking import Answer
from byhand import SMALL
from harness import EPOCHS, STEPS, Quiet, built, outcome, recipe, result, resume, rows, start, write_recipe
from making import run_info
from pictures import streamed, write_imagenet
from processes import Learned, Told, asked, broken, damaged, stepped, thawed, together, traced, training
from safetensors.torch import save_file

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.data import ondemand
from okdc.data.augmentation import order
from okdc.data.batches import part_of_batch
from okdc.data.workers import cores
from okdc.distributed import LOST, Ranks
from okdc.errors import Interrupted
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import checkpoint
from okdc.training.interrupts import STEPS_OF_SIGNAL

PLAIN = 'cohort.students=["processes:plain", "processes:plain"]'
SYNC = "engine.sync_batchnorm=true"
BFLOAT16 = ("engine.dtype=bfloat16", "engine.memory_format=channels_last")
UNEQUAL = ("optim.class_weights=balanced", "optim.label_smoothing=0.1", "data.train_images=45")
SEVERAL = 'cohort.students=["resnet8", "resnet8", "resnet8"]'
THREE = ("optim.batch_size=12",)  # for three processes

TOGETHER = "torchrun --standalone --nproc-per-node=2 -m okdc resume"

QUIET = Told("ToldElsewhere", "another process of this training says why")


def quiet(code: int) -> Told:
    return Told(QUIET.error, QUIET.message, code=code)


# ---------------------------------------------------------------------------------------------------------------------
# Steps


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what a module's fixtures make, with a cache of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OKDC_CACHE", str(folder / "cache"))
        yield folder


CASES = {
    "plain": (PLAIN, "method.name=dml"),
    "plain, clipped": (PLAIN, "method.name=dml", "optim.clip=0.1"),
    "fefr, one trunk": (SYNC,),
    "fefr, separate": (SYNC, "cohort.share=none"),
    "fefr, released": (SYNC, "method.reading=released"),
    "fefr, released, separate": (SYNC, "method.reading=released", "cohort.share=none"),
    "fefr, released, random attention": (SYNC, "method.reading=released", "method.attention=random"),
    "dualnet, in turns": (SYNC, "method.name=dualnet", "method.turns=2"),
    "kd": (SYNC, "method.name=kd"),
    **{name: (SYNC, f"method.name={name}") for name in ("dualnet", "ffl", "kdcl", "mfef", "okddip", "one")},
    "byot": (SYNC, "method.name=byot", "method.beta=0.01"),
    "byot, journal": (SYNC, "method.name=byot", "method.loss=journal"),
    "ahbf": (SYNC, "method.name=ahbf"),
    "kdcl, views": (SYNC, "method.name=kdcl", "method.views=own"),
    "switokd": (SYNC, "method.name=switokd"),
    "switokd, three": (SYNC, "method.name=switokd", "method.teacher_indices=[0]", SEVERAL),
    "pcl": (SYNC, "method.name=pcl", SEVERAL),
    "pcl, views": (SYNC, "method.name=pcl", "method.views=own"),
    "okdph": (SYNC, "method.name=okdph", "method.interval=0.2"),
    "relay": (SYNC, "method.name=relay"),
    "relay, local": ("method.name=relay",),
    "fefr, weighted": (SYNC, *UNEQUAL),
    "fefr, local": (),
    "fefr, local, average": ("optim.ema=0.9",),
    "fefr, bfloat16": BFLOAT16,
    "fefr, bfloat16, all": (*BFLOAT16, SYNC),
}


@pytest.fixture(scope="module")
def steps(elsewhere: Path) -> dict[str, list[Learned]]:
    """Three steps of each case: of one process, and of each of two."""
    teacher = elsewhere / "teacher"
    with chdir(elsewhere):
        start("method.name=baseline", "optim.epochs=1", out=teacher)
        cases = CASES | {"kd": (*CASES["kd"], f"method.teacher={teacher}")}
        one, two = stepped(cases), together(2, stepped, cases)
    return {name: [one[name], *(found[name] for found in two)] for name in cases}


def test_backbones_that_are_fixed_and_then_learn_are_those_of_one_process(elsewhere: Path) -> None:
    """The wrapper of the processes waits for the gradients that it knew at its making."""
    weights = elsewhere / "w.safetensors"
    save_file(backbones.build("resnet8", 7, SMALL).weights(), weights)
    more = (f"cohort.weights={weights}", "optim.freeze_epochs=1")
    cases: dict[str, tuple[str, ...]] = {"fixed": (SYNC, *more)}
    with chdir(elsewhere):
        one, two = thawed(cases), together(2, thawed, cases)
    for other in two:
        assert max(differences(one["fixed"], other["fixed"])) < 1e-3
    assert all(np.abs(momentum).sum() > 0 for momentum in one["fixed"].momenta)


def test_a_student_that_goes_on_alone_is_that_of_one_process(elsewhere: Path) -> None:
    """Its peers have no gradients from the second epoch on, and no process waits for them."""
    whole = ("method.mix=none", "method.judges=all")  # else each process mixes and judges images of its own
    cases: dict[str, tuple[str, ...]] = {"relay": (SYNC, "method.name=relay", *whole)}
    with chdir(elsewhere):
        one, two = thawed(cases), together(2, thawed, cases)
    for other in two:
        assert max(differences(one["relay"], other["relay"])) < 1e-3
    assert set(one["relay"].losses) == {"kl_means_student0"}


def test_processes_that_normalise_their_own_images_are_taught_by_the_same_means(elsewhere: Path) -> None:
    """Apart, each has batch statistics of its own; the means that teach have those of the first process."""
    with chdir(elsewhere):
        one, other = (found["relay"] for found in together(2, thawed, {"relay": ("method.name=relay",)}, False))
    same = {name: np.array_equal(buffer, other.buffers[name]) for name, buffer in one.buffers.items()}
    assert all(equal for name, equal in same.items() if name.startswith("means."))
    assert not all(equal for name, equal in same.items() if name.startswith("cohort."))
    assert one.losses == other.losses
    assert all(np.array_equal(weight, other.weights[name]) for name, weight in one.weights.items())


def off(found: npt.NDArray[Any] | list[Any], expected: npt.NDArray[Any] | list[Any]) -> float:
    """The largest difference in the largest of the numbers."""
    a, b = (np.concatenate([np.ravel(x) for x in values]) for values in (found, expected))
    return float(np.abs(a - b).max() / np.abs(b).max())


def differences(a: Learned, b: Learned) -> tuple[float, float, float]:
    """Of weights, momenta and losses."""
    return (
        off(list(a.weights.values()), list(b.weights.values())),
        off(a.momenta, b.momenta),
        off(list(a.losses.values()), list(b.losses.values())),
    )


@pytest.mark.parametrize("case", [name for name in CASES if "bfloat16" not in name and "local" not in name])
def test_steps_of_two_processes_are_those_of_one_but_for_rounding(steps: dict[str, list[Learned]], case: str) -> None:
    """Measured after three steps, as a part of the largest: weights 2.5e-7, momenta 5.8e-6, losses 1.4e-7 at most."""
    one, *two = steps[case]
    for found in two:
        weights, momenta, losses = differences(found, one)
        assert weights < 1e-5
        assert momenta < 1e-4
        assert losses < 1e-4
        if one.buffers:
            assert off(list(found.buffers.values()), list(one.buffers.values())) < 1e-5


def test_without_sync_batchnorm_they_differ_by_what_half_a_batch_normalises_otherwise(
    steps: dict[str, list[Learned]],
) -> None:
    """Eight images at a time instead of sixteen. Measured after three steps, as a part of the largest: weights 0.07,
    losses 0.007.
    """
    one, found, _ = steps["fefr, local"]
    assert 1e-3 < differences(found, one)[2] < 0.1


@pytest.mark.parametrize("case", CASES)
def test_all_processes_hold_the_same_weights_momenta_and_statistics_to_the_bit(
    steps: dict[str, list[Learned]], case: str
) -> None:
    _, a, b = steps[case]
    for ours, theirs in ((a.weights, b.weights), (a.buffers, b.buffers)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert all(np.array_equal(x, y) for x, y in zip(a.momenta, b.momenta, strict=True))
    assert a.losses == b.losses


@pytest.mark.long
def test_compiled_steps_of_two_processes_are_eager_ones_but_for_rounding(steps: dict[str, list[Learned]]) -> None:
    """The wrapper cuts the graph where its buckets of gradients end."""
    names = ("fefr, one trunk", "fefr, local", "plain, clipped", "byot, journal", "switokd", "pcl", "okdph")
    for found in together(2, traced, {name: CASES[name] for name in names}):
        for name in names:
            assert max(differences(found[name], steps[name][1])) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_gradients_come_back_in_the_layout_of_the_weights(steps: dict[str, list[Learned]], case: str) -> None:
    one, *two = steps[case]
    assert all(found.layouts == one.layouts for found in two)


def test_batches_are_counted_as_one_process_counts_them(steps: dict[str, list[Learned]]) -> None:
    for one, *two in steps.values():
        for found in two:
            for name, buffer in one.buffers.items():
                if name.endswith("num_batches_tracked"):
                    assert np.array_equal(found.buffers[name], buffer), name


# ---------------------------------------------------------------------------------------------------------------------
# Whole trainings


@pytest.fixture(scope="module")
def pair(elsewhere: Path) -> tuple[RunDir, list[Told]]:
    """The tiny recipe in one go by two processes, and what each of them told."""
    with chdir(elsewhere):
        told = together(2, training, elsewhere / "pair")
    return RunDir(elsewhere / "pair"), told


def test_a_training_of_two_processes_is_that_of_one_for_students_without_batch_normalisation(tmp_path: Path) -> None:
    """Three epochs. Measured: weights agree to 1.2e-7 of the largest, each loss term to 2e-6, accuracies exactly."""
    words = (PLAIN, "method.name=dml")
    one = start(*words, out=Path("one"), export_check="skipped")
    told = together(2, training, tmp_path / "two", words)
    assert [sum("processes:plain can be exported" in note for note in each.notes) for each in told] == [1, 0]
    two = RunDir(tmp_path / "two")
    assert two.read_info().export_check == "passed"
    for ours, theirs in zip(rows(two), rows(one), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5, abs=1e-6)
        for key in ("epoch", "lr", "train_top1_pct", "val_top1_pct"):
            assert ours[key] == theirs[key], key
    ours, theirs = (checkpoint.load(run)[0]["method"] for run in (two, one))  # type: ignore[index]
    assert off([w.numpy() for w in ours.values()], [w.numpy() for w in theirs.values()]) < 1e-5
    found = [result(run)["heads_last_epoch_top1_pct"] for run in (two, one)]
    assert found[0] == found[1]


def test_a_training_of_two_processes_is_that_of_one_where_batch_normalisation_sees_all(tmp_path: Path) -> None:
    """An epoch with small steps, since rounding grows with each. Measured: weights agree to 8e-8 of the largest,
    each loss term to 5e-6.
    """
    words = (SYNC, "optim.epochs=1", "optim.lr=0.001")
    one = start(*words, out=Path("one"))
    together(2, training, tmp_path / "two", words)
    two = RunDir(tmp_path / "two")
    (ours,), (theirs,) = rows(two), rows(one)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4, abs=1e-6)
    states = [checkpoint.load(run)[0]["method"] for run in (two, one)]  # type: ignore[index]
    assert off(*([w.double().numpy() for w in state.values()] for state in states)) < 1e-4


def test_an_average_and_a_patience_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    words = (
        *(PLAIN, "method.name=dml", "optim.sampler=balanced", "optim.ema=0.9", "optim.patience=2", "optim.epochs=12"),
        *("cohort.keep_metric=balanced", "optim.lr=0.3"),
    )
    one = start(*words, out=Path("one"), export_check="skipped")
    together(2, training, tmp_path / "two", words)
    two = RunDir(tmp_path / "two")
    assert len(rows(one)) < 12
    for ours, theirs in zip(rows(two), rows(one), strict=True):
        assert ours["val_top1_pct"] == theirs["val_top1_pct"]
        assert ours["val_balanced_pct"] == pytest.approx(theirs["val_balanced_pct"])
    ours, theirs = (checkpoint.load(run)[0]["average"]["values"] for run in (two, one))  # type: ignore[index]
    assert off([w.numpy() for w in ours.values()], [w.numpy() for w in theirs.values()]) < 1e-4
    found = [result(run) for run in (two, one)]
    for key in ("epochs_trained", "heads_last_epoch_top1_pct"):
        assert found[0][key] == found[1][key]
    assert [row["averaged"] for row in found[0]["cohort"]] == [row["averaged"] for row in found[1]["cohort"]]


def test_one_process_writes_and_talks(pair: tuple[RunDir, list[Told]], elsewhere: Path) -> None:
    run, (first, second) = pair
    assert [path.name for path in (elsewhere / "rank1").iterdir()] == ["tiny.toml"], "the test's own"
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3]
    assert first.notes[-1].startswith("judging on the 797 test images")
    assert not any(note.startswith("judging") for note in second.notes)
    assert "2 processes, batch normalisation over each process's own images" in first.notes
    assert run.read_info().processes == 2
    assert run.state() == "complete"


def test_accuracies_are_those_of_one_process_that_looks_at_the_same_weights(
    pair: tuple[RunDir, list[Told]],
) -> None:
    """The last epoch's, of every head, over the validation images of all processes."""
    import torch

    from okdc.data.batches import Normalise, eval_batches
    from okdc.training.metrics import count

    run, _ = pair
    job = built(recipe())
    state, _ = checkpoint.load(run)
    assert state is not None
    job.method.load_state_dict(state["method"])
    normalise = Normalise(*job.normalisation)
    read = count(job.method, eval_batches(job.dataset, job.dataset.val, normalise, 500), torch.device("cpu")).read()
    assert rows(run)[-1]["val_top1_pct"] == read.top1_pct


@pytest.mark.parametrize("asked", [(), ("engine.threads=auto",)], ids=["as asked", "auto"])
def test_the_process_that_judges_takes_the_cores_of_those_that_are_through(
    tmp_path: Path, asked: tuple[str, ...]
) -> None:
    told = together(2, training, tmp_path / "run", (*asked, "optim.epochs=1"))
    assert [of.threads for of in told] == [cores() if asked else 1, 1]


def test_a_complete_run_is_left_alone_by_all_processes(pair: tuple[RunDir, list[Told]]) -> None:
    before = pair[0].result.read_bytes()
    told = together(2, training, pair[0].path)
    assert [each.error for each in told] == ["", ""]
    assert pair[0].result.read_bytes() == before


def test_images_per_second_are_those_of_all_processes(pair: tuple[RunDir, list[Told]]) -> None:
    found = read_json(pair[0].result)
    assert found["images_per_s"] == pytest.approx(EPOCHS * STEPS * 16 / found["seconds"], rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Stopped, and continued

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ({1: (1, INT)}, 130),  # after the first step, to the one that does not write
        ({0: (2, TERM), 1: (3, TERM)}, 143),  # the second one comes while the first is being answered
        ({1: (2 * (STEPS + 1), INT)}, 130),  # after an epoch's checkpoint
    ],
)
def test_a_signal_to_any_process_stops_all_and_they_continue_to_the_bit(
    pair: tuple[RunDir, list[Told]], tmp_path: Path, signals: dict[int, tuple[int, signal.Signals]], code: int
) -> None:
    out = tmp_path / "run"
    first, second = together(2, training, out, (), signals)
    assert (first.error, first.code) == ("Interrupted", code)
    assert re.search(r"SIG(INT|TERM) after epoch \d, step \d: saved in ", first.message)
    assert first.hint == f"{TOGETHER} {out}"
    assert second == quiet(code)
    assert RunDir(out).state() == "resumable"
    told = together(2, training, out)
    assert [one.error for one in told] == ["", ""]
    assert not any("processes then" in note for note in told[0].notes)
    assert outcome(RunDir(out)) == outcome(pair[0])


@pytest.mark.parametrize(("call", "step"), [(1, 8), (7, 8), (10, 0)])
def test_a_signal_waits_for_eight_steps_or_the_end_of_the_epoch_at_most(tmp_path: Path, call: int, step: int) -> None:
    """Of twelve steps an epoch."""
    words = ("data.train_images=200", "optim.epochs=2", "method.name=baseline")
    first, second = together(2, training, tmp_path / "run", words, {1: (call, INT)}, STEPS_OF_SIGNAL)
    assert first.error == "Interrupted"
    assert f"after epoch {int(step == 0)}, step {step}: saved in" in first.message
    assert second == quiet(130)


@pytest.mark.long
def test_three_processes_continue_to_the_bit_too(tmp_path: Path) -> None:
    """The sum of three numbers depends on their order, which must not follow from where the training was stopped."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    together(3, training, whole, THREE)
    assert together(3, training, run, THREE, {2: (6, INT)})[0].error == "Interrupted"
    together(3, training, run, THREE)
    assert outcome(RunDir(run)) == outcome(RunDir(whole))


def test_another_number_of_processes_continues_and_says_that_it_is_not_exact(tmp_path: Path) -> None:
    out = tmp_path / "run"
    together(2, training, out, (), {1: (STEPS + 2, INT)})
    tell = Quiet(lambda call: os.kill(os.getpid(), INT) if call == 1 else None)
    with pytest.raises(Interrupted, match="SIGINT after epoch 1, step 2"):
        resume(out, tell)
    assert "not exact to the bit: 2 processes then, 1 now" in tell.notes
    assert RunDir(out).resume_command() == f"okdc resume {out}"
    told = together(2, training, out)
    assert "not exact to the bit: 1 process then, 2 now" in told[0].notes
    facts = read_json(RunDir(out).info)
    assert (facts["processes_before"], facts["processes"]) == ([2, 1], 2)
    assert [one.error for one in told] == ["", ""]
    assert [row["epoch"] for row in rows(RunDir(out))] == [1, 2, 3]
    assert all(0 <= value <= 100 for row in rows(RunDir(out)) for value in row["train_top1_pct"].values())


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def once(answers: list[Answer], text: str, code: int = 2) -> Answer:
    """The one answer of several processes that has the text; the others end as it does and say nothing of it."""
    assert [answer.code for answer in answers] == [code] * len(answers)
    telling = [answer for answer in answers if text in answer.err]
    assert len(telling) == 1, [answer.err for answer in answers]
    assert sum(answer.err.count("error[") + answer.err.count("interrupted") for answer in answers) == 1
    assert telling[0].err.count(text) == 1
    return telling[0]


def test_what_all_find_wrong_is_said_by_one(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    once(together(2, asked, "distill", "-o", str(tmp_path / "taken")), "is not an empty folder")
    once(together(2, asked, "distill", "optim.epoch=3"), "optim.epoch: unknown key")
    once(together(2, asked, "distill", "optim.batch_size=33"), "expected a multiple of 2")
    nowhere = ("data.name=folder", f"data.root={tmp_path / 'nowhere'}", "data.image_size=8")
    once(together(2, asked, "distill", *nowhere), "nowhere")
    once(together(2, asked, "resume", str(tmp_path / "nowhere")), "no such run")
    for k in range(2):
        RunDir.create(
            "tiny", run_info(recipe=recipe().recipe.tables(), started_at=str(k)), tmp_path / f"rank{k}" / "run"
        )
    once(together(2, asked, "resume", "run"), "the run's facts: process 1 of 2 has others than the first one")
    assert not any((tmp_path / f"rank{k}" / "runs").exists() for k in range(2))


def test_a_loss_that_is_not_finite_fails_the_run_once(tmp_path: Path) -> None:
    write_recipe()
    out = tmp_path / "run"
    words = ("distill", str(tmp_path / "tiny.toml"), "optim.lr=1e30", "-o", str(out))
    told = once(together(2, asked, *words), "is not finite")
    assert "hint: a lower optim.lr" in told.err
    assert RunDir(out).state() == "failed"
    once(together(2, asked, "resume", str(out)), "failed: ")


@pytest.mark.parametrize(
    ("where", "rank", "text", "code"),
    [
        ("disk", 0, "error[disk]: no space left", 2),
        ("bug", 1, "error[bug]: ZeroDivisionError: of one process", 2),
        ("signal", 1, "interrupted: before the training began", 130),
    ],
)
def test_what_one_process_alone_meets_ends_all_and_is_said_by_it(
    tmp_path: Path, where: str, rank: int, text: str, code: int
) -> None:
    """A full disk, a bug, and Ctrl-C while the others wait for it."""
    answers = together(2, broken, where, rank, tmp_path / "run")
    answers = [answer if answer.code == code else Answer(code, answer.out, answer.err) for answer in answers]
    assert once(answers, text, code) is answers[rank]


def test_a_process_that_is_killed_ends_the_others_who_say_so_and_the_run_goes_on_from_its_checkpoint(
    pair: tuple[RunDir, list[Told]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    told = together(2, training, out, (), {1: (STEPS + 3, signal.SIGKILL)})
    assert told[1] == -signal.SIGKILL
    assert (told[0].error, told[0].message, told[0].code) == ("RunError", LOST, 2)
    assert told[0].hint.endswith(f"then: {TOGETHER} {out}")
    assert RunDir(out).state() == "resumable"
    together(2, training, out)
    assert outcome(RunDir(out)) == outcome(pair[0])


# --- images in files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_imagenet(tmp_path / "imagenet")


def one_epoch(root: Path) -> tuple[str, ...]:
    return streamed(root, "optim.epochs=1", "engine.workers=1")


def test_a_damaged_image_of_one_process_stops_all_names_the_file_once_and_they_continue_when_it_is_restored(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second process's part of the third batch."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    together(2, training, whole, one_epoch(tree))

    monkeypatch.setattr(ondemand, "PROBE", 1)
    found = assembly.dataset(recipe(*one_epoch(tree)))
    assert found.files is not None
    row = int(order(found.train, 0, 0)[part_of_batch(2, 8, Ranks(1, 2))][1])
    path = found.files.path(row)
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    answers = together(2, damaged, out, (str(tmp_path / "tiny.toml"), *one_epoch(tree)))
    told = once(answers, f"the first is {path}")
    assert told is answers[1]
    assert f"{TOGETHER} {out}" in told.err
    state, _ = checkpoint.load(RunDir(out))
    assert state is not None
    assert (state["epoch"], state["step"]) == (0, 2)

    path.write_bytes(content)
    assert [one.error for one in together(2, training, out)] == ["", ""]
    assert rows(RunDir(out)) == rows(RunDir(whole))
    assert outcome(RunDir(out))["weights"] == outcome(RunDir(whole))["weights"]


# ---------------------------------------------------------------------------------------------------------------------
# Under torchrun


def torchrun(*words: str) -> subprocess.Popen[str]:
    """Two processes, in a process group of their own as a terminal makes one."""
    path = os.pathsep.join([str(Path(processes.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def waiting() -> list[int]:
    """The processes, when both stand in the middle of the second epoch."""
    files = [Path(f"waiting{rank}") for rank in range(2)]
    for _ in range(2400):
        if all(file.exists() and file.read_text(encoding="utf-8") for file in files):
            return [int(file.read_text(encoding="utf-8")) for file in files]
        time.sleep(0.05)
    raise AssertionError("they never came so far")


def gone(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


def stopped(how: Callable[[int, list[int]], None], out: Path) -> tuple[subprocess.Popen[str], str]:
    """A training that `how`, given torchrun's and the processes' numbers, stopped in its second epoch; its talk."""
    write_recipe()
    Path("hold").touch()
    parent = torchrun("processes", "distill", "tiny.toml", "-o", str(out))
    try:
        children = waiting()
        how(parent.pid, children)
        _, err = parent.communicate()
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGTERM)
            parent.communicate()
    assert all(gone(child) for child in children)
    assert parent.returncode not in (0, None)
    return parent, err


def test_ctrl_c_in_torchruns_terminal_saves_once_and_two_processes_continue_to_the_bit(
    pair: tuple[RunDir, list[Told]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    _, err = stopped(lambda parent, _: os.killpg(parent, signal.SIGINT), out)
    saved = f"interrupted: SIGINT after epoch 1, step 2: saved in {out}"
    assert err.count(saved) == err.count(f"hint: {TOGETHER} {out}") == 1
    for line in ("2 processes, batch normalisation", f"run {out}", "epoch 1/3"):
        assert err.count(line) == 1, line

    first, second = together(2, asked, "resume", str(out))
    assert first.err.count("continues at epoch 2, step 3") == first.err.count("judging on the 797 test images") == 1
    assert first.out.count("kept student") == first.err.count("next: okdc profile") == 1
    assert (first.code, second) == (0, Answer(0, "", ""))
    assert outcome(RunDir(out)) == outcome(pair[0])


def test_a_killed_process_ends_torchrun_and_leaves_none_behind(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _, err = stopped(lambda _, children: os.kill(children[1], signal.SIGKILL), out)
    assert err.count(f"error[run]: {LOST}") == 1
    assert err.count(f"{TOGETHER} {out}") == 1
    assert "SIGKILL" in err, "torchrun's report"
    assert RunDir(out).state() == "resumable"
