"""Data sets by name: okdc's own, one file and one line each, those of installed packages, and the user's callables.

Importing this imports none of them. README.md in this folder is the guide to a data set of your own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from okdc.errors import DataError, nearest
from okdc.plugins import Registry

if TYPE_CHECKING:
    from okdc.data.source import Source

DATASETS = Registry(
    "data set",
    "okdc.datasets",
    {
        "digits": "okdc.data.digits:SOURCE",
        "folder": "okdc.data.folder:SOURCE",
        "cifar10": "okdc.data.cifar:CIFAR10",
        "cifar100": "okdc.data.cifar:CIFAR100",
        "cinic10": "okdc.data.cinic10:SOURCE",
        "imagenet": "okdc.data.imagenet:SOURCE",
    },
    DataError,
    callables=False,
)
_CALLABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def find(name: str) -> Source:
    """The data set called `name`. The module of a `package.module:callable` is imported when its images are read.

    Raises DataError for a name that leads nowhere, and for an entry point that is neither a Source nor a callable.
    """
    from okdc.data.source import Source

    if name in DATASETS:
        target = DATASETS.load(name)
        if isinstance(target, Source):
            return target
        if not callable(target):
            raise DataError(f"{name}: expected a Source or a callable, found {type(target).__name__}")
    elif not _CALLABLE.fullmatch(name):
        names = DATASETS.names()
        raise DataError(
            f"no data set is called {name!r}{nearest(name, names)}",
            hint=f"there is: {', '.join(names)}; or package.module:callable",
        )
    from okdc.data.custom import source

    return source(name)
