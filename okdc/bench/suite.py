"""Which pairs are measured, the share of the time that each gets, and the facts of all.

Each measurement is built, warmed up, measured and let go before the next one. Time that one leaves of its share goes to
those that follow.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from okdc.bench import machine, okdc_step, pairings
from okdc.bench.launches import launches
from okdc.bench.okdc_step import Work
from okdc.bench.pairings import Pair, Scale
from okdc.bench.pairs import Taken, Watch, measure
from okdc.bench.request import Request
from okdc.bench.stats import FEWEST, judged, rounded
from okdc.recipe.schema import Augment
from okdc.runs import provenance
from okdc.training import device
from okdc.training.device import Settings

ALWAYS = ("data_path_ratio", "data_path_share", "ffl_step_ratio", "fefr_step_over_macs", "eval_over_train")
STEPS = ("ffl", "fefr", "recipe")  # groups whose sides are training steps
AUGMENT = tuple(f"{name}_{what}" for name in ("augment", "trivial") for what in ("ratio", "share", "photo_share"))
SPARE = 2  # pairs beyond the fewest in the seconds that are advised: one is not counted, and one may be slower
OPTIONAL = (
    *AUGMENT, "step_ratio", "fefr32_step_over_macs", "further_student_over_macs", "export_ratio", "compile_gain",
)  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """One pair, before it is built. `needs`: its part of the time, in seconds of a slow machine."""

    key: str
    group: str
    what: str
    needs: float
    build: Callable[[], Pair]


def plan(request: Request, settings: Settings, scale: Scale, own: Work | None) -> list[Measurement]:
    """The measurements, those first that are always there. `own` is the recipe's step."""
    a, b = scale.small, scale.large
    small = partial(pairings.work, settings, scale, "cifar10_resnet20", a)
    large = partial(pairings.work, settings, scale, "cifar10_resnet20", b)
    ffl = partial(pairings.work, settings, scale, "cifar100_resnet32", b, 2, "method.name=ffl")
    step = f"{request.resolved.recipe.method['name']} of {request.name}" if request.resolved else f"FEFR, {a} ×2"
    measurements = [
        Measurement("data_path_ratio", "data", "data path", 18, lambda: pairings.data_path(settings, scale)),
        Measurement(
            "data_path_share", "data", f"data path / {a} step", 10,
            lambda: pairings.data_share(settings, scale, small(1)),
        ),
        Measurement("ffl_step_ratio", "ffl", f"FFL step, {b} ×2", 35, lambda: pairings.beside_plain(ffl())),
        Measurement("fefr_step_over_macs", "fefr", f"FEFR / MACs, {a} ×2", 25, lambda: pairings.over_baseline(small)),
        Measurement("eval_over_train", "eval", f"evaluation, {a} ×2", 14, lambda: pairings.evaluation(small(2))),
    ]  # fmt: skip
    measurements += _of_augmentation(settings, scale, partial(small, 1))
    if own:
        measurements.append(Measurement("step_ratio", "recipe", step, 30, lambda: pairings.beside_plain(own)))
    if settings.compiled:
        group, named = "recipe" if own else "fefr", f"compiled {step}"
        measurements.append(Measurement("compile_gain", group, named, 20, lambda: pairings.compiled(own or small(2))))
    measurements += [
        Measurement("fefr32_step_over_macs", "fefr", f"FEFR / MACs, {b} ×2", 20, lambda: pairings.over_baseline(large)),
        Measurement("further_student_over_macs", "fefr", f"third {a} / its MACs", 25, lambda: pairings.further(small)),
        Measurement("export_ratio", "export", f"ONNX export, {a}", 50, lambda: pairings.export(small(1))),
    ]
    return [m for m in measurements if m.group in request.only]


def _of_augmentation(settings: Settings, scale: Scale, baseline: Callable[[], Work]) -> list[Measurement]:
    """Varied images beside torchvision's, and as a share of a step at two sizes: many operations, and one policy."""
    photo = partial(pairings.photo, settings, scale)
    network = scale.photo.rpartition(":")[2]

    def share(work: Callable[[], Work], keys: Augment) -> Pair:
        return pairings.data_share(settings, scale, work(), keys)

    return [
        measurement
        for name, title, keys in (("augment", "varied", pairings.VARIED), ("trivial", "policy", pairings.TRIVIAL))
        for measurement in (
            Measurement(
                f"{name}_ratio", "augment", f"{title} path", 12,
                partial(pairings.data_path, settings, scale, keys),
            ),
            Measurement(
                f"{name}_share", "augment", f"{title} / {scale.small} step", 8, partial(share, baseline, keys)
            ),
            Measurement(
                f"{name}_photo_share", "augment", f"{title} / {network}", 18,
                partial(share, photo, keys),
            ),
        )
    ]  # fmt: skip


def standard(request: Request) -> bool:
    """Whether a pair is measured that does not depend on the recipe. Only then do the standard settings matter."""
    return request.resolved is None or any(group != "recipe" for group in request.only)


@dataclass(frozen=True)
class Outcome:
    """What a measurement came to: a ratio, or the reason that there is none."""

    ratio: dict[str, Any] | None = None
    reason: str = "not asked for"
    speeds: dict[str, float] = field(default_factory=dict)  # of each side
    compiling_s: float = 0.0  # beside the seconds that were asked for
    needed_s: float = 0.0  # that its share would have to be, if too few pairs fitted in
    launches: dict[str, int | None] = field(default_factory=dict)  # of each side of a step, on a GPU


