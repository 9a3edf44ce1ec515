"""`okdc profile`: what each network costs, side by side, and what a run threw away.

A name is a network as it comes from the zoo (10 classes, 3×32×32) or from outside (1000 classes, 3×224×224), a recipe
its students and the whole that is trained, a complete run its students as they were trained. Networks of one
architecture, size and number of classes are measured once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from okdc import backbones
from okdc.assembly import job as build
from okdc.assembly import reopen
from okdc.assembly.resolve import resolve
from okdc.assembly.student import square
from okdc.bundle.layout import MANIFEST, PROFILE
from okdc.data import sources
from okdc.errors import RecipeError, RunError, UsageError, nearest
from okdc.methods.base import Batch, Method
from okdc.profiling import students
from okdc.profiling.measure import Measured, Subject, measure, networks
from okdc.progress import Listener
from okdc.recipe import catalog
from okdc.recipe.schema import TEACHER, Recipe, load
from okdc.runs.provenance import processor
from okdc.runs.run import Run, runs

CLASSES, SIZE = 10, 32  # of a bare name
FOREIGN_CLASSES, FOREIGN_SIZE = 1000, 224  # of torchvision:NAME and the like, which are drawn for ImageNet


class _Heads(nn.Module):
    """A method as a function of images alone, for the counters: every head's logits."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        batch = Batch(images, torch.zeros(len(images), dtype=torch.int64))
        return tuple(self.method(batch, torch.ones(())).logits.values())


def profile(words: Sequence[str], export_names: bool, threads: int, tell: Listener) -> dict[str, Any]:
    """The report that `okdc profile --json` prints. No word: the newest complete run.

    Raises UsageError for a word that names nothing, CheckFailed where the two counters disagree.
    """
    run: Run | None = None
    subjects: list[Subject] = []
    if not words:
        run = Run.newest("complete")
        tell.note(f"nothing named: {run.path} is the newest complete run")
        words = [str(run.path)]
    for word in words:
        if (Path(word) / "run.json").is_file():
            run = Run.open(Path(word))
            subjects += _of_run(run, tell)
        elif backbones.is_name(word):
            size, classes = (FOREIGN_SIZE, FOREIGN_CLASSES) if ":" in word else (SIZE, CLASSES)
            subjects.append(_network(word, word, "network", size, classes, export_names))
        elif Path(word).is_file() or catalog.find_recipe(word):
            subjects += _of_recipe(word, export_names, tell)
        else:
            raise _unknown(word)
    alike = networks(subjects)
    shared = {key: measure(network, threads, tell) for key, network in alike.items()}
    rows = [_row(s, measure(s, threads, tell) if s.kind == "training" else shared[s.key]) for s in subjects]
    for run_ in {s.run for s in subjects if s.run}:
        mark_front([row for row in rows if row["run"] == run_])
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
                "stages": shared[key].stages,
            }
            for key, network in alike.items()
        ],
        "latency": {"batch": 1, "threads": threads, "processor": processor()[0]},
    }


# ---------------------------------------------------------------------------------------------------------------------
# What a word names


def _unknown(word: str) -> UsageError:
    if (Path(word) / MANIFEST).is_file():
        return UsageError(f"{word} is a bundle: it was profiled when it was made", hint=f"see {Path(word) / PROFILE}")
    known = [*backbones.ZOO, *catalog.recipes(), *(str(r.path) for r in runs())]
    return UsageError(
        f"{word} is no run, network or recipe{nearest(word, known)}",
        hint=f"networks: {', '.join(backbones.ZOO)}; okdc recipes and okdc runs list the rest",
    )


def _network(label: str, name: str, kind: str, size: int, classes: int, export: bool) -> Subject:
    return Subject(
        label,
        kind,
        name,
        backbones.build(name, classes, square(size)).eval(),
        size,
        classes,
        export=export,
    )


def _of_recipe(word: str, export: bool, tell: Listener) -> list[Subject]:
    recipe, notes = resolve(load([word]), needs_data=False)
    classes = sources.count_classes(recipe.data)
    if classes is None:
        classes = CLASSES
        notes.append(f"no images at {recipe.data.root or 'data.root'}: counted with {CLASSES} classes")
    for note in notes:
        tell.note(note)
    names = dict.fromkeys(build.architectures(recipe))
    students = [_network(name, name, "student", recipe.data.image_size, classes, export) for name in names]
    return [*students, _whole(recipe, classes)]


def _of_run(run: Run, tell: Listener) -> list[Subject]:
    (recipe, _), classes = reopen.recipe_of(run), len(run.facts("classes")["classes"])
    size = recipe.data.image_size
    whole: list[Subject] = []
    try:
        whole.append(_whole(recipe, classes))
    except (RecipeError, RunError) as error:  # a teacher that is gone: what it taught can be counted all the same
        tell.note(f"the training as a whole is not counted: {error.message}")
    if run.state == "complete":
        return [*students.subjects(run), *whole]
    cohort = build.cohort(recipe, square(size), classes)[0].eval()
    untrained = [
        Subject(f"student{k}", "student", student.architecture, student, size, classes, export=True)
        for k, student in enumerate(cohort.backbones())
    ]
    return [*untrained, *whole]


def _whole(recipe: Recipe, classes: int) -> Subject:
    size = recipe.data.image_size
    teacher = build.teacher(recipe, square(size), classes)
    if teacher and recipe.method.get(TEACHER) not in (None, teacher.sha256):
        raise RunError(f"{teacher.where} is another teacher now than the one that taught")
    method, _ = build.method(recipe, square(size), classes, teacher.network if teacher else None)
    name = f"training ({recipe.method['name']})"
    return Subject(name, "training", name, _Heads(method).eval(), size, classes)


# ---------------------------------------------------------------------------------------------------------------------
# What is said of it


def _row(subject: Subject, found: Measured) -> dict[str, Any]:
    result = subject.result or {}
    return {
        "name": subject.name,
        "kind": subject.kind,
        "architecture": subject.architecture,
        "run": subject.run,
        "student": subject.student,
        "kept": subject.kept,
        "front": None,  # true or false among the students of a complete run
        **{key: result.get(key) for key in ("epoch", "val_top1_pct", "top1_pct", "judged_on", "images")},
        "input": [3, subject.size, subject.size],
        "classes": subject.classes,
        **found.counts.facts(),
        "lower_bound": bool(found.counts.uncounted),
        "onnx_bytes": found.onnx_bytes,
        **{
            f"latency_ms_{quantile}_{engine}": found.latency_ms.get(engine, {}).get(quantile)
            for engine in ("torch", "onnxruntime")
            for quantile in ("p50", "p90")
        },
    }


# What a choice weighs: more of the first, less of the others. The test images choose nothing.
MORE, LESS = "val_top1_pct", ("params", "macs", "onnx_bytes", "latency_ms_p50_onnxruntime")


def mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """`front` of each student of a run: true where no other is at least as good in everything and better in one thing.

    What nobody knows (accuracy, where nothing was validated) is equal.
    """
    scores = [[row[MORE] or 0.0, *(-(row[key] or 0) for key in LESS)] for row in rows]
    for row, own in zip(rows, scores, strict=True):
        beaten = (other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in scores)
        row["front"] = not any(beaten)


def _shrink(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """How many times smaller the kept student is than what was trained."""
    whole = [row for row in rows if row["kind"] == "training"]
    kept = [row for row in rows if row["kept"]]
    if len(whole) != 1 or len(kept) != 1:
        return None
    return {what: round(whole[0][what] / kept[0][what], 3) for what in ("params", "macs")}
