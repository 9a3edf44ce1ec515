"""A package outside okdc brings a method, a network and a data set by entry point, and goes the whole way with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent / "outside_package"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path with the package as an installer leaves it: modules, and entry points as metadata."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(SOURCE / "okdc_flowers", folder / "okdc_flowers")
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    metadata = folder / "okdc_flowers-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def house(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with two finished runs on the flowers: of the package's method, and of the baseline."""
    folder = tmp_path_factory.mktemp("house")
    cohort = 'cohort.students=["petalnet", "petalnet"]'
    small = ["optim.epochs=2", "optim.batch_size=30", "data.image_size=16", "data.name=flowers", cohort]
    for name, flags in (("agreement", []), ("baseline", ["--no-export-check"])):
        answer = run_okdc(site, folder, "distill", f"method.name={name}", *small, *flags, "-o", f"runs/{name}")
        assert answer.returncode == 0, answer.stderr
    return folder


def run_okdc(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OKDC_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "okdc", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def facts(site: Path, folder: Path, *words: str) -> Any:
    answer = run_okdc(site, folder, *words, "--json")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_what_was_trained_is_of_the_package(house: Path) -> None:
    result = json.loads((house / "runs/agreement/result.json").read_text())
    assert (result["method"], result["students"], result["dataset"]) == ("agreement", ["petalnet"] * 2, "flowers")
    assert result["method_card"]["title"] == "Agreement"
    assert (result["judged_on"], result["images"]) == ("test", 90)
    log = [json.loads(line) for line in (house / "runs/agreement/log.jsonl").read_text().splitlines()]
    assert {"ce_student0", "agreement_student1"} <= set(log[0]["losses"])


def test_its_network_was_tried_before_the_training(house: Path) -> None:
    checks = {
        name: json.loads((house / f"runs/{name}/run.json").read_text())["export_check"]
        for name in ("agreement", "baseline")
    }
    assert checks == {"agreement": "passed", "baseline": "skipped"}


def test_its_method_is_compared_with_the_baseline(site: Path, house: Path) -> None:
    report = facts(site, house, "compare", "runs")
    assert report["baseline"] == "baseline"
    assert {row["name"] for row in report["rows"]} == {"baseline", "agreement"}


def test_its_student_is_profiled_exported_and_verified(site: Path, house: Path) -> None:
    report = facts(site, house, "profile", "runs/agreement")
    assert [row["architecture"] for row in report["rows"] if row["kept"]] == ["petalnet"]
    exported = run_okdc(site, house, "export", "runs/agreement", "--onnx")
    assert exported.returncode == 0, exported.stderr
    bundle = house / "runs/agreement/bundle"
    card = (bundle / "README.md").read_text()
    assert "Trained with a peer, each pulled towards the mean prediction (Agreement; an example)." in card
    # The images come from the package's code, which is not run on a bundle's word.
    assert run_okdc(site, house, "verify", str(bundle)).returncode == 0
    assert run_okdc(site, house, "evaluate", "runs/agreement").returncode == 0


def test_its_names_are_suggested_and_its_keys_checked(site: Path, house: Path) -> None:
    misspelt = run_okdc(site, house, "distill", "method.name=agrement")
    assert misspelt.returncode == 2
    assert "agreement" in misspelt.stderr
    wrong = run_okdc(site, house, "distill", "method.name=agreement", "method.weight=-1")
    assert wrong.returncode == 2
    assert "method.weight" in wrong.stderr


def test_a_method_is_named_by_its_module_too(site: Path, house: Path) -> None:
    words = [
        "method.name=okdc_flowers.agreement:Agreement",
        "optim.epochs=1",
        "data.train_images=200",
        "-o",
        "runs/x/y",
    ]
    answer = run_okdc(site, house, "distill", *words)
    assert answer.returncode == 0, answer.stderr
    assert json.loads((house / "runs/x/y/result.json").read_text())["method_card"]["title"] == "Agreement"
