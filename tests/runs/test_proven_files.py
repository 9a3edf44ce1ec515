"""Nothing in a run is believed unproven: files that were edited, cut or damaged, and what each command says of them."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from asking import ask
from harness import Quiet, outcome, resume, signalled, start, uninterrupted, write_recipe
from making import write_json

import okdc
from okdc.errors import Interrupted, RunError
from okdc.runs.files import read_json
from okdc.runs.files import write_json as write_unsealed
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def stopped() -> RunDir:
    """A run that Ctrl-C has stopped in its second epoch."""
    with pytest.raises(Interrupted):
        start(tell=signalled(6, signal.SIGINT), out=Path("stopped"))
    return RunDir(Path("stopped"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# --- recipe.toml

COMMANDS = ["resume", "profile", "export --onnx", "evaluate", "compare", "distill method.name=kd method.teacher={run}"]
EDITS = {
    "optim.lr": ("lr = 0.05", "lr = 0.5"),
    "seed": ("seed = 0", "seed = 1"),
    "optim.batch_size": ("batch_size = 16", "batch_size = 8"),
    "optim.epochs": ("epochs = 3", "epochs = 2"),
    "method.temperature": ("temperature = 3.0", "temperature = 4.0"),
    "deterministic": ("deterministic = false", "deterministic = true"),
    "optim.lrr": ("lr = 0.05", "lr = 0.05\nlrr = 1"),
    "cohort.share": ('share = "low"\n', ""),
}


@pytest.mark.parametrize("key", EDITS)
def test_a_resumed_run_names_every_key_that_was_edited(stopped: RunDir, key: str) -> None:
    edit(stopped.recipe, *EDITS[key])
    edit(stopped.recipe, 'keep = "best"', "keep = 1")
    before = stopped.checkpoint.read_bytes()
    with pytest.raises(RunError, match=r"stopped/recipe\.toml was edited") as caught:
        resume(stopped.path)
    assert sorted(line.partition(":")[0] for line in caught.value.details) == sorted([key, "cohort.keep"])
    assert f"okdc distill {stopped.recipe}" in caught.value.hint
    assert stopped.checkpoint.read_bytes() == before


def test_the_old_and_the_new_value_are_named(stopped: RunDir) -> None:
    edit(stopped.recipe, "lr = 0.05", "lr = 0.5")
    with pytest.raises(RunError) as caught:
        resume(stopped.path)
    assert caught.value.details == ("optim.lr: 0.05 when it began, 0.5 now",)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_opens_a_run_proves_its_recipe(run: RunDir, capsys: Captured, command: str) -> None:
    edit(run.recipe, "epochs = 8", "epochs = 80")
    words = shlex.split(command.format(run=run.path))
    answer = ask(capsys, *words, *([] if "teacher" in command else [str(run.path)]))
    assert answer.code == 2
    assert "optim.epochs: 8 when it began, 80 now" in answer.err or str(run.recipe) in answer.err


def test_an_edited_run_hides_no_other_in_the_list(capsys: Captured) -> None:
    first, second = start("optim.epochs=1"), start("optim.epochs=1")
    edit(first.recipe, "lr = 0.05", "lr = 0.5")
    rows = {row["run"]: row for row in json.loads(ask(capsys, "runs", "--json").out)}
    assert rows.keys() == {str(first.path), str(second.path)}
    assert rows[str(second.path)]["state"] == "complete"
    assert ask(capsys, "runs").code == 0


def test_a_series_names_the_keys_of_its_recipe_that_were_edited(capsys: Captured) -> None:
    words = [str(write_recipe()), "optim.epochs=1", "--seeds", "0,1", "-o", "series"]
    assert ask(capsys, "distill", *words).code == 0
    edit(Path("series/recipe.toml"), "lr = 0.05", "lr = 0.5")
    answer = ask(capsys, "resume", "series")
    assert answer.code == 2
    assert "optim.lr: 0.05 when it began, 0.5 now" in answer.err


def test_comments_order_and_the_place_of_the_images_are_no_edits(stopped: RunDir) -> None:
    text = stopped.recipe.read_text()
    stopped.recipe.write_text("# mine\n" + text.replace("lr = 0.05", "lr   = 5e-2"))
    resume(stopped.path)
    assert outcome(stopped) == uninterrupted()


def test_a_number_in_the_place_of_a_truth_is_an_edit(stopped: RunDir) -> None:
    edit(stopped.recipe, "deterministic = false", "deterministic = 0")
    with pytest.raises(RunError, match="was edited"):
        RunDir.open(stopped.path)


@pytest.mark.parametrize("text", ["not = = toml", "\x00", "[optim"])
def test_a_recipe_that_is_no_toml_any_more_is_an_error_with_its_path(stopped: RunDir, text: str) -> None:
    stopped.recipe.write_text(text)
    with pytest.raises(RunError, match=r"stopped/recipe\.toml"):
        resume(stopped.path)


def test_a_recipe_that_is_gone_is_written_again(stopped: RunDir) -> None:
    text = stopped.recipe.read_text()
    stopped.recipe.unlink()
    resume(stopped.path)
    assert stopped.recipe.read_text() == text
    assert outcome(stopped) == uninterrupted()


# --- the JSON files


def _settings(run: RunDir) -> None:
    facts = read_json(run.info)
    facts["settings"]["threads"] = 2
    write_unsealed(run.info, facts)


def _failed(run: RunDir) -> None:
    write_unsealed(run.info, read_json(run.info) | {"failed": "no"})


def _without_seal(run: RunDir) -> None:
    write_unsealed(run.info, {key: value for key, value in read_json(run.info).items() if key != "sha256"})


@pytest.mark.parametrize("change", [_settings, _failed, _without_seal])
def test_an_edited_run_json_is_an_error(stopped: RunDir, change: Callable[[RunDir], None]) -> None:
    change(stopped)
    with pytest.raises(RunError, match=r"run\.json was edited or is damaged"):
        RunDir.open(stopped.path)
    assert stopped.state() == "failed"


def test_keys_of_other_tools_are_no_edits(stopped: RunDir) -> None:
    write_unsealed(stopped.info, read_json(stopped.info) | {"tracker": {"id": 7}})
    resume(stopped.path)
    assert outcome(stopped) == uninterrupted()


def test_two_class_names_that_were_swapped_are_not_shipped(run: RunDir, capsys: Captured) -> None:
    """With and without a fitting hash of the file itself: result.json has the hash of its bytes."""
    facts = read_json(run.student)
    classes = facts["classes"]
    swapped = facts | {"classes": [classes[1], classes[0], *classes[2:]]}
    for write in (write_unsealed, write_json):
        write(run.student, swapped)
        for words in (["evaluate"], ["export", "--onnx"], ["profile"]):
            answer = ask(capsys, *words, str(run.path))
            assert answer.code in (1, 2)
            assert "student.json" in answer.err
    assert not (run.path / "bundle").exists()


def test_an_edited_accuracy_is_not_compared(run: RunDir, capsys: Captured) -> None:
    result = read_json(run.result)
    for row in (result["kept"], result["cohort"][result["kept"]["student"]]):
        row["top1_pct"] = 99.0
    write_unsealed(run.result, result)
    answer = ask(capsys, "compare", str(run.path))
    assert answer.code == 2
    assert "result.json was edited" in answer.err


# --- log.jsonl


@pytest.mark.parametrize("damage", ["gone", "cut", "a changed number", "no UTF-8"])
def test_epochs_that_the_log_has_lost_come_back_from_the_checkpoint(stopped: RunDir, damage: str) -> None:
    content = stopped.log.read_bytes()
    if damage == "gone":
        stopped.log.unlink()
    else:
        others = {"cut": content[:20], "a changed number": content.replace(b"0.0", b"0.1", 1), "no UTF-8": b"\xff\xfe"}
        stopped.log.write_bytes(others[damage])
    tell = Quiet()
    resume(stopped.path, tell)
    assert any("log.jsonl" in note for note in tell.notes)
    assert outcome(stopped) == uninterrupted()


def test_the_log_of_a_complete_run_is_proven_and_written_again_by_resume() -> None:
    run = start()
    content = run.log.read_bytes()
    run.log.write_bytes(content[:-30])
    with pytest.raises(RunError, match=r"log\.jsonl"):
        okdc.Run(run.path).log  # noqa: B018
    tell = Quiet()
    resume(run.path, tell)
    assert any("log" in note for note in tell.notes)
    assert run.log.read_bytes() == content
    run.log.write_bytes(b"")
    for path in (run.checkpoint, run.previous_checkpoint):
        path.unlink()
    with pytest.raises(RunError, match=r"log\.jsonl"):
        resume(run.path)


# --- checkpoint.pt


def test_a_checkpoint_with_a_flipped_bit_gives_way_to_the_one_before_and_the_end_is_the_same(stopped: RunDir) -> None:
    content = bytearray(stopped.checkpoint.read_bytes())
    content[len(content) // 2] ^= 4
    stopped.checkpoint.write_bytes(content)
    tell = Quiet()
    resume(stopped.path, tell)
    assert any(f"{stopped.checkpoint} is damaged" in note for note in tell.notes)
    assert outcome(stopped) == uninterrupted()


# --- the first files


@pytest.mark.parametrize("left", [[], [".run.json.new"]])
def test_a_folder_that_a_kill_left_before_the_first_file_can_be_started_in_again(left: list[str]) -> None:
    Path("here").mkdir()
    for name in left:
        Path("here", name).write_text('{"sch')
    assert outcome(start(out=Path("here"))) == uninterrupted()


def test_a_run_with_its_first_file_alone_is_resumed() -> None:
    whole = start(out=Path("whole"))
    Path("here").mkdir()
    info = read_json(whole.info)
    write_json(Path("here/run.json"), info)
    run = resume(Path("here"))
    assert outcome(run) == uninterrupted()
    assert run.recipe.read_text() == whole.recipe.read_text()
