"""Small ONNX files in the shapes that networks come in, made by hand in no time, and the digits they may be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Pixels = npt.NDArray[np.uint8]
CLASSES = 10


class Graph:
    """uint8 NHWC images -> normalised NCHW -> what `make` puts together -> logits, probabilities."""

    def __init__(self, make: Callable[[Graph, str], str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)
        x = self.add("Transpose", self.add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        x = self.add("Sub", x, self.tensor(np.array([120.0, 110.0, 100.0]).reshape(1, 3, 1, 1)))
        x = self.add("Mul", x, self.tensor(np.array([1 / 60, 1 / 62, 1 / 64]).reshape(1, 3, 1, 1)))
        last = make(self, x)
        assert self.nodes[-1].output[0] == last
        self.nodes[-1].output[0] = "logits"
        self.nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1))

    def tensor(self, value: Any) -> str:
        value = np.asarray(value)
        name = f"w{len(self.tensors)}"
        kept = value.astype(np.float32) if value.dtype == np.float64 else value
        self.tensors.append(numpy_helper.from_array(kept, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}{len(self.nodes)}", **attributes))
        return name

    def conv(self, x: str, given: int, made: int, size: int = 1, groups: int = 1) -> str:
        spread = (2 * groups / (given * size * size)) ** 0.5
        weight = self.tensor(self.random.normal(0, spread, (made, given // groups, size, size)))
        bias = self.tensor(self.random.normal(0, 0.1, made))
        return self.add("Conv", x, weight, bias, kernel_shape=[size, size], pads=[size // 2] * 4, group=groups)

    def norm(self, x: str, channels: int) -> str:
        rows = [self.random.uniform(0.5, 1.5, channels) for _ in range(4)]
        return self.add("BatchNormalization", x, *(self.tensor(row) for row in rows))

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, self.tensor(np.float32(0)), self.tensor(np.float32(6)))

    def mean(self, x: str, keepdims: int = 0) -> str:
        return self.add("ReduceMean", x, self.tensor(np.array([2, 3])), keepdims=keepdims)

    def where(self, when: str) -> str:
        """N×1, or one number: 1 where a planted fault shows, else 0. By the colour of an image's upper left pixel, or
        by the number of images that are answered at once.
        """
        if when == "always":
            return self.tensor(np.ones(1, np.float32))
        if when.startswith("batches of "):
            size = self.add("Gather", self.add("Shape", "image"), self.tensor(np.array([0])))
            asked = self.add("Equal", size, self.tensor(np.array([int(when.removeprefix("batches of "))])))
            return self.add("Cast", asked, to=TensorProto.FLOAT)
        corner = self.add("Cast", "image", to=TensorProto.FLOAT)
        for _ in range(2):
            corner = self.add("Gather", corner, self.tensor(np.array(0)), axis=1)
        red, green = (self.add("Gather", corner, self.tensor(np.array([c])), axis=1) for c in (0, 1))
        bright = self.tensor(np.array([250], np.float32))
        if when == "white corner":
            shown = self.add("Greater", self.add("Min", red, green), bright)
        elif when == "red corner":
            shown = self.add("Greater", self.add("Sub", red, green), bright)
        else:
            shown = self.add("Equal", red, self.tensor(np.array([int(when.removeprefix("red of "))], np.float32)))
        return self.add("Cast", shown, to=TensorProto.FLOAT)

    def plant(self, z: str, *faults: tuple[str, Any]) -> str:
        """Logits with a vector added where its fault shows."""
        for when, vector in faults:
            z = self.add("Add", z, self.add("Mul", self.where(when), self.tensor(np.asarray(vector, np.float64)[None])))
        return z

    def linear(self, x: str, given: int) -> str:
        weight = self.tensor(self.random.normal(0, given**-0.5, (CLASSES, given)))
        return self.add("Gemm", x, weight, self.tensor(self.random.normal(0, 0.1, CLASSES)), transB=1)

    def blob(self) -> bytes:
        pixels = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])
        given = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", CLASSES]) for n in ("logits", "probabilities")
        ]
        graph = helper.make_graph(self.nodes, "net", [pixels], given, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        model.producer_name = "okdc"
        helper.set_model_props(model, {"okdc.labels": "[]", "okdc.schema": "1"})
        onnx.checker.check_model(model, full_check=True)
        made: bytes = model.SerializeToString(deterministic=True)
        return made


def mobilenet(g: Graph, x: str) -> str:
    """Depthwise convolutions, ReLU6, a linear bottleneck and a sum (MobileNetV2)."""
    x = g.relu6(g.conv(x, 3, 8, 3))
    inner = g.relu6(g.conv(g.relu6(g.conv(x, 8, 24)), 24, 24, 3, groups=24))
    return g.linear(g.mean(g.add("Add", x, g.conv(inner, 24, 8))), 8)


def densenet(g: Graph, x: str) -> str:
    """BatchNorm that no Conv can take in, and concatenation."""
    x = g.conv(x, 3, 8, 3)
    for channels in (8, 12):
        new = g.conv(g.add("Relu", g.norm(x, channels)), channels, 4, 3)
        x = g.add("Concat", x, new, axis=1)
    x = g.add("AveragePool", g.add("Relu", g.norm(x, 16)), kernel_shape=[2, 2], strides=[2, 2])
    return g.linear(g.mean(x), 16)


def efficientnet(g: Graph, x: str) -> str:
    """HardSwish, SiLU, and squeeze and excitation: Sigmoid, HardSigmoid and Mul between convolutions."""
    x = g.add("HardSwish", g.conv(x, 3, 8, 3))
    narrow = g.add("Relu", g.conv(g.mean(x, keepdims=1), 8, 4))
    x = g.add("Mul", x, g.add("HardSigmoid", g.conv(narrow, 4, 8)))
    x = g.conv(x, 8, 8, 3)
    return g.linear(g.mean(g.add("Mul", x, g.add("Sigmoid", x))), 8)


def convolutional(g: Graph, x: str) -> str:
    """No Gemm: the last convolution gives a map of each class."""
    x = g.conv(g.add("Relu", g.conv(x, 3, 8, 3)), 8, CLASSES)
    return g.add("Flatten", g.add("GlobalAveragePool", x), axis=1)


def matrix(g: Graph, x: str) -> str:
    """A head of MatMul and Add."""
    x = g.mean(g.add("MaxPool", g.add("Relu", g.conv(x, 3, 8, 3)), kernel_shape=[2, 2], strides=[2, 2]))
    x = g.add("MatMul", x, g.tensor(g.random.normal(0, 0.4, (8, CLASSES))))
    return g.add("Add", x, g.tensor(g.random.normal(0, 0.1, CLASSES)))


NETWORKS = (mobilenet, densenet, efficientnet, convolutional, matrix)


def digits() -> tuple[Pixels, npt.NDArray[np.int64]]:
    """1,797 images, 8×8×3, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3), found.target.astype(np.int64)
