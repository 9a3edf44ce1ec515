"""export/web/preprocess.mjs: the manifest's rule in JavaScript is Pillow's, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from runners import LETTERS, javascript, needs_node

from okdc import escaping
from okdc.data import images

pytestmark = needs_node

Pixels = npt.NDArray[np.uint8]

FIT = """
import fs from 'node:fs';
const { fit } = await import(web + 'preprocess.mjs');
const folder = process.argv[1] + '/';
for (const [i, { width, height, channels, side, shorter }] of JSON.parse(fs.readFileSync(folder + 'cases')).entries()) {
  const data = new Uint8Array(fs.readFileSync(folder + i));
  fs.writeFileSync(`${folder}${i}.out`, fit({ data, width, height, channels }, side, shorter));
}
"""
RGB = """
import fs from 'node:fs';
const { toRgb } = await import(web + 'preprocess.mjs');
const [file, width, height, channels, bits, cmyk] = process.argv.slice(1);
const bytes = fs.readFileSync(file);
const data = bits === '16' ? new Uint16Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))
                           : new Uint8Array(bytes);
const image = { data, width: +width, height: +height, channels: +channels, cmyk: cmyk === 'cmyk' };
fs.writeFileSync(file, toRgb(image).data);
"""


def _fitted(folder: Path, cases: list[tuple[Pixels, int, int | None]]) -> list[Pixels]:
    """(HWC pixels, side, shorter side) of each case -> what the page makes of them."""
    facts: list[dict[str, Any]] = []
    for i, (pixels, side, shorter) in enumerate(cases):
        height, width, channels = pixels.shape
        facts.append({"width": width, "height": height, "channels": channels, "side": side, "shorter": shorter or side})
        (folder / str(i)).write_bytes(pixels.tobytes())
    (folder / "cases").write_text(json.dumps(facts), encoding="utf-8")
    javascript(FIT, folder)
    results = [np.frombuffer((folder / f"{i}.out").read_bytes(), np.uint8) for i in range(len(cases))]
    return [r.reshape(side, side, 3) for r, (_, side, _) in zip(results, cases, strict=True)]


def _rgb(folder: Path, values: npt.NDArray[Any], cmyk: str = "") -> Pixels:
    """Rows × columns × channels of 8 or 16 bits -> the same image as RGB."""
    height, width, channels = values.shape
    (folder / "raw").write_bytes(values.tobytes())
    javascript(RGB, folder / "raw", str(width), str(height), str(channels), str(8 * values.itemsize), cmyk)
    return np.frombuffer((folder / "raw").read_bytes(), np.uint8).reshape(height, width, 3)


def test_random_images_of_many_sizes_become_pillows_bytes(script: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 160, (80, 2))]
    sizes += [
        (1, 1),
        (1, 90),
        (90, 1),
        (32, 32),
        (32, 48),
        (48, 32),
        (31, 33),
        (33, 31),
        (64, 64),
        (500, 333),
        (7, 600),
    ]
    cases: list[tuple[Pixels, int, int | None]] = []
    for i, (height, width) in enumerate(sizes):
        side = 32 if i >= 80 else int(rng.integers(1, 70))
        shorter = side + int(rng.integers(1, 20)) if i % 3 == 2 else None
        cases.append((rng.integers(0, 256, (height, width, 3), dtype=np.uint8), side, shorter))
    # Hard edges and the very ends of the scale: where a weight's rounding would show.
    cases.append((np.where(rng.random((90, 70, 3)) < 0.5, 0, 255).astype(np.uint8), 24, 29))
    cases.append((np.full((41, 53, 3), 255, np.uint8), 17, None))
    for (pixels, side, shorter), found in zip(cases, _fitted(tmp_path, cases), strict=True):
        expected = script.fit(Image.fromarray(pixels), side, shorter or side)
        np.testing.assert_array_equal(found, expected, err_msg=f"{pixels.shape} to {side}, shorter side {shorter}")


def test_of_an_opaque_canvas_the_fourth_channel_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    found = _fitted(tmp_path, [(pixels, 16, None)])[0]
    np.testing.assert_array_equal(found, script.fit(Image.fromarray(pixels[..., :3]), 16, 16))


def test_every_value_under_every_transparency_is_pillows_over_black(tmp_path: Path) -> None:
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pixels = np.stack([value, value.T, 255 - value, alpha], axis=2)
    np.testing.assert_array_equal(_rgb(tmp_path, pixels), images.to_rgb(Image.fromarray(pixels)))
    pixels = np.stack([value, alpha], axis=2)
    np.testing.assert_array_equal(_rgb(tmp_path, pixels), images.to_rgb(Image.fromarray(pixels, "LA")))


def test_every_ink_under_every_black_is_pillows(tmp_path: Path) -> None:
    ink, black = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pixels = np.stack([ink, ink.T, 255 - ink, black], axis=2)
    expected = np.asarray(Image.fromarray(pixels, "CMYK").convert("RGB"))
    np.testing.assert_array_equal(_rgb(tmp_path, pixels, "cmyk"), expected)


def test_every_grey_of_sixteen_bits_is_divided_by_257(tmp_path: Path) -> None:
    grey = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(_rgb(tmp_path, grey[..., None]), images.to_rgb(Image.fromarray(grey)))


def test_halves_are_rounded_to_even_as_python_does() -> None:
    values = [k / 2 for k in range(41)] + [0.49999999999999994, 2.5000000000000004, 1e9 + 0.5]
    code = "const { roundHalfEven } = await import(web + 'preprocess.mjs');"
    code += f"console.log(JSON.stringify({json.dumps(values)}.map(roundHalfEven)))"
    assert json.loads(javascript(code)) == [round(value) for value in values]


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_thread_of_pixels_that_would_fill_the_memory_is_refused(shape: tuple[int, int]) -> None:
    code = f"""
    const {{ fit }} = await import(web + 'preprocess.mjs');
    const image = {{ data: new Uint8Array(180000), width: {shape[1]}, height: {shape[0]}, channels: 3 }};
    try {{ fit(image, 224); }} catch (error) {{ console.log(error.message); }}
    """
    assert "pixels would become" in javascript(code)


def test_a_line_is_escaped_as_okdc_escapes_it(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text(LETTERS, encoding="utf-8", newline="")
    code = """
    import fs from 'node:fs';
    const { shown } = await import(web + 'bundle.mjs');
    process.stdout.write(shown(fs.readFileSync(process.argv[1], 'utf8')));
    """
    assert javascript(code, tmp_path / "letters") == escaping.shown(LETTERS)
