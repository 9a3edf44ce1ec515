from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from asking import Answer, ask, write_tree
from making import run_info

import okdc
from okdc.__main__ import main
from okdc.cli import app
from okdc.errors import CheckFailed, Interrupted
from okdc.recipe import catalog
from okdc.runs import run as run_module
from okdc.runs.accuracy import with_interval
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import loop as engine

Captured = pytest.CaptureFixture[str]
SHORT = ("optim.epochs=2", "data.train_images=64")

# What scripts rely on: a change of this table is a change of what okdc promises.
# fmt: off
COMMANDS = {
    "new": {"--out", "-o", "--flip", "--pretrained", "--budget", "--json"},
    "check": {
        "--trust-code", "--images", "--device", "--dtype", "--threads", "--compile", "--data-root", "--json",
    },
    "distill": {
        "--trust-code", "--out", "-o", "--device", "--dtype", "--threads", "--compile", "--seeds", "--data-root",
        "--no-export-check", "--json",
    },
    "resume": {"--trust-code", "--data-root", "--json"},
    "profile": {"--trust-code", "--onnx", "--threads", "--json"},
    "export": {"--trust-code",
        "--onnx", "--target", "--out", "-o", "--data-root", "--student", "--budget", "--int8", "--fp16",
        "--calib-images", "--full-range", "--max-drop", "--min-agreement", "--diagnose", "--license", "--replace",
        "--runtime", "--serve", "--json",
    },
    "download": {"--data-root", "--url", "--out", "-o", "--json"},
    "evaluate": {"--trust-code", "--data-root", "--json"},
    "verify": {"--data-root", "--json"},
    "predict": {"--model", "--top", "--batch", "--threads"},
    "recipes": {"--md", "--json"},
    "runs": {"--sort", "--watch", "--json"},
    "report": {
        "--trust-code", "--out", "-o", "--picture", "--watch", "--quick", "--baseline", "--data-root", "--json",
    },
    "doctor": {"--json"},
    "features": {
        "--trust-code", "--out", "-o", "--neighbours", "--images", "--points", "--data-root", "--json",
    },
    "track": {"--tensorboard", "--data-root", "--trust-code", "--json"},
    "study": {
        "--trust-code", "--out", "-o", "--only", "--jobs", "-j", "--dry-run", "--commands", "--table", "--md", "--json",
    },
    "compare": {"--baseline", "--require", "--md", "--json"},
    "bench": {"--only", "--seconds", "--device", "--dtype", "--threads", "--compile", "--json"},
}
# fmt: on


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one complete run, runs/digits_resnet8-1. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("done")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["distill", *SHORT]) == 0
    finally:
        os.chdir(before)
    return folder


def nothing_went_wrong(answer: Answer) -> None:
    assert answer.code == 0, answer.err
    assert "error" not in answer.err
    assert "Traceback" not in answer.err


# --- the commands


