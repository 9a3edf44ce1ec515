"""The keys in which compared runs have to agree, and the notes on those in which they may differ.

Runs whose images, judging split, budget or architectures differ are not compared: the table would suggest that the
method caused the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from okdc.backbones import naming
from okdc.comparison.finished import Finished
from okdc.errors import RunError

NAMED = 3  # runs on one line of a message


def refuse(runs: Sequence[Finished], stated: Collection[str] = ()) -> None:
    """Raises RunError where the runs differ in more than method, seed and the keys that are `stated`, such as
    `optim.epochs`: with each key, its values and their runs.
    """
    tables = [(run, _budget(run)) for run in runs]
    same_data = len({run.result.data_sha256 for run in runs}) == 1
    # A subset of the training images is drawn by the seed, and with it its mean and deviation.
    by_seed = runs[0].recipe.data.train_images is not None
    if same_data:
        tables += [(run, _moments(run, by_seed)) for run in runs]
    wrong = {}
    for key in dict.fromkeys(key for _, table in tables for key in table):
        values = [(run, table[key]) for run, table in tables if key in table]
        if key.partition(" ")[0] not in stated and len({repr(value) for _, value in values}) > 1:
            wrong[key] = f"{key}: {by_value(values)}"
    if not wrong and len({run.judging_sha256 for run in runs}) > 1:  # answers are paired image by image
        key = "judging images (rows, labels)"
        wrong[key] = f"{key}: {by_value([(run, run.judging_sha256[:12]) for run in runs])}"
    if wrong:
        raise RunError(
            f"these {len(runs)} runs do not compare: they differ in {', '.join(wrong)}",
            hint="name runs that differ in method and seed alone: okdc compare RUN RUN ..., or a folder of such runs",
            details=list(wrong.values()),
        )
    if "cohort.share" not in stated:
        _refuse_sharing(runs)


def _budget(run: Finished) -> dict[str, Any]:
    """The keys that have one value in all runs of a comparison."""
    result, recipe = run.result, run.recipe
    data = recipe.data.model_dump(exclude={"root", "mean", "std", "stream"})
    # A file's crop is taken of all its pixels; every other run is to the bit the same wherever its images lie.
    cropped = {"augment.crop=resized of files": run.info.streamed} if recipe.augment.crop == "resized" else {}
    return {
        "data_sha256": result.data_sha256[:12],
        "judged_on": result.judged_on,
        "images": result.images,
        "classes": run.info.classes,
        **{f"data.{key}": value for key, value in data.items()},
        **{f"augment.{key}": value for key, value in recipe.augment.model_dump().items()},
        **cropped,
        **{f"optim.{key}": value for key, value in recipe.optim.model_dump().items()},
        "cohort.keep_epoch": recipe.cohort.keep_epoch,
        "cohort.keep_metric": recipe.cohort.keep_metric,
        "cohort.students (architectures)": tuple(sorted(set(recipe.cohort.students))),
        **_starts(run),
    }


def _starts(run: Finished) -> dict[str, tuple[str, ...]]:
    """By network, what its students started from: trained weights may be worth more than any method."""
    result, starts = run.result, dict[str, set[str]]()
    for name, start in zip(result.students, result.starts or (None,) * len(result.students), strict=True):
        network = naming.variant(name)[0]  # an extraction has no trained weights
        starts.setdefault(network, set()).add(start.weights_sha256[:12] if start else "random weights")
    return {f"cohort.weights of {network}": tuple(sorted(names)) for network, names in starts.items()}


def _moments(run: Finished, by_seed: bool) -> dict[str, Any]:
    where = f" (seed {run.seed})" if by_seed else ""
    return {f"data.{key}{where}": getattr(run.recipe.data, key) for key in ("mean", "std")}


def _refuse_sharing(runs: Sequence[Finished]) -> None:
    """Methods that share a trunk share the same stages: else the sharing might have caused the difference."""
    shared = [run for run in runs if run.result.share != "none"]
    apart = any(
        run.result.method != other.result.method and run.result.share != other.result.share
        for run in shared
        for other in shared
    )
    if apart:
        raise RunError(
            "these runs do not compare: different methods share different stages, and a difference could be the "
            "sharing's rather than the method's",
            hint="one cohort.share for all methods; several for one method, without the others, are an ablation",
            details=[f"share: {by_value([(run, f'{run.result.share} ({run.result.method})') for run in shared])}"],
        )


def refuse_doubles(named: Iterable[tuple[str, Finished]]) -> None:
    """Raises RunError for two runs of one variant and seed: neither may stand for the other in silence."""
    seen: dict[tuple[str, int], Path] = {}
    doubles = []
    for name, run in named:
        other = seen.setdefault((name, run.seed), run.path)
        if other != run.path:
            doubles.append(f"{name}, seed {run.seed}: {other} and {run.path}")
    if doubles:
        raise RunError(
            "two runs of the same variant and seed" if len(doubles) == 1 else "runs of the same variants and seeds",
            hint="name the runs that count, or delete or move one of each two",
            details=doubles,
        )


def notes(runs: Sequence[Finished]) -> list[str]:
    """Differences that do not keep the runs from being compared, but belong beside the numbers."""
    lines = []
    for key in ("device", "dtype"):
        lines += _differing(f"engine {key}", [(run, getattr(run.info.settings, key)) for run in runs])
    lines += _differing(
        "the number of processes, each of which normalises its own images,",
        [(run, run.info.trained_by) for run in runs if not run.info.settings.sync_batchnorm],
    )
    lines += _differing("torch", [(run, run.info.versions.get("torch")) for run in runs])
    machines = [(run, (run.info.processor, run.info.settings.threads)) for run in runs]
    if _differing("", machines):
        lines.append("the runs had different processors or numbers of threads: their seconds do not compare")
    if any(run.result.epochs_trained for run in runs):
        lines += _differing("the last epoch (optim.patience)", [(run, run.result.last_epoch) for run in runs])
    lines += _differing("cohort.keep", [(run, run.recipe.cohort.keep) for run in runs if len(run.result.students) > 1])
    views = _differing("the number of views of each image in a step", [(run, 1 + run.result.views) for run in runs])
    lines += [f"{line}: further views alone may cause a difference" for line in views]
    for variant in dict.fromkeys(run.result.variant for run in runs):
        taught = [run for run in runs if run.result.variant == variant and run.result.teacher]
        lines += _differing(
            f"{variant}: the teacher",
            [(run, t.architecture + " " + t.weights_sha256[:12]) for run in taught if (t := run.result.teacher)],
        )
    return lines + _unshared(runs)


def _unshared(runs: Sequence[Finished]) -> list[str]:
    """Notes a method with cohort.share=none that could have shared stages, beside one that did."""
    sharing = {run.result.method for run in runs if run.result.share != "none"}
    apart = {
        run.result.method
        for run in runs
        if len(run.result.students) > 1 and run.recipe.cohort.share == "none" and run.result.method not in sharing
    }
    if not sharing or not apart:
        return []
    return [
        f"{', '.join(sorted(sharing))} shared stages, {', '.join(sorted(apart))} with cohort.share=none: "
        "between them the sharing differs too"
    ]


def _differing(name: str, values: Sequence[tuple[Finished, Any]]) -> list[str]:
    return [f"{name} differs: {by_value(values)}"] if len({repr(value) for _, value in values}) > 1 else []


def by_value(values: Iterable[tuple[Finished, Any]]) -> str:
    """`3 in runs/a, runs/b; 60 in runs/c`."""
    groups: dict[str, list[str]] = {}
    for run, value in values:
        groups.setdefault(_short(value), []).append(str(run.path))
    parts = []
    for value, paths in groups.items():
        rest = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        parts.append(f"{value} in {', '.join(paths[:NAMED])}{rest}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        whole = ", ".join(map(str, value))
        return whole if len(whole) <= 60 else f"{len(value)}: {whole}"
    return str(value)
