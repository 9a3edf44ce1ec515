"""A bundle's own cases: sample/, from the image files to the logits that a model has to give. No torch.

Shapes: N cases, K classes.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from okdc.bundle.artefacts import Parity
from okdc.bundle.bundle import BundleDir
from okdc.bundle.checks import BATCH, FLOOR, largest, number, probabilities_off
from okdc.bundle.layout import EXPECTED, INT8, PARITY, SAMPLE
from okdc.bundle.session import Pixels, Session, answers
from okdc.data import images as image_files
from okdc.errors import CheckFailed
from okdc.runs.artefacts import Artefact, Finite, Index, NotNegative, Tuple
from okdc.runs.provenance import processor

MOST_CASES = BATCH  # which are decoded and answered at once


class Case(Artefact):
    image: str  # a file in sample/
    label: Index


class Answers(Artefact):
    tolerance: NotNegative
    logits: Tuple[Tuple[Finite]]  # NK


class Expected(Artefact):
    """sample/expected.json."""

    cases: Annotated[Tuple[Case], Field(min_length=1, max_length=MOST_CASES)]
    models: dict[str, Answers]  # by precision


def expected(bundle: BundleDir) -> Expected:
    """sample/expected.json, whole: logits of every case for every model. Raises CheckFailed."""
    path = bundle.folder / EXPECTED
    content = bundle.read(EXPECTED, Expected, "samples")
    for precision in bundle.precisions:
        model = content.models.get(precision)
        shape = {len(row) for row in model.logits} if model else set()
        if model is None or len(model.logits) != len(content.cases) or shape != {len(bundle.labels)}:
            raise CheckFailed("samples", f"{path}: no logits of every case for {precision}")
    if any(case.label >= len(bundle.labels) for case in content.cases):
        raise CheckFailed("samples", f"{path}: a label that no class has")
    return content


def pixels(bundle: BundleDir, cases: Expected) -> Pixels:
    """The images of the cases, N×H×W×3, by the manifest's rule."""
    return np.stack([_decoded(bundle, case.image) for case in cases.cases])


def _decoded(bundle: BundleDir, name: str) -> Pixels:
    content = bundle.content(f"{SAMPLE}/{name}")
    try:
        with image_files.wary():
            return bundle.pixels(content)
    except Exception as error:
        reason = image_files.damage(error)
        raise CheckFailed("samples", f"{bundle.folder / SAMPLE / name}: no whole image: {reason}") from None


def compare(
    bundle: BundleDir, precision: str, session: Session, images: Pixels, cases: Expected, row: dict[str, Any]
) -> None:
    """Write the difference of one model's answers to the cases into its `row` of a report.

    Raises CheckFailed where it is larger than the case's tolerance, or the probabilities are not those of the logits.
    """
    wanted = cases.models[precision]
    logits, probabilities = answers(session, images, len(bundle.labels))
    difference = largest(logits, np.asarray(wanted.logits))
    row["samples"] = {"cases": len(images), "max_abs": number(difference), "allowed": wanted.tolerance}
    path = bundle.folder / bundle.manifest.models[precision].file
    if difference > wanted.tolerance:
        raise CheckFailed(
            "samples",
            f"{path}: logits of its own cases differ by {difference:.1e}, allowed {wanted.tolerance:.1e}",
            hint=likely(bundle, precision),
        )
    if (off := probabilities_off(logits, probabilities)) > FLOOR:
        raise CheckFailed("samples", f"{path}: probabilities differ from the softmax of the logits by {off:.1e}")


def likely(bundle: BundleDir, precision: str) -> str:
    """The likely reason why a file that is whole answers otherwise."""
    reason = f"this processor ({processor()[0]}) computes otherwise than the one that made the bundle"
    if precision != INT8:
        return f"{reason}, or the bundle's own record was changed"
    try:
        report = bundle.read(PARITY, Parity).int8
    except CheckFailed:  # it has its own failure; here it is only for the hint
        report = None
    if report and report.full_range:
        return f"{reason}: int8 made with --full-range overflows on x86 without VNNI; export again without --full-range"
    return f"{reason}: int8 kernels differ between processors; --model float32 does not depend on them"
