"""Images that are decoded as they are needed: what the loop sees of them, and what follows from where."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import tried
from batching import same
from hypothesis import given
from hypothesis import strategies as st
from pictures import streamed, write_imagenet, write_zoo
from PIL import Image
from reading import read_data
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.data import images, ondemand
from okdc.data.augmentation import Augmentation, Examples, order
from okdc.data.augmentation.crops import of_file
from okdc.data.batches import EVAL_BATCH, Normalise, TrainBatches, eval_batch, eval_batches
from okdc.data.datasets import divide
from okdc.data.imagenet import MOMENTS
from okdc.data.streaming import StreamBatches, batches_of
from okdc.errors import DataError
from okdc.recipe.draft import load
from okdc.recipe.schema import Augment
from okdc.seeds import seeded

SIZE, SHORTER = 32, 36
FILE = Augment(crop="resized")
RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # pixels as they are, as floats


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tree, tmp_path / "own"))


def stream(root: Path, batch_size: int = 8, flip: bool = True, seed: int = 0, workers: int = 0) -> StreamBatches:
    augmentation = Augmentation(FILE.model_copy(update={"flip": flip}))
    return StreamBatches(read_data("imagenet", root, SIZE, SHORTER), batch_size, augmentation, RAW, seed, workers)


def pixels(batch: Tensor) -> Tensor:
    """Back from floats, B×H×W×C uint8."""
    return batch.round().byte().permute(0, 2, 3, 1)


# --- what an epoch is


def test_workers_or_none_give_the_same_batches_from_any_step_on_and_after_an_epoch_left_early(tree: Path) -> None:
    alone = stream(tree)
    with closing(stream(tree, workers=2)) as helped:
        assert same(list(helped.epoch(0)), list(alone.epoch(0)))
        next(helped.epoch(1))
        assert same(list(helped.epoch(2, 1)), list(alone.epoch(2))[1:])  # batches of epoch 1 were still on their way
        assert same(list(helped.epoch(1, 3)), list(alone.epoch(1))[3:])
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("start", range(6))
def test_an_epoch_continues_from_any_step_as_it_would_have(tree: Path, start: int) -> None:
    batches = stream(tree)
    assert batches.steps == 5
    assert same(list(batches.epoch(2, start)), list(batches.epoch(2))[start:])


def test_an_image_of_an_epoch_follows_from_seed_epoch_and_row_alone(tree: Path) -> None:
    """Whatever batch it is in, and whatever was drawn before it."""
    batches = stream(tree, seed=3)
    files = batches.dataset.files
    assert files is not None
    rows = order(batches.dataset.train, 4, 3)
    torch.manual_seed(99)
    result = torch.cat([pixels(x) for x, *_ in batches.epoch(4)])
    for at in reversed(range(len(result))):
        row = int(rows[at])
        expected = files.decode(row, lambda image, row=row: of_file(image, SIZE, FILE, 3, 4, row))  # type: ignore[misc]
        assert np.array_equal(result[at].numpy(), expected), files.path(row)
    other = torch.cat([pixels(x) for x, *_ in stream(tree, batch_size=5, seed=3).epoch(4)])
    assert torch.equal(result, other)


def test_another_epoch_or_seed_is_another_draw(tree: Path) -> None:
    batches = stream(tree)
    first = list(batches.epoch(0))
    assert not same(first, list(batches.epoch(1)))
    assert not same(first, list(stream(tree, seed=1).epoch(0)))


VARIED: dict[str, Any] = {
    "rotation": 20.0,
    "brightness": 0.4,
    "blur": 0.3,
    "erasing": 0.5,
    "policy": "trivial",
    "cutmix": 1.0,
}


@pytest.mark.parametrize("more", [{}, {"padding": 0, "flip": False}, VARIED], ids=["usual", "nothing", "varied"])
def test_the_crop_pad_gives_files_the_pixels_of_resident_images(tree: Path, more: dict[str, Any]) -> None:
    augmentation = Augmentation(Augment(**more))
    resident = TrainBatches(read_data("folder", tree, SIZE, SHORTER), 8, augmentation, RAW, 3)
    streamed = StreamBatches(read_data("imagenet", tree, SIZE, SHORTER), 8, augmentation, RAW, 3, 0)
    assert same(list(streamed.epoch(1)), list(resident.epoch(1)))
    assert same(list(streamed.epoch(2, 3)), list(resident.epoch(2))[3:])


def test_a_resized_crop_of_a_file_is_varied_further_as_a_batch(tree: Path) -> None:
    keys = FILE.model_copy(update=VARIED)
    plain, varied = (
        StreamBatches(read_data("imagenet", tree, SIZE, SHORTER), 8, Augmentation(each), RAW, 3, 0)
        for each in (FILE, keys)
    )
    rest = Augmentation(Augment(padding=0, flip=False, **VARIED))
    draws = rest.draw(order(varied.dataset.train, 1, 3), 1, 3, (SIZE, SIZE))
    for i, (before, after) in enumerate(zip(plain.epoch(1), varied.epoch(1), strict=True)):
        images = pixels(before.images).contiguous()
        expected = rest.examples(images, draws[8 * i : 8 * i + 8].of_own_rows(8), before.labels, RAW)
        assert same([after], [expected])


def test_order_and_labels_are_those_of_resident_images(tree: Path) -> None:
    """One order for all data sets: only how an image is cut differs."""
    dataset = read_data("imagenet", tree, SIZE, SHORTER)
    resident = TrainBatches(read_data("folder", tree, SIZE), 8, Augmentation(Augment(padding=0, flip=False)), RAW, 0)
    streamed = [labels for _, labels, *_ in stream(tree).epoch(3)]
    for actual, expected in zip(streamed, (labels for _, labels, *_ in resident.epoch(3)), strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(torch.cat(streamed), dataset.labels[order(dataset.train, 3, 0)][:40])


def test_a_training_image_is_what_torchvisions_own_transforms_make_of_it(tree: Path) -> None:
    theirs = Compose([RandomResizedCrop(SIZE, antialias=True), RandomHorizontalFlip()])
    mirrored = 0
    for row, path in enumerate(sorted((tree / "train").rglob("*.JPEG"))):
        with Image.open(path) as opened:
            image = images.to_rgb(opened)
        with seeded(5, "epoch", 2, "image", row):
            expected = np.asarray(theirs(image))
        result = of_file(image, SIZE, FILE, 5, 2, row)
        assert np.array_equal(result, expected), path
        # The same crop, whether it may be mirrored or not.
        unflipped = of_file(image, SIZE, FILE.model_copy(update={"flip": False}), 5, 2, row)
        assert np.array_equal(result, unflipped) or np.array_equal(result[:, ::-1], unflipped)
        mirrored += not np.array_equal(result, unflipped)
    assert 10 <= mirrored <= 30  # of 40


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    row=st.integers(0, 9),
    mode=st.sampled_from(["L", "RGB", "CMYK", "LA"]),
)
@tried
def test_every_size_and_mode_gives_a_whole_image(height: int, width: int, row: int, mode: str) -> None:
    image = Image.new(mode, (width, height), 200 if mode == "L" else None)
    result = of_file(image, SIZE, FILE, 0, 0, row)
    assert result.shape == (SIZE, SIZE, 3)
    assert result.dtype == np.uint8


def test_reading_batches_leaves_the_global_generator_alone(tree: Path) -> None:
    before = torch.get_rng_state()
    list(stream(tree).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_kind_of_a_data_set_picks_its_batches(tree: Path) -> None:
    for name, kind in {"imagenet": StreamBatches, "folder": TrainBatches}.items():
        assert isinstance(batches_of(read_data(name, tree, SIZE), 8, Augmentation(), RAW, 0, 0), kind)


# --- evaluation


@pytest.mark.parametrize("shorter", [None, SHORTER])
def test_evaluation_sees_each_file_by_the_resize_rule_and_as_a_resident_data_set_would(
    tree: Path, shorter: int | None
) -> None:
    dataset, resident = (
        read_data("imagenet", tree, SIZE, shorter),
        read_data("folder", tree, SIZE, shorter_side=shorter),
    )
    assert dataset.files is not None
    rows = torch.arange(len(dataset.labels))
    seen = torch.cat([pixels(x) for x, _ in eval_batches(dataset, rows, RAW, 7)])
    assert torch.equal(seen, resident.images)
    for row in rows.tolist():
        with Image.open(dataset.files.path(row)) as image:
            assert np.array_equal(seen[row].numpy(), images.fit(image, SIZE, shorter))
    labels = torch.cat([y for _, y in eval_batches(dataset, rows.flip(0), RAW, 7)])
    assert torch.equal(labels, dataset.labels.flip(0))


def test_a_shorter_side_is_resized_to_it_before_the_centre_is_cut() -> None:
    image = Image.fromarray(np.arange(80 * 60 * 3, dtype=np.uint32).reshape(80, 60, 3).astype(np.uint8))
    rows = image.resize((36, 80), Image.Resampling.BILINEAR)
    whole = rows.resize((36, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(images.fit(image, 32, 36), np.asarray(whole.crop((2, 8, 34, 40))))
    exact = image.resize((32, 32))
    assert np.array_equal(images.fit(exact, 32, 36), np.asarray(exact)), "what has the very size is left alone"


def test_a_cache_of_one_shorter_side_is_not_taken_for_another(tree: Path) -> None:
    plain, larger = read_data("folder", tree, SIZE), read_data("folder", tree, SIZE, shorter_side=SHORTER)
    assert not torch.equal(plain.images, larger.images)
    assert torch.equal(read_data("folder", tree, SIZE, shorter_side=SHORTER).images, larger.images)


def test_a_batch_of_large_images_is_smaller() -> None:
    assert eval_batch(8, 8) == eval_batch(32, 32) == EVAL_BATCH
    assert eval_batch(224, 224) == 20
    assert eval_batch(9000, 9000) == 1


# --- splits and what the data is known by


def test_the_published_validation_split_is_the_test_split_and_that_is_said(tree: Path) -> None:
    dataset = divide(read_data("imagenet", tree, SIZE), 0.1, None, 0)
    assert [len(rows) for rows in (dataset.train, dataset.val, dataset.test)] == [36, 4, 8]
    assert dataset.files is not None
    assert all("/val/" in str(dataset.files.path(row)) for row in dataset.test.tolist())
    assert all("/train/" in str(dataset.files.path(row)) for row in (*dataset.train.tolist(), *dataset.val.tolist()))
    assert any("8 images of val are the test split" in note for note in dataset.notes)


def test_with_a_test_split_val_validates(tmp_path: Path) -> None:
    dataset = read_data("imagenet", write_imagenet(tmp_path / "three", 6, 4, 2), SIZE)
    assert [len(rows) for rows in (dataset.train, dataset.val, dataset.test)] == [12, 8, 4]
    assert not any("published" in note or "are the test split" in note for note in dataset.notes)


def test_one_folder_of_classes_is_split_as_any_other(tree: Path) -> None:
    dataset, resident = read_data("imagenet", tree / "train", SIZE), read_data("folder", tree / "train", SIZE)
    assert torch.equal(dataset.train, resident.train)
    assert torch.equal(dataset.test, resident.test)
    assert len(dataset.test) == 8


def test_labels_classes_and_size_are_those_of_the_folders(tree: Path) -> None:
    dataset, resident = read_data("imagenet", tree, SIZE), read_data("folder", tree, SIZE)
    assert dataset.classes == resident.classes == ("n01440764", "n01443537")
    assert torch.equal(dataset.labels, resident.labels)
    assert dataset.size == resident.size == torch.Size((3, SIZE, SIZE))
    assert dataset.published is not None


def test_a_copy_elsewhere_is_the_same_data_and_a_moved_or_changed_file_is_not(tree: Path, own_tree: Path) -> None:
    before = read_data("imagenet", tree, SIZE).fingerprint
    assert read_data("imagenet", own_tree, SIZE).fingerprint == before
    path = own_tree / "train" / "n01440764" / "n01440764_000.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    assert read_data("imagenet", own_tree, SIZE).fingerprint != before
    path.write_bytes(path.read_bytes()[:-1])
    assert read_data("imagenet", own_tree, SIZE).fingerprint == before
    path.rename(own_tree / "train" / "n01443537" / path.name)
    assert read_data("imagenet", own_tree, SIZE).fingerprint != before


def test_nothing_is_decoded_at_the_start_but_a_few_and_the_moments_are_the_published_ones(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(ondemand, "PROBE", 5)
    whole = ondemand.OnDemand.decode

    def noted(self: ondemand.OnDemand, row: int, transform: Callable[[Image.Image], images.Pixels]) -> images.Pixels:
        decoded.append(row)
        return whole(self, row, transform)

    monkeypatch.setattr(ondemand.OnDemand, "decode", noted)
    dataset = read_data("imagenet", tree, SIZE)
    assert sorted(decoded) == [0, 11, 23, 35, 47]  # both ends and between
    resolved = resolve(load(streamed(tree)))
    assert assembly.normalisation_of(resolved.recipe, dataset) == MOMENTS
    assert len(decoded) == 5


def test_progress_ends_at_the_number_of_files(tree: Path) -> None:
    steps: list[tuple[int, int]] = []
    read_data("imagenet", tree, SIZE, None, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (48, 48)


# --- damage


def damaged(root: Path) -> Path:
    """One training file cut short."""
    path = root / "train" / "n01440764" / "n01440764_007.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_in_its_place_and_the_batches_before_it_come(
    own_tree: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ondemand, "PROBE", 2)
    whole = list(stream(own_tree).epoch(0))
    path = damaged(own_tree)
    result: list[Examples] = []
    with closing(stream(own_tree, workers=workers)) as batches:
        files = batches.dataset.files
        assert files is not None
        (row,) = [row for row in batches.dataset.train.tolist() if files.path(row) == path]
        place = order(batches.dataset.train, 0, 0).tolist().index(row) // 8
        with pytest.raises(DataError, match="n01440764_007") as caught:
            for batch in batches.epoch(0):
                result.append(batch)
        assert "worker" not in caught.value.message
    assert len(result) == place
    assert same(result, whole[:place])
    assert not multiprocessing.active_children()


def test_evaluation_names_every_damaged_file_of_a_batch(own_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ondemand, "PROBE", 2)
    dataset = read_data("imagenet", own_tree, SIZE)
    paths = [damaged(own_tree), own_tree / "train" / "n01443537" / "n01443537_001.JPEG"]
    paths[1].write_text("no image")
    with pytest.raises(DataError) as caught:
        list(eval_batches(dataset, dataset.train, RAW, 500))
    assert [line.split(": ")[0] for line in caught.value.details] == [str(path) for path in paths]


def test_the_start_finds_a_damaged_file_among_those_it_looks_at_and_every_empty_one(own_tree: Path) -> None:
    path = damaged(own_tree)
    with pytest.raises(DataError, match=path.name):  # 48 files: the probe sees them all
        read_data("imagenet", own_tree, SIZE)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{path.name}: zero bytes"):
        read_data("imagenet", own_tree, SIZE)


def test_a_val_folder_as_it_is_unpacked_is_refused_with_what_to_do(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "raw", val=0)
    write_zoo(root / "val", 3, 0)
    with pytest.raises(DataError, match="3 lie beside them") as caught:
        read_data("imagenet", root, SIZE)
    assert "sorted into the folders of their classes" in caught.value.hint


# --- workers


@pytest.fixture
def working(tree: Path) -> Iterator[StreamBatches]:
    with closing(stream(tree, workers=2)) as batches:
        yield batches


def test_workers_take_signals_from_nobody_but_their_loop(working: StreamBatches, tree: Path) -> None:
    """Ctrl-C, `timeout` and batch systems signal every process of a group; only the loop may decide."""
    first = working.epoch(0)
    next(first)  # they are up
    pids = [str(child.pid) for child in multiprocessing.active_children()]
    assert len(pids) == 2
    for name in ("-INT", "-TERM"):
        subprocess.run(["/bin/kill", name, *pids], check=True)
    assert same(list(working.epoch(1)), list(stream(tree).epoch(1)))
    assert [str(child.pid) for child in multiprocessing.active_children()] == pids


def test_workers_end_when_the_loop_leaves_an_epoch_by_an_error(working: StreamBatches) -> None:
    """Whoever holds the traceback does not hold the workers."""
    held: list[BaseException] = []
    try:
        with closing(working):
            for _ in working.epoch(0):
                raise ValueError
    except ValueError as error:
        held.append(error)
    assert held
    assert not multiprocessing.active_children()
