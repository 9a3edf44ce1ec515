"""Every command of the README runs, in order, in one folder, as a reader would type it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from asking import Answer, ask
from PIL import Image

from okdc.runs.files import read_json

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)

# Set-up, which the reader does once and the continuous integration does for real; running the tests here would not end.
SET_UP = ("python3 -m venv .venv", ". .venv/bin/activate", "pip install", "pytest")


def _commands() -> list[str]:
    parts = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&")]
    return [part for part in parts if part and not part.startswith(SET_UP)]


def play(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, Answer]:
    """The commands' answers, by command. okdc itself is asked in this process, which has imported torch already: each
    process of its own would take seconds for that. `test_wheel.py` runs the command that an installation brings.
    """
    for name in ("recipes", "export"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for c, name in enumerate(("cat", "dog")):
        images = folder / "path" / "to" / "images" / name
        images.mkdir(parents=True)
        for i in range(60):
            noise = rng.integers(0, 128, (40, 36, 3), dtype=np.uint8) + np.uint8(100 * c)
            Image.fromarray(noise).save(images / f"{i}.jpg")
    found = {}
    for command in _commands():
        program, *words = shlex.split(command)
        answer = ask(capsys, *words) if program == "okdc" else typed(command, folder)
        assert answer.code == 0, f"{command}\n{answer.out}\n{answer.err}"
        found[command] = answer
    return found


def typed(command: str, folder: Path) -> Answer:
    """A command of another program, as a shell runs it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def test_the_first_two_commands_are_the_main_job_and_the_tests() -> None:
    job, tests = (block.strip().splitlines() for block in BLOCKS[:2])
    assert len(job) == len(tests) == 1, "one command line each"
    assert job[0].endswith("okdc distill && okdc profile && okdc export --onnx")
    assert "pip install '.[test]' && pytest" in tests[0]


def test_it_is_short_and_its_measured_numbers_stand_with_their_source() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    measured = text.partition("## Is it worth it?")[2].partition("##")[0]
    source = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    numbers = re.findall(r"[+-]\d+\.\d+ \[[^]]+\]|(?<=\| )\d+\.\d+(?= \|)", measured)
    assert len(numbers) == 18
    assert [number for number in numbers if number not in source] == []


def test_every_command_of_the_readme_works_and_does_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One test: the commands take minutes, and two workers would play them twice."""
    assert len(set(_commands())) >= 10, "the README's blocks were found"
    played = play(capsys, tmp_path)
    assert set(played) == set(_commands())
    assert not any("Traceback" in answer.err for answer in played.values())
    the_python_example_runs(tmp_path)
    the_main_job_makes_a_real_student(tmp_path)
    every_loss_term_of_the_main_job_falls(tmp_path)
    each_command_names_the_next(played)
    the_methods_are_compared(played)


def the_python_example_runs(folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    accuracy, passed = done.stdout.split()
    assert float(accuracy) > 20
    assert passed == "True"


def the_methods_are_compared(played: Mapping[str, Answer]) -> None:
    """Two methods, two seeds: a row each, and an interval or the word that there is none worth the name."""
    out = played["okdc compare study"].out
    assert {"baseline", "fefr"} <= {line.split(" ")[0] for line in out.splitlines()}
    assert "95 % interval" in out


def the_main_job_makes_a_real_student(folder: Path) -> None:
    run = folder / "runs" / "digits_resnet8-1"
    result = read_json(run / "result.json")
    assert result["judged_on"] == "test"
    assert result["images"] == 797
    assert result["kept"]["top1_pct"] >= 95
    report = read_json(run / "bundle" / "parity.json")["float32"]
    assert report["passed"]
    assert report["top1_pct"]["onnx"] == result["kept"]["top1_pct"]


def every_loss_term_of_the_main_job_falls(folder: Path) -> None:
    """From the epoch on in which the ramp has reached 1: before it, distillation's terms grow with their weight."""
    log = folder / "runs" / "digits_resnet8-1" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    full = next(i for i, row in enumerate(rows) if row["epoch"] > len(rows) * 80 / 300)
    assert full < len(rows) / 3, "the ramp is at 1 for most of the run"
    for term in rows[0]["losses"]:
        early = np.mean([row["losses"][term] for row in rows[full : full + 5]])
        late = np.mean([row["losses"][term] for row in rows[-5:]])
        assert late < early, term


def each_command_names_the_next(played: Mapping[str, Answer]) -> None:
    for command in ("okdc distill", "okdc profile", "okdc export --onnx", "okdc runs"):
        assert "next: " in played[command].err, command
