"""The bundle's README.md: a model card by which a stranger can judge the model. No torch.

The same story gives the same text: no time, no place. Names that come from elsewhere (classes, data, processors) stand
in code spans, where Markdown and HTML in them are only letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from okdc.bundle.artefacts import REDUCED, Latency, Parity, Profile, ReducedReport
from okdc.bundle.frontmatter import front_matter
from okdc.bundle.layout import FLOAT32, INT8, MODELS
from okdc.data import DATASETS, find
from okdc.data.source import Source
from okdc.escaping import code, prose
from okdc.runs.accuracy import not_above, with_interval
from okdc.runs.artefacts import Result, StudentInfo

FEW, SHOWN = 20, 10  # so many classes are all named; of more, the first ten


@dataclass(frozen=True)
class Story:
    """Everything that the card is written from."""

    student: StudentInfo  # the exported student
    result: Result  # of its run
    recipe: Mapping[str, Any]  # the resolved recipe, `Recipe.portable()`
    data: Mapping[str, int]  # numbers of images: {"train": , "validation": , "test": }
    parity: Parity
    profile: Profile  # its `models` are those in the bundle
    skipped: Sequence[str] = ()  # a line `file: reason` for each damaged image that was left out of the data
    licence: str | None = None  # of the weights: an SPDX identifier or a name; None: nobody has stated one

    @property
    def source(self) -> Source | None:
        """The data set, where it is one with a name; None: the user's own code."""
        name = self.student.dataset
        return find(name) if name in DATASETS else None

    @property
    def images(self) -> int:
        return self.parity.float32.images

    @property
    def split(self) -> str:
        return self.parity.float32.split

    @property
    def unequal(self) -> bool:
        """Whether some classes have more of the judging images than others."""
        return self.parity.float32.largest_class_pct != self.parity.float32.smallest_class_pct

    @property
    def top1_pct(self) -> dict[str, float]:
        """By precision, of the models in the bundle."""
        return {precision: self.parity.top1_pct(precision) for precision in self.profile.models}


def card(story: Story) -> str:
    """README.md as text."""
    student, licence = story.student, (story.licence or "").strip() or None
    accuracies = {MODELS[precision]: value for precision, value in story.top1_pct.items()}
    tags, seed = story.result.method_card.tags, story.recipe["seed"]
    hub = story.source.hub if story.source else None
    top = front_matter(student, tags, seed, accuracies, (story.images, story.split), licence, hub)
    title = f"# {_named(student.architecture)} on {_named(student.dataset)}\n\n{_what(story)}"
    sections = {
        "Use": _use(story),
        "Numbers": _numbers(story),
        "How it was checked": _checked(story),
        "Training": _training(story),
        "Intended use and limits": _limits(story),
        "Licence": _licence(story, licence),
    }
    return "\n".join([top, title, *(f"## {name}\n\n{text}" for name, text in sections.items())])


# ---------------------------------------------------------------------------------------------------------------------
# Sections, each ending with one newline


def _what(story: Story) -> str:
    size, classes = story.student.preprocessing.size, story.student.classes
    method, variant = story.student.method, story.result.variant
    settings = f" Its settings differ from the default: {code(variant)}." if variant != method else ""
    named = ", ".join(code(name) for name in (classes if len(classes) <= FEW else classes[:SHOWN]))
    more = "" if len(classes) <= FEW else f" and {len(classes) - SHOWN:,} more: `labels` in manifest.json"
    return (
        f"An image classifier in ONNX: {size}×{size} colour images, {len(classes):,} classes. "
        f"{prose(_trained(story))}{settings}{_peers(story)}\n\n"
        f"Classes, in the order of the outputs: {named}{more}.\n"
    )


def _trained(story: Story) -> str:
    """How: a method that is made for one of its students, the leader, says so of that one."""
    summary, leader = story.result.method_card.summary, story.result.leader
    if leader in (None, story.student.student):
        return summary
    return f"A peer of student{leader}, which was {summary[:1].lower()}{summary[1:]}"


