from __future__ import annotations

import subprocess
import sys

import torch

from okdc.seeds import derive, generator, seeded


def test_streams_differ_by_seed_and_by_every_part_of_the_purpose() -> None:
    purposes: list[tuple[str | int, ...]] = [("epoch", 1, "crop"), ("epoch", 1, "flip"), ("epoch", 11, "crop"), ()]
    purposes += [("image", 1, 12), ("image", 11, 2)]  # the same digits, of another epoch and row
    found = {derive(seed, *purpose) for seed in (0, 1, 2**62) for purpose in purposes}
    assert len(found) == 3 * len(purposes)


def test_a_stream_is_the_same_in_another_process() -> None:
    """Python's own hash of a string is not: it is salted for each process."""
    code = (
        "import sys; sys.modules['torch'] = type(sys)('torch'); sys.modules['torch'].Generator = object\n"
        "from okdc.seeds import derive; print(derive(3, 'epoch', 7, 'order'))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) == derive(3, "epoch", 7, "order")


def test_generators_of_one_purpose_draw_the_same_and_of_two_differ() -> None:
    first, again, other = (torch.rand(8, generator=generator(1, "epoch", e)) for e in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_seeded_lends_the_global_generator_and_gives_it_back_untouched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded(0, "init", "student", 0):
        drawn = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)  # what stands there before has no say
    with seeded(0, "init", "student", 0):
        assert torch.equal(torch.rand(4), drawn)
    with seeded(0, "init", "student", 1):
        assert not torch.equal(torch.rand(4), drawn)


def test_seeded_gives_the_generator_back_after_an_error() -> None:
    before = torch.get_rng_state()
    try:
        with seeded(0, "init"):
            torch.rand(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
