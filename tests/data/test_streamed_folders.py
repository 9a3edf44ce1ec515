"""Folders of images whose pixels stay in their files, or of which a training needs a part."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, write_tree
from harness import TEXT, Quiet, no_waiting, result, resume, rows, signalled

from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.data import memory
from okdc.data.augmentation import Augmentation
from okdc.data.batches import Normalise, TrainBatches
from okdc.data.cinic10 import CLASSES, SPLITS
from okdc.data.datasets import Dataset, needed
from okdc.data.decoding import decode
from okdc.data.folder import read
from okdc.data.listing import list_images
from okdc.data.ondemand import OnDemand
from okdc.data.source import Content, Request, Source
from okdc.errors import DataError, Interrupted, RecipeError
from okdc.recipe.draft import load
from okdc.recipe.schema import Augment
from okdc.runs.artefacts import Provenance
from okdc.runs.run import RunDir
from okdc.training import start as starts

TREE = {"train": {"a": 24, "b": 24}, "test": {"a": 6, "b": 4}}
WORDS = ("data.name=folder", "optim.batch_size=8", "optim.epochs=2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits, of images of another size than the recipe's."""
    return write_tree(tmp_path / "pics", TREE, 11)


def recipe(*words: str) -> ResolvedRecipe:
    """The tests' tiny recipe, of a folder and without a subset."""
    Path("tiny.toml").write_text(TEXT.replace("train_images = 50\n", ""), encoding="utf-8")
    return resolve(load(["tiny.toml", *words]))


def start(*words: str, tell: Quiet | None = None, out: Path | None = None) -> RunDir:
    return starts.start(recipe(*words), out, Provenance(), tell or Quiet())


def dataset_of(root: Path, *words: str, **options: Any) -> Dataset:
    return assembly.dataset(recipe(*WORDS, f"data.root={root}", *words), **options)


def run_of(root: Path, *words: str, tell: Quiet | None = None, out: Path | None = None) -> RunDir:
    return start(*WORDS, f"data.root={root}", "engine.workers=0", *words, tell=tell, out=out)


def made(dataset: Dataset) -> list[torch.Tensor]:
    return [dataset.pixels(rows) for rows in (dataset.train, dataset.val, dataset.test)]


# --- files


def test_a_streamed_folder_has_the_pixels_the_moments_and_the_identity_of_a_resident_one(root: Path) -> None:
    resident, streamed = dataset_of(root, "data.stream=off"), dataset_of(root, "data.stream=on")
    assert resident.files is None
    assert streamed.files is not None
    assert len(streamed.images) == 0, "nothing is decoded"
    assert all(a.equal(b) for a, b in zip(made(resident), made(streamed), strict=True))
    assert resident.moments() == streamed.moments()
    assert resident.fingerprint == streamed.fingerprint
    assert resident.train.equal(streamed.train)


def test_a_streamed_run_is_the_resident_one_to_the_bit(root: Path) -> None:
    """Where a worker has nothing to do but to decode: the draws are of the batch, wherever its images lie."""
    tell = Quiet()
    streamed = run_of(root, "data.stream=on", tell=tell, out=Path("streamed"))
    resident = run_of(root, "data.stream=off", out=Path("resident"))
    assert (streamed.read_info().streamed, resident.read_info().streamed) == (True, False)
    assert rows(streamed) == rows(resident)
    for key in ("weights_sha256", "data_sha256", "heads_last_epoch_top1_pct", "images"):
        assert result(streamed)[key] == result(resident)[key]
    assert streamed.weights.read_bytes() == resident.weights.read_bytes()
    assert any("data.stream" in note and "58 images of 8×8" in note for note in tell.notes)
    assert "workers 0 (as asked)" in tell.notes


RESIZED = ("augment.crop=resized", "augment.padding=0")


@pytest.mark.parametrize("turned", [("augment.rotation=10",), RESIZED])
def test_what_is_left_to_do_after_decoding_trains_too(root: Path, turned: tuple[str, ...]) -> None:
    assert run_of(root, "data.stream=on", *turned).state() == "complete"


