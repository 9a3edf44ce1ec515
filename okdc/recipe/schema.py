"""The tables of a recipe: every key, what it takes, its default and what it is.

`[method]` stays a plain table here: its keys belong to the Config of the method that it names, which
`okdc.assembly.resolve.resolve` validates, so that listing or reading recipes never imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Of a method's table, where a teacher lies; `teacher_sha256` says which one it is, and marks a method that has one.
TEACHER_PLACES = ("teacher", "weights")
TEACHER = "teacher_sha256"
WEIGHTS = "weights_sha256"  # of the cohort's table: which weights `weights` are

NUMBERED = r"^cuda:(0|[1-9][0-9]?)$"  # a GPU by its number

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Index = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, le=1)]


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low > high:
        raise ValueError(f"expected the smaller number first, found [{low:g}, {high:g}]")
    return bounds


Bounds = Annotated[tuple[Positive, Positive], Field(strict=False), AfterValidator(_ascending)]
Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]],
    Field(strict=False),
    AfterValidator(_ascending),
]
Colour = Annotated[tuple[Finite, Finite, Finite], Field(strict=False)]  # TOML has arrays, not tuples


class Table(BaseModel):
    """A table of the recipe: frozen, and strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Paper(Table):
    """What a paper prints for this cell: top-1 errors in percent by method, its own switches in the key if it has any.

    A list is one number a student, where the paper tells different students apart.
    """

    source: Annotated[str, Field(description="The paper and the table that print the numbers.")]
    dataset: Annotated[
        str, Field(description="The data set of the cell; with another `data.name` the numbers are not compared.")
    ]
    students: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            min_length=1,
            description="The networks of the cell; with other `cohort.students` the numbers are not compared.",
        ),
    ]
    epochs: Annotated[Count, Field(description="Epochs that the paper trains; MFEF trains 300.")] = 300
    student_error: Annotated[
        dict[str, Positive | list[Positive]],
        Field(description="Top-1 error of a student in percent, by method; a list has one number a student."),
    ] = {}
    fused_error: Annotated[
        dict[str, Positive], Field(description="Top-1 error of the fused classifier in percent, by method.")
    ] = {}


class About(Table):
    title: Annotated[str, Field(description="A few words that name the recipe; training does not read them.")] = ""
    paper: Annotated[
        Paper | None, Field(description="What a paper prints for this recipe; left out: no paper has the cell.")
    ] = None


class Data(Table):
    name: Annotated[
        str,  # okdc.assembly.resolve checks it: the data sets stand above this module
        Field(description="The data set by its name, or package.module:callable for your own loader."),
    ]
    root: Annotated[
        Annotated[str, Field(min_length=1)] | None,  # an empty one would be the working directory
        Field(
            description="Folder of the images, relative to the working directory; left out: below data/. --data-root "
            "and OKDC_DATA_ROOT override it."
        ),
    ] = None
    image_size: Annotated[
        int, Field(ge=4, le=1024, description="Side of the square images in pixels; 32 as CIFAR's and CINIC-10's.")
    ] = 32
    shorter_side: Annotated[
        Annotated[int, Field(ge=4, le=2048)] | None,
        Field(
            description="Pixels that the shorter side of an image file is resized to before the middle is cut out; "
            "left out: image_size, which cuts least away."
        ),
    ] = None
    skip_damaged: Annotated[
        bool,
        Field(
            description="Whether image files that are damaged are left out and counted; false: one stops the run, "
            "and all are named."
        ),
    ] = False
    stream: Annotated[
        Literal["auto", "on", "off"],
        Field(
            description="Whether image files stay files and are decoded batch by batch; auto: where their pixels would "
            "take more than half of the memory that is free."
        ),
    ] = "auto"
    train_images: Annotated[
        Count | None,
        Field(description="Size of a stratified subset of the training images, drawn by seed; left out: all of them."),
    ] = None
    val_fraction: Annotated[
        Share,
        Field(
            description="Share of the training images held out for validation, where the data has no such split; "
            "0.1 leaves nine tenths to learn from."
        ),
    ] = 0.1
    mean: Annotated[
        Colour | None,
        Field(
            description="Mean of each channel, of pixels scaled to 0..1; left out: the published one, else that of the "
            "training images."
        ),
    ] = None
    std: Annotated[
        Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] | None,
        Field(description="Standard deviation of each channel, as `mean`."),
    ] = None


