"""`okdc profile`: what each network costs, side by side, and what a run threw away.

A name is a network as it comes from the zoo (10 classes, 3×32×32) or from outside (1000 classes, 3×224×224), a recipe
its students and the whole that is trained, a run also what was kept. Networks of one architecture, size and number of
classes are measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from okdc import backbones, build, catalog, kept, reopen
from okdc.bundle.layout import FLOAT32, MANIFEST, MODELS
from okdc.bundle.session import Session
from okdc.cohort import Backbone
from okdc.data import sources
from okdc.deploy import latency, onnx
from okdc.deploy.count import Counts, count
from okdc.errors import RecipeError, RunError, UsageError, nearest
from okdc.files import read_json
from okdc.kept import square
from okdc.machine import processor
from okdc.methods.method import Method
from okdc.names import TEACHER
from okdc.recipe import Recipe, load
from okdc.resolve import resolve
from okdc.run import Run, runs
from okdc.talk import Listener

CLASSES, SIZE = 10, 32  # of a bare name
FOREIGN_CLASSES, FOREIGN_SIZE = 1000, 224  # of torchvision:NAME and the like, which are drawn for ImageNet


@dataclass(frozen=True)
class Subject:
    """One row: something to count."""

    name: str
    kind: str  # network, student, training or kept
    architecture: str
    module: nn.Module
    size: int
    classes: int
    model: bytes | None = None  # an ONNX file that is there already
    export: bool = False

    @property
    def key(self) -> tuple[str, int, int]:
        return self.architecture, self.size, self.classes


@dataclass
class Measured:
    """What is the same for all rows of one architecture."""

    counts: Counts
    onnx_bytes: int | None = None
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)


class _Heads(nn.Module):
    """A method as a function of images alone, for the counters: every head's logits."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return tuple(self.method(images, labels, torch.ones(())).logits.values())


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
            known = [*backbones.ZOO, *catalog.recipes(), *(str(r.path) for r in runs())]
            raise UsageError(
                f"{word} is no run, network or recipe{nearest(word, known)}", hint="there is: " + ", ".join(known)
            )
    # Networks of one architecture, size and number of classes are one: whichever row has a file lends it to the others.
    networks: dict[tuple[str, int, int], Subject] = {}
    for subject in subjects:
        if subject.kind != "training":
            before = networks.setdefault(subject.key, subject)
            networks[subject.key] = replace(
                before, model=before.model or subject.model, export=before.export or subject.export
            )
    shared = {key: _measure(network, threads, tell) for key, network in networks.items()}
    rows = [_row(s, _measure(s, threads, tell) if s.kind == "training" else shared[s.key]) for s in subjects]
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
            for key, network in networks.items()
        ],
        "latency": {"batch": 1, "threads": threads, "processor": processor()[0]},
    }


# ---------------------------------------------------------------------------------------------------------------------
# What a word names


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
        cohort = build.cohort(recipe, square(size), classes)[0].eval()
    else:
        assert isinstance(whole[0].module, _Heads)
        cohort = whole[0].module.method.cohort
    subjects = [
        Subject(f"student{k}", "student", student.architecture, student, size, classes, export=True)
        for k, student in enumerate(cohort.backbones())
    ]
    subjects += whole
    if run.state == "complete":
        network, facts = kept.load(run)
        name, model = f"kept (student{facts['student']})", _bundled(run, facts)
        subjects.append(Subject(name, "kept", facts["architecture"], network, size, classes, model))
    return subjects


def _bundled(run: Run, facts: dict[str, Any]) -> bytes | None:
    """The model of the run's own bundle, if it is of these very weights."""
    folder = run.path / "bundle"
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST, "weights_sha256")
    return (folder / MODELS[FLOAT32]).read_bytes() if manifest["weights_sha256"] == facts["weights_sha256"] else None


def _whole(recipe: Recipe, classes: int) -> Subject:
    size = recipe.data.image_size
    teacher = build.teacher(recipe, square(size), classes)
    if teacher and recipe.method.get(TEACHER) not in (None, teacher.sha256):
        raise RunError(f"{teacher.where} is another teacher now than the one that taught")
    method, _ = build.method(recipe, square(size), classes, teacher.network if teacher else None)
    name = f"training ({recipe.method['name']})"
    return Subject(name, "training", name, _Heads(method).eval(), size, classes)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def _measure(subject: Subject, threads: int, tell: Listener) -> Measured:
    example = torch.zeros(1, 3, subject.size, subject.size)
    found = Measured(count(subject.module, example))
    if not isinstance(subject.module, Backbone):
        return found
    found.stages = _stages(subject.module, found.counts, example)
    model = subject.model
    facts = _plain_facts(subject)
    if model is None and subject.export:
        tell.note(f"exporting {subject.architecture} for its file size and latency")
        model = onnx.to_onnx(subject.module, facts)
    rule = facts["preprocessing"]
    deploy = onnx.Deploy(subject.module, rule["mean"], rule["std"]).eval()
    image = torch.zeros(1, subject.size, subject.size, 3, dtype=torch.uint8)
    variants: dict[str, Callable[[], object]] = {"torch": lambda: deploy(image)}
    if model is not None:
        found.onnx_bytes = len(model)
        session, pixels = Session(model, threads), np.zeros((1, subject.size, subject.size, 3), np.uint8)
        variants["onnxruntime"] = lambda: session(pixels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found.latency_ms = latency.measure(variants)
    finally:
        torch.set_num_threads(before)
    return found


def _plain_facts(subject: Subject) -> dict[str, Any]:
    """What an export needs to be told of a network that nothing was trained on; sizes and times do not depend on it."""
    return {
        "architecture": subject.architecture,
        "classes": [str(c) for c in range(subject.classes)],
        "preprocessing": {"size": subject.size, "resize": "", "mean": [0.5] * 3, "std": [0.25] * 3},
        "method": "none",
        "dataset": "none",
        "recipe_sha256": "",
        "weights_sha256": "",
    }


@torch.inference_mode()
def _stages(network: Backbone, counts: Counts, example: Tensor) -> list[dict[str, Any]]:
    """One line a stage and one for the head: output size, parameters, MACs."""
    rows, x = [], example
    parts = [(f"stages.{i}", stage) for i, stage in enumerate(network.stages)] + [("head", network.head)]
    for name, part in parts:
        x = part(x)
        params = sum(p.numel() for p in part.parameters())
        rows.append({"stage": name, "output": list(x.shape[1:]), "params": params, "macs": counts.modules[name]})
    return rows


def _row(subject: Subject, found: Measured) -> dict[str, Any]:
    return {
        "name": subject.name,
        "kind": subject.kind,
        "architecture": subject.architecture,
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


def _shrink(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """How many times smaller the kept student is than what was trained."""
    whole = [row for row in rows if row["kind"] == "training"]
    kept = [row for row in rows if row["kind"] == "kept"]
    if len(whole) != 1 or len(kept) != 1:
        return None
    return {what: round(whole[0][what] / kept[0][what], 3) for what in ("params", "macs")}
