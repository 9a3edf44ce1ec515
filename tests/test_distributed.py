"""What each of several processes gets of the images, and what they make of what each of them brings."""

from __future__ import annotations

import itertools
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from asking import ask, tried
from batching import same
from harness import recipe
from hypothesis import given
from hypothesis import strategies as st
from making import run_info
from pictures import write_imagenet
from reading import read_data
from torch.distributed import HashStore  # type: ignore[attr-defined]

from okdc.data.augmentation import Augmentation, Examples
from okdc.data.batches import Normalise, TrainBatches, eval_batches
from okdc.data.datasets import Dataset
from okdc.data.streaming import StreamBatches
from okdc.distributed import ALONE, HERE, Ranks, gathered
from okdc.errors import RecipeError, UsageError
from okdc.methods.base import Step
from okdc.recipe.schema import Augment
from okdc.runs.run import RunDir
from okdc.signals import Received
from okdc.training import start as starts
from okdc.training.checkpoint import Position
from okdc.training.interrupts import Stops
from okdc.training.metrics import Totals

CPU = torch.device("cpu")
RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))

VARIED = Augment(padding=1, rotation=20.0, hue=0.2, erasing=0.5, policy="trivial", mixup=0.4, cutmix=1.0)


def group(count: int) -> list[Ranks]:
    return [Ranks(rank, count, rank, count) for rank in range(count)]


