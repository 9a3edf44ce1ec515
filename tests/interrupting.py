"""Ctrl-C in every moment of a command's start: the command ends with 130 and one line, whatever was being done.

`python tests/interrupting.py` is the long form, of seven minutes: it tries moments all over the imports and the first
seconds of a training, with one, two and three signals, and prints how many ended otherwise, each by its name.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRAINING = ("distill", "optim.epochs=400", "data.train_images=64")
INTERRUPTED = re.compile(r"(.*\n)*interrupted(: SIGINT.*)?\n(\nhint: okdc resume .*\n)?")

# A process that signals itself as it looks for its n-th module: the same moment on every machine.
AT = """
import os, signal, sys
from okdc.__main__ import program

place, times = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]

class At:
    count = 0

    def find_spec(self, name, path=None, target=None):
        self.count += 1
        if place in (name, str(self.count)):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, At())
program()
"""

# A process that says when its handlers are set.
UP = "from okdc import signals; signals.own_process(); print(flush=True); from okdc.__main__ import program; program()"


@dataclass(frozen=True)
class Ended:
    code: int
    err: str

    @property
    def well(self) -> bool:
        """One line, and where a training had begun the command that continues it."""
        says_once = len(re.findall(r"^interrupted", self.err, re.MULTILINE)) == 1
        return self.code == 130 and says_once and bool(INTERRUPTED.fullmatch(self.err))


def at_import(module: str | int, times: int, words: Sequence[str]) -> Ended:
    """The command, which gets so many signals as it looks for a module, by its name or its number."""
    command = [sys.executable, "-c", AT, str(module), str(times), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stderr)


def after(seconds: float, times: int, words: Sequence[str]) -> Ended:
    """The command, which gets so many signals, a hundredth of a second apart, this long after its start."""
    with subprocess.Popen(
        [sys.executable, "-c", UP, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(seconds)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, err = process.communicate()
    return Ended(process.returncode, err)


def main() -> int:
    bad, tried = [], 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["OKDC_CACHE"] = str(Path(folder, "cache"))
        modules = ["numpy", "torch", "pydantic", "typer", *range(1, 2000, 100)]
        cases = [("import", place, times, at_import(place, times, TRAINING)) for place in modules for times in (1, 2)]
        cases += [
            ("after", i / 10, times, after(i / 10, times, TRAINING)) for i in range(0, 50, 2) for times in (1, 2, 3)
        ]
        for kind, place, times, ended in cases:
            tried += 1
            if not ended.well:
                bad.append(f"{kind} {place}, {times} signals: exit code {ended.code}\n{ended.err}")
    told = [*bad, f"{tried} moments of Ctrl-C, {len(bad)} ended otherwise than with 130 and one line"]
    sys.stdout.write("\n".join(told) + "\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
