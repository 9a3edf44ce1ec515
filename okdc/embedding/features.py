"""`okdc features`: what the classifiers of a run read of the images that judged it (FEFR section 4.6, figure 9).

The paper shows t-SNE maps of the features before the last linear layer, of each student and of the fused classifier.
Here the features themselves are written, with such a map, and with two numbers that a map hides: t-SNE draws clusters
where the space has none.

All heads are those of the last epoch, from the run's checkpoint. The kept student may be of an earlier one: it comes
from its file. Shapes: N images, C components.
"""

from __future__ import annotations

import io
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly import reopen
from okdc.assembly import student as students
from okdc.assembly import teacher as teachers
from okdc.assembly.resolve import ResolvedRecipe
from okdc.assembly.student import square
from okdc.data.batches import EVAL_BATCH, eval_batches
from okdc.data.datasets import Dataset
from okdc.embedding.neighbourhood import Features, knn_pct, silhouette, tsne
from okdc.errors import RunError, UsageError
from okdc.kernels import global_average
from okdc.methods.base import Batch, Method
from okdc.progress import EachNoteOnce, Progress
from okdc.runs.files import refuse_other, write
from okdc.runs.run import RunDir
from okdc.seeds import generator
from okdc.training import checkpoint

FILE = "features.npz"
KEPT = "kept"
NEIGHBOURS = 10
MOST_IMAGES = 10_000  # distances grow with the square: a minute for ten thousand
POINTS = 2_000  # of a map: t-SNE takes some ten seconds for two thousand


def features(
    paths: Sequence[Path],
    tell: Progress,
    out: Path | None = None,
    data_root: str | None = None,
    neighbours: int = NEIGHBOURS,
    images: int = MOST_IMAGES,
    points: int = POINTS,
) -> dict[str, Any]:
    """The report that `okdc features --json` prints; each run's features go to RUN/features.npz, or to `out`.

    `images`: at most so many of the judging images. `points` of them get a place in the map, 0: there is none.

    Raises RunError for a run that is not complete or has lost its checkpoint, DataError where its images are missing or
    others, UsageError for an `out` that is no file of features or for several runs, and for more neighbours than other
    images, DiskError where a file cannot be written.
    """
    if out is not None and len(paths) > 1:
        raise UsageError(f"--out names one file, and there are {len(paths)} runs", hint="leave it out")
    runs = [RunDir.open(path) for path in paths]
    for run in runs:  # what can be seen at once is said before an hour of other runs
        students.recorded(run)
        if not checkpoint.is_written(run):
            raise _without_checkpoint(run)
        refuse_other(out or run.path / FILE, _holds_features, "--out", "file of features")
    once = EachNoteOnce(tell)
    return {"schema": 1, "runs": [_of_run(run, out, data_root, neighbours, images, points, once) for run in runs]}


def _holds_features(file: Path) -> bool:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as there:
            return any(name.startswith("features_") for name in there.files)
    except Exception:  # numpy and zipfile raise kinds of their own
        return False


def _without_checkpoint(run: RunDir) -> RunError:
    return RunError(
        f"{run.path}: its checkpoint is gone, and the last epoch's peers and fused classifier with it",
        hint="okdc profile and okdc export need the student's file alone",
    )


def _of_run(
    run: RunDir, out: Path | None, data_root: str | None, neighbours: int, images: int, points: int, tell: Progress
) -> dict[str, Any]:
    resolved = reopen.recipe_of(run, data_root)
    for note in resolved.notes:
        tell.note(note)
    dataset = reopen.data_of(run, resolved, tell)
    embedded = embed(run, resolved, dataset, neighbours, images, points, tell)
    file = out or run.path / FILE
    _write(file, embedded.arrays())
    return {"run": str(run.path), "file": str(file), **embedded.report}


@dataclass(frozen=True)
class Embedded:
    """The features of some judging images, by head."""

    report: dict[str, Any]  # without the names of the run and of its file
    rows: npt.NDArray[np.int64]  # N, in the data set
    labels: npt.NDArray[np.int64]  # N
    classes: tuple[str, ...]
    features: Mapping[str, Features]  # NC each
    mapped: npt.NDArray[np.int64]  # P places in `rows` of the images on the map
    maps: Mapping[str, Features]  # P2 each; empty without a map

    def arrays(self) -> dict[str, Any]:
        """Those of features.npz."""
        arrays: dict[str, Any] = {
            "rows": self.rows,
            "labels": self.labels,
            "classes": np.array(self.classes),
            "heads": np.array([*self.features]),
            "neighbours": np.array(self.report["neighbours"]),
            "knn_pct": np.array([row["knn_pct"] for row in self.report["heads"]]),
            "silhouette": np.array([row["silhouette"] for row in self.report["heads"]], np.float64),  # NaN: none
        }
        arrays |= {f"features_{head}": of_head for head, of_head in self.features.items()}
        arrays |= {f"tsne_{head}": flat for head, flat in self.maps.items()}
        return arrays | ({"tsne_images": self.mapped} if self.maps else {})


