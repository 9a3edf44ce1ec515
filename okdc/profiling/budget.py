"""`--budget 'params<300k,latency_ms<2'`: the most accurate student that a device can afford.

Accuracy is that on validation: a student chosen by its accuracy on the test images would be chosen by what judges it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch

from okdc import backbones
from okdc.assembly.student import recorded, square
from okdc.cohort import count_macs, count_params
from okdc.errors import UsageError, nearest
from okdc.profiling import students
from okdc.profiling.measure import Subject, measure, networks
from okdc.progress import Progress
from okdc.runs.artefacts import Judged
from okdc.runs.run import RunDir

NAMES = {
    "params": "parameters",
    "macs": "multiply-adds of one image",
    "flops": "2 × MACs",
    "bytes": "the float32 ONNX file",
    "latency_ms": "p50 of onnxruntime, batch 1, one thread, on this machine",
}
MEASURED = ("bytes", "latency_ms")  # only where the budget names them: an export takes seconds
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
LIMIT = re.compile(r"(?P<name>[^<>=\s]+)\s*(?P<operator>[<>=!]+)\s*(?P<value>.*)", re.DOTALL)
NUMBER = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?P<unit>[kmg]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    name: str  # of NAMES
    operator: str  # < or <=
    value: float
    text: str  # as it was written

    def holds(self, cost: float) -> bool:
        return cost < self.value or (self.operator == "<=" and cost == self.value)

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> tuple[Limit, ...]:
    """`params<300k, latency_ms <= 2`: limits joined by commas; k, M and G are 10³, 10⁶ and 10⁹.

    Raises UsageError with every mistake in it.
    """
    limits: list[Limit] = []
    mistakes: list[str] = []
    for part in text.split(","):
        limit = _limit(part.strip())
        if isinstance(limit, str):
            mistakes.append(limit)
        elif limit.name in [earlier.name for earlier in limits]:
            mistakes.append(f"{limit}: {limit.name} is limited twice")
        else:
            limits.append(limit)
    if not mistakes:
        return tuple(limits)
    several = len(mistakes) > 1
    raise UsageError(
        f"--budget {text!r}: {f'{len(mistakes)} mistakes' if several else mistakes[0]}",
        hint="as in --budget 'params<300k,latency_ms<2'; there is: "
        + ", ".join(f"{name} ({what})" for name, what in NAMES.items()),
        details=mistakes if several else (),
    )


def _limit(part: str) -> Limit | str:
    """A limit, or what is wrong with it."""
    if not part:
        return "expected NAME<NUMBER, found nothing"
    match = LIMIT.fullmatch(part)
    if not match:
        return f"{part!r}: expected NAME<NUMBER"
    name, operator, text = match["name"], match["operator"], match["value"].strip()
    wrong = []
    if name not in NAMES:
        wrong.append(f"unknown name {name!r}{nearest(name, NAMES)}")
    if operator not in ("<", "<="):
        wrong.append(f"expected < or <=, found {operator}")
    number = NUMBER.fullmatch(text)
    value = float(Decimal(number["number"]) * UNITS[number["unit"].lower()]) if number else 0.0
    if number is None:
        wrong.append(f"expected a number such as 2, 0.5, 300k or 1.5M, found {text!r}")
    elif not value:
        wrong.append("expected a number above 0")
    if wrong:
        return f"{part}: {'; '.join(wrong)}"
    return Limit(name, operator, value, re.sub(r"\s+", "", part))


def choose(run: RunDir, limits: Sequence[Limit], tell: Progress) -> tuple[int, str]:
    """The student that is best on validation of those within every limit, and a line with the reason.

    At equal accuracy the one of fewer parameters, then the first. Raises UsageError where none fits, with what each
    lacks, and where several fit and nothing was validated; RunError for a run that is not complete.
    """
    rows = recorded(run).cohort
    costs = _costs(run, rows, limits, tell)
    fitting = [row for row, cost in zip(rows, costs, strict=True) if all(x.holds(cost[x.name]) for x in limits)]
    text = ",".join(map(str, limits))
    if not fitting:
        raise _none_fits(run, rows, costs, limits, text)
    if len(fitting) > 1 and any(row.chosen_by_pct is None for row in fitting):
        raise UsageError(
            f"{len(fitting)} students of {run.path} fit {text}, and nothing was validated to choose by: chosen by the "
            "test images, the student would be judged by what chose it",
            hint="name one: " + ", ".join(f"--student {row.student} ({row.architecture})" for row in fitting),
        )
    best = max(fitting, key=lambda row: (row.chosen_by_pct, -row.params, -row.student))
    cost = costs[rows.index(best)]
    costs_text = in_words(cost, limits)
    if len(fitting) == 1:
        reason = f"the only one of {len(rows)} that fits"
    else:
        reason = f"the most accurate on validation ({best.chosen_by_pct:.2f} %) of {len(fitting)} that fit"
    return best.student, f"{best.name} is {reason} {text}: {costs_text}"


def costs(name: str, size: int, classes: int, limits: Sequence[Limit], tell: Progress) -> dict[str, float]:
    """What a network costs that nothing has trained, by name; what has to be measured only where a limit names it."""
    network = backbones.build(name, classes, square(size)).eval()
    macs = count_macs(network, torch.zeros(1, 3, size, size))
    cost: dict[str, float] = {"params": count_params(network), "macs": macs, "flops": 2 * macs}
    if any(limit.name in MEASURED for limit in limits):
        measured = measure(Subject(name, "network", name, network, size, classes, export=True), 1, tell)
        assert measured.onnx_bytes is not None
        cost |= {"bytes": measured.onnx_bytes, "latency_ms": measured.latency_ms["onnxruntime"]["p50"]}
    return cost


def in_words(cost: Mapping[str, float], limits: Sequence[Limit]) -> str:
    """What is limited of a cost: `params 77,850, latency_ms 0.210`."""
    return ", ".join(f"{limit.name} {_number(cost[limit.name])}" for limit in limits)


def _costs(run: RunDir, rows: Sequence[Judged], limits: Sequence[Limit], tell: Progress) -> list[dict[str, float]]:
    """What each student costs, by name; what has to be measured only where a limit names it."""
    costs: list[dict[str, float]] = [{"params": row.params, "macs": row.macs, "flops": 2 * row.macs} for row in rows]
    if any(limit.name in MEASURED for limit in limits):
        subjects = students.subjects(run)
        measured = {key: measure(network, 1, tell) for key, network in networks(subjects).items()}
        for cost, subject in zip(costs, subjects, strict=True):
            network = measured[subject.key]
            assert network.onnx_bytes is not None
            cost |= {"bytes": network.onnx_bytes, "latency_ms": network.latency_ms["onnxruntime"]["p50"]}
    return costs


def _none_fits(
    run: RunDir,
    rows: Sequence[Judged],
    costs: Sequence[dict[str, float]],
    limits: Sequence[Limit],
    text: str,
) -> UsageError:
    details, unmet = [], []
    for limit in limits:
        missed = [
            f"{row.name} {_number(cost[limit.name])}"
            for row, cost in zip(rows, costs, strict=True)
            if not limit.holds(cost[limit.name])
        ]
        if len(missed) == len(rows):
            unmet.append(str(limit))
        if missed:
            details.append(f"{limit}: missed by {', '.join(missed)}")
    reason = (
        f"none meets {' or '.join(unmet)}" if unmet else "each limit is met by one at least, but no student meets all"
    )
    return UsageError(
        f"no student of {run.path} fits {text}: {reason}",
        hint=f"a wider budget; what there is: okdc profile {shlex.quote(str(run.path))}",
        details=details,
    )


def _number(cost: float) -> str:
    """A count with its thousands, or milliseconds."""
    return f"{cost:,}" if isinstance(cost, int) else f"{cost:.3f}"
