"""Faults at every file operation: okdc's own files survive a kill, a full or failing disk and a flipped bit, or say so.

    python tests/faults.py              every operation of every scenario: the figures of README.md in this folder
    python tests/faults.py --sample 5   five places of each kind

A fault is *silent* if okdc neither raises an OkdcError nor gives what it gives without the fault. The command prints
each silent fault and exits with 1 if there is any. `test_faults.py` samples the same scenarios.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import hashlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from asking import picture
from harness import Quiet, in_process, outcome, resume, start, uninterrupted
from making import write_json
from PIL import Image

import okdc
from okdc.assembly.resolve import resolve
from okdc.bundle import verify
from okdc.bundle.bundle import BundleDir
from okdc.cohort import Backbone
from okdc.data import cache
from okdc.data.listing import list_images
from okdc.deploy import onnx
from okdc.errors import OkdcError
from okdc.recipe import catalog
from okdc.recipe.draft import load
from okdc.runs.artefacts import StudentInfo
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

Kind = Literal["kill", "torn", "ENOSPC", "EIO", "short"]
KILLS: tuple[Kind, ...] = ("kill", "torn")  # before an operation; in the middle of a write
DISK: tuple[Kind, ...] = ("ENOSPC", "EIO", "short")  # an operation fails; a write fails after half of its bytes
CHANGES = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "truncate")


# ---------------------------------------------------------------------------------------------------------------------
# The injection


class Operations:
    """Counts the writing file operations below a folder, and spoils the one at `at`."""

    def __init__(self, folder: Path, kind: Kind | None = None, at: int | None = None) -> None:
        self.folder, self.kind, self.at = str(folder.resolve()), kind, at
        self.count = 0

    def below(self, path: Any, dir_fd: int | None = None) -> bool:
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        elif dir_fd is not None:
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / os.fsdecode(path)
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)  # noqa: PTH100  (links stay)

    def next(self, stream: Any = None, content: Any = None) -> None:
        """One operation. A write brings its stream and content, of which half may come to the disk."""
        self.count += 1
        if self.count != self.at:
            return
        if content is not None and self.kind in ("torn", "short"):
            stream.write(content[: len(content) // 2])
            stream.flush()
        if self.kind in KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.EIO if self.kind == "EIO" else errno.ENOSPC
        raise OSError(number, os.strerror(number))


class _Stream:
    """An open file whose writes are operations."""

    def __init__(self, stream: Any, operations: Operations) -> None:
        self._stream, self._operations = stream, operations

    def write(self, content: Any) -> int:
        self._operations.next(self._stream, content)
        return int(self._stream.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Stream:
        self._stream.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stream)


@contextlib.contextmanager
def injected(operations: Operations) -> Iterator[None]:
    """The file operations of this process pass through `operations`."""
    real_open, real = io.open, {name: getattr(os, name) for name in (*CHANGES, "fsync")}

    def opened(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        writes = any(letter in mode for letter in "wax+") and operations.below(file)
        if writes:
            operations.next()
        stream = real_open(file, mode, *more, **named)
        return _Stream(stream, operations) if writes else stream

    def counted(name: str) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **named: Any) -> Any:
            if operations.below(path, named.get("dir_fd") or named.get("src_dir_fd")):
                operations.next()
            return real[name](path, *more, **named)

        return call

    io.open = builtins.open = opened
    for name in real:
        setattr(os, name, counted(name))
    try:
        yield
    finally:
        io.open = builtins.open = real_open
        for name, call in real.items():
            setattr(os, name, call)


# ---------------------------------------------------------------------------------------------------------------------
# The scenarios: each acts in the working directory, and then says what is wrong or gives None


@dataclass(frozen=True)
class Scenario:
    """What okdc does with its files, and how to tell that nothing of it went wrong in silence."""

    name: str
    act: Callable[[], None]  # raises what okdc raises
    problem: Callable[[], str | None]  # after the fault: continues or repeats, and compares
    prepare: Callable[[], None] = lambda: None  # what is there before


def _train() -> None:
    if RunDir.is_at(Path("run")):
        resume(Path("run"))
    else:
        start(out=Path("run"))


def _training_problem() -> str | None:
    """The run is continued, or begun again in the same place, and ends as one that nothing has disturbed."""
    _train()
    return None if outcome(RunDir(Path("run"))) == uninterrupted() else "another outcome"


def _export() -> None:
    """The ONNX file is made once a process: that takes seconds, and is no operation of a file."""
    real = onnx.to_onnx

    def once(network: Backbone, info: StudentInfo) -> bytes:
        if info.weights_sha256 not in _files:
            _files[info.weights_sha256] = real(network, info)
        return _files[info.weights_sha256]

    with mock.patch.object(onnx, "to_onnx", once):
        okdc.export("run", "bundle")


def _finish_and_export() -> None:
    shutil.copytree(_finished(), "run")
    shutil.copytree(_finished() / "bundle", "bundle")


def _export_problem() -> str | None:
    """A bundle is in its place, the earlier or the new one; the next export succeeds and leaves nothing beside it."""
    for _ in range(2):
        verify.check(verify.verify(Path("bundle"), None, Quiet()))
        _export()
    left = sorted(path.name for path in Path().iterdir() if path.name not in ("run", "bundle", "tiny.toml"))
    return f"left behind: {', '.join(left)}" if left else None


def _photographs() -> None:
    for k in range(6):
        path = Path("photos", "ab"[k % 2], f"{k}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(k)).save(path)
    os.environ["OKDC_CACHE"] = str(Path("cache").absolute())


def _decode() -> None:
    cache.load(list_images(Path("photos")), 8)


def _cache_problem() -> str | None:
    fresh = _pixels("fresh")
    for _ in range(2):  # built again, or read
        if not np.array_equal(_pixels("cache"), fresh):
            return "other pixels"
    left = [path.name for path in Path("cache/images").iterdir() if path.name.startswith((".new", ".lock"))]
    return f"left behind: {', '.join(left)}" if left else None


def _pixels(folder: str) -> Any:
    os.environ["OKDC_CACHE"] = str(Path(folder).absolute())
    return cache.load(list_images(Path("photos")), 8).pixels


SCENARIOS = {
    "training": Scenario("training", _train, _training_problem),
    "export": Scenario("export", _export, _export_problem, _finish_and_export),
    "cache": Scenario("cache", _decode, _cache_problem, _photographs),
}
_made: dict[str, Path] = {}
_files: dict[str, bytes] = {}


def _finished() -> Path:
    """A complete run with its bundle, trained once a process."""
    if "run" not in _made:
        folder = Path(tempfile.mkdtemp())
        with contextlib.chdir(folder):
            run = start(out=Path("run"))
            okdc.export(run.path)
        _made["run"] = folder / "run"
    return _made["run"]


def operations_of(scenario: Scenario) -> int:
    """How many operations the scenario has."""
    with in_folder(scenario):
        operations = Operations(Path())
        with injected(operations):
            scenario.act()
    return operations.count


def spoil(scenario: Scenario, kind: Kind, at: int) -> str | None:
    """Let the operation at `at` go wrong, and return what then is wrong in silence, or None."""
    with in_folder(scenario):
        if kind in KILLS:
            code = in_process(act_in_child, (scenario.name, kind, at, str(Path.cwd())))
            if code not in (0, -signal.SIGKILL):
                return f"exit code {code}"
        else:
            with injected(Operations(Path(), kind, at)), contextlib.suppress(OkdcError):
                scenario.act()
        try:
            return scenario.problem()
        except OkdcError as error:
            return f"afterwards: {error.message}"


def act_in_child(name: str, kind: Kind, at: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    with injected(Operations(Path(), kind, at)):
        SCENARIOS[name].act()


@contextlib.contextmanager
def in_folder(scenario: Scenario) -> Iterator[None]:
    """A prepared folder of its own."""
    kept = os.environ.get("OKDC_CACHE")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            scenario.prepare()
            yield
        finally:
            os.environ.pop("OKDC_CACHE", None)
            if kept is not None:
                os.environ["OKDC_CACHE"] = kept


# ---------------------------------------------------------------------------------------------------------------------
# Flipped bits


def flip(path: Path, numbers: random.Random) -> str:
    """Flip one bit of a file; returns which."""
    content = bytearray(path.read_bytes())
    place, bit = numbers.randrange(len(content)), numbers.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path} byte {place} bit {bit}"


def files_of_run() -> list[str]:
    """All files of a complete run, the bundle's apart."""
    run = _finished()
    paths = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    return [str(path) for path in paths if path.parts[0] != "bundle" and path.name != ".lock"]


