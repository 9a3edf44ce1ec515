"""Augmentation of whole batches: each operation is torchvision's of one image, draws follow from seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import tried
from harness import no_waiting
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import TrivialAugmentWide as Trivial
from torchvision.transforms.v2 import functional as theirs

from okdc.data.augmentation import Augmentation, Draws, blur, boxes, colour, geometry, order, policy
from okdc.data.batches import Normalise
from okdc.recipe.schema import Augment
from okdc.seeds import generator

RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # pixels as they are, as floats
OFF: dict[str, Any] = {"padding": 0, "flip": False}


def augment(**keys: Any) -> Augment:
    return Augment(**keys)


def smooth(n: int = 3, height: int = 16, width: int = 12, seed: int = 0) -> Tensor:
    """Pixels n×H×W×3 uint8 in which neighbours are alike, as in a photograph."""
    random = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(random, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * large).round().byte().permute(0, 2, 3, 1).contiguous()


def planes(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


def numbers(**columns: float | list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value).float().reshape(-1) for name, value in columns.items()}


def moved(images: Tensor, matrix: Tensor) -> Tensor:
    """The images through one matrix, rounded to uint8 planes."""
    _, height, width, _ = images.shape
    halves = torch.tensor([width / 2, height / 2, 1.0], dtype=torch.float64)
    entries = (matrix * halves / halves[:, None])[:, :2].flatten(1).float()
    columns = dict(zip(geometry.MATRIX, entries.unbind(1), strict=True))
    return geometry.resampled(images, columns).round().byte()


def apart(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


# --- each operation alone is torchvision's: of the same bytes, after rounding

angles, pixels, shears = st.floats(-180, 180), st.floats(-6, 6), st.floats(-40, 40)


@given(
    angle=angles,
    right=pixels,
    down=pixels,
    scale=st.floats(0.5, 2),
    shear_x=st.floats(-40, 40),
    shear_y=st.floats(-40, 40),
)
@tried
def test_an_affine_resample_is_torchvisions(
    angle: float, right: float, down: float, scale: float, shear_x: float, shear_y: float
) -> None:
    images = smooth()
    one = (torch.tensor([number], dtype=torch.float64) for number in (angle, right, down, scale, shear_x, shear_y))
    ours = moved(images, geometry.affine(*one).expand(len(images), 3, 3))
    expected = theirs.affine(
        planes(images), angle, [right, down], scale, [shear_x, shear_y], interpolation=InterpolationMode.BILINEAR
    )
    assert apart(ours, expected) <= 1


@given(angle=angles)
@tried
def test_a_rotation_is_torchvisions(angle: float) -> None:
    images = smooth()
    matrix = geometry.affine(torch.full((len(images),), -angle, dtype=torch.float64))  # rotate turns the other way
    expected = theirs.rotate(planes(images), angle, interpolation=InterpolationMode.BILINEAR)
    assert apart(moved(images, matrix), expected) <= 1


def test_a_resized_crop_is_torchvisions_at_its_edges_too() -> None:
    images, keys = smooth(40), Augment(crop="resized", flip=False)
    height, width = images.shape[1:3]
    draws = Augmentation(keys).draw(torch.arange(len(images)), 0, 0, (height, width))
    crops = boxes.drawn(len(images), (height, width), keys.scale, keys.ratio, generator(0, "epoch", 0, "resized"))
    result = Augmentation(keys).of_batch(images, draws, RAW).round().byte()
    for image, ours, *box in zip(planes(images), result, *(side.int().tolist() for side in crops), strict=True):
        assert apart(ours, theirs.resized_crop(image, *box, [height, width], antialias=True)) <= 1


@given(factor=st.floats(0, 2))
@tried
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("brightness", theirs.adjust_brightness),
        ("contrast", theirs.adjust_contrast),
        ("saturation", theirs.adjust_saturation),
    ],
)
def test_a_colour_factor_is_torchvisions(name: str, function: Callable[[Tensor, float], Tensor], factor: float) -> None:
    """Theirs rounds down twice, to a whole grey and to a whole result."""
    images = planes(smooth())
    factors = numbers(brightness=1.0, contrast=1.0, saturation=1.0) | numbers(**{name: factor})
    assert apart(colour.changed(images.float(), factors).round(), function(images, factor)) <= 2


@given(turn=st.floats(-0.5, 0.5))
@tried
def test_a_turn_of_hues_is_torchvisions(turn: float) -> None:
    images = planes(smooth())
    ours = colour.hue_turned(images.float(), torch.full((len(images),), turn))
    assert float((ours - theirs.adjust_hue(images.float() / 255, turn) * 255).abs().max()) < 0.1
    assert apart(ours.round(), theirs.adjust_hue(images, turn)) <= 1


def test_hues_of_grey_and_of_pure_colours() -> None:
    red, green, blue, grey = [255.0, 0.0, 0.0], [0.0, 255.0, 0.0], [0.0, 0.0, 255.0], [90.0, 90.0, 90.0]
    image = torch.tensor([red, green, blue, grey]).T.reshape(1, 3, 2, 2)
    turned = colour.hue_turned(image, torch.tensor([1 / 3])).round()
    assert torch.equal(turned, torch.tensor([green, blue, red, grey]).T.reshape(1, 3, 2, 2))


def test_a_grey_image_is_torchvisions_grey() -> None:
    images = smooth(5)
    draws = Augmentation(augment(grey=1.0, **OFF)).draw(torch.arange(5), 0, 0, images.shape[1:3])
    ours = Augmentation(augment(grey=1.0, **OFF)).of_batch(images, draws, RAW).round()
    assert apart(ours, theirs.rgb_to_grayscale(planes(images), 3)) <= 1


# --- all at once


ALL = Augment(
    padding=2, vertical_flip=True, rotation=20.0, translate=0.1, zoom=(0.8, 1.2), shear=10.0, brightness=0.3,
    contrast=0.3, saturation=0.3, hue=0.1, grey=0.2, blur=0.5, erasing=0.5, policy="trivial", mixup=0.4, cutmix=1.0,
)  # fmt: skip


def test_one_resample_composes_what_torchvision_does_one_after_the_other() -> None:
    """Far from edges, where one after the other has lost nothing: colours of slopes, which no resample blurs."""
    height = width = 32
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([2 * down + 20, 3 * across + 50, down + across + 70], 2).byte()[None]
    keys = Augment(padding=3, vertical_flip=True, rotation=15.0, translate=0.05, zoom=(1.1, 1.3), shear=8.0)
    rows = torch.zeros(30, dtype=torch.int64)
    draws = Augmentation(keys).draw(rows, 0, 0, (height, width))
    result = Augmentation(keys).of_batch(image, draws, RAW)

    def stream(purpose: str) -> torch.Generator:
        return generator(0, "epoch", 0, purpose)

    def drawn(purpose: str, low: float, high: float) -> list[float]:
        values = torch.rand(30, generator=stream(purpose), dtype=torch.float64)
        return (low + (high - low) * values).tolist()

    shift = width * keys.translate
    parameters = zip(
        drawn("rotation", -15, 15), drawn("translate_x", -shift, shift), drawn("translate_y", -shift, shift),
        drawn("zoom", 1.1, 1.3), drawn("shear", -8, 8), strict=True,
    )  # fmt: skip
    padded = theirs.pad(planes(image)[0].float(), [3, 3, 3, 3], padding_mode="edge")
    for i, (angle, right, lower, scale, shear) in enumerate(parameters):
        x = theirs.crop(padded, int(draws.top[i]), int(draws.left[i]), height, width)
        x = theirs.horizontal_flip(x) if draws.flip[i] else x
        x = theirs.vertical_flip(x) if draws.vertical_flip[i] else x
        x = theirs.affine(x, angle, [right, lower], scale, [shear, 0.0], interpolation=InterpolationMode.BILINEAR)
        inside = (slice(None), slice(9, -9), slice(9, -9))
        assert float((result[i][inside] - x[inside]).abs().max()) < 0.05


def test_whole_pixels_and_the_resample_agree_on_crop_and_mirroring() -> None:
    images = smooth(50)
    keys = Augment(padding=3, vertical_flip=True)
    whole = Augmentation(keys)
    draws = whole.draw(torch.arange(50), 0, 0, images.shape[1:3])
    by_matrix = Augmentation(keys.model_copy(update={"rotation": 1e-9}))
    same = by_matrix.draw(torch.arange(50), 0, 0, images.shape[1:3])
    assert torch.equal(draws.table, same.table)
    difference = whole.of_batch(images, draws, RAW) - by_matrix.of_batch(images, same, RAW)
    assert float(difference.abs().max()) < 0.01


def test_what_is_off_changes_nothing_and_draws_nothing() -> None:
    rows = torch.arange(9)
    assert Augmentation().columns == ()
    assert Augmentation().draw(rows, 0, 0, (8, 8)).numbers is None
    images = smooth(9)
    nothing = Augmentation(augment(**OFF))
    unchanged = nothing.of_batch(images, nothing.draw(rows, 0, 0, images.shape[1:3]), RAW)
    assert torch.equal(unchanged.round().byte(), planes(images))


def test_a_batch_gives_each_image_what_it_would_get_alone() -> None:
    """However many images a CPU takes at a time, and whatever process has which part of the batch."""
    images = smooth(7)
    augmentation = Augmentation(ALL)
    draws = augmentation.draw(torch.arange(7), 1, 3, images.shape[1:3])
    together = augmentation.of_batch(images, draws, RAW)
    alone = [augmentation.of_batch(images, draws[i : i + 1], RAW) for i in range(7)]
    assert torch.equal(together, torch.cat(alone))
    large = smooth(7, 256, 260)  # so large that a CPU takes them one by one
    assert augmentation.of_batch(large, draws, RAW).shape == (7, 3, 256, 260)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_augmented_batches_are_normalised_in_the_memory_format_asked_for(layout: torch.memory_format) -> None:
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    images = smooth(4)
    augmentation = Augmentation(ALL.model_copy(update={"erasing": 0.0}))  # which knows the mean
    draws = augmentation.draw(torch.arange(4), 0, 0, images.shape[1:3])
    plain = augmentation.of_batch(images, draws, RAW)
    normalised = augmentation.of_batch(images, draws, Normalise(mean, std, memory_format=layout))
    expected = (plain / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert normalised.is_contiguous(memory_format=layout)
    assert torch.allclose(normalised, expected, atol=1e-4)


# --- draws


def drawn(keys: Augment, n: int = 20_000, epoch: int = 0, seed: int = 0) -> dict[str, Tensor]:
    augmentation = Augmentation(keys)
    draws = augmentation.draw(torch.arange(n), epoch, seed, (32, 32))
    assert draws.numbers is not None
    return dict(zip(augmentation.columns, draws.numbers.unbind(1), strict=True))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_are_uniform_about_one(name: str) -> None:
    factors = drawn(augment(**{name: 0.4}))[name]
    assert 0.6 <= float(factors.min()) < 0.61
    assert 1.39 < float(factors.max()) <= 1.4
    assert abs(float(factors.mean()) - 1) < 0.01
    assert abs(float(factors.std()) - 0.8 / math.sqrt(12)) < 0.01


def test_angles_shifts_zooms_and_shears_reach_their_bounds_and_no_further() -> None:
    n = 20_000
    turned = drawn(augment(**OFF, rotation=30.0))
    assert 29.5 < float(torch.rad2deg(torch.asin(turned["yx"])).abs().max()) <= 30.001
    shifted = drawn(augment(**OFF, translate=0.25))
    for axis in "xy":
        assert 0.49 < float(shifted[axis].abs().max()) <= 0.5  # of half a side
    zoomed = drawn(augment(**OFF, zoom=(0.5, 2.0)))
    assert 0.5 <= float(zoomed["xx"].min()) < 0.51
    assert 1.9 < float(zoomed["xx"].max()) <= 2
    sheared = drawn(augment(**OFF, shear=45.0))
    assert 0.99 < float(sheared["xy"].abs().max()) <= 1.0001
    assert float(sheared["yx"].abs().max()) < 1e-6
    assert len(sheared["xy"].unique()) > n / 2


def test_resized_crops_have_the_areas_and_shapes_asked_for_and_lie_inside() -> None:
    n = 20_000
    top, left, tall, wide = boxes.drawn(n, (40, 40), (0.25, 0.5), (1.0, 2.0), generator(0, "resized"))
    share, ratio = tall * wide / 1600, wide / tall
    assert 0.23 < float(share.min()) < 0.26
    assert 0.49 < float(share.max()) < 0.53
    assert abs(float(share.mean()) - 0.375) < 0.01
    assert abs(float(ratio.log().mean()) - math.log(2) / 2) < 0.01
    assert float(top.min()) == float(left.min()) == 0
    assert float((top + tall).max()) == float((left + wide).max()) == 40


def test_a_resized_crop_that_never_fits_is_the_largest_in_the_middle() -> None:
    sides = boxes.drawn(3, (10, 40), (1.0, 1.0), (0.5, 2.0), generator(0, "resized"))
    assert [side.tolist() for side in sides] == [[0] * 3, [10] * 3, [10] * 3, [20] * 3]


def test_a_share_of_the_images_is_grey() -> None:
    assert abs(float((drawn(Augment(grey=0.3))["saturation"] == 0).double().mean()) - 0.3) < 0.02


KEYS = {
    "vertical_flip": True, "rotation": 20.0, "translate": 0.1, "zoom": (0.8, 1.2), "shear": 10.0, "brightness": 0.3,
    "contrast": 0.3, "saturation": 0.3, "hue": 0.1, "grey": 0.5, "blur": 0.5, "erasing": 0.5, "policy": "trivial",
    "mixup": 0.5, "cutmix": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_each_key_draws_anew_in_each_epoch_and_for_each_seed_and_changes_no_other_draw(key: str) -> None:
    rows = torch.arange(50)
    with_it = Augmentation(augment(**{key: KEYS[key]}))
    images = smooth(50)
    size = images.shape[1:3]

    def shown(augmentation: Augmentation, epoch: int = 0, seed: int = 0) -> tuple[Draws, Tensor]:
        draws = augmentation.draw(rows, epoch, seed, size)
        # Order, crop and mirroring put aside: they differ from epoch to epoch in any case.
        still = Draws(torch.stack([rows, rows * 0, rows * 0, draws.table[:, 3] & 2], 1), draws.numbers)
        keys = augmentation.keys.model_copy(update={"padding": 0})
        return draws, Augmentation(keys).examples(images, still, rows, RAW).images

    draws, first = shown(with_it)
    assert torch.equal(first, shown(with_it)[1])
    assert not torch.equal(first, shown(with_it, epoch=1)[1])
    assert not torch.equal(first, shown(with_it, seed=1)[1])
    plain = Augmentation().draw(rows, 0, 0, size)
    for name in ("rows", "top", "left", "flip"):
        assert torch.equal(getattr(draws, name), getattr(plain, name))
    everything = Augmentation(ALL.model_copy(update={"padding": 4})).draw(rows, 0, 0, size)
    for name in ("rows", "top", "left", "flip"):
        assert torch.equal(getattr(everything, name), getattr(plain, name))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Augmentation(ALL).draw(order(torch.arange(40), 0, 0), 0, 0, (8, 8))
    assert torch.equal(torch.get_rng_state(), before)


# --- a policy, blur, erasing


def operations(n: int, size: tuple[int, int]) -> tuple[Draws, list[str], Tensor, Tensor]:
    """The draws of a policy alone, and in each of them the operation, its bin and its sign."""
    draws = Augmentation(augment(policy="trivial", **OFF)).draw(torch.arange(n), 0, 0, size)

    def stream(purpose: str) -> torch.Generator:
        return generator(0, "epoch", 0, purpose)

    names = torch.randint(14, (n,), generator=stream("policy")).tolist()
    bins = torch.randint(31, (n,), generator=stream("policy_magnitude"))
    signs = torch.rand(n, generator=stream("policy_sign")) < 0.5
    return draws, [list(Trivial._AUGMENTATION_SPACE)[name] for name in names], bins, signs


def test_each_operation_of_the_policy_is_torchvisions_with_its_magnitude_and_sign() -> None:
    n, height, width = 900, 24, 20
    images = smooth(n, height, width)
    draws, names, bins, signs = operations(n, (height, width))
    result = Augmentation(augment(policy="trivial", **OFF)).of_batch(images, draws, RAW).round()
    trivial = Trivial(interpolation=InterpolationMode.BILINEAR)
    farthest = dict.fromkeys(Trivial._AUGMENTATION_SPACE, 0)
    for image, ours, name, level, negative in zip(planes(images), result, names, bins, signs, strict=True):
        space, signed = Trivial._AUGMENTATION_SPACE[name]
        magnitudes = space(31, height, width)
        magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
        magnitude = -magnitude if signed and negative else magnitude
        expected = trivial._apply_image_or_video_transform(
            image, name, magnitude, interpolation=InterpolationMode.BILINEAR, fill={type(image): None}
        )
        farthest[name] = max(farthest[name], apart(ours, expected))
    assert {name for name, most in farthest.items() if most > 1} <= {"Color", "Contrast"}, farthest
    assert max(farthest.values()) <= 2, farthest
    assert not any(farthest[name] for name in ("Identity", "Posterize", "Solarize", "Equalize")), farthest


def test_operations_and_magnitudes_are_drawn_evenly() -> None:
    _, names, bins, signs = operations(28_000, (8, 8))
    counts = torch.tensor([names.count(name) for name in Trivial._AUGMENTATION_SPACE]).double()
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 36.5  # chi-squared, 13 degrees, p = 0.0005
    levels = torch.bincount(bins, minlength=31).double()
    assert float(((levels - 28_000 / 31) ** 2 / (28_000 / 31)).sum()) < 61.1  # 30 degrees, p = 0.0007
    assert abs(float(signs.double().mean()) - 0.5) < 0.01


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_channel_of_one_value_is_neither_stretched_nor_equalised(value: int) -> None:
    flat = torch.full((2, 3, 6, 6), float(value))
    assert torch.equal(policy.autocontrasted(flat, flat), flat)
    assert torch.equal(policy.equalized(flat, flat), flat)


often = st.integers(0, 255) | st.sampled_from([3, 200])  # so that the largest value is not the most frequent one


@given(values=st.lists(often, min_size=30, max_size=30), repeat=st.integers(1, 200))
@tried
def test_equalisation_is_torchvisions_to_the_bit(values: list[int], repeat: int) -> None:
    image = torch.tensor(values, dtype=torch.uint8).reshape(1, 3, 1, 10).repeat(1, 1, repeat, 1)
    assert torch.equal(policy.equalized(image.float(), image).byte(), theirs.equalize(image))


@given(sigma=st.floats(0.1, 2))
@tried
def test_a_blur_is_torchvisions(sigma: float) -> None:
    images = planes(smooth(3, 44, 40))
    assert blur.kernel_size(44, 40) == 5
    ours = blur.blurred(images.float(), torch.full((3,), sigma)).round()
    assert apart(ours, theirs.gaussian_blur(images, [5, 5], [sigma, sigma])) <= 1


def test_a_share_of_the_images_is_blurred_each_by_a_width_of_its_own() -> None:
    sigma = drawn(Augment(blur=0.4))["blur"]
    assert abs(float((sigma > 0).double().mean()) - 0.4) < 0.02
    some = sigma[sigma > 0]
    assert 0.1 <= float(some.min()) < 0.11
    assert 1.99 < float(some.max()) <= 2
    images = smooth(40)
    half = Augmentation(augment(blur=0.5, **OFF))
    draws = half.draw(torch.arange(40), 0, 0, images.shape[1:3])
    assert draws.numbers is not None
    same = (half.of_batch(images, draws, RAW).round() == planes(images)).flatten(1).all(1)
    sharp = draws.numbers[:, 0] == 0
    assert bool(same[sharp].all())
    assert not same[~sharp].all()


def test_an_erased_rectangle_is_0_after_the_normalisation_and_the_rest_stays() -> None:
    n = 400
    keys = augment(erasing=0.5, **OFF)
    images = torch.full((n, 20, 24, 3), 200, dtype=torch.uint8)
    normalise = Normalise((0.5,) * 3, (0.25,) * 3)
    result = Augmentation(keys).of_batch(images, Augmentation(keys).draw(torch.arange(n), 0, 0, (20, 24)), normalise)
    zero = (result == 0).all(1)  # n×H×W
    assert torch.equal(zero, (result == 0).any(1))
    assert float(result[~zero[:, None].expand_as(result)].unique()) == pytest.approx((200 / 255 - 0.5) / 0.25, abs=1e-6)
    erased = zero.flatten(1).any(1)
    assert abs(float(erased.double().mean()) - 0.5) < 0.08
    for mask in zero[erased]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        tall, wide = (int(side[-1] - side[0]) + 1 for side in (rows, columns))
        assert int(mask.sum()) == tall * wide  # it is a rectangle
        assert 0.01 < tall * wide / 480 < 0.37


# --- mixing


@pytest.mark.parametrize("keys", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
@pytest.mark.parametrize("n", [2, 7, 300])
def test_a_mixed_image_has_of_each_of_a_pair_the_share_of_its_label(keys: dict[str, float], n: int) -> None:
    values = torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(0))
    images = values[:, None, None, None].expand(n, 10, 12, 3).byte().contiguous()
    labels = torch.arange(n)
    augmentation = Augmentation(augment(**keys, **OFF))
    draws = augmentation.draw(labels, 0, 0, (10, 12))
    mixed, own, others, mix, _ = augmentation.examples(images, draws, labels, RAW)
    assert others is not None
    assert mix is not None
    assert torch.equal(own, labels)
    neighbours = [i ^ 1 if i ^ 1 < n else i for i in range(n)]
    assert others.tolist() == neighbours
    assert float(mix.min()) >= 0.5
    assert float(mix.max()) <= 1
    expected = mix * values + (1 - mix) * values[neighbours]
    assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-3)


def test_mixup_mixes_every_pixel_alike_and_cutmix_takes_a_rectangle_of_the_other() -> None:
    images = smooth(200, 14, 12)
    labels = torch.arange(200)
    pixels, neighbours = planes(images).float(), labels ^ 1
    kinds = []
    wanted: list[dict[str, float]] = [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
    for keys in wanted:
        augmentation = Augmentation(augment(**keys, **OFF))
        mixed, _, _, mix, _ = augmentation.examples(images, augmentation.draw(labels, 0, 0, (14, 12)), labels, RAW)
        assert mix is not None
        share = mix[:, None, None, None]
        alike = ((mixed - (share * pixels + (1 - share) * pixels[neighbours])).abs() < 1e-2).flatten(1).all(1)
        whole = (((mixed - pixels).abs() < 1e-3) | ((mixed - pixels[neighbours]).abs() < 1e-3)).flatten(1).all(1)
        kinds.append((int(alike.sum()), int(whole.sum())))
    (all_alike, _), (_, all_whole), (some_alike, some_whole) = kinds
    assert all_alike == all_whole == 200
    assert 70 <= some_alike <= 130
    assert 70 <= some_whole <= 130


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_of_a_beta_distribution_folded_at_a_half(alpha: float) -> None:
    mix = drawn(Augment(mixup=alpha))["mix"]
    for edge in (0.55, 0.7, 0.9):
        expected = 2 * beta.cdf(edge, alpha, alpha) - 1
        assert abs(float((mix <= edge).double().mean()) - expected) < 0.015


def test_cut_rectangles_lie_everywhere_and_their_sides_are_alike() -> None:
    numbers = drawn(Augment(cutmix=1.0))
    top, left, bottom, right = (numbers[f"cut_{edge}"] for edge in ("top", "left", "bottom", "right"))
    assert torch.allclose(numbers["mix"], 1 - (bottom - top) * (right - left) / 32**2)
    assert float(top.min()) == float(left.min()) == 0
    assert float(bottom.max()) == float(right.max()) == 32
    inside = (top > 0) & (left > 0) & (bottom < 32) & (right < 32)
    assert torch.equal((bottom - top)[inside], (right - left)[inside])


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_a_gpu_makes_the_same_examples_without_a_wait(layout: torch.memory_format, crop: str) -> None:
    n, cuda = 60, torch.device("cuda")
    images, labels = smooth(n, 24, 20), torch.arange(n)
    more = {"crop": crop} | ({"padding": 4} if crop == "resized" else {})
    augmentation = Augmentation(ALL.model_copy(update=more))
    draws = augmentation.draw(labels, 0, 0, (24, 20))
    here = augmentation.examples(images, draws, labels, Normalise((0.4,) * 3, (0.3,) * 3, None, layout))
    sent = draws.to(cuda), images.to(cuda), labels.to(cuda)
    normalise = Normalise((0.4,) * 3, (0.3,) * 3, cuda, layout)
    with no_waiting():
        there = augmentation.examples(sent[1], sent[0], sent[2], normalise)
    assert there.images.is_contiguous(memory_format=layout)
    for theirs_of, ours in ((there.other_labels, here.other_labels), (there.mix, here.mix)):
        assert theirs_of is not None
        assert ours is not None
        assert torch.equal(theirs_of.cpu(), ours)
    difference = (there.images.cpu() - here.images).abs()
    # A pixel whose value is at a step of posterize, solarize or equalize may fall on either side of it.
    assert float((difference > 1e-3).double().mean()) < 1e-3
