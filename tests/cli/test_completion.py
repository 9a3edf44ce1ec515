"""What a shell completes, asked as bash, zsh and fish ask it. Nothing is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from okdc.__main__ import main
from okdc.backbones import NETWORKS
from okdc.bundle import layout
from okdc.cli import completion
from okdc.recipe import catalog
from okdc.runs.run import ROOT, SERIES, RunDir

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

RUNS = {
    "runs/begun-1": {"run.json": "{}"},
    "runs/done-1": {"run.json": "{}", "result.json": "{}"},
    "runs/done-1/bundle": {"manifest.json": "{}"},
    "runs/damaged-1": {"run.json": "{{{"},
    "runs/several-1": {"series.json": "[]"},
    "runs/several-1/seed0": {"run.json": "", "result.json": "no JSON"},
    "runs/several-1/seed1": {"run.json": ""},
    "runs/two words-1": {"run.json": "{}", "result.json": "{}"},
    "shipped": {"manifest.json": "{}"},
    "photos": {"a.png": ""},
}


@pytest.fixture
def folders() -> None:
    """Runs of every state, some of them damaged, and bundles."""
    for folder, files in RUNS.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")


def question(shell: str, *words: str) -> dict[str, str]:
    """The variables with which a shell asks for the last word."""
    asked = {"_OKDC_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        return asked | {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    return asked | {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}


def completed(capsys: Captured, monkeypatch: Patch, shell: str, *words: str) -> list[str]:
    for name, value in question(shell, "okdc", *words).items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    return re.findall(r'"([^":]+)"(?:"|\n|\)|$)', out) if shell == "zsh" else out.split()


FINISHED = ["runs/done-1", "runs/several-1/seed0"]
UNFINISHED = ["runs/begun-1", "runs/damaged-1", "runs/several-1/seed1"]
BUNDLES = ["runs/done-1/bundle", "shipped"]


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["distill", "cifar10_wrn"], ["cifar10_wrn16_1_wrn16_8_switokd", "cifar10_wrn16_2", "cifar10_wrn40_2"]),
        (["resume", ""], [*UNFINISHED, "runs/several-1"]),
        (["profile", "runs/d"], ["runs/done-1"]),
        (["profile", "wrn"], ["wrn16_1", "wrn16_2", "wrn16_8", "wrn40_2"]),
        (["export", ""], [*FINISHED, *BUNDLES]),
        (["evaluate", ""], [*FINISHED, *BUNDLES]),
        (["compare", "runs/done-1", "runs/s"], ["runs/several-1", "runs/several-1/seed0"]),
        (["verify", ""], BUNDLES),
        (["predict", "sh"], ["shipped"]),
        (["predict", "shipped", "ph"], []),
        (["distill", "pho"], []),
    ],
)
def test_names_are_completed_and_where_none_begins_so_the_shell_completes_files(
    capsys: Captured, monkeypatch: Patch, shell: str, words: list[str], names: list[str]
) -> None:
    assert sorted(completed(capsys, monkeypatch, shell, *words)) == sorted(names)


def test_without_runs_every_recipe_and_network_is_offered_and_nothing_else(
    capsys: Captured, monkeypatch: Patch
) -> None:
    assert completed(capsys, monkeypatch, "bash", "distill", "") == list(catalog.recipes())
    assert completed(capsys, monkeypatch, "bash", "profile", "") == [*NETWORKS.names(), *catalog.recipes()]
    assert completed(capsys, monkeypatch, "bash", "resume", "") == []


def test_the_files_that_tell_runs_and_bundles_apart_are_those_that_okdc_writes() -> None:
    run = RunDir(Path("run"))
    assert (run.info.name, run.result.name) == (completion.RUN, completion.RESULT)
    assert (completion.RUNS, completion.SERIES, completion.MANIFEST) == (ROOT, SERIES, layout.MANIFEST)


@pytest.mark.parametrize("words", [["distill", ""], ["export", ""], ["profile", ""]])
def test_a_tab_imports_nothing_heavy(words: list[str]) -> None:
    code = """
import json, sys
from okdc.__main__ import main
try:
    main([])
except SystemExit:
    heavy = ("torch", "numpy", "onnxruntime", "onnx", "PIL", "sklearn", "torchvision", "fvcore")
    print("\\n" + json.dumps([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | question("bash", "okdc", *words),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_okdc(capsys: Captured, monkeypatch: Patch, shell: str) -> None:
    monkeypatch.setenv("_OKDC_COMPLETE", f"source_{shell}")
    with pytest.raises(SystemExit):
        main([])
    out, err = capsys.readouterr()
    assert f"_OKDC_COMPLETE=complete_{shell}" in out
    assert err == ""
