"""ImageNet (image-net.org, ILSVRC 2012): large images in class folders, decoded when they are needed.

    root/{train,val}/<wnid>/*.JPEG

or any other tree that `okdc.data.images.listing` reads: the name stands for images that do not fit in memory.
"""

from __future__ import annotations

from pathlib import Path

import torch

from okdc.data import images
from okdc.data.datasets import Dataset, fingerprint_of, splits_of
from okdc.data.ondemand import OnDemand
from okdc.errors import DataError

# Of the training images at 256 pixels, as everybody takes them since torchvision's models were trained with them.
PUBLISHED = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def imagenet(
    root: Path, size: int, shorter_side: int | None = None, progress: images.Progress | None = None
) -> Dataset:
    """The listed images, none of them decoded but a few that tell a wrong or damaged folder at once.

    Without a split named test, val is it: ImageNet's published val is what papers test on.
    Raises DataError for another folder than is expected, an empty file, a damaged image among those looked at.
    """
    try:
        found = images.listing(root)
    except DataError as error:
        raise DataError(
            error.message,
            hint="expected: root/train/<class>/* and root/val/<class>/*; the archive of val holds loose images, which "
            "have to be sorted into the folders of their classes",
            details=error.details,
        ) from None
    labels = torch.tensor(found.labels, dtype=torch.int64)
    splits, notes = splits_of(found, labels)
    if len(splits["val"]) and not len(splits["test"]):
        splits["test"], splits["val"] = splits["val"], splits["test"]
        notes.append(
            f"the {len(splits['test']):,} images of val are the test split, read once, as papers use them; those that "
            "choose the student are held out of train by data.val_fraction"
        )
    files = OnDemand(found.root, found.files, size, shorter_side)
    contents = files.listed(progress)
    files.probe()
    notes.append(
        f"{len(files):,} images, decoded when needed; the data is known by the names and sizes of its files, not by "
        "their contents"
    )
    return Dataset(
        name="imagenet",
        classes=found.classes,
        images=torch.empty(0, size, size, 3, dtype=torch.uint8),
        labels=labels,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        fingerprint=fingerprint_of(contents, found.classes, found.labels, found.splits),
        notes=(*found.notes, *notes),
        published=PUBLISHED,
        files=files,
        parts=found.splits,
    )
