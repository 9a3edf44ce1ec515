"""Which pairs are measured, what each gets of the time, and the facts of all.

Each measurement is built, warmed up, measured and let go before the next. What one does not use of its share of the
time is shared by those that follow.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from okdc.bench import machine as here
from okdc.bench import okdc_step as ours
from okdc.bench import pairings
from okdc.bench.okdc_step import Work
from okdc.bench.pairings import Pair, Scale
from okdc.bench.pairs import Taken, Watch, measure
from okdc.bench.request import Asked
from okdc.bench.stats import FEWEST, judged, rounded
from okdc.data import find
from okdc.training import device
from okdc.training.device import Settings

ALWAYS = ("data_path_ratio", "data_path_share", "ffl_step_ratio", "fefr_step_over_macs", "eval_over_train")
SPARE = 2  # pairs beyond the fewest, where it is said how long those take: one that is not counted, one to be slower
OPTIONAL = ("step_ratio", "fefr32_step_over_macs", "further_student_over_macs", "export_ratio", "compile_gain")


@dataclass(frozen=True)
class Measurement:
    """One pair, before it is built. `needs`: its part of the time, in seconds of a slow machine."""

    key: str
    group: str
    what: str
    needs: float
    build: Callable[[], Pair]


def plan(asked: Asked, settings: Settings, scale: Scale, own: Work | None) -> list[Measurement]:
    """The measurements, those first that are always there. `own` is the recipe's step."""
    a, b = scale.small, scale.large
    small = partial(pairings.work, settings, scale, "cifar10_resnet20", a)
    large = partial(pairings.work, settings, scale, "cifar10_resnet20", b)
    ffl = partial(pairings.work, settings, scale, "cifar100_resnet32", b, 2, "method.name=ffl")
    step = f"{asked.recipe.method['name']} of {asked.name}" if asked.recipe else f"FEFR, {a} ×2"
    found = [
        Measurement("data_path_ratio", "data", "data path", 18, lambda: pairings.data_path(settings, scale)),
        Measurement(
            "data_path_share", "data", f"data path / {a} step", 10,
            lambda: pairings.data_share(settings, scale, small(1)),
        ),
        Measurement("ffl_step_ratio", "ffl", f"FFL step, {b} ×2", 35, lambda: pairings.beside_plain(ffl())),
        Measurement("fefr_step_over_macs", "fefr", f"FEFR / MACs, {a} ×2", 25, lambda: pairings.over_baseline(small)),
        Measurement("eval_over_train", "eval", f"evaluation, {a} ×2", 14, lambda: pairings.evaluation(small(2))),
    ]  # fmt: skip
    if own:
        found.append(Measurement("step_ratio", "recipe", step, 30, lambda: pairings.beside_plain(own)))
    if settings.compiled:
        group, named = "recipe" if own else "fefr", f"compiled {step}"
        found.append(Measurement("compile_gain", group, named, 20, lambda: pairings.compiled(own or small(2))))
    found += [
        Measurement("fefr32_step_over_macs", "fefr", f"FEFR / MACs, {b} ×2", 20, lambda: pairings.over_baseline(large)),
        Measurement("further_student_over_macs", "fefr", f"third {a} / its MACs", 25, lambda: pairings.further(small)),
        Measurement("export_ratio", "export", f"ONNX export, {a}", 50, lambda: pairings.export(small(1))),
    ]
    return [m for m in found if m.group in asked.only]


def standard(asked: Asked) -> bool:
    """Whether any pair is measured that is the same whatever recipe is named: its settings then say something."""
    return asked.recipe is None or any(group != "recipe" for group in asked.only)


