"""How the name of a network is written: NAME, NAME+4 with blocks added to its last stage, NAME[KEY] where it returns
several outputs; each of them with MFEF's +msfe behind it: NAME+4+msfe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Key = str | int  # of the logits among several outputs

# The suffix of a network with MFEF's extraction: with dual attention behind it, and without.
MSFE = {True: "+msfe", False: "+msfe-da"}
MOST_ADDED = 999  # blocks; a network of more is a slip of the finger
_DEEPER = re.compile(r"(.+)\+([1-9]\d{0,2})")


def split_output(name: str) -> tuple[str, Key | None]:
    """The name of a network without the key of its logits, and the key."""
    base, bracket, key = name.partition("[")
    if not bracket or not key.endswith("]"):
        return name, None
    return base, int(key[:-1]) if key[:-1].isdecimal() else key[:-1]


def variant(name: str) -> tuple[str, bool | None]:
    """The name without MFEF's suffix, and whether the suffix asks for attention; None where there is no suffix."""
    for attention, suffix in MSFE.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), attention
    return name, None


def split_depth(name: str) -> tuple[str, int]:
    """A name without MFEF's suffix -> the same without the blocks that it adds to the last stage, and their number."""
    match = _DEEPER.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def deepened(name: str, blocks: int) -> str:
    """The name of the same network with `blocks` more in its last stage: resnet32+msfe -> resnet32+4+msfe."""
    base, attention = variant(name)
    base, already = split_depth(base)
    added = f"+{already + blocks}" if already + blocks else ""
    return base + added + ("" if attention is None else MSFE[attention])


def depth_added(name: str) -> int:
    """The number of blocks that a name adds to its network's last stage."""
    return split_depth(variant(name)[0])[1]


def one_trunk(names: Iterable[str]) -> bool:
    """Whether the names differ in nothing but the depth of the last stage, so that all other stages can be shared."""
    return len({deepened(name, -depth_added(name)) for name in names}) == 1