def _peers(story: Story) -> str:
    """The students trained beside it, and the reason for the choice of this one."""
    names, index = story.result.students, story.student.student
    if len(names) < 2:
        return ""
    others = ", ".join(code(name) for k, name in enumerate(names) if k != index)
    share = {"low": ", which shared all stages but the last", "stem1": ", which shared the first stages"}
    if index != story.result.kept.student:
        reason = "chosen at export"
    elif index == story.result.leader:
        reason = "the leader"
    else:
        reasons = {"best": "the best on the validation images", "smallest": "the smallest"}
        reason = reasons.get(story.recipe["cohort"]["keep"], "named by the recipe")
    return (
        f" It is student{index} of {len(names)}, {reason}; its peer{'s were' if len(names) > 2 else ' was'} {others}"
        f"{share.get(story.result.share, '')}. The file holds nothing of what was only there to train it."
    )


def _use(story: Story) -> str:
    rule = story.student.preprocessing
    size, shorter = rule.size, rule.shorter_side or rule.size
    reduced = [precision for precision in story.profile.models if precision != FLOAT32]
    models = f" Other files: `--model {'|'.join(reduced)}`." if reduced else ""
    return (
        "In this folder; infer.py needs numpy, onnxruntime and Pillow:\n\n"
        "```sh\n"
        "python infer.py . photo.jpg\n"
        "python infer.py . --selftest\n"
        "okdc predict . photo.jpg\n"
        "```\n\n"
        f"The self-test replays the images of sample/, whose answers are known.{models}\n\n"
        f"- Input `image`: uint8, N×{size}×{size}×3, RGB, any N; the normalisation is inside.\n"
        f"- An image of another size is first turned upright (EXIF), made RGB, its shorter side resized to {shorter} "
        f"pixels (bilinear, antialiased), and its centre of {size}×{size} cut out.\n"
        f"- Outputs `logits` and `probabilities`: float32, N×{len(story.student.classes)}.\n"
    )


def _numbers(story: Story) -> str:
    profile, machine = story.profile, story.profile.machine
    unequal = ["balanced, %"] if story.unequal else []
    head = [
        "file",
        f"top-1, % on {story.split}",
        *unequal,
        "predicts as float32",
        "size",
        "1 image, ms",
        "64 images, ms",
    ]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for precision, value in story.top1_pct.items():
        model, report = profile.models[precision], story.parity.reduced(precision)
        same = f"{report.agreement_pct:.2f} %" if report else "–"
        times = (_pair(model.latency_ms[f"batch_{batch}"]) for batch in (1, 64))
        balanced = [f"{story.parity.balanced_accuracy_pct(precision):.2f}" for _ in unequal]
        cells = [f"`{model.file}`", with_interval(value, story.images), *balanced, same, _size(model.bytes), *times]
        rows.append(f"| {' | '.join(cells)} |")
    bound = "at least " if profile.lower_bound else ""
    load = machine.load_average_before
    machine_was = " It was busy (somewhere p90 is over twice p50): take them as rough." if machine.noisy else ""
    return "\n".join(
        [
            *rows,
            "",
            f"- Top-1: {story.images:,} {story.split} images, with Wilson's 95 % interval; one run (n = 1), seed "
            f"{story.recipe['seed']}.",
            *(_unequal(story) if unequal else []),
            f"- {profile.params:,} parameters. {bound.capitalize()}{profile.macs:,} MACs an image (convolutions "
            f"and linear layers), that is {bound}{profile.flops:,} FLOPs.",
            f"- Times: p50 / p90 of a batch, onnxruntime {profile.versions['onnxruntime']} on the CPU, "
            f"{_many(machine.threads, 'thread')} of {code(machine.processor)}"
            f"{f', load average {load}' if load is not None else ''}. They are that machine's.{machine_was}\n",
        ]
    )


def _unequal(story: Story) -> list[str]:
    report = story.parity.float32
    return [
        "- Balanced: the mean accuracy of the classes. They are unequal: the largest has "
        f"{report.largest_class_pct:.2f} % of these images, the smallest {report.smallest_class_pct:.2f} %."
    ]


