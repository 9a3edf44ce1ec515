"""Takes networks that nobody wrote for okdc the whole way: a recipe, a training, a bundle, its verification.

python tests/any_network.py                        # every factory of networks/
python tests/any_network.py 'networks.norms:*'     # names, or patterns of names
python tests/any_network.py --timm --int8 -j 2     # sixty of timm too, with int8 and float16 models

A network goes to the end, or an error of okdc's own refuses it before the first step. Whatever else happens, or differs
from networks/table.py, makes the exit code 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from networks import table
from networks.table import Network

import okdc
from okdc.bundle import layout
from okdc.bundle.artefacts import Parity, Profile
from okdc.errors import OkdcError, one_line
from okdc.progress import Progress

CARRIED, REFUSED, LATE, CRASHED = "carried", "refused", "REFUSED AFTER", "CRASHED"
PRECISIONS = {"int8": "int8", "float16": "fp16"}  # a model, and the option of okdc.export that makes it


@dataclass
class Row:
    """What became of one network."""

    network: Network
    outcome: str = CRASHED
    seconds: float = 0.0
    step: str = "recipe"  # the last that was begun
    error: str = ""
    hint: str = ""
    macs: str = ""
    agreement: dict[str, str] = field(default_factory=dict)  # by precision: percent, or why there is no model

    @property
    def as_expected(self) -> bool:
        return self.outcome == self.network.expected

    def __str__(self) -> str:
        words = [f"{self.network.name:<48} {self.outcome:<13} {self.seconds:5.1f} s"]
        words += [f"{self.macs:>15} MACs"] if self.macs else []
        words += [f"{precision} {value}" for precision, value in self.agreement.items()]
        line = "  ".join(words)
        if self.error:
            line += f"\n    {self.step}: {self.error}" + (f"\n    hint: {self.hint}" if self.hint else "")
        if not self.as_expected:
            reason = f": {self.network.reason}" if self.network.reason else ""
            line += f"\n    EXPECTED {self.network.expected}{reason}"
        return line


class Watching(Progress):
    """Calls `began` when the first step is about to be taken."""

    def __init__(self, began: Callable[[], None]) -> None:
        self.began = began

    @contextmanager
    def training(self) -> Iterator[Callable[[int, int, str], None]]:
        self.began()
        yield lambda *_: None


def carry(network: Network, folder: Path, method: str = "dml", precisions: Sequence[str] = ()) -> Row:
    """Train two students of the network, export the better one into `folder` and verify the bundle."""
    row, start = Row(network), time.perf_counter()
    try:
        _carry(row, folder, method, precisions)
        row.outcome = CARRIED
    except OkdcError as error:
        row.outcome = REFUSED if row.step in ("recipe", "before the first step") else LATE
        message = error.details[0] if error.kind == "recipe" and error.details else error.message  # its first problem
        row.error, row.hint = f"error[{error.kind}]: {message}", error.hint
    except Exception as error:
        row.error = one_line(error)
    row.seconds = time.perf_counter() - start
    return row


def _carry(row: Row, folder: Path, method: str, precisions: Sequence[str]) -> None:
    recipe = okdc.load_recipe(None, **tables(row.network, method))
    row.step = "before the first step"

    def begin() -> None:
        row.step = "training"

    run = okdc.distill(recipe, folder / "run", progress=Watching(begin))
    row.step = "export"
    bundle = okdc.export(run)
    row.step = "verify"
    bundle.verify()
    costs = bundle.folder.read(layout.PROFILE, Profile)
    row.macs = f"{'≥ ' if costs.lower_bound else ''}{costs.macs:,}"
    for precision in precisions:
        row.step = precision
        row.agreement[precision] = _agreement(run, folder / precision, precision)


def tables(network: Network, method: str = "dml") -> dict[str, object]:
    """A recipe of four steps over a few of the digits."""
    return {
        "data": {"name": "networks.images:few_digits", "image_size": network.size},
        "augment": {"padding": 1, "flip": False},
        "cohort": {"students": [network.name, network.name], "share": "none"}
        | ({} if network.output is None else {"output": network.output}),
        "method": {"name": method},
        "optim": {"epochs": 1, "batch_size": 16, "lr": 0.01},
        "engine": {"device": "cpu", "dtype": "float32", "threads": 1, "compile": "off"},
    }


def _agreement(run: okdc.Run, out: Path, precision: str) -> str:
    """How many predictions the reduced model shares with the float32 one, or why the gate keeps it out.

    Raises OkdcError for any other reason than that gate.
    """
    try:
        okdc.export(run, out, **{PRECISIONS[precision]: True})  # type: ignore[arg-type]
    except OkdcError as error:
        if error.kind != precision:
            raise
        return f"without: {error.message}"
    report = getattr(okdc.Bundle(out).folder.read(layout.PARITY, Parity), precision)
    return f"{report.agreement_pct:.1f} %"


# ---------------------------------------------------------------------------------------------------------------------
# The command


def carry_alone(network: Network, method: str, precisions: Sequence[str]) -> Row:
    """`carry` in a folder of its own, which is gone afterwards."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and the libraries' own
        os.environ |= {"OKDC_CACHE": f"{folder}/cache", "OKDC_STATE": f"{folder}/state"}
        return carry(network, Path(folder), method, precisions)


def rows(networks: Sequence[Network], method: str, precisions: Sequence[str], jobs: int) -> Iterator[Row]:
    """One row a network, in order."""
    if jobs == 1:
        yield from (carry_alone(network, method, precisions) for network in networks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(carry_alone, network, method, precisions) for network in networks]
        for network, future in zip(networks, futures, strict=True):
            yield _row(network, future)


def _row(network: Network, future: Future[Row]) -> Row:
    try:
        return future.result()
    except BrokenProcessPool:
        return Row(network, error="a process died, here or at a network beside; -j 1 shows which")


def chosen(patterns: Sequence[str], timm: bool) -> list[Network]:
    """The networks of the table whose name, or its part behind the colon, matches one of the patterns; by default all.

    `timm` adds the sixty names of timm; a pattern that begins with timm: finds them in any case.
    """
    if not patterns:
        return [*table.FACTORIES, *(table.TIMM if timm else ())]
    every = (*table.FACTORIES, *table.TIMM)
    return [
        network
        for network in every
        if (timm and network in table.TIMM)
        or any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (network.name, network.name.split(":")[1]))
    ]


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="names or patterns; left out: all factories")
    parser.add_argument("--timm", action="store_true", help="sixty networks of timm too")
    parser.add_argument("--int8", action="store_true", help="make int8 and float16 models too, by the usual gates")
    parser.add_argument("--method", default="dml", help="the method of the recipe (default: dml)")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="networks at once (default: 1)")
    options = parser.parse_args()
    networks = chosen(options.names, options.timm)
    if not networks:
        parser.error(f"no network of networks/table.py is called {' or '.join(options.names)}")
    outcomes, wrong, seconds = Counter[str](), list[str](), 0.0
    for row in rows(networks, options.method, tuple(PRECISIONS) if options.int8 else (), options.jobs):
        print(row, flush=True)
        outcomes[row.outcome] += 1
        seconds += row.seconds
        if not row.as_expected:
            wrong.append(row.network.name)
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in (CARRIED, REFUSED, LATE, CRASHED))
    print(f"{len(networks)} networks: {counts}; {len(wrong)} not as networks/table.py expects; {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
