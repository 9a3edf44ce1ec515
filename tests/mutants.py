"""Do the tests notice? Faults are planted in a copy of okdc, one at a time, and each must fail the tests named for it.

    python tests/mutants.py                      every mutant of mutants_table.py, a line each, and the survivors
    python tests/mutants.py parity 'cohort/*'    those whose name holds the word, or matches the pattern
    python tests/mutants.py --list               their names, files and tests; nothing is run
    python tests/mutants.py -j 2                 two at a time

First every test that is named runs on the copy as it is. Exit code 0: every mutant was killed; 1: one survived, broke
what it should not, or has a test that fails without it; 2: nothing was run. The mutants gpu/* are tried on
tests/fakegpu, and left out where it cannot be built.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import fakegpu
from mutants_table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("okdc", "tests", "recipes", "export", "pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "node_modules")
SECONDS = 300  # after which a mutant counts as killed: its tests take some ten
KILLED, SURVIVED, BROKEN = "killed", "SURVIVED", "BROKEN"
FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<test>\S+?::\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    word: str
    reason: str
    seconds: float


# ---------------------------------------------------------------------------------------------------------------------
# The table


def problems(mutant: Mutant, root: Path = ROOT) -> list[str]:
    """The reasons why a mutant can no longer be planted: a place that changed, a test that is gone."""
    path = root / mutant.file
    if not path.is_file():
        return [f"{mutant.name}: there is no {mutant.file}"]
    source, lines = path.read_text(encoding="utf-8"), []
    if (count := source.count(mutant.old)) != 1:
        lines.append(f"{mutant.name}: {mutant.old!r} occurs {count} times in {mutant.file}, expected once")
    else:
        try:
            ast.parse(mutant.planted(source))
        except SyntaxError:
            lines.append(f"{mutant.name}: the mutant is no Python")
    for test in mutant.tests:
        file, _, function = test.partition("::")
        there = (root / file).is_file() and (not function or _defines(root / file, function.partition("[")[0]))
        if not there:
            lines.append(f"{mutant.name}: there is no test {test}")
    return lines


def _defines(path: Path, function: str) -> bool:
    return re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def chosen(patterns: Sequence[str]) -> list[Mutant]:
    """The mutants whose name matches one of the patterns, or holds it; without a pattern all of them."""
    return [
        mutant
        for mutant in MUTANTS
        if not patterns or any(pattern in mutant.name or fnmatch.fnmatch(mutant.name, pattern) for pattern in patterns)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Running them


class Copy:
    """A copy of the source, in which one process at a time runs tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=LEFT_OUT)
            elif source.is_file():
                shutil.copy(source, folder / name)
        self.environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        code = "import okdc; print(okdc.__file__)"
        imported = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=self.environment, capture_output=True, text=True, check=True
        )
        assert Path(imported.stdout.strip()).is_relative_to(folder), imported.stdout

    def run(self, tests: Sequence[str], *options: str, gpu: bool = False, seconds: float = SECONDS) -> tuple[int, str]:
        """pytest's exit code and output, where `gpu` on the device that is not there. Raises TimeoutExpired."""
        own = f"--basetemp={self.folder}-tmp"  # pytest would tidy up after other processes otherwise
        device = [sys.executable, "tests/fakegpu"] if gpu else []
        command = [*device, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", own, *options, *tests]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        return done.returncode, done.stdout + done.stderr

    def judge(self, mutant: Mutant) -> Outcome:
        """Plant a mutant, run its tests, and put the source back."""
        began, path = time.perf_counter(), self.folder / mutant.file
        source = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutant.planted(source))
            code, said = self.run(mutant.tests, "-x", gpu=mutant.gpu)
            word, reason = _judged(code, said)
        except subprocess.TimeoutExpired:
            word, reason = KILLED, f"its tests did not end within {SECONDS} s"
        finally:
            self._write(path, source)
        return Outcome(mutant, word, reason, time.perf_counter() - began)

    def _write(self, path: Path, source: str) -> None:
        """Python takes a compiled file of the same second and size for the source's own."""
        path.write_text(source, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()


def _judged(code: int, said: str) -> tuple[str, str]:
    if code == 0:
        return SURVIVED, "every test passed"
    match = FAILED.search(said)
    if code == 1 and match:
        return KILLED, match["test"]
    return BROKEN, f"pytest ended with {code}: {said.strip().splitlines()[-1] if said.strip() else 'nothing said'}"


def _is_of(case: str, test: str) -> bool:
    """Whether a case is the test, one of its parameters, or in its file."""
    return case == test or case.startswith((f"{test}[", f"{test}::"))


def failing(copy: Copy, tests: Sequence[str], gpu: bool = False) -> list[str]:
    """The tests that fail without any mutant; each runs once, whatever the number of its mutants.

    Raises RuntimeError where pytest runs none of them.
    """
    if not tests:
        return []
    code, said = copy.run(tests, gpu=gpu, seconds=3600)
    failed = sorted({match["test"] for match in FAILED.finditer(said)})
    if code and not failed:
        raise RuntimeError(f"pytest ended with {code} without any mutant: {said[-2000:]}")
    return failed


def run(mutants: Sequence[Mutant], at_once: int) -> list[Outcome]:
    """Every mutant in turn, each line printed when it is known. Raises RuntimeError as `failing`."""
    tests = sorted({test for mutant in mutants if not mutant.gpu for test in mutant.tests})
    gpu_tests = sorted({test for mutant in mutants if mutant.gpu for test in mutant.tests})
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(at_once) as pool:
        copies = [Copy(Path(folder, str(i))) for i in range(at_once)]
        parts = [tests[i::at_once] for i in range(at_once)]
        failed = [test for part in pool.map(failing, copies, parts) for test in part]
        failed += failing(copies[0], gpu_tests, gpu=True)
        seconds = time.perf_counter() - began
        named = len(tests) + len(gpu_tests)
        print(f"without a mutant: {named} tests named, {len(failed)} cases of them fail  {seconds:.0f} s", flush=True)
        free: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            free.put(copy)

        def judged(mutant: Mutant) -> Outcome:
            if without := [case for case in failed if any(_is_of(case, test) for test in mutant.tests)]:
                outcome = Outcome(mutant, BROKEN, f"fails without it: {without[0]}", 0.0)
            else:
                copy = free.get()
                try:
                    outcome = copy.judge(mutant)
                finally:
                    free.put(copy)
            print(f"{outcome.word:8}  {mutant.name}  {outcome.reason}  {outcome.seconds:.1f} s", flush=True)
            return outcome

        return list(pool.map(judged, mutants))


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="NAME", help="a part of a mutant's name, or a pattern of it")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="mutants at once, each in a copy of its own")
    options = parser.parse_args(words)
    mutants = chosen(options.patterns)
    wrong = [line for mutant in mutants for line in problems(mutant)]
    if wrong or not mutants:
        print(*wrong or [f"no mutant is called {' or '.join(options.patterns)}"], sep="\n", file=sys.stderr)
        return 2
    if options.list:
        for mutant in mutants:
            print(mutant.name, mutant.file, *mutant.tests)
        return 0
    if (reason := fakegpu.missing()) and any(mutant.gpu for mutant in mutants):
        print(f"not tried: {', '.join(mutant.name for mutant in mutants if mutant.gpu)} ({reason})")
        mutants = [mutant for mutant in mutants if not mutant.gpu]
    # A shell's background job ignores Ctrl-C, and so would its children: tests that send it would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.perf_counter()
    try:
        outcomes = run(mutants, max(1, options.j))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    left = [outcome for outcome in outcomes if outcome.word != KILLED]
    minutes = (time.perf_counter() - began) / 60
    print(f"{len(outcomes)} planted, {len(outcomes) - len(left)} killed, {len(left)} left, {minutes:.1f} minutes")
    for outcome in left:
        print(f"  {outcome.word} {outcome.mutant.name}: {outcome.mutant.file}, {', '.join(outcome.mutant.tests)}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