def _checked(story: Story) -> str:
    report = story.parity.float32
    allowed, largest = report.logits.allowed, report.logits.max_abs
    differ = report.predictions_that_differ
    changed = f"{_many(differ, 'prediction')} changed, by rounding" if differ else "no prediction changed"
    coupling = max(value or 0.0 for value in report.invariance_max_abs.values())
    lines = [
        f"- `{MODELS[FLOAT32]}` in onnxruntime against the student in PyTorch, on all {story.images:,} {story.split} "
        f"images: logits differ by {_tiny(largest['images'])} at most (allowed {_tiny(allowed['images'])}: 16 times "
        f"what float32 rounds on this network, at least 1e-5), {changed}.",
        f"- Flat, striped and single-coloured images, against float64: {_tiny(largest['extreme_images'])} (allowed "
        f"{_tiny(allowed['extreme_images'])}).",
        f"- Batches of 1 to 135 and two threads: {_tiny(coupling)}; a second engine, "
        + (
            f"onnx.reference: {_tiny(report.onnx_reference_max_abs)} (allowed {_tiny(allowed['images'])})."
            if report.onnx_reference_refused is None
            else "onnx.reference, lacks an operator of this file and could not run it."
        ),
    ]
    for precision in REDUCED:
        if reduced := story.parity.reduced(precision):
            if precision in story.profile.models:
                lines += [_reduced(precision, reduced), *([_quantised(story)] if precision == INT8 else [])]
            else:
                lines.append(f"- A model of {precision} was made, did not pass its gate, and is not here.")
    return "\n".join(
        [
            *lines,
            "",
            "All of it is in parity.json. `okdc verify .` checks the files and their answers on your processor.\n",
        ]
    )


def _reduced(precision: str, report: ReducedReport) -> str:
    gates, drop = report.gates, report.drop_points
    moved = f"falls by {drop:.2f} points" if drop > 0 else f"rises by {-drop:.2f} points" if drop < 0 else "stays"
    return (
        f"- `{MODELS[precision]}` against `{MODELS[FLOAT32]}`, on the same images: top-1 {moved} (it may fall "
        f"by {gates.max_drop:g}), {report.agreement_pct:.2f} % of the predictions agree (asked "
        f"{gates.min_agreement:g})."
    )


def _quantised(story: Story) -> str:
    report = story.parity.int8
    assert report is not None
    setting, searched = report.setting, report.searched_on
    bits = (
        "Weights of 8 bits: on x86 processors without VNNI they overflow"
        if report.full_range
        else "Weights of 7 bits: 8 would overflow on x86 processors without VNNI"
    )
    return (
        f"- int8 is static: {setting.weights} weights and {setting.calibration} ranges, the best of "
        f"{len(report.search)} settings on {searched.images:,} {searched.split} images, calibrated on "
        f"{report.calibration.images:,} training images. {bits}."
    )


def _training(story: Story) -> str:
    student, result, data = story.student, story.result, story.data
    if story.split != "test":
        roles = f"{data['validation']:,} validation images to choose and to judge: there is no test split"
    elif data["validation"]:
        roles = f"{data['validation']:,} validation images to choose, {data['test']:,} test images to judge, once"
    else:
        roles = f"{data['test']:,} test images to judge, once; none to choose"
    value, balanced = student.val_top1_pct, student.val_balanced_pct
    epoch = "the last"
    if value is not None and story.recipe["cohort"].get("keep_epoch") != "last":  # no key: of a run from before it
        accuracy = f"{value:.2f} %" if balanced is None else f"balanced, {balanced:.2f} %"
        epoch = f"the best on validation ({accuracy})"
    lines = [
        f"- {code(student.dataset)}: {data['train']:,} images to train, {roles}.",
        f"- Fingerprint of the images, classes and splits: `{result.data_sha256}`.",
        f"- Epoch {student.epoch} of {result.last_epoch}, {epoch}. The whole recipe is in manifest.json.",
    ]
    if result.last_epoch < result.epochs:
        lines.append(
            f"- The training ended before the recipe's {result.epochs} epochs, as validation was no better: its "
            "schedule of the learning rate did not come to its end."
        )
    if student.averaged:
        better = ", the better of the two on validation" if value is not None else ""
        lines.append(
            "- The weights are an exponential moving average of the student's over the training steps (decay "
            f"{story.recipe['optim']['ema']:g}){better}."
        )
    lines += _starts(story)
    if teacher := result.teacher:
        lines.append(f"- The teacher: {code(teacher.architecture)}, weights `{teacher.weights_sha256}`.")
    if story.skipped:
        named = ", ".join(code(line) for line in story.skipped[:SHOWN])
        more = f" and {len(story.skipped) - SHOWN:,} more" if len(story.skipped) > SHOWN else ""
        lines.append(
            f"- {_many(len(story.skipped), 'damaged image')} of the data set left out (`data.skip_damaged`), neither "
            f"trained on nor judged: {named}{more}."
        )
    if story.source is None or not story.source.fixed:
        lines.append(
            "- The name does not say which images these were: copies that were saved again as JPEG, for one, are other "
            "images. Compare the fingerprint."
        )
    return "\n".join(lines) + "\n"


