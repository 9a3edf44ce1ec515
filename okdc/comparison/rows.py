"""Rows of a comparison: the runs of one variant, and its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from okdc.comparison.comparable import refuse_doubles
from okdc.comparison.finished import Finished
from okdc.errors import UsageError, nearest
from okdc.runs.predictions import Bits

# Keys of Finished.top1_pct that are not heads: what is kept, and one student whom no choice has made better, the first
# or, where a method has one, the leader.
KEPT, STUDENT = "kept", "student"


@dataclass(frozen=True)
class Row:
    """The runs of one variant, by seed."""

    name: str
    runs: tuple[Finished, ...]

    @property
    def method(self) -> str:
        return self.runs[0].result.method

    @property
    def variant(self) -> str:
        return self.runs[0].result.variant

    def accuracy(self, head: str) -> dict[int, float]:
        """Top-1 % by seed."""
        return {run.seed: run.top1_pct()[head] for run in self.runs if head in run.top1_pct()}

    def right(self, head: str) -> dict[int, Bits]:
        """Whether each answer to the images that judge was right, by seed."""
        return {run.seed: run.right[head] for run in self.runs if head in run.right}

    def heads(self) -> list[str]:
        return list(dict.fromkeys(head for run in self.runs for head in run.top1_pct()))


def grouped(runs: Sequence[Finished]) -> list[Row]:
    """Grouped by variant and by what else varies. Raises RunError for two runs of one row and seed."""
    names = [(_name(run, runs), run) for run in runs]
    refuse_doubles(names)
    by_name: dict[str, list[Finished]] = {}
    for name, run in names:
        by_name.setdefault(name, []).append(run)
    return [Row(name, tuple(sorted(group, key=lambda run: run.seed))) for name, group in by_name.items()]


def _name(run: Finished, runs: Iterable[Finished]) -> str:
    """The variant, and what varies among the runs: the number of students, the sharing, other architectures."""
    result, name = run.result, run.result.variant
    cohorts = [other.result for other in runs if len(other.result.students) > 1]
    if len(result.students) > 1 and len({len(other.students) for other in cohorts}) > 1:
        name += f", {len(result.students)} students"
    siblings = [other.result for other in runs if other.result.method == result.method]
    if len({other.result.views for other in runs}) > 1:
        name += f", {1 + result.views} view{'s' * (result.views > 0)}"
    if len({other.share for other in siblings}) > 1:
        name += f", share={result.share}"
    if result.teacher and len({other.teacher.weights_sha256 for other in siblings if other.teacher}) > 1:
        name += f", teacher {result.teacher.architecture} {result.teacher.weights_sha256[:8]}"
    if len({other.students for other in siblings if len(other.students) == len(result.students)}) > 1:
        name += f", {' + '.join(result.students)}"
    return name


def called(name: str, rows: Sequence[Row], option: str) -> Row:
    """By its whole name, or by its variant where that is one row alone. Raises UsageError."""
    name = " ".join(name.split())
    names = [row.name for row in rows]
    matches = [row for row in rows if row.name == name] or [row for row in rows if row.variant == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        several = ", ".join(repr(row.name) for row in matches)
        raise UsageError(f"{option}: {name!r} is several rows", hint=f"name one of: {several}")
    raise UsageError(f"{option}: no row is called {name!r}{nearest(name, names)}", hint="there is: " + ", ".join(names))
