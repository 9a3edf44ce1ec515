from __future__ import annotations

import io
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asking import Pixels, picture, tried, write_tree
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from okdc.data import images
from okdc.data.decoding import decode
from okdc.data.images import fit
from okdc.data.listing import Listing, list_images
from okdc.errors import DataError

BLACK = np.zeros((8, 8, 3), np.uint8)


def saved(image: Image.Image, name: str = "one.png", **options: Any) -> Path:
    path = Path(name)
    image.save(path, **options)
    return path


def decoded(path: Path, size: int = 8) -> Pixels:
    return np.asarray(decode([path], size).pixels[0])


# --- one image: modes


def test_a_colour_image_of_the_size_wanted_is_itself() -> None:
    pixels = picture(1, 8)
    for name in ("a.png", "a.bmp"):
        assert np.array_equal(decoded(saved(Image.fromarray(pixels), name)), pixels)
    assert np.array_equal(decoded(saved(Image.fromarray(pixels), "a.webp", lossless=True)), pixels)


def test_grey_is_repeated_in_every_channel() -> None:
    grey = picture(2, 8)[..., 0]
    assert np.array_equal(decoded(saved(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))


def test_one_bit_is_black_and_white() -> None:
    grey = picture(3, 8)[..., 0] > 127
    expected = np.repeat(grey[..., None] * np.uint8(255), 3, axis=2)
    assert np.array_equal(decoded(saved(Image.fromarray(grey))), expected)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = np.random.default_rng(4).integers(0, 65536, (8, 8), dtype=np.uint16)
    deep[0, :4] = (0, 257, 65535, 32768)
    result = decoded(saved(Image.fromarray(deep)))
    assert np.array_equal(result, np.repeat(np.round(deep / 257).astype(np.uint8)[..., None], 3, axis=2))
    assert result[0, :4, 0].tolist() == [0, 1, 255, 128]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_black(mode: str) -> None:
    pixels, alpha = picture(5, 8), picture(6, 8)[..., 0]
    alpha[0], alpha[1] = 0, 255
    if mode == "LA":
        pixels[:] = pixels[..., :1]
    image = Image.fromarray(np.dstack([pixels[..., :1] if mode == "LA" else pixels, alpha]))
    assert image.mode == mode
    result = decoded(saved(image))
    expected = pixels * (alpha[..., None] / 255.0)
    assert np.abs(result - expected).max() <= 1  # a rounding
    assert not result[0].any()
    assert np.array_equal(result[1], pixels[1])


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (8, 8))
    colours = picture(7, 16)[0]
    image.putpalette(colours.ravel().tolist())
    indices = (picture(8, 8)[..., 0] % 16).astype(np.uint8)
    image.putdata(indices.ravel().tolist())
    assert np.array_equal(decoded(saved(image)), colours[indices])


def test_a_transparent_entry_of_a_palette_is_black() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 8, 4))
    result = decoded(saved(image, transparency=0))
    assert np.array_equal(result[:4], BLACK[:4])
    assert np.array_equal(result[4:], np.broadcast_to(np.array([200, 100, 50], np.uint8), (4, 8, 3)))


def test_a_transparent_colour_of_an_opaque_mode_is_black() -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    image.paste((1, 2, 3), (0, 0, 8, 4))
    result = decoded(saved(image, transparency=(200, 100, 50)))
    assert np.array_equal(result[4:], BLACK[4:])
    assert np.array_equal(result[:4], np.broadcast_to(np.array([1, 2, 3], np.uint8), (4, 8, 3)))


def test_cmyk_is_converted_to_rgb() -> None:
    c, m, y, k = 200, 40, 90, 30
    result = decoded(saved(Image.new("CMYK", (8, 8), (c, m, y, k)), "a.jpg", quality=100))
    expected = [(255 - ink) * (255 - k) / 255 for ink in (c, m, y)]
    assert np.abs(result.reshape(-1, 3) - expected).max() <= 4  # JPEG is lossy


