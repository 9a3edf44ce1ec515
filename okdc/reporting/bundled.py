"""The models of a run's bundle beside each other: accuracy, size, time, and the images whose answer changed."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.bundle import layout, test_images
from okdc.bundle.artefacts import REDUCED, Parity, Profile
from okdc.bundle.bundle import BundleDir
from okdc.bundle.session import Session, answers
from okdc.bundle.test_images import NoImagesError
from okdc.deploy.export import folder_of
from okdc.errors import OkdcError
from okdc.progress import Progress
from okdc.runs.accuracy import interval_pct
from okdc.runs.run import RunDir

MOST_CHANGED = 12  # images that are named for each model

Labels = npt.NDArray[np.int64]


def of_bundle(
    run: RunDir, quick: bool, data_root: str | None, tell: Progress, missing: list[str]
) -> dict[str, Any] | None:
    """The bundle in RUN/bundle, where it is of the run's student; None without one. `missing` gets what cannot be said.

    `quick`: no model is run, so that the images whose answer changed are counted and not named.
    """
    folder = folder_of(run)
    if not layout.is_bundle(folder):
        missing.append(f"no bundle: okdc export {shlex.quote(str(run.path))} --onnx makes one")
        return None
    try:
        bundle = BundleDir.open(folder)
        if bundle.manifest.recipe_sha256 != run.read_info().recipe_sha256:
            missing.append(f"the bundle {folder} is of another run")
            return None
        parity, profile = bundle.read(layout.PARITY, Parity), bundle.read(layout.PROFILE, Profile)
        changed = {} if quick else _changed(bundle, data_root, tell, missing)
    except OkdcError as error:
        missing.append(f"the bundle {folder}: {error.message}")
        return None
    n = bundle.manifest.accuracy.images
    rows = []
    for precision in bundle.precisions:
        cost, report, top1 = profile.models[precision], parity.reduced(precision), parity.top1_pct(precision)
        rows.append(
            {
                "precision": precision,
                "top1_pct": top1,
                "interval_pct": interval_pct(top1, n),
                "drop_points": report.drop_points if report else None,
                "agreement_pct": report.agreement_pct if report else parity.float32.agreement_pct,
                "predictions_that_differ": (report or parity.float32).predictions_that_differ,
                "compared_with": "float32" if report else "the student in PyTorch",
                "worst_class": report.worst_class.to_json() if report else None,
                "bytes": cost.bytes,
                "latency_ms_p50": cost.latency_ms["batch_1"].p50,
                "changed": changed.get(precision),
            }
        )
    return {
        "folder": str(folder),
        "student": bundle.manifest.student,
        "images": n,
        "split": bundle.manifest.accuracy.split,
        "rows": rows,
        "rejected": [
            {"precision": name, "failures": list(report.failures)}
            for name in REDUCED
            if (report := parity.reduced(name)) and not report.passed
        ],
        "machine": profile.machine.to_json(),
    }


def _changed(
    bundle: BundleDir, data_root: str | None, tell: Progress, missing: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """By precision, the first images to which a reduced model answers otherwise than the float32 one."""
    reduced = bundle.precisions[1:]
    if not reduced:
        return {}
    try:
        part = test_images.find(bundle, data_root)
    except NoImagesError as error:
        missing.append(f"images whose answer changed in {', '.join(reduced)}: {error}")
        return {}
    test_images.check_labels(bundle, part)
    tell.note(f"asking the {' and '.join(bundle.precisions)} models again")
    sessions = {name: Session(bundle.model(name)) for name in bundle.precisions}
    logits: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in sessions}
    for pixels, _ in test_images.proven(bundle, part):
        for name, session in sessions.items():
            logits[name].append(answers(session, pixels, len(bundle.labels))[0])
    said = {name: np.concatenate(parts).argmax(1) for name, parts in logits.items()}
    before = said[bundle.precisions[0]]
    return {
        name: [
            {
                "place": int(i),
                "label": int(part.labels[i]),
                "before": int(before[i]),
                "after": int(said[name][i]),
            }
            for i in np.flatnonzero(said[name] != before)[:MOST_CHANGED]
        ]
        for name in reduced
    }
