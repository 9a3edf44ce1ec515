"""The model card: true to its facts, read by a YAML parser whatever the names, silent about the machine's places."""

from __future__ import annotations

import copy
import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import result_of, student_info
from reports import COSTS, FLOAT16, FLOAT32, INT8, MACHINE, model_cost

from okdc import methods
from okdc.bundle.artefacts import Parity, Profile
from okdc.bundle.card import Story, card
from okdc.bundle.frontmatter import licence_of, scalar
from okdc.data import DATASETS, find
from okdc.runs.artefacts import Model, Result

yaml: Any = importlib.import_module("yaml")  # fvcore brings it; it has no types

ODD = [
    "no",
    "1e5",
    "a: b",
    "- x",
    'say "hi"',
    "it's",
    "two\nlines",
    "🦊",
    "# not a heading",
    "`tick`",
    "null",
    "<b>",
    "",
]


def changed(model: Model, **keys: Any) -> Model:
    """With other values, checked as those of a file."""
    return type(model).model_validate(model.to_json() | keys)


CARDS = {name: methods.find(name).card().to_json() for name in methods.METHODS.own}
RESULT = Result.model_validate(
    result_of("fefr", {}, ["resnet8", "resnet14"], method_card=CARDS["fefr"], epochs=8, data_sha256="d" * 64)
)
RECIPE = {"seed": 3, "data": {"name": "digits"}, "cohort": {"keep": "best"}}
PARITY = Parity.model_validate({"schema": 1, "float32": FLOAT32})
PROFILE = Profile.model_validate(COSTS)
PLAIN = Story(student_info(), RESULT, RECIPE, {"train": 300, "validation": 700, "test": 797}, PARITY, PROFILE)
INT8_MODEL = {"int8": model_cost("model.int8.onnx", 99_000)}
LIGHTER = replace(
    PLAIN,
    parity=changed(PARITY, int8=INT8),
    profile=changed(PROFILE, models=PROFILE.to_json()["models"] | INT8_MODEL),
)


def _front(text: str) -> dict[str, Any]:
    """The front matter as a hub reads it: between the first two lines of three dashes."""
    start, top, _ = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    assert start == ""
    found: dict[str, Any] = yaml.safe_load(top)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The front matter


def test_the_front_matter_says_what_a_hub_asks_for() -> None:
    assert _front(card(LIGHTER)) == {
        "license": "unknown",
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": [
            "image-classification", "onnx", "onnxruntime", "okdc", "knowledge-distillation", "online-distillation",
        ],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "resnet8 on digits (fefr)",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"type": "digits", "name": "digits", "split": "test"},
                        "metrics": [
                            {
                                "type": "accuracy",
                                "value": 0.912171,
                                "name": "top-1 of model.onnx on 797 test images, one run, seed 3",
                            },
                            {
                                "type": "accuracy",
                                "value": 0.909661,
                                "name": "top-1 of model.int8.onnx on 797 test images, one run, seed 3",
                            },
                        ],
                    }
                ],
            }
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_names_that_yaml_would_take_for_something_else_stay_names(name: str) -> None:
    story = replace(PLAIN, student=student_info(architecture=name, dataset=name, classes=ODD))
    index = _front(card(story))["model-index"][0]
    assert index["name"] == f"{name} on {name} (fefr)"
    assert index["results"][0]["dataset"]["name"] == name
    assert re.fullmatch(r"[A-Za-z0-9.-]+", index["results"][0]["dataset"]["type"])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_a_yaml_parser(text: str) -> None:
    line = scalar(text)
    assert "\n" not in line
    assert yaml.safe_load(f"key: {line}\n") == {"key": text}
    assert yaml.safe_load(f"- {line}\n") == [text]


@pytest.mark.parametrize("value", [0.912171, 1.0, 0.0, 1e-6, 3])
def test_numbers_stay_numbers(value: float) -> None:
    assert yaml.safe_load(f"key: {scalar(value)}") == {"key": value}


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (None, {"license": "unknown"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("GPL-3.0-or-later", {"license": "other", "license_name": "gpl-3.0-or-later"}),
        ("LicenseRef: my own, v1", {"license": "other", "license_name": "licenseref-my-own-v1"}),
        ("«»", {"license": "other", "license_name": "unnamed"}),
    ],
)
def test_a_licence_is_one_that_a_hub_knows_or_other_with_its_name(given_: str | None, expected: dict[str, str]) -> None:
    assert licence_of(given_) == expected
    front = _front(card(replace(PLAIN, licence=given_)))
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected


def test_a_licence_is_named_in_the_text_as_it_was_given_and_a_missing_one_is_missed() -> None:
    assert "The weights: `GPL-3.0-or-later`." in card(replace(PLAIN, licence="GPL-3.0-or-later"))
    for nothing in (None, "", " "):
        text = card(replace(PLAIN, licence=nothing))
        assert "None is stated for the weights" in text
        assert _front(text)["license"] == "unknown"
    assert "infer.py: Apache-2.0" in card(PLAIN)


