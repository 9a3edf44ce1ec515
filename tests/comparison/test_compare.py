from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import tried
from hypothesis import given
from hypothesis import strategies as st
from making import PAPER, SETTINGS, make_row, make_run, write_json
from scipy.special import stdtrit

import okdc.comparison
from okdc.comparison import comparable, stats
from okdc.comparison.compare import compare, next_step
from okdc.comparison.finished import find
from okdc.comparison.require import check
from okdc.errors import CheckFailed, OkdcError, RunError, UsageError
from okdc.runs import predictions
from okdc.runs.files import read_json
from okdc.runs.predictions import Bits
from okdc.runs.run import RunDir


def compared(*paths: str, **options: Any) -> dict[str, Any]:
    return compare([Path(path) for path in paths], **options)


def row_of(facts: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in facts["rows"] if row["name"] == name]
    return dict(row)


def refused(*paths: str, **options: Any) -> OkdcError:
    with pytest.raises(OkdcError) as caught:
        compared(*paths, **options)
    return caught.value


# --- numbers


def test_mean_deviation_and_interval_are_those_of_a_hand_calculation() -> None:
    # Differences 0.4 0.2 0.7 0.1 0.6: mean 0.4, squares about it 0 .04 .09 .09 .04 = .26, sd = sqrt(.26/4) = .254951;
    # t(4) at 97.5 % is 2.776445 in every table, so the seeds' half width is 2.776445 * .254951 / sqrt(5) = .316562.
    # Each run has its first images right, so that of 10,000 images 30 differ in 1 seed, 20 in 2, 30 in 3 and 10 in 4;
    # the squares of the shares of seeds add up to 21.6. Two images of ±1/2 more: (22.6/10002 - (40/10002)²)/10002 =
    # 2.24311e-7, and with t(9999) = 1.960201 the images' half width is .092837: √(.316562² + .092837²) = .329894.
    make_row("runs", "baseline", [97.1, 97.4, 96.9, 97.0, 97.2])
    make_row("runs", "fefr", [97.5, 97.6, 97.6, 97.1, 97.8])
    facts = compared("runs")
    base, fefr = row_of(facts, "baseline"), row_of(facts, "fefr")
    assert (base["kept"]["mean_top1_pct"], base["kept"]["sd_top1_pct"]) == (97.12, 0.1924)  # sqrt(.148 / 4)
    found = fefr["difference"]["kept"]
    assert (found["mean_points"], found["sd_points"], found["n"]) == (0.4, 0.255, 5)
    assert found["interval_points"] == [0.0701, 0.7299]
    assert (found["images"], found["discordant_images"]) == (10_000, 90)
    assert found["verdict"] == "better"
    assert fefr["difference"]["to"] == "baseline"
    assert base["difference"] is None


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (30, 2.0452)])
def test_the_quantiles_are_those_of_the_tables(n: int, t: float) -> None:
    """Where the images are so many that the seeds alone are left."""
    values = np.array([(-1.0) ** k for k in range(n)])
    deviation = math.sqrt(sum((v - values.mean()) ** 2 for v in values) / (n - 1))
    reach = float(stats.half_width(values, np.zeros(10**6)))
    assert reach / (deviation / math.sqrt(n)) == pytest.approx(t, abs=1e-4)


@pytest.mark.parametrize(("b", "c", "m"), [(0, 0, 60), (2, 0, 60), (7, 3, 300), (40, 90, 1000)])
def test_of_seeds_that_agree_the_interval_is_agresti_and_mins(b: int, c: int, m: int) -> None:
    """b images are right with one row alone, c with the other alone: half an image more in each of the four cells."""
    by_image = np.repeat([1.0, -1.0, 0.0], [b, c, m - b - c])
    reach = float(stats.half_width(np.full(3, by_image.mean()), by_image))
    differ, total = (b + 0.5) + (c + 0.5), m + 2
    deviation = math.sqrt((differ - (b - c) ** 2 / total) / total**2)
    assert reach == pytest.approx(stdtrit(m - 1, 0.975) * deviation)


