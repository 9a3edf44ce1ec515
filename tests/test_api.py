"""The Python API: its names, its silence, its errors, Ctrl-C, and the guide in okdc/README.md, whose examples run."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, picture
from harness import TEXT, Quiet, signalled, write_recipe
from PIL import Image

import okdc
from okdc.__main__ import main
from okdc.errors import DataError, OkdcError, RecipeError, RunError, UsageError
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]
HOUSE = Path(okdc.__file__).parent  # of the package that is installed
GUIDE = (HOUSE / "README.md").read_text(encoding="utf-8")

PUBLIC = [
    "Backbone", "Batch", "Bundle", "CheckFailed", "Cohort", "Config", "Interrupted", "Method", "OkdcError", "Progress",
    "ResolvedRecipe", "Run", "Series", "Step", "__version__", "check", "compare", "distill", "distill_seeds",
    "download", "download_weights", "evaluate", "export", "features", "load_recipe", "profile", "report", "resume",
    "study", "track", "trusting_code",
]  # fmt: skip


def tiny(**tables: Any) -> okdc.ResolvedRecipe:
    """A recipe of nine steps."""
    return okdc.load_recipe(write_recipe(), **tables)


def weights(run: okdc.Run) -> str:
    return hashlib.sha256(run.folder.weights.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_the_public_names_are_those_that_were_meant() -> None:
    assert okdc.__all__ == PUBLIC
    assert dir(okdc) == PUBLIC
    with pytest.raises(AttributeError, match="distil"):
        okdc.distil  # noqa: B018


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"__version__"}))
def test_a_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(okdc, name)
    assert inspect.getdoc(value)
    if name in ("Run", "Series", "Bundle"):
        members = {key: member for key, member in vars(value).items() if not key.startswith("_")}
        assert all(inspect.getdoc(member) for key, member in members.items() if key != "path")


def test_a_star_import_brings_every_public_name() -> None:
    namespace: dict[str, Any] = {}
    exec("from okdc import *", namespace)
    assert set(PUBLIC) <= set(namespace)


def test_no_room_bears_the_name_of_a_function_of_the_api() -> None:
    """Importing such a room would overwrite the function."""
    rooms = {path.stem for path in HOUSE.iterdir()} - {"__init__"}
    assert not rooms & set(PUBLIC)


def loaded_by(code: str, *heavy: str) -> list[str]:
    """Which of the modules a fresh interpreter has imported after `code`."""
    code = f"import json, sys\n{code}\nprint(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def test_importing_okdc_imports_nothing_heavy() -> None:
    heavy = (
        "torch",
        "numpy",
        "pydantic",
        "onnx",
        "onnxruntime",
        "sklearn",
        "rich",
        "typer",
        "PIL",
        "fvcore",
        "okdc.api",
    )
    assert loaded_by("import okdc; dir(okdc); okdc.__version__", *heavy) == []


def test_a_recipe_is_loaded_without_what_a_bundle_needs() -> None:
    heavy = ("onnx", "onnxruntime", "sklearn", "torchvision", "fvcore", "rich", "typer")
    assert loaded_by("import okdc; okdc.load_recipe('digits_resnet8')", *heavy) == []


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_overrides_change_the_named_keys_alone() -> None:
    recipe, other = tiny(), tiny(seed=7, optim={"epochs": 5}, cohort={"students": ("resnet8", "resnet14")})
    assert (other.recipe.seed, other.recipe.optim.epochs) == (7, 5)
    assert other.architectures == ("resnet8", "resnet14")
    assert other.recipe.optim.model_copy(update={"epochs": 3}) == recipe.recipe.optim
    assert other.recipe.data == recipe.recipe.data


def test_a_methods_name_starts_its_table_afresh() -> None:
    Path("ablation.toml").write_text(TEXT.replace('"fefr"', '"fefr"\nearly_fusion = false'), encoding="utf-8")
    assert okdc.load_recipe("ablation.toml").variant == "fefr early_fusion=false"
    recipe = okdc.load_recipe("ablation.toml", method={"name": "mfef", "temperature": 2.0})
    assert recipe.variant == "mfef temperature=2.0"
    assert "early_fusion" in " ".join(recipe.notes)
    with pytest.raises(RecipeError) as caught:
        okdc.load_recipe("ablation.toml", method={"name": "mfef", "early_fusion": True})
    assert [line.partition(":")[0] for line in caught.value.details] == ["method.early_fusion"]


@pytest.mark.parametrize(
    ("tables", "keys"),
    [
        ({"optim": {"epoch": 3}}, {"optim.epoch"}),
        ({"optm": {"epochs": 3}}, {"optm"}),
        ({"optim": 3}, {"optim"}),
        ({"optim": {"epochs": "3"}, "method": {"name": "fefr", "tap": 1}}, {"optim.epochs", "method.tap"}),
        ({"method": {"name": "feffr"}, "data": {"name": "digit"}}, {"method.name", "data.name"}),
    ],
)
def test_every_wrong_key_is_a_problem_by_its_name(tables: dict[str, Any], keys: set[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        tiny(**tables)
    assert {line.partition(":")[0] for line in caught.value.details} == keys


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def short_of_a_student() -> object:
    return okdc.load_recipe("digits_resnet8", optim={"epoch": 3})


@pytest.mark.parametrize(
    ("words", "kind", "call"),
    [
        ("distill nowhere", RecipeError, lambda: okdc.distill("nowhere")),
        ("resume runs/nowhere", RunError, lambda: okdc.resume("runs/nowhere")),
        ("export --onnx", RunError, lambda: okdc.export()),
        ("profile resnet9", UsageError, lambda: okdc.profile("resnet9")),
        ("compare nowhere", RunError, lambda: okdc.compare(["nowhere"])),
        ("download digit", UsageError, lambda: okdc.download("digit")),
        ("verify nowhere", RunError, lambda: okdc.Bundle("nowhere")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_the_same_error_in_python_and_on_the_command_line(
    words: str, kind: type[OkdcError], call: Any, capsys: Captured
) -> None:
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    answer = ask(capsys, *words.split(), "--json")
    document = json.loads(answer.out)
    assert answer.code == error.exit_code == 2
    assert document["error"] == error.kind == kind.kind
    assert document["message"] == error.message
    assert document["hint"] == error.hint
    assert document["details"] == list(error.details)


def test_a_wrong_key_is_named_in_python_and_on_the_command_line_which_also_says_what_to_type(capsys: Captured) -> None:
    with pytest.raises(RecipeError) as caught:
        short_of_a_student()
    document = json.loads(ask(capsys, "distill", "digits_resnet8", "optim.epoch=3", "--json").out)
    assert caught.value.details[0].startswith("optim.epoch: ")
    assert document["details"][0].startswith("optim.epoch: ")
    assert "optim.epochs=3" in document["hint"]


def test_a_check_that_fails_is_raised_with_its_kind_and_the_code_1(finished: RunDir, capsys: Captured) -> None:
    copy = Path(shutil.copytree(finished.path, "spoiled"))
    data = bytearray((copy / "student.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "student.safetensors").write_bytes(data)
    with pytest.raises(okdc.CheckFailed) as caught:
        okdc.Run(copy).student()
    answer = ask(capsys, "evaluate", str(copy), "--json")
    assert answer.code == caught.value.exit_code == 1
    assert json.loads(answer.out)["error"] == caught.value.kind


def test_options_that_do_not_go_together_are_refused(finished: RunDir) -> None:
    several: list[dict[str, Any]] = [{"full_range": True}, {"max_drop": 0.0}, {"student": 0, "budget": "params<1M"}]
    for options in several:
        with pytest.raises(UsageError):
            okdc.export(finished.path, **options)


def test_a_damaged_bundle_fails_its_check(exported: Path) -> None:
    (exported / "infer.py").write_text("other", encoding="utf-8")
    with pytest.raises(okdc.CheckFailed) as caught:
        okdc.Bundle(exported).verify()
    assert (caught.value.kind, caught.value.exit_code) == ("files", 1)


# ---------------------------------------------------------------------------------------------------------------------
# Silence


def test_nothing_is_printed_unless_a_progress_prints_it(capfd: pytest.CaptureFixture[str]) -> None:
    run = okdc.distill(tiny(), out="runs/quiet")
    okdc.resume(run)
    series = okdc.distill_seeds(tiny(), [0], out="runs/series")
    okdc.profile(run)
    bundle = okdc.export(run, fp16=True, max_drop=100, min_agreement=0)
    bundle.verify()
    bundle.predict(bundle.path / "sample")
    okdc.evaluate()
    okdc.compare([series])
    okdc.download("digits")
    assert capfd.readouterr() == ("", "")


def test_a_progress_is_told_what_was_chosen() -> None:
    quiet = Quiet()
    run = okdc.distill(tiny(), progress=quiet)
    assert str(run.path) == "runs/tiny-1"
    assert f"run {run.path}" in quiet.notes
    assert quiet.counts[-1] == (9, 9)
    assert (run.state, run.students[0].architecture, len(run.log)) == ("complete", "resnet8", 3)


# ---------------------------------------------------------------------------------------------------------------------
# Ctrl-C


def test_ctrl_c_returns_the_run_and_resume_completes_it_to_the_bit() -> None:
    whole = okdc.distill(tiny(), out="runs/whole")
    quiet = signalled(5, signal.SIGINT)
    run = okdc.distill(tiny(), out="runs/stopped", progress=quiet)
    assert run.state == "resumable"
    assert "okdc.resume('runs/stopped')" in quiet.notes[-1]
    run = okdc.resume(run, progress=signalled(2, signal.SIGINT))
    assert run.state == "resumable"
    run = okdc.resume(run)
    assert run.state == "complete"
    assert weights(run) == weights(whole)
    assert run.result.heads_last_epoch_top1_pct == whole.result.heads_last_epoch_top1_pct


@pytest.mark.parametrize(
    ("number", "wanted", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, True, 143), (signal.SIGTERM, False, 143)],
)
def test_an_interrupt_is_raised_where_it_is_wanted_and_sigterm_always(
    number: signal.Signals, wanted: bool, code: int
) -> None:
    with pytest.raises(okdc.Interrupted) as caught:
        okdc.distill(tiny(), out="run", progress=signalled(5, number), raise_interrupts=wanted)
    assert (caught.value.exit_code, caught.value.run) == (code, Path("run"))
    assert okdc.Run("run").state == "resumable"
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_series_is_returned_and_resumed_likewise() -> None:
    series = okdc.distill_seeds(tiny(), [0, 1], out="series", progress=signalled(17, signal.SIGINT))
    assert series.state == "resumable"
    assert [run.state for run in series.runs.values()] == ["complete", "resumable"]
    with pytest.raises(okdc.Interrupted) as caught:
        okdc.resume(series, progress=signalled(1, signal.SIGINT), raise_interrupts=True)
    assert (caught.value.exit_code, caught.value.run) == (130, Path("series"))
    series = okdc.resume(series)
    assert series.state == "complete"
    assert weights(series.runs[0]) == weights(okdc.distill(tiny(), out="alone"))


def test_a_run_is_trained_in_another_thread() -> None:
    runs: list[okdc.Run] = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=lambda: runs.append(okdc.distill(tiny(), out="run")))
    thread.start()
    thread.join()
    assert [run.state for run in runs] == ["complete"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


# ---------------------------------------------------------------------------------------------------------------------
# Runs and bundles


def test_the_students_of_a_run_are_networks(finished: RunDir) -> None:
    run = okdc.Run(finished.path)
    network = run.student()
    assert isinstance(network, okdc.Backbone)
    assert not network.training
    images = torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(network(images), run.student(run.result.kept.student)(images))
    other = run.student(1 - run.result.kept.student)
    assert any(not a.equal(b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    with pytest.raises(RunError):
        run.student(2)
    assert run == okdc.Run(str(finished.path))
    assert run.recipe.recipe.optim.epochs == len(run.log) == 8


def test_a_bundle_answers_to_files_folders_and_arrays(exported: Path) -> None:
    bundle = okdc.Bundle(exported)
    files = sorted((exported / "sample").glob("*.png"))
    answers = bundle.predict(files, top=3)
    assert [answer["image"] for answer in answers] == [str(path) for path in files]
    assert all(len(answer["top"]) == 3 for answer in answers)
    assert {best["label"] for answer in answers for best in answer["top"]} <= set(bundle.labels)
    assert bundle.predict(exported / "sample", top=3) == answers
    assert bundle.predict(str(files[0]), top=3) == answers[:1]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    by_index = bundle.predict(pixels, top=3, batch=2)
    assert [answer["image"] for answer in by_index] == list(range(len(files)))
    for first, second in zip(by_index, answers, strict=True):
        assert [best["label"] for best in first["top"]] == [best["label"] for best in second["top"]]
        assert first["top"][0]["probability"] == pytest.approx(second["top"][0]["probability"], abs=1e-5)
    assert bundle.predict(pixels[:0]) == []
    assert bundle.labels == list(bundle.manifest.labels)


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 9, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_an_array_of_another_shape_or_type_is_refused(exported: Path, pixels: Any) -> None:
    with pytest.raises(DataError) as caught:
        okdc.Bundle(exported).predict(pixels)
    assert "×".join(map(str, pixels.shape)) in caught.value.message
    assert str(pixels.dtype) in caught.value.message


def test_a_damaged_file_has_a_row_with_its_error(exported: Path) -> None:
    Image.fromarray(picture(1, 20, 30)).save("whole.png")
    Path("damaged.png").write_bytes(Path("whole.png").read_bytes()[:60])
    bundle = okdc.Bundle(exported)
    damaged, whole, missing = bundle.predict(["damaged.png", "whole.png", "missing.png"])
    assert (damaged["image"], whole["image"], missing["image"]) == ("damaged.png", "whole.png", "missing.png")
    assert "error" in damaged
    assert "error" in missing
    assert "top" in whole
    Path("empty").mkdir()
    with pytest.raises(DataError):
        bundle.predict("empty")
    with pytest.raises(UsageError):
        bundle.predict("whole.png", "int8")


# ---------------------------------------------------------------------------------------------------------------------
# The command line calls the API


@pytest.mark.parametrize(
    ("words", "function"),
    [
        ("distill", "distill"),
        ("distill --seeds 0,1", "distill_seeds"),
        ("resume runs/a", "resume"),
        ("profile resnet8", "profile"),
        ("export runs/a --onnx", "write_bundle"),
        ("evaluate runs/a", "evaluate"),
        ("compare runs/a", "compare"),
        ("download digits", "download"),
    ],
)
def test_a_command_calls_the_api(words: str, function: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    class CalledError(OkdcError):
        kind, exit_code = "called", 77

    def call(*_: object, **__: object) -> None:
        raise CalledError(function)

    monkeypatch.setattr(f"okdc.api.{function}", call)
    assert main(words.split()) == 77
    assert "error[called]" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The guide


def test_every_example_of_the_guide_runs_in_order() -> None:
    examples = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    examples = [each for each in examples if not re.match("import (mlflow|wandb)\n", each)]  # tests/tracking has these
    assert len(examples) >= 9
    namespace: dict[str, Any] = {"__name__": "guide"}
    for number, example in enumerate(examples, 1):
        assert "from okdc" not in example, "the guide is of the public names"
        exec(compile(example, f"<example {number} of okdc/README.md>", "exec"), namespace)
    named = {name for name in PUBLIC if f"okdc.{name}" in GUIDE}
    assert named >= set(PUBLIC) - {"__version__", "download", "download_weights", "ResolvedRecipe"}


def test_the_guide_has_a_paragraph_for_each_room() -> None:
    rooms = {path.name + "/" for path in HOUSE.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.name for path in HOUSE.glob("*.py")}
    described = re.findall(r"^- `([\w/.]+)`", GUIDE, re.M)
    assert sorted(described) == sorted(rooms - {"__init__.py"})
    assert "`__init__.py`" in GUIDE


def test_the_guide_draws_the_floors_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [layer.replace("okdc.", "") for layer in contracts["contracts"][0]["layers"]]
    assert "\n".join(layers) in GUIDE
