"""Trains on a few photographs, the plain way and okdc's, and says which is better: what recipes/README.md prints.

python tests/photographs.py scratch PHOTOGRAPHS -o few            # ResNet-20 from random weights; 20, 100, 400 a class
python tests/photographs.py pretrained PHOTOGRAPHS -o few --weights lite0.safetensors    # a fine-tune at 128 pixels
python tests/photographs.py start PHOTOGRAPHS -o few              # a student of five classes as start for five others
python tests/photographs.py unequal PHOTOGRAPHS -o few            # three classes of 20, 139 and 60 images
python tests/photographs.py scratch PHOTOGRAPHS -o few --images 20 --seeds 0 --arms plain,baseline -j 2

PHOTOGRAPHS has `train/<class>/` and `test/<class>/`. Its first images of each class in an order drawn once are what is
learned from; all of `test` judges. Every arm of an experiment trains on the same pixels, splits, batches and steps; the
plain ways get no validation images and the same training images. What is done stays in the folder of -o: a call that
was stopped goes on, and the last call prints the table.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import okdc
from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe
from okdc.assembly.student import square
from okdc.bench import plain_training
from okdc.comparison import finished, stats
from okdc.data.batches import Normalise, eval_batches
from okdc.runs.predictions import Bits
from okdc.seeds import seeded

RECIPE = Path(__file__).parent.parent / "recipes" / "folder_resnet20.toml"
# What the tables of recipes/README.md were trained with: the keys that folder_resnet20 had when they were made.
KEYS: dict[str, dict[str, Any]] = {
    "augment": plain_training.VARIED.model_dump(exclude={"flip"}),
    "optim": {
        "epochs": 60,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 3e-3,
        "weight_decay": 0.05,
        "aux_weight_decay": 0.05,
        "schedule": "onecycle",
        "label_smoothing": plain_training.SMOOTHING,
    },
}
PLAIN, BASELINE = "plain", "baseline"
LITE0 = "timm:tf_efficientnet_lite0"
SMALL_PEER = "torchvision:mobilenet_v3_small"  # from random weights
UNEQUAL = (20, 139, 60)
STARTS = {"first five": slice(0, 5), "last five": slice(5, 10)}


@dataclass(frozen=True)
class Arm:
    """One way to train: the tables of a recipe, or the plain way."""

    name: str
    tables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One training of an experiment: an arm, a seed, and the folder of images that it learns from."""

    experiment: str
    arm: Arm
    seed: int
    images: Path
    out: Path

    @property
    def path(self) -> Path:
        return self.out / self.experiment / self.arm.name.replace(" ", "_") / f"seed{self.seed}"


def tables(trial: Trial) -> dict[str, Any]:
    """The recipe's overrides: the keys of every trial, the arm's own, and the images."""
    merged: dict[str, Any] = KEYS | {"seed": trial.seed, "data": {"root": str(trial.images)}, "engine": {"threads": 1}}
    for name, table in trial.arm.tables.items():
        merged[name] = merged.get(name, {}) | table if isinstance(table, Mapping) else table
    return merged


