"""Builds the device for the torch that is installed, in ten seconds: with g++, from headers in torch's own wheels."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fakegpu import stubs

HERE = Path(__file__).parent
DEVICE = HERE / "device"
NAME = "libcuda.so.1"  # what Triton looks for
HEADERS = ("triton/backends/nvidia/include", "nvidia/cu13/include", "nvidia/cudnn/include")  # in this order
TORCH_LIBRARIES = ("c10_cuda", "torch_cuda", "torch_cuda_linalg", "torch_python", "caffe2_nvrtc")
FLAGS = ("-O1", "-fPIC", "-fvisibility=hidden")


@functools.cache
def missing() -> str:
    """Why the device cannot be built here, in a line; nothing where it can."""
    packages = _packages()
    if not (packages / "torch" / "lib" / "libtorch_cuda.so").exists():
        return "this torch is no CUDA build"
    if lacking := [folder for folder in HEADERS if not (packages / folder).is_dir()]:
        return f"no CUDA 13 headers: {lacking[0]}"
    lacking = [tool for tool in ("g++", "gcc", "nm") if shutil.which(tool) is None]
    return f"no {lacking[0]}" if lacking else ""


@functools.cache
def library() -> Path:
    """The shared library, built by the first process that asks for it. Raises CalledProcessError."""
    sources = [*sorted(path for path in DEVICE.rglob("*") if path.is_file()), HERE / "stubs.py", Path(__file__)]
    content = b"".join(path.read_bytes() for path in sources) + importlib.metadata.version("torch").encode()
    name = f"okdc-fakegpu-{os.getuid()}-{hashlib.sha256(content).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir(), name)
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            whole = Path(place, "whole")
            whole.mkdir()
            _build(whole)
            try:
                whole.rename(folder)
            except OSError:  # another process was faster
                assert folder.exists()
    assert folder.stat().st_uid == os.getuid(), f"{folder} is another user's"
    return folder / NAME


def _packages() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def _build(out: Path) -> None:
    packages = _packages()
    headers = [f"-I{DEVICE / 'include'}", *(f"-isystem{packages / folder}" for folder in HEADERS)]

    def compiled(path: Path) -> str:
        tool = ["g++", "-std=c++17", "-Wall"] if path.suffix == ".cpp" else ["gcc", "-w"]
        subprocess.run([*tool, *FLAGS, *headers, "-c", path, "-o", f"{path.stem}.o"], check=True, cwd=out)
        return f"{path.stem}.o"

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sorted(DEVICE.glob("*.cpp"))))
    libraries = [packages / "torch" / "lib" / f"lib{name}.so" for name in TORCH_LIBRARIES]
    needed = {name for name in _symbols("U", "-D", *(path for path in libraries if path.exists()))
              if name.startswith(stubs.PREFIXES)}  # fmt: skip
    defined = _symbols("T", *(out / name for name in objects))
    (out / "stubs.c").write_text(stubs.source(needed, defined))
    objects.append(compiled(out / "stubs.c"))
    subprocess.run(["g++", "-shared", "-o", NAME, *objects, "-ldl", f"-Wl,-soname,{NAME}"], check=True, cwd=out)
    (out / "libcuda.so").symlink_to(NAME)


def _symbols(kind: str, *words: str | Path) -> set[str]:
    """The names of one kind, U (needed) or T (defined), that `nm` lists."""
    listed = subprocess.run(["nm", *words], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listed.splitlines())
    return {row[-1].split("@")[0] for row in rows if len(row) > 1 and row[-2] == kind}
