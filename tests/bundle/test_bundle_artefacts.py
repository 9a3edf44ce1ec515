"""A wrong type or a missing key in a bundle's file is one error with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import ask
from bundles import edit, of_digits, seal
from planting import MISSING, plant, refused

from okdc.runs.run import Run

Captured = pytest.CaptureFixture[str]

PLANTED: dict[str, list[tuple[str, object]]] = {
    "manifest.json": [
        ("schema", 2), ("models", ["float32"]), ("models.float32.top1_pct", "97"), ("opset", "18"), ("labels", [0, 1]),
        ("input.height", 8.0), ("normalisation.mean", 0.5), ("accuracy.images", True), ("judged_on.part", "all of it"),
        ("method", 3), ("teacher", []), ("versions", "1.0"), ("recipe", "digits"), ("weights_sha256", MISSING),
        ("judged_on", MISSING), ("files", []),
    ],
    "parity.json": [
        ("schema", 2), ("float32", []), ("float32", MISSING), ("float32.passed", "yes"), ("float32.failures", "none"),
        ("float32.images", 0), ("float32.top1_pct", 97.0), ("float32.logits", None),
        ("float32.logits.allowed.images", "1e-5"), ("float32.worst_class", {}), ("float32.processor.name", 7),
        ("float32.flips", [0.5]),
    ],
    "profile.json": [
        ("schema", 2), ("input", "3x8x8"), ("params", "78,042"), ("macs", 1.5), ("flops", MISSING), ("ignored", [1]),
        ("lower_bound", 0), ("models", []), ("models.float32.bytes", -1),
        ("models.float32.latency_ms.batch_1.p50", "2"),
        ("machine", MISSING), ("machine.threads", 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_type_or_a_missing_key_is_one_error_with_file_and_key(
    name: str, finished: Run, blob: bytes, tmp_path: Path, capsys: Captured
) -> None:
    bundle = of_digits(finished, blob, tmp_path / "bundle")
    edit(bundle / "manifest.json", lambda m: m["recipe"]["data"].update(name="folder"))  # accuracy is not looked at
    before = (bundle / name).read_bytes()
    for key, value in PLANTED[name]:
        plant(bundle / name, key, value)
        if name != "manifest.json":
            seal(bundle)
        refused(ask(capsys, "verify", "bundle"), 2 if name == "manifest.json" else 1, name, key)
        (bundle / name).write_bytes(before)