def carry(trial: Trial) -> tuple[Trial, float]:
    """Train, unless that is done, and return the trial with the seconds that it took."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    if trial.arm.name == PLAIN:
        if not trial.path.with_suffix(".npy").exists():
            trial.path.parent.mkdir(parents=True, exist_ok=True)
            np.save(trial.path.with_suffix(".npy"), plainly(trial))
    elif not (trial.path / "result.json").exists():
        if trial.path.exists():
            okdc.resume(trial.path)
        else:
            okdc.distill(okdc.load_recipe(RECIPE, **tables(trial)), out=trial.path)
    return trial, time.perf_counter() - start


def carried(trials: Sequence[Trial], jobs: int) -> Iterator[tuple[Trial, float]]:
    """Each trial as it is done, `jobs` of them at once in processes of their own; with one, in this process."""
    if jobs == 1:
        yield from map(carry, trials)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        try:
            for done in as_completed([pool.submit(carry, trial) for trial in trials]):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or all that wait would be trained before the error is seen
            raise


def plainly(trial: Trial) -> Bits:
    """Whether the plainly trained network is right, image by image of the test split."""
    recipe = okdc.load_recipe(RECIPE, **tables(trial))
    dataset, optim = assembly.dataset(recipe), recipe.recipe.optim
    network = _network(recipe, trial.seed, len(dataset.classes))
    if trial.experiment.startswith("pretrained"):
        plain_training.fine_tune(network, dataset, optim.epochs, optim.batch_size, trial.seed, optim.lr)
        moments = network.default_cfg["mean"], network.default_cfg["std"]
    else:
        plain_training.train(network, dataset, optim.epochs, optim.batch_size, trial.seed, flip=True)
        moments = dataset.moments()
    right = []
    network.eval()
    with torch.inference_mode():
        for images, labels in eval_batches(dataset, dataset.test, Normalise(*moments), 500):
            right.append(network(images).argmax(1) == labels)
    return torch.cat(right).numpy()


def _network(recipe: ResolvedRecipe, seed: int, classes: int) -> Any:
    name, size = recipe.architectures[0], recipe.recipe.data.image_size
    if name == LITE0:
        import timm
        from safetensors.torch import load_file

        network = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
        weights = load_file(str(recipe.recipe.cohort.weights))
        own = network.state_dict()
        network.load_state_dict(own | {key: value for key, value in weights.items() if value.shape == own[key].shape})
        return network
    with seeded(seed, "init", "student", 0):
        return backbones.build(name, classes, square(size))


def bits(trial: Trial) -> Bits:
    if trial.arm.name == PLAIN:
        loaded: Bits = np.load(trial.path.with_suffix(".npy"))
        return loaded
    return finished.load(trial.path).right["kept"]


# ---------------------------------------------------------------------------------------------------------------------
# Images


def chosen(source: Path, target: Path, counts: Mapping[str, int]) -> Path:
    """A folder with so many training images of each class, as links, and all test images of these classes."""
    if target.exists():
        return target
    making = target.with_name(target.name + ".part")
    for name, count in counts.items():
        files = sorted((source / "train" / name).iterdir())
        random.Random(f"{name} {count}").shuffle(files)
        if len(files) < count:
            raise SystemExit(f"{source / 'train' / name}: expected at least {count} images, found {len(files)}")
        for split, picked in (("train", files[:count]), ("test", sorted((source / "test" / name).iterdir()))):
            (making / split / name).mkdir(parents=True, exist_ok=True)
            for file in picked:
                (making / split / name / file.name).symlink_to(file.resolve())
    making.rename(target)
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Experiments


def scratch(options: argparse.Namespace, classes: Sequence[str]) -> list[Trial]:
    """ResNet-20 at 32 pixels from random weights, batches of 16."""
    trials = []
    for count in options.images:
        images = chosen(options.photographs, options.out / f"images{count}", dict.fromkeys(classes, count))
        optim = {"epochs": {20: 100, 100: 40, 400: 15}.get(count, 40), "batch_size": 16}
        arms = [Arm(PLAIN, {"optim": optim})]
        arms += [Arm(name, {"optim": optim, "method": {"name": name}}) for name in (BASELINE, "dml", "fefr")]
        trials += [Trial(f"scratch{count}", arm, seed, images, options.out) for arm in arms for seed in options.seeds]
    return trials


def pretrained(options: argparse.Namespace, classes: Sequence[str]) -> list[Trial]:
    """EfficientNet-lite0 with ImageNet weights at 128 pixels, 20 images a class; FEFR with a small peer."""
    if options.weights is None:
        raise SystemExit("pretrained: --weights FILE is missing, the weights of timm's tf_efficientnet_lite0")
    images = chosen(options.photographs, options.out / "images20", dict.fromkeys(classes, 20))
    common = {
        "data": {"image_size": 128},
        "optim": {"epochs": 20, "batch_size": 16, "lr": 2e-3, "freeze_epochs": 1},
    }
    alone = {"students": [LITE0], "weights": str(options.weights)}
    pair = {"students": [LITE0, SMALL_PEER], "weights": [str(options.weights), "none"], "keep": 0}
    arms = [
        Arm(PLAIN, common | {"cohort": alone, "method": {"name": BASELINE}}),
        Arm(BASELINE, common | {"cohort": alone, "method": {"name": BASELINE}}),
        Arm("fefr", common | {"cohort": pair, "method": {"name": "fefr"}}),
    ]
    return [Trial("pretrained20", arm, seed, images, options.out) for arm in arms for seed in options.seeds]


def start(options: argparse.Namespace, classes: Sequence[str]) -> list[Trial]:
    """What a student of one's own gains as a start: of five classes of 400 images, for five others of 20."""
    first, second = (list(classes)[part] for part in STARTS.values())
    many = chosen(options.photographs, options.out / "images400_first", dict.fromkeys(first, 400))
    few = chosen(options.photographs, options.out / "images20_second", dict.fromkeys(second, 20))
    baseline = {"method": {"name": BASELINE}}
    own = Trial("start_of", Arm(BASELINE, baseline | {"optim": {"epochs": 15, "batch_size": 16}}), 0, many, options.out)
    carry(own)
    optim = {"epochs": 100, "batch_size": 8}
    arms = [
        Arm(BASELINE, baseline | {"optim": optim}),
        Arm("own start", baseline | {"optim": optim, "cohort": {"weights": str(own.path)}}),
        Arm("own start, lr 1e-3", baseline | {"optim": optim | {"lr": 1e-3}, "cohort": {"weights": str(own.path)}}),
    ]
    return [Trial("start20", arm, seed, few, options.out) for arm in arms for seed in options.seeds]


