"""Names that users and strangers chose, made harmless: one function for each place that could obey them.

    shown       one line of a terminal or a log: no control character, none that turns or breaks the line
    paragraphs  text of several lines for a terminal
    code        Markdown: a code span
    prose       Markdown: text in a sentence or in the cell of a table
    json_text   JSON for a terminal: the same value

`okdc.bundle.frontmatter` writes YAML, and the page of a bundle puts names into text nodes, which have no syntax.
"""

from __future__ import annotations

import re

# C0, DEL, C1; marks that turn the direction of what follows; separators of lines; the byte order mark. Everything else
# is only a letter. The clients in export/ have the same list.
_UNSAFE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
_LINE = re.compile(f"[{_UNSAFE}]")
_PARAGRAPHS = re.compile(f"(?![\n\t])[{_UNSAFE}]")
_JSON = re.compile(f"(?!\n)[{_UNSAFE}]")


def shown(text: str) -> str:
    """One line: `\\x1b` for ESC, `\\x0a` for a line break, `\\u202e` for a mark that turns the line around."""
    return _LINE.sub(_escaped, text)


def paragraphs(text: str) -> str:
    """`shown`, but line breaks and tabs are what they are."""
    return _PARAGRAPHS.sub(_escaped, text)


def json_text(text: str) -> str:
    """JSON that reads the same: only its strings can hold such characters, and JSON has an escape for each."""
    return _JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def code(text: str) -> str:
    """Any text as one code span on one line: its fence is longer than any in the text."""
    inside = shown(text).encode("utf-8", "backslashreplace").decode() or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", inside)), default=0) + 1)
    pad = " " if "`" in inside or inside != inside.strip() else ""
    return f"{fence}{pad}{inside}{pad}{fence}"


def prose(text: str) -> str:
    """Any text as letters: no HTML, link, image, emphasis, code or end of a table's cell."""
    inside = shown(text).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\\`*<>|~]|\](?=\()|\b_|_\b", _backslashed, inside).replace("&", "&amp;")


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def _backslashed(match: re.Match[str]) -> str:
    return f"\\{match[0]}"
