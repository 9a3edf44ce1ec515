"""Device, dtype, memory format, threads, workers: each choice with its reason.

A choice follows from facts that are the same at every start (devices, processor flags, recipe), never from a timing.
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from okdc.data.workers import cores, refuse_too_many
from okdc.distributed import ALONE, Ranks
from okdc.errors import DeviceError
from okdc.recipe.schema import Engine
from okdc.runs.artefacts import RunSettings
from okdc.runs.provenance import processor
from okdc.training import cards

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Settings:
    """The choices taken. `saved()` goes into run.json; `Engine(**saved)` takes them again."""

    device: str  # cpu, cuda or cuda:1
    dtype: str
    memory_format: str
    threads: int
    workers: int = 0
    compile: str = "off"  # "auto" until `okdc.training.compiling` has decided
    cuda_graph: str = "off"  # "auto" until `okdc.training.recording` has decided
    sync_batchnorm: bool = False
    reasons: tuple[str, ...] = ()
    may_fall_back: bool = False  # whether a step that cannot be compiled goes on without: nobody asked for it

    def saved(self) -> dict[str, str | int]:
        """The fields of [engine] in run.json."""
        return {name: value for name, value in asdict(self).items() if name not in ("may_fall_back", "reasons")}

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the maps: the type that autocast takes."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def torch_memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format

    @property
    def compiled(self) -> bool:
        assert self.compile != "auto"
        return self.compile == "on"

    def autocast(self) -> AbstractContextManager[None]:
        """The chosen type for the networks; weights, losses and optimiser stay float32."""
        return torch.autocast(self.torch_device.type, self.torch_dtype, enabled=self.dtype != "float32")


def choose(engine: Engine, image_size: int, deterministic: bool = False, ranks: Ranks = ALONE) -> Settings:
    """The settings that the recipe names, and a choice for those that it leaves to `auto`. Raises DeviceError for a
    device that this machine lacks.

    Worker processes and whether to compile are decided later, when the images and the length of the training are known.
    """
    device, reason = _device(engine.device, ranks)
    reasons = [f"device {device} ({reason})"]
    if device == "cpu" and engine.dtype == "float16":
        raise DeviceError(
            f"engine.dtype=float16 needs a GPU, and the device is cpu ({reason})",
            hint="leave the dtype to auto, or take bfloat16 or float32",
        )

    dtype, reason = _dtype(device, image_size) if engine.dtype == "auto" else (engine.dtype, "as asked")
    if emulates(device, dtype):
        reason += "; the GPU emulates it and is slow: float16 is what it has"
    reasons.append(f"dtype {dtype} ({reason})")
    if device == "cpu" and dtype == "bfloat16":  # okdc.kernels decides for each by the map that it gets
        reasons.append("depthwise convolutions that are slow in bfloat16, if there are any, in float32")

    layout, reason = _layout(device, dtype) if engine.memory_format == "auto" else (engine.memory_format, "as asked")
    reasons.append(f"memory format {layout} ({reason})")

    threads, reason = torch.get_num_threads(), "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else "cores"
    if engine.threads != "auto":
        threads, reason = engine.threads, "as asked"
    refuse_too_many("OMP_NUM_THREADS" if engine.threads == "auto" else "engine.threads", threads)
    reasons.append(f"threads {threads} ({reason})")
    workers = 0 if engine.workers == "auto" else engine.workers
    refuse_too_many("engine.workers", workers, processes=True)
    if deterministic and device != "cpu":
        reasons.append("deterministic CUDA kernels (slower)")
    if not ranks.alone:
        batchnorm = "all processes" if engine.sync_batchnorm else "each process's own images"
        reasons.append(f"{ranks.count} processes, batch normalisation over {batchnorm}")
    return Settings(
        device=device,
        dtype=dtype,
        memory_format=layout,
        threads=threads,
        workers=workers,
        compile=engine.compile,
        cuda_graph=engine.cuda_graph,
        sync_batchnorm=engine.sync_batchnorm,
        reasons=tuple(reasons),
    )


def with_workers(settings: Settings, asked: Literal["auto"] | int, streamed: bool, ranks: Ranks = ALONE) -> Settings:
    """The settings with the number of worker processes, which decode images in files while the loop trains.

    `asked` is what the recipe says; a run that goes on keeps its number. Resident images need no workers.
    """
    if not streamed:
        return settings
    workers, reason = settings.workers, "as asked"
    if asked == "auto":
        workers, reason = workers or max(1, cores() // ranks.here), "cores"
    return replace(settings, workers=workers, reasons=(*settings.reasons, f"workers {workers} ({reason})"))


def continued(recorded: RunSettings, ranks: Ranks = ALONE) -> Engine:
    """The choices that a run was started with. Any GPU will do where this machine has none of the recorded number.

    Several processes replay nothing, whoever began the run.
    """
    engine = Engine(**dict(recorded))
    if not ranks.alone:
        engine = engine.model_copy(update={"cuda_graph": "off"})
    number = torch.device(engine.device).index
    if number is None or (ranks.alone and number < cards.count()):
        return engine
    return engine.model_copy(update={"device": "cuda"})


def apply(settings: Settings, deterministic: bool) -> None:
    """Set the process up as chosen. The loop calls this once, before the first tensor of the training."""
    torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        keep_memory()
    if settings.cuda:
        if settings.torch_device.index is not None:
            torch.cuda.set_device(settings.torch_device)  # for its streams, and for code that names no GPU
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.allow_tf32 = settings.dtype != "float32"  # float32 keeps its 24 bits where it was chosen
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)


def keep_memory() -> bool:
    """Let glibc keep freed memory instead of handing it back to the system. False where there is no glibc.

    By default it hands back every block of megabytes and gets it again page by page, each zeroed. One thread's
    evaluation in bfloat16, batches of 500, without and with this: MobileNetV2 194-263 and 699-726 images/s, ResNet-20
    2,111-2,320 and 2,224-3,211. A training step of FFL with two ResNet-32 takes a tenth less; its peak of memory stays.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    threshold = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that old ones take
    return bool(threshold and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def emulates(device: str, dtype: str) -> bool:
    """Whether a GPU computes bfloat16 in float32, with casts around each operation."""
    return device != "cpu" and dtype == "bfloat16" and not cards.has_bfloat16(torch.device(device))


def _device(asked: str, ranks: Ranks) -> tuple[str, str]:
    """The device and the reason. Raises DeviceError for a GPU that was asked for and that no kernel runs on."""
    if asked == "cpu":
        return "cpu", "as asked"
    if ":" in asked and not ranks.alone:
        raise DeviceError(
            f"device {asked} was asked for: each of {ranks.count} processes takes the GPU of its own number",
            hint="--device cuda; CUDA_VISIBLE_DEVICES says which GPUs are counted",
        )
    devices = cards.count()
    plural = "s" if devices > 1 else ""
    if ranks.here > (devices or ranks.here):
        raise DeviceError(
            f"{ranks.here} processes were started here, torch finds {devices} CUDA device{plural}",
            hint=f"torchrun --nproc-per-node={devices}, or --device cpu",
        )
    if not devices:
        if asked == "auto":
            return "cpu", cards.missing()
        raise DeviceError(
            f"device {asked} was asked for: {cards.missing()}", hint="leave the device to auto, or take cpu"
        )
    device = "cuda" if asked == "auto" else asked
    card = torch.device(device) if ranks.alone else torch.device("cuda", ranks.local)
    if (card.index or 0) >= devices:
        raise DeviceError(
            f"device {asked} was asked for and torch finds {devices} CUDA device{plural}, numbered from 0",
            hint=f"--device cuda:{devices - 1}, or --device auto",
        )
    if reason := cards.unusable(card):
        if asked == "auto" and ranks.alone:  # of several processes the others may have taken theirs
            return "cpu", reason
        raise DeviceError(
            f"device {device} cannot be used: {reason}",
            hint="--device cpu, a GPU that is free, or a build of torch that has kernels for this one",
        )
    return device, "as asked" if asked != "auto" else torch.cuda.get_device_name(card)


def _layout(device: str, dtype: str) -> tuple[str, str]:
    # Steps in float32 on one thread, channels_last over contiguous: ResNet-20 1.3 times, MobileNetV2 1.9, WRN-16-2 and
    # DenseNet-40-12 1.4, ResNet-8 at 8 pixels 1.2; with AVX2 alone MobileNetV2 1.5, ResNet-8 at 8 pixels 1.2.
    if device == "cpu" and torch.backends.mkldnn.is_available():
        return "channels_last", "what oneDNN's convolutions want"
    if dtype != "float32":
        return "channels_last", f"what {dtype} convolutions want"
    return "contiguous", "no gain without bfloat16" if device != "cpu" else "no oneDNN"


def _dtype(device: str, image_size: int) -> tuple[str, str]:
    if device != "cpu":
        card = torch.device(device)
        if cards.has_bfloat16(card):
            return "bfloat16", "the GPU has it"
        if cards.has_float16(card):
            return "float16", "the GPU has no bfloat16"
        return "float32", "the GPU has no units for bfloat16 or float16"
    # ResNet-8 at 8 pixels, batch 32, two AVX512-BF16 cores, three runs each: 1,991 to 2,754 images/s in float32, 2,293
    # to 2,800 in bfloat16. A gain that does not show is not worth the digits it costs.
    if image_size < 16:
        return "float32", f"bfloat16 gains nothing on {image_size}×{image_size} images"
    flags = processor()[1]
    native = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return ("bfloat16", native[0]) if native else ("float32", "the processor has no bfloat16 instructions")
