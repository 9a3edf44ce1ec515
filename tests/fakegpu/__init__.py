"""A CUDA device that is not there: a library preloaded under torch's CUDA build, for tests on a machine without a GPU.

environ(CC=75, NAME="Tesla T4")    the environment of a process that finds such a device
missing()                          why it cannot be built here, or nothing
present()                          whether this process runs on it
reset(); counts()                  what this process asked of it: launches, graphs, copies, waits
"""

from __future__ import annotations

import os

from fakegpu.building import library, missing
from fakegpu.counting import Counts, counts, present, reset

__all__ = ["Counts", "counts", "environ", "missing", "present", "reset"]


def environ(**settings: object) -> dict[str, str]:
    """The environment of a process that finds the device, with settings by name: README.md has them."""
    path = library()
    return {
        **os.environ,
        "LD_PRELOAD": str(path),
        "TRITON_LIBCUDA_PATH": str(path.parent),
        **{f"FAKE_{name}": str(value) for name, value in settings.items()},
    }