def test_a_data_set_is_linked_only_where_a_hub_has_it() -> None:
    assert _front(card(replace(PLAIN, student=student_info(dataset="cifar10"))))["datasets"] == ["uoft-cs/cifar10"]
    for own in ("folder", "digits", "mine.data:photos"):
        assert "datasets" not in _front(card(replace(PLAIN, student=student_info(dataset=own))))


@pytest.mark.parametrize(("method", "tags"), [("baseline", 0), ("dualnet", 0), ("kd", 1), ("dml", 2)])
def test_only_what_was_distilled_is_called_so(method: str, tags: int) -> None:
    result = changed(RESULT, variant=method, method_card=CARDS[method])
    found = _front(card(replace(PLAIN, student=student_info(method=method), result=result)))["tags"]
    assert sum("distillation" in tag for tag in found) == tags


# ---------------------------------------------------------------------------------------------------------------------
# The text


def test_the_numbers_stand_with_their_split_error_seed_and_machine() -> None:
    text = card(LIGHTER)
    assert "| `model.onnx` | 91.22 [89.05, 92.99] | 91.30 | – | 319 kB | 0.0239 / 0.0247 | 0.0239 / 0.0247 |" in text
    assert "| `model.int8.onnx` | 90.97 [88.77, 92.76] | 91.00 | 98.75 % | 99 kB |" in text
    assert "| file | top-1, % on test | balanced, % |" in text
    assert "the largest has 10.16 % of these images, the smallest 9.66 %." in text
    assert "797 test images, with Wilson's 95 % interval; one run (n = 1), seed 3." in text
    assert "78,042 parameters. 781,952 MACs an image" in text
    assert "1,563,904 FLOPs" in text
    assert "onnxruntime 1.31.1 on the CPU, 1 thread of `A Processor`, load average 0.5" in text
    assert "busy" not in text


def test_a_busy_machine_and_a_lower_bound_are_said() -> None:
    machine = MACHINE | {"noisy": True, "threads": 2, "load_average_before": None}
    text = card(replace(PLAIN, profile=changed(PROFILE, machine=machine, lower_bound=True)))
    assert "It was busy" in text
    assert "2 threads of `A Processor`. They" in text
    assert "At least 781,952 MACs" in text
    assert "at least 1,563,904 FLOPs" in text


def test_every_check_has_what_was_found_and_what_was_allowed() -> None:
    text = card(LIGHTER)
    assert "logits differ by 3.8e-06 at most (allowed 3.0e-05" in text
    assert "no prediction changed." in text
    assert "against float64: 2.4e-06 (allowed 5.9e-05)" in text
    assert "two threads: 1.5e-06; a second engine, onnx.reference: 1.2e-06 (allowed 3.0e-05)" in text
    assert "top-1 falls by 0.25 points (it may fall by 1), 98.75 % of the predictions agree (asked 97)" in text
    assert "per-channel weights and minmax ranges, the best of 6 settings on 700 validation images" in text
    assert "calibrated on 300 training images. Weights of 7 bits" in text
    assert "`model.int8.onnx` loses most in class `8`: 2.60 points on 77 images." in text
    assert "--model int8" in text


def test_a_prediction_that_rounding_changed_is_said() -> None:
    for count, words in ((1, "1 prediction changed, by rounding"), (2, "2 predictions changed, by rounding")):
        report = FLOAT32 | {"predictions_that_differ": count}
        assert words in card(replace(PLAIN, parity=changed(PARITY, float32=report)))


def test_the_full_range_of_int8_comes_with_its_warning() -> None:
    story = replace(LIGHTER, parity=changed(PARITY, int8=INT8 | {"full_range": True, "drop_points": -0.1}))
    text = card(story)
    assert "Weights of 8 bits: on x86 processors without VNNI they overflow." in text
    assert "top-1 rises by 0.10 points" in text


def test_a_float16_model_has_its_row_and_its_check() -> None:
    models = PROFILE.to_json()["models"] | {"float16": model_cost("model.fp16.onnx", 1_600_000)}
    text = card(replace(PLAIN, parity=changed(PARITY, float16=FLOAT16), profile=changed(PROFILE, models=models)))
    assert "| `model.fp16.onnx` | 91.22 [89.05, 92.99] | 91.30 | 98.75 % | 1.6 MB |" in text
    assert "- `model.fp16.onnx` against `model.onnx`, on the same images: top-1 stays (it may fall by 1)" in text
    assert "int8 is static" not in text
    assert "loses most" not in text, "no class lost anything"


