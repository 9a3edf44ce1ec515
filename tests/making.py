"""Finished runs as files, without a training: what `okdc compare` reads of them, with the numbers that a test wants."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from okdc.bundle.artefacts import Manifest
from okdc.runs import predictions
from okdc.runs.artefacts import SEAL, File, Result, RunInfo, SeriesInfo, StudentInfo
from okdc.runs.files import read_json
from okdc.runs.files import write_json as write_unsealed
from okdc.runs.run import RunDir

Json = dict[str, Any]

SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "memory_format": "contiguous",
    "threads": 1,
    "workers": 0,
    "compile": "off",
    "cuda_graph": "off",
    "sync_batchnorm": False,
}
# A row of log.jsonl, but for its epoch.
LOGGED = {
    "lr": 0.1, "loss": 2.0, "losses": {}, "train_top1_pct": {}, "val_top1_pct": {},
    "seconds": 1.0, "seconds_steps": 1.0, "seconds_data": 0.0, "seconds_validation": 0.0,
}  # fmt: skip
IMAGES = 10_000  # an accuracy of two decimals is then a whole number of images

PAPER = {
    "paper": {
        "source": "a paper, table 1",
        "dataset": "digits",
        "students": ["resnet8", "resnet8"],
        "epochs": 300,
        "student_error": {"baseline": 7.32, "mfef": [6.5, 5.5]},
        "fused_error": {"mfef": 5.0},
    }
}


# The whole files by their names, that of a student who was not kept included.
MODELS: dict[str, type[File]] = {
    "run.json": RunInfo,
    "series.json": SeriesInfo,
    "student.json": StudentInfo,
    "result.json": Result,
    "manifest.json": Manifest,
}


def write_json(path: Path, tables: Mapping[str, Any]) -> None:
    """As `okdc.runs.files.write_json`, with the hash that makes the tables, if they are whole, okdc's own."""
    model = MODELS.get(path.name)
    try:
        sealed = model.model_validate(dict(tables)).sealed() if model else {}
    except ValueError:  # damaged on purpose
        sealed = {}
    write_unsealed(path, dict(tables) | {key: value for key, value in sealed.items() if key == SEAL})


