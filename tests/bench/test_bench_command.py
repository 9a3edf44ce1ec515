"""`okdc bench` as it is used: its facts, its table, what it refuses, and how it ends early."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ask, case

from okdc.bench import GROUPS, launches, machine, pairings, pairs, suite
from okdc.bench.machine import settings_of
from okdc.bench.pairings import Scale
from okdc.bench.pairs import STRETCH_S, Taken
from okdc.bench.request import request
from okdc.cli.bench_tables import show
from okdc.deploy.count import count
from okdc.errors import UsageError
from okdc.methods.base import Method
from okdc.recipe.schema import Engine
from okdc.training import compiling, step

Captured = pytest.CaptureFixture[str]
TINY = Scale(
    small="resnet8", large="resnet8", photo="resnet8", photo_size=32, photo_batch=2, batch_size=2, images=64, workers=1
)
QUICK = ("--device", "cpu", "--threads", "1")
OWN = ("digits_resnet8", "optim.batch_size=8", "--only", "recipe", "--seconds", "1")


def facts_of(only: str | None, seconds: float, *words: str) -> dict[str, Any]:
    """What a bench of small networks finds, on a clock that moves when it is looked at: as fast as any machine is."""
    looks = itertools.count()
    wanted = request(words, ["engine.device=cpu"], only, seconds)
    return suite.run(wanted, settings_of(wanted.engine, 32), TINY, clock=lambda: STRETCH_S * next(looks))


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    """All pairs but the export, of small networks and two images a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "MOST", 6)
        patch.setattr(gc, "collect", int)  # of all that the tests before have left
        return facts_of("data,augment,ffl,fefr,eval,recipe", 700, "digits_resnet8", "optim.batch_size=8")


def test_the_schema_of_the_facts(everything: dict[str, Any]) -> None:
    facts = json.loads(json.dumps(everything, allow_nan=False))
    assert facts["schema"] == 1
    for key in ("processor", "device"):
        assert isinstance(facts[key], str)
    assert isinstance(facts["flags"], list)
    assert facts["cores"] >= 1
    assert facts["threads"] == 1
    assert facts["device_name"] is None
    assert facts["launches_a_step"] is None
    assert {"okdc", "python", "torch", "torchvision", "numpy", "pillow", "onnx"} == set(facts["versions"])
    assert {"dtype", "memory_format", "compile"} <= set(facts["settings"])
    assert facts["load"] is None or len(facts["load"]) == 3
    assert facts["seconds"] > 0
    keys = (*suite.ALWAYS, *suite.OPTIONAL)
    for key in keys:
        if facts[key] is None:
            assert facts["reasons"][key]
        else:
            assert key not in facts["reasons"]
            assert set(facts[key]) == {"median", "low", "high", "n"}
            assert facts[key]["low"] <= facts[key]["median"] <= facts[key]["high"]
            assert facts[key]["n"] >= 6
    promised = {"data_path_ratio", "data_path_share", "ffl_step_ratio", "fefr_step_over_macs", "eval_over_train"}
    assert {key for key in keys if facts[key]} >= promised | {*suite.AUGMENT, "step_ratio", "fefr32_step_over_macs"}
    assert set(facts["reasons"]) == {key for key in keys if not facts[key]}
    assert facts["recipe"]["settings"]["dtype"] == "float32"  # 8×8 images, whatever the others get


def test_each_pair_that_was_taken_says_how_fast_its_two_sides_are(everything: dict[str, Any]) -> None:
    assert list(everything["what"])[:5] == list(suite.ALWAYS)
    for key in everything["what"]:
        speeds = everything["images_per_s"][key]
        assert len(speeds) == 2
        assert all(speed > 0 for speed in speeds.values())