class Augment(Table):
    """How training images are varied. Evaluation never is."""

    crop: Annotated[
        Literal["pad", "resized"],
        Field(
            description="The random crop: pad shifts an image within `padding`, as MFEF section 4.1; resized takes a "
            "part of random size, shape and place and resizes it, as torchvision's RandomResizedCrop."
        ),
    ] = "pad"
    padding: Annotated[
        Index,
        Field(description="Pixels around an image before the crop `pad`; 4 as MFEF section 4.1, 0 for no crop."),
    ] = 4
    padding_mode: Annotated[
        Literal["zeros", "reflect"],
        Field(
            description="What the crop `pad` pads with: zeros as most public code of these methods, or reflect, the "
            "image in a mirror at its edge, as FFL's public code does for CIFAR-100."
        ),
    ] = "zeros"
    scale: Annotated[
        Shares, Field(description="Share of the area that the crop `resized` takes, from and to; as torchvision.")
    ] = (0.08, 1.0)
    ratio: Annotated[
        Bounds, Field(description="Width to height of the crop `resized`, from and to; 3/4 and 4/3 as torchvision.")
    ] = (3 / 4, 4 / 3)
    flip: Annotated[
        bool, Field(description="Whether half of the images are mirrored, left to right; true as MFEF section 4.1.")
    ] = True
    vertical_flip: Annotated[bool, Field(description="Whether half of the images are mirrored, top to bottom.")] = False
    rotation: Annotated[
        float, Field(ge=0, le=180, description="Largest angle of a random rotation, either way, in degrees.")
    ] = 0.0
    translate: Annotated[
        Unit, Field(description="Largest random shift, each way, as a share of the side; what comes in is black.")
    ] = 0.0
    zoom: Annotated[Bounds, Field(description="Factor of a random enlargement, from and to; [1, 1] for none.")] = (
        1.0,
        1.0,
    )
    shear: Annotated[
        float, Field(ge=0, le=80, description="Largest angle of a random shear along x, either way, in degrees.")
    ] = 0.0
    brightness: Annotated[
        Unit, Field(description="All colours times a random factor from 1 - b to 1 + b, for b here.")
    ] = 0.0
    contrast: Annotated[
        Unit, Field(description="The same factor for the distance of colours to the image's mean grey.")
    ] = 0.0
    saturation: Annotated[
        Unit, Field(description="The same factor for the distance of a pixel's colours to its grey.")
    ] = 0.0
    hue: Annotated[
        float, Field(ge=0, le=0.5, description="Largest random turn of all hues, either way; 0.5 is half the circle.")
    ] = 0.0
    grey: Annotated[Unit, Field(description="Share of the images that lose their colours.")] = 0.0
    blur: Annotated[
        Unit,
        Field(
            description="Share of the images that are blurred, by a Gaussian whose deviation is between 0.1 and 2 "
            "pixels, as SimCLR draws it."
        ),
    ] = 0.0
    erasing: Annotated[
        Unit,
        Field(
            description="Share of the images in which a rectangle of 2 to 33 % of the area takes the mean colour; the "
            "sizes are torchvision's RandomErasing's."
        ),
    ] = 0.0
    policy: Annotated[
        Literal["none", "trivial"],
        Field(
            description="Further operations: trivial applies one of fourteen to each image, as TrivialAugmentWide, "
            "which move, recolour, invert or sharpen it."
        ),
    ] = "none"
    mixup: Annotated[
        NotNegative,
        Field(
            description="Mixup: each image is mixed with another in shares of Beta(α, α), for α here; 0 for none, 0.2 "
            "is usual, and with cutmix too half of the images get either."
        ),
    ] = 0.0
    cutmix: Annotated[
        NotNegative,
        Field(
            description="CutMix: each image gets a rectangle of another, of half its area at most, in shares of "
            "Beta(α, α), for α here; 0 for none, 1 is usual."
        ),
    ] = 0.0