def test_the_interval_of_one_accuracy_is_wilsons() -> None:
    make_row("runs", "fefr", [90.0, 90.0], result={"images": 100})
    # (0.9 + 1.96²/200 ± 1.96 √(.9 * .1 / 100 + 1.96²/40000)) / (1 + 1.96²/100)
    assert row_of(compared("runs"), "fefr")["kept_interval_pct"] == pytest.approx([82.56, 94.48], abs=0.01)


def test_kept_and_the_last_epochs_heads_are_never_mixed() -> None:
    heads = {"student0": 80.0, "student1": 81.0, "fused": 82.0, "ensemble": 83.0, "leader": 84.0}
    make_row("runs", "fefr", [90.0, 92.0], heads=heads)
    make_row("runs", "baseline", [89.0, 88.0], heads={"student0": 79.0})
    row = row_of(compared("runs"), "fefr")
    assert row["kept"]["mean_top1_pct"] == 91.0
    assert {head: of["mean_top1_pct"] for head, of in row["heads_last_epoch"].items()} == heads
    assert row["difference"]["kept"]["mean_points"] == 2.5
    assert row["difference"]["student_last_epoch"]["mean_points"] == 1.0


def test_differences_are_paired_by_seed_and_the_unmatched_are_named() -> None:
    make_row("runs", "baseline", {0: 90.0, 1: 95.0, 2: 50.0})
    make_row("runs", "fefr", {1: 96.0, 0: 92.0, 7: 10.0})
    facts = compared("runs")
    found = row_of(facts, "fefr")["difference"]["kept"]
    assert (found["seeds"], found["mean_points"], found["n"]) == ([0, 1], 1.5, 2)
    expected = "fefr and baseline: paired by seeds 0, 1; fefr alone has seed 7, baseline alone has seed 2"
    assert expected in facts["notes"]


def test_no_seed_in_common_gives_no_difference() -> None:
    make_row("runs", "baseline", {0: 90.0})
    make_row("runs", "fefr", {1: 96.0})
    facts = compared("runs")
    assert row_of(facts, "fefr")["difference"]["kept"] is None
    assert any("no seed in common" in note for note in facts["notes"])


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ([92.0, 92.1, 92.2], "better"),
        ([88.0, 88.1, 88.2], "worse"),
        ([91.0, 89.5, 90.6], "not resolved"),
        ([90.0, 90.0, 90.0], "not resolved"),
        ([90.01, 90.01, 90.01], "not resolved"),  # one image of 10,000
        ([90.3, 90.3, 90.3], "better"),
        ([93.0, 93.0], "not resolved (2 seeds)"),
        ([92.0], "not resolved (1 seed)"),
    ],
)
def test_the_verdict_follows_the_interval(ours: list[float], word: str) -> None:
    make_row("runs", "baseline", [90.0, 90.0, 90.0])
    make_row("runs", "fefr", ours)
    found = row_of(compared("runs"), "fefr")["difference"]["kept"]
    assert found["verdict"] == word
    if len(ours) == 1:
        assert found["interval_points"] is found["sd_points"] is None
        return
    low, high = found["interval_points"]
    if len(ours) == 3:
        assert {"better": low > 0, "worse": high < 0, "not resolved": low <= 0 <= high}[word]


def test_two_images_of_sixty_in_two_seeds_resolve_nothing() -> None:
    make_row("runs", "baseline", [90.0, 90.0], result={"images": 60})
    make_row("runs", "fefr", [93.3333, 93.3333], result={"images": 60})
    facts = compared("runs", require=["fefr>baseline", "fefr>=baseline"])
    found = row_of(facts, "fefr")["difference"]["kept"]
    assert (found["mean_points"], found["discordant_images"]) == (3.3333, 2)
    low, high = found["interval_points"]
    assert low < 0 < 3.3333 < high
    assert found["verdict"] == "not resolved (2 seeds)"
    assert [each["holds"] for each in facts["required"]] == [False, False]


def test_an_interval_that_ends_at_0_resolves_nothing() -> None:
    assert stats.verdict(3, (0.0, 1.0)) == "not resolved"
    assert stats.verdict(3, (-1.0, 0.0)) == "not resolved"


