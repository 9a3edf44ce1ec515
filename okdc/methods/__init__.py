"""The methods by name. Importing this imports none of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from okdc.errors import nearest

if TYPE_CHECKING:
    from okdc.methods.base import Method

METHODS = {
    "baseline": "okdc.methods.baseline:Baseline",
    "kd": "okdc.methods.kd:KD",
    "dml": "okdc.methods.dml:DML",
    "one": "okdc.methods.one:ONE",
    "ffl": "okdc.methods.ffl:FFL",
    "mfef": "okdc.methods.mfef:MFEF",
    "fefr": "okdc.methods.fefr:FEFR",
    "dualnet": "okdc.methods.dualnet:DualNet",
    "okddip": "okdc.methods.okddip:OKDDip",
    "kdcl": "okdc.methods.kdcl:KDCL",
}


def find(name: str) -> type[Method]:
    """The class of a method. Raises ValueError, naming the nearest, for an unknown one."""
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}{nearest(name, METHODS)}; there is: {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found
