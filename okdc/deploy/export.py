"""From a complete run to a bundle that is proven equal to its student, or to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.assembly import reopen
from okdc.assembly import student as students
from okdc.assembly.student import Student
from okdc.bundle import layout
from okdc.bundle.artefacts import (
    Accuracy,
    Input,
    JudgedOn,
    Manifest,
    Model,
    Normalisation,
    Parity,
    Profile,
    StudentReport,
)
from okdc.bundle.bundle import BundleDir
from okdc.bundle.card import Story, card
from okdc.bundle.layout import FLOAT32
from okdc.bundle.session import Images
from okdc.bundle.structure import OPSET, check_structure
from okdc.data.datasets import Dataset
from okdc.deploy import answers, bundle_profile, onnx, parity, reduced
from okdc.deploy.reduced import Judges, Reduced, Wanted
from okdc.deploy.torch_reference import Split, Torch
from okdc.errors import CheckFailed, OkdcError, RunError
from okdc.precision.gate import Float32
from okdc.progress import Progress
from okdc.recipe import catalog
from okdc.runs import artefacts, folders
from okdc.runs.artefacts import Result
from okdc.runs.files import write
from okdc.runs.run import RunDir
from okdc.version import __version__

SAMPLES = 5
FLAGS = {"int8": "--int8", "float16": "--fp16"}  # that ask for a reduced model on the command line


@dataclass(frozen=True)
class Exported:
    """A bundle in its place."""

    folder: Path
    parity: Parity
    error: OkdcError | None  # of a reduced file that was wanted and is not in the bundle


def export(
    run: RunDir,
    out: Path | None,
    data_root: str | None,
    tell: Progress,
    student: int | None = None,
    wanted: Wanted | None = None,
    licence: str | None = None,
    replace: bool = False,
) -> Exported:
    """Write the ONNX bundle of a run's student, by number or the kept one.

    Raises RunError for a run that is not complete, for a place that another process writes to, and for a bundle there
    whose int8 or float16 model the new one would lack, unless `replace` gives it up; DataError where the images are
    missing or others; CheckFailed where the file is not the student: the files are then in `out`.rejected, with the
    report. A reduced file that fails its gate lies there alone, or cannot be made: the bundle stands without it, and
    `Exported.error` is to be raised.
    """
    chosen, result = students.load(run, student), run.read_result()
    target, wanted = folder_of(run, out), wanted or Wanted()
    with layout.alone(target, tell.note):  # entered first: a folder that is refused costs no minutes
        if not replace:
            _refuse_loss(target, wanted)
        return _export(run, target, data_root, tell, chosen, result, wanted, licence)


def standing(run: RunDir, student: int | None, tell: Progress) -> Exported | None:
    """The bundle in RUN/bundle as it was exported, where it is whole and of this very student; else None, and why.

    Raises RunError as `export`.
    """
    info, folder = students.load(run, student).info, folder_of(run)
    if not layout.is_bundle(folder):
        return None
    try:
        bundle = BundleDir.open(folder)
        manifest = bundle.manifest
        of = (manifest.weights_sha256, manifest.recipe_sha256, tuple(manifest.labels))
        if of != (info.weights_sha256, info.recipe_sha256, tuple(info.classes)):
            tell.note(f"the bundle {folder} is of another student")
            return None
        for name in manifest.files:
            bundle.content(name)
        report = bundle.read(layout.PARITY, Parity)
    except (RunError, CheckFailed) as error:
        tell.note(error.message)
        return None
    tell.note(f"the bundle {folder} is of this student and whole: nothing is exported again")
    return Exported(folder, report, None)


def folder_of(run: RunDir, out: Path | None = None) -> Path:
    """Where the bundle of a run goes."""
    return folders.target_of(out or run.path / "bundle")


def _refuse_loss(target: Path, wanted: Wanted) -> None:
    """Raises RunError where a model is there that took minutes to make and that nobody asked for again."""
    lost = [precision for precision in _precisions(target) if precision not in (FLOAT32, *wanted.precisions)]
    if lost:
        words = " ".join(FLAGS[precision] for precision in (*lost, *wanted.precisions))
        raise RunError(
            f"{target} has a model of {' and of '.join(lost)}, which this export would take away",
            hint=f"{words} makes it again, --replace gives it up, -o DIR leaves it where it is",
        )


def _export(
    run: RunDir,
    target: Path,
    data_root: str | None,
    tell: Progress,
    chosen: Student,
    result: Result,
    wanted: Wanted,
    licence: str | None,
) -> Exported:
    """`export` to a folder that nobody else writes to."""
    earlier = _precisions(target)
    try:
        with layout.building(target) as folder:
            resolved = reopen.recipe_of(run, data_root)
            for note in resolved.notes:
                tell.note(note)
            dataset = reopen.data_of(run, resolved, tell)
            judges = _judges(dataset, chosen.info.classes, tell)
            float32, report = _float32(folder, target, chosen, judges, tell)
            files, errors = reduced.make(float32, dataset, judges, wanted, tell)
            passed = [file for file in files if file.report.passed]
            reports = Parity.model_validate(
                {"schema": 1, FLOAT32: report} | {file.precision: file.report for file in files}
            )
            artefacts.write(folder / layout.PARITY, reports)
            artefacts.write(folder / layout.ANSWERS, answers.of(run, chosen, result, dataset, judges, float32))
            _write_samples(folder, chosen, judges, report, passed)
            models = {FLOAT32: float32.blob} | {file.precision: file.blob for file in passed}
            for file in passed:
                layout.write_model(folder, file.precision, file.blob)
            tell.note("measuring how long each file takes")
            costs = bundle_profile.measure(chosen.network, chosen.info.preprocessing.size, models)
            artefacts.write(folder / layout.PROFILE, costs)
            counts = {"train": len(dataset.train), "validation": len(dataset.val), "test": len(dataset.test)}
            story = Story(
                chosen.info, result, resolved.recipe.portable(), counts, reports, costs, dataset.skipped, licence
            )
            write(folder / layout.CARD, card(story).encode())
            write(folder / layout.CLIENT, (catalog.folder("export") / "python" / "run.py").read_bytes())
            layout.write_manifest(
                folder, _manifest(chosen, result, resolved.recipe.portable(), dataset, report, costs, story)
            )
    except CheckFailed as error:
        if earlier:
            error.details = (*error.details, f"the earlier bundle {target} is untouched")
        raise
    if gone := [precision for precision in earlier if precision not in models]:
        tell.note(f"the bundle that was in {target} had {', '.join(gone)}, this one has not")
    errors += _set_aside(target, reports, [file for file in files if not file.report.passed])
    return Exported(target, reports, _joined(errors, target))


def _judges(dataset: Dataset, classes: tuple[str, ...], tell: Progress) -> Judges:
    """The images that judge the student, and some of them for the bundle."""
    split, rows = dataset.final_split
    if split != "test":
        tell.note("the data has no test split: parity is checked on the validation images")
    images = Split(dataset, rows)
    return Judges(images, dataset.labels[rows].numpy(), classes, split, images[_sample_rows(images)])


def _sample_rows(images: Images) -> npt.NDArray[np.int64]:
    """Evenly spread, so that they are of several classes."""
    return np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(np.int64)


def _float32(
    folder: Path, target: Path, student: Student, judges: Judges, tell: Progress
) -> tuple[Float32, StudentReport]:
    """model.onnx in `folder` with its answers, and how it was proven equal to the student, or CheckFailed."""
    tell.note("exporting to ONNX")
    path = layout.write_model(folder, FLOAT32, onnx.to_onnx(student.network, student.info))
    blob = path.read_bytes()
    check_structure(blob, student.info)
    tell.note(f"checking parity on {len(judges.images):,} {judges.split} images")
    record = student.result
    if record.judged_device != "cpu":
        before = f"{record.top1_pct:.2f} % on {record.judged_device}"
        tell.note(f"student{record.student} was judged with {before}: it is judged again on the CPU, for the bundle")
    report, logits = parity.check(
        path,
        student.network,
        student.info,
        judges.images,
        judges.labels,
        record.top1_pct,
        judges.split,
        record.judged_device,
    )
    if not report.passed:
        artefacts.write(folder / layout.PARITY, Parity(schema=1, float32=report))
        raise CheckFailed(
            "parity",
            f"model.onnx did not pass: {report.failures[0]}",
            hint=f"likely cause: {report.cause}",
            details=[*report.failures[1:], f"report: {layout.rejected(target) / layout.PARITY}"],
        )
    return Float32(blob, logits), report


def _write_samples(
    folder: Path, student: Student, judges: Judges, report: StudentReport, passed: Sequence[Reduced]
) -> None:
    """The samples with the answers of PyTorch for the float32 model, and of each reduced file for itself."""
    logits = Torch(student.network, student.info.preprocessing).logits(judges.samples)
    tolerance = report.logits.allowed["images"]
    assert tolerance is not None  # a student whose answers are not finite did not pass
    expected = {FLOAT32: (logits, tolerance)} | {file.precision: file.samples for file in passed}
    labels = judges.labels[_sample_rows(judges.images)].tolist()
    layout.write_samples(folder, judges.samples, labels, expected)


def _manifest(
    student: Student,
    result: Result,
    recipe: Mapping[str, Any],
    dataset: Dataset,
    report: StudentReport,
    costs: Profile,
    story: Story,
) -> Manifest:
    """All of manifest.json but `files`. Nothing in it says where things lay."""
    info, rule = student.info, student.info.preprocessing
    split, rows = dataset.final_split
    part, places = dataset.part_of(rows)
    judged_on = {"sha256": report.images_sha256, "part": part, "rows": places}
    return Manifest(
        schema=1,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        okdc=__version__,
        models={
            name: Model(
                file=layout.MODELS[name],
                top1_pct=value,
                balanced_accuracy_pct=story.parity.balanced_accuracy_pct(name),
            )
            for name, value in story.top1_pct.items()
        },
        opset=OPSET,
        architecture=info.architecture,
        labels=info.classes,
        input=Input(name="image", **layout.input_of(rule)),
        normalisation=Normalisation(in_graph=True, mean=rule.mean, std=rule.std),
        outputs={"logits": "float32 NK", "probabilities": "float32 NK, softmax of the logits"},
        accuracy=Accuracy(
            split=split,
            images=len(rows),
            largest_class_pct=report.largest_class_pct,
            smallest_class_pct=report.smallest_class_pct,
            seed=recipe["seed"],
            runs=1,
        ),
        judged_on=JudgedOn.model_validate(judged_on),
        method=info.method,
        student=info.student,
        dataset=info.dataset,
        students=result.students,
        share=result.share,
        teacher=result.teacher,
        params=costs.params,
        macs=costs.macs,
        versions=report.versions,
        data_sha256=dataset.fingerprint,
        weights_sha256=info.weights_sha256,
        recipe_sha256=info.recipe_sha256,
        recipe=dict(recipe),
        files={},
    )


def _set_aside(target: Path, reports: Parity, failed: Sequence[Reduced]) -> list[OkdcError]:
    """Put reduced files that failed their gate aside. Returns their error, if there are any."""
    if not failed:
        return []
    aside = layout.set_aside(target, {file.precision: file.blob for file in failed}, reports)
    first, *others = failed
    layers = reports.int8.worst_layers if reports.int8 and first.precision == "int8" else None
    error = CheckFailed(
        first.precision,
        f"{layout.MODELS[first.precision]} did not pass: {first.report.failures[0]}",
        hint="--diagnose names the layers that lose most; --max-drop and --min-agreement say what is allowed"
        if layers is None
        else "a network with more room, more training, or float16",
        details=[
            *first.report.failures[1:],
            *(f"{layout.MODELS[file.precision]}: {line}" for file in others for line in file.report.failures),
            *(f"{layer.sqnr_db:.1f} dB  {layer.operator} {layer.weight or layer.node}" for layer in layers or ()),
            f"it is in {aside} with its report",
        ],
    )
    return [error]


def _joined(errors: Sequence[OkdcError], target: Path) -> OkdcError | None:
    """The first error, with the others among its details."""
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