bits = st.lists(st.booleans(), min_size=12, max_size=12).map(np.array)
pairs = st.lists(st.tuples(bits, bits, bits), min_size=2, max_size=8)
Pairs = list[tuple[Bits, Bits, Bits]]


@tried
@given(pairs)
def test_what_a_seed_does_to_both_methods_leaves_their_difference_alone(seeds: Pairs) -> None:
    """Images that a seed turns round for both: neither the paired difference nor its interval may see them."""
    same = [(np.where(c, True, a), np.where(c, True, b)) for a, b, c in seeds]
    gone = [(np.where(c, False, a), np.where(c, False, b)) for a, b, c in seeds]
    shifted, plain = (
        stats.paired({s: a for s, (a, _) in enumerate(of)}, {s: b for s, (_, b) in enumerate(of)})
        for of in (same, gone)
    )
    assert shifted == plain


@tried
@given(pairs)
def test_the_order_of_the_images_is_no_matter_and_their_pairing_is(seeds: Pairs) -> None:
    ours, theirs = ({s: pair[k] for s, pair in enumerate(seeds)} for k in (0, 1))
    turned = [{s: of[::-1] for s, of in row.items()} for row in (ours, theirs)]
    assert stats.paired(*turned) == stats.paired(ours, theirs)


@tried
@given(pairs)
def test_no_interval_is_without_width(seeds: Pairs) -> None:
    ours, theirs = ({s: pair[k] for s, pair in enumerate(seeds)} for k in (0, 1))
    found = stats.paired(ours, theirs)
    assert found is not None
    low, high = found["interval_points"]
    assert -100 <= low <= found["mean_points"] <= high <= 100
    assert high - low > 10  # of twelve images


@tried
@given(pairs)
def test_turned_round_the_difference_is_its_negative(seeds: Pairs) -> None:
    ours, theirs = ({s: pair[k] for s, pair in enumerate(seeds)} for k in (0, 1))
    there, back = stats.paired(ours, theirs), stats.paired(theirs, ours)
    assert there is not None
    assert back is not None
    assert there["mean_points"] == -back["mean_points"]
    assert there["interval_points"] == pytest.approx([-end for end in reversed(back["interval_points"])])
    turned = {"better": "worse", "worse": "better"}
    assert back["verdict"] == turned.get(there["verdict"], there["verdict"])


# --- rows


def test_the_baseline_is_first_and_the_others_follow_by_their_mean() -> None:
    make_row("runs", "baseline", [95.0, 95.0])
    make_row("runs", "dml", [91.0, 92.0])
    make_row("runs", "fefr", [92.0, 93.0])
    make_row("runs", "mfef", [96.0, 60.0])
    assert [row["name"] for row in compared("runs")["rows"]] == ["baseline", "fefr", "dml", "mfef"]
    named = compared("runs", baseline="dml")
    assert [row["name"] for row in named["rows"]] == ["dml", "baseline", "fefr", "mfef"]
    assert row_of(named, "baseline")["difference"]["kept"]["mean_points"] == 3.5


def test_without_a_baseline_there_are_no_differences_and_it_is_said() -> None:
    make_row("runs", "fefr", [92.0, 93.0])
    facts = compared("runs")
    assert facts["baseline"] is None
    assert row_of(facts, "fefr")["difference"] is None
    assert any("no run of the method baseline" in note for note in facts["notes"])


def test_a_variant_is_a_row_of_its_own() -> None:
    make_row("runs", "fefr", [92.0, 93.0])
    make_row("runs", "fefr reconstruct=cyclic", [92.0, 93.0])
    assert [row["name"] for row in compared("runs")["rows"]] == ["fefr", "fefr reconstruct=cyclic"]


def test_the_number_of_students_is_named_where_cohorts_differ_in_it() -> None:
    make_row("runs", "baseline", [90.0])
    make_row("runs", "fefr", [92.0])
    assert [row["name"] for row in compared("runs")["rows"]] == ["baseline", "fefr"]
    make_row("more", "fefr", [93.0], students=["resnet8"] * 3)
    assert [row["name"] for row in compared("runs", "more")["rows"]] == [
        "baseline",
        "fefr, 3 students",
        "fefr, 2 students",
    ]


