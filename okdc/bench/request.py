"""What `okdc bench` was asked for, checked. torch is imported when the words are known to name something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from okdc.bench import GROUPS, SECONDS
from okdc.errors import UsageError, nearest
from okdc.recipe.schema import Engine, Recipe, check, load

STANDARD = "cifar10_resnet20"  # whose settings are taken where no recipe is named


@dataclass(frozen=True)
class Asked:
    """What to measure, how long, and with what engine."""

    engine: Engine
    recipe: Recipe | None = None
    name: str = ""  # of the recipe
    only: tuple[str, ...] = GROUPS
    seconds: float = SECONDS
    notes: tuple[str, ...] = ()


def asked(words: Sequence[str], flags: Sequence[str], only: str | None = None, seconds: float = SECONDS) -> Asked:
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
    own = [word for word in words if not word.startswith("engine.")]  # those are of the standard pairs too
    if own and "recipe" not in groups:
        raise UsageError(
            f"--only {','.join(groups)}: nothing of it is changed by {own[0]!r}, which is of a recipe's own step",
            hint=f"--only {','.join(groups)},recipe measures that step too; or leave out {' '.join(own)}",
        )
    _check(flags)
    named = words if "recipe" in groups else ()
    draft = load([*(named or [STANDARD, *words]), *flags])
    if not named:
        draft = replace(draft, named=False)  # by the user
    from okdc.assembly.resolve import resolve

    found, notes = resolve(draft, needs_data=False)
    if not named:
        return Asked(found.engine, only=groups, seconds=seconds)
    return Asked(found.engine, found, draft.stem, groups, seconds, tuple(notes))


def _check(flags: Sequence[str]) -> None:
    """What a flag says is no matter of any recipe: raises UsageError, in which it is called as the user called it."""
    problems = [problem.replace("engine.", "--", 1) for problem in check(load([STANDARD, *flags]))[1]]
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        raise UsageError(f"{len(problems)} flags are wrong", details=problems)