@pytest.mark.parametrize(
    ("only", "found", "missing"),
    [
        ("data", ["32×32 pixels, batch 128", "DataLoader: "], []),
        ("augment", ["32×32 pixels, batch 128", "DataLoader: "], []),
        ("ffl", ["32×32 pixels, batch 128"], ["DataLoader: "]),
        ("export", ["32×32 pixels\n"], ["DataLoader: ", "batch 128", "eager"]),
        ("ffl,recipe", ["32×32 pixels, batch 128", "batch 32, 8×8", "float32 channels_last eager"], ["DataLoader: "]),
    ],
)
def test_the_header_is_of_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, only: str, found: list[str], missing: list[str]
) -> None:
    monkeypatch.setattr(suite, "measure", lambda *_, **__: Taken())
    side = pairs.Side("nothing", pairs.nothing)
    for name in ("data_path", "data_share", "beside_plain", "export"):
        monkeypatch.setattr(pairings, name, lambda *_: pairings.Pair(side, side, pairings.share))
    words = ["digits_resnet8"] if "recipe" in only else []
    wanted = request(words, ["engine.device=cpu"], only, 10)
    show(suite.run(wanted, settings_of(wanted.engine, 32)))
    header = capsys.readouterr().out.split("\n\n")[0] + "\n"
    assert [part for part in found if part not in header] == []
    assert [part for part in missing if part in header] == []


def test_what_was_not_asked_for_is_null_and_says_so() -> None:
    facts = facts_of("eval", 1)
    assert list(facts["what"]) == ["eval_over_train"]
    assert facts["reasons"]["data_path_ratio"] == "not asked for"
    assert facts["reasons"]["step_ratio"] == "no recipe was given"
    assert "--compile on" in facts["reasons"]["compile_gain"]


def test_without_time_left_nothing_is_begun_and_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairings, "beside_plain", lambda *_: pytest.fail("it was begun"))
    times = iter(range(0, 1000, 10))
    wanted = request((), ["engine.device=cpu"], "ffl", 5)
    facts = suite.run(wanted, settings_of(wanted.engine, 32), TINY, clock=lambda: next(times))
    assert facts["reasons"]["ffl_step_ratio"] == "no time was left of 5 s; more --seconds"


def test_too_little_time_for_six_pairs_says_how_long_one_takes() -> None:
    facts = facts_of("ffl", 10)
    assert facts["ffl_step_ratio"] is None
    reason = facts["reasons"]["ffl_step_ratio"]
    assert reason.startswith("2 pairs in its share of the time, an interval needs 6: ")
    found = re.search(
        r": one takes (.+) s, (.+) s of (.+) were used to begin; --seconds (\d+) would do, about$", reason
    )
    assert found
    pair, begun, share, enough = map(float, found.groups())
    assert begun + 6 * pair > share
    assert 10 < enough < 100


@pytest.mark.parametrize(
    ("only", "seconds"),
    [
        ("ffl", 1),
        case("ffl", 10, long=True),
        case("eval,ffl", 12, long=True),
        ("data,eval", 3),
    ],
)
def test_the_seconds_that_are_said_to_do_do(only: str, seconds: float) -> None:
    """Of all rows that say it, the most; of one that was not begun nobody knows."""
    reasons = facts_of(only, seconds)["reasons"]
    told = {key: int(found[1]) for key, why in reasons.items() if (found := re.search(r"--seconds (\d+) would", why))}
    assert told
    again = facts_of(only, max(told.values()))
    assert all(again[key] for key in told), again["reasons"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.3, 1), (7.2, 8), (41.2, 42), (99.5, 100), (100.0, 100), (101.0, 110), (1234.0, 1300)]
)
def test_seconds_are_said_upwards_in_two_digits(seconds: float, said: int) -> None:
    assert suite._enough(seconds) == said


def test_the_time_is_shared_by_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def measured(*parts: Any, **_: Any) -> Taken:
        given.append(parts[2])
        return Taken()

    monkeypatch.setattr(suite, "measure", measured)
    monkeypatch.setattr(gc, "collect", int)  # of all that the tests before have left
    wanted = request((), ["engine.device=cpu"], None, 100)
    settings = settings_of(wanted.engine, 32)
    suite.run(wanted, settings, TINY, clock=lambda: 0.0)
    needs = [m.needs for m in suite.plan(wanted, settings, TINY, None)]
    left = [100 * need / sum(needs[i:]) for i, need in enumerate(needs)]  # the clock stands still: nothing is used up
    assert given == pytest.approx(left)


