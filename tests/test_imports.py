"""What may be imported without what: help, lists and the image code answer without the heavy packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from asking import ask

import okdc
from okdc.runs.run import RunDir

HEAVY = ("torch", "numpy", "onnxruntime", "onnx", "sklearn", "torchvision", "fvcore", "PIL")

NO_TORCH = ("torch", "onnxruntime", "onnx", "sklearn", "torchvision", "fvcore")

# Each of these without torch; the second says what else it does without.
LIGHT = {
    "okdc.errors": HEAVY,
    "okdc.recipe.catalog": HEAVY,
    "okdc.recipe.draft": HEAVY,
    "okdc.recipe.reference": HEAVY,
    "okdc.runs.run": HEAVY,
    "okdc.runs.series": HEAVY,
    "okdc.runs.locks": HEAVY,
    "okdc.cli.console": HEAVY,
    "okdc.progress": HEAVY,
    "okdc.cli": HEAVY,
    "okdc.__main__": HEAVY,
    "okdc.methods": HEAVY,
    "okdc.backbones": HEAVY,
    "okdc.data": HEAVY,
    "okdc.deploy": HEAVY,
    "okdc.comparison": HEAVY,
    "okdc.data.download": NO_TORCH,
    "okdc.runs.predictions": NO_TORCH,
    "okdc.comparison.compare": NO_TORCH,
    **{f"okdc.data.{name}": NO_TORCH for name in ("digits", "folder", "cifar", "cinic10", "imagenet", "custom")},
}


def told_by(code: str) -> object:
    """What a fresh interpreter prints as JSON on its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_light_modules_import_nothing_heavy() -> None:
    code = f"""
import importlib, json, sys
found = {{}}
for name, without in {LIGHT!r}.items():  # the strictest first: an import shows in all that come after it
    importlib.import_module(name)
    found[name] = [heavy for heavy in without if heavy in sys.modules]
print(json.dumps(found))
"""
    assert told_by(code) == {name: [] for name in LIGHT}


LISTS = [["recipes"], ["recipes", "--json"], ["recipes", "digits_resnet8"], ["recipes", "keys"], ["runs"]]


@pytest.mark.parametrize("words", [["--help"], ["distill", "--help"], *LISTS], ids=" ".join)
def test_help_and_lists_import_nothing_heavy(words: list[str]) -> None:
    code = f"""
import json, sys
from okdc.__main__ import main
code = main({words!r})
print()
print(json.dumps([code, [heavy for heavy in {HEAVY!r} if heavy in sys.modules]]))
"""
    assert told_by(code) == [0, []]


ANSWERS = """
import json, sys
from okdc.__main__ import main
code = main(sys.argv[1:])
print()
print(json.dumps([code, [name for name in ("torch", "torchvision", "fvcore", "safetensors") if name in sys.modules]]))
"""


def test_real_runs_are_listed_and_compared_without_torch(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify` and `predict` are run where torch is not installed, in tests/bundle/test_verify.py."""
    words = ["method.name=baseline", "optim.epochs=8", "-o", "runs/baseline"]
    assert ask(capsys, "distill", *words).code == 0
    run.path.rename("runs/fefr")
    for words in (["runs"], ["runs", "--json"], ["compare"], ["compare", "--json"], ["compare", "runs/fefr"]):
        done = subprocess.run([sys.executable, "-c", ANSWERS, *words], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout.splitlines()[-1]) == [0, []], words
        assert "fefr" in done.stdout, words


def test_a_training_starts_without_what_its_first_step_has_no_use_for() -> None:
    """What takes a second each: to judge, to profile and to export there is time later, or no need at all."""
    code = """
import json, os, sys
import torch
from okdc.__main__ import main

def step(*_, **__):
    heavy = ("sklearn", "scipy", "torchvision", "onnx", "onnxruntime", "onnxscript", "fvcore", "matplotlib", "pandas")
    print()
    print(json.dumps([name for name in heavy if name in sys.modules]), flush=True)
    os._exit(0)

torch.optim.SGD.step = step
main(["distill", "optim.epochs=1"])
"""
    assert told_by(code) == []


def test_a_misspelt_recipe_is_answered_before_torch_is_imported() -> None:
    code = """
import json, sys
from okdc.__main__ import main
code = main(["distill", "digit_resnet8"])
print(json.dumps([code, "torch" in sys.modules]))
"""
    assert told_by(code) == [2, False]


def test_the_packages_themselves_import_none_of_their_modules() -> None:
    root = Path(okdc.__file__).parent
    for name in ("assembly", "deploy", "profiling", "recipe", "runs", "comparison"):
        tree = ast.parse((root / name / "__init__.py").read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)], name


def test_nothing_but_the_console_prints() -> None:
    """stdout is data and stderr is talk only as long as one module decides."""
    root = Path(okdc.__file__).parent
    printing = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "_shipped" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert not printing - {"cli/console.py"}
