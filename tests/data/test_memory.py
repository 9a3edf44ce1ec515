"""What a resident data set takes of memory: its bytes, and little beside them however many files it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from asking import picture
from PIL import Image

from okdc.data.cinic10 import CLASSES, SPLITS

EACH = 400  # of 10 classes in 3 splits: 37 MB
BYTES = EACH * len(CLASSES) * len(SPLITS) * 32 * 32 * 3

CHILD = """
import json, os, sys
from pathlib import Path
from okdc.assembly import job as assembly
from okdc.recipe.draft import load
from okdc.assembly.resolve import resolve

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":")) * 1024

def peak_of(root):
    recipe = resolve(load(["data.name=cinic10", f"data.root={root}", "data.image_size=32", *sys.argv[1:]]))
    assembly.assemble(recipe, 10)  # torch's own pages: a fork leaves those of a file behind, the first use brings them
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    job = assembly.job(recipe, lambda: assembly.dataset(recipe))
    for rows in job.dataset.test.split(500) if job.dataset.files is not None else ():
        job.dataset.pixels(rows)  # as a validation does
    return job.dataset.images.nbytes, status("VmHWM") - before

peak_of("small")  # imports what is imported late
for start in range(2):  # a process each: the second start would reuse unseen what the first has freed
    if os.fork() == 0:
        print(json.dumps(peak_of("large")), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def write_many(root: Path, each: int) -> None:
    """Few pictures under many names."""
    for split in SPLITS:
        for k, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.fromarray(picture(k, 32)).save(folder / "0.png", compress_level=0)
            for i in range(1, each):
                os.link(folder / "0.png", folder / f"{i}.png")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak of memory to be read")
def test_a_data_set_takes_at_its_peak_less_than_1_3_times_its_bytes(tmp_path: Path) -> None:
    for start, size, peak in peaks(tmp_path):
        assert size == BYTES
        assert BYTES * 0.9 < peak < BYTES * 1.3, f"{start} start: {peak / BYTES:.2f}"


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak of memory to be read")
def test_a_data_set_that_stays_in_its_files_takes_a_few_batches(tmp_path: Path) -> None:
    for start, size, peak in peaks(tmp_path, "data.stream=on"):
        assert size == 0
        assert peak < BYTES * 0.5, f"{start} start: {peak / BYTES:.2f}"


def peaks(folder: Path, *words: str) -> list[tuple[str, int, int]]:
    """Of a first start and of one with a cache: the bytes of the images in memory, and the peak of what was taken."""
    write_many(Path("small"), 40)
    write_many(Path("large"), EACH)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OKDC_CACHE": str(folder / "cache")},
    )
    return [
        (start, *json.loads(line)) for start, line in zip(("first", "second"), done.stdout.splitlines(), strict=True)
    ]
