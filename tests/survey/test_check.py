"""`okdc check`: what it counts, finds and times, with which exit code it ends, and that it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, picture, write_tree
from PIL import Image
from reading import read_data

import okdc
from okdc.assembly import job as assembly
from okdc.assembly.beginnings import finetuned
from okdc.assembly.job import Job
from okdc.assembly.resolve import resolve
from okdc.assembly.student import square
from okdc.data import datasets
from okdc.data.ondemand import OnDemand
from okdc.distributed import ALONE
from okdc.errors import DataError
from okdc.methods.base import Batch, Step
from okdc.progress import Silent
from okdc.recipe.draft import load
from okdc.runs.run import RunDir
from okdc.survey import duplicates
from okdc.survey.check import check
from okdc.training import memory, start, timing
from okdc.training.checkpoint import Position
from okdc.training.loop import Training
from okdc.training.step import TrainStep
from okdc.training.timing import Duration, Spread

Captured = pytest.CaptureFixture[str]
SECONDS = 0.2
SMALL = ("folder_resnet20", "cohort.students=['resnet8','resnet8']", "data.image_size=16", "data.root=root",
         "optim.batch_size=4", "optim.epochs=7")  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps are enough."""
    monkeypatch.setattr(timing, "SECONDS", SECONDS)
    monkeypatch.setattr(timing, "SPAN_S", 0.0)


def pictures(root: Path, tree: dict[str, dict[str, int]]) -> Path:
    seed = 0
    for split, classes in tree.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed += 1
                Image.fromarray(picture(seed, 16)).save(root / split / name / f"{i:03}.png")
    return root


TREE = {"train": {"cat": 20, "dog": 14}, "val": {"cat": 6, "dog": 6}, "test": {"cat": 7, "dog": 6}}


def report_of(*words: str, images: bool = False) -> dict[str, Any]:
    return check(resolve(load([*SMALL, *words])), images, Silent(), SECONDS)


# --- what it says


def test_it_counts_what_a_training_would_use() -> None:
    pictures(Path("root"), TREE)
    report = report_of()
    assert report["images"] == {"train": 34, "val": 12, "test": 13}
    assert report["classes"] == [
        {"class": "cat", "train": 20, "val": 6, "test": 7},
        {"class": "dog", "train": 14, "val": 6, "test": 6},
    ]
    assert (report["steps_per_epoch"], report["epochs"], report["steps"]) == (8, 7, 56)
    assert report["export_check"] == "proven"
    assert report["duplicates"] is None
    assert not report["failures"]
    profile = {row["name"]: row for row in okdc.profile("folder_resnet20")["rows"]}
    own = check(resolve(load(["folder_resnet20", "data.root=root"])), False, Silent(), SECONDS)
    for row in (*own["students"], {"architecture": "training (fefr)", **own["training"]}):
        counted = profile[row["architecture"]]
        assert counted["params"] - row["params"] in range(10_000)  # with ten classes, not two
        assert 0 <= counted["macs"] - row["macs"] < 10_000


def test_classes_that_no_image_judges_are_named_before_those_that_few_do() -> None:
    pictures(Path("root"), {"train": {"cat": 20, "dog": 14, "owl": 9}, "test": {"cat": 7, "owl": 2}})
    warnings = report_of("data.val_fraction=0.3")["warnings"]
    without, few = (line for line in warnings if line.startswith("classes") and "test images" in line)
    assert "'dog'" in without
    assert not any(f"'{name}'" in without for name in ("cat", "owl"))
    assert "'owl'" in few
    assert not any(f"'{name}'" in few for name in ("cat", "dog"))


def test_it_passes_names_the_next_command_and_leaves_nothing_behind(capsys: Captured) -> None:
    pictures(Path("root"), TREE)
    before = sorted(path for path in Path().rglob("*") if "cache" not in path.parts)
    answer = ask(capsys, "check", *SMALL, "--images")
    assert answer.code == 0, answer.err
    assert "next: okdc distill folder_resnet20 " in answer.err
    assert "34 train, 12 val, 13 test images" in answer.out
    assert "7 epochs of 8 steps" in answer.out
    assert "1 epoch of 8 steps" in ask(capsys, "check", *SMALL, "epochs=1").out
    assert "to the end: about " in answer.out
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == before


def test_what_stops_a_training_stops_it_too(capsys: Captured) -> None:
    write_tree(Path("root"), {"cat": 5, "dog": 5})
    for words in (["optim.epoch=3"], ["optim.batch_size=50"], ["data.root=nowhere"], ["cohort.students=['resnet9']"]):
        answer, trained = ask(capsys, "check", *SMALL, *words), ask(capsys, "distill", *SMALL, *words)
        assert answer.code == trained.code == 2
        said, expected = (each.err.partition("error[")[2].partition("\nhint: ")[0] for each in (answer, trained))
        assert said == expected != ""


