"""From a complete run to a bundle that is proven equal to its student, or to none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from okdc import catalog, reopen
from okdc.bundle import judged, layout
from okdc.bundle.layout import FLOAT32
from okdc.bundle.structure import OPSET, check_structure
from okdc.data.datasets import Dataset
from okdc.deploy import onnx, parity, recorded, sides
from okdc.errors import CheckFailed
from okdc.files import write, write_json
from okdc.run import Run
from okdc.talk import Listener

SAMPLES = 5


@dataclass(frozen=True)
class Wanted:
    """What an export was asked for beyond the float32 model."""

    student: int | None = None  # of the run; None: the kept one


def export(
    run: Run, out: Path | None, data_root: str | None, tell: Listener, wanted: Wanted = Wanted()
) -> tuple[Path, dict[str, Any]]:
    """Write the ONNX bundle of a run's student. Returns its folder and parity.json.

    Raises RunError for a run that is not complete, DataError where its images are missing or others, CheckFailed where
    the file is not the student; what was built is then in `out`.rejected, with the report.
    """
    network, facts, result = recorded.student(run, "parity", "export")
    assert wanted.student is None
    recipe, notes = reopen.recipe_of(run, data_root)
    for note in notes:
        tell.note(note)
    dataset = reopen.data_of(run, recipe, tell)
    split, rows = dataset.final_split
    if split != "test":
        tell.note("the data has no test split: parity is checked on the validation images")
    images, labels = sides.Split(dataset, rows), dataset.labels[rows].numpy()

    target = folder_for(run, out)
    try:
        with layout.building(target) as folder:
            tell.note("exporting to ONNX")
            path = layout.write_model(folder, FLOAT32, onnx.to_onnx(network, facts))
            check_structure(path.read_bytes(), facts)
            tell.note(f"checking parity on {len(images):,} {split} images")
            report = parity.check(path, network, facts, images, labels, result["kept"]["top1_pct"], split)
            reports = {"schema": layout.SCHEMA, FLOAT32: report}
            write_json(folder / layout.PARITY, reports)
            if not report["passed"]:
                raise CheckFailed(
                    "parity",
                    f"model.onnx did not pass: {report['failures'][0]}",
                    hint=f"likely cause: {report['cause']}",
                    details=[*report["failures"][1:], f"report: {layout.rejected(target) / layout.PARITY}"],
                )
            shown = np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(int)
            pictures = images[shown]
            logits, allowed = sides.Torch(network, facts).logits(pictures), report["logits"]["allowed"]["images"]
            layout.write_samples(folder, pictures, labels[shown].tolist(), {FLOAT32: (logits, allowed)})
            write(folder / layout.CLIENT, (catalog.folder("export") / "python" / "run.py").read_bytes())
            top1_pct = {FLOAT32: report["top1_pct"]["onnx"]}
            layout.write_manifest(
                folder, facts, recipe.portable(), top1_pct, OPSET, judged_on(dataset, images), dataset.fingerprint
            )
    except CheckFailed as error:
        if (target / layout.MANIFEST).is_file():
            error.details = (*error.details, f"the earlier bundle {target} is untouched")
        raise
    return target, reports


def folder_for(run: Run, out: Path | None) -> Path:
    target = out or run.path / "bundle"
    if target.name in ("", ".."):  # `-o .` has no name to build beside
        target = Path(os.path.abspath(target))  # noqa: PTH100  (resolve() would follow links)
    return target


def judged_on(dataset: Dataset, images: sides.Split) -> dict[str, Any]:
    """Which images the numbers are from, so that they can be found and proven without torch."""
    split, rows = dataset.final_split
    part, places = dataset.part_of(rows)
    sha256 = judged.digest(images, dataset.labels[rows].numpy())
    return {"split": split, "images": len(rows), "sha256": sha256, "part": part, "rows": places}
