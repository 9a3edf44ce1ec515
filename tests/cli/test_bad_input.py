"""Whatever a user gets wrong is told in the user's words: exit 2, expected and found, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Answer, ask, picture, write_tree
from making import run_info
from PIL import Image

from okdc.assembly import job as assembly
from okdc.runs.run import RunDir
from okdc.training import loop as engine

Captured = pytest.CaptureFixture[str]
SHORT = ("optim.epochs=2", "data.train_images=64")
SMALL = ("folder_resnet20", "cohort.students=['resnet8', 'resnet8']", "data.image_size=8", "augment.padding=1")
FOLDER = (*SMALL, "optim.epochs=1", "optim.batch_size=8", "data.root=root")


def refused(answer: Answer, kind: str, *said: str) -> None:
    """error[kind]: message, details, a blank line, hint: all on stderr."""
    assert answer.code == 2, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    talk, _, told = answer.err.rpartition(f"error[{kind}]: ")
    assert told, answer.err
    assert "error[" not in talk
    assert re.fullmatch(r".+\n(  .+\n)*(\nhint: .+\n)?", told), told
    for words in said:
        assert words in told


# --- words on the command line


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["distil"], "usage", "No such command 'distil'. Did you mean 'distill'?"),
        (["runz"], "usage", "Did you mean 'runs'?"),
        (["distill", "--devise", "cpu"], "usage", "No such option: --devise (Possible options: --device)"),
        (["distill", "--device"], "usage", "'--device' requires an argument"),
        (["doctor", "extra"], "usage", "unexpected extra argument"),
        (["profile", "--threads", "0"], "usage", "--threads"),
        (["distill", "digits_resnet8", "folder_resnet20"], "usage", "two recipes were given"),
        (["distill", "optim.epochs", "3"], "usage", "hint: okdc distill optim.epochs=3"),
        (["distill", "digits_resnet"], "recipe", "did you mean 'digits_resnet8'?"),
        (["distill", "optim.epoch=3"], "recipe", "optim.epoch: unknown key (did you mean 'epochs'?)"),
        (["distill", "method.name=fefrr"], "recipe", "no method is called 'fefrr' (did you mean 'fefr'?); there is: "),
        (
            ["distill", "cohort.students=['resnet80','resnet8']"],
            "recipe",
            "no network is called 'resnet80' (did you mean",
        ),
        (["distill", "--device", "tpu"], "recipe", "a GPU by its number, as in cuda:1, found 'tpu'"),
        (["distill", "--threads", "many"], "recipe", "engine.threads: expected 'auto' or an integer, found 'many'"),
        (["distill", "cohort.students=['resnet8']"], "recipe", "needs at least 2 students"),
        (["distill", "optim.batch_size=400"], "data", "optim.batch_size is 400, there are 300 training images"),
        (["distill", "data.train_images=301"], "data", "data.train_images: expected at most 300, found 301"),
        (["distill", "folder_resnet20"], "recipe", "data.root: missing; expected a folder of images"),
        (["distill", "folder_resnet20", "data.root=nowhere"], "data", "/nowhere, found nothing"),
        (["distill", "folder_resnet20", "--data-root", "nowhere"], "data", "/nowhere, found nothing"),
        (["resume"], "run", "no resumable run in "),
        (["resume", "nowhere"], "run", "nowhere: no such run"),
        (["export"], "usage", "no format was named"),
        (["export", "--onnx"], "run", "no complete run in "),
        (["export", "--onnx", "nowhere"], "run", "nowhere: no such run"),
    ],
)
def test_a_wrong_word_is_answered_with_what_would_be_right(
    capsys: Captured, words: list[str], kind: str, said: str
) -> None:
    refused(ask(capsys, *words), kind, said)
    assert not Path("runs").exists()  # nothing was begun


def test_every_problem_of_a_recipe_is_told_at_once_with_its_file(capsys: Captured) -> None:
    Path("mine.toml").write_text('[data]\nname = "digit"\n[optim]\nepoch = 3\nlr = "fast"\n', encoding="utf-8")
    answer = ask(capsys, "distill", "mine.toml", "optim.clip=-1")
    refused(answer, "recipe", "mine.toml and the command line: 6 problems\n")
    told = [line.split(":")[0].strip() for line in answer.err.splitlines() if line.startswith("  ")]
    assert sorted(told) == ["cohort", "data.name", "method", "optim.clip", "optim.epoch", "optim.lr"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x = = 3", "not TOML: Invalid value (at line 1, column 5)"),
        (b"a = '\xe9'", "not UTF-8"),
        (None, "is a folder"),
    ],
)
def test_a_file_that_is_no_recipe_says_what_it_is(capsys: Captured, content: bytes | None, said: str) -> None:
    Path("mine.toml").mkdir() if content is None else Path("mine.toml").write_bytes(content)
    refused(ask(capsys, "distill", "mine.toml"), "recipe", "mine.toml: ", said)


DEEP = 50_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"[{'.'.join('a' * DEEP)}]", "levels deep"),
        (f"{'.'.join('a' * DEEP)} = 1", "levels deep"),
        (f"a = {'[' * DEEP}{']' * DEEP}", "not TOML"),
        (f"a = {'[' * 100}{']' * 100}", "levels deep"),
        (f"a = {'{a=' * DEEP}1{'}' * DEEP}", "not TOML"),
        ("".join(f"k{i} = 1\n" for i in range(50_000)), "more"),
        (f'"{"k" * 500_000}" = 1', "500,000 letters"),
        (f'[optim]\nlr = "{"v" * 500_000}"', "optim.lr"),
        ('"a\\u001b[31m" = 1\n[data]\n"x\\ny" = "\\u001b[2J"', "a\\x1b[31m: unknown key"),
    ],
    ids=["header", "dotted", "list", "a hundred", "inline", "keys", "a long key", "a long value", "control characters"],
)
def test_a_monstrous_recipe_is_answered_in_a_few_lines(capsys: Captured, content: str, said: str) -> None:
    Path("mine.toml").write_text(content, encoding="utf-8")
    for command in (("distill",), ("recipes",)):
        answer = ask(capsys, *command, "mine.toml")
        refused(answer, "recipe", "mine.toml: ", said)
        assert len(answer.err) < 10_000
        assert "\x1b" not in answer.err


def test_of_many_problems_twenty_are_named_and_the_rest_counted(capsys: Captured) -> None:
    answer = ask(capsys, "distill", *(f"k{i}=1" for i in range(3000)))
    refused(answer, "recipe", "3,000 problems", "  k0: unknown key", "  and 2,980 more")
    assert len(answer.err.splitlines()) < 30


@pytest.mark.parametrize("kind", ["a gigabyte", "a pipe"])
def test_what_is_no_recipe_is_not_read(capsys: Captured, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo("mine.toml")
    else:
        with Path("mine.toml").open("wb") as stream:
            stream.truncate(2**30)
    for command in (("distill",), ("recipes",), ("bench",)):
        refused(ask(capsys, *command, "mine.toml"), "recipe", "mine.toml: ", "pipe" if kind == "a pipe" else "bytes")


@pytest.mark.parametrize(
    "word",
    [
        f"{'a.' * DEEP}b=1",
        f"optim.lr={'[' * DEEP}",
        f"optim.lr={'[' * 900}{']' * 900}",
        f"optim.{'k' * 90_000}=1",
        f"optim.lr={{{'a.' * DEEP}b=1}}",
    ],
)
def test_a_monstrous_override_is_answered_in_a_few_lines(capsys: Captured, word: str) -> None:
    answer = ask(capsys, "distill", word)
    refused(answer, "recipe", "1 problem")
    assert len(answer.err) < 2000


def test_a_device_that_is_not_there_is_refused(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(ask(capsys, "distill", "--device", "cuda"), "device", "no CUDA device", "hint: leave the device to auto")


# --- images


def test_images_that_cannot_be_read_are_all_listed_and_no_run_is_begun(capsys: Captured) -> None:
    write_tree(Path("root"), {"train": {"a": 12, "b": 12}})
    bad = {"a/000.png": b"", "a/[1].png": b"text", "b/003.png": b"\x89PNG\r\n\x1a\n"}
    for name, content in bad.items():
        (Path("root/train") / name).write_bytes(content)
    answer = ask(capsys, "distill", *FOLDER)
    refused(answer, "data", "3 of 25 images cannot be read", *(f"  {Path.cwd()}/root/train/{name}: " for name in bad))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"train": {"a": 12, "b": 0}}, "1 of 2 classes have no images"),
        ({"train": {"a": 12}}, "expected at least two class folders, found 1 (a)"),
        ({"train": {"cat": 12, "dog": 12}, "test": {"cats": 2}}, "class 'cats' is not in"),
        ({"valid": {"a": 3, "b": 3}}, "expected a folder train beside valid"),
        ({"train": {"a": 3, "b": 3}}, "optim.batch_size is 8, there are 5 training images"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(capsys: Captured, tree: dict[str, dict[str, int]], said: str) -> None:
    write_tree(Path("root"), tree)
    refused(ask(capsys, "distill", *FOLDER), "data", said, f"{Path.cwd()}/root" if "batch" not in said else "")
    assert not Path("runs").exists()


def interrupted_run(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run on ./root that was begun and not trained."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", lambda *_: None)
        patch.setattr("okdc.cli.train._finished", lambda *_: None)
        assert ask(capsys, "distill", *FOLDER, "data.val_fraction=0.3").code == 0
    return RunDir.newest("resumable")


@pytest.mark.parametrize("change", ["another class", "another image"])
def test_images_that_changed_stop_a_resume_and_the_run_stays_resumable(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    write_tree(Path("root"), {"train": {"a": 12, "b": 12}})
    run = interrupted_run(capsys, monkeypatch)
    if change == "another class":
        write_tree(Path("root/train"), {"c": 12})
        said = f"{run.path} was trained on 2 classes, the data has 3"
    else:
        Image.fromarray(picture(99)).save("root/train/a/000.png")
        said = f"the images are not those of {run.path}"
    refused(ask(capsys, "resume"), "data", said)
    assert RunDir.open(run.path).state() == "resumable"


# --- places


def test_a_directory_that_holds_a_run_is_left_as_it_is(capsys: Captured) -> None:
    assert ask(capsys, "distill", *SHORT, "-o", "here").code == 0
    before = {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()}
    refused(
        ask(capsys, "distill", "-o", "here"),
        "run",
        "here already holds a run, which is complete",
        "choose another -o\n",
    )
    assert {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()} == before
    Path("here/result.json").unlink()
    refused(ask(capsys, "distill", "-o", "here"), "run", "which is resumable", "or continue it: okdc resume here")


@pytest.mark.parametrize("out", ["/dev/null/x", "/proc/okdc", "file/x", "file"])
def test_a_place_where_no_run_can_be_written_is_refused(capsys: Captured, out: str) -> None:
    Path("file").write_text("mine")
    refused(ask(capsys, "distill", *SHORT, "-o", out), "run" if out == "file" else "disk", out)
    assert Path("file").read_text() == "mine"


def test_a_place_below_a_file_is_refused_before_the_images_are_read(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("an hour of decoding")

    monkeypatch.setattr(assembly, "dataset", read)
    refused(ask(capsys, "distill", "-o", "/dev/null/x"), "disk", "/dev/null is not a folder")


def test_a_cache_that_cannot_be_written_costs_a_note(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(Path("root"), {"train": {"a": 12, "b": 12}})
    monkeypatch.setenv("OKDC_CACHE", "/dev/full/x")
    answer = ask(capsys, "distill", *FOLDER, "data.val_fraction=0.3")
    assert answer.code == 0
    assert "the decoded images are not cached: /dev/full/x" in answer.err


def test_a_log_on_a_full_disk_stops_the_run_which_can_then_be_resumed(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = RunDir.create

    def on_a_full_disk(*arguments: Any) -> RunDir:
        run = create(*arguments)
        run.log.symlink_to("/dev/full")
        return run

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "create", on_a_full_disk)
        answer = ask(capsys, "distill", *SHORT)
    run = RunDir.open(Path("runs/digits_resnet8-1"))
    refused(answer, "disk", f"{run.log}: cannot be written: No space left on device", f"okdc resume {run.path}")
    assert run.state() == "resumable"
    run.log.unlink()
    assert ask(capsys, "resume").code == 0
    assert [row["epoch"] for row in run.rows()] == [1, 2]


# --- runs that are damaged


def test_a_damaged_run_json_is_named_and_hides_no_other_run(capsys: Captured) -> None:
    run, whole = (RunDir.create(name, run_info()) for name in "ab")
    run.info.write_text('{"started_at": ')
    refused(ask(capsys, "resume", str(run.path)), "run", "runs/a-1/run.json: not JSON")
    refused(ask(capsys, "export", "--onnx", str(run.path)), "run", "runs/a-1")
    rows = json.loads(ask(capsys, "runs", "--json").out)
    assert {row["run"]: row["state"] for row in rows} == {str(run.path): "failed", str(whole.path): "resumable"}


def test_a_failed_run_is_not_continued(capsys: Captured) -> None:
    run = RunDir.create("a", run_info(failed="the loss term ce_student0 is not finite at step 3"))
    refused(ask(capsys, "resume", str(run.path)), "run", "runs/a-1 failed: the loss term", "start another run")


def test_an_unfinished_run_is_not_exported_by_default(capsys: Captured) -> None:
    RunDir.create("a", run_info())
    refused(ask(capsys, "export", "--onnx"), "run", "no complete run in ", "okdc resume")


def test_json_tells_an_error_as_data(capsys: Captured) -> None:
    answer = ask(capsys, "resume", "nowhere", "--json")
    assert answer.code == 2
    assert json.loads(answer.out)["error"] == "run"
    assert "error[run]: nowhere: no such run" in answer.err