class CohortTable(Table):
    students: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            min_length=1,
            description="The networks that learn together: names of okdc's networks, torchvision:NAME, timm:NAME or "
            "package.module:callable.",
        ),
    ]
    share: Annotated[
        Literal["low", "stem1", "none"],
        Field(
            description="Stages that students of one architecture share: low is all but the last (as MFEF table 1), "
            "stem1 the stem and the first."
        ),
    ] = "low"
    keep: Annotated[
        Literal["best", "smallest"] | Index,
        Field(
            description="The student that is kept: smallest, or its number from 0, or best: the leader where the "
            "method has one, else the one that validation chooses.",
        ),
    ] = "best"
    keep_epoch: Annotated[
        Literal["best", "last"],
        Field(
            description="The epoch that each student is kept from: its best on validation, or the last. With a few "
            "dozen validation images the best epoch is luck: last lets them choose among the students alone."
        ),
    ] = "best"
    keep_metric: Annotated[
        Literal["top1", "balanced"],
        Field(
            description="The accuracy on validation that chooses students and epochs: of all images, or balanced, the "
            "mean of the classes', for classes of unequal size."
        ),
    ] = "top1"
    output: Annotated[
        Annotated[str, Field(pattern=r"^[^\[\]+]+$")] | Index | None,
        Field(
            description="The key, name or number of the logits among the outputs of networks that return several; left "
            "out: they return one tensor, or in training a tuple whose first are the logits.",
        ),
    ] = None
    weights: Annotated[
        str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None,
        Field(
            description="Trained weights that the students start from, one value for all or a list with one a student: "
            "pretrained, timm:NAME.TAG, torchvision:ENUM.MEMBER, a .safetensors or .pt file, runs/NAME, or none; left "
            "out: all start from random weights.",
        ),
    ] = None
    weights_sha256: Annotated[
        tuple[str, ...] | None,
        Field(
            strict=False,
            description="The SHA-256 of the weights of each trained student, empty for random ones: filled in when a "
            "training starts, so that other weights are refused when the recipe runs again.",
        ),
    ] = None


