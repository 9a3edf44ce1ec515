"""An installed wheel, away from the checkout, does the main job too."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from okdc.runs.files import read_json

ROOT = Path(__file__).resolve().parents[1]


def _python(*words: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the project's own backend, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    name = _python("-c", code, folder, cwd=ROOT).split()[-1]
    return folder / name


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """`--no-deps` into a folder of its own: torch is not installed twice."""
    target = wheel.parent / "site"
    _python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel, cwd=wheel.parent)
    return target


def test_the_wheel_holds_recipes_runners_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "okdc/_shipped/recipes/digits_resnet8.toml" in names
    assert "okdc/_shipped/export/python/run.py" in names
    shipped = {name.removeprefix("okdc/_shipped/") for name in names if name.startswith("okdc/_shipped/export/")}
    made_later = {"node_modules", "__pycache__"}
    there = [path.relative_to(ROOT) for path in (ROOT / "export").rglob("*") if path.is_file()]
    assert shipped == {path.as_posix() for path in there if not made_later & set(path.parts)}
    assert "okdc/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "runs/")) or "__pycache__" in name]


@pytest.mark.long  # `.ci/run` begins with the main job, from a wheel that pip has installed
def test_the_main_job_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    def okdc(*words: str) -> str:
        return _python("-m", "okdc", *words, cwd=tmp_path, PYTHONPATH=str(installed))

    okdc("distill")
    okdc("profile")
    okdc("export", "--onnx")
    run = tmp_path / "runs" / "digits_resnet8-1"
    assert read_json(run / "result.json")["kept"]["top1_pct"] >= 95
    assert read_json(run / "bundle" / "parity.json")["float32"]["passed"]
    runner = installed / "okdc" / "_shipped" / "export" / "python" / "run.py"
    assert "self-test passed" in _python(runner, run / "bundle", "--selftest", cwd=tmp_path)


# The command, and where its okdc lies.
ASKED = "import okdc, sys; from okdc.__main__ import main; print(okdc.__file__, main(sys.argv[1:]))"


def test_the_wheels_own_recipes_are_found_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    printed = _python("-c", ASKED, "recipes", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "digits_resnet8" in printed
    where, code = printed.split()[-2:]
    assert Path(where).is_relative_to(installed), "the wheel's okdc, not the checkout's"
    assert code == "0"


def test_the_installed_command_is_the_module(installed: Path, tmp_path: Path) -> None:
    entry = next(installed.glob("okdc-*.dist-info")) / "entry_points.txt"
    assert "okdc = okdc.__main__:program" in entry.read_text()
    version = _python("-m", "okdc", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert version.startswith("okdc ")
