"""How the name of a network is written: NAME, NAME[KEY] where it returns several outputs, either with MFEF's +msfe."""

from __future__ import annotations

Key = str | int  # of the logits among several outputs

# The suffix of a network with MFEF's extraction: with dual attention behind it, and without.
MSFE = {True: "+msfe", False: "+msfe-da"}


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