class Optim(Table):
    epochs: Annotated[Count, Field(description="Passes over the training images; 300 as MFEF section 4.1.")] = 300
    batch_size: Annotated[
        int, Field(ge=2, description="Images in a step, over all devices together; 128 as MFEF section 4.1.")
    ] = 128
    optimizer: Annotated[
        Literal["sgd", "adamw"],
        Field(
            description="The rule of a step: sgd with Nesterov momentum, as MFEF section 4.1; adamw, Adam "
            "with decoupled weight decay (Loshchilov & Hutter, 2019), for a `lr` near 0.001 and a `weight_decay` near "
            "0.01."
        ),
    ] = "sgd"
    lr: Annotated[
        Positive,
        Field(
            description="The largest learning rate; 0.1 as MFEF section 4.1, for SGD and batches of 128. adamw wants "
            "about a hundredth."
        ),
    ] = 0.1
    momentum: Annotated[
        float,
        Field(gt=0, lt=1, description="Nesterov momentum of sgd; 0.9 as MFEF section 4.1. adamw has `betas` instead."),
    ] = 0.9  # Nesterov's, which needs one above 0
    betas: Annotated[
        tuple[Share, Share],
        Field(
            strict=False,
            description="How slowly adamw's means of the gradient and of its square follow, as the share of a step "
            "that is kept at the next; torch's default. sgd has `momentum` instead.",
        ),
    ] = (0.9, 0.999)
    weight_decay: Annotated[
        NotNegative, Field(description="Weight decay of the students; 1e-4 as MFEF section 4.1.")
    ] = 1e-4
    aux_weight_decay: Annotated[
        NotNegative,
        Field(description="Weight decay of everything that is discarded after training; 1e-5 as MFEF section 4.1."),
    ] = 1e-5
    decay_norm_and_bias: Annotated[
        bool,
        Field(
            description="Whether biases and the weights of normalisations decay like all others; false: no parameter "
            "of one dimension does, as is usual with adamw."
        ),
    ] = True
    schedule: Annotated[
        Literal["step", "cosine", "onecycle"],
        Field(
            description="How the learning rate moves: step divides it by ten at each milestone, as MFEF section 4.1; "
            "cosine takes it to zero; onecycle from lr/25 up and down to lr/250,000, as torch's OneCycleLR does with "
            "its defaults, but the momentum stays.",
        ),
    ] = "step"
    warmup: Annotated[
        Share | None,
        Field(
            description="Fraction of the run in which the learning rate rises, linearly from near 0; onecycle's own "
            "rise is a half cosine. Left out: none, and 0.3 of onecycle.",
        ),
    ] = None
    milestones: Annotated[
        tuple[Share, ...],
        Field(
            strict=False,
            description="Where the schedule `step` divides the learning rate by ten, as fractions of the run; MFEF "
            "divides after 150 and 225 of 300 epochs.",
        ),
    ] = (0.5, 0.75)
    clip: Annotated[
        NotNegative,
        Field(description="Largest norm of the gradient, which is scaled down to it; 0: no limit, as MFEF trains."),
    ] = 0.0
    label_smoothing: Annotated[
        Share,
        Field(
            description="Share of each label that the cross-entropies spread evenly over all classes (Szegedy et al., "
            "2016); 0: none, as MFEF trains. 0.1 is usual."
        ),
    ] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"],
        Field(
            description="The weight of an image in the cross-entropies: balanced is n/(K·n_c), for n training images "
            "of K classes, n_c of them of its own class, so that every class counts as much in sum."
        ),
    ] = "none"
    sampler: Annotated[
        Literal["none", "balanced"],
        Field(
            description="The images of an epoch: none takes each once; balanced as many in all, and of each class "
            "equally many, so that images of rare classes come several times and of large classes not all."
        ),
    ] = "none"
    ema: Annotated[
        Share,
        Field(
            description="Decay per step of an exponential moving average of all weights and batch statistics; 0: none, "
            "0.999 is usual. After t steps it is (1 + t)/(10 + t) at most, so that the average of a short run is not "
            "mostly its start. Of each student the better on validation is kept, itself or its average."
        ),
    ] = 0.0
    patience: Annotated[
        Index,
        Field(
            description="Epochs in a row without a better validation accuracy after which the training ends, although "
            "the schedule has not come to its end; 0: it never ends early."
        ),
    ] = 0
    freeze_epochs: Annotated[
        Index,
        Field(
            description="First epochs in which the backbones of students that start from `cohort.weights` are fixed, "
            "their batch statistics included; heads and all else learn."
        ),
    ] = 0
    backbone_lr: Annotated[
        Positive,
        Field(
            description="Factor on the learning rate of the backbones of students that start from `cohort.weights`; "
            "0.1 is usual where the images are like those that the weights know."
        ),
    ] = 1.0