def test_the_commands_and_options_are_these() -> None:
    group = typer.main.get_command(app)
    found = {
        name: {option for p in command.params if p.param_type_name == "option" for option in p.opts}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert found == COMMANDS
    options = {"--version", "--debug", "--install-completion", "--show-completion"}
    assert {option for p in group.params for option in p.opts} == options


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(capsys: Captured, flag: str) -> None:
    answer = ask(capsys, flag)
    nothing_went_wrong(answer)
    assert all(f"\n  {name} " in answer.out for name in COMMANDS)


def test_the_list_of_commands_has_whole_sentences(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = ask(capsys, "--help").out.partition("\nCommands:\n")[2].splitlines()
    assert {line.split()[0] for line in commands} == set(COMMANDS)
    assert [line for line in commands if line.endswith("...")] == []


def test_okdc_alone_is_a_question_and_the_help_its_answer(capsys: Captured) -> None:
    answer = ask(capsys)
    nothing_went_wrong(answer)
    assert answer.out == ask(capsys, "--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_each_of_its_options(capsys: Captured, command: str) -> None:
    answer = ask(capsys, command, "--help")
    nothing_went_wrong(answer)
    assert answer.out.startswith(f"Usage: okdc {command} ")
    assert all(option in answer.out for option in COMMANDS[command])
    assert answer.err == ""


def test_the_version_is_the_packages(capsys: Captured) -> None:
    assert ask(capsys, "--version").out == f"okdc {okdc.__version__}\n"


# --- distill


def test_the_default_run_is_made_kept_and_tells_the_next_command(capsys: Captured) -> None:
    answer = ask(capsys, "distill", *SHORT)
    nothing_went_wrong(answer)
    run = RunDir.open(Path("runs/digits_resnet8-1"))
    assert run.state() == "complete"
    assert answer.err.startswith("recipe digits_resnet8, the default")
    assert "next: okdc profile runs/digits_resnet8-1" in answer.err
    for choice in ("device cpu (", "dtype float32 (", "memory format channels_last (", "threads 1 ("):
        assert choice in answer.err  # each automatic choice with its reason
    assert "epoch 2/2" in answer.err
    top1 = read_json(run.result)["kept"]["top1_pct"]
    assert f"{with_interval(top1, 797)} % on 797 test images" in answer.out
    assert "next:" not in answer.out


def test_json_on_stdout_is_the_result_and_nothing_else(capsys: Captured) -> None:
    answer = ask(capsys, "distill", *SHORT, "--json", "-o", "here")
    nothing_went_wrong(answer)
    assert json.loads(answer.out) == {"run": "here"} | RunDir(Path("here")).read_result().to_json()


def test_the_same_command_twice_gives_two_runs_with_the_same_weights(capsys: Captured) -> None:
    facts = [json.loads(ask(capsys, "distill", *SHORT, "--json").out) for _ in range(2)]
    assert [f["run"] for f in facts] == ["runs/digits_resnet8-1", "runs/digits_resnet8-2"]
    assert facts[0]["weights_sha256"] == facts[1]["weights_sha256"]
    other = json.loads(ask(capsys, "distill", *SHORT, "seed=1", "--json").out)
    assert other["weights_sha256"] != facts[0]["weights_sha256"]


def test_running_a_saved_recipe_repeats_the_run(capsys: Captured, done: Path) -> None:
    first = RunDir.open(done / "runs/digits_resnet8-1")
    written = tomllib.loads(first.recipe.read_text(encoding="utf-8"))["data"]
    assert len(written["mean"]) == len(written["std"]) == 3  # what a default became is written down
    answer = ask(capsys, "distill", str(first.recipe), "-o", "again")
    nothing_went_wrong(answer)
    again = RunDir.open(Path("again"))
    assert again.recipe.read_bytes() == first.recipe.read_bytes()
    assert again.weights.read_bytes() == first.weights.read_bytes()
    for key in ("recipe_sha256", "data_sha256", "settings"):
        assert read_json(again.info)[key] == read_json(first.info)[key]
    assert read_json(again.result)["recipe_sha256"] == first.read_info().recipe_sha256


def test_flags_are_short_for_keys_of_the_recipe(capsys: Captured) -> None:
    flags = ["--device", "cpu", "--dtype", "float32", "--threads", "1", "--json", "-o", "here"]
    nothing_went_wrong(ask(capsys, "distill", *SHORT, *flags))
    engine_table = tomllib.loads(Path("here/recipe.toml").read_text(encoding="utf-8"))["engine"]
    assert (engine_table["device"], engine_table["dtype"], engine_table["threads"]) == ("cpu", "float32", 1)


def test_a_dropped_key_is_named_on_stderr(capsys: Captured) -> None:
    words = ["cifar10_resnet20", "method.name=baseline", "data.name=digits", "data.image_size=8", "-o", "here"]
    answer = ask(capsys, "distill", *words, "data.val_fraction=0.7", "optim.epochs=1", "optim.batch_size=64")
    nothing_went_wrong(answer)
    assert "method baseline has no temperature: dropped from the recipe's [method]" in answer.err
    assert "baseline trains the first student alone" in answer.err


SMALL = ("folder_resnet20", "cohort.students=['resnet8', 'resnet8']", "data.image_size=8", "augment.padding=1")


def test_a_folder_without_a_test_split_warns_that_its_number_flatters(capsys: Captured) -> None:
    write_tree(Path("root"), {"train": {"a": 12, "b": 12}})
    words = ["--data-root", "root", "data.val_fraction=0.3", "optim.epochs=1", "optim.batch_size=8"]
    answer = ask(capsys, "distill", *SMALL, *words)
    nothing_went_wrong(answer)
    assert "validation images" in answer.out
    assert "test images" not in answer.out
    assert "no test split" in answer.err


def test_a_folder_moved_between_start_and_resume_is_found_by_data_root(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(Path("root"), {"train": {"a": 12, "b": 12}})
    words = ["data.root=root", "data.val_fraction=0.3", "optim.epochs=1", "optim.batch_size=8"]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", lambda *_: None)
        patch.setattr("okdc.cli.train._finished", lambda *_: None)
        nothing_went_wrong(ask(capsys, "distill", *SMALL, *words))
    root.rename("elsewhere")
    lost = ask(capsys, "resume")
    assert lost.code == 2
    assert f"are not at {Path.cwd()}/root" in lost.err
    assert "--data-root DIR" in lost.err
    nothing_went_wrong(ask(capsys, "resume", "--data-root", "elsewhere"))
    assert RunDir.open(Path("runs/folder_resnet20-1")).state() == "complete"
    answer = ask(capsys, "evaluate", "--data-root", "elsewhere")
    nothing_went_wrong(answer)
    assert "next: okdc export runs/folder_resnet20-1 --onnx --data-root elsewhere\n" in answer.err


# --- resume, recipes, runs


def test_a_complete_run_has_nothing_to_resume_and_shows_its_result(
    capsys: Captured, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done)
    answer = ask(capsys, "resume", "runs/digits_resnet8-1")
    nothing_went_wrong(answer)
    assert "is complete: nothing to do" in answer.err
    assert "kept student" in answer.out


def test_recipes_lists_all_that_ship(capsys: Captured) -> None:
    answer = ask(capsys, "recipes")
    nothing_went_wrong(answer)
    assert [line.split()[0] for line in answer.out.splitlines()[1:]] == list(catalog.recipes())
    assert "next: okdc distill" in answer.err


def test_recipes_as_json_names_files_that_exist(capsys: Captured) -> None:
    answer = ask(capsys, "recipes", "--json")
    nothing_went_wrong(answer)
    found = json.loads(answer.out)
    assert {row["name"]: Path(row["path"]) for row in found} == catalog.recipes()
    assert answer.err == ""


def test_without_runs_the_lists_are_empty_and_the_next_command_is_told(capsys: Captured) -> None:
    answer = ask(capsys, "runs")
    nothing_went_wrong(answer)
    assert answer.out == ""
    assert f"no runs in {Path.cwd()}/runs" in answer.err
    assert "next: okdc distill" in answer.err
    assert json.loads(ask(capsys, "runs", "--json").out) == []


def test_runs_shows_what_each_run_is(capsys: Captured, done: Path) -> None:
    recipe = RunDir(done / "runs/digits_resnet8-1").read_recipe()
    Path("runs").mkdir()
    Path("runs/digits_resnet8-1").symlink_to(done / "runs/digits_resnet8-1")
    later = RunDir.create("later", run_info(recipe=recipe, started_at="2999-01-01"))
    numbers = dict.fromkeys(("lr", "loss", "seconds", "seconds_steps", "seconds_data", "seconds_validation"), 0.1)
    later.append({"epoch": 1, **numbers, "losses": {}, "train_top1_pct": {}, "val_top1_pct": {}})
    RunDir.create("wrong", run_info(recipe=recipe, started_at="2999-01-02", failed="the loss is not finite"))
    rows = json.loads(ask(capsys, "runs", "--json").out)
    assert [(row["run"], row["state"], row["epoch"], row["epochs"]) for row in rows] == [
        ("runs/digits_resnet8-1", "complete", 2, 2),
        ("runs/later-1", "resumable", 1, 2),
        ("runs/wrong-1", "failed", 0, 2),
    ]
    assert rows[0]["top1_pct"] == read_json(done / "runs/digits_resnet8-1/result.json")["kept"]["top1_pct"]
    assert rows[1]["top1_pct"] is None
    answer = ask(capsys, "runs")
    nothing_went_wrong(answer)
    assert [line.split()[:2] for line in answer.out.splitlines()[1:]] == [[row["run"], row["state"]] for row in rows]


# --- exit codes


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "runs", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckFailed("parity", "it differs", hint="look"), 1, "error[parity]: it differs\n\nhint: look\n"),
        (Interrupted("saved", exit_code=130, hint="go on"), 130, "interrupted: saved\n\nhint: go on\n"),
        (Interrupted("saved", exit_code=143), 143, "interrupted: saved\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError(), 2, "error[memory]: out of memory on cpu\n\nhint: a smaller optim.batch_size"),
        (OSError(28, "No space left on device", "/x/y"), 2, "error[file]: /x/y: No space left on device\n"),
        (RuntimeError("boom"), 2, "error[bug]: RuntimeError: boom\n"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."),
            2,
            "error[memory]: out of memory on cpu: 4.00 GiB asked for\n",
        ),
    ],
)
def test_each_way_to_end_has_its_exit_code_and_its_words(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    failing(error, monkeypatch)
    answer = ask(capsys, "runs")
    assert answer.code == code
    assert answer.err.startswith(said)
    assert answer.out == ""
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("words", [["--debug", "runs"], ["runs", "--debug"]])
def test_a_traceback_is_shown_where_it_was_asked_for(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    failing(RuntimeError("boom"), monkeypatch)
    answer = ask(capsys, *words)
    assert answer.code == 2
    assert "Traceback (most recent call last)" in answer.err
    assert "error[bug]: RuntimeError: boom" in answer.err


def test_an_error_is_json_too_where_json_was_asked_for(capsys: Captured) -> None:
    answer = ask(capsys, "distill", "optim.epoch=3", "--json")
    assert answer.code == 2
    told = json.loads(answer.out)
    assert told["error"] == "recipe"
    assert told["details"][0].startswith("optim.epoch: unknown key (did you mean 'epochs'?)")
    assert answer.err.startswith("error[recipe]: ")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `okdc recipes --json | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        told = subprocess.run(
            [sys.executable, "-m", "okdc", "recipes", "--json"], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_module_and_the_script_are_one_program() -> None:
    told = subprocess.run([sys.executable, "-m", "okdc", "distil"], capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.startswith("error[usage]: No such command 'distil'. Did you mean 'distill'?\n")


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_the_printing_and_not_the_training(gone: str) -> None:
    """As `okdc distill 2>&1 | head -1` does."""
    command = [sys.executable, "-m", "okdc", "distill", *SHORT, "-o", "run"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {gone: subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        getattr(process, gone).close()
    assert process.returncode == 0
    assert RunDir.open(Path("run")).state() == "complete"


@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_any_command_in_one_word(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, says: str
) -> None:
    def asked() -> dict[str, Path]:
        os.kill(os.getpid(), number)
        return {}

    before = signal.getsignal(number)
    monkeypatch.setattr(catalog, "recipes", asked)
    answer = ask(capsys, "recipes")
    assert (answer.code, answer.err) == (code, f"{says}\n")
    assert signal.getsignal(number) is before
