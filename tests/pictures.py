"""Folders of image files as people have them: sizes, modes, turned ones, and files with another format's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_zoo(folder: Path, count: int, seed: int) -> None:
    """`count` files, portrait and landscape, smaller and larger than what is made of them, in every mode."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    shapes = [(60, 45), (40, 70), (9, 5), (33, 33), (50, 120), (150, 40)]
    kinds = ["RGB", "L", "CMYK", "RGBA", "P", "turned", "RGB", "wide grey"]
    for i in range(count):
        height, width = shapes[i % len(shapes)]
        # Smooth enough that a crop of the wrong place shows, and no two alike.
        small = random.integers(0, 256, (4, 5, 4), dtype=np.uint8)
        image = Image.fromarray(small, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
        kind, path = kinds[i % len(kinds)], folder / f"{folder.name}_{i:03}.JPEG"
        if kind == "RGBA":
            image.save(path, format="PNG")  # as n02105855_2933.JPEG of ImageNet
        elif kind == "P":
            image.convert("RGB").convert("P").save(path, format="PNG", transparency=0)
        elif kind == "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.convert("RGB").save(path, format="JPEG", exif=exif)
        elif kind == "wide grey":
            image.convert("L").save(path, format="JPEG")
        else:
            image.convert(kind).save(path, format="JPEG")


def write_imagenet(root: Path, train: int = 20, val: int = 4, test: int = 0) -> Path:
    """root/<split>/<wnid>/*.JPEG of two classes, so many files of each class."""
    for split, count in (("train", train), ("val", val), ("test", test)):
        for label, wnid in enumerate(("n01440764", "n01443537")):
            if count:
                write_zoo(root / split / wnid, count, seed=1000 * label + len(split))
    return root


def streamed(root: Path, *more: str) -> tuple[str, ...]:
    """Overrides for a run on what `write_imagenet` made: 32 of its 40 training images, four batches an epoch."""
    return (
        "data.name=imagenet",
        f"data.root={root}",
        "data.image_size=32",
        "data.shorter_side=36",
        "data.val_fraction=0.2",
        "data.train_images=32",
        "augment.crop=resized",
        "augment.padding=0",
        "optim.batch_size=8",
        "method.name=baseline",
        *more,
    )