def test_one_method_at_several_sharings_is_an_ablation() -> None:
    for share, kept in (("none", 93.0), ("low", 92.0), ("stem1", 91.0)):
        make_row(share, "fefr", [kept], share=share)
    names = [row["name"] for row in compared("none", "low", "stem1")["rows"]]
    assert names == ["fefr, share=none", "fefr, share=low", "fefr, share=stem1"]


def test_params_and_macs_are_ranges_where_seeds_keep_different_students() -> None:
    make_run("runs/a", "fefr", 0)
    make_run("runs/b", "fefr", 1, kept_facts={"params": 100_000, "macs": 900_000})
    row = row_of(compared("runs"), "fefr")
    assert (row["params"], row["macs"]) == ([77_850, 100_000], [800_000, 900_000])


# --- refusals: each names the key, the values and the runs

BUDGETS: dict[str, dict[str, Any]] = {
    "data_sha256": {"result": {"data_sha256": "f" * 64}},
    "judged_on": {"result": {"judged_on": "validation"}},
    "images": {"result": {"images": 800}},
    "classes": {"info": {"classes": ["a", "b"]}},
    "data.image_size": {"recipe": {"data": {"image_size": 16}}},
    "data.val_fraction": {"recipe": {"data": {"val_fraction": 0.2}}},
    "data.train_images": {"recipe": {"data": {"train_images": 100}}},
    "augment.padding": {"recipe": {"augment": {"padding": 2}}},
    "augment.flip": {"recipe": {"augment": {"flip": True}}},
    "augment.rotation": {"recipe": {"augment": {"rotation": 10.0}}},
    "data.mean": {"recipe": {"data": {"mean": [0.5, 0.5, 0.5]}}},
    "data.std": {"recipe": {"data": {"std": [0.5, 0.5, 0.5]}}},
    "optim.epochs": {"recipe": {"optim": {"epochs": 3}}},
    "optim.batch_size": {"recipe": {"optim": {"batch_size": 64}}},
    "optim.lr": {"recipe": {"optim": {"lr": 0.2}}},
    "optim.weight_decay": {"recipe": {"optim": {"weight_decay": 0.0}}},
    "optim.aux_weight_decay": {"recipe": {"optim": {"aux_weight_decay": 0.0}}},
    "optim.schedule": {"recipe": {"optim": {"schedule": "cosine"}}},
    "optim.milestones": {"recipe": {"optim": {"milestones": [0.5]}}},
    "optim.clip": {"recipe": {"optim": {"clip": 1.0}}},
    "cohort.students (architectures)": {"students": ["resnet20", "resnet20"]},
}


@pytest.mark.parametrize("key", BUDGETS)
def test_runs_that_differ_in_more_than_method_and_seed_are_refused(key: str) -> None:
    make_run("runs/a", "baseline", 0)
    make_run("runs/b", "fefr", 0, **BUDGETS[key])
    error = refused("runs")
    assert isinstance(error, RunError)
    assert error.exit_code == 2
    assert error.message == f"these 2 runs do not compare: they differ in {key}"
    runs, _ = find([Path("runs")])
    if "." in key:  # a study may state a key of a recipe
        comparable.refuse(runs, {key.split()[0]})
    with pytest.raises(RunError, match=f"differ in {re.escape(key)}"):
        comparable.refuse(runs, {"cohort.share", "optim"})
    (line,) = error.details
    assert line.startswith(f"{key}: ")
    assert line.count(" in runs/") == 2
    assert "runs/a; " in line
    assert line.endswith("runs/b")
    assert error.hint


def test_every_key_that_differs_is_named_at_once() -> None:
    make_row("runs", "baseline", [90.0] * 5)
    make_run("other", "fefr", 0, recipe={"optim": {"epochs": 3}, "augment": {"flip": True}})
    error = refused("runs", "other")
    assert error.message.endswith("they differ in augment.flip, optim.epochs")
    assert error.details[1] == (
        "optim.epochs: 60 in runs/baseline-0, runs/baseline-1, runs/baseline-2 and 2 more; 3 in other"
    )