def test_a_rejected_model_is_named_and_has_no_row() -> None:
    text = card(replace(LIGHTER, profile=PROFILE))
    assert "A model of int8 was made, did not pass its gate, and is not here." in text
    assert "model.int8.onnx" not in text
    assert len(_front(text)["model-index"][0]["results"][0]["metrics"]) == 1


def test_who_was_trained_beside_it_and_why_it_is_this_one() -> None:
    assert "It is student0 of 2, the best on the validation images; its peer was `resnet14`." in card(PLAIN)
    other = card(replace(PLAIN, student=student_info(student=1, architecture="resnet14")))
    assert "It is student1 of 2, chosen at export; its peer was `resnet8`." in other
    small = replace(PLAIN, recipe={**RECIPE, "cohort": {"keep": "smallest"}})
    assert "student0 of 2, the smallest;" in card(small)
    assert "student0 of 2, named by the recipe;" in card(replace(PLAIN, recipe={**RECIPE, "cohort": {"keep": 0}}))
    led = changed(RESULT, leader=0, students=["a", "b", "c"], share="low", variant="okddip peers=2")
    text = card(replace(PLAIN, result=led, student=student_info(method="okddip")))
    assert "student0 of 3, the leader; its peers were `b`, `c`, which shared all stages but the last." in text
    assert "Its settings differ from the default: `okddip peers=2`." in text
    assert "A peer of" not in text
    peer = card(replace(PLAIN, result=led, student=student_info(method="okddip", student=1)))
    assert f"A peer of student0, which was d{led.method_card.summary[1:]}" in peer


def test_how_the_epoch_was_chosen_and_what_the_weights_are() -> None:
    def text(student: dict[str, Any], recipe: dict[str, Any], **result: Any) -> str:
        story = replace(
            PLAIN, student=student_info(**student), recipe=RECIPE | recipe, result=changed(RESULT, **result)
        )
        return card(story).partition("## Training")[2]

    assert "- Epoch 7 of 8, the best on validation (92.57 %)." in text({}, {})
    assert "- Epoch 7 of 8, the best on validation (balanced, 81.50 %)." in text({"val_balanced_pct": 81.5}, {})
    assert "- Epoch 7 of 8, the last." in text({}, {"cohort": {"keep": "best", "keep_epoch": "last"}})
    early = text({}, {}, epochs_trained=7)
    assert "- Epoch 7 of 7," in early
    assert "before the recipe's 8 epochs" in early
    for student, better in (({}, True), ({"val_top1_pct": None}, False)):
        averaged = text(student | {"averaged": True}, {"optim": {"ema": 0.999}})
        assert "moving average" in averaged
        assert "(decay 0.999)" in averaged
        assert ("the better of the two" in averaged) is better
    assert "average" not in text({"averaged": False}, {"optim": {"ema": 0.999}})


def test_a_student_without_peers_or_with_a_teacher_says_so() -> None:
    alone = changed(RESULT, students=["resnet8"], variant="baseline", method_card=CARDS["baseline"])
    text = card(replace(PLAIN, student=student_info(method="baseline"), result=alone))
    assert "Trained alone, without distillation.\n" in text
    assert "peer" not in text
    taught = changed(alone, variant="kd", teacher={"architecture": "resnet110", "weights_sha256": "7" * 64})
    assert f"The teacher: `resnet110`, weights `{'7' * 64}`" in card(
        replace(PLAIN, student=student_info(method="kd"), result=taught)
    )


START = {"weights": "timm:x.in1k", "weights_sha256": "8" * 64, "head": "new", "classes": 1000, "dataset": ""}


def test_what_it_started_from_is_said_with_the_licence_and_what_is_not_known() -> None:
    """Licence and images of trained weights matter to whoever ships the student."""
    text = card(replace(PLAIN, result=changed(RESULT, starts=[START | {"licence": "apache-2.0"}, None])))
    assert f"- It started from trained weights: `timm:x.in1k`, `{'8' * 64}`; its own classifier was new." in text
    assert "Whether those weights have seen the images that judged this model is not known." in text
    assert "They began with weights of others: `timm:x.in1k` (licence `apache-2.0`)." in text
    peer = {"weights": "runs/a", "weights_sha256": "9" * 64, "head": "kept", "dataset": "digits", "licence": ""}
    text = card(replace(PLAIN, result=changed(RESULT, starts=[None, peer])))
    assert "- Its peer student1 started from trained weights: `runs/a`, trained on `digits`" in text
    assert "have seen the images that judged" not in text
    assert "weights of others" not in text
    text = card(replace(PLAIN, result=changed(RESULT, starts=[None, peer | {"above": "timm:y.in1k"}])))
    assert "trained on `digits`, which began with `timm:y.in1k`" in text
    assert "have seen the images that judged" in text
    assert "`timm:y.in1k` (licence not stated)" in text
    assert "started from" not in card(PLAIN)