def unequal(options: argparse.Namespace, classes: Sequence[str]) -> list[Trial]:
    """Three classes of 20, 139 and 60 images, with and without what is meant for that."""
    counts = dict(zip(classes, UNEQUAL, strict=False))
    images = chosen(options.photographs, options.out / "images_unequal", counts)
    optim = {"epochs": 60, "batch_size": 8}
    kept = {"keep_metric": "balanced"}
    arms = [
        Arm(BASELINE, {"method": {"name": BASELINE}, "optim": optim}),
        *(
            Arm(f"{name} {key}", {"method": {"name": name}, "optim": optim | {key: "balanced"}, "cohort": kept})
            for name in (BASELINE, "fefr")
            for key in ("class_weights", "sampler")
        ),
    ]
    return [Trial("unequal", arm, seed, images, options.out) for arm in arms for seed in options.seeds]


EXPERIMENTS = {function.__name__: function for function in (scratch, pretrained, start, unequal)}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def table(trials: Sequence[Trial]) -> list[str]:
    """One row an arm: mean and deviation over the seeds, and its difference to the first arm of the experiment."""
    lines = ["| experiment | arm | top-1 % (deviation, seeds) | minus the first, points [95 %] | |"]
    lines += ["|---|---|---|---|---|"]
    for experiment in dict.fromkeys(trial.experiment for trial in trials):
        rows: dict[str, dict[int, Bits]] = {}
        for trial in trials:
            if trial.experiment == experiment:
                rows.setdefault(trial.arm.name, {})[trial.seed] = bits(trial)
        base = next(iter(rows.values()))
        for name, right in rows.items():
            sample = stats.sample({seed: round(100 * float(b.mean()), 4) for seed, b in right.items()})
            spread = "" if sample["sd_top1_pct"] is None else f"{sample['sd_top1_pct']:.2f}, "
            words = f"| {experiment} | {name} | {sample['mean_top1_pct']:.2f} ({spread}{sample['n']}) |"
            if right is base or (pair := stats.paired(right, base)) is None:
                lines.append(f"{words} | |")
                continue
            ends = pair["interval_points"]
            interval = f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else ""
            lines.append(f"{words} {pair['mean_points']:+.2f}{interval} | {pair['verdict']} |")
    return lines


def recalls(trials: Sequence[Trial]) -> list[str]:
    """The recall of each class, of every arm over all seeds: of classes that are unequal."""
    lines = ["| arm | recall of each class, % | least over greatest |", "|---|---|---|"]
    for name in dict.fromkeys(trial.arm.name for trial in trials):
        of_arm = [trial for trial in trials if trial.arm.name == name]
        folders = sorted((of_arm[0].images / "test").iterdir())
        labels = np.repeat(np.arange(len(folders)), [len(list(folder.iterdir())) for folder in folders])
        right = np.stack([bits(trial) for trial in of_arm])
        means = [100 * float(right[:, labels == label].mean()) for label in range(len(folders))]
        words = ", ".join(f"{folder.name} {mean:.1f}" for folder, mean in zip(folders, means, strict=True))
        lines.append(f"| {name} | {words} | {min(means) / max(means):.2f} |")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--images", type=_numbers, default=[20, 100, 400], help="a class, of scratch")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    parser.add_argument("--arms", type=lambda text: text.split(","), help="these alone, by name")
    parser.add_argument("--weights", type=Path, help="of pretrained")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="trainings at once, of one thread each")
    options = parser.parse_args(words)
    options.photographs, options.out = options.photographs.absolute(), options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    classes = sorted(folder.name for folder in (options.photographs / "train").iterdir())
    trials = EXPERIMENTS[options.experiment](options, classes)
    trials = [trial for trial in trials if options.arms is None or trial.arm.name in options.arms]
    trials.sort(key=lambda trial: trial.seed)  # every arm of a seed, then the next: a stopped call has pairs
    for trial, seconds in carried(trials, options.jobs):
        print(f"{trial.path}: {100 * bits(trial).mean():.2f} % ({seconds:.0f} s)", file=sys.stderr, flush=True)
    print("\n".join(table(trials) + (recalls(trials) if options.experiment == "unequal" else [])))
    return 0


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
