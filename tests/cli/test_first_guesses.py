"""A command that a newcomer guesses is understood, or its error ends with the whole line to type."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from asking import Answer, ask

from okdc.cli import corrections

Captured = pytest.CaptureFixture[str]


def hint(answer: Answer) -> str:
    assert answer.code == 2, answer
    return answer.err.rpartition("\n\nhint: ")[2].rstrip("\n")


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("distill batch=16 lr=0.2", "okdc distill optim.batch_size=16 lr=0.2"),
        ("distill digits_resnet8 --epochs 3 --json", "okdc distill digits_resnet8 optim.epochs=3 --json"),
        ("distill --lr=0.1 --batch-size 16", "okdc distill optim.lr=0.1 optim.batch_size=16"),
        ("distill --learning-rate 0.1 -o here", "okdc distill optim.lr=0.1 -o here"),
        ("distill --seed 1", "okdc distill seed=1"),
        ("distill --gpu", "okdc distill --device cuda"),
        ("check --epochs 3", "okdc check optim.epochs=3"),
        ("distill --method dml", "okdc distill method.name=dml"),
        ("distill --devise cpu", "okdc distill --device cpu"),
        ("distill epochs 3 --threads 1", "okdc distill optim.epochs=3 --threads 1"),
        ("distill data.root=pics --json", "okdc distill folder_resnet20 data.root=pics --json"),
        ("distill --data-root pics", "okdc distill folder_resnet20 data.root=pics"),
        ("distill --data-root=pics", "okdc distill folder_resnet20 data.root=pics"),
        ("distill digits", "okdc distill digits_resnet8"),
        ("distill 'my pics'", "okdc distill folder_resnet20 'data.root=my pics'"),
        ("train digits_resnet8 lr=0.1", "okdc distill digits_resnet8 lr=0.1"),
        ("digits_resnet8 --json", "okdc distill digits_resnet8 --json"),
        ("lr=0.1", "okdc distill lr=0.1"),
        ("eval runs/a", "okdc evaluate runs/a"),
        ("convert", "okdc export --onnx"),
        ("distil", "okdc distill"),
        ("export", "okdc export --onnx"),
        ("help distill", "okdc distill --help"),
        ("export -o", "okdc export --help"),
        ("new --budget", "okdc new --help"),
        ("distill digits_resnet8,epochs=3 --json", "okdc distill digits_resnet8 epochs=3 --json"),
        ("distill folder_resnet20 --data 'my pics'", "okdc distill folder_resnet20 --data-root 'my pics'"),
        ("distill --data digits", "okdc distill data.name=digits"),
        ("distill optim=sgd seed=1", "okdc distill optim.optimizer=sgd seed=1"),
        ("distill augment=trivial", "okdc distill augment.policy=trivial"),
        ("distill optim=5", "okdc recipes optim explains its keys"),
        ("distill known", "okdc distill known.toml"),
        ("distill there/known", "okdc distill there/known.toml"),
        ("new outside --no-flip", "okdc new 'outside/my pics' --no-flip"),
    ],
)
def test_the_hint_is_the_whole_line_to_type(capsys: Captured, typed: str, right: str) -> None:
    for folder in ("my pics/cat", "known/cat", "there/known/cat", "outside/my pics/cat"):
        Path(folder).mkdir(parents=True)
    Path("there/known.toml" if "there" in typed else "known.toml").touch()
    assert hint(ask(capsys, *shlex.split(typed))) == right
    assert not Path("runs").exists()


@pytest.mark.parametrize("typed", ["distill --qqq 1 --epochs 3", "runs --epochs 3", "distill --version-of x"])
def test_in_doubt_the_hint_is_the_help(capsys: Captured, typed: str) -> None:
    assert hint(ask(capsys, *typed.split())) == f"okdc {typed.split()[0]} --help"


def test_a_word_is_replaced_where_it_stands_and_once() -> None:
    replaced = {("--epochs", "3"): ("optim.epochs=3",), ("b",): ("c", "d e")}
    assert corrections.line(["x", "3", "--epochs", "3", "b", "b"], replaced) == "okdc x 3 optim.epochs=3 c 'd e' b"
    assert corrections.line(["--epochs=3"], replaced) == "okdc optim.epochs=3"
    assert corrections.line(["a"], replaced) == "okdc a"


@pytest.mark.parametrize(
    "words",
    [
        ["optim.batch_size=4000"],
        ["students=resnet8"],
        ["data.train_images=301"],
        ["digits_resnet8", "optim.milestones=2"],
        ["--threads", "100000"],
        ["folder_resnet20", "data.root=nowhere"],
    ],
)
def test_no_settings_stand_before_an_error(capsys: Captured, words: list[str]) -> None:
    answer = ask(capsys, "distill", *words)
    assert answer.code == 2
    talk = answer.err.partition("error[")[0].splitlines()
    assert [line for line in talk if "recipe " not in line and " is read as " not in line] == []
