"""A bundle's own cases: sample/, from the image files to the logits that a model has to give. No torch.

Shapes: N cases, K classes.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from okdc.bundle.bundle import Bundle
from okdc.bundle.checks import BATCH, FLOOR, largest, number, probabilities_off
from okdc.bundle.layout import EXPECTED, INT8, PARITY, SAMPLE
from okdc.bundle.session import Pixels, Session, answers
from okdc.data import images as image_files
from okdc.errors import CheckFailed
from okdc.runs.provenance import processor

MOST_CASES = BATCH  # which are decoded and answered at once


class _Case(BaseModel):
    model_config = ConfigDict(strict=True)
    image: str
    label: Annotated[int, Field(ge=0)]


class _Wanted(BaseModel):
    model_config = ConfigDict(strict=True)
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    logits: list[list[Annotated[float, Field(allow_inf_nan=False)]]]


class Expected(BaseModel):
    model_config = ConfigDict(strict=True)
    cases: Annotated[list[_Case], Field(min_length=1, max_length=MOST_CASES)]
    models: dict[str, _Wanted]


def expected(bundle: Bundle) -> Expected:
    """sample/expected.json, whole: logits of every case for every model. Raises CheckFailed."""
    try:
        found = Expected.model_validate(bundle.parsed(EXPECTED))
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
        raise CheckFailed("samples", f"{bundle.folder / EXPECTED} is damaged: {told}") from None
    for precision in bundle.precisions:
        wanted = found.models.get(precision)
        shape = {len(row) for row in wanted.logits} if wanted else set()
        if wanted is None or len(wanted.logits) != len(found.cases) or shape != {len(bundle.labels)}:
            raise CheckFailed("samples", f"{bundle.folder / EXPECTED}: no logits of every case for {precision}")
    if any(case.label >= len(bundle.labels) for case in found.cases):
        raise CheckFailed("samples", f"{bundle.folder / EXPECTED}: a label that no class has")
    return found


def pixels(bundle: Bundle, cases: Expected) -> Pixels:
    """The images of the cases, N×H×W×3, by the manifest's rule."""
    return np.stack([_decoded(bundle, case.image) for case in cases.cases])


def _decoded(bundle: Bundle, name: str) -> Pixels:
    content = bundle.content(f"{SAMPLE}/{name}")
    try:
        with image_files.wary():
            return bundle.pixels(content)
    except Exception as error:
        told = image_files.damage(error)
        raise CheckFailed("samples", f"{bundle.folder / SAMPLE / name}: no whole image: {told}") from None


def compare(
    bundle: Bundle, precision: str, session: Session, images: Pixels, cases: Expected, told: dict[str, Any]
) -> None:
    """What one model gives for the cases, into `told`, and against what it should. Raises CheckFailed."""
    wanted = cases.models[precision]
    logits, probabilities = answers(session, images, len(bundle.labels))
    found = largest(logits, np.asarray(wanted.logits))
    told["samples"] = {"cases": len(images), "max_abs": number(found), "allowed": wanted.tolerance}
    path = bundle.folder / bundle.manifest["models"][precision]["file"]
    if found > wanted.tolerance:
        raise CheckFailed(
            "samples",
            f"{path}: logits of its own cases differ by {found:.1e}, allowed {wanted.tolerance:.1e}",
            hint=likely(bundle, precision),
        )
    if (off := probabilities_off(logits, probabilities)) > FLOOR:
        raise CheckFailed("samples", f"{path}: probabilities differ from the softmax of the logits by {off:.1e}")


def likely(bundle: Bundle, precision: str) -> str:
    """Why a file that is whole answers otherwise."""
    here = f"this processor ({processor()[0]}) computes otherwise than the one that made the bundle"
    if precision != INT8:
        return f"{here}, or the bundle's own record was changed"
    try:
        full_range = bundle.parsed(PARITY)[INT8]["full_range"] is True
    except (CheckFailed, LookupError, TypeError):  # whatever stands there, it is only for the hint
        full_range = False
    if full_range:
        return f"{here}: int8 made with --full-range overflows on x86 without VNNI; export again without --full-range"
    return f"{here}: int8 kernels differ between processors; --model float32 does not depend on them"
