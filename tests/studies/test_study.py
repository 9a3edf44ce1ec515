"""`okdc study` from its file to its table: what is trained, what is taken, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import Answer, ask, write_tree
from making import make_run

import okdc
from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.comparison.finished import load as finished
from okdc.data.workers import cores
from okdc.errors import RecipeError, RunError, UsageError
from okdc.progress import Silent
from okdc.recipe import draft
from okdc.runs.run import RunDir
from okdc.studies import estimate, markdown, study
from okdc.studies.opened import opened
from okdc.studies.plan import chosen
from okdc.studies.schema import FILE
from okdc.studies.standing import Standing
from okdc.studies.table import table as build_table
from okdc.training import cost

Captured = pytest.CaptureFixture[str]
NAME = "tiny.toml"
TINY = """
title = "A table of a few seconds"
seeds = [0, 1]
keys = ["optim.epochs=1", "data.train_images=64", "cohort.keep=0", "cohort.keep_epoch=last", "engine.dtype=float32"]
baseline = "baseline"
plot = "students"

[columns]
same = ["digits_resnet8"]
unlike = ["digits_resnet8", "students=resnet8,resnet14"]

[methods]
baseline = ["method=baseline"]
kd = ["method=kd"]
fefr = ["method=fefr"]

[where]
baseline = ["same"]
kd = ["same"]

[teacher]
methods = ["kd"]
recipes = { digits = ["digits_resnet8", "method=baseline", "students=resnet14"] }
"""
RUNS = [
    "teachers/digits/seed0",
    *(f"{cell}/seed{seed}" for seed in (0, 1) for cell in ("same/baseline", "same/kd", "same/fefr", "unlike/fefr")),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.toml and studies/tiny, trained. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path(NAME).write_text(TINY, encoding="utf-8")
        table = okdc.study(NAME)
        assert not table["left_out"]
        assert json.loads(Path("studies/tiny/table.json").read_text(encoding="utf-8")) == table
    return folder


@pytest.fixture
def trained(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, for a look."""
    monkeypatch.chdir(whole)
    return Path("studies/tiny")


@pytest.fixture
def own(whole: Path) -> Iterator[Path]:
    """A copy that a test may change, in its own folder."""
    shutil.copy(whole / NAME, NAME)
    yield Path(shutil.copytree(whole / "studies/tiny", "studies/tiny"))


def asked(capsys: Captured, *words: str) -> Answer:
    return ask(capsys, "study", *words)


def table_of(folder: Path) -> dict[str, Any]:
    return okdc.study(folder, train=False)


def timeless(table: dict[str, Any]) -> dict[str, Any]:
    """All of a table that a repetition gives again."""
    rows = [{key: value for key, value in each.items() if key != "training_seconds"} for each in table["rows"]]
    runs = [{key: value for key, value in each.items() if key != "seconds"} for each in table["runs"]]
    return {key: value for key, value in table.items() if key != "made_by"} | {"rows": rows, "runs": runs}


def row(table: dict[str, Any], column: str, method: str, head: str = "student") -> dict[str, Any]:
    (found,) = [r for r in table["rows"] if (r["column"], r["method"], r["head"]) == (column, method, head)]
    return dict(found)


# ---------------------------------------------------------------------------------------------------------------------
# The whole way


def test_every_run_is_an_ordinary_run_of_the_planned_recipe(trained: Path) -> None:
    runs = opened([NAME], None).runs
    assert [run.name for run in runs] == RUNS
    for run in runs:
        assert run.folder == trained / run.name
        assert RunDir(run.folder).state() == "complete"
        recipe = RunDir(run.folder).read_info().recipe
        assert (recipe["seed"], recipe["optim"]["epochs"]) == (run.seed, 1)
        assert recipe["method"]["name"] == ("baseline" if run.column == "teachers" else run.method)
    teacher = RunDir(trained / RUNS[0]).read_result().weights_sha256
    for seed in (0, 1):
        taught = RunDir(trained / f"same/kd/seed{seed}").read_result().teacher
        assert taught is not None
        assert taught.weights_sha256 == teacher


