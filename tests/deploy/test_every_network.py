"""Every network, of the zoo and from outside, leaves as one ONNX file that answers and costs as it does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from asking import case
from making import student_info

from okdc import backbones
from okdc.backbones.naming import MSFE
from okdc.bundle import structure
from okdc.bundle.checks import FLOOR, largest
from okdc.bundle.macs import macs
from okdc.bundle.session import Session
from okdc.cohort import Backbone
from okdc.data.batches import Normalise
from okdc.deploy import onnx
from okdc.deploy.count import count, exported
from okdc.deploy.parity import FACTOR
from okdc.deploy.torch_reference import Torch
from okdc.runs.artefacts import StudentInfo
from okdc.seeds import seeded

CLASSES = 10
FOREIGN = (
    "resnet18", "mobilenet_v2", "efficientnet_b0", "densenet121", "vgg11_bn", "shufflenet_v2_x1_0", "regnet_y_400mf",
    "convnext_tiny",
)  # fmt: skip
EXTRACTING = tuple(f"resnet8{suffix}" for suffix in MSFE.values())
DEEPER = ("resnet8+2", "wrn16_1+1")
SIZES = dict.fromkeys((*backbones.NETWORKS.own, *EXTRACTING, *DEEPER), 32) | {
    f"torchvision:{name}": 64 for name in FOREIGN
}
# BatchNormalizations that no Conv can take in: those behind a sum or a concatenation, and one behind a stem that a
# shortcut or a concatenation reads as well. Everywhere else all of them are folded.
LEFT = {"wrn16_1": 7, "wrn16_1+1": 8, "wrn16_2": 6, "wrn16_8": 6, "wrn40_2": 18, "densenet40_12": 21}
LEFT["densenet40_12_vanilla"] = 39
LEFT["torchvision:densenet121"] = 58 + 3 + 1  # one a layer, one a transition, the last
# Pooling that is exported as two matrix products, over the width and over the height: 512 maps of 2×2 become 7×7.
POOLED = {"torchvision:vgg11_bn": 512 * (2 * 7 * 2 + 7 * 7 * 2)}


def info_of(name: str) -> StudentInfo:
    """student.json of a network without training."""
    rule = {"size": SIZES[name], "resize": "", "mean": [0.5, 0.45, 0.4], "std": [0.25, 0.2, 0.3]}
    return student_info(architecture=name, classes=[str(c) for c in range(CLASSES)], preprocessing=rule)


def used(name: str) -> Backbone:
    """A network whose BatchNorm has seen images and has weights of its own: at 1 and 0 a lost one would not show.

    Its statistics are those of the images, not 0 and 1 moved by a tenth: MobileNetV2's signal would die away on those.
    """
    generator = torch.Generator().manual_seed(0)
    with seeded(0, "student", 0):
        network = backbones.build(name, CLASSES, torch.Size((3, SIZES[name], SIZES[name])))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2, generator=generator)
    rule = info_of(name).preprocessing
    pixels = torch.randint(0, 256, (2, 16, SIZES[name], SIZES[name], 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        for batch in pixels:
            network.train()(Normalise(rule.mean, rule.std)(batch))
    return network.eval()


# Deeper and wider ones of a builder whose others are tried; and of the networks from outside, each of which is tried in
# every training before its first step (okdc.deploy.trial), all but one. test_any_network.py has others like them.
LONG = {"resnet14", "resnet20", "resnet32", "resnet34", "resnet56", "resnet110"}
LONG |= {"wrn16_2", "wrn16_8", "wrn40_2", "densenet40_12"}
LONG |= {f"torchvision:{name}" for name in FOREIGN if name != "resnet18"}


@pytest.mark.parametrize("name", [case(name, long=name in LONG) for name in SIZES])
def test_the_file_has_a_plain_structure_answers_as_the_network_and_costs_the_same(name: str) -> None:
    network = used(name)
    blob = onnx.to_onnx(network, info_of(name))
    model = structure.check_structure(blob, info_of(name))
    operators = Counter(node.op_type for node in model.graph.node)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
    assert operators["Conv"] == convolutions
    assert operators["BatchNormalization"] == LEFT.get(name, 0)
    example = torch.zeros(1, 3, SIZES[name], SIZES[name])
    assert macs(model) == exported(network, example).macs, "to the unit"
    assert macs(model) == count(network, example).macs + POOLED.get(name, 0), "and to fvcore's"

    side, session = Torch(network, info_of(name).preprocessing), Session(blob)
    images = np.random.default_rng(1).integers(0, 256, (5, SIZES[name], SIZES[name], 3), dtype=np.uint8)
    expected = side.logits(images)
    allowed = max(FACTOR * largest(expected, side.exact(images)), FLOOR)
    assert np.abs(expected).max() > 100 * allowed, "logits so small that any would pass"
    assert np.ptp(expected, axis=0).max() > 100 * allowed, "the images are told apart"
    for batch in (1, 5):
        logits, _ = session(images, batch)
        assert largest(logits, expected) <= allowed, f"batch {batch}"


def test_a_training_takes_as_proven_what_is_proven_here_and_no_other_network() -> None:
    """`okdc.training.exportable` tries the export of all others before their first step."""
    own = [name for name in SIZES if backbones.is_proven(name)]
    assert set(own) == {*backbones.NETWORKS.own, *EXTRACTING, *DEEPER}
    assert all(backbones.is_proven(name + suffix) for name in own[:1] for suffix in MSFE.values())
    for other in ("torchvision:resnet18", "timm:resnet8", "mine:resnet8", "resnet8:resnet8", "petalnet", "resnet"):
        assert not any(backbones.is_proven(other + suffix) for suffix in ("", *MSFE.values()))
