"""The pairs: what stands beside what, and what their ratio means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.bench import okdc_step, plain_step
from okdc.bench.machine import settings_of
from okdc.bench.okdc_step import Work
from okdc.bench.pairs import Side
from okdc.data.workers import cores
from okdc.recipe.draft import load
from okdc.recipe.schema import Augment, Engine
from okdc.training.device import Settings

SIZE = 32  # of CIFAR's images, which the standard pairs are about
PIXELS = 2**26  # of a data set that a share is measured on: 50,000 images of that size, fewer of large ones
# What few photographs are trained with, and the policy, each beside the usual crop and mirroring.
VARIED = Augment(
    rotation=10.0, translate=0.1, zoom=(0.9, 1.1), brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, erasing=0.25
)
TRIVIAL = Augment(policy="trivial")
CLASSES = 10  # where nobody knows before the images are read

Ratio = Callable[[float, float], float]  # of the seconds per image of the first side and of the second


def times_as_fast(first: float, second: float) -> float:
    return second / first


def share(first: float, second: float) -> float:
    return first / second


def over_macs(macs: float, first: float, second: float) -> float:
    """Time over time, over MACs over MACs: 1 where a multiply-add costs the same in both."""
    return first / second / macs


def added_over_macs(macs: float, first: float, second: float) -> float:
    """The same of what the first has more than the second."""
    return (first / second - 1) / (macs - 1)


@dataclass(frozen=True)
class Pair:
    first: Side
    second: Side
    ratio: Ratio
    close: Callable[[], None] = lambda: None  # what it started


@dataclass(frozen=True)
class Scale:
    """The networks and sizes of the pairs that are always the same."""

    small: str = "resnet20"
    large: str = "resnet32"
    photo: str = "torchvision:mobilenet_v2"  # of images of photo_size, photo_batch at a time
    photo_size: int = 224
    photo_batch: int = 16
    batch_size: int = 128
    images: int = 50_000  # that the data path draws from: as many as CIFAR has
    workers: int = field(default_factory=cores)  # of the plain way


def work(settings: Settings, scale: Scale, recipe: str, network: str, students: int, *words: str) -> Work:
    """The step of a shipped recipe, with other students."""
    names = f"cohort.students={[network] * students}"
    batch = f"optim.batch_size={scale.batch_size}"
    method = ["method.name=baseline"] if students == 1 else []
    resolved = resolve(load([recipe, names, batch, *method, *words]), needs_data=False)
    return Work(resolved, classes_of(resolved), settings)


def photo(settings: Settings, scale: Scale) -> Work:
    """The step of one network on large images."""
    size, batch = scale.photo_size, scale.photo_batch
    words = (f"data.image_size={size}", f"data.shorter_side={size}", f"optim.batch_size={batch}")
    return work(settings, scale, "imagenet_resnet18", scale.photo, 1, *words)


def of_recipe(resolved: ResolvedRecipe, engine: Engine) -> Work:
    """The step of a recipe. Raises RecipeError for one that cannot be built, before anything is measured."""
    work = Work(resolved, classes_of(resolved), settings_of(engine, resolved.recipe.data.image_size))
    work.method()  # each side of a pair will build its own
    return work


def classes_of(resolved: ResolvedRecipe) -> int:
    return resolved.classes or CLASSES


def data_path(settings: Settings, scale: Scale, keys: Augment | None = None) -> Pair:
    dataset = okdc_step.random_images(scale.images, SIZE, CLASSES)
    pixels, labels = dataset.images.numpy(), dataset.labels.tolist()
    moments = okdc_step.MEAN, okdc_step.STD
    transform = plain_step.varied(keys, SIZE, *moments) if keys else plain_step.usual(SIZE, *moments)
    images = plain_step.PlainImages(pixels, labels, transform)
    # Varied images take several times as long there: of smaller batches a stretch is as long as of the others.
    size = max(1, scale.batch_size // 8) if keys else scale.batch_size
    batches = plain_step.PlainBatches(images, size, scale.workers, settings.torch_device)
    second = Side("DataLoader", batches.next, size, batches.batches, batches.begin)
    return Pair(okdc_step.data_path(dataset, scale.batch_size, settings, keys), second, times_as_fast, batches.close)


def data_share(settings: Settings, scale: Scale, baseline: Work, keys: Augment | None = None) -> Pair:
    count = min(scale.images, PIXELS // baseline.size**2)
    dataset = okdc_step.random_images(count, baseline.size, CLASSES)
    first = okdc_step.data_path(dataset, baseline.batch_size, settings, keys)
    return Pair(first, baseline.training("baseline"), share)


def beside_plain(work: Work) -> Pair:
    return Pair(work.training("okdc"), work.plain(), times_as_fast)


def over_baseline(work: Callable[[int], Work]) -> Pair:
    two, one = work(2), work(1)
    return Pair(two.training("okdc"), one.training("baseline"), partial(over_macs, two.macs / one.macs))


def further(work: Callable[[int], Work]) -> Pair:
    three, two = work(3), work(2)
    ratio = partial(added_over_macs, three.macs / two.macs)
    return Pair(three.training("three students"), two.training("two students"), ratio)


def evaluation(work: Work) -> Pair:
    training, method = work.trained("training")
    return Pair(work.evaluation(method), training, times_as_fast)


def compiled(work: Work) -> Pair:
    eager = replace(work, settings=replace(work.settings, compile="off"))
    return Pair(work.training("compiled"), eager.training("eager"), times_as_fast)


def export(work: Work) -> Pair:
    student = work.method().cohort.backbone(0)
    first = partial(okdc_step.export, student, student.architecture, work.size, work.classes)
    return Pair(
        Side("okdc", first, units=1),
        Side("torch.onnx", partial(plain_step.to_onnx, student, work.size), units=1),
        times_as_fast,
    )