def run(
    asked: Asked,
    settings: Settings,
    scale: Scale | None = None,
    update: Callable[[int, int, str], object] = lambda *_: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """All that was asked for: what `okdc bench --json` prints. `update(done, total, text)` is told of the progress."""
    began, load, scale = clock(), here.load(), scale or Scale()
    device.apply(settings, deterministic=False)
    own = pairings.of_recipe(asked.recipe, asked.engine) if asked.recipe else None
    todo = plan(asked, settings, scale, own)
    watch, total = Watch(clock, ours.waiting(settings)), math.ceil(asked.seconds)
    ratios: dict[str, dict[str, Any] | None] = dict.fromkeys((*ALWAYS, *OPTIONAL))
    reasons = dict.fromkeys(ratios, "not asked for")
    if not settings.compiled:
        reasons["compile_gain"] = "nothing was compiled (--compile on does)"
    if not own:
        reasons["step_ratio"] = "no recipe was given"
    speeds: dict[str, dict[str, float]] = {what.key: {} for what in todo}
    compiling_s = 0.0
    for number, what in enumerate(todo):
        started = clock()
        share = began + asked.seconds + compiling_s - started
        share *= what.needs / sum(m.needs for m in todo[number:])
        if share <= 0:
            reasons[what.key] = f"no time was left of {asked.seconds:g} s; more --seconds"
            continue

        def tick(text: str = what.what) -> None:
            update(min(int(clock() - began), total - 1), total, text)

        tick()
        with closing(what.build()) as pair:
            built = clock() - started
            taken = measure(pair.first, pair.second, share - built, watch, tick, free=settings.compiled)
        compiled_s = taken.warm_up_s if settings.compiled else 0.0
        compiling_s += compiled_s
        ratios[what.key], reasons[what.key] = judged([pair.ratio(a, b) for a, b in taken.pairs])
        if len(taken.pairs) < FEWEST:
            begun = f"{built + taken.ready_s - compiled_s:.1f} s of {share:.1f} were used to begin"
            needed = built + taken.ready_s - compiled_s + (FEWEST + SPARE) * taken.pair_s
            # What others left of theirs, they may take of a longer time: only its own part is sure to be there.
            parts = max(sum(m.needs for m in todo) / what.needs, asked.seconds / share)
            enough = _enough(needed * parts)
            reasons[what.key] += f": one takes {taken.pair_s:.1f} s, {begun}; --seconds {enough} would do, about"
        speeds[what.key] = _speeds(pair, taken)
        del pair
        gc.collect()  # methods are full of cycles, and the next ones want their memory
        if settings.compiled:
            torch.compiler.reset()
    update(total, total, "")
    return {
        "schema": 1,
        **here.facts(settings),
        **_of_standard(todo, settings, scale),
        "load": load,
        "seconds": round(clock() - began, 1),
        "data": "random images: how long a step takes does not depend on what is in them",
        "recipe": _own(asked, own),
        "what": {m.key: m.what for m in todo},
        "images_per_s": {key: found for key, found in speeds.items() if key != "export_ratio"},
        "exports_per_s": speeds.get("export_ratio", {}),
        **ratios,
        "reasons": {key: why for key, why in reasons.items() if ratios[key] is None},
    }


def _enough(seconds: float) -> int:
    """Upwards to two digits: more are not known."""
    unit: int = 10 ** max(0, len(str(int(seconds))) - 2)
    return math.ceil(seconds / unit) * unit


def _speeds(pair: Pair, taken: Taken) -> dict[str, float]:
    """Each side's median, in images/s."""
    if not taken.pairs:
        return {}
    sides = zip((pair.first, pair.second), zip(*taken.pairs, strict=True), strict=True)
    return {side.name: rounded(1 / statistics.median(seconds)) for side, seconds in sides}


def _of_standard(todo: list[Measurement], settings: Settings, scale: Scale) -> dict[str, Any]:
    """What the standard pairs were measured with; null is what none of those that were measured has."""
    groups = {what.group for what in todo} - {"recipe"}
    batches = bool(groups - {"export"})  # an export is of one image, in float32
    return {
        "settings": settings.saved() if batches else None,
        "image_size": pairings.SIZE if groups else None,
        "batch_size": scale.batch_size if batches else None,
        "workers": scale.workers if "data" in groups else None,
    }


def _own(asked: Asked, work: Work | None) -> dict[str, Any] | None:
    """The step that the user named."""
    if work is None:
        return None
    return {
        "name": asked.name,
        "method": work.recipe.method["name"],
        "students": list(work.recipe.cohort.students),
        "batch_size": work.batch_size,
        "image_size": work.size,
        "classes": work.classes,
        "classes_known": find(work.recipe.data.name).count_classes(work.recipe.data.root) is not None,
        "settings": work.settings.saved(),
    }
