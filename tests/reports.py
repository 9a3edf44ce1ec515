"""Reports of a bundle as its files hold them: all that a model checks, with the numbers that a test wants."""

from __future__ import annotations

from typing import Any

TIMES = {"p50": 0.0239, "p90": 0.0247, "min": 0.0233, "runs": 100, "noisy": False}


def model_cost(file: str, size: int) -> dict[str, Any]:
    return {"file": file, "bytes": size, "macs": 781_952, "latency_ms": {"batch_1": TIMES, "batch_64": TIMES}}


COMMON: dict[str, Any] = {
    "passed": True,
    "failures": [],
    "split": "test",
    "images": 797,
    "largest_class_pct": 10.1631,
    "smallest_class_pct": 9.6612,
    "predictions_that_differ": 0,
    "discordant": {},
    "probabilities_max_abs": 0.0,
    "invariance_max_abs": {"batch_2": 0.0, "2_threads": 1.5e-6},
    "versions": {},
    "platform": "a platform",
    "processor": {"name": "A Processor", "flags": []},
}
FLOAT32 = COMMON | {
    "agreement_pct": 100.0,
    "logits": {
        "allowed": {"images": 3.0e-5, "extreme_images": 5.9e-5},
        "float32_noise": {},
        "max_abs": {"images": 3.8e-6, "images_float64": 3.3e-6, "extreme_images": 2.4e-6},
        "mean_abs": 0.0,
        "largest_logit": 9.0,
    },
    "top1_pct": {"torch": 91.2171, "onnx": 91.2171, "recorded": 91.2171},
    "balanced_accuracy_pct": {"torch": 91.3, "onnx": 91.3},
    "worst_class": {"class": "0", "images": 79, "change_pct": 0.0},
    "cause": None,
    "images_sha256": "e" * 64,
    "flips": [],
    "unexplained_flips": [],
    "onnx_reference_max_abs": 1.2e-6,
}
FLOAT16 = COMMON | {
    "gates": {"max_drop": 1.0, "min_agreement": 97.0, "max_class_drop": 5.0},
    "top1_pct": {"float32": 91.2171, "float16": 91.2171},
    "balanced_accuracy_pct": {"float32": 91.3, "float16": 91.3},
    "drop_points": 0.0,
    "agreement_pct": 98.7453,
    "worst_class": FLOAT32["worst_class"],
    "logits": {"max_abs": 0.1, "mean_abs": 0.01, "largest_logit": 9.0},
    "tolerance": 0.1,
    "finite": True,
    "bytes": {"float32": 2, "float16": 1, "ratio": 0.5},
}
INT8 = FLOAT16 | {
    "top1_pct": {"float32": 91.2171, "int8": 90.9661},
    "balanced_accuracy_pct": {"float32": 91.3, "int8": 91.0},
    "drop_points": 0.251,
    "worst_class": {"class": "8", "images": 77, "change_pct": -2.5974},
    "calibration": {"images": 300, "seed": 0, "split": "train", "sha256": "c" * 64},
    "full_range": False,
    "setting": {"weights": "per-channel", "calibration": "minmax"},
    "searched_on": {"split": "validation", "images": 700},
    "search": [{"weights": "per-channel", "calibration": "minmax"}] * 6,
}
MACHINE = {
    "engine": "onnxruntime on the CPU",
    "processor": "A Processor",
    "flags": [],
    "threads": 1,
    "load_average_before": 0.5,
    "noisy": False,
}

COSTS = {
    "schema": 1,
    "input": [3, 8, 8],
    "params": 78_042,
    "params_trainable": 78_042,
    "buffers": 0,
    "macs": 781_952,
    "flops": 1_563_904,
    "fvcore_total": 0,
    "activations": 0,
    "uncounted": [],
    "ignored": [],
    "lower_bound": False,
    "models": {"float32": model_cost("model.onnx", 319_100)},
    "machine": MACHINE,
    "versions": {"onnxruntime": "1.31.1"},
}
