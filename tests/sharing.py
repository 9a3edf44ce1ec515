"""Things that take long to make and are only read: made once a session, by the first worker that needs one."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


class Shared:
    """A folder that all workers of a session see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """The path of that name, complete. Where it is not, `make` is called with the path; others wait for it."""
        path, complete = self.folder / name, self.folder / f"{name}.complete"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, or its process is dead
            if not complete.exists():
                shutil.rmtree(path, ignore_errors=True)  # what a failure left behind
                make(path)
                complete.touch()
        return path
