"""A student that answers the largest class to every image: each command says so, beside a top-1 that looks like one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Answer, ask, write_tree
from bundles import edit

from okdc.__main__ import main
from okdc.cli import tables
from okdc.methods.base import Method
from okdc.runs.files import read_json

Captured = pytest.CaptureFixture[str]

COUNTS = {"few": 20, "many": 139, "some": 60}
SHARE, BALANCED = 63.4703, 33.3333  # 139 of 219; one class of three


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images/, a run whose students answer "many" whatever they see, and its bundle with int8."""
    folder = tmp_path_factory.mktemp("one_answer")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OKDC_CACHE", str(folder / "cache"))
        write_tree(Path("images"), {"train": dict.fromkeys(COUNTS, 40), "test": COUNTS})
        train = Method.train

        def decided(self: Method, mode: bool = True) -> Any:
            """Set at each change of mode, so that the loop validates, keeps and judges this."""
            for student in self.cohort.backbones():
                head = [module for module in student.modules() if isinstance(module, torch.nn.Linear)][-1]
                with torch.no_grad():
                    head.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
            return train(self, mode)

        patch.setattr(Method, "train", decided)
        words = ["data.image_size=8", "augment.padding=1", 'cohort.students=["resnet8", "resnet8"]']
        words += ["optim.epochs=1", "optim.batch_size=16", "--data-root", "images", "-o", "run"]
        assert main(["distill", "folder_resnet20", *words]) == 0
        patch.undo()
        patch.setenv("OKDC_CACHE", str(folder / "cache"))
        assert main(["export", "run", "--onnx", "--int8", "--min-agreement", "0", "--max-drop", "100"]) == 0
    yield folder


@pytest.fixture
def said_of(folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask okdc in that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OKDC_CACHE", str(folder / "cache"))
    return lambda *words: ask(capsys, *words)


def warned(answer: Answer) -> list[str]:
    """The warnings about the largest class."""
    assert answer.code == 0, answer.err
    return [line for line in answer.err.splitlines() if "share of the largest class, 63.47 % of the 219 images" in line]


def test_the_end_of_a_training_says_it_and_keeps_it(folder: Path, said_of: Any) -> None:
    answer = said_of("resume", "run")  # complete: it prints the result again
    assert len(warned(answer)) == 1
    assert (
        f"63.47 [56.91, 69.56] % on 219 test images (95 % interval), balanced accuracy {BALANCED:.2f} %" in answer.out
    )
    result = read_json(folder / "run/result.json")
    assert (result["largest_class_pct"], result["smallest_class_pct"]) == (SHARE, 9.1324)
    for row in (result["kept"], *result["cohort"]):
        assert (row["top1_pct"], row["balanced_accuracy_pct"]) == (SHARE, BALANCED)


def test_an_evaluation_says_it_of_the_run_and_of_the_bundle(said_of: Any) -> None:
    for thing in ("run", "run/bundle"):
        words = ("evaluate", thing, "--data-root", "images")
        answer = said_of(*words)
        assert len(warned(answer)) == 1
        assert f"balanced accuracy {BALANCED:.2f} %" in answer.out
        facts = json.loads(said_of(*words, "--json").out)
        assert (facts["balanced_accuracy_pct"], facts["largest_class_pct"]) == (BALANCED, SHARE)
        assert facts["above_largest_class"] is False


def test_an_export_says_it_of_float32_and_of_int8(folder: Path, said_of: Any) -> None:
    words = ("--onnx", "--int8", "--min-agreement", "0", "--max-drop", "100", "--data-root", "images", "-o", "again")
    answer = said_of("export", "run", *words)
    lines = warned(answer)
    assert len(lines) == 2
    assert "int8: " in lines[1]
    assert answer.out.count("balanced accuracy %") == 2
    parity = read_json(folder / "run/bundle/parity.json")
    for precision, names in (("float32", {"torch", "onnx"}), ("int8", {"float32", "int8"})):
        assert parity[precision]["balanced_accuracy_pct"] == dict.fromkeys(names, BALANCED)
        assert parity[precision]["largest_class_pct"] == SHARE
    manifest = read_json(folder / "run/bundle/manifest.json")
    assert {model["balanced_accuracy_pct"] for model in manifest["models"].values()} == {BALANCED}
    assert manifest["accuracy"]["largest_class_pct"] == SHARE


def test_the_card_says_it_of_both_files(folder: Path) -> None:
    text = (folder / "run/bundle/README.md").read_text(encoding="utf-8")
    for name in ("model.onnx", "model.int8.onnx"):
        assert f"| `{name}` | 63.47 [56.91, 69.56] | {BALANCED:.2f} |" in text
        assert f"- `{name}`: top-1 63.47 % is not above the share of the largest class" in text
    assert "the largest has 63.47 % of these images, the smallest 9.13 %" in text


@pytest.mark.parametrize("root", [(), ("--data-root", "images")], ids=["without images", "with images"])
def test_a_verification_says_it_of_both_files(said_of: Any, root: tuple[str, ...]) -> None:
    answer = said_of("verify", "run/bundle", *root)
    assert [line.split(": ")[1] for line in warned(answer)] == ["float32", "int8"]
    here = f"{BALANCED:.2f} % here" if root else "not checked"
    assert f"int8: balanced accuracy {here}, {BALANCED:.2f} % recorded" in answer.out
    models = json.loads(said_of("verify", "run/bundle", *root, "--json").out)["models"]
    for model in models.values():
        assert model["above_largest_class"] is False
        assert model["recorded_balanced_accuracy_pct"] == BALANCED
        assert model["balanced_accuracy_pct"] == (BALANCED if root else None)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("models", "int8", "balanced_accuracy_pct"), "model.int8.onnx: balanced accuracy 33.33 %"),
        (("accuracy", "largest_class_pct"), "the largest class has 63.47 %"),
        (("accuracy", "smallest_class_pct"), "the smallest class has 9.13 %"),
    ],
)
def test_a_manifest_that_states_another_balance_is_a_failed_check(
    folder: Path, tmp_path: Path, capsys: Captured, keys: tuple[str, ...], words: str
) -> None:
    shutil.copytree(folder / "run/bundle", tmp_path / "bundle")

    def lie(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] += 5.0

    edit(tmp_path / "bundle/manifest.json", lie)
    answer = ask(capsys, "verify", "bundle", "--data-root", str(folder / "images"))
    assert answer.code == 1
    assert words in answer.err


def test_a_series_says_it_of_each_seed(folder: Path, capsys: Captured) -> None:
    kept = read_json(folder / "run/result.json")["kept"]
    classes = {"largest_class_pct": SHARE, "smallest_class_pct": 9.1324, "images": 219}
    row = {"seed": 4, "state": "complete"} | classes | kept
    facts = {"method": "fefr", "judged_on": "test", "images": 219, "n": 1, "top1_pct_mean": SHARE, "top1_pct_sd": None}
    tables.series(facts | {"runs": [row, row | {"seed": 5, "top1_pct": 90.0, "balanced_accuracy_pct": 88.0}]})
    said = capsys.readouterr()
    assert said.err.count("seed 4: top-1 63.47 % is not above the share") == 1
    assert "seed 5" not in said.err
    assert [line.split()[-1] for line in said.out.splitlines()[1:3]] == ["33.33", "88.00"]
