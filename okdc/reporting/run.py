"""What the page says of one run, as the tables that `okdc report --json` prints."""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from okdc.assembly import reopen
from okdc.assembly.names import namer
from okdc.assembly.resolve import ResolvedRecipe
from okdc.data.datasets import Dataset
from okdc.data.source import Source
from okdc.embedding import features as embedding
from okdc.errors import DataError, OkdcError, RunError
from okdc.methods.base import ramp
from okdc.profiling.report import profile
from okdc.progress import Progress
from okdc.reporting import answers, bundled, curves, pictures
from okdc.reporting.answers import MOST_CLASSES
from okdc.reporting.calibration import calibration
from okdc.runs import predictions
from okdc.runs.accuracy import interval_pct, not_above
from okdc.runs.artefacts import Result, RunInfo
from okdc.runs.mistakes import confused, confusion, extremes
from okdc.runs.predictions import Predictions
from okdc.runs.run import RunDir
from okdc.survey import folder as folders

MISTAKES, HITS = 24, 12  # pictures of each
MOST_PAIRS = 20  # confused classes that are named
EXAMPLES = 60  # pictures of the training images, the same number a class; of more classes one each
IMAGES, POINTS = 1_000, 600  # of a map that is computed for the page: some seconds
SPLITS = ("train", "val", "test")
Namer = Callable[[int], str]  # of the image in a row


@dataclass(frozen=True)
class Wanted:
    """`quick`: only what files say, without a map or a latency. `data_root`: where the images are now."""

    quick: bool = False
    data_root: str | None = None


def of_run(run: RunDir, wanted: Wanted, tell: Progress) -> dict[str, Any]:
    """The tables of a run in any state; those of answers are None before it is complete.

    What is missing on this machine, such as the images, is left out of the page: `missing` says why.

    Raises RunError where the run's files are damaged or name code that is not trusted, CheckFailed where its
    predictions are not those that it recorded.
    """
    info, resolved, state = run.read_info(), reopen.recipe_of(run, wanted.data_root), run.state()
    rows = run.rows()
    result = run.read_result() if state == "complete" else None
    facts: dict[str, Any] = {
        "run": str(run.path),
        "state": state,
        "failed": info.failed,
        "method": resolved.variant,
        "card": {"title": resolved.kind.title or resolved.kind.__name__, "summary": resolved.kind.summary},
        "title": resolved.recipe.about.title,
        "dataset": resolved.recipe.data.name,
        "classes": list(info.classes),
        "seed": resolved.recipe.seed,
        "students": list(resolved.architectures),
        "taught": resolved.has_teacher,
        "curves": curves.curves(rows, resolved.recipe.optim.epochs, _ramp(resolved, rows)),
        "time": {"split": curves.seconds(rows), "steps_s": result and result.seconds,
                 "images_per_s": result and result.images_per_s},
        "repeat": _repeat(run, info, resolved),
        "missing": [],
        **dict.fromkeys(
            ("result", "heads", "answers", "calibration", "mistakes", "hits", "data", "features", "costs", "bundle")
        ),
    }  # fmt: skip
    dataset = None
    if result is not None or not wanted.quick:
        dataset = _images(run, resolved, tell, facts["missing"])
    name: Namer = "image {}".format
    if dataset is not None:
        name = namer(resolved, dataset)
        facts["data"] = _data(resolved, dataset, name, wanted, tell)
    if result is not None:
        _complete(facts, run, result, resolved, dataset, name, wanted, tell)
    return facts