def files_of_bundle() -> list[str]:
    bundle = _finished() / "bundle"
    return [str(path.relative_to(bundle)) for path in sorted(bundle.rglob("*")) if path.is_file()]


def believed(run: Path) -> dict[str, Any]:
    """All that okdc takes from the files of a complete run."""
    opened = okdc.Run(run)
    return {
        "recipe": opened.recipe.recipe.tables(),
        "info": opened.folder.read_info().to_json(),
        "result": opened.result.to_json(),
        "log": opened.log,
        "predictions": [array.tobytes() for array in vars(opened.predictions.test).values()],
        "students": [
            {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in opened.student(index).weights().items()}
            for index in range(len(opened.students))
        ],
        "evaluation": okdc.evaluate(run),
    }


def flip_in_run(name: str, seed: int) -> str | None:
    """Flip a bit of a complete run's file. Silent, if okdc then believes something else."""
    return _flip_in(_finished(), name, seed, believed)


def flip_in_checkpoint(name: str, seed: int) -> str | None:
    """Flip a bit in a run that was interrupted at its end. Silent, if it resumes to another outcome."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(_finished(), "run")
        Path("run/result.json").unlink()
        where = flip(Path("run", name), random.Random(seed))
        try:
            resume(Path("run"))
        except OkdcError:
            return None
        return None if outcome(RunDir(Path("run"))) == uninterrupted() else f"{where}: another outcome"


def flip_in_bundle(name: str, seed: int) -> str | None:
    """Flip a bit of a bundle's file. Silent, if `okdc verify` passes it and its facts or answers are others."""
    return _flip_in(_finished() / "bundle", name, seed, facts_of_bundle)