def run(
    request: Request,
    settings: Settings,
    scale: Scale | None = None,
    update: Callable[[int, int, str], object] = lambda *_: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure what was requested, for `okdc bench --json`. `update(done, total, text)` shows the progress."""
    began, load, scale = clock(), provenance.load_average(), scale or Scale()
    device.apply(settings, deterministic=False)
    own = pairings.of_recipe(request.resolved, request.engine) if request.resolved else None
    todo = plan(request, settings, scale, own)
    watch, total = Watch(clock, okdc_step.waiting(settings)), math.ceil(request.seconds)
    outcomes = _without_measurement(settings, own)
    compiling_s = 0.0
    for number, measurement in enumerate(todo):
        started = clock()
        left = began + request.seconds + compiling_s - started
        share = left * measurement.needs / sum(m.needs for m in todo[number:])
        if share <= 0:
            outcomes[measurement.key] = Outcome(reason=f"no time was left of {request.seconds:g} s; more --seconds")
            continue

        def tick(text: str = measurement.what) -> None:
            update(min(int(clock() - began), total - 1), total, text)

        outcome = _measured(measurement, started, share, watch, tick, settings)
        if outcome.needed_s:
            # Earlier pairs may use more of a longer budget, so only this pair's own share of it can be promised.
            parts = max(sum(m.needs for m in todo) / measurement.needs, request.seconds / share)
            advice = f"--seconds {_enough(outcome.needed_s * parts)} would do, about"
            outcome = replace(outcome, reason=f"{outcome.reason}; {advice}")
        outcomes[measurement.key] = outcome
        compiling_s += outcome.compiling_s
        gc.collect()  # methods are full of cycles, and the next ones want their memory
    update(total, total, "")
    speeds = {m.key: outcomes[m.key].speeds for m in todo}
    counts = {m.key: outcomes[m.key].launches for m in todo if outcomes[m.key].launches}
    return {
        "schema": 1,
        **machine.facts(settings),
        **_of_standard(todo, settings, scale),
        "load": load,
        "seconds": round(clock() - began, 1),
        "data": "random images: how long a step takes does not depend on what is in them",
        "recipe": _own(request, own),
        "what": {m.key: m.what for m in todo},
        "images_per_s": {key: sides for key, sides in speeds.items() if key != "export_ratio"},
        "launches_a_step": counts if settings.cuda else None,
        "exports_per_s": speeds.get("export_ratio", {}),
        **{key: outcome.ratio for key, outcome in outcomes.items()},
        "reasons": {key: outcome.reason for key, outcome in outcomes.items() if outcome.ratio is None},
    }


def _without_measurement(settings: Settings, own: Work | None) -> dict[str, Outcome]:
    """Every key, with the reason that it keeps if it is not measured."""
    outcomes = dict.fromkeys((*ALWAYS, *OPTIONAL), Outcome())
    if not settings.compiled:
        outcomes["compile_gain"] = Outcome(reason="nothing was compiled (--compile on does)")
    if not own:
        outcomes["step_ratio"] = Outcome(reason="no recipe was given")
    return outcomes


def _measured(
    measurement: Measurement, started: float, share: float, watch: Watch, tick: Callable[[], None], settings: Settings
) -> Outcome:
    """Build one pair and measure it for `share` seconds from `started` on; what it takes to compile is not counted."""
    tick()
    compiled = settings.compiled
    with closing(measurement.build()) as pair:
        built_s = watch.clock() - started
        taken = measure(pair.first, pair.second, share - built_s, watch, tick, free=compiled)
        counts = dict[str, int | None]()
        if settings.cuda and measurement.group in STEPS:
            counts = {side.name: launches(side.run) for side in (pair.first, pair.second)}
    compiling_s = taken.warm_up_s if compiled else 0.0
    ratio, reason = judged([pair.ratio(a, b) for a, b in taken.pairs])
    needed_s = 0.0
    if len(taken.pairs) < FEWEST:
        begin_s = built_s + taken.ready_s - compiling_s
        needed_s = begin_s + (FEWEST + SPARE) * taken.pair_s
        reason += f": one takes {taken.pair_s:.1f} s, {begin_s:.1f} s of {share:.1f} were used to begin"
    if compiled:
        torch.compiler.reset()
    return Outcome(ratio, reason, _speeds(pair, taken), compiling_s, needed_s, counts)


def _enough(seconds: float) -> int:
    """Rounded up to two digits: more are not known."""
    unit: int = 10 ** max(0, len(str(int(seconds))) - 2)
    return math.ceil(seconds / unit) * unit


def _speeds(pair: Pair, taken: Taken) -> dict[str, float]:
    """Each side's median, in images/s."""
    if not taken.pairs:
        return {}
    sides = zip((pair.first, pair.second), zip(*taken.pairs, strict=True), strict=True)
    return {side.name: rounded(1 / statistics.median(seconds)) for side, seconds in sides}


def _of_standard(todo: list[Measurement], settings: Settings, scale: Scale) -> dict[str, Any]:
    """What the standard pairs were measured with; null where no measured pair has it."""
    groups = {what.group for what in todo} - {"recipe"}
    batches = bool(groups - {"export"})  # an export is of one image, in float32
    return {
        "settings": settings.saved() if batches else None,
        "image_size": pairings.SIZE if groups else None,
        "batch_size": scale.batch_size if batches else None,
        "workers": scale.workers if groups & {"data", "augment"} else None,
    }


def _own(request: Request, work: Work | None) -> dict[str, Any] | None:
    """The step that the user named."""
    if work is None:
        return None
    return {
        "name": request.name,
        "method": work.recipe.method["name"],
        "students": list(work.recipe.cohort.students),
        "batch_size": work.batch_size,
        "image_size": work.size,
        "classes": work.classes,
        "classes_known": work.resolved.classes is not None,
        "settings": work.settings.saved(),
    }
