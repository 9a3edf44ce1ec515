"""export/README.md: its commands run as they stand there; what npm would download is compared instead."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runners import EXPORT, needs_packages, needs_runtime

from okdc.bundle import web

README = (EXPORT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.splitlines() for block in re.findall(r"^```\n(.*?)^```", README, re.S | re.M)]
COMMANDS = [line for block in BLOCKS for line in block if not line.startswith("BUNDLE")]
NPM = [line for line in COMMANDS if "npm install" in line]
BUILT = ("cmake ", "build/run ")  # by test_cpp_runner.py


def _skips(command: str) -> tuple[pytest.MarkDecorator, ...]:
    return (needs_packages,) if command.startswith("node ") else (needs_runtime,) if "--target web" in command else ()


HERE = [command for command in COMMANDS if command not in NPM and not command.startswith(BUILT)]


@pytest.mark.parametrize("command", [pytest.param(line, marks=_skips(line)) for line in HERE])
def test_a_command_of_the_readme_works(command: str, shipped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.parent, tmp_path / "run"))
    (tmp_path / "export").symlink_to(EXPORT)
    (tmp_path / "node_modules").symlink_to(_modules())
    words = {"BUNDLE": run / "bundle", "IMAGE ...": run / "bundle" / "sample" / "0.png", "RUN": run}
    said = re.sub("|".join(words), lambda found: str(words[found[0]]), command)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(said, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("--target web" in command) == any(tmp_path.rglob("ort-wasm-simd-threaded.wasm"))


def _modules() -> Path:
    """node_modules as a reader has it in the working directory."""
    return next((p / "node_modules" for p in EXPORT.parents if (p / "node_modules").is_dir()), EXPORT / "node_modules")


def test_each_client_has_its_command() -> None:
    starts = [
        "python export/python/run.py",
        "okdc verify",
        "okdc predict",
        "node export/node/run.mjs",
        "okdc export RUN",
        "okdc export BUNDLE",
    ]
    assert [[start for start in starts if line.startswith(start)] for line in HERE] == [[start] for start in starts]


def test_what_npm_is_told_is_what_the_programs_say() -> None:
    node, page = NPM
    assert page == web.INSTALL
    source = (EXPORT / "node" / "run.mjs").read_text(encoding="utf-8")
    assert node.removesuffix("export/node") + "$" in source
    assert json.loads((EXPORT / "node" / "package.json").read_text(encoding="utf-8"))["engines"] == {"node": ">=20"}
