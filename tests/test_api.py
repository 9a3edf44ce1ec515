"""The Python API: its names, its silence, its errors, its guide, and that the command line calls it."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask

import okdc
from okdc import api
from okdc.__main__ import main
from okdc.errors import DataError

GUIDE = Path(okdc.__file__).parent / "README.md"
TINY = {"optim": {"epochs": 2, "batch_size": 50}, "data": {"train_images": 100}}

# A change of this list is a change of what okdc promises.
NAMES = {
    "Backbone", "Batch", "Bundle", "CheckFailed", "Cohort", "Config", "Interrupted", "Method", "OkdcError", "Progress",
    "ResolvedRecipe", "Run", "Series", "Step", "__version__", "compare", "distill", "distill_seeds", "download",
    "evaluate", "export", "load_recipe", "profile", "resume",
}  # fmt: skip


def test_the_public_names_are_exactly_these_and_each_says_what_it_is() -> None:
    assert set(okdc.__all__) == NAMES
    assert set(dir(okdc)) == NAMES
    for name in NAMES - {"__version__"}:
        assert inspect.getdoc(getattr(okdc, name)), name
    with pytest.raises(AttributeError, match="distil"):
        okdc.distil  # noqa: B018


def test_no_room_bears_the_name_of_a_function_of_the_api() -> None:
    rooms = {path.stem for path in Path(okdc.__file__).parent.iterdir()}
    assert not rooms & {name for name in NAMES if name.islower() and name != "__version__"}


def test_importing_okdc_imports_nothing_heavy() -> None:
    code = "import sys, okdc; print(*sorted(name for name in sys.modules if '.' not in name))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "onnx", "onnxruntime", "rich", "typer", "PIL"} & set(modules)


def test_every_example_of_the_guide_runs_in_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    printed = capsys.readouterr()
    assert "complete" in printed.out
    assert "okdc: device cpu" in printed.out
    assert "recipe 2 optim.epoch: unknown key" in printed.out
    assert printed.err == ""


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_overrides_replace_keys_of_tables_and_keys_at_the_top() -> None:
    overrides: dict[str, Any] = {"seed": 7, "optim": {"epochs": 3}, "cohort": {"students": ("resnet8", "resnet14")}}
    recipe = okdc.load_recipe("digits_resnet8", **overrides)
    assert (recipe.recipe.seed, recipe.recipe.optim.epochs) == (7, 3)
    assert recipe.architectures == ("resnet8", "resnet14")
    as_list = overrides | {"cohort": {"students": ["resnet8", "resnet14"]}}
    assert recipe.recipe.sha256() == okdc.load_recipe(Path("digits_resnet8"), **as_list).recipe.sha256()


def test_another_method_starts_its_table_afresh_as_on_the_command_line() -> None:
    recipe = okdc.load_recipe("cifar100_resnet32_ablation", method={"name": "dml"})
    assert recipe.recipe.method == {"name": "dml"}


@pytest.mark.parametrize(
    ("overrides", "word", "key"),
    [
        ({"optim": {"epoch": 2}}, "optim.epoch=2", "optim.epoch"),
        ({"method": {"name": "fefrr"}}, "method.name=fefrr", "method.name"),
        ({"data": {"name": "digit"}}, "data.name=digit", "data.name"),
        ({"optim": {"epochs": 0}}, "optim.epochs=0", "optim.epochs"),
        ({"optim": 3}, "optim=3", "optim"),
    ],
)
def test_a_mistake_is_the_error_that_the_command_line_gives(
    overrides: dict[str, Any], word: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(okdc.OkdcError) as caught:
        okdc.load_recipe("digits_resnet8", **overrides)
    answer = ask(capsys, "distill", "digits_resnet8", word)
    assert (answer.code, caught.value.exit_code, caught.value.kind) == (2, 2, "recipe")
    assert [line.split(":")[0] for line in caught.value.details] == [key]
    assert all(line in answer.err for line in caught.value.details)


def test_what_is_not_there_is_an_error_of_its_kind() -> None:
    for call, kind in (
        (lambda: okdc.load_recipe("digits_resnet9"), "recipe"),
        (lambda: okdc.Run("runs/none"), "run"),
        (lambda: okdc.Bundle("none"), "run"),
        (lambda: okdc.resume(), "run"),
        (lambda: okdc.profile("resnet21"), "usage"),
        (lambda: okdc.compare(["runs/none"]), "run"),
        (lambda: okdc.download("cifar11"), "usage"),
    ):
        with pytest.raises(okdc.OkdcError) as caught:
            call()
        assert (caught.value.kind, caught.value.exit_code) == (kind, 2)


def test_options_that_do_not_go_together_are_refused(finished: Any) -> None:
    for options in ({"full_range": True}, {"max_drop": 0.0}, {"student": 0, "budget": "params<1M"}):
        with pytest.raises(okdc.OkdcError) as caught:
            okdc.export(finished.path, **options)
        assert caught.value.kind == "usage"


# ---------------------------------------------------------------------------------------------------------------------
# Training, interrupted and continued


class Interrupting(okdc.Progress):
    """Presses Ctrl-C after so many steps."""

    def __init__(self, after: int, number: signal.Signals = signal.SIGINT) -> None:
        self.after, self.number = after, number

    @contextmanager
    def training(self) -> Iterator[Callable[[int, int, str], None]]:
        def show(done: int, total: int, text: str) -> None:  # noqa: ARG001
            if done == self.after:
                os.kill(os.getpid(), self.number)

        yield show


def weights(run: okdc.Run) -> bytes:
    return run.folder.weights.read_bytes()


def test_ctrl_c_saves_and_returns_the_run_and_resume_continues_it_to_the_bit(capfd: pytest.CaptureFixture[str]) -> None:
    recipe = okdc.load_recipe("digits_resnet8", **TINY)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run = okdc.distill(recipe, out="stopped", progress=Interrupting(3))
    assert run.state == "resumable"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert len(run.log) == 1
    run = okdc.resume(run)
    assert run.state == "complete"
    whole = okdc.distill(recipe, out="whole")
    assert weights(run) == weights(whole)
    assert [row["loss"] for row in run.log] == [row["loss"] for row in whole.log]
    assert capfd.readouterr() == ("", "")  # nobody asked to see anything


def test_who_wants_an_interrupt_as_an_error_gets_it_and_sigterm_always_is_one() -> None:
    recipe = okdc.load_recipe("digits_resnet8", **TINY)
    for number, code, raised in ((signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)):
        out = f"stopped-{code}"
        with pytest.raises(okdc.Interrupted) as caught:
            okdc.distill(recipe, out=out, progress=Interrupting(1, number), raise_interrupts=raised)
        assert (caught.value.exit_code, caught.value.run) == (code, Path(out))
        assert okdc.Run(out).state == "resumable"


def test_a_thread_of_ones_own_can_train() -> None:
    recipe, runs = okdc.load_recipe("digits_resnet8", **TINY), list[okdc.Run]()
    thread = threading.Thread(target=lambda: runs.append(okdc.distill(recipe, out="thread")))
    thread.start()
    thread.join()
    assert runs[0].state == "complete"


# ---------------------------------------------------------------------------------------------------------------------
# What comes after


def test_a_run_is_read_by_its_types(finished: Any) -> None:
    run = okdc.Run(str(finished.path))
    assert run == okdc.Run(finished.path)
    assert run.recipe.recipe.optim.epochs == 8 == len(run.log)
    assert [student.student for student in run.students] == [0, 1]
    assert run.result.kept.top1_pct == run.students[run.result.kept.student].top1_pct
    kept, other = run.student(), run.student(1 - run.result.kept.student)
    assert isinstance(kept, okdc.Backbone)
    assert not kept.training
    assert any(not a.equal(b) for a, b in zip(kept.parameters(), other.parameters(), strict=True))
    with pytest.raises(okdc.OkdcError, match="no student2"):
        run.student(2)


def test_a_bundle_answers_for_files_folders_and_arrays(exported: Path) -> None:
    bundle = okdc.Bundle(exported)
    files = sorted((exported / "sample").glob("*.png"))
    Path("photos").mkdir()
    for file in files:
        Path("photos", file.name).write_bytes(file.read_bytes())
    Path("photos/z.png").write_bytes(b"no image")
    by_file, by_folder = bundle.predict(files, top=2), bundle.predict("photos", top=2)
    assert [row["top"] for row in by_file] == [row["top"] for row in by_folder[:-1]]
    assert set(by_folder[-1]) == {"image", "error"}
    pixels = np.stack([bundle.folder.pixels(file.read_bytes()) for file in files])
    by_array = bundle.predict(pixels, top=2, batch=2)
    assert [row["image"] for row in by_array] == list(range(len(files)))
    for from_array, from_file in zip(by_array, by_file, strict=True):
        assert [c["label"] for c in from_array["top"]] == [c["label"] for c in from_file["top"]]
    for wrong in (pixels.astype(np.float32), pixels[:, :4], pixels[0]):
        with pytest.raises(DataError):
            bundle.predict(wrong)  # type: ignore[arg-type]
    assert bundle.verify()["passed"]
    assert bundle.labels == list(bundle.manifest.labels)


def test_a_damaged_bundle_fails_its_check(exported: Path) -> None:
    (exported / "infer.py").write_text("other")
    with pytest.raises(okdc.CheckFailed) as caught:
        okdc.Bundle(exported).verify()
    assert (caught.value.kind, caught.value.exit_code) == ("files", 1)


def test_a_run_is_evaluated_profiled_and_compared_with_nothing_printed(
    finished: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = okdc.Run(finished.path)
    assert okdc.evaluate(run)["top1_pct"] == run.result.kept.top1_pct
    report = okdc.profile(run)
    assert [row["kept"] for row in report["rows"] if row["kind"] == "student"].count(True) == 1
    assert okdc.compare([run])["rows"][0]["n"] == 1
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------------------------
# The command line calls these functions


class CalledError(Exception):
    """A function of the API was reached."""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("distill", ["distill", "optim.epochs=1"]),
        ("distill_seeds", ["distill", "--seeds", "0,1"]),
        ("resume", ["resume"]),
        ("profile", ["profile", "resnet8"]),
        ("write_bundle", ["export", "RUN", "--onnx"]),
        ("evaluate", ["evaluate", "RUN"]),
        ("compare", ["compare", "RUN"]),
        ("download", ["download", "digits"]),
    ],
)
def test_a_command_calls_its_function(
    name: str, words: list[str], finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(*_: Any, **__: Any) -> None:
        raise CalledError(name)

    monkeypatch.setattr(api, name, called)
    assert main([str(finished.path) if word == "RUN" else word for word in words]) == 2
    assert f"CalledError: {name}" in capsys.readouterr().err