def test_a_damaged_file_stops_it_or_is_counted(capsys: Captured) -> None:
    pictures(Path("root"), TREE)
    path = Path("root/train/cat/003.png")
    path.write_bytes(path.read_bytes()[:-100])
    shutil.copy("root/train/cat/019.png", "root/test/cat/copy.png")
    answer = ask(capsys, "check", *SMALL)
    assert answer.code == 2
    assert str(path) in answer.err
    report = report_of("data.skip_damaged=true", images=True)
    assert report["images"]["train"] == 33
    assert [line.partition(":")[0] for line in report["skipped"]] == ["train/cat/003.png"]
    (pair,) = report["duplicates"]["equal"]["splits"]
    assert [row["image"] for row in pair] == ["train/cat/019.png", "test/cat/copy.png"]  # after the row that is gone


# --- images that occur twice


def test_an_image_in_two_splits_fails(capsys: Captured) -> None:
    pictures(Path("root"), TREE)
    Image.open("root/train/dog/002.png").save("root/test/dog/same.bmp")  # the pixels are the same, the bytes are not
    answer = ask(capsys, "check", *SMALL, "--images")
    assert answer.code == 1
    assert "error[images]: 1 image is in more than one split: " in answer.err
    assert "train/dog/002.png = test/dog/same.bmp" in answer.err
    assert "next: " not in answer.err
    as_json = ask(capsys, "check", *SMALL, "--images", "--json")
    assert as_json.code == 1
    assert len(json.loads(as_json.out)["failures"]) == 1
    assert ask(capsys, "check", *SMALL).code == 0  # nobody asked


def test_images_of_two_classes_and_within_a_class_are_warnings() -> None:
    pictures(Path("root"), TREE)
    shutil.copy("root/train/cat/000.png", "root/train/dog/other.png")
    shutil.copy("root/train/cat/001.png", "root/train/cat/again.png")
    report = report_of(images=True)
    equal = report["duplicates"]["equal"]
    assert {place: [[row["image"] for row in group] for group in groups] for place, groups in equal.items()} == {
        "splits": [],
        "classes": [["train/cat/000.png", "train/dog/other.png"]],
        "class": [["train/cat/001.png", "train/cat/again.png"]],
    }
    assert not report["failures"]
    assert sum("train/cat/000.png" in line or "train/cat/001.png" in line for line in report["warnings"]) == 2


def test_a_split_that_okdc_draws_is_looked_through_as_it_is_drawn() -> None:
    root = Path("root")
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(picture(i + (name == "dog") * 100, 16))
            image.save(root / name / f"{i}.png")
            image.save(root / name / f"{i}-again.png")
    report = report_of(images=True)
    equal = report["duplicates"]["equal"]
    assert len(equal["splits"]) + len(equal["class"]) == 20
    assert len(equal["splits"]) > 3
    assert all(row["split"] in ("train", "val", "test") for group in equal["splits"] for row in group)


def test_pictures_that_look_the_same_are_found() -> None:
    pytest.importorskip("imagehash", reason="imagehash is not installed")
    pictures(Path("root"), TREE)
    lighter = np.clip(np.asarray(Image.open("root/train/cat/004.png")).astype(int) * 0.9 + 8, 0, 255)
    Image.fromarray(lighter.astype(np.uint8)).save("root/test/cat/lighter.jpg", quality=95)
    report = report_of(images=True)
    near = report["duplicates"]["near"]
    assert [[row["image"] for row in pair] for pair in near["splits"]] == [
        ["train/cat/004.png", "test/cat/lighter.jpg"]
    ]
    assert report["duplicates"]["near_count"] == 1
    assert not report["failures"]
    assert any("test/cat/lighter.jpg" in line for line in report["warnings"])


def test_without_imagehash_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "imagehash" else real(name))
    pictures(Path("root"), TREE)
    report = report_of(images=True)
    assert report["duplicates"]["near"] is None
    assert "okdc[duplicates]" in report["duplicates"]["near_not_looked_for"]
    assert any("okdc[duplicates]" in line for line in report["warnings"])


def test_tiny_images_and_very_many_are_not_compared_by_their_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "8×8" in duplicates._no_near(100, 8)
    monkeypatch.setattr(duplicates, "MOST", 99)
    assert "100" in duplicates._no_near(100, 32)


