"""A package outside okdc brings a method, a network and a data set by entry point, and goes the whole way with them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from asking import Answer

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
    small = "optim.epochs=2 optim.batch_size=30 data.image_size=16 data.name=flowers students=petalnet,petalnet"
    for answer in run_okdc(
        site,
        folder,
        f"distill method.name=agreement {small} -o runs/agreement",
        f"distill method.name=baseline {small} -o runs/baseline --no-export-check",
    ):
        assert answer.code == 0, answer.err
    return folder


# Commands one after the other in one process, which imports torch once; a line of its own ends what each has printed.
SEVERAL = """
import json, sys
from okdc.__main__ import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    for stream in (sys.stdout, sys.stderr):
        print(f"\\n=== {code}", file=stream, flush=True)
"""


def run_okdc(site: Path, folder: Path, *commands: str) -> list[Answer]:
    """The answers to commands in a process that finds the package."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OKDC_CACHE": str(folder / "cache")}
    typed = json.dumps([shlex.split(command) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, typed], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out, err = (re.split(r"\n=== (\d+)\n", printed) for printed in (done.stdout, done.stderr))
    assert len(out) == 2 * len(commands) + 1, done.stderr
    return [Answer(int(code), *both) for code, *both in zip(out[1::2], out[::2], err[::2], strict=False)]


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


def test_its_student_is_compared_profiled_exported_and_verified(site: Path, house: Path) -> None:
    compared, profiled, exported, evaluated = run_okdc(
        site,
        house,
        "compare runs --json",
        "profile runs/agreement --json",
        "export runs/agreement --onnx",
        "evaluate runs/agreement",
    )
    report = json.loads(compared.out)
    assert report["baseline"] == "baseline"
    assert {row["name"] for row in report["rows"]} == {"baseline", "agreement"}
    rows = json.loads(profiled.out)["rows"]
    assert [row["architecture"] for row in rows if row["kept"]] == ["petalnet"]
    assert exported.code == 0, exported.err
    assert evaluated.code == 0, evaluated.err
    bundle = house / "runs/agreement/bundle"
    card = (bundle / "README.md").read_text()
    assert "Trained with a peer, each pulled towards the mean prediction (Agreement; an example)." in card
    # In a process of its own. The images come from the package's code, which is not run on a bundle's word.
    (verified,) = run_okdc(site, house, f"verify {bundle}")
    assert verified.code == 0, verified.err


def test_its_names_are_suggested_its_keys_checked_and_its_module_is_a_name_too(site: Path, house: Path) -> None:
    misspelt, wrong, by_module = run_okdc(
        site,
        house,
        "distill method.name=agrement",
        "distill method.name=agreement method.weight=-1",
        "distill method.name=okdc_flowers.agreement:Agreement optim.epochs=1 data.train_images=200 -o runs/x/y",
    )
    assert misspelt.code == 2
    assert "agreement" in misspelt.err
    assert wrong.code == 2
    assert "method.weight" in wrong.err
    assert by_module.code == 0, by_module.err
    assert json.loads((house / "runs/x/y/result.json").read_text())["method_card"]["title"] == "Agreement"
