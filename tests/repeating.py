"""Trains runs of a committed log again, from the study that ships, and says whether their weights are the same.

python tests/repeating.py few_digits 3-a-class/fefr/seed0 30-a-class/baseline/seed9
python tests/repeating.py few_recipes 100-a-class/fefr/seed0 data.name=folder data.root=PHOTOGRAPHS

A CPU gives the same weights for the same recipe, versions, processor and number of threads. Where one of these differs
the rounding differs, and with it every weight: the command then says what differs, and both accuracies. Exits 1 where
weights differ although nothing of that does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import okdc
from okdc.recipe import catalog
from okdc.runs.run import RunDir


def main(study: str, words: list[str]) -> int:
    log = json.loads((catalog.folder("recipes") / "results" / f"{study}.json").read_text(encoding="utf-8"))
    recorded = {each["run"]: each for each in log["runs"]}
    names, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if not names or (unknown := [name for name in names if name not in recorded]):
        print(f"expected runs such as {', '.join(list(recorded)[:3])}; found {unknown if names else 'none'}")
        return 2
    unexplained = 0
    with tempfile.TemporaryDirectory() as folder:
        table = okdc.study(study, *overrides, out=folder, only=names)
        repeated = {each["run"]: each for each in table["runs"]}
        for name in names:
            then, now = recorded[name], repeated[name]
            if then["weights_sha256"] == now["weights_sha256"]:
                print(f"{name}: the same weights, {now['weights_sha256'][:12]}")
                continue
            differing = differences(log["made_by"], made_by(Path(folder) / name))
            unexplained += not differing
            print(
                f"{name}: other weights, {then['top1_pct']:.2f} % then and {now['top1_pct']:.2f} % now; "
                + (f"what differs: {', '.join(differing)}" if differing else "nothing else differs")
            )
    return 1 if unexplained else 0


def made_by(run: Path) -> dict[str, Any]:
    info = RunDir(run).read_info()
    versions = {f"version of {name}": version for name, version in info.versions.items() if name != "okdc"}
    return versions | {"processor": info.processor, "threads": info.settings.threads, "dtype": info.settings.dtype}


def differences(makers: list[dict[str, Any]], now: dict[str, Any]) -> list[str]:
    """What is another than in each of the machines that a log names: `torch 2.14.1 then, 2.15.0 now`."""
    lines = []
    for key, value in now.items():
        name = key.removeprefix("version of ")
        then = {
            str(maker["versions"].get(name) if name != key else maker["settings"].get(key, maker.get(key)))
            for maker in makers
        }
        if str(value) not in then:
            lines.append(f"{name} {' or '.join(sorted(then))} then, {value} now")
    return lines


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
