"""From a resolved recipe to the objects it names: the only place that knows data, networks and methods together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from okdc import backbones, torch_errors
from okdc.assembly import teacher as teachers
from okdc.assembly import weights
from okdc.assembly.beginnings import Beginnings, Finetuned, finetuned
from okdc.assembly.resolve import ResolvedRecipe
from okdc.assembly.student import square
from okdc.assembly.teacher import Teacher
from okdc.assembly.weights import Loaded
from okdc.backbones import naming
from okdc.cohort import Cohort, count_params
from okdc.data import balance, datasets
from okdc.data.augmentation import Augmentation
from okdc.data.datasets import Dataset
from okdc.data.images import Progress
from okdc.data.source import Colour, Request
from okdc.errors import DataError, RecipeError, one_line
from okdc.methods import METHODS
from okdc.methods.base import Method, firsts
from okdc.progress import WARNING
from okdc.recipe.explain import refusal
from okdc.recipe.schema import TEACHER, Augment, CohortTable, Recipe
from okdc.runs.artefacts import Start
from okdc.seeds import seeded


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, of pixels scaled to 0..1."""

    mean: Colour
    std: Colour


@dataclass(frozen=True)
class Assembly:
    """A recipe's method, built around its cohort on the CPU."""

    method: Method
    teacher: Teacher | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """All that a training needs, built."""

    recipe: Recipe  # with mean, std and the hashes of the teacher and of the students' first weights written in
    dataset: Dataset
    method: Method
    normalisation: Normalisation
    notes: tuple[str, ...] = ()
    variant: str = ""
    teacher: dict[str, str] | None = None
    starts: tuple[Start | None, ...] = ()  # the trained weights of each student; None: random ones, as all without any
    finetuned: tuple[Finetuned, ...] = ()  # the students whose backbones do not learn as all else does

    @property
    def changes(self) -> list[int]:
        """The epochs from which on a step computes something else than before, in order: the first of all is one."""
        epochs, frozen = self.recipe.optim.epochs, self.recipe.optim.freeze_epochs
        return sorted({*self.method.first_epochs(epochs), *([frozen] if 0 < frozen < epochs else [])})

    @property
    def steps(self) -> int:
        """The steps of the whole training. A partial last batch of an epoch is none."""
        return len(self.dataset.train) // self.recipe.optim.batch_size * self.recipe.optim.epochs


def job(
    resolved: ResolvedRecipe,
    read: Callable[[], Dataset],
    check: Callable[[Cohort, int], None] | None = None,
    load: Callable[[ResolvedRecipe], Sequence[Loaded | None]] | None = None,
    begins: bool = True,
) -> Job:
    """Everything for one training, on the CPU. `read` brings the images, `check` is given cohort and number
    of classes, `load` brings the weights that the students start from, unless the training does not begin here: a
    checkpoint then has the students.

    The method is built before the images are read, so that a recipe that cannot be built costs nobody an hour of
    decoding; only where nobody knows the number of classes without the images is it built after them. It is checked as
    soon as it is built.

    Raises what `read`, `check` and `assemble` raise, and DataError or RecipeError where images and teacher do not go
    together.
    """

    beginnings = None
    if begins and resolved.recipe.cohort.weights is not None:
        beginnings = Beginnings((load or weights_of)(resolved))

    def built(classes: int) -> Assembly:
        assembly = assemble(resolved, classes, beginnings)
        if check:
            check(assembly.method.cohort, classes)
        return assembly

    classes = resolved.classes
    assembly = built(classes) if classes is not None else None
    dataset = read()
    if assembly is None:
        assembly = built(len(dataset.classes))
    elif classes != len(dataset.classes):
        raise DataError(f"expected {classes} classes of {resolved.recipe.data.name}, found {len(dataset.classes)}")
    if resolved.recipe.optim.class_weights == "balanced":
        assembly.method.class_weights = balance.class_weights(dataset.labels[dataset.train], len(dataset.classes))
    normalisation = normalisation_of(resolved.recipe, dataset)
    notes = list(dataset.notes)
    if teacher := assembly.teacher:
        if teacher.classes is not None:
            datasets.same_classes(teacher.classes, dataset, teacher.where)
        teachers.check_images(teacher, dataset.fingerprint, resolved.recipe.data.model_dump())
        teachers.renormalise(assembly.method, teacher, *normalisation)
        resolved = resolved.with_teacher(teacher.sha256)
        notes.append(teacher.note)
    starts: tuple[Start | None, ...] = ()
    if beginnings:
        notes += beginnings.settle(dataset.classes, twins=assembly.method.one_start)
        with torch.no_grad():
            assembly.method.before_first_step()
        notes += beginnings.check_images(dataset.fingerprint, resolved.recipe.data.model_dump())
        resolved, starts = resolved.with_weights(beginnings.sha256s), beginnings.recorded()
    made = Job(
        with_normalisation(resolved.recipe, normalisation),
        dataset,
        assembly.method,
        normalisation,
        (*notes, *assembly.notes, *_kept(resolved.recipe.cohort, assembly.method, len(dataset.val))),
        resolved.variant,
        teacher.facts if teacher else None,
        starts,
        _finetuned(resolved, assembly.method.cohort, len(dataset.classes)),
    )
    check_parts(resolved, made)
    return made