def make_run(
    path: Path | str,
    variant: str = "fefr",
    seed: int = 0,
    kept: float = 90.0,
    *,
    heads: Mapping[str, float] | None = None,
    students: Sequence[str] | None = None,
    share: str = "none",
    recipe: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    kept_facts: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """A complete run at `path`. What is given of recipe, result, the kept student and run.json stands over the usual.

    Where `heads` are not given, every head of the method is at `kept` % in the last epoch, too.
    """
    path = Path(path)
    method = variant.split()[0]
    single = method in ("baseline", "kd")
    students = students or (["resnet8"] if single else ["resnet8", "resnet8"])
    names = [f"student{k}" for k in range(len(students))] + ([] if single else ["fused", "ensemble"])
    moments = [0.309333, 0.309333, 0.309333]
    tables: dict[str, Any] = {
        "seed": seed,
        "about": {"title": "made by hand"},
        "data": {"name": "digits", "image_size": 8, "mean": moments, "std": moments},
        "augment": {"padding": 1, "flip": False},
        "cohort": {"students": [students[0], students[0]] if single else list(students), "share": share},
        "method": {"name": method},
        "optim": {"epochs": 60, "batch_size": 32, "lr": 0.05},
    }
    for name, table in (recipe or {}).items():
        tables[name] = {**tables.get(name, {}), **table} if isinstance(table, dict) else table
    kept_row = {"architecture": students[0], "epoch": 50, "val_top1_pct": kept + 1, "top1_pct": kept}
    usual = result_of(
        variant,
        kept_row | dict(kept_facts or {}),
        students=list(students),
        share=share,
        dataset=tables["data"]["name"],
        seed=seed,
        heads_last_epoch_top1_pct=dict(heads) if heads else dict.fromkeys(names, kept),
        epochs=tables["optim"]["epochs"],
    )
    facts = run_info(started_at="2030-01-01", processor="a processor", versions={"torch": "2.14.1"}).to_json()
    path.mkdir(parents=True)
    (path / "recipe.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    write_json(path / "run.json", facts | {"recipe": tables} | dict(info or {}))
    usual |= dict(result or {})
    if "cohort" in (result or {}):
        usual["kept"] = {key: value for key, value in usual["cohort"][0].items() if not key.endswith("_sha256")}
        usual["weights_sha256"] = usual["cohort"][0]["weights_sha256"]
    for row, right in zip(usual["cohort"], _right_images(usual)[3], strict=True):
        count = predictions.by_class(np.arange(usual["images"]) % 10, np.arange(usual["images"]) < right, 10)
        row["balanced_accuracy_pct"] = count.balanced_pct
        usual |= {"largest_class_pct": count.largest_pct, "smallest_class_pct": count.smallest_pct}
        if row["student"] == usual["kept"]["student"]:
            usual["kept"]["balanced_accuracy_pct"] = count.balanced_pct
    (path / "predictions.npz").write_bytes(answers := _predictions(*_right_images(usual)))
    write_json(path / "result.json", usual | {"predictions_sha256": hashlib.sha256(answers).hexdigest()})
    return path


def _right_images(result: Json) -> tuple[int, str, tuple[tuple[str, int], ...], tuple[int, ...]]:
    """Of a result.json: images, their split, and how many of them each head and each student has right."""
    images: int = result["images"]

    def count(top1_pct: float) -> int:
        return round(images * top1_pct / 100)

    heads = {name: count(value) for name, value in result["heads_last_epoch_top1_pct"].items()}
    students = tuple(count(row["top1_pct"]) for row in result["cohort"])
    return images, result["judged_on"], tuple(heads.items()), students


@functools.cache
def _predictions(images: int, split: str, heads: tuple[tuple[str, int], ...], students: tuple[int, ...]) -> bytes:
    """predictions.npz of networks that have the first images right: the better has all right that the worse has."""

    def right(count: int) -> predictions.Bits:
        return np.arange(images) < count

    judging, none = (
        predictions.Answers.of(np.arange(n), np.arange(n) % 10, np.zeros((n, 10), np.float32)) for n in (images, 0)
    )
    answers = predictions.Predictions(
        validation=none if split == "test" else judging,
        test=judging if split == "test" else none,
        heads={name: right(count) for name, count in heads},
        students=[right(count) for count in students],
    )
    with tempfile.TemporaryDirectory() as folder:
        predictions.write(path := Path(folder) / "predictions.npz", answers)
        return path.read_bytes()


def run_info(started_at: str = "2026-01-01", **keys: Any) -> RunInfo:
    """run.json of a run on the digits."""
    usual = {
        "schema": 1,
        "recipe": {"seed": 0, "method": {"name": "fefr"}, "optim": {"epochs": 3}},
        "recipe_sha256": "7" * 64,
        "data_sha256": "0b7e9c3202d7bcd2" + "0" * 48,
        "classes": [str(digit) for digit in range(10)],
        "settings": SETTINGS,
        "reasons": [],
    }
    return RunInfo.model_validate(usual | {"started_at": started_at} | keys)


def result_of(variant: str, kept: Mapping[str, Any], students: Sequence[str] = ("resnet8",), **keys: Any) -> Json:
    """result.json, of students that are all as good as the kept one, whose row has the keys of `kept`."""
    method = variant.split()[0]
    row = {"student": 0, "architecture": students[0], "epoch": 50, "val_top1_pct": 91.0, "top1_pct": 90.0}
    row |= {"params": 77_850, "macs": 800_000} | dict(kept)
    row = {"balanced_accuracy_pct": row["top1_pct"]} | row
    hashes = {"weights_sha256": "ab" * 32, "student_sha256": "cd" * 32, "judged_device": "cpu"}
    card = {
        "title": method,
        "summary": f"Trained by {method}.",
        "tags": [],
        "fused_head": "gated" if method == "one" else "fused",
        "reference": method == "baseline",
    }
    return {
        "schema": 1,
        "method": method,
        "method_card": card,
        "variant": variant,
        "students": list(students),
        "share": "none",
        "teacher": None,
        "leader": None,
        "views": 0,
        "dataset": "digits",
        "seed": 0,
        "recipe_sha256": "7" * 64,
        "judged_on": "test",
        "images": IMAGES,
        "largest_class_pct": 10.0,
        "smallest_class_pct": 10.0,
        "heads_last_epoch_top1_pct": {"student0": row["top1_pct"]},
        "kept": row,
        "cohort": [
            row | hashes | ({"student": k, "architecture": name} if k else {}) for k, name in enumerate(students)
        ],
        "data_sha256": "0b7e9c3202d7bcd2" + "0" * 48,
        "weights_sha256": hashes["weights_sha256"],
        "log_sha256": hashlib.sha256(b"").hexdigest(),
        "predictions_sha256": "ef" * 32,
        "epochs": 60,
        "steps": 1200,
        "seconds": 12.5,
        "compiled": False,
        "images_per_s": 1000.0,
        **keys,
    }


def student_info(**keys: Any) -> StudentInfo:
    """student.json of a network that nothing has trained."""
    usual = {
        "schema": 1,
        "architecture": "resnet8",
        "classes": [str(digit) for digit in range(10)],
        "preprocessing": {"size": 8, "resize": "a rule", "mean": [0.3] * 3, "std": [0.4] * 3},
        "student": 0,
        "epoch": 7,
        "val_top1_pct": 92.5714,
        "method": "fefr",
        "dataset": "digits",
        "recipe_sha256": "7" * 64,
        "weights_sha256": "ab" * 32,
    }
    return StudentInfo.model_validate(usual | keys)


def record(run: RunDir, **keys: Any) -> None:
    """Set keys of the kept student in result.json, where it stands twice."""
    result = read_json(run.result)
    row = result["cohort"][result["kept"]["student"]]
    row |= keys
    result["kept"] |= {key: value for key, value in keys.items() if key in result["kept"]}
    write_json(run.result, result | {"weights_sha256": row["weights_sha256"]})


def change_recipe(run: RunDir, change: Callable[[Json], object]) -> None:
    """Change the recipe that a run was started with, in both of its places."""
    tables = run.read_recipe()
    change(tables)
    write_json(run.info, read_json(run.info) | {"recipe": tables})
    run.recipe.write_text(tomli_w.dumps(tables), encoding="utf-8")


def seal(run: RunDir) -> None:
    """Make every recorded hash fit the kept student's files."""
    weights_sha256 = hashlib.sha256(run.weights.read_bytes()).hexdigest()
    write_json(run.student, read_json(run.student) | {"weights_sha256": weights_sha256})
    student_sha256 = hashlib.sha256(run.student.read_bytes()).hexdigest()
    record(run, weights_sha256=weights_sha256, student_sha256=student_sha256)


def make_row(root: Path | str, variant: str, kept: Mapping[int, float] | Sequence[float], **more: Any) -> list[Path]:
    """Runs of one variant, one a seed (0, 1, ... where only numbers are given), at `root`/`variant`-`seed`."""
    by_seed = kept if isinstance(kept, Mapping) else dict(enumerate(kept))
    named = variant.replace(" ", "_")
    return [make_run(Path(root) / f"{named}-{seed}", variant, seed, value, **more) for seed, value in by_seed.items()]