def _complete(
    facts: dict[str, Any],
    run: RunDir,
    result: Result,
    resolved: ResolvedRecipe,
    dataset: Dataset | None,
    name: Namer,
    wanted: Wanted,
    tell: Progress,
) -> None:
    """Fill in what a complete run has."""
    stored, classes = predictions.read(run.predictions, result), facts["classes"]
    judging, right = stored.judging, stored.students[result.kept.student]
    counts = confusion(judging, right)
    mistakes, hits = extremes(judging, right, MISTAKES, HITS)
    facts |= {
        "result": {
            "judged_on": result.judged_on,
            "images": result.images,
            "kept": result.kept.to_json() | {"interval_pct": interval_pct(result.kept.top1_pct, result.images)},
            "warning": not_above(result.kept.top1_pct, result.images, result.largest_class_pct),
            "largest_class_pct": result.largest_class_pct,
            "smallest_class_pct": result.smallest_class_pct,
            "last_epoch": result.last_epoch,
            "epochs": result.epochs,
            "share": result.share,
            "teacher": result.teacher and result.teacher.to_json(),
            "starts": [start and start.to_json() for start in result.starts],
        },
        "heads": heads(result, stored),
        "answers": {
            "confusion": counts.tolist(),
            "order": answers.shown_order(counts),
            "classes": answers.by_class(counts, classes),
            "pairs": confused(counts, classes, MOST_PAIRS),
        },
        "calibration": calibration(judging, stored.validation if result.judged_on == "test" else None),
    }
    rows = [each.row for each in (*mistakes, *hits)]
    urls = pictures.data_urls(dataset, rows) if dataset is not None else {}
    for key, chosen in (("mistakes", mistakes), ("hits", hits)):
        facts[key] = [asdict(each) | {"image": name(each.row), "picture": urls.get(each.row)} for each in chosen]
    facts["features"] = _features(run, resolved, dataset, wanted, tell, facts["missing"])
    facts["bundle"] = bundled.of_bundle(run, wanted.quick, wanted.data_root, tell, facts["missing"])
    if facts["bundle"] and dataset is not None:
        _picture_changes(facts["bundle"], dataset, name)
    if not wanted.quick:
        costs = profile([str(run.path)], False, 1, tell)
        facts["costs"] = {key: costs[key] for key in ("rows", "shrink", "latency")}


def _ramp(resolved: ResolvedRecipe, rows: Sequence[curves.Row]) -> list[float] | None:
    """The weight of distillation at the end of each epoch; None for a method without a ramp-up."""
    length = getattr(resolved.config, "rampup", None)
    if not length:
        return None
    done = torch.tensor([row["epoch"] / resolved.recipe.optim.epochs for row in rows], dtype=torch.float64)
    weights: list[float] = ramp(done, length).tolist()
    return weights


def _picture_changes(bundle: Mapping[str, Any], dataset: Dataset, name: Namer) -> None:
    """Name and show the images to which a reduced model answers otherwise: places in the split that judges."""
    judging = dataset.final_split[1].tolist()
    changed = [each for row in bundle["rows"] for each in row["changed"] or ()]
    urls = pictures.data_urls(dataset, [judging[each["place"]] for each in changed])
    for each in changed:
        row = judging[each["place"]]
        each |= {"image": name(row), "picture": urls[row]}


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def heads(result: Result, stored: Predictions) -> list[dict[str, Any]]:
    """A row a classifier: those of the last epoch, and the student that was kept."""
    n = result.images
    roles = {result.method_card.fused_head: "fused", "ensemble": "ensemble"}
    students = {f"student{k}": name for k, name in enumerate(result.students)}
    rows = [
        {
            "head": head,
            "role": roles.get(head, "student" if head in students else "other"),
            "network": students.get(head, ""),
            "epoch": result.last_epoch,
            "top1_pct": value,
            "interval_pct": interval_pct(value, n),
            "right": int(stored.heads[head].sum()),
        }
        for head, value in result.heads_last_epoch_top1_pct.items()
    ]
    kept = result.kept
    rows.append(
        {
            "head": "kept",
            "role": "kept",
            "network": kept.architecture,
            "student": kept.student,
            "epoch": kept.epoch,
            "top1_pct": kept.top1_pct,
            "interval_pct": interval_pct(kept.top1_pct, n),
            "right": int(stored.students[kept.student].sum()),
        }
    )
    return rows


def _repeat(run: RunDir, info: RunInfo, resolved: ResolvedRecipe) -> dict[str, Any]:
    return {
        "recipe_text": run.recipe.read_text(encoding="utf-8"),
        "recipe_sha256": info.recipe_sha256,
        "data_sha256": info.data_sha256,
        "weights_sha256": run.read_result().weights_sha256 if run.state() == "complete" else None,
        "started_at": info.started_at,
        "command": list(info.command),
        "versions": info.versions,
        "platform": info.platform,
        "processor": info.processor,
        "gpu": info.gpu,
        "settings": info.settings.to_json(),
        "reasons": list(info.reasons),
        "processes": info.trained_by,
        "deterministic": resolved.recipe.deterministic,
    }


def _images(run: RunDir, resolved: ResolvedRecipe, tell: Progress, missing: list[str]) -> Dataset | None:
    try:
        return reopen.data_of(run, resolved, tell)
    except DataError as error:
        missing.append(f"no pictures, no counts of the data: {error.message}")
        return None