def check_parts(resolved: ResolvedRecipe, job: Job) -> None:
    """Raises RecipeError where a part of the method's training would not take place."""
    if problem := _untaken(job):
        raise refusal(resolved.place, [f"[method] {resolved.recipe.method['name']}: {problem}"])


def _untaken(job: Job) -> str:
    """What is wrong where a part of the method's training would not take place, or ""."""
    parts = job.method.parts
    whole, unit = (job.recipe.optim.epochs, "epochs") if job.method.by_epoch else (job.steps, "steps")
    if _each_gets_one(parts, whole):
        return ""
    enough = math.ceil(1 / min(end - start for start, end in itertools.pairwise((*parts, 1.0))))
    least = next((n for n in range(whole + 1, min(enough, 10_000)) if _each_gets_one(parts, n)), enough)
    return f"its training has {len(parts)} parts: expected at least {least:,} {unit}, found {whole:,}"


def _each_gets_one(parts: Sequence[float], whole: int) -> bool:
    """Whether each part of a training has one of its `whole` epochs or steps at least."""
    return all(first < following for first, following in itertools.pairwise(firsts((*parts, 1.0), whole)))


def named_to_keep(cohort: CohortTable, method: Method) -> int | None:
    """The student that `cohort.keep` names before any training; None: the leader where there is
    one, else what validation chooses. Of equally small ones it is the leader.
    """
    if cohort.keep == "smallest":
        sizes = [count_params(backbone) for backbone in method.cohort.backbones()]
        return min(range(len(sizes)), key=lambda k: (sizes[k], k != method.leader))
    return cohort.keep if isinstance(cohort.keep, int) else None


def _kept(cohort: CohortTable, method: Method, validation_images: int) -> Iterator[str]:
    """What `cohort.keep` and its like do not do here, although they seem to."""
    if method.leader is not None and named_to_keep(cohort, method) not in (None, method.leader):
        yield f"{WARNING}cohort.keep={cohort.keep} keeps a peer: cohort.keep={method.leader} is the leader"
    if not validation_images:
        yield "no validation images: the last epoch is kept"
        if cohort.keep_metric == "balanced":
            yield f"{WARNING}cohort.keep_metric='balanced' chooses on validation images, and there are none"


def _finetuned(resolved: ResolvedRecipe, cohort: Cohort, classes: int) -> tuple[Finetuned, ...]:
    """The students that start from trained weights, where their backbones do not learn as their heads do."""
    recipe = resolved.recipe
    if not recipe.optim.freeze_epochs and recipe.optim.backbone_lr == 1:
        return ()
    started = zip(cohort.backbones(), recipe.cohort.weights_sha256 or (), strict=True)
    return tuple(finetuned(student, classes, square(recipe.data.image_size)) for student, sha256 in started if sha256)


