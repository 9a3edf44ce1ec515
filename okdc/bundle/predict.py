"""`okdc predict`: a bundle's answers to image files of any size and mode, by the manifest's rule. No torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from okdc.bundle.bundle import BundleDir
from okdc.bundle.layout import FLOAT32
from okdc.bundle.session import Floats, Pixels, Session, answers
from okdc.data import images, walk
from okdc.data.files import check
from okdc.data.files import read as read_file
from okdc.errors import DataError, by

THREADS = min(8, os.cpu_count() or 1)  # that decode


def listed(paths: Sequence[Path]) -> tuple[list[Path], str | None]:
    """The files that are named, whatever their names, and of each folder all images below it; and a note on what is
    not read.

    Raises DataError where there is no image, and for a folder that cannot be listed.
    """
    files, left_out = walk.listed(paths)
    if not files:
        raise DataError(
            f"no images below {', '.join(map(str, paths))}",
            hint=f"images are files whose names end in {', '.join(images.endings())} and do not begin with a dot",
            details=[note] if (note := left_out.note()) else [],
        )
    return files, left_out.note()


def predict(
    bundle: BundleDir, files: Sequence[Path], precision: str = FLOAT32, top: int = 5, batch: int = 64, threads: int = 1
) -> Generator[dict[str, Any], None, None]:
    """{"image", "top": [{"label", "probability"}, ...]} of each file in turn, or {"image", "error"}.

    The model is opened at once, the images while the answers are taken. Raises UsageError for a model that the bundle
    lacks, CheckFailed for a file that is not the bundle's; after the last image, DataError for images that are none.
    """
    session = Session(bundle.model(precision), threads)
    return _answered(bundle, files, session, top, min(batch, max(len(files), 1)))


def predict_pixels(
    bundle: BundleDir, pixels: Pixels, precision: str = FLOAT32, top: int = 5, batch: int = 64, threads: int = 1
) -> list[dict[str, Any]]:
    """The same of an array N×size×size×3 of uint8 RGB pixels, with the index of each as its "image".

    Raises as `predict`, and DataError for an array of another shape or type.
    """
    expected = (bundle.size, bundle.size, 3)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
        size = by(("N", *expected))
        raise DataError(f"expected an array {size} of uint8, found {by(pixels.shape)} of {pixels.dtype}")
    session = Session(bundle.model(precision), threads)
    rows = []
    for start in range(0, len(pixels), batch):
        probabilities = answers(session, pixels[start : start + batch], len(bundle.labels))[1]
        rows += [_line(bundle, start + i, row, top) for i, row in enumerate(probabilities)]
    return rows


def _answered(
    bundle: BundleDir, files: Sequence[Path], session: Session, top: int, batch: int
) -> Generator[dict[str, Any], None, None]:
    bad: list[str] = []
    coming, waiting = iter(files), deque[list[tuple[Path, Future[Pixels]]]]()
    pool = ThreadPoolExecutor(THREADS)
    try:
        with images.wary():
            while True:
                some = [(path, pool.submit(_decoded, bundle, path)) for path in islice(coming, batch)]
                if some:
                    waiting.append(some)
                if not waiting:
                    break
                if some and len(waiting) < 2:  # one batch is decoded while another is answered
                    continue
                for line in _lines(bundle, waiting.popleft(), session, top):
                    if "error" in line:
                        bad.append(f"{line['image']}: {line['error']}")
                    yield line
    finally:
        pool.shutdown(cancel_futures=True)
    if bad:
        raise images.unreadable(bad, len(files))


def _decoded(bundle: BundleDir, path: Path) -> Pixels:
    check(path.stat())  # a device may answer to being opened
    return bundle.pixels(read_file(path))


def _lines(
    bundle: BundleDir, some: Sequence[tuple[Path, Future[Pixels]]], session: Session, top: int
) -> Generator[dict[str, Any], None, None]:
    """The lines of one batch: the model gets the images that could be decoded."""
    whole, errors = [], {}
    for i, (_, future) in enumerate(some):
        try:
            whole.append(future.result())
        except Exception as error:  # Pillow raises a dozen kinds; an image too large for the memory is one of many
            errors[i] = images.damage(error)
    rows = iter(answers(session, np.stack(whole), len(bundle.labels))[1]) if whole else iter(())
    for i, (path, _) in enumerate(some):
        if i in errors:
            yield {"image": str(path), "error": errors[i]}
            continue
        yield _line(bundle, str(path), next(rows), top)


def _line(bundle: BundleDir, image: str | int, probabilities: Floats, top: int) -> dict[str, Any]:
    if not np.isfinite(probabilities).all():
        return {"image": image, "error": "the model gives probabilities that are not finite"}
    best = np.argsort(-probabilities, kind="stable")[:top]
    return {"image": image, "top": [{"label": bundle.labels[c], "probability": float(probabilities[c])} for c in best]}