def embed(
    run: RunDir, resolved: ResolvedRecipe, dataset: Dataset, neighbours: int, images: int, points: int, tell: Progress
) -> Embedded:
    """The features of a complete run on its own `dataset`, in memory. The other arguments are those of `features`.

    Raises RunError for a run that has lost its checkpoint, UsageError for more neighbours than other images.
    """
    result = students.recorded(run)
    method = _as_trained(run, resolved, dataset, tell)
    split, judging = dataset.final_split
    if split != "test":
        tell.note("the data has no test split: the validation images also chose the student")
    rows = judging[_some(len(judging), images, result.seed, "images")]
    if len(rows) <= neighbours:
        raise UsageError(f"{neighbours} neighbours need {neighbours + 1} images, {run.path} has {len(rows)}")
    labels = dataset.labels[rows].numpy()
    kept = students.load(run)
    normalise = students.normalise(kept.info.preprocessing)
    batches = (Batch(x, y) for x, y in eval_batches(dataset, rows, normalise, EVAL_BATCH))
    accuracies = result.heads_last_epoch_top1_pct | {KEPT: result.kept.top1_pct}
    by_head = _joined(
        accuracies, (method.features(batch) | {KEPT: global_average(_last_map(kept, batch))} for batch in batches)
    )
    mapped = _some(len(rows), points, result.seed, "map")
    heads, maps = [], {}
    for head, of_head in by_head.items():
        if len(mapped) > 2:
            maps[head] = tsne(of_head[mapped], result.seed)
        heads.append(
            {
                "head": head,
                "components": of_head.shape[1],
                "knn_pct": knn_pct(of_head, labels, neighbours),
                "silhouette": silhouette(of_head, labels),
                "top1_pct": accuracies[head],
            }
        )
    report = {
        "method": result.variant,
        "seed": result.seed,
        "split": split,
        "images": len(rows),
        "judging_images": len(judging),
        "neighbours": neighbours,
        "points": len(mapped) if maps else 0,
        "kept_student": result.kept.student,
        "kept_epoch": result.kept.epoch,
        "last_epoch": result.last_epoch,
        "heads": heads,
        "without_features": [head for head in accuracies if head not in by_head],
    }
    return Embedded(report, rows.numpy(), labels, dataset.classes, by_head, mapped.numpy(), maps)


def _as_trained(run: RunDir, resolved: ResolvedRecipe, dataset: Dataset, tell: Progress) -> Method:
    """The run's method with the weights of its last epoch, in eval mode on the CPU."""
    state, notes = checkpoint.load(run)
    for note in notes:
        tell.note(note)
    if state is None or state["epoch"] != run.read_result().last_epoch:
        raise _without_checkpoint(run)
    classes, teacher = len(dataset.classes), run.read_result().teacher
    if teacher and resolved.kind.features is Method.features:  # of the students: the teacher need not be there any more
        images = square(resolved.recipe.data.image_size)
        method, _ = assembly.method(resolved, images, classes, backbones.build(teacher.architecture, classes, images))
        own = {name: t for name, t in state["method"].items() if name.startswith("cohort.")}
        method.cohort.load_state_dict({name.removeprefix("cohort."): t for name, t in own.items()})
    else:
        assembled = assembly.assemble(resolved, classes)
        method = assembled.method
        if assembled.teacher:
            teachers.renormalise(method, assembled.teacher, *assembly.normalisation_of(resolved.recipe, dataset))
        method.load_state_dict(state["method"])
    return method.eval()


def _some(count: int, most: int, seed: int, purpose: str) -> Tensor:
    """At most so many of `count` places, drawn by the run's seed, in order."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator(seed, "features", purpose))[:most].sort().values


def _last_map(student: students.Student, batch: Batch) -> Tensor:
    x = batch.images
    for stage in student.network.stages:
        x = stage(x)
    return x


@torch.inference_mode()
def _joined(judged: Container[str], parts: Iterable[dict[str, Tensor]]) -> dict[str, Features]:
    """The features of all batches, NC float32 a judged head."""
    lists: dict[str, list[Tensor]] = {}
    for part in parts:
        for head, of_batch in part.items():
            if head in judged:
                lists.setdefault(head, []).append(of_batch.float().cpu())
    return {head: torch.cat(of_head).numpy() for head, of_head in lists.items()}


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """Replace the file in one step. Raises DiskError."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write(path, buffer.getvalue())
