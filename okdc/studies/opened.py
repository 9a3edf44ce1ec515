"""A study and the folder of its runs, as a command names them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from okdc.errors import RecipeError, RunError, UsageError
from okdc.recipe.explain import refusal
from okdc.runs.files import write
from okdc.runs.run import RunDir
from okdc.studies.plan import Planned, planned
from okdc.studies.schema import FILE, LOGS, TEACHERS, Study, find, problems, read

ROOT = Path("studies")
TABLE, TABLE_JSON, PLOT = "table.md", "table.json", "students.svg"


@dataclass(frozen=True)
class Opened:
    """A study and the folder of its runs."""

    study: Study
    folder: Path
    runs: tuple[Planned, ...]
    words: tuple[str, ...]  # of the command, -o included

    @property
    def again(self) -> str:
        """How another command names it, quoted for a shell: by its folder, once that says what it is of."""
        return shlex.join((str(self.folder),) if is_remembered(self) else self.words)


def opened(words: Sequence[str], out: Path | None) -> Opened:
    """The study that the first word names, with KEY=VALUE words behind it, in `out` or studies/NAME.

    Raises RecipeError for a word that names no study and for a wrong file, UsageError for an `out` that is none or
    stands beside the folder of a study, RunError for a folder of something else.
    """
    word, *overrides = words
    if wrong := [each for each in overrides if "=" not in each]:
        raise RecipeError(f"{wrong[0]}: expected one study, then KEY=VALUE words", hint="okdc study lists them")
    path = find(word)
    study = read(path)
    study = study.model_copy(update={"overrides": (*study.overrides, *overrides)})
    if wrong := problems(study):  # of the overrides: the file has none
        raise refusal(" ".join(words), wrong)
    folder = _folder(path, out)
    runs = planned(study, folder, path)
    _refuse_another_study(folder, path, study, runs)
    return Opened(study, folder, tuple(runs), (*words, *(("-o", str(out)) if out else ())))


def _folder(path: Path, out: Path | None) -> Path:
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}: expected a folder, found a file")
    if path.name != FILE:
        return out or ROOT / path.stem
    if out is not None and out.resolve() != path.parent.resolve():
        raise UsageError(
            f"-o {out}: {path.parent} is the folder of a study, and its runs lie there",
            hint=f"leave -o out; for the same study in another folder name its file: {path}, copied to another name",
        )
    return path.parent


def _refuse_another_study(folder: Path, path: Path, study: Study, runs: Sequence[Planned]) -> None:
    """Raises RunError where a folder holds what a study would hide: runs of another study, or no runs."""
    recorded = folder / FILE
    if not folder.is_dir() or path == recorded:
        return
    if recorded.is_file():
        names = {run.name for run in runs}
        others = [run for run in planned(read(recorded), folder, recorded) if run.name not in names]
        if begun := [run.name for run in others if RunDir(run.folder).is_begun()]:
            raise RunError(
                f"{folder} holds runs of another study",
                hint=f"choose another -o, or move them; the table that they are of: okdc study {folder} --table",
                details=begun,
            )
        return
    own = {*study.columns, TEACHERS, LOGS, TABLE, TABLE_JSON, PLOT}
    for inside in sorted(folder.iterdir()):
        if inside.name not in own and not inside.name.startswith("."):
            raise RunError(f"{folder} holds something else than a study: {inside.name}", hint="choose another -o")


def is_remembered(study: Opened) -> bool:
    """Whether the folder says that it is of this study."""
    recorded = study.folder / FILE
    return recorded.is_file() and recorded.read_bytes() == _text(study.study)


def is_anothers(study: Opened) -> bool:
    """Whether the folder says that it is of another study, or of other keys."""
    return (study.folder / FILE).is_file() and not is_remembered(study)


def remember(study: Opened) -> None:
    """Write the study into its folder, so that the folder alone continues it. Raises DiskError."""
    study.folder.mkdir(parents=True, exist_ok=True)
    if not is_remembered(study):
        write(study.folder / FILE, _text(study.study))


def _text(study: Study) -> bytes:
    return tomli_w.dumps(study.model_dump(exclude_none=True, exclude_defaults=True)).encode()