def weights_of(resolved: ResolvedRecipe) -> list[Loaded | None]:
    """The weights that each trained student starts from. Raises as `weights.load`."""
    return weights.load(resolved.recipe, len(resolved.architectures))


# ---------------------------------------------------------------------------------------------------------------------
# Networks and method


def assemble(resolved: ResolvedRecipe, classes: int, beginnings: Beginnings | None = None) -> Assembly:
    """The recipe's method for so many classes, and the teacher that it learns from, if it has one. Without
    `beginnings` all weights are random.

    Raises RecipeError for networks or a method that cannot be built; as `teachers.load` and RunError for a teacher that
    is missing, damaged, of another image size or not the one of the recipe.
    """
    data, table = resolved.recipe.data, resolved.recipe.method
    images, teacher = square(data.image_size), None
    if resolved.has_teacher:
        teacher = teachers.load(table["teacher"], table.get("weights"), classes, images)
        if teacher.size not in (None, data.image_size):
            raise RecipeError(
                f"method.teacher: {teacher.where} was trained on {teacher.size}×{teacher.size} images, "
                f"data.image_size is {data.image_size}"
            )
        teachers.check_weights(teacher, table.get(TEACHER))
    built, sharing = method(resolved, images, classes, teacher.network if teacher else None, beginnings)
    return Assembly(built, teacher, (*_stages(built.cohort), sharing, *built.notes))


def method(
    resolved: ResolvedRecipe,
    images: torch.Size,
    classes: int,
    teacher: nn.Module | None = None,
    beginnings: Beginnings | None = None,
) -> tuple[Method, str]:
    """The recipe's method around its cohort, for images of CHW size `images`, and a sentence on what is shared.

    Raises RecipeError, as one problem of the recipe, for networks or a method that cannot be built.
    """
    try:
        students, sharing = cohort(resolved, images, classes, beginnings)
        with seeded(resolved.recipe.seed, "init", "method"):
            built = resolved.kind(students, resolved.config, images, classes, teacher)
        built.check_built()
        if built.views:
            _check_views(built.views, resolved.recipe.augment)
        if len(built.parts) > 1 and resolved.recipe.optim.patience:
            raise ValueError(
                f"its training has {len(built.parts)} parts, and optim.patience={resolved.recipe.optim.patience} could "
                "end it before the last one: expected optim.patience=0"
            )
        if smoothing := resolved.recipe.optim.label_smoothing:  # otherwise the method's own stands
            built.label_smoothing = smoothing
        return built, sharing
    except RecipeError as error:
        refused = refusal(resolved.place, [error.message], error.hint)
        refused.details += error.details
        raise refused from None
    except ValueError as error:
        raise refusal(resolved.place, [f"[method] {resolved.recipe.method['name']}: {error}"]) from None
    except (Exception, SystemExit) as error:
        if (name := resolved.recipe.method["name"]) in METHODS.own or torch_errors.out_of_memory(error):
            raise
        problem = f"[method] {name}: it could not be built: {one_line(error)}"
        raise refusal(resolved.place, [problem]) from error


def cohort(
    resolved: ResolvedRecipe, images: torch.Size, classes: int, beginnings: Beginnings | None = None
) -> tuple[Cohort, str]:
    """The students, each initialised from a stream of its own, and a sentence on what they share."""
    kind, name = resolved.kind, resolved.recipe.method["name"]
    architectures, share = resolved.architectures, resolved.recipe.cohort.share
    if len(architectures) == 1 and not kind.single:
        share, words = "none", f"one student: {architectures[0]}"
    elif kind.single:
        share, words = "none", f"{name} trains the first student alone: {architectures[0]}"
    elif not kind.branches:
        share, words = "none", f"the students share nothing: {name} trains separate networks"
    elif not naming.one_trunk(architectures):
        if kind.needs_trunk and share != "none":
            raise RecipeError(
                f"cohort.share={share!r} needs students of one architecture: {name}'s branches grow "
                f"from one trunk, and these differ ({', '.join(architectures)}); {kind.alternatives}"
            )
        share, words = "none", "the students share nothing: they differ"
    else:
        shared = {"low": "all stages but the last", "stem1": "the stem and the first stage", "none": "nothing"}[share]
        words = f"the students share {shared}"
        if len(set(architectures)) > 1:
            words += f"; their last stages differ in depth: {', '.join(architectures)}"
    if beginnings and kind.one_start:
        beginnings.check_shared(f"{name}'s students start as one network", "one value for all")
    elif beginnings and share != "none":
        beginnings.check_shared("the students share their first stages", "one value for all; or cohort.share=none")
    students = []
    for k, architecture in enumerate(architectures):
        with seeded(resolved.recipe.seed, "init", "student", k):
            students.append(backbones.build(architecture, classes, images))
        if beginnings:
            beginnings.put(k, students[k], classes, images)
    return Cohort(students, share), words


