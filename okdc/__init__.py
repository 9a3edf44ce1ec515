"""okdc: compress image classifiers by online knowledge distillation, and ship the student.

    import okdc

    recipe = okdc.load_recipe("digits_resnet8", optim={"epochs": 3})
    run = okdc.distill(recipe, out="runs/first")
    bundle = okdc.export(run)
    bundle.verify()
    predictions = bundle.predict("photos")

`import okdc` is instant: torch, numpy and everything else heavy is imported by the first use of a name that needs it.
`__all__` lists the public names; README.md in this folder is their guide.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from okdc.version import __version__

if TYPE_CHECKING:
    from okdc.api import (
        Bundle,
        Run,
        Series,
        check,
        compare,
        distill,
        distill_seeds,
        download,
        download_weights,
        evaluate,
        export,
        features,
        load_recipe,
        profile,
        report,
        resume,
        study,
        track,
    )
    from okdc.assembly.resolve import ResolvedRecipe
    from okdc.cohort import Backbone, Cohort
    from okdc.errors import CheckFailed, Interrupted, OkdcError
    from okdc.methods.base import Batch, Config, Method, Step
    from okdc.progress import Progress
    from okdc.runs.trust import trusting_code

# The module of each public name.
_HOMES = {
    "okdc.api": (
        "Bundle", "Run", "Series", "check", "compare", "distill", "distill_seeds", "download", "download_weights",
        "evaluate", "export", "features", "load_recipe", "profile", "report", "resume", "study", "track",
    ),
    "okdc.assembly.resolve": ("ResolvedRecipe",),
    "okdc.cohort": ("Backbone", "Cohort"),
    "okdc.errors": ("CheckFailed", "Interrupted", "OkdcError"),
    "okdc.methods.base": ("Batch", "Config", "Method", "Step"),
    "okdc.progress": ("Progress",),
    "okdc.runs.trust": ("trusting_code",),
}  # fmt: skip

__all__ = [
    "Backbone", "Batch", "Bundle", "CheckFailed", "Cohort", "Config", "Interrupted", "Method", "OkdcError", "Progress",
    "ResolvedRecipe", "Run", "Series", "Step", "__version__", "check", "compare", "distill", "distill_seeds",
    "download", "download_weights", "evaluate", "export", "features", "load_recipe", "profile", "report", "resume",
    "study", "track", "trusting_code",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'okdc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
