"""From a complete run to a bundle that is proven equal to its student, or to none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.assembly import reopen
from okdc.assembly import student as students
from okdc.bundle import layout
from okdc.bundle.card import Story, card
from okdc.bundle.layout import FLOAT32
from okdc.bundle.session import Images
from okdc.bundle.structure import OPSET, check_structure
from okdc.cohort import Backbone
from okdc.data.datasets import Dataset
from okdc.deploy import bundle_profile as measured
from okdc.deploy import onnx, parity, reduced
from okdc.deploy import torch_reference as sides
from okdc.deploy.reduced import Judges, Reduced, Wanted
from okdc.errors import CheckFailed, OkdcError
from okdc.precision.gate import Float32
from okdc.progress import Listener
from okdc.recipe import catalog
from okdc.runs.artefacts import Result, StudentInfo
from okdc.runs.files import write, write_json
from okdc.runs.run import Run

SAMPLES = 5


@dataclass(frozen=True)
class Exported:
    """A bundle in its place."""

    folder: Path
    parity: dict[str, Any]  # what parity.json says
    error: OkdcError | None  # what is to be said of a reduced file that was wanted and is not in it


def export(
    run: Run,
    out: Path | None,
    data_root: str | None,
    tell: Listener,
    student: int | None = None,
    wanted: Wanted | None = None,
    licence: str | None = None,
) -> Exported:
    """Write the ONNX bundle of a run's student, by number or the kept one.

    Raises RunError for a run that is not complete, DataError where its images are missing or others, CheckFailed where
    the file is not the student; what was built is then in `out`.rejected, with the report. A reduced file that fails
    its gate lies there alone, or cannot be made: the bundle stands without it, and `Exported.error` is to be raised.
    """
    chosen, result = students.load(run, student), run.read_result()
    network, facts, expected_pct = chosen.network, chosen.info, chosen.result.top1_pct
    target = _folder_for(run, out)
    had = _precisions(target)
    try:
        with layout.building(target) as folder:  # entered first: a folder that is refused costs no minutes
            recipe, notes = reopen.recipe_of(run, data_root)
            for note in notes:
                tell.note(note)
            dataset = reopen.data_of(run, recipe, tell)
            judges = _judges(dataset, facts, tell)
            float32, report = _float32(folder, target, network, facts, judges, expected_pct, tell)
            made, errors = reduced.make(float32, dataset, judges, wanted or Wanted(), tell)
            passed = [one for one in made if one.report["passed"]]
            for one in passed:
                layout.write_model(folder, one.precision, one.blob)
            reports = {"schema": layout.SCHEMA, FLOAT32: report} | {one.precision: one.report for one in made}
            write_json(folder / layout.PARITY, reports)

            logits = sides.Torch(network, facts.preprocessing).logits(judges.samples)
            samples = {FLOAT32: (logits, report["logits"]["allowed"]["images"])}
            samples |= {one.precision: one.samples for one in passed}
            layout.write_samples(folder, judges.samples, judges.labels[_shown(judges.images)].tolist(), samples)
            tell.note("measuring how long each file takes")
            models = {FLOAT32: float32.blob} | {one.precision: one.blob for one in passed}
            costs = measured.facts(network, facts.preprocessing.size, models)
            write_json(folder / layout.PROFILE, costs)
            counts = {"train": len(dataset.train), "validation": len(dataset.val), "test": len(dataset.test)}
            story = Story(facts.to_json(), result.to_json(), recipe.portable(), counts, reports, costs, licence)
            write(folder / layout.CARD, card(story).encode())
            write(folder / layout.CLIENT, (catalog.folder("export") / "python" / "run.py").read_bytes())
            origin = _origin(dataset, result, costs, report)
            judged_on = _judged_on(dataset, report["images_sha256"])
            layout.write_manifest(folder, facts, recipe.portable(), story.top1_pct, OPSET, judged_on, origin)
    except CheckFailed as error:
        if had:
            error.details = (*error.details, f"the earlier bundle {target} is untouched")
        raise
    if gone := [precision for precision in had if precision not in models]:
        tell.note(f"the bundle that was in {target} had {', '.join(gone)}, this one has not")
    errors += _refused(target, reports, [one for one in made if not one.report["passed"]])
    return Exported(target, reports, _joined(errors, target))


def _judges(dataset: Dataset, facts: StudentInfo, tell: Listener) -> Judges:
    """The images that judge the student, and some of them for the bundle."""
    split, rows = dataset.final_split
    if split != "test":
        tell.note("the data has no test split: parity is checked on the validation images")
    images = sides.Split(dataset, rows)
    return Judges(images, dataset.labels[rows].numpy(), list(facts.classes), split, images[_shown(images)])


def _shown(images: Images) -> npt.NDArray[np.int64]:
    """Evenly spread, so that they are of several classes."""
    return np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(np.int64)


def _float32(
    folder: Path,
    target: Path,
    network: Backbone,
    facts: StudentInfo,
    judges: Judges,
    expected_pct: float,
    tell: Listener,
) -> tuple[Float32, dict[str, Any]]:
    """model.onnx in `folder` with its answers, and how it was proven equal to the student, or CheckFailed."""
    tell.note("exporting to ONNX")
    path = layout.write_model(folder, FLOAT32, onnx.to_onnx(network, facts))
    blob = path.read_bytes()
    check_structure(blob, facts)
    tell.note(f"checking parity on {len(judges.images):,} {judges.split} images")
    report, logits = parity.check(path, network, facts, judges.images, judges.labels, expected_pct, judges.split)
    if not report["passed"]:
        write_json(folder / layout.PARITY, {"schema": layout.SCHEMA, FLOAT32: report})
        raise CheckFailed(
            "parity",
            f"model.onnx did not pass: {report['failures'][0]}",
            hint=f"likely cause: {report['cause']}",
            details=[*report["failures"][1:], f"report: {layout.rejected(target) / layout.PARITY}"],
        )
    return Float32(blob, logits), report


def _origin(dataset: Dataset, result: Result, costs: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Where the student comes from and what it costs, for the manifest: nothing of where things lay."""
    return {
        "students": result.students,
        "share": result.share,
        "teacher": result.teacher and result.teacher.to_json(),
        "params": costs["params"],
        "macs": costs["macs"],
        "versions": report["versions"],
        "data_sha256": dataset.fingerprint,
    }