def dataset(n: int) -> Dataset:
    """Random pixels; the label of an image is its row."""
    rows = torch.arange(n)
    return Dataset(
        name="made",
        classes=("a", "b"),
        images=torch.randint(1, 256, (n, 5, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        labels=rows.clone(),
        train=rows,
        val=torch.empty(0, dtype=torch.int64),
        test=torch.empty(0, dtype=torch.int64),
        fingerprint="",
    )


def joined(parts: list[Iterator[Examples]]) -> list[Examples]:
    """The batches of several processes, each put together in their order."""

    def together(examples: tuple[Examples, ...]) -> Examples:
        columns = zip(*(part[:4] for part in examples), strict=True)  # all but further views, of which there are none
        images, labels, others, mix = (None if column[0] is None else torch.cat(column) for column in columns)
        assert images is not None
        assert labels is not None
        return Examples(images, labels, others, mix)

    return [together(examples) for examples in zip(*parts, strict=True)]


# --- images


@given(
    n=st.integers(0, 60),
    part=st.integers(1, 5),
    count=st.sampled_from([1, 2, 3, 4]),
    epoch=st.integers(0, 3),
    data=st.data(),
)
@tried
def test_the_parts_of_all_processes_are_the_batches_of_one_from_any_step_on(
    n: int, part: int, count: int, epoch: int, data: st.DataObject
) -> None:
    keys = data.draw(st.sampled_from([Augment(padding=1), VARIED]))
    part = 2 * part if keys is VARIED else part  # neighbours are mixed: both are in one part
    one = TrainBatches(dataset(n), part * count, Augmentation(keys), RAW, 7)
    start = data.draw(st.integers(0, one.steps))
    found = joined([replace(one, ranks=ranks).epoch(epoch, start) for ranks in group(count)])
    assert same(found, list(one.epoch(epoch))[start:])
    shown = [row for _, labels, *_ in found for row in labels.tolist()]
    assert len(set(shown)) == len(shown) == part * count * (one.steps - start)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_images_in_files_are_divided_in_the_same_way(tree: Path, count: int, start: int) -> None:
    found = read_data("imagenet", tree, 32, 36)
    with closing(StreamBatches(found, 8, Augmentation(Augment(crop="resized")), RAW, 0, 0)) as one:
        expected = list(one.epoch(1, start))
    augmentation = Augmentation(Augment(crop="resized"))
    each = [StreamBatches(found, 8, augmentation, RAW, 0, ranks.rank % 2, ranks) for ranks in group(count)]
    try:
        assert same(joined([batches.epoch(1, start) for batches in each]), expected)
    finally:
        for batches in each:
            batches.close()


@given(n=st.integers(0, 40), batch_size=st.integers(1, 9), count=st.sampled_from([1, 2, 3, 4]))
@tried
def test_evaluation_gives_each_process_whole_batches_of_one_and_each_image_once(
    n: int, batch_size: int, count: int
) -> None:
    of = dataset(n)
    one = list(eval_batches(of, of.train, RAW, batch_size))
    parts = [list(eval_batches(of, of.train, RAW, batch_size, ranks)) for ranks in group(count)]
    taken = [batch for turn in itertools.zip_longest(*parts) for batch in turn if batch is not None]
    assert same([Examples(*batch) for batch in taken], [Examples(*batch) for batch in one])


# --- counts


def counted(steps: range, bad: int | None = None) -> Totals:
    totals = Totals(CPU)
    for number in steps:
        labels = torch.zeros(4, dtype=torch.int64)
        z = torch.eye(2)[[0, 1, 0, number % 2]]
        loss = math.nan if number == bad else 1.0 + number
        totals.add(Step({"ce": torch.tensor(loss)}, {"student0": z}), labels, number)
    return totals


def test_counts_of_several_processes_add_up_and_one_without_a_batch_changes_nothing() -> None:
    parts = [counted(range(3)), Totals(CPU), counted(range(3, 5))]
    found = Totals.together([part.state() for part in parts]).read()
    whole = counted(range(5)).read()
    assert found == whole
    assert Totals.together([Totals(CPU).state()] * 2).read().top1_pct == {}


@pytest.mark.parametrize("turn", [1, -1])
def test_the_first_step_that_is_not_finite_in_any_process_is_named(turn: int) -> None:
    parts = [counted(range(10, 20), bad=14), counted(range(10, 20), bad=12), counted(range(10, 20))]
    assert Totals.together([part.state() for part in parts[::turn]]).read().bad == (12, "ce")


@pytest.mark.parametrize("now", [1, 2, 3])
def test_counts_that_were_saved_go_on_in_any_number_of_processes(now: int) -> None:
    """Each to its own process where there are as many as before; else the sum to the first."""
    saved = [counted(range(3)).state(), counted(range(3, 5)).state()]
    parts = [Totals.resumed(saved, CPU, ranks) for ranks in group(now)]
    if now == 2:
        assert [part.steps for part in parts] == [3, 2]
    assert Totals.together([part.state() for part in parts]).read() == counted(range(5)).read()


# --- signals


@pytest.mark.parametrize(("unreadable", "expected"), [(False, [0, 8, 16]), (True, list(range(18)))])
def test_processes_ask_each_other_every_eighth_step_or_before_every_image_that_may_be_damaged(
    monkeypatch: pytest.MonkeyPatch, unreadable: bool, expected: list[int]
) -> None:
    """17 steps from the first on; the last question finds no batch."""
    position, asked = Position(), list[int]()

    def largest(_: Ranks, number: int) -> int:
        asked.append(position.step)
        return number

    def failed() -> None:
        raise AssertionError("nothing is to be saved")

    monkeypatch.setattr(Ranks, "largest", largest)
    run = RunDir.create("x", run_info(), Path("run"))
    for count in (2, 1):
        position.step, asked[:] = 0, []
        stops = Stops(run, position, group(count)[0], Received(), failed, unreadable)
        for _ in stops.between_steps(iter([(torch.ones(1), torch.ones(1))] * 17)):
            position.step += 1
        assert position.step == 17
        assert asked == (expected if count > 1 else list(range(18)))


# --- who is who


def named(patch: pytest.MonkeyPatch, **environment: str) -> Ranks:
    patch.setenv("MASTER_ADDR", "127.0.0.1")
    patch.setenv("MASTER_PORT", "1")
    for name, value in environment.items():
        patch.setenv(name, value)
    return Ranks.of_environment()


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.of_environment() == ALONE
    assert named(monkeypatch, RANK="0", WORLD_SIZE="1") == ALONE


def test_what_a_process_alone_gathers_is_its_own_without_a_gradient() -> None:
    tensor = torch.ones(2, 3, requires_grad=True)
    whole = gathered(2 * tensor)
    assert whole.shape == (1, 2, 3)
    assert not whole.requires_grad


def test_one_process_of_a_batch_system_is_alone_whatever_its_number_on_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert named(monkeypatch, RANK="0", WORLD_SIZE="1", LOCAL_RANK="3", LOCAL_WORLD_SIZE="4") == ALONE
    monkeypatch.delenv("MASTER_ADDR")
    assert Ranks.of_environment() == ALONE


def test_torchrun_says_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    found = named(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
    assert found == Ranks(5, 8, 1, 4)
    assert not found.first
    assert not found.alone


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "two"},
        {"RANK": "", "WORLD_SIZE": "2"},
        {"RANK": "²", "WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"},
    ],
)
def test_an_environment_that_makes_no_sense_is_an_error_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="describes no group of processes") as caught:
        named(monkeypatch, **environment)
    assert f"RANK={environment['RANK']} WORLD_SIZE={environment['WORLD_SIZE']}" in caught.value.message