def test_which_images_trained_chose_and_judged() -> None:
    text = card(PLAIN)
    assert "300 images to train, 700 validation images to choose, 797 test images to judge, once." in text
    assert f"`{'d' * 64}`" in text
    assert "Epoch 7 of 8, the best on validation (92.57 %)." in text
    assert "flatters" not in text
    unchosen = replace(
        PLAIN, student=student_info(val_top1_pct=None, epoch=8), data={"train": 1, "validation": 0, "test": 797}
    )
    assert "797 test images to judge, once; none to choose." in card(unchosen)
    assert "Epoch 8 of 8, the last." in card(unchosen)


def test_an_accuracy_on_the_images_that_chose_is_said_to_flatter() -> None:
    parity = changed(PARITY, float32=FLOAT32 | {"split": "validation", "images": 700})
    text = card(replace(PLAIN, parity=parity, data={"train": 300, "validation": 700, "test": 0}))
    assert "700 validation images to choose and to judge: there is no test split" in text
    assert "also chose it: the accuracy flatters" in text
    assert "| file | top-1, % on validation |" in text


def test_few_classes_are_all_named_and_many_are_counted() -> None:
    assert "`0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9`.\n" in card(PLAIN)
    many = card(replace(PLAIN, student=student_info(classes=[f"c{k}" for k in range(1000)])))
    assert "1,000 classes" in many
    assert "`c9` and 990 more: `labels` in manifest.json.\n" in many
    assert "c10" not in many
    assert "N×1000" in many


def test_the_use_names_the_size_and_the_shorter_side() -> None:
    rule = {"size": 224, "shorter_side": 256, "resize": "a rule", "mean": [0.3] * 3, "std": [0.4] * 3}
    text = card(replace(PLAIN, student=student_info(preprocessing=rule)))
    assert "N×224×224×3" in text
    assert "shorter side resized to 256 pixels (bilinear, antialiased), and its centre of 224×224 cut out" in text
    assert "python infer.py . photo.jpg" in text


@pytest.mark.parametrize("name", DATASETS.own)
def test_the_card_has_the_caution_of_a_data_set_and_says_where_copies_differ(name: str) -> None:
    text, source = card(replace(PLAIN, student=student_info(dataset=name))), find(name)
    assert source.caution in text
    assert bool(source.caution) == (name != "folder")
    assert ("saved again as JPEG" in text) == (not source.fixed)


@pytest.mark.parametrize("name", methods.METHODS.own)
def test_every_method_describes_itself_in_a_sentence_with_its_source(name: str) -> None:
    described = methods.find(name).card()
    assert described.title.lower() == name
    assert described.summary.endswith(".")
    assert described.reference == (name == "baseline")
    assert name == "baseline" or described.title in described.summary


@pytest.mark.parametrize("name", [name for name in ODD if name])
def test_foreign_names_are_only_letters_in_the_text(name: str) -> None:
    """Outside code spans nothing of a class, a data set or a processor is left that Markdown or HTML could read."""
    classes = [name, "other"]
    int8 = INT8 | {"worst_class": INT8["worst_class"] | {"class": name}}
    story = replace(
        LIGHTER,
        student=student_info(architecture=name, dataset=name, classes=classes),
        profile=changed(LIGHTER.profile, machine=MACHINE | {"processor": name}),
        parity=changed(PARITY, int8=int8),
        licence=name,
    )
    text = card(story).split("---\n", 2)[2]
    usual = card(LIGHTER).split("---\n", 2)[2]
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == [
        line for line in usual.splitlines() if line.startswith("#")
    ][1:]
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text.replace("```sh", "").replace("```\n", "\n"))
    assert "`" not in prose
    if not re.fullmatch(r"[A-Za-z0-9]+", name):
        assert name not in prose
    assert len(text.splitlines()) == len(usual.splitlines()) - 1 + len(
        [line for line in text.splitlines() if "saved again as JPEG" in line]
    ), "no name breaks a line"


def test_the_same_facts_give_the_same_card_and_are_left_as_they_were() -> None:
    before = copy.deepcopy(LIGHTER)
    assert card(LIGHTER) == card(before)
    assert before == LIGHTER
    code = (
        "import runpy, sys; "
        "sys.path[:0] = sys.argv[2:]; names = runpy.run_path(sys.argv[1]); "
        "sys.stdout.reconfigure(encoding='utf-8'); "
        "print(names['card'](names['LIGHTER']), end='')"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, __file__, *map(str, Path(__file__).parents[1:3])],
        capture_output=True, check=True, encoding="utf-8", env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert run.stdout == card(LIGHTER)


def test_a_card_is_short() -> None:
    text = card(LIGHTER)
    assert len(text.splitlines()) < 110
    assert not re.search(r"\d{4}-\d\d-\d\d|/home|/tmp|/root", text)
