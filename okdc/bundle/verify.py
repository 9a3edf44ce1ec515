"""`okdc verify`: whether a bundle is as it states, on this processor as where it was made. No torch.

Every check is made before the first failure is reported: files, models, the bundle's own cases, accuracy.

Shapes: N images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from okdc.bundle import answers as answers_json
from okdc.bundle import samples, test_images
from okdc.bundle.artefacts import Answers, Parity, Profile
from okdc.bundle.bundle import BundleDir
from okdc.bundle.layout import ANSWERS, MANIFEST, PARITY, PROFILE
from okdc.bundle.session import Session, answers
from okdc.bundle.test_images import Comparison, NoImagesError
from okdc.data.source import Labels, Part
from okdc.errors import CheckFailed, DataError
from okdc.progress import Progress
from okdc.runs.accuracy import ByClass, above_largest_class
from okdc.runs.predictions import Bits, by_class
from okdc.runs.provenance import processor

THREADS = min(4, os.cpu_count() or 1)
NAMED = 5  # files without a place in the manifest that a note names

Sessions = dict[str, Session]  # by precision


def verify(folder: Path, data_root: str | None, tell: Progress) -> dict[str, Any]:
    """The report that `okdc verify --json` prints. `passed` is false where anything differs; `check` raises then.

    Raises RunError for a folder that is no bundle, DataError where `data_root` does not hold the images
    that judged it.
    """
    bundle = BundleDir.open(folder)
    failures: list[CheckFailed] = []
    unnamed = _files(bundle, failures)
    if unnamed:
        more = ", ..." if len(unnamed) > NAMED else ""
        tell.note(f"not named by the manifest, not looked at: {', '.join(unnamed[:NAMED])}{more}")
    sessions, models = _opened(bundle, failures)
    _samples(bundle, sessions, models, failures)
    reason = _accuracy(bundle, sessions, models, data_root, tell, failures)
    stated = bundle.manifest.accuracy
    for model in models.values():
        top1_pct = model["recorded_top1_pct"] if model["top1_pct"] is None else model["top1_pct"]
        model["above_largest_class"] = above_largest_class(top1_pct, stated.images, stated.largest_class_pct)
    if reason:
        tell.note(f"accuracy: not checked: {reason}")
    return {
        "schema": 1,
        "bundle": str(folder),
        "passed": not failures,
        "failures": [{"check": e.kind, "message": e.message, "hint": e.hint} for e in failures],
        "files": len(bundle.manifest.files),
        "unnamed_files": unnamed,
        "architecture": bundle.manifest.architecture,
        "split": stated.split,
        "judged_images": stated.images,
        "largest_class_pct": stated.largest_class_pct,
        "smallest_class_pct": stated.smallest_class_pct,
        "models": models,
        "accuracy_not_checked": reason,
        "processor": processor()[0],
        "versions": {"onnxruntime": onnxruntime.__version__},
    }


def check(report: Mapping[str, Any]) -> None:
    """Raises CheckFailed with all that differs."""
    if report["failures"]:
        first, *others = report["failures"]
        details = [f"{other['check']}: {other['message']}" for other in others]
        raise CheckFailed(first["check"], first["message"], hint=first["hint"], details=details)


@contextmanager
def _noting(failures: list[CheckFailed]) -> Iterator[None]:
    """A failed check is noted, and the next one made; one file that is damaged is one failure, however often met."""
    try:
        yield
    except CheckFailed as error:
        if error.message not in [failure.message for failure in failures]:
            failures.append(error)


# ---------------------------------------------------------------------------------------------------------------------
# Files and models


def _files(bundle: BundleDir, failures: list[CheckFailed]) -> list[str]:
    """Hashes and sizes, the types in the JSON files, the counts of answers; returns the other files of the folder."""
    names = bundle.manifest.files
    for name in names:
        with _noting(failures):
            bundle.content(name)
    for name, model in (PARITY, Parity), (PROFILE, Profile):
        if name in names:
            with _noting(failures):
                bundle.read(name, model)
    if ANSWERS in names:
        with _noting(failures):
            answers_json.check(bundle.read(ANSWERS, Answers), bundle.manifest, str(bundle.folder / ANSWERS))
    paths = []
    for folder, folders, files in os.walk(bundle.folder):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]  # which are not followed
        paths += [(Path(folder) / name).relative_to(bundle.folder).as_posix() for name in files + links]
    return sorted(ascii(name)[1:-1] for name in set(paths) - set(names) - {MANIFEST})


def _opened(bundle: BundleDir, failures: list[CheckFailed]) -> tuple[Sessions, dict[str, dict[str, Any]]]:
    """A session for each model that is as the manifest states, and the report's row on each model."""
    sessions: Sessions = {}
    models: dict[str, dict[str, Any]] = {}
    for precision in bundle.precisions:
        with _noting(failures):
            sessions[precision] = Session(bundle.model(precision), THREADS)
        models[precision] = {
            "structure": precision in sessions,
            "samples": None,
            "top1_pct": None,
            "recorded_top1_pct": (stated := bundle.manifest.models[precision]).top1_pct,
            "balanced_accuracy_pct": None,
            "recorded_balanced_accuracy_pct": stated.balanced_accuracy_pct,
            "images": None,
        }
    return sessions, models


