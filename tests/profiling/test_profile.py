"""`okdc profile`: rows side by side, one export an architecture, JSON with units."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ask, tried
from hypothesis import given
from hypothesis import strategies as st
from making import write_json

from okdc import backbones, methods
from okdc.__main__ import main
from okdc.assembly import student as students
from okdc.cli import console, tables
from okdc.cohort import Backbone, Cohort
from okdc.deploy import onnx
from okdc.deploy.count import count
from okdc.deploy.latency import measure
from okdc.profiling import heads
from okdc.profiling import report as profile
from okdc.runs.accuracy import with_interval
from okdc.runs.artefacts import StudentInfo
from okdc.runs.files import read_json
from okdc.runs.run import RunDir


@pytest.fixture
def exports(blob: bytes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures that were exported; the file itself is one that is there already."""
    made: list[str] = []

    def counted(_: object, info: StudentInfo) -> bytes:
        made.append(info.architecture)
        return blob

    monkeypatch.setattr(onnx, "to_onnx", counted)
    return made


def _report(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["profile", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_names_are_counted_without_a_run_and_without_an_export(
    exports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report(["resnet8", "resnet20"], capsys)
    assert [(r["name"], r["params"], r["macs"]) for r in report["rows"]] == [
        ("resnet8", 78_042, 12_501_632),
        ("resnet20", 272_474, 40_813_184),
    ]
    assert exports == []
    for row in report["rows"]:
        assert row["flops"] == 2 * row["macs"]
        assert row["onnx_bytes"] is None
        assert row["latency_ms_p50_onnxruntime"] is None
        assert 0 < row["latency_ms_p50_torch"] <= row["latency_ms_p90_torch"]
        assert row["activations"] > 0
        assert not row["lower_bound"]
    assert report["latency"] == {"batch": 1, "threads": 1, "processor": report["latency"]["processor"]}


def test_a_run_shows_its_students_which_one_was_kept_and_the_whole(
    run: RunDir, exports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report([str(run.path)], capsys)
    assert [row["kind"] for row in report["rows"]] == ["student", "student", "head", "head", "training"]
    students, whole = report["rows"][:2], report["rows"][4]
    result = read_json(run.result)
    assert [row["kept"] for row in students] == [k == result["kept"]["student"] for k in range(2)]
    for row, recorded in zip(students, result["cohort"], strict=True):
        assert (row["student"], row["run"], row["judged_on"], row["images"]) == (
            recorded["student"],
            str(run.path),
            "test",
            797,
        )
        assert {key: row[key] for key in ("epoch", "val_top1_pct", "top1_pct", "params", "macs")} == {
            key: recorded[key] for key in ("epoch", "val_top1_pct", "top1_pct", "params", "macs")
        }
    assert (whole["kept"], whole["front"], whole["val_top1_pct"], whole["student"]) == (False, None, None, None)
    kept = students[result["kept"]["student"]]
    assert exports == ["resnet8"], "both students are one architecture: one export"
    assert all(s["params"] == kept["params"] == 78_042 for s in students)
    assert whole["params"] > 2 * kept["params"], "two students that share nothing, and the fused classifier"
    assert whole["macs"] > 2 * kept["macs"]
    assert report["shrink"]["params"] == round(whole["params"] / kept["params"], 3)
    assert kept["latency_ms_p50_onnxruntime"] > 0
    assert kept["onnx_bytes"] > 4 * 75_000


def test_what_is_thrown_away_stands_beside_the_students_with_its_cost(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    fused, ensemble, whole = _report([str(run.path)], capsys)["rows"][2:]
    result, last = read_json(run.result), run.rows()[-1]
    for row, name in ((fused, "fused"), (ensemble, "ensemble")):
        assert (row["name"], row["student"], row["kept"], row["epoch"]) == (name, None, False, result["epochs"])
        assert row["top1_pct"] == result["heads_last_epoch_top1_pct"][name]
        assert row["val_top1_pct"] == last["val_top1_pct"][name]
        assert (row["images"], row["run"], row["onnx_bytes"]) == (797, str(run.path), None)
    classifier = 64 * 10
    assert (ensemble["params"], ensemble["macs"]) == (2 * 78_042, 2 * 781_952)
    assert fused["macs"] == whole["macs"] - 2 * classifier, "all but the students' own classifiers"
    assert fused["params"] == whole["params"] - 2 * (classifier + 10)
    assert (
        "thrown away, and in no bundle: fused, ensemble; at the last epoch" in ask(capsys, "profile", str(run.path)).out
    )


def test_a_head_needs_no_layer_that_its_logits_do_not_depend_on() -> None:
    """PCL computes means of its peers in every step, and its fused classifier reads none of them."""
    size = torch.Size((3, 8, 8))
    cohort = Cohort([backbones.build("resnet8", 10, size) for _ in range(2)], "low")
    kind = methods.find("pcl")
    method = kind(cohort, kind.Config(name="pcl"), size, 10)
    whole, example = heads.Heads(method).eval(), torch.zeros(1, *size)
    counts = count(whole, example)
    found = heads.needed(whole, "fused", counts, example)
    trunk_and_branches = counts.modules["method.cohort"] - 2 * 640
    assert found.macs == trunk_and_branches + 128 * 10 < counts.macs / 1.5
    assert all(p.grad is None for p in method.parameters())


def test_a_head_may_need_weights_that_learn_from_nothing() -> None:
    """Relay's mean students."""
    size = torch.Size((3, 8, 8))
    method = methods.find("relay")
    cohort = Cohort([backbones.build("resnet8", 10, size) for _ in range(2)], "none")
    whole, example = heads.Heads(method(cohort, method.Config(name="relay"), size, 10)).eval(), torch.zeros(1, *size)
    found = heads.needed(whole, "means", count(whole, example), example)
    assert (found.params, found.macs) == (2 * 78_042, 2 * 781_952)
    assert not any(p.requires_grad for p in whole.method.get_submodule("means").parameters())


def test_a_bundle_that_is_there_is_weighed_as_it_is(
    exported: Any, run: RunDir, exports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report([str(run.path)], capsys)
    assert exports == []
    assert report["rows"][0]["onnx_bytes"] == (exported / "model.onnx").stat().st_size


def test_two_recipes_side_by_side_keep_their_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Both train FEFR on ten classes at 32 pixels; one shares the trunk, the other shares nothing."""
    together = _report(["cifar10_resnet20", "folder_resnet20"], capsys)["rows"]
    alone = [_report([name], capsys)["rows"][1] for name in ("cifar10_resnet20", "folder_resnet20")]
    found = [row["macs"] for row in together if row["kind"] == "training"]
    assert found == [row["macs"] for row in alone]
    assert found[0] < found[1]


@pytest.mark.parametrize("first", ["name", "run"])
def test_the_order_of_the_words_changes_no_row(
    first: str,
    run: RunDir,
    exports: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile, "SIZE", 8)  # so that the bare name and the kept student are one network
    words = ["resnet8", str(run.path)] if first == "name" else [str(run.path), "resnet8"]
    rows = {row["kind"]: row for row in _report(words, capsys)["rows"]}
    assert rows["student"]["onnx_bytes"] == rows["network"]["onnx_bytes"] > 0
    assert rows["student"]["latency_ms_p50_onnxruntime"] > 0
    assert exports == ["resnet8"]


def test_one_architecture_at_two_sizes_has_two_tables_of_stages(
    run: RunDir,
    exports: list[str],  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = _report(["resnet8", str(run.path)], capsys)["stages"]
    assert [(s["architecture"], s["input"]) for s in stages] == [("resnet8", [3, 32, 32]), ("resnet8", [3, 8, 8])]


def test_a_bundle_of_other_weights_is_not_weighed(
    exported: Any, run: RunDir, exports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(exported / "manifest.json", read_json(exported / "manifest.json") | {"weights_sha256": "other"})
    _report([str(run.path)], capsys)
    assert exports == ["resnet8"]


def test_stages_add_up_to_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    report = _report(["resnet20"], capsys)
    (network,) = report["stages"]
    assert (network["architecture"], network["input"]) == ("resnet20", [3, 32, 32])
    stages = network["stages"]
    assert [s["stage"] for s in stages] == ["stages.0", "stages.1", "stages.2", "stages.3", "head"]
    assert sum(s["macs"] for s in stages) == report["rows"][0]["macs"]
    assert sum(s["params"] for s in stages) == report["rows"][0]["params"]
    assert stages[3]["output"] == [64, 8, 8]


def test_a_recipe_is_counted_without_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    report = _report(["recipes/cifar10_resnet20.toml"], capsys)
    student, whole = report["rows"]
    assert (student["params"], student["macs"]) == (272_474, 40_813_184)
    assert whole["kind"] == "training"
    # sharing the trunk: less than two whole students, more than one
    assert 272_474 < whole["params"] < 2 * 272_474
    assert 40_813_184 < whole["macs"] < 2 * 40_813_184


def test_a_name_is_exported_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = _report(["resnet8", "--onnx"], capsys)["rows"]
    assert row["onnx_bytes"] > 4 * 75_000
    assert 0 < row["latency_ms_p50_onnxruntime"] <= row["latency_ms_p90_onnxruntime"]


@pytest.mark.usefixtures("exports")
def test_the_table_and_its_units_are_readable(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(run.path)]) == 0
    said = capsys.readouterr()
    assert "78,042" in said.out
    result = read_json(run.result)
    for k, student in enumerate(result["cohort"]):
        (line,) = [line for line in said.out.splitlines() if line.startswith(f"student{k} resnet8 ")]
        assert f"{student['val_top1_pct']:.2f}" in line.split()
        assert with_interval(student["top1_pct"], 797) in line
        assert ("*" in line.split("  ")[0]) == (k == result["kept"]["student"])
    assert f"* kept: student{result['kept']['student']} resnet8\n" in said.out
    assert "+ Pareto front: student" in said.out
    assert "MACs" in said.out
    assert "1 thread" in said.err
    assert "test %: 95 % interval, 797 images" in said.err
    assert f"okdc export {run.path} --onnx" in said.err


def test_a_word_that_names_nothing_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "resnet21"]) == 2
    said = capsys.readouterr().err
    assert "did you mean" in said
    assert "resnet20" in said
    assert "cifar100_resnet110_ablation" not in said, "what there is, and no wall of it"


def test_a_bundle_is_told_where_its_profile_is(capsys: pytest.CaptureFixture[str]) -> None:
    Path("made").mkdir()
    Path("made/manifest.json").touch()
    assert main(["profile", "made"]) == 2
    assert "hint: see made/profile.json\n" in capsys.readouterr().err


def test_counters_that_disagree_stop_the_profile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from okdc.deploy import count

    monkeypatch.setattr(count, "PRODUCTS", frozenset({"conv"}))  # the classifier is forgotten
    assert main(["profile", "resnet8"]) == 1
    assert "error[counting]" in capsys.readouterr().err


def test_variants_take_turns() -> None:
    order: list[str] = []
    found = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order[20:28] == ["a", "a", "b", "b"] * 2, "after ten warm-ups each"
    assert found["a"]["runs"] == found["b"]["runs"] == 100
    assert found["a"]["min"] <= found["a"]["p50"] <= found["a"]["p90"]


def test_what_profile_measures_is_what_it_says() -> None:
    assert (profile.CLASSES, profile.SIZE) == (10, 32)


@pytest.mark.usefixtures("exports")
def test_a_run_whose_last_map_is_one_pixel_is_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    """In training mode BatchNorm refuses it: the students of a run are counted as they are shipped."""
    words = ("cohort.students=['torchvision:resnet18']", "method.name=baseline", "optim.epochs=1")
    assert ask(capsys, "distill", *words, "data.train_images=32", "--no-export-check", "-o", "small").code == 0
    answer = ask(capsys, "profile", "small", "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)["rows"]
    assert [row["architecture"] for row in rows if row["kind"] == "student"] == ["torchvision:resnet18"]


# --- the choice that a run is


DIFFERENT = 'cohort.students=["resnet14", "resnet8"]'


def test_students_of_a_run_are_weighed_with_the_weights_that_were_trained(
    monkeypatch: pytest.MonkeyPatch, blob: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, dict[str, torch.Tensor]] = {}

    def watched(network: Backbone, info: StudentInfo) -> bytes:
        seen[info.architecture] = {"student": torch.tensor(info.student), **network.state_dict()}
        return blob

    monkeypatch.setattr(onnx, "to_onnx", watched)
    short = ("cohort.share=none", "optim.epochs=1", "data.train_images=64")
    assert ask(capsys, "distill", DIFFERENT, *short, "-o", "two").code == 0
    rows = _report(["two"], capsys)["rows"]
    assert [row["architecture"] for row in rows[:2]] == ["resnet14", "resnet8"]
    assert set(seen) == {"resnet14", "resnet8"}
    for exported in seen.values():
        k = int(exported.pop("student"))
        network = students.load(RunDir.open(Path("two")), k).network
        assert all(torch.equal(exported[name], value) for name, value in network.state_dict().items())


def test_an_unfinished_run_is_counted_without_accuracies(
    run: RunDir,
    exports: list[str],  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    run.result.unlink()
    report = _report([str(run.path)], capsys)
    assert [row["kind"] for row in report["rows"]] == ["student", "student", "training"]
    for row in report["rows"]:
        assert (row["kept"], row["front"], row["val_top1_pct"], row["top1_pct"]) == (False, None, None, None)
    assert report["shrink"] is None
    answer = ask(capsys, "profile", str(run.path))
    assert answer.code == 0
    assert f"next: okdc resume {run.path}\n" in answer.err


def test_a_recipe_is_followed_by_its_training_and_no_missing_column_is_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = ask(capsys, "profile", "resnet8", "digits_resnet8")
    assert answer.code == 0
    assert "next: okdc distill digits_resnet8\n" in answer.err
    assert "torch" in answer.out
    assert "ORT" not in answer.out + answer.err


KEYS = (profile.MORE, *profile.LESS)


def fronts(*students: tuple[float | None, ...]) -> list[bool]:
    rows: list[dict[str, Any]] = [dict(zip(KEYS, student, strict=True)) for student in students]
    profile.mark_front(rows)
    return [row["front"] for row in rows]


def test_the_front_is_what_no_other_beats() -> None:
    best, smaller, worse = (97.0, 100, 100, 100, 1.0), (96.0, 50, 50, 50, 0.5), (95.0, 60, 60, 60, 0.6)
    assert fronts(best, smaller, worse) == [True, True, False]
    assert fronts(best, best) == [True, True], "equal ones do not beat each other"
    assert fronts((97.0, 1, 1, 1, 1.0), (97.0, 1, 1, 1, 1.1)) == [True, False]
    assert fronts((None, 2, 2, 2, 1.0), (None, 1, 1, 1, 1.0)) == [False, True], "nothing was validated: by cost alone"
    student, fused = (97.0, 1, 1, 1, 1.0), (98.0, 2, 2, None, None)
    assert fronts(student, fused) == [True, True], "what has no file is compared in all else"
    assert fronts(student, (97.0, 2, 2, None, None)) == [True, False]


@tried
@given(st.lists(st.tuples(*[st.integers(1, 4)] * 5), min_size=1, max_size=6))
def test_the_front_by_its_definition(students: list[tuple[int, ...]]) -> None:
    for one, front in zip(students, fronts(*students), strict=True):
        better = [
            other
            for other in students
            if other[0] >= one[0] and all(a <= b for a, b in zip(other[1:], one[1:], strict=True)) and other != one
        ]
        assert front == (not better)


def test_the_test_images_have_no_say_in_the_front() -> None:
    costs = dict.fromkeys(KEYS[1:], 1)
    rows: list[dict[str, Any]] = [
        {"val_top1_pct": 97.0, "top1_pct": 90.0, **costs},
        {"val_top1_pct": 96.0, "top1_pct": 99.0, **costs},
    ]
    profile.mark_front(rows)
    assert [row["front"] for row in rows] == [True, False]


def test_fronts_of_two_runs_are_their_own(
    run: RunDir,
    exports: list[str],  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs are compared by `okdc compare`: accuracies of two runs may be of other images."""
    shutil.copytree(run.path, "again")
    result = read_json(Path("again/result.json"))
    for student in (result["kept"], *result["cohort"]):
        student["val_top1_pct"] = 1.0
    write_json(Path("again/result.json"), result)
    rows = _report([str(run.path), "again"], capsys)["rows"]
    assert [row["front"] for row in rows if row["run"] == "again" and row["kind"] == "student"] == [
        True,
        True,
    ]
    assert any(row["front"] for row in rows if row["run"] == str(run.path))
    said = ask(capsys, "profile", str(run.path), "again").out
    assert "again: student0 resnet8" in said
    assert f"{run.path}: student1 resnet8" in said
    assert "again: " not in ask(capsys, "profile", "again").out, "of one run it goes without saying"


def test_no_number_is_cut_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row: dict[str, Any] = {
        "name": "student0", "kind": "student", "architecture": "resnet110", "run": "x", "student": 0, "kept": True,
        "front": True, "epoch": 3, "val_top1_pct": 93.14, "top1_pct": 92.61, "judged_on": "test", "images": 10_000,
        "judged_device": "cpu",
        "input": [3, 32, 32], "params": 1_730_714, "macs": 253_146_752, "lower_bound": False, "onnx_bytes": 7_100_000,
        "latency_ms_p50_torch": 31.25, "latency_ms_p50_onnxruntime": 12.5, "uncounted": [],
    }  # fmt: skip
    monkeypatch.setattr(console, "_out", console._Console(soft_wrap=True, width=80, force_terminal=True, no_color=True))
    latency = {"threads": 1, "processor": "an abacus"}
    tables.profile({"rows": [row], "stages": [], "shrink": None, "latency": latency})
    said = capsys.readouterr().out
    for number in ("93.14", "92.61 [92.08, 93.11]", "1,730,714", "253,146,752", "7,100", "31.25", "12.50"):
        assert number in said
