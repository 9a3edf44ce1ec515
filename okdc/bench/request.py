"""What `okdc bench` shall measure, checked. torch is imported once the words are known to name something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from okdc.bench import GROUPS, SECONDS
from okdc.errors import UsageError, nearest
from okdc.recipe.draft import check, load
from okdc.recipe.schema import Engine
from okdc.recipe.words import Flag

if TYPE_CHECKING:
    from okdc.assembly.resolve import ResolvedRecipe

STANDARD = "cifar10_resnet20"  # whose settings are taken where no recipe is named


@dataclass(frozen=True)
class Request:
    """What to measure, how long, and with what engine."""

    engine: Engine
    resolved: ResolvedRecipe | None = None  # the recipe whose step is measured too
    name: str = ""  # what a run of that recipe would be named after
    only: tuple[str, ...] = GROUPS
    seconds: float = SECONDS
    notes: tuple[str, ...] = ()


def request(
    words: Sequence[str], flags: Sequence[str | Flag], only: str | None = None, seconds: float = SECONDS
) -> Request:
    """Words of the command line, flags as overrides, names for --only. Raises UsageError and RecipeError."""
    groups = GROUPS if only is None else tuple(dict.fromkeys(word.strip() for word in only.split(",")))
    for group in groups:
        if group not in GROUPS:
            raise UsageError(
                f"--only: expected some of {', '.join(GROUPS)}, found '{group}'{nearest(group, GROUPS)}",
                hint="okdc bench --only data,eval; without --only all are measured",
            )
    if only is not None and "recipe" in groups and not words:
        raise UsageError("--only recipe: no recipe was given", hint="okdc bench digits_resnet8 --only recipe")
    ignored = [word for word in words if not word.startswith("engine.")]  # engine keys hold for the standard pairs too
    if ignored and "recipe" not in groups:
        raise UsageError(
            f"--only {','.join(groups)} ignores the recipe override {ignored[0]!r}; add the group `recipe`",
            hint=f"--only {','.join(groups)},recipe measures that step too; or leave out {' '.join(ignored)}",
        )
    _check(flags)
    named = words if "recipe" in groups else ()
    draft = load([*(named or [STANDARD, *words]), *flags])
    if not named:
        draft = replace(draft, named=False)  # by the user
    from okdc.assembly.resolve import resolve

    resolved = resolve(draft, needs_data=False)
    if not named:
        return Request(resolved.recipe.engine, only=groups, seconds=seconds)
    return Request(resolved.recipe.engine, resolved, draft.stem, groups, seconds, resolved.notes)


def _check(flags: Sequence[str | Flag]) -> None:
    """Raises UsageError for the value of a flag, which the message names as the user wrote it: --dtype."""
    problems = [problem.replace("engine.", "--", 1) for problem in check(load([STANDARD, *flags]))[1]]
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        raise UsageError(f"{len(problems)} flags are wrong", details=problems)