def _starts(story: Story) -> list[str]:
    """What the student, and the peers that it learned from, started from."""
    lines, own = [], story.student.student
    for k, start in enumerate(story.result.starts):
        if start is None:
            continue
        who = "It" if k == own else f"Its peer student{k}"
        head = "its own classifier was new" if start.head == "new" else "their classifier was kept"
        data = f", trained on {code(start.dataset)}" if start.dataset else ""
        data += f", which began with {code(start.above)}" if start.above else ""
        lines.append(
            f"- {who} started from trained weights: {code(start.weights)}{data}, `{start.weights_sha256}`; {head}."
        )
    data = story.student.dataset
    if any(start and (start.above or start.dataset != data) for start in story.result.starts):
        lines.append("- Whether those weights have seen the images that judged this model is not known.")
    return lines


def _limits(story: Story) -> str:
    lines = [
        "- For images like those it was trained on, where a wrong answer can be borne or is looked at. Decisions about "
        "people or safety were not studied.",
        "- An image of anything else gets one of the classes all the same. The probabilities are not calibrated: 0.9 "
        "does not mean right nine times in ten.",
        f"- One run, seed {story.recipe['seed']}: the spread over seeds is not known; the interval is of the images "
        "alone.",
    ]
    if story.split != "test":
        lines.append("- The images that judged it also chose it: the accuracy flatters.")
    for precision, value in story.top1_pct.items():
        if warning := not_above(value, story.images, story.parity.float32.largest_class_pct):
            lines.append(f"- `{MODELS[precision]}`: {warning}.")
    for precision in story.profile.models:
        worst = (story.parity.reduced(precision) or story.parity.float32).worst_class
        if worst.change_pct < 0:
            lost = f"{-worst.change_pct:.2f} points on {_many(worst.images, 'image')}"
            lines.append(f"- `{MODELS[precision]}` loses most in class {code(worst.class_)}: {lost}.")
    if story.source is not None and story.source.caution:
        lines.append(f"- {story.source.caution}")
    return "\n".join(lines) + "\n"


def _licence(story: Story, licence: str | None) -> str:
    weights = (
        f"The weights: {code(licence)}."
        if licence
        else "None is stated for the weights; who publishes them has to state one, also in `license` at the top."
    )
    begun: dict[str, str] = {}
    for start in story.result.starts:
        name = start and (start.above or ("" if start.dataset else start.weights))
        if start and name:
            stated = f"licence {code(start.licence)}" if start.licence else "licence not stated"
            begun.setdefault(name, stated)
    if begun:
        names = "; ".join(f"{code(name)} ({stated})" for name, stated in begun.items())
        weights += f" They began with weights of others: {names}. The terms of their images may matter as well."
    return f"{weights} infer.py: Apache-2.0. The images in sample/ are of the data set, with its terms.\n"


# ---------------------------------------------------------------------------------------------------------------------
# Words and numbers


def _pair(times: Latency) -> str:
    return f"{times.p50:.3g} / {times.p90:.3g}"


def _tiny(value: float | None) -> str:
    return f"{value:.1e}" if value else "0"


def _size(count: int) -> str:
    return f"{count / 1000:,.0f} kB" if count < 1_000_000 else f"{count / 1e6:,.1f} MB"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _named(text: str) -> str:
    """A name in a heading: as it is where nothing in it can be taken for Markdown."""
    return text if re.fullmatch(r"[A-Za-z0-9.:_+-]+", text) else code(text)