class Engine(Table):
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | Annotated[str, Field(pattern=NUMBERED, examples=["cuda:1"])],
        Field(description="Where the training runs, `cuda:1` on the second GPU; auto: a GPU where one can be used."),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(
            description="Type of the forward pass; auto: bfloat16 where the processor gains by it, float16 on a GPU "
            "without bfloat16."
        ),
    ] = "auto"
    memory_format: Annotated[
        Literal["auto", "contiguous", "channels_last"],
        Field(description="Order of the maps in memory; auto: the one that the device convolves faster."),
    ] = "auto"
    threads: Annotated[
        Literal["auto"] | Count,
        Field(description="CPU threads of the training; auto: OMP_NUM_THREADS, else the cores."),
    ] = "auto"
    workers: Annotated[
        Literal["auto"] | Index,
        Field(
            description="Processes that decode images which do not fit in memory; 0: the training decodes them itself, "
            "auto: the cores."
        ),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"],
        Field(description="Whether torch.compile compiles the training step; auto: where that pays within the run."),
    ] = "auto"
    cuda_graph: Annotated[
        Literal["auto", "on", "off"],
        Field(
            description="Whether a single GPU records the training step once and replays it, which costs the host one "
            "launch a step; auto: where no code but okdc's own may decide in Python at each step."
        ),
    ] = "auto"
    sync_batchnorm: Annotated[
        bool,
        Field(
            description="Whether batch statistics are taken over the batch of all processes; false: of each process's "
            "images, which needs no exchange."
        ),
    ] = False
    track: Annotated[
        tuple[Literal["tensorboard"], ...],
        Field(
            strict=False,
            description="Trackers that follow the training: tensorboard writes RUN/tensorboard, and needs "
            "pip install 'okdc[track]'. None changes a weight, and a run can be resumed with others.",
        ),
    ] = ()


class Recipe(Table):
    """All of one run. `text()` repeats it; `sha256()` names it wherever its files lie."""

    seed: Annotated[
        int, Field(ge=0, lt=2**63, description="Number that every random draw of the run follows from; 0 is the first.")
    ] = 0
    deterministic: Annotated[
        bool,
        Field(
            description="Whether a GPU uses only operations that repeat to the bit; false: they are slower. A CPU run "
            "repeats in any case."
        ),
    ] = False
    about: Annotated[About, Field(description="What the recipe is; nothing of it changes a training.")] = About()
    data: Annotated[Data, Field(description="The images, and how they are divided.")]
    augment: Annotated[
        Augment, Field(description="How training images are varied, anew in each epoch; all but crop and flip is off.")
    ] = Augment()
    cohort: Annotated[CohortTable, Field(description="The students, what they share, and which one is kept.")]
    method: Annotated[
        dict[str, Any], Field(description="How the students teach each other: `name`, and the keys of that method.")
    ]
    optim: Annotated[Optim, Field(description="How the weights move.")] = Optim()
    engine: Annotated[Engine, Field(description="What the training runs on; each choice is recorded.")] = Engine()

    def tables(self) -> dict[str, Any]:
        """The recipe as TOML and JSON hold it, every default written out."""
        return self.model_dump(mode="json", exclude_none=True)

    def text(self) -> str:
        """The recipe as TOML, every default written out."""
        return tomli_w.dumps(self.tables())

    def portable(self) -> dict[str, Any]:
        """The tables without the places of files and without trackers: the same on every machine."""
        return without_places(self.tables())

    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.portable(), sort_keys=True).encode()).hexdigest()


def without_places(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tables without the places of files: of the images, of weights that have a hash, of trackers' logs."""
    tables = dict(tables)
    data, method, cohort = tables.get("data"), tables.get("method"), tables.get("cohort")
    engine = tables.get("engine")
    if isinstance(data, Mapping):
        tables["data"] = {key: value for key, value in data.items() if key != "root"}
    if isinstance(method, Mapping) and TEACHER in method:
        tables["method"] = {key: value for key, value in method.items() if key not in TEACHER_PLACES}
    if isinstance(cohort, Mapping) and WEIGHTS in cohort:
        tables["cohort"] = {key: value for key, value in cohort.items() if key != "weights"}
    if isinstance(engine, Mapping):
        tables["engine"] = {key: value for key, value in engine.items() if key != "track"}
    return tables