def test_pairs_are_counted_once_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.array([0, 1, 3, 7, 15, 2**60, 2**60 + 1], np.uint64)
    rows = list(range(10, 17))
    expected = {
        (rows[i], rows[j]) for i in range(7) for j in range(i + 1, 7)
        if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= duplicates.NEAR_BITS
    } - {(10, 12)}  # fmt: skip
    for blocks in (2**22, 7, 1):
        monkeypatch.setattr(duplicates, "BLOCK", blocks)
        pairs, count = duplicates._near(hashes, rows, {10: 0, 12: 0})
        assert {(pair.first, pair.second) for pair in pairs} == expected
        assert count == len(pairs) == len(expected)
    monkeypatch.setattr(duplicates, "SHOWN", 3)
    pairs, count = duplicates._near(hashes, rows, {})
    assert (len(pairs), count) == (3, len(expected) + 1)


def test_files_that_are_read_later_are_read_now(tmp_path: Path) -> None:
    root = pictures(tmp_path / "root", TREE)
    dataset = datasets.divide(read_data("folder", root, 16), 0.1, None, seed=0)
    files = sorted(root.rglob("*.png"))
    streamed = replace(dataset, images=dataset.images[:0], files=OnDemand(root, files, 16))
    path = files[2]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError) as caught:
        duplicates.find(streamed)
    assert [line.partition(": ")[0] for line in caught.value.details] == [str(path)]
    path.write_bytes(files[3].read_bytes())
    assert duplicates.find(streamed).equal == ((2, 3),)


@pytest.mark.parametrize("words", [["data.train_images=16"], ["data.stream=on"]])
def test_images_are_called_by_their_files_wherever_they_lie(words: list[str]) -> None:
    pictures(Path("root"), TREE)
    shutil.copy("root/val/dog/005.png", "root/test/dog/copy.png")
    report = report_of(*words, images=True)
    (pair,) = report["duplicates"]["equal"]["splits"]
    assert [row["image"] for row in pair] == ["val/dog/005.png", "test/dog/copy.png"]


def test_images_without_files_are_called_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twins_in_memory.py").write_text(
        "import numpy as np\n"
        "def load(root=None, image_size=8):\n"
        "    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)\n"
        "    images[35] = images[3]\n"
        "    labels = np.arange(40) % 2\n"
        "    parts = {'train': (images[:30], labels[:30]), 'test': (images[30:], labels[30:])}\n"
        "    return {'classes': ['a', 'b'], **parts}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["digits_resnet8", "data.name=twins_in_memory:load", "optim.batch_size=4", "optim.epochs=1"]
    report = check(resolve(load(words)), True, Silent(), SECONDS)
    ((first, second),) = report["duplicates"]["equal"]["splits"]
    assert [first["image"], second["image"]] == ["image 3", "image 35"]
    assert [first["split"], second["split"]] == ["train", "test"]


# --- time and memory


def job_of(*words: str) -> tuple[Job, Any]:
    resolved = resolve(load(["digits_resnet8", "optim.batch_size=8", *words]))
    job = assembly.job(resolved, lambda: assembly.dataset(resolved))
    return job, start.decided(start.settings_of(resolved, resolved.recipe.engine), job)


def test_the_time_to_the_end_is_that_of_its_parts() -> None:
    duration = Duration(
        Spread(0.5, 0.4, 0.8, 10),
        steps=20,
        epochs=30,
        earlier=(),
        start=4.0,
        validation=2.0,
        saving=1.0,
        judging=6.0,
    )
    assert duration.epoch == Spread(13, 11, 19, 10)
    assert duration.whole == Spread(400, 340, 580, 10)
    ten_fixed = replace(duration, earlier=((4, Spread(0.2, 0.1, 0.25, 8)), (6, Spread(0.2, 0.1, 0.25, 9))))
    assert ten_fixed.epoch == duration.epoch
    assert ten_fixed.whole == Spread(340, 280, 470, 8)
    assert (duration.mean_step, ten_fixed.mean_step) == pytest.approx((0.5, 0.4))


def test_epochs_that_fix_the_backbones_are_timed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    job, settings = job_of("data.train_images=24", "optim.epochs=3")
    optim = job.recipe.optim.model_copy(update={"freeze_epochs": 2})
    students = tuple(finetuned(student, 10, square(8)) for student in job.method.cohort.backbones())
    job = replace(job, recipe=job.recipe.model_copy(update={"optim": optim}), finetuned=students)
    fixed: list[bool] = []
    learn = TrainStep._learn

    def noted(self: TrainStep, batch: Batch, done: float) -> Step:
        fixed.append(self.backbones.fixed)
        return learn(self, batch, done)

    monkeypatch.setattr(TrainStep, "_learn", noted)
    duration, _ = timing.measure(job, settings, Silent(), 0.0)
    steps = timing.WARM + timing.FEWEST
    assert fixed == [True] * steps + [False] * steps
    assert [epochs for epochs, _ in duration.earlier] == [2]


def test_a_tenth_of_the_spans_is_below_and_above() -> None:
    assert Spread.of([float(x) for x in range(21)]) == Spread(10, 2, 18, 21)
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2, 1, 3, 3)