def test_runs_that_were_judged_on_other_rows_are_refused() -> None:
    """Their data is the same, but image i of one is not image i of the other."""
    make_run("runs/a", "baseline", 0)
    path = make_run("runs/b", "fefr", 0)
    run = RunDir(path)
    answers = predictions.read(run.predictions, run.read_result())
    turned = replace(answers, test=replace(answers.test, rows=answers.test.rows[::-1].copy()))
    sha256 = predictions.write(run.predictions, turned)
    write_json(run.result, read_json(run.result) | {"predictions_sha256": sha256})
    assert refused("runs").message.endswith("they differ in judging images (rows, labels)")


def test_where_the_images_lie_is_no_difference() -> None:
    for n, root in enumerate(("here", "there")):
        make_run(f"runs/{n}", "fefr", n, recipe={"data": {"name": "folder", "root": root}})
    assert row_of(compared("runs"), "fefr")["n"] == 2


def test_the_mean_of_a_subset_that_the_seed_draws_may_differ_between_seeds_only() -> None:
    def moments(value: float) -> dict[str, Any]:
        return {"data": {"train_images": 100, "mean": [value] * 3}}

    for seed, value in enumerate((0.25, 0.5)):
        for variant in ("baseline", "fefr"):
            make_run(f"runs/{variant}-{seed}", variant, seed, recipe=moments(value))
    assert len(compared("runs")["rows"]) == 2
    make_run("runs/dml", "dml", 1, recipe=moments(0.25))
    assert refused("runs").message.endswith("they differ in data.mean (seed 1)")


def test_different_methods_that_share_different_stages_are_refused() -> None:
    make_row("runs", "fefr", [92.0], share="low")
    make_row("runs", "mfef", [92.0], share="stem1")
    error = refused("runs")
    assert "different methods share different stages" in error.message
    assert error.details == ("share: low (fefr) in runs/fefr-0; stem1 (mfef) in runs/mfef-0",)


def test_methods_that_share_nothing_stand_beside_those_that_do() -> None:
    make_row("runs", "baseline", [90.0])
    make_row("runs", "fefr", [92.0], share="low")
    make_row("runs", "dml", [92.0], recipe={"cohort": {"share": "low"}})  # was told to, and trains separate networks
    facts = compared("runs")
    assert [(row["name"], row["share"]) for row in facts["rows"]] == [
        ("baseline", "none"),
        ("dml", "none"),
        ("fefr", "low"),
    ]
    assert not facts["notes"]


def test_a_method_told_to_share_nothing_beside_one_that_shared_is_noted() -> None:
    make_row("runs", "fefr", [92.0], share="low")
    make_row("runs", "ffl", [92.0], share="none")
    assert any(note.startswith("fefr shared stages, ffl with cohort.share=none") for note in compared("runs")["notes"])


def test_two_runs_of_one_variant_and_seed_are_refused_with_both_paths() -> None:
    make_run("runs/a", "fefr", 3, 90.0)
    make_run("runs/b", "fefr", 3, 95.0)
    error = refused("runs")
    assert isinstance(error, RunError)
    assert error.details == ("fefr, seed 3: runs/a and runs/b",)
    assert "delete" in error.hint


def test_the_same_run_named_twice_is_one_run() -> None:
    make_run("runs/a", "fefr", 3)
    assert row_of(compared("runs", "runs/a", "./runs/../runs/a"), "fefr")["n"] == 1


# --- what is only noted


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"info": {"settings": SETTINGS | {"dtype": "bfloat16"}}}, "engine dtype differs: "),
        ({"info": {"processes": 2}}, "own images, differs: 1 in runs/a; 2 in runs/b"),
        ({"info": {"processes": 2, "processes_before": [1]}}, "own images, differs: 1 in runs/a; 1, then 2 in runs/b"),
        ({"info": {"settings": SETTINGS | {"device": "cuda"}}}, "engine device differs: "),
        ({"info": {"versions": {"torch": "9.9"}}}, "torch differs: 2.14.1 in runs/a; 9.9 in runs/b"),
        ({"info": {"processor": "another"}}, "their seconds do not compare"),
        ({"recipe": {"cohort": {"keep": "smallest"}}}, "cohort.keep differs: best in runs/a; smallest in runs/b"),
        ({"kept_facts": {"architecture": "resnet20"}}, "kept is not one network (resnet20, resnet8)"),
    ],
)
def test_what_differs_beside_the_budget_is_noted(more: dict[str, Any], said: str) -> None:
    make_run("runs/base", "baseline", 0)
    make_run("runs/a", "fefr", 0)
    assert not compared("runs")["notes"]
    make_run("runs/b", "dml", 0, **more)
    notes = compared("runs")["notes"]
    # the baseline's run stands in the lists of settings, too
    assert any(said.replace("in runs/a;", "in runs/a, runs/base;") in note or said in note for note in notes), notes