def _flip_in(source: Path, name: str, seed: int, facts: Callable[[Path], Any]) -> str | None:
    """Flip a bit of a file in a copy of a folder, and compare the facts before and after."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        copy = Path(shutil.copytree(source, source.name))
        if source.name not in _facts:
            _facts[source.name] = facts(copy)
        where = flip(copy / name, random.Random(seed))
        try:
            after = facts(copy)
        except OkdcError:
            return None
        return None if after == _facts[source.name] else f"{where}: other facts"


def facts_of_bundle(path: Path) -> dict[str, Any]:
    """What `okdc verify` proves, and what a client takes from a bundle."""
    report = verify.verify(path, None, Quiet())
    verify.check(report)
    bundle = BundleDir.open(path)
    pixels = np.stack([picture(k) for k in range(4)])
    return {
        "manifest": bundle.manifest.to_json(),
        "predictions": okdc.Bundle(path).predict(pixels),
        "files": {name: hashlib.sha256(bundle.content(name)).hexdigest() for name in bundle.manifest.files},
    }


def flip_in_cache(name: str, seed: int) -> str | None:
    """Flip a bit of the cache of decoded images. Silent, if other pixels come of it."""
    with in_folder(SCENARIOS["cache"]):
        before = _pixels("cache")
        (path,) = Path("cache").rglob(name)  # one file an entry
        where = flip(path, random.Random(seed))
        return None if np.array_equal(_pixels("cache"), before) else f"{where}: other pixels"


_facts: dict[str, Any] = {}  # by the folder's name, before any damage


FLIPS: dict[str, tuple[Callable[[str, int], str | None], Callable[[], list[str]]]] = {
    "a complete run": (flip_in_run, files_of_run),
    "an interrupted run": (flip_in_checkpoint, lambda: [name for name in files_of_run() if name != "result.json"]),
    "a bundle": (flip_in_bundle, files_of_bundle),
    "the cache": (flip_in_cache, lambda: ["images/*"]),
}


# ---------------------------------------------------------------------------------------------------------------------
# Files of strangers: each is refused in words or used, and nothing else happens

VALUES = (
    "nan", "-inf", "1e400", "-1", "0", "9" * 400, '""', '"\\u0000"', "[]", "{}", "true", "1979-05-27", "[" * 3000,
    '"' + "x" * 100_000 + '"', "[[1], [2]]", '"../../x"', '"a:b"', '"\\u202e"', "[nan, nan, nan]",
)  # fmt: skip


def hostile_recipe(seed: int) -> str | None:
    """A shipped recipe with lines of it changed. Wrong, if reading it raises anything but an OkdcError."""
    numbers = random.Random(seed)
    name, path = numbers.choice(sorted(catalog.recipes().items()))
    lines = path.read_bytes().splitlines()
    for _ in range(numbers.randint(1, 3)):
        place = numbers.randrange(len(lines))
        line, value = lines[place], numbers.choice(VALUES).encode()
        lines[place] = numbers.choice(
            [
                line.partition(b"=")[0] + b"= " + value,
                line[: numbers.randint(0, len(line))],
                line + b"\n" + line,
                b"[" + b"a." * 2000 + b"a]\n" + line,
                bytes(numbers.randrange(256) for _ in range(8)),
                line.replace(b" = ", b"x = "),
                b"key" + value[:30] + b" = 1",
            ]
        )
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, "recipe.toml")
        changed.write_bytes(b"\n".join(lines))
        return _refused_or_used(f"{name}, seed {seed}", lambda: _read_recipe(changed))


def _read_recipe(path: Path) -> None:
    resolved = resolve(load([str(path)]), needs_data=False)
    path.write_text(resolved.recipe.text(), encoding="utf-8")
    if resolve(load([str(path)]), needs_data=False).recipe != resolved.recipe:
        raise AssertionError("its own text is another recipe")


def hostile_image(seed: int) -> str | None:
    """A picture in one of the formats with some bytes changed, given to a bundle. Wrong, as with a recipe."""
    numbers, buffer = random.Random(seed), io.BytesIO()
    kind = numbers.choice(["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "TGA", "ICO"])
    Image.fromarray(picture(seed % 9, 20, 24)).save(buffer, kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{kind.lower()}")
        path.write_bytes(changed_bytes(buffer.getvalue(), numbers))
        return _refused_or_used(f"{kind}, seed {seed}", lambda: okdc.Bundle(_finished() / "bundle").predict([path]))


def hostile_bundle(seed: int) -> str | None:
    """A bundle with a changed file whose hashes fit. Wrong, as with a recipe; in a process that may die of it."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = shutil.copytree(_finished() / "bundle", Path(folder, "bundle"))
        numbers = random.Random(seed)
        name = numbers.choice([name for name in files_of_bundle() if name != "manifest.json"])
        path = bundle / name
        path.write_bytes(changed_bytes(path.read_bytes(), numbers))
        content = path.read_bytes()
        manifest = read_json(bundle / "manifest.json")
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        write_json(bundle / "manifest.json", manifest)
        code = in_process(use_in_child, (str(bundle),))
        return None if code == 0 else f"{name}, seed {seed}: exit code {code}"


