"""A series as a folder of runs: how it is made, found, listed and told from a run."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from asking import ask, tried
from hypothesis import given
from hypothesis import strategies as st
from making import result_of, run_info, write_json

from okdc.errors import DiskError, RunError, UsageError
from okdc.recipe.draft import check, load
from okdc.recipe.schema import Recipe
from okdc.runs import locks
from okdc.runs.artefacts import Provenance, Settings
from okdc.runs.files import read_json, write
from okdc.runs.run import RunDir, best, runs
from okdc.runs.series import SeriesDir, all_series, newest_resumable, owner, parse_seeds

Captured = pytest.CaptureFixture[str]
SETTINGS = Settings(device="cpu", dtype="float32", memory_format="contiguous", threads=1)


def recipe(*words: str) -> Recipe:
    found, problems = check(load(["digits_resnet8", *words]))
    assert found is not None, problems
    return found


def made(*seeds: int, at: str = "2026-01-01", out: Path | None = None) -> SeriesDir:
    return SeriesDir.create("digits", recipe(), seeds or (0, 1, 2), at, SETTINGS, Provenance(), out)


def begin(series: SeriesDir, seed: int, at: str = "2026-01-02", **facts: object) -> RunDir:
    """A run of a seed that has its first files and nothing else."""
    one = recipe(f"seed={seed}")
    return RunDir.create("x", run_info(recipe=one.tables(), started_at=at, **facts), series.run(seed).path)


def finish(run: RunDir, top1_pct: float = 90.0, val_top1_pct: float | None = 91.0) -> RunDir:
    kept = {"epoch": 3, "val_top1_pct": val_top1_pct, "top1_pct": top1_pct}
    write_json(run.result, result_of("fefr", kept, images=797))
    return run


# --- the list of seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", (0,)),
        ("0,1,2", (0, 1, 2)),
        ("2,0", (2, 0)),
        ("0-4", (0, 1, 2, 3, 4)),
        ("7-7", (7,)),
        ("5, 0-1", (5, 0, 1)),
        (str(2**63 - 1), (2**63 - 1,)),
    ],
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@tried
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_a_list_of_seeds_is_read_as_it_was_written(seeds: list[int]) -> None:
    assert parse_seeds(",".join(map(str, seeds))) == tuple(seeds)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected integers from 0 on, found ''"),
        ("x", "found 'x'"),
        ("0,,1", "found ''"),
        ("0,1,", "found ''"),
        ("-1", "found '-1'"),
        ("1.5", "found '1.5'"),
        ("0 1", "found '0 1'"),
        ("1_0", "found '1_0'"),
        ("٣", "found '٣'"),
        ("0-", "found '0-'"),
        ("3-1", "expected a range that rises, found '3-1'"),
        ("1,1", "seed 1 is named twice"),
        ("0-2,1", "seed 1 is named twice"),
        (str(2**63), f"expected at most {2**63 - 1}"),
        ("0-1000", "expected at most 1000 seeds"),
        ("0-9999999999999999", "expected at most 1000 seeds"),
    ],
)
def test_a_bad_list_of_seeds_says_what_is_expected(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_seeds(text)
    assert said in caught.value.message
    assert "--seeds 0,1,2 or --seeds 0-4" in caught.value.hint


# --- the folder


def test_a_series_starts_with_its_seeds_and_a_recipe_without_one() -> None:
    series = made(3, 1)
    assert series.path == Path("runs/digits-1")
    assert {path.name for path in series.path.iterdir()} == {"series.json", "recipe.toml"}
    facts = read_json(series.info)
    assert (facts["schema"], facts["seeds"], facts["started_at"]) == (1, [3, 1], "2026-01-01")
    assert facts["recipe"] == tomllib.loads(series.recipe.read_text())
    assert "seed" not in series.recipe.read_text().split()
    again, problems = check(load([str(series.recipe), "seed=3"]))
    assert again == recipe("seed=3"), problems


def test_runs_and_series_are_numbered_together() -> None:
    assert [made().path.name, RunDir.create("digits", run_info()).path.name, made().path.name] == [
        "digits-1",
        "digits-2",
        "digits-3",
    ]


def test_a_folder_that_holds_a_series_is_refused_to_runs_and_series() -> None:
    made(out=Path("here"))
    for make in (lambda: made(out=Path("here")), lambda: RunDir.create("x", run_info(), Path("here"))):
        with pytest.raises(RunError, match="here already holds a series") as caught:
            make()
        assert "okdc resume here" in caught.value.hint


def test_a_series_whose_first_files_cannot_be_written_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskError("full")

    monkeypatch.setattr("okdc.runs.artefacts.write", full)
    with pytest.raises(DiskError):
        made()
    assert list(Path("runs").iterdir()) == []


def test_a_recipe_that_was_changed_is_refused_and_images_that_moved_are_not() -> None:
    series = made()
    text = series.recipe.read_text()
    write(series.recipe, text.replace("[data]", '[data]\nroot = "elsewhere"').encode())
    assert SeriesDir.open(series.path) == series
    write(series.recipe, text.replace("epochs = 60", "epochs = 61").encode())
    with pytest.raises(RunError, match=r"digits-1/recipe\.toml was edited") as caught:
        SeriesDir.open(series.path)
    assert caught.value.details == ("optim.epochs: 60 when it began, 61 now",)
    series.recipe.unlink()
    SeriesDir.open(series.path)
    assert series.recipe.read_text() == text


@pytest.mark.parametrize("text", ["{", "{}", '{"seeds": 3, "recipe_sha256": "", "settings": {}}', "[]"])
def test_a_damaged_series_is_named_and_hides_no_run(capsys: Captured, text: str) -> None:
    series, other = made(), made(at="2026-02-01")
    begin(series, 0)
    series.info.write_text(text)
    assert series.state() == "failed"
    with pytest.raises(RunError, match=r"series\.json"):
        SeriesDir.open(series.path)
    answer = ask(capsys, "resume", str(series.path))
    assert (answer.code, "Traceback" in answer.err) == (2, False)
    assert newest_resumable() == other
    assert [row["run"] for row in json.loads(ask(capsys, "runs", "--json").out)] == ["runs/digits-1/seed0"]
    assert ask(capsys, "runs").code == 0


# --- states


def test_a_series_is_resumable_until_every_seed_is_at_its_end() -> None:
    series = made(0, 1)
    states = [series.state()]
    first = begin(series, 0)
    states.append(series.state())
    finish(first)
    states.append(series.state())
    second = begin(series, 1)
    with second.held():
        states.append(series.state())
    finish(second)
    states.append(series.state())
    assert states == ["resumable", "resumable", "resumable", "running", "complete"]
    assert series.left() == []


def test_a_series_with_a_failed_seed_is_resumable_while_others_are_left_and_failed_then() -> None:
    series = made(0, 1)
    begin(series, 0, failed="the loss is not finite")
    assert (series.state(), series.left()) == ("resumable", [1])
    finish(begin(series, 1))
    assert series.state() == "failed"
    error = series.failure()
    assert error is not None
    assert error.message == "1 of 2 seeds of runs/digits-1 failed: 0"
    assert error.details == ("seed 0: the loss is not finite",)


def test_one_process_holds_a_series() -> None:
    series = made()
    states = []
    with series.held():
        states.append(series.state())
        assert locks.is_held(series.path)
        with pytest.raises(RunError, match="runs/digits-1 is being trained by another process"), series.held():
            pass
        with pytest.raises(RunError, match="no resumable run"):
            newest_resumable()
    states.append(series.state())
    assert states == ["running", "resumable"]


def test_half_of_a_first_file_that_a_kill_left_is_no_run_and_in_no_ones_way() -> None:
    series = made()
    folder = series.run(1).path
    folder.mkdir()
    (folder / ".run.json.new").write_text('{"schema": ')
    assert series.state_of(1) is None
    assert begin(series, 1).state() == "resumable"


def test_a_seeds_folder_with_anything_of_the_users_is_not_taken() -> None:
    series = made()
    series.run(1).path.mkdir()
    (series.run(1).path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not an empty folder"):
        begin(series, 1)
    assert (series.run(1).path / "notes.txt").read_text() == "mine"


# --- finding


def test_the_runs_of_a_series_are_found_among_the_others() -> None:
    alone = RunDir.create("x", run_info(started_at="2026-01-03"))
    series = made(0, 1)
    (series.path / "notes").mkdir()
    first, second = begin(series, 0, at="2026-01-02"), begin(series, 1, at="2026-01-04")
    assert runs() == [first, alone, second]
    assert runs(series.path) == [first, second]
    assert RunDir.newest("resumable") == second
    assert (owner(first), owner(alone)) == (series, None)
    assert all_series() == [series]


@pytest.mark.parametrize(
    ("series_at", "seed_at", "newest"),
    [
        ("2026-01-02", None, "alone"),
        ("2026-01-04", None, "series"),
        ("2026-01-02", "2026-01-04", "series"),
        ("2026-01-01", "2026-01-02", "alone"),
    ],
)
def test_the_newest_resumable_is_a_series_where_it_was_worked_on_last(
    series_at: str, seed_at: str | None, newest: str
) -> None:
    alone = RunDir.create("x", run_info(started_at="2026-01-03"))
    series = made(0, 1, at=series_at)
    if seed_at:
        finish(begin(series, 0, at=seed_at))
    assert newest_resumable() == (alone if newest == "alone" else series)


def test_a_complete_series_is_not_resumed() -> None:
    series = made(0)
    finish(begin(series, 0))
    with pytest.raises(RunError, match="no resumable run"):
        newest_resumable()
    assert RunDir.newest("complete") == series.run(0)


def test_the_best_of_a_series_is_that_on_validation() -> None:
    series = made(0, 1, 2, 3)
    for seed, test, val in ((0, 99.0, 80.0), (1, 50.0, 90.0), (2, 99.9, 90.0)):
        finish(begin(series, seed, at=f"2026-01-0{seed + 1}"), test, val)
    begin(series, 3)
    assert best(series.path) == series.run(1)
    write_json(series.run(1).result, {})  # damaged: it hides no other
    assert best(series.path) == series.run(2)


# --- commands


@pytest.mark.parametrize("command", [["profile"], ["export", "--onnx"], ["evaluate"]])
def test_a_command_for_one_run_names_the_runs_of_a_series(capsys: Captured, command: list[str]) -> None:
    series = made(0, 1)
    answer = ask(capsys, *command, str(series.path))
    assert answer.code == 2
    assert "none of its runs is complete yet" in answer.err
    assert f"okdc resume {series.path}" in answer.err
    finish(begin(series, 0), val_top1_pct=70.0)
    finish(begin(series, 1), val_top1_pct=80.0)
    answer = ask(capsys, *command, str(series.path))
    assert answer.code == 2
    assert "runs/digits-1 is a series of 2 runs, expected one run" in answer.err
    assert "runs/digits-1/seed0 (complete)" in answer.err
    assert "the best of them on validation is runs/digits-1/seed1" in answer.err


def test_where_nothing_was_validated_no_run_of_a_series_is_the_best(capsys: Captured) -> None:
    series = made(0, 1)
    for seed in (0, 1):
        finish(begin(series, seed), val_top1_pct=None)
    answer = ask(capsys, "evaluate", str(series.path))
    assert answer.code == 2
    assert "hint: okdc profile runs/digits-1/seed0" in answer.err
    assert "best" not in answer.err


def test_the_list_of_runs_says_what_is_left_of_a_series(capsys: Captured) -> None:
    series = made(0, 1, 2)
    empty = ask(capsys, "runs")
    assert "runs/digits-1: left of its 3 seeds: 0, 1, 2" in empty.err
    assert "next: okdc resume runs/digits-1\n" in empty.err
    finish(begin(series, 0))
    begin(series, 1)
    answer = ask(capsys, "runs")
    assert [line.split()[:2] for line in answer.out.splitlines()[1:]] == [
        ["runs/digits-1/seed0", "complete"],
        ["runs/digits-1/seed1", "resumable"],
    ]
    assert "runs/digits-1: left of its 3 seeds: 1, 2" in answer.err
    assert "next: okdc resume runs/digits-1\n" in answer.err
    rows = json.loads(ask(capsys, "runs", "--json").out)
    assert [row["run"] for row in rows] == ["runs/digits-1/seed0", "runs/digits-1/seed1"]


def test_a_complete_series_is_summed_up_over_its_seeds() -> None:
    series = made(4, 2, 0)
    for seed, top1_pct in ((4, 90.0), (2, 92.0), (0, 97.0)):
        finish(begin(series, seed), top1_pct)
    facts = series.summary()
    assert [row["seed"] for row in facts["runs"]] == [4, 2, 0]
    assert (facts["n"], facts["top1_pct_mean"], facts["top1_pct_sd"]) == (3, 93.0, 3.6056)
    assert (facts["state"], facts["judged_on"], facts["images"]) == ("complete", "test", 797)


def test_one_seed_has_a_mean_and_no_deviation() -> None:
    series = made(5)
    finish(begin(series, 5), 91.5)
    facts = series.summary()
    assert (facts["n"], facts["top1_pct_mean"], facts["top1_pct_sd"]) == (1, 91.5, None)


def test_what_follows_a_series_is_a_comparison_where_there_are_several_methods() -> None:
    series = made(0)
    finish(begin(series, 0))
    assert series.next_command() == "okdc profile runs/digits-1/seed0"
    finish(RunDir.create("other", run_info(recipe=recipe("method.name=baseline").tables(), started_at="1")))
    RunDir.create("broken", run_info()).recipe.write_text("not = = toml")
    assert series.next_command() == "okdc compare runs"
    shorter = recipe("method.name=baseline", "optim.epochs=3")
    finish(RunDir.create("shorter", run_info(recipe=shorter.tables(), started_at="2")))
    assert series.next_command() == "okdc compare runs/other-1 runs/digits-1"
    finish(RunDir.create("again", run_info(recipe=recipe().tables(), started_at="3")))
    assert series.next_command().startswith("okdc profile"), "two runs of one method and seed are not compared"
    alone = SeriesDir.create("shorter", shorter, (0,), "2026-01-01", SETTINGS, Provenance())
    finish(RunDir.create("x", run_info(recipe=shorter.tables(), started_at="4"), alone.run(0).path))
    assert alone.next_command() == "okdc profile runs/shorter-2/seed0"
    assert read_json(series.info)["seeds"] == [0]