def test_students_of_different_teachers_are_different_rows() -> None:
    """Their mean would be that of two experiments."""
    for seed in range(2):
        teacher = {"architecture": "resnet56", "weights_sha256": str(seed) * 64}
        make_run(f"runs/{seed}", "kd", seed, result={"teacher": teacher})
    facts = compared("runs")
    for seed in range(2):
        row = row_of(facts, f"kd, teacher resnet56 {str(seed) * 8}")
        assert (row["n"], row["teachers_sha256"]) == (1, [str(seed) * 64])


def test_a_method_that_started_from_other_weights_is_not_compared() -> None:
    """What they are worth would be taken for what the method is."""
    start = {"weights": "w.pt", "weights_sha256": "8" * 64, "head": "new", "dataset": "", "licence": ""}
    make_run("runs/a", "baseline", 0, result={"starts": [start]})
    make_run("runs/b", "fefr", 0, result={"starts": [start, start]})
    assert compared("runs")["rows"]
    make_run("runs/c", "dml", 0)
    assert refused("runs").message.endswith("they differ in cohort.weights of resnet8")


def test_a_deeper_branch_is_a_network_of_its_own_where_starts_are_compared() -> None:
    """Trained weights of resnet8 are none of resnet8+2; an extraction has none, so that its network counts."""
    start = {"weights": "w.pt", "weights_sha256": "8" * 64, "head": "new", "dataset": "", "licence": ""}
    make_run("runs/a", "ffl", 0, result={"starts": [start, start]})
    make_run("runs/b", "ahbf", 0, result={"students": ["resnet8", "resnet8+2"], "starts": [start, None]})
    assert compared("runs")["rows"]
    make_run("runs/c", "mfef", 0, result={"students": ["resnet8", "resnet8+msfe"], "starts": [start, None]})
    assert refused("runs").message.endswith("they differ in cohort.weights of resnet8")


# --- finding the runs


def test_runs_are_found_up_to_two_folders_deep() -> None:
    make_run("runs/a-1", "fefr", 0)
    series = make_run("runs/s-1/seed1", "fefr", 1).parent
    (series / "recipe.toml").write_text("[data]\n")  # a series has a recipe and is no run
    (series / "series.json").write_text("{}")
    make_run("runs/x/y/z", "fefr", 2)
    make_run("runs/.hidden", "fefr", 3)
    facts = compared("runs")
    assert [run["run"] for run in row_of(facts, "fefr")["runs"]] == ["runs/a-1", "runs/s-1/seed1"]
    assert facts["left_out"] == []
    assert row_of(compared("runs/s-1"), "fefr")["seeds"] == [1]


def _unfinished(path: Path) -> None:
    (path / "result.json").unlink()


def _failed(path: Path) -> None:
    _unfinished(path)
    RunDir(path).note(failed="the loss is not finite")


def _cut(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])

    return damage


