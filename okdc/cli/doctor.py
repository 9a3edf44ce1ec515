"""The command `doctor`."""

from __future__ import annotations

from typing import Any

from okdc.cli import console
from okdc.cli.ends import leave
from okdc.cli.options import Json
from okdc.errors import CheckFailed
from okdc.units import size


def doctor(as_json: Json = False) -> None:
    """Look at this machine and installation: versions, device, folders, extras, and a self-test of the export."""
    from okdc.survey import doctor as survey

    report = survey.doctor()
    if as_json:
        console.out_json(report)
    else:
        _show(report)
    try:
        survey.raise_failures(report)
    except CheckFailed as error:
        leave(error)
    if not as_json:
        console.next_step("okdc distill")


def _show(report: dict[str, Any]) -> None:
    versions = report["versions"]
    rows = [
        ["okdc", f"{versions['okdc']}, Python {versions['python']}"],
        ["packages", ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items()
                               if name not in ("okdc", "python"))],
        ["machine", f"{report['platform']}; {report['processor']}, {report['cores']} cores; "
                    f"{size(report['memory_available_bytes'])} of memory free"],
        ["kernels by", ", ".join(report["processor_flags"]) or "no flag that they ask for"],
    ]  # fmt: skip
    for gpu in report["gpus"]:
        state = gpu["unusable"] or "usable"
        rows.append(["GPU", f"{gpu['name']}, {size(gpu['memory_bytes'])}, capability {gpu['capability']}: {state}"])
    rows += [["choice", reason] for reason in report["reasons"]]
    rows.append(["onnxruntime", ", ".join(report["onnxruntime_providers"])])
    for folder in report["folders"]:
        used = f", {size(folder['bytes'])} in it" if folder["bytes"] else ""
        there = "" if folder["exists"] else ", not made yet"
        rows.append([folder["kind"], f"{folder['path']}: {size(folder['free_bytes'])} free{used}{there}"])
    for extra in report["extras"]:
        found = ", ".join(f"{name} {version}" for name, version in extra["versions"].items())
        rows.append([
            f"extra {extra['extra']}", found if extra["installed"] else f"{extra['install']}, for {extra['purpose']}"
        ])  # fmt: skip
    test = report["self_test"]
    verdict = f"failed: {test['failed']}" if test["failed"] else "exported, run by onnxruntime, and equal"
    rows.append(["self-test", f"an untrained {test['network']}: {verdict}, in {test['seconds']:.1f} s"])
    console.table(["what", "found"], rows)
    for warning in test["warnings"]:
        console.warn(warning)
