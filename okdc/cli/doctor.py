"""The command `doctor`."""

from __future__ import annotations

from typing import Any

from okdc.cli import console
from okdc.cli.ends import leave
from okdc.cli.options import Json
from okdc.errors import CheckFailed
from okdc.units import size

NAMES = 18  # columns


def doctor(as_json: Json = False) -> None:
    """Look at this machine and installation, and test the export. Prints versions, device, folders and extras."""
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
    packages = [
        f"{name} {version or 'missing'}" for name, version in versions.items() if name not in ("okdc", "python")
    ]
    memory = size(report["memory_available_bytes"])
    _line("okdc", f"{versions['okdc']}, Python {versions['python']}")
    _line("packages", ", ".join(packages))
    _line("machine", f"{report['platform']}; {report['processor']}, {report['cores']} cores; {memory} of memory free")
    _line("flags", ", ".join(report["processor_flags"]) or "none by which kernels are chosen")
    for gpu in report["gpus"]:
        state = gpu["unusable"] or "usable"
        _line("GPU", f"{gpu['name']}, {size(gpu['memory_bytes'])}, capability {gpu['capability']}: {state}")
    for reason in report["reasons"]:
        _line("a training", reason)
    _line("onnxruntime", ", ".join(report["onnxruntime_providers"]))
    for folder in report["folders"]:
        if folder["problem"]:  # said below, as a failure
            continue
        used = f", {size(folder['bytes'])} in it" if folder["bytes"] else ""
        there = "" if folder["exists"] else ", not made yet"
        _line(folder["kind"], f"{folder['path']}: {size(folder['free_bytes'])} free{used}{there}")
    for extra in report["extras"]:
        installed = ", ".join(f"{name} {version}" for name, version in extra["versions"].items())
        missing = f"not installed; {extra['install']} brings {extra['purpose']}"
        _line(f"[{extra['extra']}]", installed if extra["installed"] else missing)
    test = report["self_test"]
    verdict = "FAILED" if test["failed"] else "exported, run by onnxruntime, and equal"
    _line("self-test", f"an untrained {test['network']}: {verdict}, in {test['seconds']:.1f} s")
    for warning in test["warnings"]:
        console.warn(warning)


def _line(what: str, text: str) -> None:
    console.out(f"{what:<{NAMES}}{text}")