def use_in_child(folder: str) -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(OkdcError):
        facts_of_bundle(Path(folder))


def changed_bytes(content: bytes, numbers: random.Random) -> bytes:
    """Some bytes of a file replaced, cut off, repeated or set to one value."""
    start = numbers.randrange(len(content))
    stop = min(len(content), start + numbers.choice([1, 2, 8, 200]))
    new = numbers.choice(
        [b"", bytes(stop - start), b"\xff" * (stop - start), content[start:stop] * 2, numbers.randbytes(4)]
    )
    return (
        content[:start] + (new if numbers.random() < 0.8 else b"") + (content[stop:] if numbers.random() < 0.8 else b"")
    )


def _refused_or_used(where: str, use: Callable[[], object]) -> str | None:
    try:
        use()
    except OkdcError as error:
        return None if len(error.message) < 2000 and len(error.details) < 2000 else f"{where}: too long an error"
    except Exception as error:  # what `okdc` would call a bug
        return f"{where}: {type(error).__name__}: {str(error)[:200]}"
    return None


STRANGERS: dict[str, tuple[Callable[[int], str | None], int]] = {
    "recipes": (hostile_recipe, 500),
    "hostile images": (hostile_image, 500),
    "hostile bundles": (hostile_bundle, 60),
}


# ---------------------------------------------------------------------------------------------------------------------
# The command


def places(count: int, most: int | None, numbers: random.Random) -> Sequence[int]:
    """The operations from 1 to `count`, or so many of them."""
    every = range(1, count + 1)
    return every if most is None or most >= count else sorted(numbers.sample(every, most))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, metavar="N", help="places of each kind, in place of all")
    parser.add_argument("--flips", type=int, default=40, metavar="N", help="flipped bits in each file (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the bits")
    parser.add_argument("--only", metavar="TEXT", help="scenarios whose name has this text")
    options = parser.parse_args()
    numbers, tried, silent = random.Random(options.seed), Counter[str](), list[str]()
    torch.set_num_threads(1)
    for scenario in SCENARIOS.values():
        if options.only and options.only not in scenario.name:
            continue
        count = operations_of(scenario)
        print(f"{scenario.name}: {count} file operations", flush=True)  # noqa: T201
        for kind in (*KILLS, *DISK):
            for at in places(count, options.sample, numbers):
                tried["kills" if kind in KILLS else "disk faults"] += 1
                if problem := spoil(scenario, kind, at):
                    silent.append(f"{scenario.name}, {kind} at operation {at}: {problem}")
                    print(f"SILENT {silent[-1]}", flush=True)  # noqa: T201
    for title, (flipped, files) in FLIPS.items():
        if options.only and options.only not in title:
            continue
        for name in files():
            for k in range(min(options.sample or options.flips, options.flips)):
                tried["bit flips"] += 1
                if problem := flipped(name, options.seed + k):
                    silent.append(f"{title}: {problem}")
                    print(f"SILENT {silent[-1]}", flush=True)  # noqa: T201
        print(f"{title}: {tried['bit flips']} bits flipped so far", flush=True)  # noqa: T201
    for title, (tried_one, count) in STRANGERS.items():
        if options.only and options.only not in title:
            continue
        for k in range(min(options.sample or count, count)):
            tried[title] += 1
            if problem := tried_one(options.seed + k):
                silent.append(f"{title}: {problem}")
                print(f"WRONG {silent[-1]}", flush=True)  # noqa: T201
        print(f"{title}: {tried[title]} tried", flush=True)  # noqa: T201
    print(", ".join(f"{number:,} {what}" for what, number in tried.items()) + f"; silent or wrong: {len(silent)}")  # noqa: T201
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
