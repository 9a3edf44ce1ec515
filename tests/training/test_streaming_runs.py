"""Whole runs on images that are decoded as they are needed: the same loop, and what can go wrong with files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask
from harness import Quiet, digest, recipe, result, resume, rows, signalled, start
from pictures import streamed, write_imagenet
from PIL import Image

from okdc.assembly import student as students
from okdc.bundle import checks as soundness
from okdc.data import images, ondemand
from okdc.data.imagenet import MOMENTS
from okdc.data.ondemand import OnDemand
from okdc.deploy import parity
from okdc.deploy import torch_reference as sides
from okdc.errors import DataError, Interrupted, RecipeError
from okdc.recipe import catalog
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import checkpoint

EPOCHS, STEPS = 2, 4  # 40 training files: 8 validate, 32 are four batches of 8


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tree, tmp_path / "own"))


def words(root: Path, *more: str) -> tuple[str, ...]:
    return streamed(root, "optim.epochs=2", "engine.workers=0", *more)


def trained(run: RunDir) -> dict[str, Any]:
    """All that a run leaves behind but what names its recipe, to the bit."""
    state, _ = checkpoint.load(run)
    assert state is not None
    named = {"recipe_sha256", "sha256"}  # and the hash of what names it
    record = {key: value for key, value in result(run).items() if key not in named}
    for student in record["cohort"]:
        del student["student_sha256"]  # of a file that names the recipe
    return {
        "rows": rows(run),
        "result": record,
        "weights": hashlib.sha256(run.weights.read_bytes()).hexdigest(),
        "student": {key: value for key, value in read_json(run.student).items() if key not in named},
        "state": digest({k: v for k, v in state.items() if k != "rows" and not k.startswith("seconds")}),
    }


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run in one go, without workers."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("whole"))
    try:
        return RunDir(start(*words(tree)).path.absolute())
    finally:
        os.chdir(before)


def test_a_run_says_what_it_is_made_of_and_is_judged_on_the_published_split(whole: RunDir, tree: Path) -> None:
    found = result(whole)
    assert (found["judged_on"], found["images"], found["dataset"]) == ("test", 8, "imagenet")
    student = read_json(whole.student)
    assert student["preprocessing"] == {
        "size": 32,
        "shorter_side": 36,
        "resize": images.RESIZE_LARGER,
        "mean": list(MOMENTS[0]),
        "std": list(MOMENTS[1]),
    }
    tell = Quiet()
    start(*words(tree, "optim.epochs=1"), tell=tell)
    assert any("8 images of val are the test split" in note for note in tell.notes)
    assert any("decoded when needed" in note for note in tell.notes)
    assert "workers 0 (as asked)" in tell.notes


@pytest.mark.parametrize("call", [2, STEPS + 1 + 3])
def test_a_run_that_a_signal_stops_in_the_middle_of_an_epoch_continues_to_the_bit(
    tree: Path, whole: RunDir, call: int
) -> None:
    """Stopped with workers, continued with them; the run in one go had none."""
    run = Path("run")
    with pytest.raises(Interrupted):
        start(*words(tree, "engine.workers=2"), tell=signalled(call, signal.SIGTERM), out=run)
    assert not multiprocessing.active_children()
    state, _ = checkpoint.load(RunDir(run))
    assert state is not None
    assert 0 < state["step"] < STEPS
    assert trained(resume(run)) == trained(whole)
    assert not multiprocessing.active_children()


def spoil(path: Path) -> bytes:
    """The file with its size and another content; returns what it was."""
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    return content


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_damaged_while_it_trains_is_named_and_the_run_goes_on_when_it_is_restored(
    own_tree: Path, whole: RunDir, monkeypatch: pytest.MonkeyPatch, split: str, workers: int
) -> None:
    from okdc.assembly import job as assembly

    monkeypatch.setattr(ondemand, "PROBE", 0)
    asked = words(own_tree, f"engine.workers={workers}")
    found = assembly.dataset(recipe(*asked))
    assert found.files is not None
    path = found.files.path(int((found.train if split == "train" else found.val)[3]))
    content = spoil(path)
    run = Path("run")
    with pytest.raises(DataError, match=path.name) as caught:
        start(*asked, out=run)
    assert "okdc resume run" in caught.value.hint
    assert caught.value.exit_code == 2
    assert RunDir(run).state() == "resumable"
    assert not multiprocessing.active_children()
    state, _ = checkpoint.load(RunDir(run))
    assert state is not None
    if split == "val":
        assert (state["epoch"], state["step"]) == (0, STEPS), "no step of the epoch is trained again"
    with pytest.raises(DataError, match=path.name):
        resume(run)
    path.write_bytes(content)
    assert trained(resume(run)) == trained(whole)


def test_a_worker_that_is_killed_is_no_bug_and_the_run_can_be_continued(tree: Path, whole: RunDir) -> None:
    def kill(call: int) -> None:
        if call == STEPS + 2:
            (child, *_) = multiprocessing.active_children()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still there for the loop to find

    run = Path("run")
    with pytest.raises(DataError, match="a process that decodes images died") as caught:
        start(*words(tree, "engine.workers=2"), tell=Quiet(kill), out=run)
    assert "okdc resume run" in caught.value.hint
    assert not multiprocessing.active_children()
    assert trained(resume(run)) == trained(whole)


def test_the_command_ends_with_code_2_and_one_message(own_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_tree / "train" / "n01440764" / "n01440764_002.JPEG"
    spoil(path)
    recipe()  # writes tiny.toml
    answer = ask(capsys, "distill", "tiny.toml", *words(own_tree))
    assert answer.code == 2
    assert path.name in answer.err
    assert "Traceback" not in answer.err


# --- after training


@pytest.fixture(scope="module")
def bundle(whole: RunDir) -> tuple[Path, list[int]]:
    """The bundle of the run, and how many images were decoded at a time on the way."""
    from okdc.deploy.export import export

    counts: list[int] = []
    read = OnDemand.__getitem__

    def counted(self: OnDemand, rows: ondemand.Rows) -> images.Pixels:
        found = read(self, rows)
        counts.append(len(found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnDemand, "__getitem__", counted)
        patch.setattr("okdc.deploy.torch_reference.eval_batch", lambda *_: 4)
        done = export(whole, None, None, Quiet())
    assert done.parity.float32.passed
    return done.folder, counts


def test_a_bundle_says_the_shorter_side_in_its_manifest_and_in_the_file_itself(bundle: tuple[Path, list[int]]) -> None:
    import onnx

    manifest = read_json(bundle[0] / "manifest.json")
    assert manifest["input"] == {
        "name": "image",
        "layout": "NHWC",
        "dtype": "uint8",
        "colour": "RGB",
        "height": 32,
        "width": 32,
        "shorter_side": 36,
        "resize": images.RESIZE_LARGER,
    }
    model = onnx.load(bundle[0] / "model.onnx")
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["okdc.input"])["shorter_side"] == 36
    assert manifest["accuracy"]["images"] == 8


class Asked:
    """Images that keep count of how many are asked for at a time."""

    def __init__(self, pixels: images.Pixels) -> None:
        self.pixels, self.shape = pixels, pixels.shape
        self.counts: list[int] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Any) -> images.Pixels:
        found: images.Pixels = self.pixels[rows]
        self.counts.append(len(found))
        return found


def test_parity_holds_no_more_images_than_a_batch_at_a_time_and_finds_the_same(
    whole: RunDir, bundle: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "FLOAT64", 10)
    monkeypatch.setattr(sides, "eval_batch", lambda *_: 50)
    student = students.load(whole)
    network, info = student.network, student.info
    pixels = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    labels = sides.Torch(network, info.preprocessing).logits(pixels).argmax(1)
    asked = Asked(pixels)
    path = bundle[0] / "model.onnx"
    report, logits = parity.check(path, network, info, asked, labels, 100.0, "test")
    assert report.passed, report.failures
    assert report.images == 400
    assert max(asked.counts) == soundness.PROBE
    assert asked.counts.count(50) == 400 / 50, "each once for both sides"
    assert sum(asked.counts) == 400 + 10 + soundness.PROBE + 4, "and some for float64, the batches, the second engine"
    again, at_once = parity.check(path, network, info, pixels, labels, 100.0, "test")
    assert report == again
    np.testing.assert_array_equal(logits, at_once)


def test_an_export_reads_the_split_from_its_files_in_parts(bundle: tuple[Path, list[int]]) -> None:
    assert bundle[1].count(4) >= 3  # torch's parts of eight images, and the rest of the five samples


def test_the_python_client_resizes_as_training_did(bundle: tuple[Path, list[int]], tree: Path) -> None:
    script = catalog.folder("export") / "python" / "run.py"
    spec = importlib.util.spec_from_file_location("streaming_runner", script)
    assert spec is not None
    assert spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    client = runner.Bundle(bundle[0])
    assert (runner.RULE, runner.LARGER) == (images.RESIZE, images.RESIZE_LARGER)
    for path in sorted(tree.rglob("*.JPEG")):
        with Image.open(path) as image:
            assert np.array_equal(client.read(path), images.fit(image, 32, 36)), path
    assert runner.selftest(client, False)


def test_a_client_refuses_a_rule_that_it_does_not_know(bundle: tuple[Path, list[int]], tmp_path: Path) -> None:
    """As one written before there was a shorter side would, which looked at `resize` alone."""
    assert images.RESIZE_LARGER != images.RESIZE
    folder = Path(shutil.copytree(bundle[0], tmp_path / "bundle"))
    manifest = read_json(folder / "manifest.json")
    manifest["input"]["resize"] = images.RESIZE
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("refusing_runner", catalog.folder("export") / "python" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    with pytest.raises(ValueError, match="does not know the input"):
        runner.Bundle(folder)


def test_other_images_are_refused(whole: RunDir, own_tree: Path) -> None:
    from okdc.deploy.export import export

    path = own_tree / "val" / "n01440764" / "n01440764_000.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="the images are not those of"):
        export(whole, Path("bundle"), str(own_tree), Quiet())


def test_a_recipe_is_profiled_with_its_folders_classes_or_the_thousand_of_imagenet(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe()
    text = (
        Path("tiny.toml")
        .read_text(encoding="utf-8")
        .replace('"digits"', '"imagenet"')
        .replace("_size = 8", "_size = 32")
    )
    for root, classes in ((tree, 2), (Path("nowhere").absolute(), 1000)):
        Path("large.toml").write_text(text.replace("[data]", f'[data]\nroot = "{root}"'), encoding="utf-8")
        answer = ask(capsys, "profile", "large.toml", "--json")
        assert answer.code == 0, answer.err
        assert {row["classes"] for row in json.loads(answer.out)["rows"]} == {classes}


# --- rules


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("augment.padding=8", "augment.padding: augment.crop=resized has none"),
        ("data.shorter_side=31", "data.shorter_side: expected at least data.image_size (32), found 31"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tree: Path, word: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(*words(tree, word))
    assert any(line.startswith(says) for line in caught.value.details)


def test_digits_have_no_shorter_side_and_padding_may_be_left_out_of_an_imagenet_recipe(tree: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe("data.shorter_side=8")
    assert any(line.startswith("data.shorter_side: the images of digits are not cut") for line in caught.value.details)
    assert recipe(*words(tree, "augment.padding=4")).recipe.augment.padding == 4
