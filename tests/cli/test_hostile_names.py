"""Names that command a terminal, a Markdown reader or a page, from the folders of a data set to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from asking import Answer, ask, write_tree
from markdown_it import MarkdownIt

from okdc import escaping
from okdc.__main__ import main
from okdc.bundle import web
from okdc.cli import console
from okdc.recipe import catalog

Captured = pytest.CaptureFixture[str]
CLASSES = [
    "[red]x[",
    "<img src=x onerror=alert(1)>",
    "a|b`c``d",
    "e\x1b[31mvil\x1b]0;title\x07",
    "f\nerror[run]: forged\r",
    "g\u202egnp.exe\u2028",
    "h\x9b31m",
    "i](mailto:a@b.example) ![i](data:x)",
    "*j* _k_ ~~l~~ &lt; \\",
    "---",
]
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
RUN = "run[bold]\x1b[2J\u202e"
TITLE = "title\u001b[2J\n<b>[red]|`"


def nothing_commands(answer: Answer, code: int = 0) -> None:
    assert answer.code == code, answer.err
    for text in (answer.out, answer.err):
        assert not UNSAFE.search(text), text
        assert not re.search(r"^error\[run\]: forged", text, re.MULTILINE), "a name is no line of its own"
    assert "error[bug]" not in answer.err


def words() -> list[str]:
    data = ["data.root=root", "data.image_size=8", "augment.padding=1", "data.val_fraction=0.3"]
    more = ["cohort.students=['resnet8', 'resnet8']", "optim.epochs=1", "optim.batch_size=8"]
    return ["folder_resnet20", *data, *more, f"about.title={json.dumps(TITLE)}"]


def test_names_command_nothing_from_the_training_to_the_page(
    capsys: Captured,
) -> None:
    write_tree(Path("root"), {split: dict.fromkeys(CLASSES, 6) for split in ("train", "test")})
    for name in web.RUNTIME:
        Path(name).touch()
    nothing_commands(ask(capsys, "distill", *words(), "-o", RUN))
    picture = next(Path("root/test").rglob("*.png"))
    odd = Path("p\x1b[31m\n[red].png")
    odd.write_bytes(picture.read_bytes())
    Path("damaged\x1b[31m.png").write_bytes(b"no image")
    bundle = f"{RUN}/bundle"
    commands = [
        ("profile", RUN),
        ("export", RUN, "--onnx"),
        ("verify", bundle),
        ("verify", bundle, "--data-root", "root", "--json"),
        ("predict", bundle, str(odd), str(picture)),
        ("evaluate", RUN),
        ("evaluate", RUN, "--json"),
        ("evaluate", bundle, "--data-root", "root"),
        ("compare", RUN),
        ("compare", RUN, "--md"),
        ("compare", RUN, "--json"),
        ("export", bundle, "--target", "web", "--runtime", ".", "-o", "page"),
    ]
    for command in commands:
        nothing_commands(ask(capsys, *command))
    for wrong in (
        ("predict", bundle, "damaged\x1b[31m.png"),
        ("predict", bundle, "nowhere\x1b[31m[/]"),
        ("resume", "nowhere\x1b[31m[/]\n"),
        ("distill", "nothing\x1b[31m[/]\n"),
        ("distill", "optim.\x1b[31m[/]=1"),
        ("distill", "optim.lr=\x1b[31m[/]"),
        ("bad\x1b[31m[/]",),
        ("profile", "bad\x1b[31m[/]"),
        ("compare", RUN, "--baseline", "bad\x1b[31m[/]"),
        ("export", RUN, "--onnx", "--student", "bad\x1b[31m[/]"),
    ):
        nothing_commands(ask(capsys, *wrong), 2)
    Path("runs").mkdir()
    Path(RUN).rename(f"runs/{RUN}")
    nothing_commands(ask(capsys, "runs"))
    nothing_commands(ask(capsys, "runs", "--json"))

    card = Path(f"runs/{RUN}/bundle/README.md").read_text(encoding="utf-8")
    assert not UNSAFE.search(card)
    body = MarkdownIt().parse(card.split("\n---\n", 1)[1])
    tokens = [inner for token in body for inner in (token, *(token.children or ()))]
    assert not {"html_block", "html_inline", "image", "link_open"} & {token.type for token in tokens}
    spans = {token.content for token in tokens if token.type == "code_inline"}
    assert {escaping.shown(name) for name in CLASSES} <= spans

    for name in web.PAGE:
        assert Path("page", name).read_bytes() == (catalog.folder("export") / "web" / name).read_bytes()
    facts = json.loads(Path("page/bundle/manifest.json").read_text(encoding="utf-8"))
    assert set(facts["labels"]) == set(CLASSES), "data: the page puts them into text nodes"


def test_the_page_has_no_place_where_text_becomes_html() -> None:
    for path in (catalog.folder("export") / "web").glob("*.mjs"):
        sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b"
        assert not re.search(sinks, path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", CLASSES)
def test_a_name_in_prose_or_a_cell_is_only_letters(name: str) -> None:
    table = f"| head | other |\n|---|---|\n| {escaping.prose(name)} | last |\n"
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(table)
    inline = [token for token in tokens if token.type == "inline"]
    assert [token.content for token in inline][-1] == "last", "it ends no cell"
    assert len(inline) == 4
    assert {child.type for token in inline for child in token.children or ()} <= {"text", "text_special"}
    text = "".join(child.content for child in inline[2].children or ())
    assert text == escaping.shown(name).strip()


def test_json_on_a_terminal_commands_nothing_and_reads_the_same(capsys: Captured) -> None:
    console.out_json({"names": CLASSES})
    console.out_line({"names": CLASSES})
    out = capsys.readouterr().out
    assert not UNSAFE.search(out)
    first, second = out[: out.rindex("\n", 0, -1)], out.splitlines()[-1]
    assert json.loads(first) == json.loads(second) == {"names": CLASSES}


def test_what_letters_need_to_join_stays() -> None:
    assert escaping.shown("می\u200cخواهم 👩\u200d💻 é\u0301") == "می\u200cخواهم 👩\u200d💻 é\u0301"


def test_the_shown_text_of_a_recipe_is_the_file_s_own(capsys: Captured) -> None:
    text = 'about.title = "a\\u001b"\t# größe \u202e\n'
    Path("mine.toml").write_text(text, encoding="utf-8")
    console.out_text(text.rstrip("\n"))
    assert capsys.readouterr().out == text
    assert main(["recipes", "mine.toml"]) in (0, 2)
