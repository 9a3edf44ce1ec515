"""Who listens to long work: nobody by default, and as much as a caller wants."""

from __future__ import annotations

from okdc.progress import EachNoteOnce, Progress, Silent


class Notes(Progress):
    """What a caller writes who wants the notes alone."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def work(progress: Progress) -> None:
    progress.note("device cpu")
    with progress.reading() as read:
        read(1, 2)
    with progress.training() as trained:
        trained(1, 2, "epoch 1")
        progress.remaining(3.0)
    progress.note("device cpu")


def test_by_default_nothing_is_shown() -> None:
    work(Silent())


def test_a_subclass_shows_what_it_overrides() -> None:
    notes = Notes()
    work(notes)
    assert notes.notes == ["device cpu"] * 2


def test_a_note_that_came_before_is_not_repeated_for_each_seed() -> None:
    notes = Notes()
    for _ in range(2):
        work(EachNoteOnce(notes))
    once = EachNoteOnce(notes)
    work(once)
    work(once)
    assert notes.notes == ["device cpu"] * 3