def _data(resolved: ResolvedRecipe, dataset: Dataset, name: Namer, wanted: Wanted, tell: Progress) -> dict[str, Any]:
    labels = dataset.labels.numpy()
    of_split = {split: getattr(dataset, split).numpy() for split in SPLITS}
    counts = {split: np.bincount(labels[rows], minlength=len(dataset.classes)) for split, rows in of_split.items()}
    examples = examples_of(labels, of_split["train"], len(dataset.classes))
    urls = pictures.data_urls(dataset, [row for rows in examples for row in rows])
    data = resolved.recipe.data
    return {
        "images": {split: len(rows) for split, rows in of_split.items()},
        "classes": [
            {
                "class": label,
                **{split: int(counts[split][k]) for split in SPLITS},
                "examples": [{"image": name(row), "picture": urls[row]} for row in examples[k]],
            }
            for k, label in enumerate(dataset.classes)
        ],
        "image_size": data.image_size,
        "shorter_side": data.shorter_side,
        "file_sizes": None if wanted.quick else _file_sizes(resolved.source, data.root, tell),
        "skipped": list(dataset.skipped),
        "notes": list(dataset.notes),
    }


def examples_of(labels: Any, train: Any, classes: int) -> list[list[int]]:
    """Rows of training images, the first ones of each class: up to six, one of many classes, none of very many."""
    each = min(6, EXAMPLES // classes) or int(classes <= MOST_CLASSES)
    return [[int(row) for row in train[labels[train] == k][:each]] for k in range(classes)]


def _file_sizes(source: Source, root: str | None, tell: Progress) -> dict[str, Any] | None:
    """Widths and heights of the image files, the most frequent ones, and the shorter sides; None without files."""
    if not source.class_folders or root is None:
        return None
    try:
        with tell.reading() as progress:
            seen = folders.look(root, progress)
    except DataError:
        return None
    sizes = Counter((each.width, each.height) for each in seen.headers)
    sides = seen.shorter_sides
    return {
        "files": len(seen.headers),
        "most_frequent": [{"width": w, "height": h, "files": n} for (w, h), n in sizes.most_common(5)],
        "different": len(sizes),
        "shorter_side_px": {"smallest": sides[0], "median": seen.shorter_side, "largest": sides[-1]},
    }


def _features(
    run: RunDir, resolved: ResolvedRecipe, dataset: Dataset | None, wanted: Wanted, tell: Progress, missing: list[str]
) -> dict[str, Any] | None:
    """The maps of `okdc features`: those of its file where it is there, else of fewer images, computed now."""
    file = run.path / embedding.FILE
    if file.is_file():
        try:
            return _stored_map(file, run)
        except RunError as error:
            missing.append(f"features: {error.message}")
            return None
    if wanted.quick or dataset is None:
        missing.append(f"no map of the features: okdc features {shlex.quote(str(run.path))} writes one")
        return None
    images = min(IMAGES, len(dataset.final_split[1]))
    try:
        embedded = embedding.embed(run, resolved, dataset, min(embedding.NEIGHBOURS, images - 1), images, POINTS, tell)
    except OkdcError as error:
        missing.append(f"no map of the features: {error.message}")
        return None
    return _map(embedded.arrays())


def _stored_map(file: Path, run: RunDir) -> dict[str, Any] | None:
    """Raises RunError for a file of other images than the run's."""
    result = run.read_result()
    judging = predictions.read(run.predictions, result).judging
    labels = dict(zip(judging.rows.tolist(), judging.labels.tolist(), strict=True))
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if not name.startswith("features_")}
        whole = [labels.get(int(row)) for row in arrays["rows"]] == arrays["labels"].tolist()
        facts = _map(arrays) if whole else None
    except Exception as error:  # of zipfile, zlib and numpy
        raise RunError(f"{file} is damaged: {error or type(error).__name__}") from None
    if facts is None:
        raise RunError(f"{file} is of other images than {run.path}")
    return facts


def _map(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Points by head; coordinates from 0 to 1, in which a map fills its square."""
    names: Sequence[str] = [str(name) for name in arrays["heads"]]
    numbers = [
        {"head": name, "knn_pct": float(knn), "silhouette": None if np.isnan(silhouette) else float(silhouette)}
        for name, knn, silhouette in zip(names, arrays["knn_pct"], arrays["silhouette"], strict=True)
    ]
    facts = {"images": len(arrays["rows"]), "neighbours": int(arrays["neighbours"]), "numbers": numbers}
    if "tsne_images" not in arrays:
        return facts | {"labels": [], "maps": {}}
    maps = {}
    for name in names:
        flat = arrays[f"tsne_{name}"].astype(np.float64)
        low, high = flat.min(0), flat.max(0)
        middle, reach = (low + high) / 2, max(float((high - low).max()), 1e-9)
        maps[name] = np.round((flat - middle) / reach + 0.5, 4).tolist()
    return facts | {"labels": arrays["labels"][arrays["tsne_images"]].tolist(), "maps": maps}