def test_a_folder_streams_where_its_pixels_take_more_than_their_share(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 58 * 8 * 8 * 3
    assert dataset_of(root, room=size).files is None
    streamed = dataset_of(root, room=size - 1)
    assert streamed.files is not None
    assert any("would take" in note for note in streamed.notes)
    assert dataset_of(root, "data.train_images=20", room=size - 1).files is None, "of fewer images it is less"
    assert dataset_of(root, "data.stream=off", room=0).files is None
    monkeypatch.setattr(memory, "available", lambda: 2 * size)
    assert memory.room() == size
    assert memory.room(processes=2) == size // 2
    assert dataset_of(root).files is None
    monkeypatch.setattr(memory, "available", lambda: 2 * size - 2)
    assert dataset_of(root).files is not None


def test_a_run_goes_on_as_it_began_however_much_memory_there_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as little:
        little.setattr(memory, "available", lambda: 0)
        whole = run_of(root, out=Path("whole"))
        with pytest.raises(Interrupted):
            start(*WORDS, f"data.root={root}", tell=signalled(4, signal.SIGTERM), out=Path("run"))
    run = RunDir(Path("run"))
    assert run.read_info().streamed
    assert run.read_info().settings.workers >= 1
    assert assembly_of(run).files is not None
    resumed = resume(run.path)
    assert resumed.read_info().streamed
    assert rows(resumed) == rows(whole)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()


def test_a_streamed_run_is_evaluated_exported_and_compared(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streamed = run_of(root, "data.stream=on", out=Path("streamed"))
    run_of(root, "data.stream=off", "method.name=baseline", out=Path("alone"))
    assert ask(capsys, "evaluate", str(streamed.path)).code == 0
    assert ask(capsys, "export", "--onnx", str(streamed.path)).code == 0
    assert ask(capsys, "verify", str(streamed.path / "bundle")).code == 0
    answer = ask(capsys, "compare", "streamed", "alone", "--json")
    assert answer.code == 0, answer.err
    assert {row["variant"] for row in json.loads(answer.out)["rows"]} == {"fefr", "baseline"}


def test_runs_whose_crops_are_taken_of_files_and_of_pixels_in_memory_do_not_compare(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(root, *RESIZED, "data.stream=on", out=Path("streamed"))
    run_of(root, *RESIZED, "data.stream=off", "method.name=baseline", out=Path("alone"))
    answer = ask(capsys, "compare", "streamed", "alone")
    assert answer.code == 2
    assert "they differ in augment.crop=resized of files" in answer.err


def test_duplicates_between_the_splits_of_cinic10_are_counted_wherever_the_pixels_are(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "cinic", {split: dict.fromkeys(CLASSES, 3) for split in SPLITS})
    shutil.copy(root / "train/dog/001.png", root / "test/cat/000.png")
    shutil.copy(root / "train/dog/002.png", root / "train/cat/000.png")

    def note(*words: str) -> str:
        dataset = dataset_of(root, "data.name=cinic10", *words)
        return next(note for note in dataset.notes if note.startswith("equal pixels: "))

    resident = note("data.stream=off")
    assert "1 of 30 test images are in train" in resident
    assert note("data.stream=on") == resident
    assert "of 30 test images are in train" in note("data.stream=on", "data.train_images=20", "seed=5")
    assert note("data.stream=on", "data.train_images=20") == note("data.stream=off", "data.train_images=20")


def test_other_bytes_of_a_streamed_file_are_other_images(root: Path) -> None:
    """Its size may stay: the files were read once, and are read again where their times differ."""
    run = run_of(root, "data.stream=on")
    file = root / "train/a/000.png"
    before, other = file.read_bytes(), (root / "train/a/001.png").read_bytes()
    assert before != other
    file.write_bytes(other)
    with pytest.raises(DataError, match="the images are not those of"):
        assembly_of(run)
    file.write_bytes(before)
    assembly_of(run)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("same_size", [False, True])
def test_a_file_that_is_changed_while_it_trains_is_named_and_never_read(
    root: Path, split: str, same_size: bool
) -> None:
    files = sorted(root.glob(f"{split}/a/*.png"))
    before = {file: file.read_bytes() for file in files}

    def change(call: int) -> None:
        if call == 2:
            for file in files:
                file.write_bytes(before[file] if same_size else before[files[0]] + bytes(1))
                os.utime(file, ns=(0, 10**18))

    run = Path("run")
    with pytest.raises(DataError, match=rf"{split}/a/.*it was changed after the training began") as caught:
        run_of(root, "data.stream=on", tell=Quiet(change), out=run)
    assert "okdc resume run" in caught.value.hint
    assert not any(word in caught.value.hint for word in ("remove", "skip_damaged"))
    assert RunDir(run).state() == "resumable"
    if not same_size:
        with pytest.raises(DataError, match="the images are not those of"):
            resume(run)
    for file, content in before.items():
        file.write_bytes(content)
    whole = run_of(root, "data.stream=on", out=Path("whole"))
    assert result(resume(run))["weights_sha256"] == result(whole)["weights_sha256"]


def test_files_that_are_left_out_are_not_held_in_the_place_of_others(root: Path) -> None:
    (root / "train/a/003.png").write_bytes(b"no image")
    streamed = dataset_of(root, "data.stream=on", "data.skip_damaged=true")
    assert streamed.files is not None
    assert len(streamed.files[:]) == 57
    (root / "train/a/004.png").write_bytes((root / "train/a/005.png").read_bytes() + bytes(1))
    with pytest.raises(DataError, match=r"1 of 57 images cannot be read, the first is .*004\.png: it was changed"):
        _ = streamed.files[:]


def assembly_of(run: RunDir) -> Dataset:
    from okdc.assembly import reopen

    return reopen.data_of(run, reopen.recipe_of(run), Quiet())


def test_damaged_files_of_a_streamed_folder_are_named_or_left_out(root: Path) -> None:
    (root / "train/a/003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 58 images cannot be read, the first is .*003\.png"):
        dataset_of(root, "data.stream=on")
    streamed = dataset_of(root, "data.stream=on", "data.skip_damaged=true")
    resident = dataset_of(root, "data.stream=off", "data.skip_damaged=true")
    assert len(streamed.skipped) == 1
    assert all(a.equal(b) for a, b in zip(made(resident), made(streamed), strict=True))
    assert (streamed.fingerprint, streamed.moments()) == (resident.fingerprint, resident.moments())


def test_the_second_start_of_a_streamed_folder_decodes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset_of(root, "data.stream=on")
    assert any("measured 58 images" in note for note in first.notes)
    monkeypatch.setattr("okdc.data.decoding.read", None)
    second = dataset_of(root, "data.stream=on")
    assert any("58 measured images from the cache" in note for note in second.notes)
    assert (second.fingerprint, second.moments()) == (first.fingerprint, first.moments())


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["data.name=digits", "data.stream=on"], "data.stream: digits has no"),
        (["data.name=cifar10", "data.stream=on"], "data.stream: cifar10 has no"),
        (["data.name=imagenet", "data.stream=off"], "data.stream: imagenet is always decoded batch by batch"),
    ],
)
def test_what_cannot_stream_or_always_does_says_so(words: list[str], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(*words)
    assert any(line.startswith(key) for line in caught.value.details)


def test_the_files_of_a_source_of_ones_own_stream_with_the_moments_of_a_sample(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def content(request: Request) -> Content:
        listing = list_images(request.folder)
        files = OnDemand(listing.root, listing.files, request.image_size)
        return Content(
            listing.classes, files, np.asarray(listing.labels, np.int64), parts=listing.splits, fingerprint="0" * 64
        )

    from okdc.data import datasets

    own = datasets.divide(
        datasets.load(Source(name="own", read=content), Request(str(root), 8)), 0.25, train_images=None, seed=0
    )
    resident = dataset_of(root, "data.stream=off", "data.val_fraction=0.25")
    assert own.moments() == resident.moments()
    monkeypatch.setattr(datasets, "SAMPLE", 10)
    sampled = own.moments()
    assert sampled != resident.moments()
    assert sampled == own.moments()


# --- a part of the images


@pytest.mark.parametrize("splits", [True, False])
def test_of_a_subset_the_needed_images_alone_are_decoded(
    root: Path, splits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = root if splits else write_tree(root.parent / "all", {"a": 40, "b": 20}, 11)
    decoded = list[tuple[str, int]]()
    monkeypatch.setattr("okdc.data.cache.decode", _noted(decoded))
    part = dataset_of(root, "data.train_images=10", "seed=3")
    assert sum(count for kind, count in decoded if kind == "pixels") == len(part.images)
    assert len(part.images) == 10 + len(part.val) + len(part.test)
    whole = dataset_of(root, "data.stream=off", "seed=3")
    assert len(whole.images) == len(part.labels) > len(part.images)
    taken = dataset_of(root, "data.train_images=10", "seed=3")  # of the cache, which has all of them by now
    assert len(taken.images) == len(whole.images)
    for name in ("train", "val", "test", "labels"):
        assert getattr(part, name).equal(getattr(taken, name))
    assert all(a.equal(b) for a, b in zip(made(part), made(taken), strict=True))
    assert part.moments() == taken.moments()
    assert part.fingerprint == taken.fingerprint == whole.fingerprint, "it is of the data, not of the part"


def _noted(decoded: list[tuple[str, int]]) -> Any:
    def noted(files: Any, size: int, *more: Any) -> Any:
        decoded.append((more[-1], len(files)))
        return decode(files, size, *more)

    return noted


def test_of_a_subset_every_damaged_image_is_named_at_once(root: Path) -> None:
    listing = list_images(root)
    of_test = next((root / "test").rglob("*.*"))
    for file in (of_test, *(path for path in (root / "train").rglob("*.*") if path.is_file())):
        file.write_bytes(b"no image at all")
    with pytest.raises(DataError) as caught:
        dataset_of(root, "data.train_images=10")
    named = "".join(caught.value.details)
    assert str(of_test) in named
    assert str(root / "train") in named
    assert f"of {len(listing.files)} images" in caught.value.message


def test_a_run_on_a_subset_is_the_same_whether_the_rest_was_decoded_or_not(root: Path) -> None:
    words = ("data.train_images=24", "augment.rotation=5")
    part = run_of(root, *words, out=Path("part"))
    dataset_of(root)
    all_decoded = run_of(root, *words, out=Path("whole"))
    streamed = run_of(root, *words, "data.stream=on", out=Path("streamed"))
    for other in (all_decoded, streamed):
        assert rows(part) == rows(other)
        assert part.weights.read_bytes() == other.weights.read_bytes()
        assert np.array_equal(np.load(part.predictions)["test_rows"], np.load(other.predictions)["test_rows"])


@pytest.mark.gpu
def test_batches_of_a_subset_on_a_gpu_are_those_of_the_whole_and_never_waited_for(root: Path) -> None:
    part = dataset_of(root, "data.train_images=24")
    whole = dataset_of(root, "data.stream=off")
    assert part.places is not None

    def batches(dataset: Dataset, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        dataset = replace(dataset.to(torch.device(device)), train=part.train)
        normalise = Normalise((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), torch.device(device))
        made = TrainBatches(dataset, 8, Augmentation(Augment(padding=1)), normalise, seed=1)
        drawn = list(made.drawn(0))
        with no_waiting() if device == "cuda" else nullcontext():
            return [(batch.images, batch.labels) for batch in (made.made(*tensors) for tensors in drawn)]

    for (images, labels), (expected, its_labels) in zip(batches(part, "cuda"), batches(whole, "cpu"), strict=True):
        assert images.cpu().equal(expected)
        assert labels.cpu().equal(its_labels)


def test_what_is_held_out_is_decoded_once_for_all_seeds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = list[tuple[str, int]]()
    monkeypatch.setattr("okdc.data.cache.decode", _noted(decoded))
    first = dataset_of(root, "data.train_images=10", "seed=0")
    decoded.clear()
    second = dataset_of(root, "data.train_images=10", "seed=1")
    assert not first.train.equal(second.train)
    assert decoded == [("pixels", 10)]


def test_a_damaged_file_that_is_not_needed_stops_nothing(root: Path) -> None:
    part = dataset_of(root, "data.train_images=10")
    used = {*part.train.tolist(), *part.val.tolist(), *part.test.tolist()}
    spare, file = next((i, f) for i, f in enumerate(list_images(root).files) if i not in used)
    file.write_bytes(b"no image")
    assert len(dataset_of(root, "data.train_images=10").images) == len(part.images)
    with pytest.raises(DataError, match="1 of 58 images cannot be read"):
        dataset_of(root)
    assert spare not in used
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(DataError, match="1 of 58 images cannot be read"):
        dataset_of(root, "data.train_images=10")


def test_nothing_is_left_out_without_a_subset() -> None:
    assert needed(0.1, None, 0) is None


def test_a_folder_is_read_whole_by_whoever_asks_for_no_training(root: Path) -> None:
    content = read(Request(str(root), 8))
    assert isinstance(content.images, np.ndarray)
    assert (len(content.images), content.rows, content.measures) == (58, None, None)