def test_an_error_is_of_the_last_epoch_and_its_mean_that_of_the_seeds(trained: Path) -> None:
    table = table_of(trained)
    for column, method, head, key in (
        ("same", "fefr", "student", "student0"),
        ("same", "fefr", "fused", "fused"),
        ("same", "baseline", "student", "student0"),
        ("unlike", "fefr", "student1", "student1"),
    ):
        found = row(table, column, method, head)
        accuracies = [
            RunDir(trained / column / method / f"seed{seed}").read_result().heads_last_epoch_top1_pct[key]
            for seed in (0, 1)
        ]
        errors = [round(100 - accuracy, 4) for accuracy in accuracies]
        assert list(found["error_pct_by_seed"].values()) == pytest.approx(errors, abs=1e-3)
        assert found["error_pct"] == pytest.approx(sum(errors) / 2, abs=1e-3)
        low, high = found["interval_pct"]
        assert low <= found["error_pct"] <= high
    assert row(table, "unlike", "fefr", "student1")["network"] == "resnet14"


def test_the_difference_to_the_baseline_is_paired_and_of_two_seeds_not_resolved(trained: Path) -> None:
    """In the column without a baseline it is that of the other one, which the same images judged."""
    table = table_of(trained)
    base = [finished(trained / f"same/baseline/seed{seed}").right["student"] for seed in (0, 1)]
    for column, head, key in (("same", "fused", "last fused"), ("unlike", "student0", "last student0")):
        found = row(table, column, "fefr", head)["minus_baseline"]
        right = [finished(trained / f"{column}/fefr/seed{seed}").right[key] for seed in (0, 1)]
        points = [100 * (float(b.mean()) - float(r.mean())) for b, r in zip(base, right, strict=True)]
        assert found["points"] == pytest.approx(sum(points) / 2, abs=1e-3)
        assert found["n"] == 2
        assert found["verdict"].startswith("not resolved")
    assert row(table, "same", "baseline")["minus_baseline"] is None


def test_a_cell_has_its_price_and_the_table_what_made_it(trained: Path) -> None:
    table = table_of(trained)
    for method, networks in (("baseline", 1), ("kd", 1), ("fefr", 2)):
        runs = [finished(trained / f"same/{method}/seed{seed}") for seed in (0, 1)]
        found = row(table, "same", method)
        resolved = resolve(draft.load([str(runs[0].path / "recipe.toml")]))
        step = cost.step_macs(assembly.assemble(resolved, 10).method, 32)
        assert step is not None
        assert found["training_macs"] == 2 * step  # 64 images in batches of 32
        assert found["training_macs"] > networks * 64 * 2 * runs[0].result.kept.macs
        assert found["training_seconds"] == pytest.approx(sum(run.result.seconds for run in runs) / 2, abs=2e-3)
    assert row(table, "same", "fefr", "fused")["training_macs"] is None  # once a cell
    assert [each["run"] for each in table["runs"]] == RUNS
    for each in table["runs"]:
        result = RunDir(trained / each["run"]).read_result()
        assert {each[key] == getattr(result, key) for key in ("recipe_sha256", "weights_sha256", "seconds")} == {True}
    (made_by,) = table["made_by"]
    assert (made_by["runs"], made_by["versions"]["torch"]) == (len(RUNS), version("torch"))


def test_methods_may_differ_in_what_the_study_says_of_them() -> None:
    """The runs of a column are compared although one method trains for twice the epochs."""
    text = (
        TINY.split("[columns]")[0].replace("epochs=1", "epochs=2")
        + """
[columns]
same = ["digits_resnet8"]
[methods]
baseline = ["method=baseline"]
fefr = ["method=fefr", "epochs=1", "share=low"]
"""
    )
    Path(NAME).write_text(text.replace('plot = "students"', ""), encoding="utf-8")
    plan = opened([NAME], None)
    assert plan.study.stated == {"method.name", "optim.epochs", "cohort.share"}
    for run in plan.runs:
        epochs, method = (2, "baseline") if run.method == "baseline" else (1, "fefr")
        make_run(run.folder, method, run.seed, recipe={"optim": {"epochs": epochs}})
    stood = [Standing(run, "complete", finished=finished(run.folder)) for run in plan.runs]
    made = build_table(plan.study, stood)
    assert made["notes"] == []
    assert row(made, "same", "fefr")["minus_baseline"]["n"] == 2
    sentences = markdown.sentences(made)
    assert "fefr: method=fefr epochs=1 share=low" in sentences
    assert not any(sentence.startswith("baseline: ") for sentence in sentences)
    silent = plan.study.model_copy(update={"methods": {"baseline": ("method=baseline",), "fefr": ("method=fefr",)}})
    made = build_table(silent, stood)
    assert row(made, "same", "fefr")["minus_baseline"] is None
    assert "same: these 4 runs do not compare: they differ in optim.epochs" in made["notes"]


