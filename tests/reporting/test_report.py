"""`okdc report`: one page of runs in any state, from their files."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask, write_tree
from harness import recipe
from making import make_row, make_run, run_info

import okdc
from okdc.errors import CheckFailed, DiskError, RunError, UsageError
from okdc.progress import Silent
from okdc.reporting import page, report, several_page, words
from okdc.reporting.run import Wanted, examples_of
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
QUICK = Wanted(quick=True)
ROW = {
    "lr": 0.1, "loss": 2.0, "losses": {"ce_student0": 2.0}, "train_top1_pct": {"student0": 20.0},
    "val_top1_pct": {"student0": 10.0}, "seconds": 2.0, "seconds_steps": 1.0, "seconds_data": 0.5,
    "seconds_validation": 0.5,
}  # fmt: skip


class Page(HTMLParser):
    """What a page holds: its tags, its texts, and whatever could make a browser ask for something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.asked: list[str] = []
        self.ids: set[str] = set()
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster"):
                self.asked.append(value or "")
            if name == "id":
                self.ids.add(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def of(path: Path | str, wanted: Wanted = QUICK) -> dict[str, Any]:
    facts: dict[str, Any] = report.facts([Path(path)], wanted, None, Silent())["run"]
    return facts


def written(*paths: Path, wanted: Wanted = QUICK) -> str:
    report.write_page(Path("page.html"), report.facts(paths, wanted, None, Silent()))
    return Path("page.html").read_text(encoding="utf-8")


@pytest.fixture
def whole(shipped: Path, tmp_path: Path) -> Path:
    """A copy of a run with a bundle of three models."""
    return Path(shutil.copytree(shipped.parent, tmp_path / "whole"))


# --- one run


def test_the_command_writes_a_page_into_the_run_and_names_it(capsys: Captured, whole: Path) -> None:
    answer = ask(capsys, "report", str(whole), "--quick")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(str(whole / "report.html"))
    assert (whole / "report.html").stat().st_size < 5e6
    facts = json.loads(ask(capsys, "report", str(whole), "--quick", "--json").out)
    assert facts["run"]["run"] == str(whole)
    assert facts["several"] is facts["study"] is None
    assert RunDir(whole).state() == "complete"


def test_its_numbers_are_those_of_the_run(facts: dict[str, Any], shipped: Path) -> None:
    run, said = okdc.Run(shipped.parent), facts["run"]
    result, answers = run.result, run.predictions
    assert said["result"]["kept"]["top1_pct"] == result.kept.top1_pct
    recorded = {**result.heads_last_epoch_top1_pct, "kept": result.kept.top1_pct}
    assert {row["head"]: row["top1_pct"] for row in said["heads"]} == recorded
    assert {row["role"] for row in said["heads"]} == {"student", "fused", "ensemble", "kept"}
    for row in said["heads"]:
        assert round(100 * row["right"] / result.images, 4) == row["top1_pct"]
        assert row["interval_pct"][0] < row["top1_pct"] < row["interval_pct"][1]
    assert np.trace(said["answers"]["confusion"]) == answers.students[result.kept.student].sum()
    assert np.sum(said["answers"]["confusion"]) == result.images
    assert said["curves"]["losses"].keys() == run.log[0]["losses"].keys()
    assert said["curves"]["accuracy"]["fused"] == [row["val_top1_pct"]["fused"] for row in run.log]
    ramp = said["curves"]["ramp"]
    assert ramp[-1] == 1
    assert ramp == sorted(ramp)
    assert said["time"]["split"]["steps"] == pytest.approx(sum(row["seconds_steps"] for row in run.log), abs=1e-3)
    assert said["repeat"]["recipe_sha256"] == result.recipe_sha256
    assert said["data"]["images"] == {"train": 300, "val": 700, "test": 797}
    assert sum(row["test"] for row in said["data"]["classes"]) == 797
    assert said["costs"]["rows"][0]["macs"] == result.kept.macs


def test_mistakes_and_hits_are_pictures_of_what_they_say(facts: dict[str, Any], shipped: Path) -> None:
    answers = okdc.Run(shipped.parent).predictions.judging
    label = dict(zip(answers.rows.tolist(), answers.labels.tolist(), strict=True))
    for each in facts["run"]["mistakes"]:
        assert each["label"] == label[each["row"]] != each["answer"]
    for each in facts["run"]["hits"]:
        assert each["label"] == label[each["row"]] == each["answer"]
    assert all(each["picture"].startswith("data:image/png;base64,") for each in facts["run"]["mistakes"])
    assert len({each["picture"] for each in facts["run"]["mistakes"]}) > 5


def test_each_model_of_the_bundle_has_its_row_and_the_images_that_it_changed(facts: dict[str, Any]) -> None:
    rows = {row["precision"]: row for row in facts["run"]["bundle"]["rows"]}
    assert list(rows) == ["float32", "int8", "float16"]
    assert rows["int8"]["bytes"] < rows["float16"]["bytes"] < rows["float32"]["bytes"]
    for precision in ("int8", "float16"):
        changed = rows[precision]["changed"]
        assert len(changed) == rows[precision]["predictions_that_differ"]
        assert all(each["before"] != each["after"] for each in changed)
        assert all(each["picture"] for each in changed)
    assert rows["float32"]["changed"] is None


def test_the_map_has_every_head_and_its_two_numbers(facts: dict[str, Any]) -> None:
    features = facts["run"]["features"]
    assert set(features["maps"]) == {"student0", "student1", "fused", "ensemble", "kept"}
    assert {row["head"] for row in features["numbers"]} == set(features["maps"])
    for points in features["maps"].values():
        assert len(points) == len(features["labels"]) == 600
        assert 0 <= np.min(points) < 0.2
        assert 0.8 < np.max(points) <= 1


def test_the_page_asks_nobody_and_obeys_nobody(facts: dict[str, Any]) -> None:
    text = page.html(facts, "okdc report")
    seen = Page(text)
    assert all(url.startswith(("data:", "#")) for url in seen.asked)
    assert not seen.handlers
    assert not {"iframe", "object", "embed", "base", "form"} & set(seen.tags)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert "default-src &#39;none&#39;" in policy or "default-src 'none'" in policy
    assert len(text.encode()) < 5e6
    wanted = {"training", "accuracy", "classes", "mistakes", "confidence", "features", "cost", "precision", "data"}
    assert wanted | {"time", "repeat"} <= seen.ids
    for anchor in (url.removeprefix("#") for url in seen.asked if url.startswith("#")):
        assert anchor in seen.ids


def test_names_are_only_letters(facts: dict[str, Any]) -> None:
    """Whatever a class, a file, a title or a note is called."""
    hostile = "</script><img src=x onerror=alert(1)>\u202e\x1b[31m&amp;'\""
    run = facts["run"]
    changed = run | {
        "title": hostile,
        "classes": [f"{hostile}{k}" for k in range(10)],
        "missing": [hostile],
        "mistakes": [each | {"image": hostile} for each in run["mistakes"]],
        "repeat": run["repeat"] | {"recipe_text": f"a = 1\n# {hostile}\nb = 2\n", "command": [hostile]},
    }
    text = page.html(facts | {"run": changed}, hostile)
    seen = Page(text)
    assert not seen.handlers
    assert seen.tags.count("script") == 1
    assert "\u202e" not in text
    assert "\x1b" not in text
    words = "".join(seen.words)
    assert "<img src=x" in words
    assert "\\u202e" in words
    assert "a = 1\n# " in words


def test_one_page_with_equal_facts_has_equal_bytes(facts: dict[str, Any]) -> None:
    assert page.html(facts, "x") == page.html(json.loads(json.dumps(facts)), "x")


# --- what is not there


def test_without_its_images_a_run_has_a_page_without_pictures(tmp_path: Path) -> None:
    write_tree(tmp_path / "images", {"cat": 12, "dog": 12})
    tables = {"data": {"name": "folder", "root": str(tmp_path / "images"), "image_size": 8, "val_fraction": 0.25}}
    loaded = okdc.load_recipe(
        "digits_resnet8", **tables, optim={"epochs": 2, "batch_size": 8}, engine={"threads": 1},
        augment={"flip": False},
    )  # fmt: skip
    path = okdc.distill(loaded, out=tmp_path / "run").path
    there = of(path)
    assert there["missing"][0] != (away := of(path, Wanted(True, str(tmp_path / "nowhere"))))["missing"][0]
    assert there["data"]["classes"][0]["train"] > 0
    assert {each["image"].split("/")[0] for each in (*there["mistakes"], *there["hits"])} <= {"cat", "dog"}
    assert away["data"] is None
    assert [each["picture"] for each in (*away["mistakes"], *away["hits"])].count(None) == len(away["mistakes"]) + len(
        away["hits"]
    )
    assert away["answers"] == there["answers"]
    full = of(path, Wanted())
    assert full["data"]["file_sizes"]["most_frequent"] == [{"width": 8, "height": 8, "files": 24}]
    written(path, wanted=Wanted(True, str(tmp_path / "nowhere")))


def test_features_that_were_written_are_shown_unless_they_are_of_other_images(whole: Path) -> None:
    okdc.features(whole, images=50, points=20)
    assert {len(points) for points in of(whole)["features"]["maps"].values()} == {20}
    with np.load(whole / "features.npz") as stored:
        arrays = dict(stored)
    np.savez(whole / "features.npz", **arrays | {"labels": (arrays["labels"] + 1) % 10})
    said = of(whole)
    assert said["features"] is None
    assert any("features.npz" in line for line in said["missing"])
    (whole / "features.npz").write_bytes(b"PK\3\4")
    assert of(whole)["features"] is None


def test_a_run_without_validation_or_test_images_says_so(tmp_path: Path) -> None:
    unvalidated = make_run(tmp_path / "a", "baseline", kept_facts={"val_top1_pct": None})
    assert of(unvalidated)["result"]["kept"]["val_top1_pct"] is None
    assert {"confidence", "repeat"} <= Page(written(unvalidated)).ids
    without_test = make_run(tmp_path / "b", result={"judged_on": "validation"})
    assert of(without_test)["calibration"]["temperature"] is None
    assert "warning" in written(without_test).partition("<nav")[0].partition("<header>")[2]


def test_damaged_predictions_are_no_page(whole: Path) -> None:
    content = bytearray((whole / "predictions.npz").read_bytes())
    content[-30] ^= 1
    (whole / "predictions.npz").write_bytes(content)
    with pytest.raises(CheckFailed) as caught:
        of(whole)
    assert caught.value.kind == "predictions"


# --- a run under way


@pytest.fixture
def begun() -> RunDir:
    run = RunDir.create("x", run_info(recipe=recipe().recipe.tables(), started_at="1"))
    run.recipe.write_text(recipe().recipe.text())
    return run


def test_a_run_that_has_just_begun_has_a_page(begun: RunDir) -> None:
    said = of(begun.path)
    assert (said["state"], said["result"], said["curves"]["epochs"]) == ("resumable", None, [])
    assert {"training", "time", "repeat"} <= Page(written(begun.path)).ids


def test_a_watched_run_is_written_after_each_epoch_and_once_in_full(begun: RunDir, tmp_path: Path) -> None:
    file, seen = tmp_path / "watched.html", list[tuple[int, bool]]()
    with ExitStack() as stack:
        stack.enter_context(begun.held())

        def wait(_: float) -> None:
            text = file.read_text(encoding="utf-8")
            seen.append((len(begun.rows()), 'http-equiv="refresh"' in text))
            if len(seen) == 4:
                stack.close()
            elif len(seen) != 2:
                begun.append({"epoch": len(begun.rows()) + 1, **ROW})

        last = report.watch(begun, file, QUICK, Silent(), wait)
    assert seen == [(0, True), (1, True), (1, True), (2, True)]
    assert last["run"]["curves"]["epochs"] == [1, 2]
    assert 'http-equiv="refresh"' not in file.read_text(encoding="utf-8")


def test_a_watch_that_is_interrupted_leaves_a_page_that_rests(begun: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "watched.html"

    def wait(_: float) -> None:
        assert 'http-equiv="refresh"' in file.read_text(encoding="utf-8")
        raise KeyboardInterrupt

    with begun.held(), pytest.raises(KeyboardInterrupt):
        report.watch(begun, file, QUICK, Silent(), wait)
    assert 'http-equiv="refresh"' not in file.read_text(encoding="utf-8")


def test_watching_is_for_one_run(capsys: Captured) -> None:
    make_run("runs/a")
    make_run("runs/b", seed=1)
    assert ask(capsys, "report", "runs/a", "runs/b", "--watch").code == 2
    assert not Path("report.html").exists()


# --- several runs


def test_a_method_has_one_colour_in_all_figures() -> None:
    make_row("runs", "dml", [91.0, 91.0, 91.0])
    make_row("runs", "fefr", [91.5, 91.9, 91.4])
    made = report.facts([Path("runs")], QUICK, None, Silent())
    for run in made["several"]["runs"]:  # of each method another length, and so another figure
        epochs = 1 + len(run["method"])
        run |= {"epochs": list(range(1, epochs + 1)), "val_top1_pct": [50.0] * epochs}
    shown = several_page.of_several(made)["charts"]
    dots = {row.point.name: row.point.colour for row in shown["kept"].rows}
    curves = [{entry.name: entry.colour for entry in each["chart"].legend} for each in shown["curves"]]
    assert len(curves) == len(set(dots.values())) == 2
    assert curves[0] | curves[1] == dots


def test_several_runs_are_compared_as_okdc_compare_does(capsys: Captured) -> None:
    make_row("runs", "baseline", [90.0, 90.4, 90.2])
    make_row("runs", "fefr", [91.5, 91.9, 91.4])
    answer = ask(capsys, "report", "runs", "--json")
    assert answer.code == 0, answer.err
    several = json.loads(answer.out)["several"]
    assert several["compare"] == okdc.compare(["runs"])
    assert len(several["runs"]) == 6
    names = [column["name"] for column in several["differences"]["columns"]]
    assert len(names) == 2
    assert [row["key"] for row in several["differences"]["rows"]] == ["cohort.students", "method.name"] or {
        "method.name"
    } <= {row["key"] for row in several["differences"]["rows"]}
    seen = Page(Path("runs/report.html").read_text(encoding="utf-8"))
    assert {"comparison", "curves", "runs"} <= seen.ids
    assert "better" in "".join(seen.words)


def test_runs_that_do_not_compare_are_shown_with_the_reason() -> None:
    make_run("runs/a")
    make_run("runs/b", recipe={"optim": {"epochs": 30}}, seed=1, result={"epochs": 30})
    facts = report.facts([Path("runs")], QUICK, None, Silent())
    assert facts["several"]["compare"] is None
    assert any("optim.epochs" in line for line in facts["several"]["refused"])
    (row,) = [row for row in facts["several"]["differences"]["rows"] if row["key"] == "optim.epochs"]
    assert sorted(row["values"]) == ["30", "60"]
    report.write_page(Path("page.html"), facts)


def test_a_damaged_run_hides_no_other() -> None:
    make_row("runs", "fefr", [90.0, 91.0])
    broken = make_run("runs/broken", "dml")
    (broken / "result.json").write_text("{")
    facts = report.facts([Path("runs")], QUICK, None, Silent())["several"]
    assert len(facts["runs"]) == 2
    assert [left["run"] for left in facts["left_out"]] == [str(broken)]


def test_a_study_brings_its_table(capsys: Captured) -> None:
    words = ("optim.epochs=1", "data.train_images=64")
    assert ask(capsys, "study", "digits", *words, "--only", "baseline").code == 0
    answer = ask(capsys, "report", "studies/digits", "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["study"] == okdc.study("studies/digits", train=False)
    assert {run["method"].split()[0] for run in facts["several"]["runs"]} == {"baseline"}
    assert {"study", "runs"} <= Page(Path("studies/digits/report.html").read_text(encoding="utf-8")).ids


# --- where it goes


def test_no_other_file_is_replaced(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    other = tmp_path / "thesis.html"
    other.write_text("<title>mine</title>")
    for out, error in (
        (other, UsageError), (tmp_path, UsageError), (Path("/dev/null"), UsageError), (tmp_path / "no/x", DiskError),
    ):  # fmt: skip
        with pytest.raises(error):
            report.place([run], out)
    assert other.read_text() == "<title>mine</title>"
    page = tmp_path / "page.html"
    report.write_page(page, report.facts([run], QUICK, None, Silent()))
    assert report.place([run], page) == page


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        report.facts([tmp_path / "nothing"], QUICK, None, Silent())
    with pytest.raises(UsageError):
        report.facts([make_run(tmp_path / "run")], QUICK, "fefr", Silent())


def test_the_api_writes_the_page_and_gives_the_tables(tmp_path: Path) -> None:
    run = make_run("runs/a")
    tables = okdc.report(okdc.Run(run), quick=True, out=tmp_path / "x.html")
    assert tables["run"]["run"] == str(run)
    assert report.MARK in (tmp_path / "x.html").read_bytes()
    assert okdc.report(quick=True)["run"]["run"] == str(run)
    made_by = f"okdc report {run}"
    assert made_by in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_a_picture_is_of_one_run_and_replaces_no_other(facts: dict[str, Any], tmp_path: Path) -> None:
    file, other = tmp_path / "run.svg", tmp_path / "mine.svg"
    report.write_picture(file, facts)
    report.write_picture(file, facts)
    seen = Page(text := file.read_text(encoding="utf-8"))
    assert seen.asked == seen.handlers == []
    assert seen.tags.count("circle") == len(facts["run"]["heads"])
    assert "prefers-color-scheme: dark" in text
    other.write_text("<svg/>")
    with pytest.raises(UsageError):
        report.write_picture(other, facts)
    make_run("runs/a")
    make_run("runs/b", seed=1)
    with pytest.raises(UsageError):
        report.write_picture(file, report.facts([Path("runs")], QUICK, None, Silent()))


@pytest.mark.parametrize(
    ("name", "runs"),
    [("x.png", ["runs/a"]), ("x.svg", ["runs/a", "runs/b"]), ("x.svg", ["runs"]), ("page.svg", ["runs/a"])],
)
def test_a_picture_that_cannot_be_is_refused_before_a_page_is_written(
    capsys: Captured, name: str, runs: list[str]
) -> None:
    make_run("runs/a")
    make_run("runs/b", seed=1)
    page = name if name == "page.svg" else "page.html"  # a picture in the place of the page
    assert ask(capsys, "report", *runs, "--picture", name, "-o", page).code == 2
    assert not Path(page).exists()
    assert not Path(name).exists()


@pytest.mark.parametrize(("classes", "pictures"), [(3, [6] * 3), (20, [3] * 20), (100, [1] * 100), (101, [0] * 101)])
def test_few_classes_have_several_examples_a_hundred_one_and_more_none(classes: int, pictures: list[int]) -> None:
    labels = np.repeat(np.arange(classes), 7)
    rows = examples_of(labels, np.arange(len(labels)), classes)
    assert [len(each) for each in rows] == pictures
    assert all(labels[row] == k for k, each in enumerate(rows) for row in each)


def test_the_sentences_name_the_teacher_and_what_the_training_alone_needed(facts: dict[str, Any]) -> None:
    run = facts["run"]
    heads = [{"head": head, "role": "other"} for head in ("teacher", "exit1")]
    teacher = {"architecture": "resnet56", "weights_sha256": "0"}
    taught = run | {
        "students": ["resnet8"], "taught": True, "heads": heads, "result": run["result"] | {"teacher": teacher},
    }  # fmt: skip
    first, second, _ = words.sentences(taught)
    assert "resnet56" in first
    assert "exit1" in second
    assert "teacher" not in second
    for name, said in (("fused", "the fused classifier"), ("means", "the averaged students")):
        several = words.sentences(run | {"students": ["resnet8"] * 2, "heads": [{"head": name, "role": "fused"}]})
        assert several[1].endswith(f"The training alone needed one peer and {said}.")
    alone = words.sentences(run | {"students": ["resnet8"], "heads": []})
    assert len(alone) == 3
    assert not any("teacher" in sentence for sentence in alone)
    under_way = words.sentences(taught | {"result": None, "heads": None, "state": "running", "failed": None})
    assert "teacher" in under_way[0]


def test_the_command_is_as_a_shell_takes_it(facts: dict[str, Any]) -> None:
    typed = ["okdc", "distill", 'cohort.students=["a b"]']
    run = facts["run"] | {"repeat": facts["run"]["repeat"] | {"command": typed}}
    text = page.html(facts | {"run": run}, "okdc report")
    assert shlex.split(html.unescape(re.findall(r"<dt>command</dt><dd><code>(.*?)</code>", text)[0])) == typed


def test_a_run_under_way_has_no_picture(begun: RunDir) -> None:
    with pytest.raises(UsageError):
        report.write_picture(Path("x.svg"), report.facts([begun.path], QUICK, None, Silent()))