def test_time_over_macs_is_one_where_a_multiply_add_costs_the_same() -> None:
    assert pairings.over_macs(1.5, 3.0, 2.0) == pytest.approx(1)
    assert pairings.added_over_macs(1.3, 2.6, 2.0) == pytest.approx(1)
    assert pairings.added_over_macs(1.3, 3.2, 2.0) == pytest.approx(2)
    assert pairings.times_as_fast(2.0, 5.0) == 2.5
    assert pairings.share(2.0, 5.0) == 0.4


def test_macs_are_of_the_whole_method() -> None:
    settings = settings_of(Engine(device="cpu"), 32)
    one, two, three = (pairings.work(settings, TINY, "cifar10_resnet20", "resnet8", n).macs for n in (1, 2, 3))
    student = pairings.work(settings, TINY, "cifar10_resnet20", "resnet8", 2).method().cohort.backbone(0)
    assert one == count(student.eval(), torch.zeros(1, 3, 32, 32)).macs
    assert one < two < three


def test_the_command_prints_a_line_a_pair_and_what_it_was_measured_on(capsys: Captured) -> None:
    answer = ask(capsys, "bench", *OWN, *QUICK)
    assert answer.code == 0, answer.err
    assert "fefr of digits_resnet8" in answer.out
    assert "no data set was read" in answer.out
    assert "threads 1" in answer.out
    assert "torch " in answer.out
    assert "compile off (" in answer.err
    assert "32×32" not in answer.out
    assert "batch 128" not in answer.out
    assert "bfloat16" not in answer.out, "nothing was measured in it"
    assert "dtype float32 (" in answer.err
    assert "DataLoader" not in answer.out
    assert "next: okdc distill digits_resnet8 optim.batch_size=8" in answer.err
    assert list(Path.cwd().iterdir()) == []