# What EXIF's orientation tag means, by the numpy operation that turns the stored pixels upright.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_stands_upright_by_its_exif_tag(orientation: int) -> None:
    pixels = picture(9, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(saved(Image.fromarray(pixels), exif=exif))
    assert np.array_equal(result, UPRIGHT[orientation](pixels))


def test_an_image_with_nonsense_for_exif_is_still_read() -> None:
    path = saved(Image.fromarray(picture(1, 8)), "plain.jpg")
    broken = saved(Image.fromarray(picture(1, 8)), "broken.jpg", exif=b"Exif\0\0nonsense")
    assert np.array_equal(decoded(broken), decoded(path))


# --- one image: sizes


def by_the_rule(pixels: Pixels, size: int) -> Pixels:
    """The stated rule once more, with torch's antialiased bilinear instead of Pillow's."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    wanted = max(size, round(height * scale)), max(size, round(width * scale))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    x = F.interpolate(x, wanted, mode="bilinear", antialias=True, align_corners=False)
    top, left = (wanted[0] - size) // 2, (wanted[1] - size) // 2
    cut: Pixels = x[0, :, top : top + size, left : left + size].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return cut


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(4, 24))
@tried
def test_any_size_is_resized_by_the_shorter_side_and_cut_in_the_centre(height: int, width: int, size: int) -> None:
    pixels = picture(height * 61 + width, height, width)
    result = fit(Image.fromarray(pixels), size)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    difference = np.abs(result.astype(int) - by_the_rule(pixels, size).astype(int))
    assert difference.max() <= 2  # Pillow rounds to 8 bits between its two passes


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8), (8, 15), (13, 8)])
def test_an_image_whose_shorter_side_fits_is_only_cut(height: int, width: int) -> None:
    pixels = picture(1, height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    assert np.array_equal(fit(Image.fromarray(pixels), 8), pixels[top : top + 8, left : left + 8])


def test_a_thin_line_is_an_image_too() -> None:
    assert fit(Image.fromarray(picture(1, 1, 3000)), 8).shape == (8, 8, 3)


# --- many images


def test_images_keep_the_order_of_their_files_and_progress_reaches_the_end() -> None:
    pixels = [picture(i, 8) for i in range(150)]
    files = [saved(Image.fromarray(p), f"{i}.png") for i, p in enumerate(pixels)]
    seen: list[tuple[int, int]] = []
    result, sha256, damaged = decode(files, 8, lambda done, total: seen.append((done, total)))
    assert np.array_equal(result, np.stack(pixels))
    assert not damaged
    assert seen == [(64, 150), (128, 150), (150, 150)]
    assert sha256 == decode(files, 16).sha256  # of the files, not of what became of them
    assert sha256 != decode(files[::-1], 8).sha256


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def test_every_file_that_is_no_whole_image_is_listed_with_its_path() -> None:
    whole = saved(Image.fromarray(picture(1, 64)), "good.png")
    jpeg = saved(Image.fromarray(picture(2, 64)), "whole.jpg").read_bytes()
    bad = {
        "zero.png": (b"", "zero bytes"),
        "text.png": (b"<html>404</html>", "not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (whole.read_bytes()[:200], "truncated"),
        "header.jpg": (jpeg[:2], "not an image"),
        "bomb.png": (png_that_claims(30_000, 30_000), "exceeds limit"),
        "large.png": (png_that_claims(10_000, 10_000), "exceeds limit"),
    }
    for name, (content, _) in bad.items():
        Path(name).write_bytes(content)
    Path("folder.png").mkdir()
    files = [whole, *map(Path, bad), Path("folder.png"), Path("gone.png"), whole]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the refusal of 10,000×10,000 pixels is okdc's own
        with pytest.raises(DataError) as caught:
            decode(files, 8)
    reasons = dict(line.split(": ", 1) for line in caught.value.details)
    assert set(reasons) == {*bad, "folder.png", "gone.png"}
    assert caught.value.message.startswith(
        f"{len(reasons)} of {len(files)} images cannot be read, the first is bomb.png"
    )
    for name, (_, said) in bad.items():
        assert said in reasons[name], name
    assert reasons["folder.png"] == "a folder, not a file"
    assert reasons["gone.png"] == "No such file or directory"
    assert "0x" not in "".join(reasons.values())  # no address in memory


# --- listing


def relative(result: Listing) -> dict[str, list[tuple[str, str]]]:
    """{split: [(path, class)]}"""
    return {
        split: [(result.files[i].relative_to(result.root).as_posix(), result.classes[result.labels[i]]) for i in rows]
        for split, rows in result.splits.items()
    }


@pytest.mark.parametrize("val", ["val", "valid"])
def test_a_tree_of_splits_is_listed_by_split_and_class(val: str) -> None:
    tree = {"test": {"b": 1, "a": 1}, val: {"a": 2, "b": 1}, "train": {"b": 1, "a": 2}}
    listing = list_images(write_tree(Path("root"), tree))
    assert listing.classes == ("a", "b")
    assert relative(listing) == {
        "train": [("train/a/000.png", "a"), ("train/a/001.png", "a"), ("train/b/000.png", "b")],
        "val": [(f"{val}/a/000.png", "a"), (f"{val}/a/001.png", "a"), (f"{val}/b/000.png", "b")],
        "test": [("test/a/000.png", "a"), ("test/b/000.png", "b")],
    }
    assert listing.notes == []


def test_train_alone_and_one_folder_of_classes_are_enough() -> None:
    assert set(list_images(write_tree(Path("one"), {"train": {"a": 2, "b": 1}})).splits) == {"train"}
    flat = list_images(write_tree(Path("two"), {"a": 2, "b": 1}))
    assert relative(flat) == {"all": [("a/000.png", "a"), ("a/001.png", "a"), ("b/000.png", "b")]}


def test_classes_are_mapped_by_name_where_another_split_lacks_one() -> None:
    tree = {"train": {"a": 1, "b": 1, "c": 1}, "val": {"c": 1, "a": 1}, "test": {"c": 2}}
    listing = list_images(write_tree(Path("root"), tree))
    assert relative(listing)["val"] == [("val/a/000.png", "a"), ("val/c/000.png", "c")]
    assert {label for _, label in relative(listing)["test"]} == {"c"}
    root = listing.root
    assert listing.notes == [
        f"{root}/val/b: no images of this class in val",
        f"{root}/test/a: no images of this class in test",
        f"{root}/test/b: no images of this class in test",
    ]


def test_a_class_folder_without_images_outside_train_is_a_note() -> None:
    listing = list_images(write_tree(Path("root"), {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 0}}))
    assert listing.notes == [f"{listing.root}/test/b: no images of this class in test"]


def test_a_class_that_only_another_split_has_is_an_error() -> None:
    root = write_tree(Path("root"), {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dgo": 1, "emu": 0}})
    with pytest.raises(DataError, match=r"class 'dgo' is not in .*/root/train \(did you mean 'dog'\?\)") as caught:
        list_images(root)
    assert [Path(line).name for line in caught.value.details] == ["dgo", "emu"]


def test_hidden_folders_and_files_are_nobodys() -> None:
    root = write_tree(Path("root"), {"train": {"a": 1, "b": 1, ".ipynb_checkpoints": 1}, ".git": {"x": 1}})
    shutil.copy(root / "train/a/000.png", root / "train/a/.hidden.png")
    listing = list_images(root)
    assert listing.classes == ("a", "b")
    assert len(listing.files) == 2
    assert listing.notes == ["1 file is not read: 1 hidden"]


def test_endings_are_read_in_any_case_and_other_files_are_left_out() -> None:
    root = write_tree(Path("root"), {"train": {"a": 0, "b": 1}})
    names = ["1.PNG", "2.Jpg", "3.JPEG", "4.bmp", "5.WebP", "notes.txt", "x.svg", "png", "6.png.part"]
    for name in names:
        (root / "train/a" / name).touch()
    assert [path.name for path in list_images(root).files[:-1]] == names[:5]


def test_folders_beside_the_splits_are_noted_with_the_nearest_split() -> None:
    tree = {"train": {"a": 1, "b": 1}, "vald": {"a": 1, "b": 1}, "misc": {"a": 1}}
    listing = list_images(write_tree(Path("root"), tree))
    assert set(listing.splits) == {"train"}
    assert listing.notes == [
        f"{listing.root}/misc is not read (1 images); the splits are train, val|valid, test",
        f"{listing.root}/vald is not read (2 images) (did you mean 'valid'?); the splits are train, val|valid, test",
    ]


def test_images_beside_the_class_folders_are_noted() -> None:
    root = write_tree(Path("root"), {"train": {"a": 1, "b": 1}})
    saved(Image.fromarray(BLACK), str(root / "train/stray.png"))
    assert list_images(root).notes == [
        f"{list_images(root).root}/train: 1 images outside any class folder are not read"
    ]


def test_classes_without_images_are_all_listed() -> None:
    root = write_tree(Path("root"), {"train": {"a": 0, "b": 1, "c": 0}})
    with pytest.raises(DataError, match=r"2 of 3 classes have no images, the first is .*/train/a") as caught:
        list_images(root)
    assert [Path(line).name for line in caught.value.details] == ["a", "c"]
    assert ".webp" in caught.value.hint


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"train": {"cat": 3}}, r"/root/train: expected at least two class folders, found 1 \(cat\)"),
        ({"train": {}}, "/root/train: expected at least two class folders, found 0"),
        ({"valid": {"a": 1}, "test": {"a": 1}}, "/root: expected a folder train beside test, valid, found none"),
        ({"train": {"a": 1, "b": 1}, "val": {"a": 1}, "valid": {"a": 1}}, "val and valid are both there"),
        ({"train": {"a": 1, "b": 1}, "test": {"a": 0}}, "/root/test: expected images in its class folders, found none"),
    ],
)
def test_a_tree_that_cannot_be_used_says_what_was_expected_and_found(
    tree: dict[str, dict[str, int]], said: str
) -> None:
    for split in tree:
        Path("root", split).mkdir(parents=True)
    write_tree(Path("root"), tree) if any(tree.values()) else None
    with pytest.raises(DataError, match=said) as caught:
        list_images(Path("root"))
    assert "both" in said or "root/<split>/<class>/" in caught.value.hint


def test_a_test_folder_without_classes_is_refused_with_what_to_do() -> None:
    root = write_tree(Path("root"), {"train": {"a": 1, "b": 1}})
    (root / "test").mkdir()
    saved(Image.fromarray(BLACK), str(root / "test/1.png"))
    with pytest.raises(DataError, match="1 lie beside them") as caught:
        list_images(root)
    assert caught.value.hint.startswith("images without a class judge no answer: move them away, or into class folders")


def test_loose_images_without_classes_are_counted() -> None:
    Path("root").mkdir()
    for i in range(3):
        saved(Image.fromarray(BLACK), f"root/{i}.png")
    with pytest.raises(DataError, match="found 0 and 3 loose images"):
        list_images(Path("root"))


@pytest.mark.parametrize(("name", "kind"), [("nowhere", "nothing"), ("file", "a file")])
def test_a_root_that_is_no_folder_is_named_in_full(name: str, kind: str) -> None:
    Path("file").touch()
    with pytest.raises(DataError) as caught:
        list_images(Path("images/..") / name)
    message = f"data.root: expected a folder of images at {Path.cwd() / name}, found {kind}"
    assert caught.value.message == f"{message}; it is relative to the folder in which okdc is called"
    with pytest.raises(DataError) as caught:
        list_images(Path.cwd() / name)
    assert caught.value.message == message
    assert "root/<split>/<class>/" in caught.value.hint


# --- the rule


def test_what_the_rule_says_is_what_every_manifest_states() -> None:
    """Whoever changes the rule changes its name, so that a bundle never claims another one."""
    content = io.BytesIO()
    Image.fromarray(picture(5, 13, 29)).save(content, "png")
    with Image.open(content) as image:
        pixels = fit(image, 8)
    assert images.RESIZE == "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop"
    assert np.abs(pixels.astype(int) - by_the_rule(picture(5, 13, 29), 8)).max() <= 2


def test_a_line_of_pixels_is_refused_before_it_fills_the_memory() -> None:
    """60,000 pixels in the file, 12.5 milliards by the rule."""
    with pytest.raises(ValueError, match=r"1×60000 pixels would become 4096×245760000"):
        fit(Image.new("L", (1, 60_000)), 4096)
    assert fit(Image.new("L", (1, 60_000)), 8).shape == (8, 8, 3)
