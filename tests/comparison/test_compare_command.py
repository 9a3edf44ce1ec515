from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from asking import Answer, ask
from making import PAPER, make_row, make_run

Captured = pytest.CaptureFixture[str]

SAMPLE = {"mean_top1_pct", "sd_top1_pct", "n", "top1_pct_by_seed"}
DIFFERENCE = {"mean_points", "sd_points", "interval_points", "n", "seeds", "images", "discordant_images", "verdict"}
# What scripts rely on: a change of these is a change of what okdc promises.
FACTS = {
    "schema", "dataset", "data_sha256", "image_size", "classes", "judged_on", "images", "epochs", "keep_epoch",
    "keep", "validated",
    "confidence_pct", "baseline", "rows", "required", "notes", "left_out",
}  # fmt: skip
ROW = {
    "name", "variant", "method", "students", "share", "teachers_sha256", "n", "seeds", "kept",
    "kept_interval_pct", "heads_last_epoch", "student_last_epoch",
    "fused_head", "leader", "difference", "params", "macs", "seconds_mean", "paper", "runs",
}  # fmt: skip


def two(**more: object) -> None:
    make_row("runs", "baseline", [90.0, 90.1, 90.2], **more)
    make_row("runs", "fefr", [92.0, 92.1, 92.3], **more)


def nothing_went_wrong(answer: Answer) -> None:
    assert answer.code == 0, answer.err
    assert "error" not in answer.err
    assert "Traceback" not in answer.err


def test_the_table_has_a_row_a_method_and_says_what_its_numbers_are(capsys: Captured) -> None:
    two(recipe={"about": PAPER})
    answer = ask(capsys, "compare")
    nothing_went_wrong(answer)
    lines = answer.out.splitlines()
    assert lines[0].split("  ")[0] == "top-1 % on test"
    assert lines[1].split() == ["baseline", "3", "0-2", *["90.10", "±", "0.10"] * 2]
    assert lines[2].split()[:6] == ["fefr", "3", "0-2", "92.13", "±", "0.15"]
    assert ["fefr", "77,850", "800,000", "12.5"] in [line.split() for line in lines]
    # 2.0 2.0 2.1: mean 2.0333, sd .057735, half width of the seeds 4.302653 * .057735 / sqrt(3) = .143422; 10 images
    # differ in 1 seed, 10 in 2, 190 in 3: squares 195.5556 and 1, half width of the images 1.960201 * .137196 = .26896
    assert "fefr                        3  +2.03 [+1.73, +2.34]  better" in answer.out
    for said in (
        "kept: the best student at its best epoch, on validation images",
        "seeds 0-2, all judged on the same 10,000 test images",
        "an accuracy of 90.10 % on as many is [89.50, 90.67] (Wilson's 95 % interval)",
        "95 % interval holds the chance of the seeds and that of the images",
        "paper: a paper, table 1: 300 epochs, the best of three runs, chosen on the test set; here: 60 epochs",
        "top-1 error %",
    ):
        assert said in answer.out
    assert "next: okdc export runs/fefr-2 --onnx" in answer.err


def test_what_papers_print_stands_beside_our_errors(capsys: Captured) -> None:
    make_row("runs", "mfef", [90.0, 91.0], recipe={"about": PAPER})
    answer = ask(capsys, "compare")
    nothing_went_wrong(answer)
    assert "mfef           9.50 ± 0.71       6.5 / 5.5  9.50 ± 0.71           5.0" in answer.out


def test_heads_of_one_method_are_told_below_the_table(capsys: Captured) -> None:
    make_row("runs", "okddip", [90.0, 91.0], heads={"student0": 80.0, "student1": 81.0, "leader": 82.0})
    answer = ask(capsys, "compare")
    nothing_went_wrong(answer)
    assert "okddip, other heads at the last epoch: leader 82.00 ± 0.00" in answer.out
    assert "fused" not in answer.out  # no column that would be empty


def test_students_that_differ_are_each_told(capsys: Captured) -> None:
    heads = {"student0": 80.0, "student1": 81.0, "fused": 82.0, "ensemble": 83.0}
    make_row("runs", "fefr", [90.0, 91.0], heads=heads, students=["resnet8", "wrn16_1"])
    answer = ask(capsys, "compare")
    nothing_went_wrong(answer)
    assert "fefr, other heads at the last epoch: student1 (wrn16_1) 81.00 ± 0.00\n" in answer.out


def test_one_seed_and_unmatched_seeds_are_said(capsys: Captured) -> None:
    make_row("runs", "baseline", {0: 90.0, 1: 91.0})
    make_row("runs", "fefr", {1: 92.0})
    answer = ask(capsys, "compare")
    nothing_went_wrong(answer)
    assert "fefr 1 +1.00 not resolved (1 seed)" in " ".join(answer.out.split())
    assert "fefr and baseline: paired by seed 1; baseline alone has seed 0" in answer.err
    assert "next: okdc distill runs/fefr-1/recipe.toml --seeds 0,2" in answer.err


def test_what_was_left_out_is_named_on_stderr(capsys: Captured) -> None:
    two()
    (make_run("runs/bad", "fefr", 9) / "result.json").write_text("{")
    answer = ask(capsys, "compare", "runs")
    assert answer.code == 0
    assert "left out: runs/bad/result.json: not JSON" in answer.err
    assert "bad" not in answer.out


def test_a_number_that_was_used_to_choose_flatters_and_is_said_to(capsys: Captured) -> None:
    two(result={"judged_on": "validation"})
    answer = ask(capsys, "compare")
    assert answer.out.startswith("top-1 % on validation")
    assert "no test split" in answer.err


