"""From a complete run to a bundle that is proven equal to its student, or to none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from okdc import reopen
from okdc.deploy import bundle, onnx, parity, recorded, sides
from okdc.errors import CheckFailed
from okdc.files import write_json
from okdc.run import Run
from okdc.talk import Listener

SAMPLES = 5


def export(run: Run, out: Path | None, data_root: str | None, tell: Listener) -> tuple[Path, dict[str, Any]]:
    """Write the ONNX bundle of a run's kept student. Returns its folder and parity.json.

    Raises RunError for a run that is not complete, DataError where its images are missing or others, CheckFailed where
    the file is not the student; what was built is then in `out`.rejected, with the report.
    """
    network, facts, result = recorded.student(run, "parity", "export")
    recipe, notes = reopen.recipe_of(run, data_root)
    for note in notes:
        tell.note(note)
    dataset = reopen.data_of(run, recipe, tell)
    split, rows = dataset.final_split
    if split != "test":
        tell.note("the data has no test split: parity is checked on the validation images")
    images, labels = sides.Split(dataset, rows), dataset.labels[rows].numpy()

    target = out or run.path / "bundle"
    if target.name in ("", ".."):  # `-o .` has no name to build beside
        target = Path(os.path.abspath(target))  # noqa: PTH100  (resolve() would follow links)
    try:
        with bundle.building(target) as folder:
            tell.note("exporting to ONNX")
            path = bundle.write_model(folder, onnx.to_onnx(network, facts))
            onnx.check_structure(path.read_bytes(), facts)
            tell.note(f"checking parity on {len(images):,} {split} images")
            report = parity.check(path, network, facts, images, labels, result["kept"]["top1_pct"], split)
            write_json(folder / bundle.PARITY, report)
            if not report["passed"]:
                raise CheckFailed(
                    "parity",
                    f"model.onnx did not pass: {report['failures'][0]}",
                    hint=f"likely cause: {report['cause']}",
                    details=[*report["failures"][1:], f"report: {bundle.rejected(target) / bundle.PARITY}"],
                )
            shown = np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(int)
            pictures = images[shown]
            logits, allowed = sides.Torch(network, facts).logits(pictures), report["logits"]["allowed"]["images"]
            bundle.write_samples(folder, pictures, labels[shown].tolist(), logits, allowed)
            bundle.write_manifest(folder, facts, recipe.portable(), report, onnx.OPSET, dataset.fingerprint)
    except CheckFailed as error:
        if (target / bundle.MANIFEST).is_file():
            error.details = (*error.details, f"the earlier bundle {target} is untouched")
        raise
    return target, report
