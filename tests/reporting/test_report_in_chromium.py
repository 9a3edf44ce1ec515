"""The page of `okdc report` in headless Chromium, opened from disk: a desktop and a phone, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import LOADED, Browser, browser
from making import make_row
from runners import needs_chromium

from okdc.progress import Silent
from okdc.reporting import answers, page, report
from okdc.reporting.run import Wanted
from okdc.runs.mistakes import confused

pytestmark = needs_chromium

SIZES = [(1280, False), (1280, True), (380, False), (380, True)]
# Pairs of texts of one figure that cover each other by more than a pixel each way.
OVERLAPPING = """[...document.querySelectorAll('svg')].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll('text')].map((text) => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1
  ).map(([b]) => [a, b]));
})"""
# Resolves when two frames have been drawn without a scroll between them.
SCROLLED = """new Promise((done) => {
  let before = -1;
  const look = () => {
    if (scrollY === before) requestAnimationFrame(() => done());
    else { before = scrollY; requestAnimationFrame(() => requestAnimationFrame(look)); }
  };
  requestAnimationFrame(look);
})"""
CONTRAST = """(() => {
  const style = getComputedStyle(document.body);
  return [style.backgroundColor, style.color];
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run; a run with a hundred classes; several runs."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_row("runs", "baseline", [90.0, 90.4, 90.2])
        make_row("runs", "fefr", [91.5, 91.9, 91.4])
        make_row("runs", "dml", [91.0])
        several = report.facts([Path("runs")], Wanted(), None, Silent())
    made = {"run": facts, "hundred": facts | {"run": hundred(facts["run"])}, "several": several}
    for name, tables in made.items():
        (folder / f"{name}.html").write_text(page.html(tables, "okdc report"), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def hundred(run: dict[str, Any]) -> dict[str, Any]:
    """The same run as if its images were of a hundred classes, with names as data sets have them."""
    classes = [f"{'long_named_' * (k % 3)}class_{k}" for k in range(100)]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 100, 5000)
    said = np.where(rng.random(5000) < 0.7, labels, rng.integers(0, 100, 5000))
    counts = np.bincount(labels * 100 + said, minlength=10_000).reshape(100, 100)
    return run | {
        "classes": classes,
        "answers": {
            "confusion": counts.tolist(),
            "order": answers.shown_order(counts),
            "classes": answers.by_class(counts, classes),
            "pairs": confused(counts, classes, 20),
        },
        "features": run["features"] | {"labels": rng.integers(0, 100, len(run["features"]["labels"])).tolist()},
        "data": None,
    }


@pytest.mark.parametrize(("width", "dark"), SIZES)
@pytest.mark.parametrize("name", ["run", "hundred", "several"])
def test_it_opens_without_a_request_or_a_complaint_and_nothing_overlaps(
    tab: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    tab.requests.clear()
    tab.complaints.clear()
    tab.open(pages[name], width, dark)
    assert [url for url in tab.requests if not url.startswith("data:")] == [pages[name].as_uri()]
    assert tab.complaints == []
    assert tab.run(OVERLAPPING) == []
    assert tab.run("document.documentElement.scrollWidth") <= width
    paper, ink = tab.run(CONTRAST)
    assert (paper == "rgb(20, 24, 26)") is dark
    assert paper != ink
    assert tab.run("[...document.images].filter((i) => i.complete && !i.naturalWidth).length") == 0
    widths = tab.run("[...document.querySelectorAll('figure > svg')].map((svg) => svg.getBoundingClientRect().width)")
    assert len(widths) >= (3 if name == "several" else 10)
    assert min(widths) > 100


def test_the_figures_of_a_run_are_all_there(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["run"], 1280)
    count = "document.querySelectorAll({!r}).length"
    assert tab.run(count.format("#training svg[role=img]")) == 4
    assert tab.run(count.format("#features svg[role=img] .cloud")) == 50
    assert tab.run(count.format("#cost figure svg[role=img]")) == 2
    assert tab.run(count.format("#confidence figure")) == 2
    assert tab.run(count.format("#matrix .cell")) > 10
    assert tab.run(count.format("#precision tbody tr")) == 3
    unlabelled = "[...document.querySelectorAll('svg:not([aria-hidden]), img')].filter((e) => !(e.ariaLabel || e.alt))"
    assert tab.run(f"{unlabelled}.length") == 0


def test_a_class_is_chosen_by_its_name_and_a_mistake_by_its_cell(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["run"], 1280)
    pictures = "[...document.querySelectorAll('#mistakes .gallery li:not([hidden])')]"
    shown = f"{pictures}.map((e) => [e.dataset.label, e.dataset.answer])"
    everything = tab.run(shown)
    label, answer = everything[0]
    tab.run(f"(() => {{ const s = document.querySelector('#class'); s.value = {label!r}; "
            "s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    assert tab.run(shown) == [pair for pair in everything if label in pair]
    assert tab.run("document.querySelectorAll('.cloud.faded').length") == 45
    cell = f"#matrix .cell[data-row={label!r}][data-column={answer!r}]"
    tab.run(f"document.querySelector({cell!r}).dispatchEvent(new Event('click', {{ bubbles: true }}))")
    assert tab.run(shown) == [pair for pair in everything if pair == [label, answer]]
    rows = "[...document.querySelectorAll('#classes tr[data-label]:not([hidden])')].map((e) => e.dataset.label)"
    assert tab.run(rows) == [label]
    tab.run(
        "(() => { const s = document.querySelector('#class'); s.value = ''; s.dispatchEvent(new Event('change')); })()"
    )
    assert tab.run(shown) == everything


def test_the_arrow_keys_show_the_values_of_a_figure(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["run"], 1280)
    tab.run("document.querySelector('#training svg[tabindex]').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    assert tab.run("document.querySelector('#tip').hidden") is False
    assert tab.run("document.querySelector('#tip').textContent").startswith("epoch 2: ")
    tab.press("End")
    assert tab.run("document.querySelector('#tip').textContent").startswith("epoch 8: ")


def test_a_value_stays_beside_the_part_that_the_keys_chose(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["hundred"], 1280)
    tab.run("document.querySelector('#matrix').focus({ preventScroll: true })")
    for key in ("End", "Home"):  # both out of view, so that the page scrolls
        tab.press(key)
        tab.run(SCROLLED)
        tip, cell = tab.run(
            "['#tip', '#matrix .on'].map((e) => document.querySelector(e).getBoundingClientRect().toJSON())"
        )
        assert 0 <= cell["top"] <= 900
        assert tip["height"] > 0
        assert min(abs(tip["top"] - cell["bottom"]), abs(tip["bottom"] - cell["top"])) < 30


def test_a_finger_sees_the_value_that_it_taps(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["run"], 380)
    x, y = tab.run("""(() => {
      const part = document.querySelector('#accuracy .dot');
      part.scrollIntoView({ block: 'center', behavior: 'instant' });
      const box = part.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    })()""")
    tab.run(SCROLLED)
    tab.tap(x, y)
    assert tab.run("document.querySelector('#tip').hidden") is False
    assert tab.run("document.querySelector('#tip').textContent").startswith("student0 ")


@pytest.mark.parametrize("name", ["run", "hundred", "several"])
def test_on_paper_all_is_dark_on_white_and_nothing_is_cut(tab: Browser, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name], 700, dark=True)  # A4 less its margins
    tab.run("document.documentElement.dataset.theme = 'dark'; dispatchEvent(new Event('beforeprint'))")
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.run(CONTRAST) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert tab.run("getComputedStyle(document.querySelector('svg text')).fill") == "rgb(68, 68, 68)"
    cut = "(e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('svg')"
    assert tab.run(f"[...document.querySelectorAll('main *')].filter({cut}).map((e) => e.outerHTML)") == []
    unseen = "[...document.querySelectorAll('th, .legend li')].filter((e) => e.innerText.trim() === '').length"
    assert tab.run(unseen) == 0


def test_the_matrix_grows_and_the_theme_changes(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["hundred"], 1280)
    width = "document.querySelector('#matrix').getBoundingClientRect().width"
    before = tab.run(width)
    tab.run("document.querySelector('#larger').click()")
    assert tab.run(width) == pytest.approx(1.5 * before, rel=0.01)
    assert tab.run("document.documentElement.scrollWidth") <= 1280
    paper = tab.run(CONTRAST)
    tab.run("document.querySelector('#theme').click()")
    other = tab.run(CONTRAST)
    assert other != paper
    tab.call("Page.reload")
    tab.run(LOADED)
    assert tab.run(CONTRAST) == other
    tab.run("document.querySelector('#theme').click()")
    assert tab.run(CONTRAST) == paper


def test_a_table_is_sorted_by_numbers_and_filtered_by_words(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["several"], 1280)
    rows = "[...document.querySelectorAll('#all-runs tbody tr')].filter((r) => !r.hidden)"
    column = f"{rows}.map((r) => r.cells[4].textContent)"
    button = "document.querySelectorAll('#all-runs thead button')[4].click()"
    tab.run(button)
    accuracies = [float(text) for text in tab.run(column)]
    assert accuracies == sorted(accuracies)
    tab.run(button)
    assert [float(text) for text in tab.run(column)] == accuracies[::-1]
    tab.run("(() => { const i = document.querySelector('input[data-table]'); i.value = 'dml'; "
            "i.dispatchEvent(new Event('input')); })()")  # fmt: skip
    assert [float(text) for text in tab.run(column)] == [91.0]


def test_a_table_is_sorted_by_the_numbers_with_which_cells_begin_and_ends_with_the_empty_ones(
    tab: Browser, pages: dict[str, Path]
) -> None:
    tab.open(pages["several"], 1280)
    cells = ["1,020", "–", "9.50 [9.1, 9.9]", "-0.25", "", "30", "+100.5"]
    column = "[...document.querySelectorAll('#all-runs tbody tr')].map((r) => r.cells[4].textContent)"
    tab.run(f"""(() => {{
      const body = document.querySelector('#all-runs tbody'), row = body.rows[0];
      body.replaceChildren(...{cells!r}.map((text) => {{
        const copy = row.cloneNode(true); copy.cells[4].textContent = text; return copy;
      }}));
    }})()""")
    for numbers in (
        ["-0.25", "9.50 [9.1, 9.9]", "30", "+100.5", "1,020"],
        ["1,020", "+100.5", "30", "9.50 [9.1, 9.9]", "-0.25"],
    ):
        tab.run("document.querySelectorAll('#all-runs thead button')[4].click()")
        shown = tab.run(column)
        assert shown[:5] == numbers
        assert set(shown[5:]) == {"–", ""}