def test_the_json_keys_are_these(capsys: Captured) -> None:
    two(
        recipe={
            "about": {
                "paper": {
                    "source": "a paper",
                    "dataset": "digits",
                    "students": ["resnet8", "resnet8"],
                    "student_error": {"fefr": 5.0},
                }
            }
        }
    )
    answer = ask(capsys, "compare", "--json", "--require", "fefr>baseline")
    nothing_went_wrong(answer)
    assert answer.err == ""
    facts = json.loads(answer.out)
    assert set(facts) == FACTS
    assert all(set(row) == ROW for row in facts["rows"])
    base, fefr = facts["rows"]
    assert set(fefr["kept"]) == set(fefr["heads_last_epoch"]["student0"]) == SAMPLE
    assert fefr["kept"]["top1_pct_by_seed"] == {"0": 92.0, "1": 92.1, "2": 92.3}
    assert set(fefr["difference"]) == {"to", "kept", "student_last_epoch"}
    assert set(fefr["difference"]["kept"]) == set(fefr["difference"]["student_last_epoch"]) == DIFFERENCE
    assert set(fefr["paper"]) == {"source", "epochs", "student_error_pct", "fused_error_pct"}
    assert set(fefr["runs"][0]) == {"run", "seed", "seconds", "kept"}
    assert base["difference"] is base["paper"] is None
    assert facts["required"] == [{"require": "fefr>baseline", "holds": True, "difference": fefr["difference"]["kept"]}]


def test_markdown_is_tables_that_github_draws(capsys: Captured) -> None:
    two(recipe={"about": PAPER})
    make_row("runs", "fefr odd=a|b", [91.0, 91.0, 91.0])
    answer = ask(capsys, "compare", "--md")
    nothing_went_wrong(answer)
    blocks = answer.out.split("\n\n")
    assert len(blocks) == 5  # the rows, the differences, their cost, the paper, what it says
    for block, rows in zip(blocks[:4], (3, 2, 3, 1), strict=True):
        header, rule, *cells = block.splitlines()
        assert len(cells) == rows
        width = header.count("|")
        assert set(rule) <= set("|- ")
        assert all(line.replace("\\|", "").count("|") == width for line in (rule, *cells))
        assert all(line.startswith("| ") and line.endswith(" |") for line in (header, rule, *cells))
    assert "| fefr | 3 | +2.03 [+1.73, +2.34] | better |" in blocks[1]
    assert all(line.startswith("- ") for line in blocks[4].splitlines())


def test_a_requirement_decides_the_exit_code_after_the_table(capsys: Captured) -> None:
    two()
    nothing_went_wrong(ask(capsys, "compare", "--require", "fefr>baseline", "--require", "fefr>=baseline"))
    answer = ask(capsys, "compare", "--require", "fefr>baseline", "--require", "baseline>=fefr")
    assert answer.code == 1
    assert "+2.03 [+1.73, +2.34]" in answer.out
    found = "baseline>=fefr does not hold: kept -2.03 points, 95 % interval [-2.34, -1.73] over 3 seeds"
    assert f"error[require]: {found}" in answer.err


def test_a_requirement_that_fails_leaves_one_json_document_on_stdout(capsys: Captured) -> None:
    two()
    answer = ask(capsys, "compare", "--json", "--require", "baseline>fefr")
    assert answer.code == 1
    assert [each["holds"] for each in json.loads(answer.out)["required"]] == [False]
    assert answer.err.startswith("error[require]: baseline>fefr does not hold")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json", "--md"], "--md and --json are two ways to print the same"),
        (["--require", "fefr"], "expected two rows and > or >= between them"),
        (["--baseline", "basline"], "did you mean 'baseline'?"),
        (["nowhere"], "nowhere: no such run"),
    ],
)
def test_what_cannot_be_done_exits_2_with_its_reason(capsys: Captured, words: list[str], said: str) -> None:
    two()
    answer = ask(capsys, "compare", *words)
    assert answer.code == 2
    assert said in answer.err


def test_a_refusal_prints_no_table(capsys: Captured) -> None:
    two()
    make_run("runs/short", "dml", 0, recipe={"optim": {"epochs": 3}})
    answer = ask(capsys, "compare")
    assert (answer.code, answer.out) == (2, "")
    assert "error[run]: these 7 runs do not compare: they differ in optim.epochs" in answer.err
    assert "3 in runs/short" in answer.err


def test_comparing_imports_neither_torch_nor_what_is_slow_to_import() -> None:
    two()
    heavy = ("torch", "torchvision", "onnx", "onnxruntime", "sklearn", "fvcore", "PIL", "scipy.stats")
    code = f"""
import json, sys
from okdc.__main__ import main
code = main(["compare", "--require", "fefr>baseline"])
print()
print(json.dumps([code, [name for name in {heavy!r} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_real_runs_are_compared_as_they_come_from_training(capsys: Captured) -> None:
    short = ("optim.epochs=2", "data.train_images=64")
    for seed in range(2):
        for method in ("fefr", "baseline"):
            words = [*short, f"seed={seed}", f"method.name={method}", "-o", f"runs/{method}-{seed}"]
            nothing_went_wrong(ask(capsys, "distill", *words))
    told = json.loads(ask(capsys, "compare", "--json").out)
    assert [(row["name"], row["seeds"]) for row in told["rows"]] == [("baseline", [0, 1]), ("fefr", [0, 1])]
    results = [json.loads(Path(f"runs/fefr-{seed}/result.json").read_text()) for seed in range(2)]
    fefr = told["rows"][1]
    assert list(fefr["kept"]["top1_pct_by_seed"].values()) == [result["kept"]["top1_pct"] for result in results]
    assert fefr["macs"] == [results[0]["kept"]["macs"]] * 2
    answer = ask(capsys, "compare")
    nothing_went_wrong(answer)
    assert "95 % interval" in answer.out
