"""The kept student of a complete run, proven to be the one that the run recorded."""

from __future__ import annotations

from typing import Any

from okdc import kept
from okdc.cohort import Backbone
from okdc.errors import CheckFailed, RunError
from okdc.files import read_json
from okdc.run import Run


def student(run: Run, check: str, purpose: str) -> tuple[Backbone, dict[str, Any], dict[str, Any]]:
    """The network in eval mode, student.json and result.json.

    Raises RunError for a run that is not complete: it has no student to `purpose`; CheckFailed of the kind `check` for
    weights that are not the recorded ones.
    """
    if run.state != "complete":
        hint = f"okdc resume {run.path}" if run.state == "resumable" else "start another run: okdc distill"
        raise RunError(f"{run.path} is {run.state}, not complete: there is no student to {purpose}", hint=hint)
    network, facts = kept.load(run)
    result = read_json(run.result, "weights_sha256", "kept", "judged_on", "images")
    weights = kept.weights_sha256(run)
    if not weights == facts["weights_sha256"] == result["weights_sha256"]:
        raise CheckFailed(
            check,
            f"{run.weights} is not the file that the run recorded: sha256 {weights[:12]}, "
            f"expected {result['weights_sha256'][:12]}",
            hint="another checkpoint was put in its place; restore it, or train again",
        )
    return network, facts, result
