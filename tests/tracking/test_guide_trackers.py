"""The trackers of the guide in okdc/README.md, offline: each follows a run that is stopped and resumed."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from harness import EPOCHS, STEPS, outcome, resume, signalled, start, uninterrupted

import okdc
from okdc.errors import Interrupted
from okdc.progress import WARNING, Progress
from okdc.runs.run import RunDir

GUIDE = (Path(okdc.__file__).parent / "README.md").read_text(encoding="utf-8")

# Of what these packages import and do, nothing is okdc's to mend.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package tells its makers that it is used."""
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_ERROR_REPORTING": "false"}
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def followed(package: str, name: str) -> RunDir:
    """A run at runs/a that the guide's tracker `name` has followed, stopped in its second epoch and resumed."""
    pytest.importorskip(package)
    (example,) = re.findall(rf"```python\n(import {package}\n.*?)```", GUIDE, re.S)
    namespace: dict[str, Any] = {"okdc": okdc}
    exec(compile(example, f"<the tracker {name} of okdc/README.md>", "exec"), namespace)
    tracker: Progress = namespace[name]()
    stopping, going = signalled(STEPS + 2, signal.SIGINT), signalled(0, signal.SIGINT)
    for progress in (stopping, going):
        progress.begun, progress.epoch = tracker.begun, tracker.epoch  # type: ignore[method-assign]
        progress.ended = tracker.ended  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        start(tell=stopping, out=Path("runs/a"))
    begun = int(time.time())
    while int(time.time()) == begun:  # wandb names a folder by the second
        time.sleep(0.05)
    run = resume(Path("runs/a"), going)
    assert not [note for note in stopping.notes + going.notes if note.startswith(WARNING)]
    assert outcome(run) == uninterrupted()
    return run


def test_mlflow_has_one_run_with_each_epoch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The smallest of its packages has no database.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Path("mlruns").absolute().as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = followed("mlflow", "MLflow")
    from mlflow import MlflowClient

    client, number = MlflowClient(), (run.path / "mlflow.txt").read_text(encoding="utf-8")
    losses = {metric.step: metric.value for metric in client.get_metric_history(number, "loss")}
    assert len(client.get_metric_history(number, "loss")) == EPOCHS
    assert losses == {row["epoch"]: row["loss"] for row in run.rows()}
    (tracked,) = client.search_runs(["0"])
    assert (tracked.info.run_id, tracked.info.status) == (number, "FINISHED")
    assert tracked.data.metrics["top1_pct"] == run.read_result().kept.top1_pct


def test_weights_and_biases_have_one_id_before_and_after() -> None:
    run = followed("wandb", "WandB")
    files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert {file.name for file in files} == {"run-runs-a.wandb"}
    content = b"".join(file.read_bytes() for file in files)
    assert all(str(row["loss"]).encode()[:8] in content for row in run.rows())
