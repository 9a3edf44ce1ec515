"""The sentences and names of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from okdc.runs.accuracy import with_interval

TEACHER = "teacher"  # the head of a frozen one
HEADS = {"fused": "fused classifier", "ensemble": "ensemble", "means": "averaged students"}


def networks(names: Sequence[str]) -> str:
    """`two resnet8`, `resnet8 and resnet14`."""
    counts = {name: names.count(name) for name in names}
    words = [name if n == 1 else f"{counted(n)} {name}" for name, n in counts.items()]
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]


def counted(n: int) -> str:
    return ("no", "one", "two", "three", "four", "five", "six")[n] if n < 7 else f"{n:,}"


def head(row: Mapping[str, Any]) -> str:
    """A classifier's name: `student0 (resnet8)`, `fused classifier`, `kept: student0`."""
    if row["role"] == "kept":
        return f"kept: student{row['student']}"
    name = HEADS.get(row["head"], row["head"])
    return f"{name} ({row['network']})" if row["role"] == "student" else name


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What was trained, what was kept, what it is worth: three sentences of a complete run, else how far it is."""
    students, curves, data = facts["students"], facts["curves"], facts["data"]
    images = f": {data['images']['train']:,} images of {len(facts['classes'])} classes" if data else ""
    trained = len(curves["epochs"])
    epochs = f"{trained} epoch{'s' if trained != 1 else ''}"
    result = facts["result"]
    together = f"{networks(students)} together" if len(students) > 1 else f"one {students[0]}{_beside(facts)}"
    first = f"{facts['card']['title']} trained {together} for {epochs} on {facts['dataset']}{images}."
    if result is None:
        state = {"running": "The training is under way", "resumable": "The training was interrupted"}
        where = state.get(facts["state"], "The training failed")
        why = f": {facts['failed']}" if facts["failed"] else ""
        return [first, f"{where}{why}; its recipe has {curves['planned']} epochs."]
    kept = result["kept"]
    if kept["val_top1_pct"] is None:
        chosen = "Nothing was validated, so the last epoch counts"
    else:
        chosen = f"Validation chose it, with {kept['val_top1_pct']:.2f} %"
    averaged = ", the average of its weights over the steps" if kept.get("averaged") else ""
    network = f"student{kept['student']} ({kept['architecture']})"
    second = f"Kept is {network} after epoch {kept['epoch']}{averaged}. {chosen}.{_helpers(facts)}"
    third = (
        f"It has {kept['params']:,} parameters, takes {kept['macs']:,} multiply-adds an image, and answers "
        f"{with_interval(kept['top1_pct'], result['images'])} % of {result['images']:,} {result['judged_on']} images "
        f"rightly (95 % interval, one run)."
    )
    return [first, second, third]


def _beside(facts: Mapping[str, Any]) -> str:
    """Who taught the only student."""
    if not facts["taught"]:
        return " alone"
    teacher = facts["result"] and facts["result"]["teacher"]
    return f" under a frozen teacher, {teacher['architecture']}," if teacher else " under a frozen teacher"


def _helpers(facts: Mapping[str, Any]) -> str:
    """What the kept student was trained with and does not need: peers, the fused classifier, exits, means of students.

    The teacher is not among them, nor the ensemble, which is no network of its own.
    """
    peers = len(facts["students"]) - 1
    names = [f"{counted(peers)} peer{'s' if peers > 1 else ''}"] if peers else []
    roles = {row["head"]: row["role"] for row in facts["heads"]}
    names += [head for head, role in roles.items() if role == "other" and head != TEACHER]
    names += [f"the {HEADS.get(head, head)}" for head, role in roles.items() if role == "fused"]
    if not names:
        return ""
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f" The training alone needed {listed}."