def test_the_folder_has_the_table_as_markdown_json_and_a_picture_that_repeats(own: Path) -> None:
    names = ("table.md", "table.json", "students.svg", FILE)
    before = {name: (own / name).read_bytes() for name in names}
    table_of(own)
    assert {name: (own / name).read_bytes() for name in names} == before
    assert before["students.svg"].startswith(b"<?xml")
    lines = before["table.md"].decode().splitlines()
    assert sum(line.startswith("| same ") for line in lines) == 4


def test_a_second_call_trains_nothing_and_a_folder_names_its_study(own: Path, capsys: Captured) -> None:
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*.pt")}
    for word in (NAME, str(own)):
        answer = asked(capsys, word)
        assert answer.code == 0
        assert "resnet8" in answer.out
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*.pt")} == before


# ---------------------------------------------------------------------------------------------------------------------
# What is left


def test_what_is_missing_is_trained_side_by_side_and_nothing_else(
    own: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.01)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = timeless(json.loads((own / "table.json").read_text(encoding="utf-8")))
    names = ["same/kd/seed0", "same/fefr/seed1"]
    weights = [RunDir(own / name).read_result().weights_sha256 for name in names]
    for name in names:
        shutil.rmtree(own / name)
    facts = json.loads(asked(capsys, str(own), "--dry-run", "--json").out)
    assert [each["run"] for each in facts["runs"] if each["state"] == "missing"] == names
    assert row(table_of(own), "same", "fefr")["n"] == 1
    answer = asked(capsys, str(own), "--jobs", str(min(2, cores())))
    assert answer.code == 0, answer.err
    assert [RunDir(own / name).read_result().weights_sha256 for name in names] == weights
    assert timeless(table_of(own)) == before


def test_a_command_for_another_machine_brings_a_run_that_is_taken(own: Path, capsys: Captured) -> None:
    shutil.rmtree(own / "same/kd/seed1")
    (command,) = asked(capsys, str(own), "--commands").out.splitlines()
    program, *words = shlex.split(command)
    assert program == "okdc"
    assert ask(capsys, *words).code == 0
    assert asked(capsys, str(own), "--commands").out == ""
    assert row(table_of(own), "same", "kd")["n"] == 2


def test_teachers_come_first_among_the_commands(capsys: Captured) -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    lines = asked(capsys, NAME, "--commands").out.splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert len(commands) == len(RUNS)
    assert commands[0].endswith("studies/tiny/teachers/digits/seed0")
    assert lines[0].startswith("#")
    assert lines[2].startswith("#")
    assert not Path("studies").exists()


def test_a_table_of_nothing_makes_no_folder_and_the_next_command_names_the_same_one(capsys: Captured) -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    answer = asked(capsys, NAME, "-o", "my runs", "--table")
    assert answer.code == 0
    assert answer.err.splitlines()[-1].endswith(f"okdc study {NAME} -o 'my runs'")
    assert [path.name for path in Path().iterdir()] == [NAME]


def test_only_names_columns_methods_and_seeds_and_brings_the_teacher(capsys: Captured) -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    runs = opened([NAME], None).runs

    def names(*patterns: str) -> list[str]:
        return [run.name for run in chosen(runs, patterns)]

    assert names() == RUNS
    assert names("unlike") == ["unlike/fefr/seed0", "unlike/fefr/seed1"]
    assert names("kd") == ["teachers/digits/seed0", "same/kd/seed0", "same/kd/seed1"]
    assert names("same/*/seed1") == [
        "teachers/digits/seed0",
        "same/baseline/seed1",
        "same/kd/seed1",
        "same/fefr/seed1",
    ]
    assert names("same/kd") == names("kd")
    assert names("baseline", "unlike/fefr/seed0") == ["same/baseline/seed0", "unlike/fefr/seed0", "same/baseline/seed1"]
    answer = asked(capsys, NAME, "--only", "feffr", "--commands")
    assert answer.code == 2
    assert "did you mean 'fefr'" in answer.err


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_a_folder_with_another_recipe_is_refused_with_its_keys_and_stays_as_it_is(own: Path, capsys: Captured) -> None:
    before = (own / FILE).read_bytes()
    answer = asked(capsys, NAME, "optim.epochs=2")
    assert answer.code == 2
    assert "optim.epochs" in answer.err
    assert (own / FILE).read_bytes() == before
    with pytest.raises(RunError) as caught:
        okdc.study(NAME, "optim.lr=0.01")
    assert [line.partition(":")[0] for line in caught.value.details] == ["optim.lr"]


