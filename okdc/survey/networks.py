"""Which networks a recipe for a folder begins with: small ones from scratch, or pretrained ones whose weights are here.

Nothing is downloaded, and torch is imported only where a budget asks what a network costs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from okdc.errors import UsageError
from okdc.progress import Progress
from okdc.survey.folder import Folder

if TYPE_CHECKING:
    from okdc.profiling.budget import Limit

# Two of one network learn from scratch. Of a budget the first that fits, the most accurate first.
SCRATCH = ("resnet20", "resnet14", "resnet8")
# A big and a small one, and the file of each one's default weights as torchvision keeps it (tested).
PRETRAINED = {
    "torchvision:mobilenet_v3_large": "mobilenet_v3_large-5c1a4163.pth",
    "torchvision:mobilenet_v3_small": "mobilenet_v3_small-047dcff4.pth",
}
PRETRAINED_SIZE = 224  # that these weights were made for
PRETRAINED_SIDE = 232  # of which these are the middle, for the big one
SMALL = 40  # pixels up to which images stay as they are
FROM_PHOTOGRAPHS = 128  # pixels from which on photographs lose much at 32
# Shorter sides below this are enlarged more than three times to 224: pretrained features are then of little use.
ENLARGED = 64


@dataclass(frozen=True)
class Networks:
    """The students of a recipe, and why these."""

    students: tuple[str, ...]
    image_size: int
    pretrained: bool
    keep: str | int
    reason: str  # for the students
    size_reason: str
    keep_reason: str
    shorter_side: int | None = None  # of images before the cut; None: image_size


def choose(folder: Folder, pretrained: bool | None, limits: Sequence[Limit], tell: Progress) -> Networks:
    """Networks for the images of a folder, within the limits. `pretrained` None: where their weights are here.

    Raises UsageError where no network fits the limits, with what each costs.
    """
    here = all((weights_folder() / file).is_file() for file in PRETRAINED.values())
    large = folder.shorter_side >= ENLARGED
    if pretrained or (pretrained is None and here and large):
        why = "pretrained, as asked" if pretrained else "pretrained, since their weights are on this machine"
        kept = _within(tuple(PRETRAINED), PRETRAINED_SIZE, folder, limits, tell)
        return _pretrained(kept, why, limits)
    why = "from scratch"
    if pretrained is None and large:
        why += "; no pretrained weights are on this machine (--pretrained asks for them)"
    elif pretrained is None and here:
        why += f"; the images are too small for networks that were pretrained at {PRETRAINED_SIZE} pixels"
    size, size_reason = _small_size(folder)
    name, *_ = _within(SCRATCH, size, folder, limits, tell)
    fits = f", the first of {', '.join(SCRATCH)} within {_words(limits)}" if limits else ""
    return Networks(
        students=(name, name),
        image_size=size,
        pretrained=False,
        keep="best",
        reason=f"two small networks, {why}{fits}",
        size_reason=size_reason,
        keep_reason="validation chooses the student",
    )


def weights_folder() -> Path:
    """Where torch.hub keeps what torchvision downloads, without an import of either."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _pretrained(kept: Sequence[str], why: str, limits: Sequence[Limit]) -> Networks:
    big, small = PRETRAINED
    keep: str | int = "best"
    keep_reason = 'validation chooses the student; "smallest" keeps the small one'
    if limits and list(kept) == [small]:
        keep, keep_reason = 1, f"the small one, which alone is within {_words(limits)}; the big one teaches it"
    elif limits and list(kept) == [big]:
        keep, keep_reason = 0, f"the big one, which alone is within {_words(limits)}"
    return Networks(
        students=(big, small),
        image_size=PRETRAINED_SIZE,
        pretrained=True,
        keep=keep,
        reason=f"a big and a small network, {why}",
        size_reason="the size that the weights were made for",
        shorter_side=PRETRAINED_SIDE,
        keep_reason=keep_reason,
    )


def _small_size(folder: Folder) -> tuple[int, str]:
    """The side of the images for small networks, and the reason."""
    side, one = folder.shorter_side, folder.one_size
    if one is not None and 4 <= one <= SMALL:
        return one, f"every image has {one}×{one} pixels"
    if side <= SMALL:
        size = max(8, 4 * round(side / 4))
        return size, f"half of the images have a shorter side of {side:,} pixels or less"
    if side < FROM_PHOTOGRAPHS:
        return 32, f"what small networks are drawn for; the images' shorter sides have a median of {side:,}"
    return (
        64,
        f"photographs lose much at 32; the shorter sides have a median of {side:,} pixels; 32 is four times faster",
    )


def _within(names: Sequence[str], size: int, folder: Folder, limits: Sequence[Limit], tell: Progress) -> list[str]:
    """The networks that every limit holds for. Without limits: all, and nothing is measured."""
    if not limits:
        return list(names)
    from okdc.profiling import budget

    costs = {name: budget.costs(name, size, len(folder.classes), limits, tell) for name in names}
    fitting = [name for name in names if all(limit.holds(costs[name][limit.name]) for limit in limits)]
    if not fitting:
        raise UsageError(
            f"--budget {_words(limits)}: no network fits at {size}×{size} pixels and {len(folder.classes)} classes",
            hint="a wider budget, or networks of your own: cohort.students",
            details=[f"{name}: {budget.in_words(costs[name], limits)}" for name in names],
        )
    return fitting


def _words(limits: Sequence[object]) -> str:
    return ",".join(map(str, limits))