def _samples(
    bundle: BundleDir, sessions: Sessions, models: dict[str, dict[str, Any]], failures: list[CheckFailed]
) -> None:
    with _noting(failures):
        cases = samples.expected(bundle)
        pixels = samples.pixels(bundle, cases)
        for precision, session in sessions.items():
            with _noting(failures):
                samples.compare(bundle, precision, session, pixels, cases, models[precision])


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy on this processor


def _accuracy(
    bundle: BundleDir,
    sessions: Sessions,
    models: dict[str, dict[str, Any]],
    data_root: str | None,
    tell: Progress,
    failures: list[CheckFailed],
) -> str | None:
    """Every model on the images that judged it. Returns the reason where that cannot be done."""
    if not sessions:
        return "no model can be run"
    try:
        _judge(bundle, sessions, models, test_images.find(bundle, data_root), tell, failures)
    except NoImagesError as error:
        return str(error)
    except DataError as error:
        if test_images.come_with_a_package(bundle):  # no folder can be a wrong one
            failures.append(CheckFailed("images", error.message, hint=error.hint))
        elif data_root is not None:
            lines = [f"{failure.kind}: {failure.message}" for failure in failures]
            raise DataError(error.message, hint=error.hint, details=(*error.details, *lines)) from None
        return error.message
    return None


def _judge(
    bundle: BundleDir,
    sessions: Sessions,
    models: dict[str, dict[str, Any]],
    judging: Part,
    tell: Progress,
    failures: list[CheckFailed],
) -> None:
    """One pass over the images, each decoded once. Raises DataError where they are not those of the bundle."""
    count, done, classes = bundle.manifest.accuracy.images, 0, len(bundle.labels)
    running = dict(sessions)
    right: dict[str, list[Bits]] = {precision: [] for precision in sessions}
    seen: list[Labels] = []
    with tell.reading() as progress:
        for pixels, labels in test_images.proven(bundle, judging):
            seen.append(labels)
            for precision, session in list(running.items()):
                with _noting(failures):
                    del running[precision]  # a model that fails once is not asked again
                    logits, _ = answers(session, pixels, classes)
                    right[precision].append(logits.argmax(1) == labels)
                    running[precision] = session
            progress(done := done + len(pixels), count)
    with _noting(failures):
        test_images.check_labels(bundle, judging)
    everything = np.concatenate(seen)
    if len(everything) and everything.max() >= classes:
        return  # labels that are no classes: that check has failed
    for precision in running:
        counts = by_class(everything, np.concatenate(right[precision]), classes)
        models[precision] |= {
            "top1_pct": counts.top1_pct,
            "balanced_accuracy_pct": counts.balanced_pct,
            "images": count,
        }
        _compare(bundle, precision, counts, failures)


def _compare(bundle: BundleDir, precision: str, counts: ByClass, failures: list[CheckFailed]) -> None:
    """What was counted here with the statements of the manifest."""
    stated, images = bundle.manifest.models[precision], bundle.manifest.accuracy
    for number in (
        *test_images.accuracies(counts, stated),
        Comparison("the largest class has ", counts.largest_pct, images.largest_class_pct),
        Comparison("the smallest class has ", counts.smallest_pct, images.smallest_class_pct),
    ):
        if number.differs:
            message = (
                f"{bundle.folder / stated.file}: {number.name}{number.value:.2f} % of {images.images:,} images here, "
                f"{number.recorded:.2f} % recorded"
            )
            failures.append(CheckFailed("accuracy", message, hint=samples.likely(bundle, precision)))