def test_a_table_leaves_runs_of_another_recipe_out_and_the_folder_keeps_its_own(own: Path, capsys: Captured) -> None:
    before = (own / "table.md").read_bytes()
    for word in (NAME, str(own)):
        answer = asked(capsys, word, "optim.lr=0.01", "--table", "--json")
        assert answer.code == 2
        report = json.loads(answer.out)
        assert [left["run"] for left in report["left_out"]] == RUNS
        assert {left["state"] for left in report["left_out"]} == {"foreign"}
        assert all("optim.lr: 0.01 in the study" in left["why"] for left in report["left_out"])
        assert all(found["n"] == 0 for found in report["rows"])
    assert (own / "table.md").read_bytes() == before


@pytest.mark.parametrize("option", ["--dry-run", "--commands"])
def test_what_training_would_refuse_is_refused_without(option: str, own: Path, capsys: Captured) -> None:
    answer = asked(capsys, str(own), "optim.lr=0.01", option)
    assert (answer.code, answer.out) == (2, "")
    assert "optim.lr" in answer.err


def test_another_study_is_refused_in_the_folder_of_one(own: Path, capsys: Captured) -> None:
    before = {path: path.read_bytes() for path in own.iterdir() if path.is_file()}
    Path("other.toml").write_text(TINY.replace('fefr = ["method=fefr"]', 'dml = ["method=dml"]'), encoding="utf-8")
    for words in ([], ["--table"], ["--commands"]):
        answer = asked(capsys, "other.toml", "-o", str(own), *words)
        assert answer.code == 2
        assert "unlike/fefr/seed1" in answer.err
    assert {path: path.read_bytes() for path in own.iterdir() if path.is_file()} == before