def _check_views(views: int, keys: Augment) -> None:
    """Raises ValueError where further views of an image would be equal to the first, or have other labels."""
    if not Augmentation(keys).varies:
        raise ValueError(f"it learns from {1 + views} views of each image, and [augment] leaves all of them equal")
    if keys.mixup or keys.cutmix:
        raise ValueError(
            f"it learns from {1 + views} views of each image; augment.mixup and augment.cutmix mix one view alone"
        )


def _stages(cohort: Cohort) -> list[str]:
    """Where foreign networks were cut: their authors drew no stages."""
    descriptions = {student.architecture: student.description for student in cohort.backbones()}
    return [f"{name}: stages found by probing with one image: {text}" for name, text in descriptions.items() if text]


# ---------------------------------------------------------------------------------------------------------------------
# Images


def dataset(
    resolved: ResolvedRecipe,
    progress: Progress | None = None,
    streamed: bool | None = None,
    room: int | None = None,
) -> Dataset:
    """The recipe's images, divided. Raises DataError where they do not carry the recipe.

    `streamed`: whether image files stay files, as a run was started; None: as the recipe says, and where it leaves that
    open by the bytes of memory that they may take, `room`.
    """
    recipe, data = resolved.recipe, resolved.recipe.data
    if streamed is None and data.stream != "auto":
        streamed = data.stream == "on"
    needed = datasets.needed(data.val_fraction, data.train_images, recipe.seed)
    request = Request(
        data.root, data.image_size, data.shorter_side, progress, data.skip_damaged, streamed, room, needed
    )
    images = datasets.divide(datasets.load(resolved.source, request), data.val_fraction, data.train_images, recipe.seed)
    if len(images.train) < recipe.optim.batch_size:
        raise DataError(
            f"optim.batch_size is {recipe.optim.batch_size}, there are {len(images.train)} training images",
            hint=f"for example: optim.batch_size={max(2, len(images.train) // 8)}",
        )
    if not len(images.val) and recipe.cohort.keep == "best":
        raise RecipeError(
            "cohort.keep='best' chooses on validation images, and "
            f"data.val_fraction={data.val_fraction} of {len(images.train)} images leaves none",
            hint="cohort.keep=0 keeps the first student at the last epoch; or data.val_fraction=0.1",
        )
    if not len(images.val) and recipe.optim.patience:
        raise RecipeError(
            f"optim.patience={recipe.optim.patience} waits for a better accuracy on validation images, and "
            f"data.val_fraction={data.val_fraction} of {len(images.train)} images leaves none",
            hint="optim.patience=0; or data.val_fraction=0.1",
        )
    if not len(images.val) and not len(images.test):
        raise DataError(
            "there are neither validation nor test images: nothing could be measured",
            hint="data.val_fraction=0.1 holds some of the training images out",
        )
    return images


def normalisation_of(recipe: Recipe, dataset: Dataset) -> Normalisation:
    """The recipe's mean and std; where it names none, the published ones, else those of the training images."""
    mean, std = recipe.data.mean, recipe.data.std
    if mean and std:
        return Normalisation(mean, std)
    default = Normalisation(*(dataset.published or dataset.moments()))
    return Normalisation(mean or default.mean, std or default.std)


def with_normalisation(recipe: Recipe, normalisation: Normalisation) -> Recipe:
    """The recipe with mean and std written in."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=normalisation._asdict())})