def test_json_is_the_facts_and_nothing_else(capsys: Captured) -> None:
    answer = ask(capsys, "bench", *OWN, *QUICK, "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["what"] == {"step_ratio": "fefr of digits_resnet8"}
    assert facts["recipe"]["batch_size"] == 8
    assert [facts[key] for key in ("settings", "image_size", "batch_size", "workers")] == [None] * 4
    assert "next:" not in answer.err


def test_a_ratio_that_does_not_tell_is_explained_in_a_line(capsys: Captured, everything: dict[str, Any]) -> None:
    noisy = everything | {"ffl_step_ratio": None, "reasons": {"ffl_step_ratio": "too noisy: it was"}}
    quiet = {"median": 2.5, "low": 2.4, "high": 2.6, "n": 9}
    noisy |= {key: quiet for key in everything["what"] if key != "ffl_step_ratio"}
    show(noisy)
    out = capsys.readouterr().out
    assert "FFL step, resnet8 ×2: no ratio: too noisy: it was" in out
    shares = [key for key in everything["what"] if key.endswith("_share")]
    assert out.count("2.50 [2.40, 2.60]") == len(everything["what"]) - 1 - len(shares)
    assert out.count("250 % [240, 260]") == len(shares) == 5


def test_launches_of_a_gpu_are_a_line_for_each_step(capsys: Captured, everything: dict[str, Any]) -> None:
    key = "ffl_step_ratio"
    show(everything | {"launches_a_step": {key: {"okdc": 5, "plain": 2310}}})
    assert f"{everything['what'][key]}: launches a step: okdc 5, plain 2,310" in capsys.readouterr().out
    show(everything | {"launches_a_step": {key: {"okdc": None, "plain": None}}})
    assert "not seen" in capsys.readouterr().out


def test_launches_are_counted_by_the_names_of_cudas_calls() -> None:
    names = ["aten::add", "cudaLaunchKernel", "cudaLaunchKernel", "cudaGraphLaunch", "cudaDeviceSynchronize"]
    assert launches.counted(names) == 3
    assert launches.counted(["aten::add"]) is None


def test_the_table_fits_80_columns(capsys: Captured) -> None:
    """Of all that is measured by default, with a recipe's own step, where speeds and ratios are long."""
    wanted = request(["cifar100_resnet32"], ["engine.device=cpu"])
    settings = settings_of(wanted.engine, 32)
    assert wanted.resolved
    own = pairings.of_recipe(wanted.resolved, wanted.engine)
    what = {m.key: m.what for m in suite.plan(wanted, settings, Scale(), own)}
    beside = dict.fromkeys(what, "two students") | {"data_path_ratio": "DataLoader", "export_ratio": "torch.onnx"}
    speeds = {key: {"okdc": 123456.0, name: 999.0} for key, name in beside.items()}
    ratio = {"median": 1.1342, "low": 1.0113, "high": 1.2204, "n": 60}
    facts = dict.fromkeys((*suite.ALWAYS, *suite.OPTIONAL), ratio) | {
        "data_path_share": {key: value / 50 if key != "n" else value for key, value in ratio.items()},
        **machine.facts(settings), "settings": settings.saved(), "load": None, "seconds": 200.0, "data": "random",
        "image_size": 32, "batch_size": 128, "workers": 2, "recipe": None, "what": what, "images_per_s": speeds,
        "launches_a_step": None,
        "exports_per_s": {"okdc": 0.0812, "torch.onnx": 0.0712},
    }  # fmt: skip
    show(facts)
    out = capsys.readouterr().out
    table = [line.rstrip() for line in out.split("\n\n")[1].splitlines()]
    assert len(table) == 1 + len(what)
    assert max(map(len, table)) <= 80
    assert "2.27 % [2.02, 2.44]" in table[2]


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["--only", "fferr"], "usage", "data, augment, ffl, fefr, eval, export, recipe, found 'fferr' (did you mean"),
        (["--only", ""], "usage", "--only: expected some of data, augment, ffl, fefr, eval, export, recipe, found ''"),
        (["--only", ""], "usage", "\n\nhint: okdc bench --only data,eval; without --only all are measured\n"),
        (["--only", "data,"], "usage", "\n\nhint: okdc bench --only data,eval; without --only all are measured\n"),
        (["--only", "recipe"], "usage", "--only recipe: no recipe was given"),
        (["optim.epochs=3", "--only", "data"], "usage", "--only data ignores the recipe override 'optim.epochs=3'"),
        (["digits_resnet8", "--only", "ffl,data"], "usage", "--only ffl,data,recipe measures that step too"),
        (["--seconds", "0"], "usage", "--seconds"),
        (["--seconds", "soon"], "usage", "--seconds"),
        (["--seconds", "nan"], "usage", "--seconds"),
        (["digits_resnet"], "recipe", "did you mean 'digits_resnet8'?"),
        (["digits_resnet8", "folder_resnet20"], "usage", "two recipes were given"),
        (["optim.epoch=3"], "recipe", "error[recipe]: the command line: 1 problem\n  optim.epoch: "),
        (["--device", "tpu"], "usage", "error[usage]: --device: expected 'auto', 'cpu' or 'cuda'"),
        (["--dtype", "int8"], "usage", "--dtype: expected 'auto', 'float32', 'bfloat16' or 'float16', found 'int8'"),
        (
            ["--threads", "0"],
            "usage",
            "error[usage]: --threads: expected 'auto' or greater than or equal to 1, found 0",
        ),
        (
            ["engine.dtype=int8", "--only", "data"],
            "recipe",
            "the command line: 1 problem\n  engine.dtype: expected 'auto'",
        ),
        (["--compile", "maybe"], "usage", "error[usage]: --compile: expected 'auto', 'on' or 'off', found 'maybe'"),
        (["digits_resnet8", "--device", "tpu"], "usage", "error[usage]: --device: expected"),
        (["--device", "tpu", "--threads", "0"], "usage", "error[usage]: 2 flags are wrong\n  --device: expected"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys: Captured, words: list[str], kind: str, said: str) -> None:
    answer = ask(capsys, "bench", *words)
    assert answer.code == 2
    assert answer.out == ""
    assert f"error[{kind}]: " in answer.err
    assert said in answer.err
    assert ".toml: " not in answer.err, "no file is named that the user did not name"


def test_the_engine_of_the_standard_pairs_can_be_given_in_words() -> None:
    wanted = request(["engine.dtype=float32"], [], "data")
    assert wanted.engine.dtype == "float32"
    assert wanted.resolved is None
    assert wanted.notes == ()


