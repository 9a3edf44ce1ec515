"""The user's folders of okdc: one for what can be made again, one for what is remembered."""

from __future__ import annotations

import os
from pathlib import Path

from okdc.errors import DiskError


def user_folder(chosen: str, base: str, usual: str) -> Path:
    """The folder that the variable `chosen` names; else okdc in the one of the variable `base`, else in ~/`usual`.

    Raises DiskError for a user without a home, such as a number that a container was started with.
    """
    try:
        if place := os.environ.get(chosen):
            return Path(place).expanduser()
        return Path(os.environ.get(base) or Path.home() / usual) / "okdc"
    except RuntimeError as error:
        raise DiskError(f"{chosen}: {error}", hint=f"set {chosen} to a folder that can be written") from None
