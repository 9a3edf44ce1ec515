"""The methods by name: okdc's own, one line each, those of installed packages, and the user's `package.module:Class`.

Importing this imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from okdc.errors import RecipeError
from okdc.plugins import Registry

if TYPE_CHECKING:
    from okdc.methods.base import Method

METHODS = Registry(
    "method",
    "okdc.methods",
    {
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
        "byot": "okdc.methods.byot:BYOT",
        "ahbf": "okdc.methods.ahbf:AHBF",
        "switokd": "okdc.methods.switokd:SwitOKD",
        "pcl": "okdc.methods.pcl:PCL",
        "okdph": "okdc.methods.okdph:OKDPH",
        "relay": "okdc.methods.relay:Relay",
    },
    RecipeError,
)


def find(name: str) -> type[Method]:
    """The class of a method. Raises RecipeError for an unknown name, and for one that leads to no method."""
    kind = METHODS.load(name)
    if name in METHODS.own:
        return kind  # type: ignore[no-any-return]
    from pydantic import ValidationError

    from okdc.methods.base import Config, Method

    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise RecipeError(f"{name}: expected a subclass of okdc.Method, found {kind!r}")
    config = getattr(kind, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise RecipeError(f"{name}: expected its Config to be a subclass of okdc.Config, found {config!r}")
    try:
        kind.card()  # here, and not when the result is written after hours of training
    except ValidationError as error:
        attributes = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise RecipeError(f"{name}: of its class, {attributes}: {error.errors()[0]['msg']}") from error
    return kind
