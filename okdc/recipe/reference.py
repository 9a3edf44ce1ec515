"""The reference of recipes: every key, what it takes, its default and what it is, read from the tables themselves.

keys(Recipe)                        of a recipe's tables; those of a method follow from its Config:
keys(FEFRConfig, "method.", "fefr")
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel

REQUIRED = "required"


@dataclass(frozen=True)
class Key:
    """One key of a recipe."""

    key: str  # as an override writes it: optim.lr
    takes: str  # in words: number > 0
    required: bool
    default: Any  # None: nothing, where the key may be left out
    description: str
    schema: Mapping[str, Any]  # what it takes, as JSON Schema
    method: str | None = None  # the method whose Config has the key

    @property
    def table(self) -> str:
        """`optim` of `optim.lr`; empty for a key of the top level."""
        return self.key.rpartition(".")[0]

    @property
    def heading(self) -> str:
        if self.method is not None:
            return f'[method] with name = "{self.method}"'
        return f"[{self.table}]" if self.table else "the top level"

    @property
    def default_text(self) -> str:
        """As an override writes it."""
        if self.required:
            return REQUIRED
        if self.default is None:
            return ""
        if isinstance(self.default, float):
            return f"{self.default:.4g}"
        return self.default if isinstance(self.default, str) else json.dumps(self.default)


def keys(model: type[BaseModel], prefix: str = "", method: str | None = None) -> list[Key]:
    """Every key of a model, those of the tables in it included; keys of one table stand together."""
    schema = model.model_json_schema()
    found, below = [], []
    for name, field in model.model_fields.items():
        if method is not None and name == "name":  # the heading says it
            continue
        tables = [leaf for leaf in alternatives(field.annotation) if _is_table(leaf)]
        part = schema["properties"][name]
        if tables:
            below += keys(tables[0], f"{prefix}{name}.", method)
        elif prefix + name == "method":  # a plain table, whose other keys the method's Config has
            text = "The method by its name, or package.module:Class for your own; the other keys are the method's."
            below.append(Key("method.name", "text", True, None, text, {"type": "string"}))
        else:
            default = None if field.is_required() else part.get("default")
            facts = {key: value for key, value in part.items() if key not in ("title", "description", "default")}
            text = field.description or ""
            found.append(Key(prefix + name, _takes(part), field.is_required(), default, text, facts, method))
    return found + below


def markdown(rows: Sequence[Key]) -> str:
    """A GitHub table for each table of the recipe."""
    blocks = []
    for heading, group in by_table(rows):
        cells = [[f"`{row.key}`", row.takes, row.default_text, row.description] for row in group]
        lines = [["key", "takes", "default", "what it is"], ["---"] * 4, *cells]
        blocks.append("\n".join([f"### {heading}", "", *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join(blocks)


def by_table(rows: Sequence[Key]) -> Iterator[tuple[str, list[Key]]]:
    """Rows of one table with its heading, in their order."""
    for heading, group in groupby(rows, lambda row: row.heading):
        yield heading, list(group)


def alternatives(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type: literals as their values, None left out."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from alternatives(part)
    elif origin is Literal:
        yield from typing.get_args(annotation)
    elif annotation is not type(None):
        yield annotation


def _is_table(leaf: Any) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, BaseModel)


WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": ""}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _takes(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in words."""
    if "anyOf" in schema:
        return " or ".join(filter(None, map(_takes, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "examples" in schema:  # of text that follows a pattern
        return ", ".join(schema["examples"])
    kind = schema.get("type")
    if kind == "array":
        fixed = schema.get("prefixItems", [])
        count, items = ("list", schema.get("items", {})) if not fixed else (f"list of {len(fixed)}", fixed[0])
        return f"{count}: {_takes(items)}"
    if kind == "object":
        return f"table: {_takes(schema.get('additionalProperties', {}))}"
    limits = [
        f"{sign} {json.dumps(schema[name])}".removesuffix(".0") for name, sign in LIMITS.items() if name in schema
    ]
    return " ".join([WORDS.get(str(kind), "anything"), ", ".join(limits)]).strip()