def _refused(target: Path, reports: dict[str, Any], failed: Sequence[Reduced]) -> list[OkdcError]:
    """Put reduced files that failed their gate aside; what is to be said of them, if there are any."""
    if not failed:
        return []
    aside = layout.set_aside(target, {one.precision: one.blob for one in failed}, reports)
    first = failed[0]
    name = layout.MODELS[first.precision]
    worst = first.report.get("worst_layers")
    error = CheckFailed(
        first.precision,
        f"{name} did not pass: {first.report['failures'][0]}",
        hint="--diagnose names the layers that lose most; --max-drop and --min-agreement say what is allowed"
        if worst is None
        else "a network with more room, more training, or float16",
        details=[
            *first.report["failures"][1:],
            *(f"{layout.MODELS[one.precision]}: {line}" for one in failed[1:] for line in one.report["failures"]),
            *(f"{row['sqnr_db']:.1f} dB  {row['operator']} {row['weight'] or row['node']}" for row in worst or ()),
            f"it is in {aside} with its report",
        ],
    )
    return [error]


def _joined(errors: Sequence[OkdcError], target: Path) -> OkdcError | None:
    """The first error, with what is to be said of the others."""
    if not errors:
        return None
    first, *others = errors
    further = [line for error in others for line in (f"error[{error.kind}]: {error.message}", *error.details)]
    first.details = (*first.details, *further, f"the bundle {target} stands without it")
    return first


def _precisions(target: Path) -> list[str]:
    """The models of a bundle that is there already."""
    if not (target / layout.MANIFEST).is_file():
        return []
    return [precision for precision, name in layout.MODELS.items() if (target / name).is_file()]


def _folder_for(run: Run, out: Path | None) -> Path:
    target = out or run.path / "bundle"
    if target.name in ("", ".."):  # `-o .` has no name to build beside
        target = Path(os.path.abspath(target))  # noqa: PTH100  (resolve() would follow links)
    return target


def _judged_on(dataset: Dataset, sha256: str) -> dict[str, Any]:
    """Which images the numbers are from, so that they can be found and proven without torch."""
    split, rows = dataset.final_split
    part, places = dataset.part_of(rows)
    return {"split": split, "images": len(rows), "sha256": sha256, "part": part, "rows": places}
