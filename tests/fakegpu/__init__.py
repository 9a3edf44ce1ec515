"""A CUDA device that is not there: a library preloaded under torch's CUDA build, for tests on a machine without a GPU.

environ(CC=75, NAME="Tesla T4")    the environment of a process that finds such a device
missing()                          why none can be built here, or nothing
present()                          whether this process runs on it
reset(); counts()                  launches, captures, copies and waits of this process
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fakegpu.counting import Counts, counts, present, reset

__all__ = ["Counts", "counts", "environ", "missing", "present", "reset"]

HERE = Path(__file__).parent
SOURCES = ("device.cpp", "stubs.py", "include/nv/target")
TORCH_LIBRARIES = ("c10_cuda", "torch_cuda", "torch_cuda_linalg", "torch_python", "caffe2_nvrtc")


@functools.cache
def missing() -> str:
    """Why the device cannot be built here, in a line; nothing where it can."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    if not (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return "this torch is no CUDA build"
    lacking = [tool for tool in ("g++", "nm") if shutil.which(tool) is None]
    return f"no {lacking[0]}" if lacking else ""


@functools.cache
def library() -> Path:
    """The shared library, built at the first call of all processes."""
    import torch

    packages = Path(torch.__file__).parents[1]
    name = hashlib.sha256(b"".join((HERE / source).read_bytes() for source in SOURCES) + torch.__version__.encode())
    folder = Path(tempfile.gettempdir()) / f"okdc-fakegpu-{os.getuid()}-{name.hexdigest()[:16]}"
    if folder.exists():
        return folder / "libcuda.so.1"
    with tempfile.TemporaryDirectory(dir=folder.parent) as name_of_place:
        place = Path(name_of_place)
        _build(packages, place)
        place.rename(folder)
        place.mkdir()
    return folder / "libcuda.so.1"


def _build(packages: Path, out: Path) -> None:
    libraries = [packages / "torch" / "lib" / f"lib{name}.so" for name in TORCH_LIBRARIES]
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", *(str(path) for path in libraries if path.exists())],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    prefixes = ("cuda", "__cuda", "cu", "nccl", "nvrtc", "nvshmem")
    names = {line.split()[-1].split("@")[0] for line in listed if line.strip() and " U " in line}
    (out / "undefined.txt").write_text("\n".join(sorted(n for n in names if n.startswith(prefixes))))
    include = [HERE / "include", packages / "triton/backends/nvidia/include", packages / "nvidia/cu13/include",
               packages / "nvidia/cudnn/include"]  # fmt: skip
    flags = ["-O1", "-fPIC", "-w", *(f"-I{path}" for path in include)]
    run = functools.partial(subprocess.run, check=True, cwd=out)
    run(["g++", "-std=c++17", *flags, "-c", str(HERE / "device.cpp"), "-o", "device.o"])
    run([sys.executable, str(HERE / "stubs.py"), "undefined.txt", "device.o", "stubs.c"])
    run(["gcc", *flags, "-c", "stubs.c", "-o", "stubs.o"])
    run(["g++", "-shared", "-o", "libcuda.so.1", "device.o", "stubs.o", "-ldl", "-Wl,-soname,libcuda.so.1"])
    (out / "libcuda.so").symlink_to("libcuda.so.1")


def environ(**settings: object) -> dict[str, str]:
    """The environment of a process that finds the device. Settings: CC, NAME, GB, COUNT, SMS, NOKERNEL, OLD_DRIVER."""
    path = library()
    return {
        **os.environ,
        "LD_PRELOAD": str(path),
        "TRITON_LIBCUDA_PATH": str(path.parent),
        **{f"FAKE_{name}": str(value) for name, value in settings.items()},
    }