def test_processes_that_are_not_told_where_to_meet_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="without MASTER_ADDR and MASTER_PORT"):
        Ranks.of_environment()


@pytest.mark.parametrize(
    ("batch_size", "count", "instead"), [(16, 3, "optim.batch_size=15"), (6, 4, "optim.batch_size=8")]
)
def test_a_batch_that_cannot_be_divided_is_refused_with_the_numbers_and_another_size(
    batch_size: int, count: int, instead: str
) -> None:
    asked = recipe(f"optim.batch_size={batch_size}")
    with pytest.raises(RecipeError, match=rf"batch_size={batch_size} .* all {count} processes") as caught:
        starts.settings_of(asked, asked.recipe.engine, group(count)[0])
    assert instead in caught.value.hint


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_neighbours_that_are_mixed_are_in_one_process(key: str) -> None:
    odd, even, plain = (
        recipe(*words)
        for words in (
            ("optim.batch_size=6", f"augment.{key}=0.2"),
            ("optim.batch_size=8", f"augment.{key}=0.2"),
            ("optim.batch_size=6",),
        )
    )
    with pytest.raises(RecipeError, match="batch_size=6 is an odd number") as caught:
        starts.settings_of(odd, odd.recipe.engine, group(2)[0])
    assert "optim.batch_size=8" in caught.value.hint
    for asked, ranks in ((even, group(2)[0]), (plain, group(2)[0]), (odd, group(1)[0])):
        starts.settings_of(asked, asked.recipe.engine, ranks)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_series_is_no_business_of_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """Refused before anybody waits for anybody, and told by one."""
    named(monkeypatch, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    answer = ask(capsys, "distill", "--seeds", "0,1")
    assert answer.code == 2
    assert answer.err.count("--seeds under torchrun") == (1 if rank == 0 else 0)
    assert bool(answer.err) is (rank == 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_nor_is_a_run_of_a_series(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """Whoever trains it holds the series, which only one of them could."""
    run = RunDir.create("x", run_info(recipe=recipe().recipe.tables()), Path("series") / "seed0")
    Path("series", "series.json").write_text("{}", encoding="utf-8")
    named(monkeypatch, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    monkeypatch.setattr(Ranks, "joined", lambda *_: pytest.fail("it waits for the others"))
    answer = ask(capsys, "resume", str(run.path))
    assert answer.code == 2
    assert answer.err.count("belongs to a series, trained by one process") == (1 if rank == 0 else 0)
    assert bool(answer.err) is (rank == 0)


@pytest.mark.parametrize("command", ["profile", "export", "evaluate", "download", "bench"])
def test_nor_is_what_follows_a_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Two exports would write one bundle."""
    named(monkeypatch, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
    answer = ask(capsys, command, "cifar10") if command == "download" else ask(capsys, command)
    assert answer.code == 2
    assert f"{command} under torchrun: expected one process" in answer.err
    assert ask(capsys, "runs").code == 0


def test_several_machines_are_in_the_command_that_continues() -> None:
    run = RunDir.create("x", run_info(processes=16, processes_here=8), Path("a b"))
    assert run.resume_command() == "torchrun --nnodes=2 ... --nproc-per-node=8 -m okdc resume 'a b'"


def test_each_process_takes_its_own_gpu_before_anything_is_put_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's counts are, before the training begins. The machine of this test may have none: none is asked."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    store = HashStore()
    store.add(HERE, 3)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([(store, 3, 4)]))
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    with Ranks(3, 4, 1, 2).joined("cuda"):
        found = list(taken)
    assert found == [torch.device("cuda", 1)]


def test_ctrl_c_is_heard_while_the_others_have_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that failed before they were connected never comes."""
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([(HashStore(), 0, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("it waits there"))
    monkeypatch.setattr("time.sleep", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), Ranks(0, 2, 0, 2).joined("cpu"):
        pass


LEFT = """
import atexit
from torch import distributed
from okdc.distributed import leave

if {connected}:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
atexit.register(print, "took down")
print("said", end=" ")
leave(3)
"""


@pytest.mark.parametrize(("connected", "out"), [(False, "said took down\n"), (True, "said ")])
def test_the_program_ends_at_once_where_it_is_still_connected(connected: bool, out: str) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT.format(connected=connected)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, out), done.stderr