def test_several_processes_are_refused(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    answer = ask(capsys, "bench")
    assert answer.code == 2
    assert "bench under torchrun: expected one process" in answer.err


def test_a_misspelt_name_is_answered_before_torch_is_imported() -> None:
    code = "import sys; from okdc.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for words in (["--only", "ff"], ["digit_resnet8"]):
        told = subprocess.run([sys.executable, "-c", code, "bench", *words], capture_output=True, text=True, check=True)
        assert told.stdout == "2 False\n"


def test_groups_are_those_of_the_plan() -> None:
    wanted = request(["digits_resnet8"], ["engine.device=cpu"])
    settings = settings_of(wanted.engine, 32)
    own = pairings.of_recipe(wanted.resolved, wanted.engine) if wanted.resolved else None
    assert {m.group for m in suite.plan(wanted, settings, TINY, own)} == set(GROUPS)
    with pytest.raises(UsageError):
        request((), [], "compile")


def test_a_compiled_step_is_measured_beside_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Method] = []

    def kept(method: Method, *_: object) -> Method:
        compiled.append(method)
        return method

    monkeypatch.setattr(step, "compiled", kept)
    monkeypatch.setattr(compiling, "without_compiler", lambda _: "")
    facts = facts_of("recipe", 60, *OWN[:2], "engine.compile=on")
    assert list(facts["what"]) == ["step_ratio", "compile_gain"]
    assert set(facts["images_per_s"]["compile_gain"]) == {"compiled", "eager"}
    assert len(compiled) == 2  # okdc's side of the one pair, and of the other
    assert facts["compile_gain"]
    assert facts["recipe"]["settings"]["compile"] == "on"
    assert facts["settings"] is None, "no standard pair was measured"


@pytest.mark.parametrize(
    ("words", "only", "there"),
    [
        ([], "data", False),
        ([], "fefr", True),
        (["engine.threads=1"], "fefr", True),
        (["digits_resnet8"], "recipe", True),
    ],
)
def test_what_compiling_gains_is_measured_with_the_step_that_it_is_about(
    monkeypatch: pytest.MonkeyPatch, words: list[str], only: str, there: bool
) -> None:
    monkeypatch.setattr(compiling, "without_compiler", lambda _: "")
    wanted = request(words, ["engine.device=cpu", "engine.compile=on"], only)
    own = pairings.of_recipe(wanted.resolved, wanted.engine) if wanted.resolved else None
    found = [m.key for m in suite.plan(wanted, settings_of(wanted.engine, 32), TINY, own)]
    assert ("compile_gain" in found) is there


def test_to_compile_without_a_compiler_is_refused(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "without_compiler", lambda _: "no C++ compiler")
    answer = ask(capsys, "bench", "--compile", "on", *QUICK)
    assert answer.code == 2
    assert "error[device]: --compile on, and nothing can be compiled here: no C++ compiler" in answer.err


def test_classes_that_nobody_knows_are_said_to_be_taken(capsys: Captured) -> None:
    words = ["folder_resnet20", "cohort.students=['resnet8','resnet8']", "data.image_size=8", "augment.padding=1"]
    answer = ask(capsys, "bench", *words, "--only", "recipe", "--seconds", "1", *QUICK)
    assert answer.code == 0, answer.err
    assert "10 classes (assumed" in answer.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), case(signal.SIGTERM, 143, long=True)])
def test_a_signal_to_the_group_ends_it_with_its_workers(number: signal.Signals, code: int) -> None:
    """As Ctrl-C does, while a DataLoader is at work."""
    command = [sys.executable, "-m", "okdc", "bench", "--only", "data", *QUICK]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("data path"):
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 60
        while not children.read_text().split() and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = children.read_text().split()
        assert workers
        os.killpg(process.pid, number)
        said = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in said
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.gpu
@pytest.mark.card("times")
def test_a_gpu_is_measured_by_the_same_command(capsys: Captured) -> None:
    answer = ask(capsys, "bench", "--device", "cuda", "--only", "data,ffl,eval", "--seconds", "120", "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["device"] == "cuda"
    assert facts["device_name"]
    assert "cuda" in facts["versions"]
    for key in ("data_path_ratio", "data_path_share", "ffl_step_ratio", "eval_over_train"):
        assert facts["images_per_s"][key], facts["reasons"]
    seen = facts["launches_a_step"]["ffl_step_ratio"]
    assert seen["okdc"] is None or seen["okdc"] < 20 < seen["plain"]
