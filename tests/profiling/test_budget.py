"""`--budget`: what it takes, and the student that it chooses: by validation, never by the test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asking import ask, tried
from harness import Quiet
from hypothesis import given
from hypothesis import strategies as st
from making import make_run, write_json

from okdc.deploy import latency, onnx
from okdc.errors import OkdcError, RunError, UsageError
from okdc.profiling import budget
from okdc.profiling import measure as subject
from okdc.profiling.budget import NAMES, Limit, choose, parse
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

# --- what it takes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("params<300k", [("params", "<", 300_000)]),
        ("params<300k,latency_ms<2", [("params", "<", 300_000), ("latency_ms", "<", 2)]),
        (" macs <= 1.5M , bytes<2G", [("macs", "<=", 1_500_000), ("bytes", "<", 2_000_000_000)]),
        ("flops<=12K", [("flops", "<=", 12_000)]),
        ("params<77.85k", [("params", "<", 77_850)]),
        ("latency_ms<.5", [("latency_ms", "<", 0.5)]),
        ("params<0.3 m", [("params", "<", 300_000)]),
    ],
)
def test_limits_are_names_operators_and_numbers(text: str, expected: list[tuple[str, str, float]]) -> None:
    assert [(limit.name, limit.operator, limit.value) for limit in parse(text)] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found nothing"),
        ("params<1k,", "found nothing"),
        ("params", "'params': expected NAME<NUMBER"),
        ("param<1k", "unknown name 'param' (did you mean 'params'?)"),
        ("latency<2", "did you mean 'latency_ms'?"),
        ("Params<2", "did you mean 'params'?"),
        ("params>1k", "expected < or <=, found >"),
        ("params=1k", "expected < or <=, found ="),
        ("params=<1k", "expected < or <=, found =<"),
        ("params<", "found ''"),
        ("params<1kb", "found '1kb'"),
        ("params<-1", "found '-1'"),
        ("params<0", "expected a number above 0"),
        ("params<nan", "found 'nan'"),
        ("params<1e3", "found '1e3'"),
        ("params<300,000", "'000': expected NAME<NUMBER"),
        ("params<1k,params<2k", "params is limited twice"),
        ("1k<params<2k", "unknown name '1k'"),
    ],
)
def test_a_mistake_is_named_and_what_exists_listed(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    error = caught.value
    assert said in "\n".join([error.message, *error.details])
    assert all(name in error.hint for name in NAMES)
    assert error.exit_code == 2


def test_every_mistake_is_said_at_once() -> None:
    with pytest.raises(UsageError, match="4 mistakes") as caught:
        parse("parms<1k,macs>2,bytes<many,flop=x")
    assert len(caught.value.details) == 4
    assert all(said in caught.value.details[3] for said in ("flops", "expected < or <=", "expected a number"))


@tried
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_is_limits_or_a_usage_error(text: str) -> None:
    try:
        assert parse(text)
    except OkdcError as error:
        assert isinstance(error, UsageError)


# --- whom it chooses


def cohort(*students: tuple[str, float | None, float, int, int]) -> RunDir:
    """A complete run of students (architecture, validation %, test %, parameters, MACs) at `run`."""
    rows: list[dict[str, Any]] = [
        {
            "student": k, "architecture": name, "epoch": 3, "val_top1_pct": val, "top1_pct": top1, "params": params,
            "macs": macs, "weights_sha256": "0" * 64, "student_sha256": "0" * 64,
            "judged_device": "cpu",
        }
        for k, (name, val, top1, params, macs) in enumerate(students)
    ]  # fmt: skip
    return RunDir.open(make_run("run", result={"cohort": rows}, students=[row["architecture"] for row in rows]))


THREE = (
    ("resnet14", 97.0, 96.0, 175_258, 1_666_688),
    ("resnet8", 95.0, 97.5, 78_042, 781_952),
    ("wrn16_1", 96.0, 95.0, 175_994, 1_400_000),
)


@pytest.mark.parametrize(
    ("text", "student"),
    [
        ("params<1M", 0),
        ("params<=175258", 0),
        ("params<175258", 1),
        ("macs<1.5M", 2),
        ("flops<=2.8M", 2),
        ("flops<2.8M", 1),
        ("macs<1.5M,params<100k", 1),
    ],
)
def test_the_most_accurate_on_validation_within_every_limit_is_chosen(text: str, student: int) -> None:
    """Never the one that is best on the test images, which here is student1."""
    tell = Quiet()
    found, note = choose(cohort(*THREE), parse(text), tell)
    assert found == student
    assert note.startswith(f"student{student} ({THREE[student][0]}) is the ")
    assert text in note
    assert tell.notes == [], "nothing was exported to count what is counted already"


def test_the_note_says_why_with_its_numbers() -> None:
    run = cohort(*THREE)
    _, note = choose(run, parse("macs<1.5M,params<1M"), Quiet())
    assert note == (
        "student2 (wrn16_1) is the most accurate on validation (96.00 %) of 2 that fit macs<1.5M,params<1M: "
        "macs 1,400,000, params 175,994"
    )
    _, note = choose(run, parse("params < 100k"), Quiet())
    assert note == "student1 (resnet8) is the only one of 3 that fits params<100k: params 78,042"


def test_of_equal_ones_the_smaller_is_chosen_and_then_the_first() -> None:
    run = cohort(("a", 95.0, 90.0, 300, 9), ("b", 95.0, 91.0, 200, 9), ("c", 95.0, 92.0, 200, 9))
    assert choose(run, parse("params<1k"), Quiet())[0] == 1


def test_none_that_fits_is_refused_with_who_misses_what_and_by_how_much() -> None:
    with pytest.raises(UsageError) as caught:
        choose(cohort(*THREE), parse("params<50k,macs<1M"), Quiet())
    error = caught.value
    assert error.message == "no student of run fits params<50k,macs<1M: none meets params<50k"
    assert error.details == (
        "params<50k: missed by student0 (resnet14) 175,258, student1 (resnet8) 78,042, student2 (wrn16_1) 175,994",
        "macs<1M: missed by student0 (resnet14) 1,666,688, student2 (wrn16_1) 1,400,000",
    )
    assert "okdc profile run" in error.hint


def test_limits_that_are_each_met_and_never_together_are_told_so() -> None:
    run = cohort(("deep", 95.0, 95.0, 100, 9_000), ("wide", 95.0, 95.0, 9_000, 100))
    with pytest.raises(UsageError, match="each limit is met by one at least, but no student meets all") as caught:
        choose(run, parse("params<1k,macs<1k"), Quiet())
    assert caught.value.details == (
        "params<1k: missed by student1 (wide) 9,000",
        "macs<1k: missed by student0 (deep) 9,000",
    )


def test_several_that_fit_without_validation_are_not_chosen_among() -> None:
    run = cohort(("a", None, 95.0, 300, 9), ("b", None, 90.0, 200, 9), ("c", None, 99.0, 5_000, 9))
    with pytest.raises(UsageError, match="2 students of run fit params<1k, and nothing was validated") as caught:
        choose(run, parse("params<1k"), Quiet())
    assert caught.value.hint == "name one: --student 0 (a), --student 1 (b)"
    assert choose(run, parse("params<250"), Quiet())[0] == 1, "the only one that fits is no choice"


def test_a_run_that_is_not_complete_has_none_to_choose() -> None:
    run = cohort(*THREE)
    run.result.unlink()
    with pytest.raises(RunError, match="resumable, not complete"):
        choose(run, parse("params<1k"), Quiet())


def test_a_run_that_recorded_its_kept_student_alone_is_damaged() -> None:
    run = RunDir.open(make_run("run"))
    result = read_json(run.result)
    del result["cohort"]
    write_json(run.result, result)
    with pytest.raises(RunError, match=r"result\.json.* cohort: missing"):
        choose(run, parse("params<1k"), Quiet())


# --- what is measured


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of a ResNet-14 and two ResNet-8, trained for an epoch."""
    from okdc.__main__ import main

    path = tmp_path_factory.mktemp("two") / "run"
    students = 'cohort.students=["resnet14", "resnet8", "resnet8"]'
    words = ("cohort.share=none", "optim.epochs=1", "data.train_images=64", "-o", str(path))
    assert main(["distill", students, *words]) == 0
    return RunDir.open(path)


