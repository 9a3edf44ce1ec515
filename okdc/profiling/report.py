"""`okdc profile`: the costs of networks side by side, and of all that a run trained and threw away.

A name is a network as it comes from the zoo (10 classes, 3×32×32) or from outside (1000 classes, 3×224×224), a recipe
its students and the whole that is trained, a complete run its students as they were trained. Networks of one
architecture, size and number of classes are measured once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly import reopen
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.assembly.student import square
from okdc.bundle.layout import MANIFEST, PROFILE
from okdc.data.workers import refuse_too_many
from okdc.deploy.count import Counts
from okdc.errors import CheckFailed, RecipeError, RunError, UsageError, nearest
from okdc.profiling import heads, students
from okdc.profiling.heads import Head, Heads
from okdc.profiling.measure import Measured, Subject, measure, networks
from okdc.progress import Progress
from okdc.recipe import catalog
from okdc.recipe.draft import load
from okdc.runs.provenance import processor
from okdc.runs.run import RunDir, runs

CLASSES, SIZE = 10, 32  # of a bare name
FOREIGN_CLASSES, FOREIGN_SIZE = 1000, 224  # of torchvision:NAME and the like, which are drawn for ImageNet


def profile(words: Sequence[str], export_names: bool, threads: int, tell: Progress) -> dict[str, Any]:
    """The report that `okdc profile --json` prints. No word: the newest complete run.

    Raises UsageError for a word that names nothing, DeviceError for too many threads, CheckFailed where the two
    counters disagree.
    """
    refuse_too_many("threads", threads)
    run: RunDir | None = None
    subjects: list[Subject] = []
    if not words:
        run = RunDir.newest_complete(tell.note)
        words = [str(run.path)]
    for word in words:
        if RunDir.is_at(Path(word)):
            run = RunDir.open(Path(word))
            subjects += _of_run(run, tell)
        elif backbones.is_name(word):
            size, classes = (FOREIGN_SIZE, FOREIGN_CLASSES) if ":" in word else (SIZE, CLASSES)
            subjects.append(_network(word, "network", size, classes, export_names))
        elif Path(word).is_file() or catalog.find_recipe(word):
            subjects += _of_recipe(word, export_names, tell)
        else:
            raise _unknown(word)
    by_key = networks(subjects)
    measured = {key: measure(network, threads, tell) for key, network in by_key.items()}
    rows = []
    for subject in subjects:
        if subject.kind != "training":
            rows.append(_row(subject, measured[subject.key]))
            continue
        whole = measure(subject, threads, tell)
        rows += [_row_of_head(head, subject, whole.counts) for head in subject.heads]
        rows.append(_row(subject, whole))
    for path in {row["run"] for row in rows if row["run"]}:
        mark_front([row for row in rows if row["run"] == path])
    return {
        "schema": 1,
        "run": str(run.path) if run else None,
        "rows": rows,
        "shrink": _shrink(rows),
        "stages": [
            {
                "architecture": network.architecture,
                "input": [3, network.size, network.size],
                "classes": network.classes,
                "stages": measured[key].stages,
            }
            for key, network in by_key.items()
        ],
        "latency": {"batch": 1, "threads": threads, "processor": processor()[0]},
    }


# ---------------------------------------------------------------------------------------------------------------------
# What a word names


def _unknown(word: str) -> UsageError:
    if (Path(word) / MANIFEST).is_file():
        return UsageError(f"{word} is a bundle: it was profiled when it was made", hint=f"see {Path(word) / PROFILE}")
    names = [*backbones.NETWORKS.names(), *catalog.recipes(), *(str(r.path) for r in runs())]
    return UsageError(
        f"{word} is no run, network or recipe{nearest(word, names)}",
        hint=f"networks: {', '.join(backbones.NETWORKS.names())}; okdc recipes and okdc runs list the rest",
    )


def _network(name: str, kind: Literal["network", "student"], size: int, classes: int, export: bool) -> Subject:
    return Subject(name, kind, name, backbones.build(name, classes, square(size)).eval(), size, classes, export=export)


def _of_recipe(word: str, export: bool, tell: Progress) -> list[Subject]:
    resolved = resolve(load([word]), needs_data=False)
    data, notes = resolved.recipe.data, list(resolved.notes)
    classes = resolved.classes
    if classes is None:
        classes = CLASSES
        notes.append(f"no images at {data.root or 'data.root'}: counted with {CLASSES} classes")
    for note in notes:
        tell.note(note)
    names = dict.fromkeys(resolved.architectures)
    students = [_network(name, "student", data.image_size, classes, export) for name in names]
    return [*students, _whole(resolved, classes)]


def _of_run(run: RunDir, tell: Progress) -> list[Subject]:
    resolved, classes = reopen.recipe_of(run), len(run.read_info().classes)
    size = resolved.recipe.data.image_size
    whole: list[Subject] = []
    try:
        whole.append(_whole(resolved, classes, heads.of_run(run) if run.state() == "complete" else ()))
    except (RecipeError, RunError, CheckFailed) as error:  # a teacher that is gone or another: its student counts
        tell.note(f"the training as a whole is not counted: {'; '.join((error.message, *error.details))}")
    if run.state() == "complete":
        return [*students.subjects(run), *whole]
    cohort = assembly.cohort(resolved, square(size), classes)[0].eval()
    untrained = [
        Subject(f"student{k}", "student", student.architecture, student, size, classes, export=True)
        for k, student in enumerate(cohort.backbones())
    ]
    return [*untrained, *whole]


def _whole(resolved: ResolvedRecipe, classes: int, judged: Sequence[Head] = ()) -> Subject:
    name = f"training ({resolved.recipe.method['name']})"
    whole = Heads(assembly.assemble(resolved, classes).method).eval()
    return Subject(name, "training", name, whole, resolved.recipe.data.image_size, classes, heads=tuple(judged))


# ---------------------------------------------------------------------------------------------------------------------
# The rows


def _row(subject: Subject, measured: Measured) -> dict[str, Any]:
    trained = subject.trained
    result = trained.student.result.to_json() if trained else {}
    return {
        "name": subject.name,
        "kind": subject.kind,
        "architecture": subject.architecture,
        "run": str(trained.run) if trained else None,
        "student": result.get("student"),
        "kept": trained is not None and trained.is_kept,
        "front": None,  # true or false among the classifiers of a complete run
        **{key: result.get(key) for key in ("epoch", "val_top1_pct", "top1_pct")},
        "judged_on": trained.record.judged_on if trained else None,
        "judged_device": result.get("judged_device"),
        "images": trained.record.images if trained else None,
        "input": [3, subject.size, subject.size],
        "classes": subject.classes,
        **measured.counts.to_json(),
        "lower_bound": bool(measured.counts.uncounted),
        "onnx_bytes": measured.onnx_bytes,
        **{
            f"latency_ms_{quantile}_{engine}": measured.latency_ms.get(engine, {}).get(quantile)
            for engine in ("torch", "onnxruntime")
            for quantile in ("p50", "p90")
        },
    }


def _row_of_head(head: Head, subject: Subject, counts: Counts) -> dict[str, Any]:
    """A classifier that is thrown away: at its last epoch, with what it needs of the whole."""
    assert isinstance(subject.module, Heads)
    part = Subject(head.name, "head", head.name, subject.module, subject.size, subject.classes)
    needed = heads.needed(subject.module, head.name, counts, torch.zeros(1, *square(subject.size)))
    return _row(part, Measured(needed)) | {
        "run": str(head.run.path),
        "epoch": head.result.last_epoch,
        "val_top1_pct": head.val_top1_pct,
        "top1_pct": head.top1_pct,
        "judged_on": head.result.judged_on,
        "images": head.result.images,
    }


# A choice weighs these: more of the first, less of the others. The test images choose nothing.
Score = Sequence[float | None]
MORE, LESS = "val_top1_pct", ("params", "macs", "onnx_bytes", "latency_ms_p50_onnxruntime")


def mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """`front` of each row of a run: true where no other is at least as good in everything and better in one thing.

    Two are compared in what is known of both: nobody validates without images, and what is thrown away has no file.
    """
    scores = [[row[MORE], *(None if row[key] is None else -row[key] for key in LESS)] for row in rows]

    def beats(other: Score, score: Score) -> bool:
        known = [(a, b) for a, b in zip(other, score, strict=True) if a is not None and b is not None]
        return all(a >= b for a, b in known) and any(a > b for a, b in known)

    for row, score in zip(rows, scores, strict=True):
        row["front"] = not any(beats(other, score) for other in scores)


def _shrink(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """How many times smaller the kept student is than the whole that was trained."""
    whole = [row for row in rows if row["kind"] == "training"]
    kept = [row for row in rows if row["kept"]]
    if len(whole) != 1 or len(kept) != 1:
        return None
    return {what: round(whole[0][what] / kept[0][what], 3) for what in ("params", "macs")}