def test_the_steps_are_real_ones_of_several_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    job, settings = job_of("data.train_images=24", "optim.epochs=2")
    before = {name: tensor.clone() for name, tensor in job.method.state_dict().items()}
    taken: list[float] = []
    inner = Training.__init__

    def noted(self: Training, *args: Any) -> None:
        inner(self, *args)
        step = self.step.step
        learn = step._learn

        def counted(batch: Batch, done: float) -> Step:
            taken.append(done)
            return learn(batch, done)

        monkeypatch.setattr(step, "_learn", counted)

    monkeypatch.setattr(Training, "__init__", noted)
    duration, training = timing.measure(job, settings, Silent(), 0.0)
    assert (duration.steps, duration.epochs) == (3, 2)
    assert len(taken) == timing.WARM + timing.FEWEST == duration.step.n + timing.WARM
    assert max(taken) == 1.0  # more steps than the training has are those of its end
    assert any(not torch.equal(tensor, before[name]) for name, tensor in training.method.state_dict().items())
    assert 0 < duration.step.low <= duration.step.median <= duration.step.high
    assert min(duration.validation, duration.saving, duration.judging) > 0


@pytest.mark.parametrize(("optimizer", "tensors"), [("sgd", 1), ("adamw", 2)])
def test_memory_is_that_of_tensors_and_maps_of_a_batch(optimizer: str, tensors: int) -> None:
    job, settings = job_of(f"optim.optimizer={optimizer}", "data.train_images=40")
    _, training = timing.measure(job, settings, Silent(), 0.0)
    needed = memory.needed(training)
    parameters = sum(p.numel() for p in training.method.parameters())
    counts = 4 * sum(1 for p in training.method.parameters()) if optimizer == "adamw" else 0
    assert needed.gradients == 4 * parameters
    assert needed.optimiser == tensors * 4 * parameters + counts
    assert needed.weights == sum(t.nbytes for t in training.method.state_dict().values())
    assert needed.images == job.dataset.images.nbytes
    assert needed.maps == pytest.approx(memory._kept(training, 8), rel=0.01)
    assert needed.whole == sum((needed.images, needed.weights, needed.gradients, needed.optimiser, needed.maps))


def test_a_peak_beyond_the_free_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tensors that were counted are few: a kernel's own memory is in no count."""
    resolved = resolve(load(["digits_resnet8", "data.train_images=40"]))
    monkeypatch.setattr("okdc.survey.check._available", lambda _: 2**50)
    report = check(resolved, False, Silent(), 0.0)
    used = report["memory_bytes"]
    assert used["whole"] < used["peak"] < used["available"] == 2**50
    assert not any("of memory" in line for line in report["warnings"])
    monkeypatch.setattr("okdc.survey.check._available", lambda _: used["peak"] - 1)
    (line,) = (line for line in check(resolved, False, Silent(), 0.0)["warnings"] if "of memory" in line)
    assert line.startswith("the training may need ")


def test_weights_are_no_maps() -> None:
    """One image of eight pixels: its maps are a few kilobytes, and the weights of two ResNet-8 more than half a MB."""
    job, settings = job_of("data.train_images=40")
    training = Training(job, RunDir(Path("no run")), settings, Position(), None, Silent(), ALONE)
    small = memory._kept(training, 1)
    assert small < sum(p.nbytes for p in training.method.parameters()) / 2


# --- recipes of okdc new


@pytest.mark.parametrize(
    "tree",
    [
        {"cat": 40, "dog": 60},
        {"train": {"cat": 3, "dog": 90}, "test": {"cat": 2, "dog": 2}},
        {"train": {"0": 1, "1": 2, "2": 9}, "test": {"0": 1, "1": 1}},
    ],
    ids=["one folder", "unequal classes", "few images"],
)
def test_a_recipe_of_okdc_new_passes(capsys: Captured, tree: dict[str, Any]) -> None:
    write_tree(Path("root"), tree, size=16)
    assert ask(capsys, "new", "root").code == 0
    answer = ask(capsys, "check", "root.toml", "--images", "--json")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert report["steps_per_epoch"] >= 8 or report["batch_size"] == 2
    assert sum(report["images"].values()) == len(list(Path("root").rglob("*.png")))


@pytest.mark.gpu
@pytest.mark.unmirrored
def test_on_a_gpu_the_timed_steps_are_those_of_the_training() -> None:
    resolved = resolve(load(["digits_resnet8", "engine.device=cuda", "optim.epochs=2"]))
    report = check(resolved, False, Silent(), SECONDS)
    assert report["settings"]["device"] == "cuda"
    assert report["seconds"]["step"]["n"] >= timing.FEWEST
    assert report["memory_bytes"]["images"] > 0
    assert report["memory_bytes"]["peak"] > 0
    assert report["memory_bytes"]["available"] > 0