def _without(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def _changed(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        whole = (path / name).read_text(encoding="utf-8")
        assert old in whole
        (path / name).write_text(whole.replace(old, new), encoding="utf-8")

    return change


def _another_accuracy(path: Path) -> None:
    """Sealed: whoever changed it knew the format."""
    result = read_json(path / "result.json")
    result["kept"]["top1_pct"] = result["cohort"][0]["top1_pct"] = 95.1
    write_json(path / "result.json", result)


DAMAGE = {
    "unfinished": (_unfinished, "not complete: resumable"),
    "failed": (_failed, "not complete: failed: the loss is not finite"),
    "result cut": (_cut("result.json"), "result.json: not JSON"),
    "recipe cut": (_cut("recipe.toml"), "recipe.toml"),
    "run.json cut": (_cut("run.json"), "run.json: not JSON"),
    "no run.json": (_without("run.json"), "is not a run"),
    "of another version": (_changed("result.json", '"variant"', '"kind"'), "variant: missing"),
    "not a number": (_changed("result.json", '"top1_pct": 95.0', '"top1_pct": NaN'), "kept.top1_pct"),
    "more than all": (_changed("result.json", '"top1_pct": 95.0', '"top1_pct": 101'), "kept.top1_pct"),
    "a key of another recipe": (_changed("recipe.toml", "epochs = 60", "epochs = 61"), "recipe.toml was edited"),
    "of another seed": (_changed("recipe.toml", "seed = 2", "seed = 3"), "recipe.toml was edited"),
    "a changed number": (_changed("result.json", '"top1_pct": 95.0', '"top1_pct": 95.5'), "result.json was edited"),
    "another accuracy": (_another_accuracy, "result.json says 95.1 %"),
    "predictions cut": (_cut("predictions.npz"), "predictions.npz is not the file that the run recorded"),
    "no predictions": (_without("predictions.npz"), "predictions.npz: cannot be read"),
    "no student": (_changed("result.json", '"student0"', '"studentO"'), "student0: missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_not_complete_below_a_folder_is_left_out_and_named(kind: str) -> None:
    damage, said = DAMAGE[kind]
    make_row("runs", "fefr", [90.0, 91.0])
    damage(make_run("runs/bad", "fefr", 2, 95.0))
    facts = compared("runs")
    assert row_of(facts, "fefr")["seeds"] == [0, 1]
    ((left),) = facts["left_out"]
    assert left["run"] == "runs/bad"
    assert "runs/bad" in left["why"]
    assert said in left["why"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_named_and_not_complete_is_an_error(kind: str) -> None:
    damage, said = DAMAGE[kind]
    make_run("runs/good", "fefr", 0)
    damage(make_run("runs/bad", "fefr", 2, 95.0))
    assert said in refused("runs/good", "runs/bad").message


def test_nothing_to_compare_is_an_error_with_a_way_on() -> None:
    assert refused().message == f"no complete run in {Path.cwd()}/runs"
    _unfinished(make_run("runs/bad"))
    error = refused()
    assert error.details == ("runs/bad is not complete: resumable",)
    assert error.hint == "start one: okdc distill"
    assert "no such run" in refused("nowhere").message


def test_without_a_path_the_runs_of_this_folder_are_compared() -> None:
    make_run("runs/a", "fefr", 0)
    assert row_of(compared(), "fefr")["n"] == 1


# --- the paper's numbers


def test_a_papers_number_stands_beside_its_own_variant_alone() -> None:
    for variant in ("baseline", "mfef", "mfef temperature=1.0", "fefr"):
        make_row("runs", variant, [90.0], recipe={"about": PAPER})
    facts = compared("runs")
    usual = {"source": "a paper, table 1", "epochs": 300}
    assert row_of(facts, "baseline")["paper"] == usual | {"student_error_pct": 7.32, "fused_error_pct": None}
    assert row_of(facts, "mfef")["paper"] == usual | {"student_error_pct": [6.5, 5.5], "fused_error_pct": 5.0}
    assert row_of(facts, "mfef temperature=1.0")["paper"] is None
    assert row_of(facts, "fefr")["paper"] is None


def test_two_papers_for_one_row_are_none() -> None:
    make_run("runs/a", "mfef", 0, recipe={"about": PAPER})
    make_run("runs/b", "mfef", 1)
    facts = compared("runs")
    assert row_of(facts, "mfef")["paper"] is None
    assert any("different cells of papers" in note for note in facts["notes"])


# --- requirements


def three() -> None:
    make_row("runs", "baseline", [90.0, 90.0, 90.0])
    make_row("runs", "fefr", [92.0, 92.1, 92.2])
    make_row("runs", "fefr reconstruct=cyclic", [91.0, 89.5, 90.6])
    make_row("runs", "dml", [88.0, 88.1, 88.2])
    make_row("runs", "mfef", [95.0])


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("fefr>baseline", True),
        ("fefr>=baseline", True),
        (" fefr  >  baseline ", True),
        ("fefr reconstruct=cyclic>baseline", False),
        ("fefr reconstruct=cyclic>=baseline", True),
        ("baseline>=fefr reconstruct=cyclic", True),
        ("dml>baseline", False),
        ("dml>=baseline", False),
        ("fefr>dml", True),  # neither is the baseline
        ("mfef>baseline", False),  # one seed resolves nothing
        ("mfef>=baseline", False),
    ],
)
def test_a_requirement_holds_or_not_by_the_interval(text: str, holds: bool) -> None:
    three()
    facts = compared("runs", require=[text])
    assert [each["holds"] for each in facts["required"]] == [holds]
    if holds:
        check(facts)
        return
    with pytest.raises(CheckFailed) as caught:
        check(facts)
    assert (caught.value.kind, caught.value.exit_code) == ("require", 1)
    assert "does not hold: kept " in caught.value.message


def test_every_requirement_that_does_not_hold_is_named_with_what_was_found() -> None:
    three()
    facts = compared("runs", require=["dml>baseline", "fefr>baseline", "fefr reconstruct=cyclic>baseline"])
    with pytest.raises(CheckFailed) as caught:
        check(facts)
    assert caught.value.message == "2 of 3 requirements do not hold"
    assert caught.value.details == (
        "dml>baseline does not hold: kept -1.90 points, 95 % interval [-2.26, -1.54] over 3 seeds, 10,000 images: "
        "worse",
        "fefr reconstruct=cyclic>baseline does not hold: kept +0.37 points, 95 % interval [-1.57, +2.30] over 3 seeds, "
        "10,000 images: not resolved",
    )


@pytest.mark.parametrize("text", ["fefr", "fefr>", ">baseline", "fefr<baseline", "a>b>c", "", "fefr=>", "> ="])
def test_a_requirement_that_cannot_be_read_is_a_usage_error(text: str) -> None:
    three()
    assert isinstance(refused("runs", require=[text]), UsageError)


def test_an_unknown_row_lists_what_exists_and_the_nearest() -> None:
    three()
    for options in ({"require": ["feffr>baseline"]}, {"baseline": "feffr"}):
        error = refused("runs", **options)
        assert isinstance(error, UsageError)
        assert "no row is called 'feffr' (did you mean 'fefr'?)" in error.message
        assert error.hint.startswith("there is: baseline, ")
        assert "fefr reconstruct=cyclic" in error.hint


def test_a_row_is_not_compared_with_itself_and_a_variant_of_several_rows_is_ambiguous() -> None:
    three()
    assert "with itself" in refused("runs", require=["fefr>=fefr"]).message
    make_row("more", "fefr", [91.0], students=["resnet8"] * 3)
    error = refused("runs", "more", require=["fefr>baseline"])
    assert error.message == "--require: 'fefr' is several rows"
    assert "'fefr, 3 students'" in error.hint
    facts = compared("runs", "more", require=["fefr, 2 students>baseline"])
    assert facts["required"][0]["holds"] is True


# --- the next command


def test_more_seeds_come_next_where_a_row_has_few() -> None:
    make_row("runs", "baseline", {4: 90.0, 5: 90.0, 6: 90.0})
    make_row("runs", "fefr", {5: 90.0})
    asked = "okdc distill runs/fefr-5/recipe.toml --seeds 4,6 -o runs/fefr-5"
    assert next_step(compared("runs")) == f"{asked}-2"
    Path("runs/fefr-5-2").mkdir()
    assert next_step(compared("runs")) == f"{asked}-3", "where the comparison of this folder finds them"


def test_the_export_that_comes_next_is_chosen_on_validation() -> None:
    for seed, (validated, kept) in enumerate([(91.0, 99.0), (93.0, 90.0), (92.0, 95.0)]):
        make_run(f"runs/{seed}", "fefr", seed, kept, kept_facts={"val_top1_pct": validated})
    assert next_step(compared("runs")) == "okdc export runs/1 --onnx"


def test_the_package_itself_imports_none_of_its_modules() -> None:
    tree = ast.parse(Path(okdc.comparison.__file__).read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
