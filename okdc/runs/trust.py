"""Which runs may have their own code imported: those that this user's okdc has trained on this machine. No torch.

A run names code where its recipe or a student's file says `package.module:attribute`; the module is looked for in the
working directory first. Somebody else's run would so choose what is executed here. Names of okdc's own, of torchvision
and timm, and of installed packages (entry points) are no such code.

The list is `trusted.jsonl` in OKDC_STATE, else okdc in the user's state folder: a line a run, with its folder, the time
of its start and the code that it names. A run that was copied or moved is another one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from okdc.errors import RunError, quoted
from okdc.homes import user_folder

LIBRARIES = ("torchvision", "timm")
NAMES = (("cohort", "students"), ("method", "name"), ("method", "teacher"), ("data", "name"))  # table and key
_allowed: ContextVar[bool] = ContextVar("allowed", default=False)


@contextlib.contextmanager
def trusting_code(trusted: bool = True) -> Iterator[None]:
    """Code that any run names is imported without a look at the list, while the block runs: `--trust-code`."""
    token = _allowed.set(trusted or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


def code_of(tables: Mapping[str, Any]) -> list[str]:
    """The code that a recipe's tables name: networks, method, data set, teacher."""
    names: list[object] = []
    for table, key in NAMES:
        values = tables.get(table)
        value = values.get(key) if isinstance(values, Mapping) else None
        names += value if isinstance(value, (list, tuple)) else [value]
    return code_among(names)


def code_among(names: Iterable[object]) -> list[str]:
    """Those of some names that lead to a module which is looked for in the working directory."""
    code = [n for n in names if isinstance(n, str) and ":" in n and n.partition(":")[0] not in LIBRARIES]
    return sorted({re.split(r"[\[+]", name)[0] for name in code})  # the suffixes of a network lead to no other code


def record(folder: Path, started_at: str, code: Iterable[str]) -> str | None:
    """Add a run, or a series, that this okdc trains. Returns a note where the list cannot be written."""
    if not (names := list(code)) or _is_listed(folder, started_at, names):
        return None
    line = json.dumps({"folder": str(folder.resolve()), "started_at": started_at, "code": names})
    try:
        _list().parent.mkdir(parents=True, exist_ok=True)
        with _list().open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError as error:
        return f"{folder} is not on the list of trusted runs: {_list()}: {error.strerror}; --trust-code is needed later"
    return None


def check(folder: Path, started_at: str, code: Iterable[str]) -> None:
    """Raises RunError where the run in `folder` names code and was not trained here by this user's okdc."""
    names = list(code)
    if names and not _allowed.get() and not _is_listed(folder, started_at, names):
        code_in_words = ", ".join(quoted(name, 80) for name in names)
        raise RunError(
            f"{folder} names the code {code_in_words}, and this user has not trained that run in this place",
            hint="read that code; --trust-code, or okdc.trusting_code() in Python, then has it imported",
        )


def _is_listed(folder: Path, started_at: str, names: Iterable[str]) -> bool:
    """Whether the list has the run with all of these names."""
    try:
        lines = _list().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    missing, place = set(names), str(folder.resolve())
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError, TypeError):  # a damaged line trusts nothing
            entry = json.loads(line)
            if (entry.get("folder"), entry.get("started_at")) == (place, started_at):
                missing -= set(entry["code"])
    return not missing


def state_folder() -> Path:
    """OKDC_STATE, else okdc in the user's state folder. Raises DiskError where the user has none."""
    return user_folder("OKDC_STATE", "XDG_STATE_HOME", ".local/state")


def _list() -> Path:
    return state_folder() / "trusted.jsonl"