def test_a_study_may_grow(own: Path) -> None:
    """More methods and seeds than the folder has been asked for: its runs count."""
    Path(NAME).write_text(TINY.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"), encoding="utf-8")
    table = okdc.study(NAME, train=False)
    assert {left["run"].rsplit("/", 1)[1] for left in table["left_out"]} == {"seed2"}
    assert own.is_dir()


def test_a_folder_of_something_else_and_a_file_are_refused(capsys: Captured) -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    Path("mine").mkdir()
    for out in ("mine", "mine/notes.txt"):
        Path("mine/notes.txt").write_text("mine", encoding="utf-8")
        answer = asked(capsys, NAME, "-o", out)
        assert answer.code == 2
        assert "notes.txt" in answer.err
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_a_second_folder_for_the_folder_of_a_study_is_refused(own: Path, capsys: Captured) -> None:
    answer = asked(capsys, str(own), "-o", "elsewhere", "--table")
    assert answer.code == 2
    assert str(own) in answer.err
    assert asked(capsys, str(own), "-o", str(own.absolute()), "--table").code == 0


@pytest.mark.parametrize("word", ["seed=3", "method.teacher=runs/mine", "optim.epoch=3", "method.temprature=2"])
def test_a_word_that_no_run_takes_is_refused_for_the_table_too(word: str, capsys: Captured) -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    answer = asked(capsys, NAME, word, "--table")
    assert answer.code == 2
    assert word.partition("=")[0] in answer.err


def test_patterns_choose_what_is_trained_and_no_part_of_the_table(capsys: Captured) -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    answer = asked(capsys, NAME, "--table", "--only", "kd")
    assert answer.code == 2
    assert "--only" in answer.err


def test_engine_and_places_may_differ(own: Path) -> None:
    table = okdc.study(NAME, "engine.threads=1", "engine.workers=0")
    assert not table["left_out"]
    assert own.is_dir()


def test_a_run_that_another_teacher_taught_is_refused(own: Path, capsys: Captured) -> None:
    """Of the same recipe, and trained in another precision."""
    shutil.rmtree(own / RUNS[0])
    teacher = opened([NAME], None).runs[0]
    assert ask(capsys, "distill", *teacher.words, "engine.dtype=bfloat16", "-o", str(teacher.folder)).code == 0
    with pytest.raises(RunError, match=r"same/kd/seed0: its teacher"):
        okdc.study(own)


def test_what_is_no_run_is_refused(own: Path) -> None:
    shutil.rmtree(own / "same/fefr/seed0")
    (own / "same/fefr/seed0").mkdir()
    (own / "same/fefr/seed0/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="something else"):
        okdc.study(own)
    assert (own / "same/fefr/seed0/notes.txt").is_file()


@pytest.mark.parametrize("words", [["--dry-run", "--commands"], ["--md", "--json"], ["--table", "--dry-run"]])
def test_options_that_print_two_things_are_refused(words: list[str], capsys: Captured) -> None:
    assert asked(capsys, "digits", *words).code == 2


def test_more_jobs_than_cores_are_refused() -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    with pytest.raises(UsageError, match="--jobs"):
        okdc.study(NAME, jobs=1000)


def test_a_key_that_no_run_has_is_told_before_any_is_trained(capsys: Captured) -> None:
    Path(NAME).write_text(TINY, encoding="utf-8")
    answer = asked(capsys, NAME, "optim.epoch=3")
    assert answer.code == 2
    assert "optim.epoch" in answer.err
    assert not Path("studies").exists()
    with pytest.raises(RecipeError):
        opened([NAME, "digits"], None)


@pytest.mark.parametrize("name", ["same/fefr/seed1", "teachers/digits/seed0"])
def test_a_damaged_run_is_named_leaves_its_seed_out_and_is_not_trained_again(
    name: str, own: Path, capsys: Captured
) -> None:
    result = own / name / "result.json"
    result.write_bytes(result.read_bytes()[:-20])
    table = table_of(own)
    (left,) = table["left_out"]
    assert (left["run"], left["state"]) == (name, "damaged")
    assert str(result) in left["why"]
    assert row(table, "same", "fefr")["n"] == (1 if "fefr" in name else 2)
    cut = result.read_bytes()
    answer = asked(capsys, str(own))
    assert answer.code == 2
    error = answer.err[answer.err.index("error[run]") :]
    assert "1 damaged" in error
    assert str(result) in error
    assert f"move {own / name} away" in error
    assert result.read_bytes() == cut


def test_what_a_damaged_teacher_has_to_teach_is_left_out_with_the_reason(own: Path, capsys: Captured) -> None:
    result = own / RUNS[0] / "result.json"
    result.write_bytes(result.read_bytes()[:-20])
    shutil.rmtree(own / "same/kd/seed1")
    answer = asked(capsys, str(own))
    assert answer.code == 2
    assert "same/kd/seed1 is left out" in answer.err
    assert not (own / "same/kd/seed1").exists()
    assert {left["run"] for left in table_of(own)["left_out"]} == {RUNS[0], "same/kd/seed1"}


def test_a_teacher_that_has_no_one_to_teach_is_not_missed(own: Path, capsys: Captured) -> None:
    shutil.rmtree(own / "teachers")
    assert table_of(own)["left_out"] == []
    assert asked(capsys, str(own)).code == 0
    assert not (own / "teachers").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Ends


def test_a_failed_run_is_named_and_the_others_go_on(capsys: Captured) -> None:
    Path("bad.toml").write_text(
        'title = "bad"\nseeds = [0]\nkeys = ["optim.epochs=1", "data.train_images=64", "cohort.keep=0"]\n'
        '[columns]\nsmall = ["digits_resnet8"]\n'
        '[methods]\ndiverges = ["method=baseline", "optim.lr=1e30"]\nlearns = ["method=baseline"]\n',
        encoding="utf-8",
    )
    answer = asked(capsys, "bad.toml")
    assert answer.code == 2
    error = answer.err[answer.err.index("error[") :]
    assert "studies/bad/small/diverges/seed0 failed: " in error
    assert "move studies/bad/small/diverges/seed0 away" in error
    table = table_of(Path("studies/bad"))
    assert [(left["run"], left["state"]) for left in table["left_out"]] == [("small/diverges/seed0", "failed")]
    assert row(table, "small", "learns")["n"] == 1


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_all_runs_with_their_states_saved_and_the_next_call_goes_on(jobs: str) -> None:
    if int(jobs) > cores():
        pytest.skip("one core")
    Path(NAME).write_text(TINY, encoding="utf-8")
    words = ["study", NAME, "optim.epochs=400", "--only", "baseline", "--jobs", jobs]
    command = [sys.executable, "-m", "okdc", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    runs = [Path(f"studies/tiny/same/baseline/seed{seed}") for seed in range(int(jobs))]
    until = time.monotonic() + 120
    while not all((run / "log.jsonl").is_file() and (run / "log.jsonl").stat().st_size for run in runs):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "okdc study studies/tiny" in err
    assert {RunDir(run).state() for run in runs} == {"resumable"}


# ---------------------------------------------------------------------------------------------------------------------
# What it would cost


def test_a_dry_run_times_each_kind_of_run_once_and_scales_it_by_the_published_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(NAME).write_text(TINY.replace('"data.train_images=64", ', ""), encoding="utf-8")
    timed = []

    def time_of(resolved: okdc.ResolvedRecipe, teacher: str | None) -> estimate._Timed:
        timed.append((resolved.variant, resolved.architectures, teacher))
        return estimate._Timed(step=1.0, validating=0.01, judging=0.1, start=5.0, saving=2.0, disk_bytes=1000)

    monkeypatch.setattr(estimate, "_time", time_of)
    facts = study.dry_run(opened([NAME, "optim.epochs=3"], None), [], Silent())
    assert timed == [
        ("baseline", ("resnet14",), None),
        ("baseline", ("resnet8",), None),
        ("kd", ("resnet8",), "resnet14"),
        ("fefr", ("resnet8", "resnet8"), None),
        ("fefr", ("resnet8", "resnet14"), None),
    ]
    # 300 of 1,000 images train in batches of 32, 700 choose, 797 judge.
    expected = 3 * (9 * 1.0 + 700 * 0.01 + 2.0) + 5.0 + 797 * 0.1
    assert {each["seconds"] for each in facts["runs"]} == {round(expected, 1)}
    assert (facts["left"], facts["disk_bytes"]) == (len(RUNS), 1000 * len(RUNS))
    assert facts["seconds"] == pytest.approx(expected * len(RUNS), abs=0.1)


def test_a_training_too_short_for_its_parts_has_no_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.01)
    resolved = resolve(draft.load(["digits_resnet8", "method=relay", "optim.epochs=1"]), needs_data=False)
    with pytest.raises(RecipeError) as refused:
        estimate._time(resolved, None)
    assert "expected at least 2 epochs, found 1" in refused.value.details[0]


def test_the_steps_of_a_taught_student_are_timed_without_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.01)
    resolved = resolve(draft.load(["digits_resnet8", "method=kd", "method.teacher=runs/none"]), needs_data=False)
    timed = estimate._time(resolved, "resnet14")
    assert timed.step > 0
    assert timed.disk_bytes > 2 * 4 * (
        2 * 78_042 + 175_258
    )  # weights and momenta of the student, twice; and its teacher


def test_data_of_unknown_size_has_no_hours() -> None:
    Path("photos.toml").write_text(
        'title = "photographs"\nseeds = [0]\n[columns]\none = ["folder_resnet20"]\n[methods]\nfefr = ["method=fefr"]\n',
        encoding="utf-8",
    )
    facts = study.dry_run(opened(["photos.toml"], None), [], Silent())
    assert (facts["unknown"], facts["runs"][0]["seconds"]) == (1, None)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"cat": 20, "dog": 30}, (36, 4, 10)),
        ({"train": {"cat": 20, "dog": 20}, "test": {"cat": 3, "dog": 4}}, (36, 4, 7)),
        ({"train": {"cat": 20, "dog": 20}, "val": {"cat": 2, "dog": 3}}, (40, 5, 5)),
    ],
)
def test_the_images_of_a_folder_are_counted_as_a_training_divides_them(
    tree: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    write_tree(Path("root"), tree)
    resolved = resolve(draft.load(["folder_resnet20", "data.root=root"]))
    found = estimate._images(resolved, resolved.source.count_images("root"))
    dataset = assembly.dataset(resolved)
    assert found == expected == (len(dataset.train), len(dataset.val), len(dataset.final_split[1]))
    assert resolved.source.count_images("nowhere") is None


def test_published_numbers_go_before_those_of_a_folder() -> None:
    write_tree(Path("root"), {"train": {"cat": 2}, "val": {"cat": 2}})
    source = resolve(draft.load(["imagenet_resnet18"]), needs_data=False).source
    assert source.count_images("root") == source.counts


# ---------------------------------------------------------------------------------------------------------------------
# A paper's cell


def test_a_papers_number_stands_beside_ours_and_the_verdict_follows_from_the_interval() -> None:
    """Errors of 30 % ± a little over three seeds, where the paper prints 31.08 and 20."""
    paper = {
        "source": "a paper, table 1",
        "dataset": "digits",
        "students": ["resnet8", "resnet8"],
        "student_error": {"fefr": 31.08, "mine": 20.0},
        "fused_error": {"fefr": 30.0},
    }
    Path("cells.toml").write_text(
        'title = "cells"\nseeds = [0, 1, 2]\n[columns]\none = ["digits_resnet8"]\n'
        '[methods]\nfefr = ["method=fefr"]\nmine = ["method=fefr", "method.reconstruct=cyclic"]\n',
        encoding="utf-8",
    )
    cells = opened(["cells.toml"], None)
    for run in cells.runs:
        recipe = run.resolved().recipe.tables() | {"about": {"title": "made", "paper": paper}}
        variant = {"fefr": "fefr", "mine": "fefr reconstruct=cyclic"}[run.method]
        make_run(run.folder, variant, run.seed, (69.9, 70.0, 70.1)[run.seed], recipe=recipe)
    table = study.written(cells)
    student, fused, mine = (row(table, "one", *cell) for cell in (("fefr",), ("fefr", "fused"), ("mine",)))
    assert student["paper"] == {"source": "a paper, table 1", "error_pct": 31.08}
    assert fused["paper"]["error_pct"] == 30.0
    assert mine["paper"]["error_pct"] == 20.0  # by the label, since the paper has no such variant
    for found in (student, fused, mine):
        low, high = found["interval_pct"]
        printed = found["paper"]["error_pct"]
        assert found["minus_paper"]["points"] == pytest.approx(found["error_pct"] - printed, abs=1e-3)
        assert found["minus_paper"]["interval_points"] == pytest.approx([low - printed, high - printed], abs=1e-3)
        expected = "better" if high < printed else "worse" if low > printed else "not resolved"
        assert found["minus_paper"]["verdict"] == expected
    assert mine["minus_paper"]["verdict"] == "worse"
    assert fused["minus_paper"]["verdict"] == "not resolved"
    assert np.isclose(student["error_pct"], 30.0, atol=0.05)


def test_runs_that_do_not_compare_have_no_difference_and_are_named() -> None:
    """The recipes are the study's, the images are not: somebody's folder was another."""
    Path("cells.toml").write_text(
        'title = "cells"\nseeds = [0, 1, 2]\nbaseline = "baseline"\n[columns]\none = ["digits_resnet8"]\n'
        'two = ["digits_resnet8", "optim.lr=0.1"]\n[methods]\nbaseline = ["method=baseline"]\nfefr = ["method=fefr"]\n',
        encoding="utf-8",
    )
    cells = opened(["cells.toml"], None)
    for run in cells.runs:
        other = run.column == "one" and run.method == "fefr"
        make_run(
            run.folder, run.method, run.seed, 70.0, recipe=run.resolved().recipe.tables(),
            result={"data_sha256": "b" * 64} if other else {},
        )  # fmt: skip
    table = study.written(cells)
    assert not table["left_out"]
    apart, alike = row(table, "one", "fefr"), row(table, "two", "fefr")
    assert (apart["n"], apart["minus_baseline"]) == (3, None)
    assert alike["minus_baseline"]["points"] == 0
    notes = [note for note in table["notes"] if "data_sha256" in note]
    assert notes
    assert all(note.startswith("one") for note in notes)