def test_file_and_latency_are_measured_where_the_budget_names_them(two: RunDir) -> None:
    """Once an architecture, with the numbers of `okdc profile`'s own measurement."""
    tell = Quiet()
    found, note = choose(two, parse("bytes<500k,latency_ms<10k"), tell)
    assert found in (1, 2)
    assert sorted(tell.notes) == [f"exporting {name} for its file size and latency" for name in ("resnet14", "resnet8")]
    validated = [student["val_top1_pct"] for student in read_json(two.result)["cohort"]]
    assert validated[found] == max(validated[1:])
    size = int(note.split("bytes ")[1].split(", latency_ms")[0].replace(",", ""))
    assert 4 * 78_042 < size < 500_000
    assert float(note.rsplit(" ", 1)[1]) > 0


def test_latency_decides_by_the_median_in_onnxruntime(two: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: b"a file")
    monkeypatch.setattr(subject, "Session", lambda *_: lambda *_: None)
    times = iter([(9.0, 1.9), (0.1, 2.1)])  # of the ResNet-14, then of both ResNet-8

    def measured(variants: dict[str, Any]) -> dict[str, dict[str, float]]:
        torch_ms, onnx_ms = next(times)
        assert set(variants) == {"torch", "onnxruntime"}
        return {"torch": {"p50": torch_ms, "p90": 99.0}, "onnxruntime": {"p50": onnx_ms, "p90": 99.0}}

    monkeypatch.setattr(latency, "measure", measured)
    assert choose(two, parse("latency_ms<2"), Quiet())[0] == 0


def test_a_limit_is_the_number_as_it_was_written() -> None:
    strict, loose = Limit("params", "<", 100, "params<100"), Limit("params", "<=", 100, "params<=100")
    assert [strict.holds(n) for n in (99, 100, 101)] == [True, False, False]
    assert [loose.holds(n) for n in (99, 100, 101)] == [True, True, False]


def test_units_are_decimal() -> None:
    assert budget.UNITS == {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def test_a_profile_of_the_same_run_shows_the_choice(two: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "profile", str(two.path))
    assert answer.code == 0, answer.err
    assert "student0 resnet14" in answer.out
    assert "+ Pareto front: " in answer.out
    assert Path(two.path / "students").is_dir()
