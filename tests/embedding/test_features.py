"""`okdc features`: what each classifier of a run reads, as its last epoch left it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask
from harness import start
from safetensors.torch import load_file

import okdc
from okdc.embedding.features import features
from okdc.errors import DiskError, RunError, UsageError
from okdc.progress import Silent
from okdc.runs.run import RunDir
from okdc.training import checkpoint

Captured = pytest.CaptureFixture[str]
HEADS = ["student0", "student1", "ensemble", "fused", "kept"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of FEFR. Nobody writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        return start().path.absolute()


def of(run: Path, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report of one run and the arrays of its file."""
    out = tmp_path / "features.npz"
    (report,) = features([run], Silent(), out=out, **options)["runs"]
    with np.load(out, allow_pickle=False) as file:
        return report, dict(file)


def right(weights: dict[str, Any], features_NC: np.ndarray, name: str) -> np.ndarray:
    z = torch.from_numpy(features_NC) @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return np.asarray(z.argmax(1))


def test_a_linear_layer_of_each_classifier_on_its_features_gives_the_recorded_accuracy(
    trained: Path, tmp_path: Path
) -> None:
    report, arrays = of(trained, tmp_path, points=0)
    run = RunDir(trained)
    result, labels = run.read_result(), arrays["labels"]
    state, _ = checkpoint.load(run)
    assert state is not None
    for head, layer in (
        ("student0", "cohort.students.0.head.fc"),
        ("student1", "cohort.students.1.head.fc"),
        ("fused", "fusion.fc"),
    ):
        answers = right(state["method"], arrays[f"features_{head}"], layer)
        assert round(100 * float((answers == labels).mean()), 4) == result.heads_last_epoch_top1_pct[head]
    answers = right(load_file(run.weights), arrays["features_kept"], "head.fc")
    assert round(100 * float((answers == labels).mean()), 4) == result.kept.top1_pct
    assert [head["head"] for head in report["heads"]] == HEADS
    expected = {**result.heads_last_epoch_top1_pct, "kept": result.kept.top1_pct}
    assert {head["head"]: head["top1_pct"] for head in report["heads"]} == expected
    both = np.concatenate([arrays["features_student0"], arrays["features_student1"]], 1)
    assert np.array_equal(arrays["features_ensemble"], both)


def test_images_and_points_are_drawn_by_the_seed_and_their_rows_are_told(trained: Path, tmp_path: Path) -> None:
    report, arrays = of(trained, tmp_path, images=60, points=20, neighbours=3)
    assert (report["images"], report["points"], report["neighbours"]) == (60, 20, 3)
    assert len(arrays["rows"]) == len(set(arrays["rows"].tolist())) == 60
    assert arrays["tsne_images"].tolist() == sorted(set(arrays["tsne_images"].tolist()))
    assert max(arrays["tsne_images"]) < 60
    for head in HEADS:
        assert arrays[f"features_{head}"].shape[0] == 60
        assert arrays[f"tsne_{head}"].shape == (20, 2)
    again, same = of(trained, tmp_path, images=60, points=20, neighbours=3)
    assert again == report
    assert all(np.array_equal(arrays[name], same[name]) for name in arrays)
    whole, everything = of(trained, tmp_path, points=0)
    places = np.searchsorted(everything["rows"], arrays["rows"])
    assert whole["images"] == RunDir(trained).read_result().images
    assert np.array_equal(everything["labels"][places], arrays["labels"])
    np.testing.assert_allclose(everything["features_fused"][places], arrays["features_fused"], rtol=1e-4, atol=1e-5)


def test_without_points_there_is_no_map(trained: Path, tmp_path: Path) -> None:
    report, arrays = of(trained, tmp_path, points=0, images=40)
    assert report["points"] == 0
    assert not [name for name in arrays if name.startswith("tsne")]


def test_the_command_writes_into_the_run_and_prints_each_head(
    trained: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/a-1")
    answer = ask(capsys, "features", "runs/a-1", "--images", "50", "--points", "0", "--trust-code")
    assert answer.code == 0, answer.err
    assert [line.split()[0] for line in answer.out.splitlines()[1:]] == HEADS
    assert Path("runs/a-1/features.npz").is_file()
    assert "next: okdc report runs/a-1" in answer.err  # one run is no comparison; its page shows the map
    answer = ask(capsys, "features", "--images", "50", "--points", "0", "--json")
    (facts,) = json.loads(answer.out)["runs"]
    assert (facts["run"], facts["file"]) == ("runs/a-1", "runs/a-1/features.npz")
    assert okdc.Run("runs/a-1").state == "complete"


def test_a_run_without_the_checkpoint_of_its_last_epoch_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    (copy / "checkpoint.pt").replace(copy / "aside")
    with pytest.raises(RunError, match="checkpoint"):  # the one before it is of an earlier epoch
        features([copy], Silent())
    (copy / "checkpoint.previous.pt").unlink()
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    with pytest.raises(RunError, match="checkpoint"):
        features([other, copy], Silent(), points=0)
    assert not (other / "features.npz").exists()  # said before anything of another run was computed


def test_options_that_do_not_go_together(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        features([trained, trained], Silent(), out=tmp_path / "one.npz")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(UsageError, match="expected a file"):
            features([trained], Silent(), out=tmp_path / name)
    with pytest.raises(DiskError, match="nowhere"):
        features([trained], Silent(), out=tmp_path / "nowhere" / "features.npz")
    for name in ("result.json", "predictions.npz", "checkpoint.pt"):  # of a run, which it would end
        before = (trained / name).read_bytes()
        with pytest.raises(UsageError, match="no file of features"):
            features([trained], Silent(), out=trained / name)
        assert (trained / name).read_bytes() == before
    with pytest.raises(UsageError, match="31"):
        features([trained], Silent(), images=30, neighbours=30, out=tmp_path / "few.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_method_that_trains_one_student_has_no_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = start("method.name=baseline", "optim.epochs=1")
    report, _ = of(run.path, tmp_path, images=40, points=0)
    assert [head["head"] for head in report["heads"]] == ["student0", "kept"]


@pytest.mark.parametrize(
    ("words", "heads", "without"),
    [
        (("method.name=kd", "method.teacher=teacher"), ["student0"], ["teacher"]),
        (("method.name=one", "cohort.share=low"), ["student0", "student1"], ["gated"]),
        (("method.name=okdph",), ["student0", "student1", "hybrid", "ensemble"], []),
    ],
    ids=str,
)
def test_heads_without_features_are_named_and_a_teacher_need_not_be_there(
    words: tuple[str, ...], heads: list[str], without: list[str], tmp_path: Path, capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if "method.name=kd" in words:
        # Trained on fewer images, which have another mean: its layers lie deeper in the checkpoint.
        start("method.name=baseline", "optim.epochs=1", "data.train_images=100").path.rename("teacher")
    run = start(*words, "optim.epochs=1")
    shutil.rmtree("teacher", ignore_errors=True)
    report, arrays = of(run.path, tmp_path, images=40, points=0)
    assert [head["head"] for head in report["heads"]] == [*heads, "kept"]
    assert arrays["heads"].tolist() == [*heads, "kept"]
    assert report["without_features"] == without
    answer = ask(capsys, "features", str(run.path), "--images", "40", "--points", "0")
    assert answer.code == 0, answer.err
    assert all(name in answer.err + answer.out for name in without)
