"""The plain ways learn, and learn from the training images alone: a competitor that is broken would flatter okdc."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import photographs
import pytest
import torch
from harness import recipe
from PIL import Image
from torch import Tensor

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.bench import plain_training
from okdc.data.batches import Normalise, in_order
from okdc.data.datasets import Dataset
from okdc.runs.predictions import Bits

IMAGES = torch.Size((3, 8, 8))


@pytest.fixture
def digits() -> Dataset:
    """600 training images; all others are white, so that whoever reads one is seen."""
    dataset = assembly.dataset(recipe("data.train_images=600"))
    images = torch.full_like(dataset.images, 255)
    images[dataset.train] = dataset.images[dataset.train]
    return replace(dataset, images=images)


def top1(network: torch.nn.Module, dataset: Dataset) -> float:
    network.eval()
    with torch.inference_mode():
        batches = in_order(dataset, dataset.train, Normalise(*dataset.moments()), 100)
        right = [(network(images).argmax(1) == labels).float() for images, labels in batches]
    return float(torch.cat(right).mean())


def test_plain_training_learns(digits: Dataset) -> None:
    network = backbones.build("resnet8", 10, IMAGES)
    plain_training.train(network, digits, 6, 16, 0, flip=False)
    assert top1(network, digits) > 0.85


def test_plain_training_sees_every_image_once_an_epoch_and_no_other(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    network = backbones.build("resnet8", 10, IMAGES)
    network.register_forward_pre_hook(lambda _, images: seen.append(images[0].amax((1, 2, 3))))
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "translate": 0.0}
    monkeypatch.setattr(plain_training, "VARIED", plain_training.VARIED.model_copy(update=still))
    plain_training.train(network, digits, 2, 100, 0, flip=True)
    assert [len(batch) for batch in seen] == [100] * 12
    mean, std = digits.moments()
    white = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    assert float(torch.cat(seen).min()) < white  # not all of a batch would be, were the white ones read


def test_the_seed_decides_a_plain_training(digits: Dataset) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(9)
        network = backbones.build("resnet8", 10, IMAGES)
        plain_training.train(network, digits, 1, 100, seed, flip=True)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_plain_fine_tune_learns(digits: Dataset) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra: pip install 'okdc[timm]'")
    large = replace(digits, images=digits.images.repeat_interleave(4, 1).repeat_interleave(4, 2))
    network = timm.create_model("test_resnet", num_classes=10)
    before = top1(network, large)
    plain_training.fine_tune(network, large, 3, 25, 0, lr=5e-3)
    assert top1(network, large) > before + 0.2


# ---------------------------------------------------------------------------------------------------------------------
# The command


def _photographs(folder: Path) -> Path:
    for split, count in (("train", 30), ("test", 5)):
        for name in "abc":
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (40 * "abc".index(name), i, 0)).save(folder / split / name / f"{i:02}.png")
    return folder


def test_the_images_that_are_learned_from_are_counted_and_the_test_images_are_all_there(tmp_path: Path) -> None:
    source = _photographs(tmp_path / "all")
    few = photographs.chosen(source, tmp_path / "few", {"a": 4, "c": 7})
    counts = {path: len(list(path.iterdir())) for split in few.iterdir() for path in split.iterdir()}
    assert counts == {
        few / "train" / "a": 4,
        few / "train" / "c": 7,
        few / "test" / "a": 5,
        few / "test" / "c": 5,
    }
    with pytest.raises(SystemExit, match="30"):
        photographs.chosen(source, tmp_path / "more", {"a": 31})


def test_a_command_that_was_stopped_goes_on_and_prints_one_row_an_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, calls = _photographs(tmp_path / "all"), []

    def plainly(trial: photographs.Trial) -> Bits:
        calls.append(trial.seed)
        return torch.tensor([True] * (10 + trial.seed) + [False] * (5 - trial.seed)).numpy()

    monkeypatch.setattr(photographs, "plainly", plainly)
    words = ["scratch", str(source), "-o", str(tmp_path / "out"), "--images", "4", "--arms", "plain"]
    assert photographs.main([*words, "--seeds", "0,1"]) == 0
    assert photographs.main([*words, "--seeds", "0,1,2"]) == 0
    assert calls == [0, 1, 2]
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "scratch4" in line][1:]
    assert "| 73.33 (6.67, 3) |" in row  # (10 + 11 + 12) / 3 of 15
