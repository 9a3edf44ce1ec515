"""One line that shows how far long work is: a bar, a count and the time left, at any width of the terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from okdc.escaping import shown

BAR, LEAST_BAR = 24, 8  # cells
WINDOW_S = 30.0  # the estimate looks back so far


class TimeLeft:
    """The seconds that some work still takes: the work's own estimate, else one from its last half minute.

    `from_counts`: False where the work will tell, and its first units say nothing of all others.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, from_counts: bool = True) -> None:
        self._clock, self._from_counts = clock, from_counts
        self._estimate: tuple[float, float] | None = None  # seconds left, and when that was said
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._total = 0

    def tell(self, seconds: float) -> None:
        """Take the estimate of the work itself."""
        self._estimate = seconds, self._clock()

    def count(self, done: int, total: int) -> None:
        """Note that `done` of `total` units are finished."""
        now, self._total = self._clock(), total
        if done < self._marks[-1][1]:
            self._marks.clear()
        if not self._marks or now - self._marks[-1][0] >= 0.5 or done == total:
            self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW_S:
            self._marks.popleft()

    def seconds(self) -> float | None:
        """None where nothing is known yet."""
        if self._estimate is not None:
            left, then = self._estimate
            return max(0.0, left - (self._clock() - then))
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        if last == first or ended == began or not self._from_counts:
            return None
        return max(0.0, (self._total - last) * (ended - began) / (last - first) - (self._clock() - ended))

    def words(self) -> str:
        """`4:05 left`, or nothing."""
        seconds = self.seconds()
        return "" if seconds is None else f"{clock_of(seconds)} left"


def clock_of(seconds: float) -> str:
    """`0:07`, `4:05`, `3:04:05`, and from four days on `4 d 3 h`."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    if hour >= 96:
        return f"{hour // 24:,} d {hour % 24} h"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


class ProgressLine:
    """A renderable of rich: `label ━━━━──── 12/34  0:56 left  text`.

    Where the terminal is narrow the text is cut first, then the label is left out, then the bar is shortened.
    """

    def __init__(self, label: str, left: TimeLeft) -> None:
        self.label, self.left = shown(label), left
        self.done, self.total, self.text = 0, 0, ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.at(options.max_width - 1, plain=options.ascii_only)  # a full line may wrap on some terminals

    def at(self, width: int, plain: bool = False) -> Text:
        """The line in so many cells, without a bar's own letters where the alphabet is `plain` ASCII."""
        if not self.total:
            return Text(set_cell_size(self.label, min(width, cell_len(self.label))), no_wrap=True, end="")
        total = f"{self.total:,}"
        count = f"{self.done:,}/{total}".rjust(2 * len(total) + 1)
        facts = "  ".join(filter(None, (count, self.left.words())))
        room = width - cell_len(facts) - 1
        has_label = room - cell_len(self.label) - 1 >= LEAST_BAR
        if has_label:
            room -= cell_len(self.label) + 1
        cells = max(0, min(BAR, room))
        filled = cells * min(self.done, self.total) // self.total
        line = Text(no_wrap=True, end="")
        if has_label:
            line.append(f"{self.label} ")
        line.append(("#" if plain else "━") * filled, "bar.finished" if self.done >= self.total else "bar.complete")
        line.append(("-" if plain else "─") * (cells - filled), "bar.back")
        line.append(f"{' ' if cells else ''}{facts}")
        text = shown(self.text)
        if text and (rest := width - line.cell_len - 2) >= LEAST_BAR:
            if cell_len(text) > rest:
                text = set_cell_size(text, rest - 3).rstrip() + "..."
            line.append(f"  {text}")
        line.truncate(max(width, 1))
        return line
