"""ImageNet (image-net.org, ILSVRC 2012): large images in class folders, decoded when they are needed.

    root/{train,val}/<wnid>/*.JPEG

or any other tree that `okdc.data.listing` reads: the name stands for images that do not fit in memory.
"""

from __future__ import annotations

import numpy as np

from okdc.data.folder import read_part
from okdc.data.listing import list_images
from okdc.data.ondemand import OnDemand
from okdc.data.source import Content, Request, Source, fingerprint_of
from okdc.errors import DataError

ROOT = "data/imagenet"
# Of the training images at 256 pixels, as everybody takes them since torchvision's models were trained with them.
MOMENTS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def read(request: Request) -> Content:
    """The listed images; 64 of them are decoded, which is enough to notice a wrong or damaged folder at once.

    Papers test on ImageNet's published val, so val is the test split of a tree without one.
    Raises DataError for another tree than is expected, an empty file, a damaged image among the 64.
    """
    try:
        listing = list_images(request.folder)
    except DataError as error:
        raise DataError(
            error.message,
            hint="expected: root/train/<class>/* and root/val/<class>/*; the archive of val holds loose images, which "
            "have to be sorted into the folders of their classes",
            details=error.details,
        ) from None
    notes, splits = list(listing.notes), dict(listing.splits)
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append(
            f"the {len(splits['test']):,} images of val are the test split, read once, as papers use them; "
            "data.val_fraction of train is held out to choose the student"
        )
    labels = np.asarray(listing.labels, np.int64)
    files = OnDemand(listing.root, listing.files, request.image_size, request.shorter_side)
    contents = files.sha256_of_names(request.progress)
    files.probe()
    notes.append(
        f"{len(files):,} images, decoded when needed; the data is identified by the names and sizes of its files, not "
        "by their contents"
    )
    return Content(
        classes=listing.classes,
        images=files,
        labels=labels,
        parts=listing.splits,
        fingerprint=fingerprint_of(contents, listing.classes, labels, listing.splits),
        notes=tuple(notes),
        moments=MOMENTS,
        splits=splits,
    )


SOURCE = Source(
    name="imagenet",
    read=read,
    read_part=read_part,
    root=ROOT,
    classes=1000,
    class_folders=True,
    streamed=True,
    counts=(1_281_167, 0, 50_000),
    by_hand="register at https://image-net.org, fetch ILSVRC2012 and lay it out as "
    f"{ROOT}/{{train,val}}/<wnid>/*.JPEG, or anywhere with --data-root",
    caution="ImageNet: its terms allow research and education that is not commercial; what that means for weights "
    "trained on it is not settled here.",
    hub="ILSVRC/imagenet-1k",
)
