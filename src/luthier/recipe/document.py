"""A recipe file as plain values, with the line of every key.

YAML is read by PyYAML's safe loader with corrections that spare people a surprise: `1e-4` is a number (YAML 1.1 calls it text),
`010` and `1:30` are not 8 and 90, a date stays text, and a key that is written twice is an error. JSON is read by `json`; as it is
nearly a subset of YAML, the YAML parser tells the lines of its keys too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import UserError, nearest

Key = tuple[str | int, ...]
"""A place in a recipe: `("data", "train", 0, "path")`."""

MOST_NODES, DEEPEST = 100_000, 64
"""More values and levels than any recipe has; aliases of aliases ("billion laughs") and of themselves get here quickly."""


class Loader(yaml.SafeLoader):
    """The safe loader with numbers as people write them, and without dates."""


_TAG = "tag:yaml.org,2002:"
_OLD = {_TAG + "timestamp", _TAG + "int", _TAG + "float"}
Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag not in _OLD]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?(\d[\d_]*\.\d*|\.\d+|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_NUMBER = _TAG + "float", re.compile(f"^({_FLOAT})$"), list("-+.0123456789")
Loader.add_implicit_resolver(*_NUMBER)
Loader.add_implicit_resolver(_TAG + "int", re.compile(r"^[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+)$"), list("-+0123456789"))


_RARE_LINE_ENDS = frozenset("\x85\u2028\u2029")


class Dumper(yaml.SafeDumper):
    """The safe dumper, which also puts a text that looks like a number to `Loader` into quotes, and writes rare line ends as escapes.

    YAML folds NEL, LS and PS like any line end; written as they are, a text would read back with spaces in their place.
    """

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A text; in double quotes, where escapes are, if it holds a rare line end."""
        return self.represent_scalar(_TAG + "str", text, style='"' if _RARE_LINE_ENDS & set(text) else None)


Dumper.add_implicit_resolver(*_NUMBER)
Dumper.add_representer(str, Dumper.represent_text)


@dataclass(frozen=True)
class Document:
    """A parsed recipe file.

    Args:
        values: plain dicts, lists and scalars.
        lines: line of each key and list entry, from 1.
    """

    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)


def parse_value(text: str) -> Any:
    """One value in YAML typing, as it stands after `=` on the command line: `16`, `2e-4`, `[a, b]`, `null`, text.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader)


def read_document(path: Path) -> Document:
    """Read a YAML or JSON file whose content is a mapping.

    Raises:
        UserError: the file is missing, is not UTF-8, is not YAML/JSON, is empty, or is no mapping.
    """
    text = _text(path)
    if not text.strip():
        raise UserError("is empty", where=str(path), hint="A recipe needs at least `model` and `data`.")
    try:
        document = _parse_json(text, path) if path.suffix == ".json" else Document(parse_value(text), _lines(text, path))
    except yaml.YAMLError as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        said = " ".join(str(problem or error).split())
        raise UserError(f"is not YAML: {said}", where=f"{path}:{mark.line + 1}" if mark else str(path)) from error
    except RecursionError as error:
        raise UserError("is nested too deeply", where=str(path)) from error
    except ValueError as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(document.values, dict):
        rows: Any = document.values
        data = isinstance(rows, list) and any(isinstance(row, dict) for row in rows)
        hint = f"If it is your data: `luthier train RECIPE data.train={path}`." if data else None
        raise UserError("a recipe is a mapping (`key: value`)", where=f"{path}:1", hint=hint)
    return document


def _parse_json(text: str, path: Path) -> Document:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    # In JSON a raw tab stands only between values, and it is the one kind of space there that YAML refuses.
    return Document(values, _lines(text.replace("\t", " "), path))


def _text(path: Path) -> str:
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        best = nearest(path.name, names)
        hint = f"Did you mean `{path.parent / best}`?" if best else "`luthier recipes list` shows the shipped recipes."
        raise UserError("is a folder" if path.is_dir() else "no such file", where=str(path), hint=hint)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError("is not UTF-8 text", where=f"{path}:{line}", hint="Save it as UTF-8.") from error


def _lines(text: str, path: Path) -> dict[Key, int]:
    """The line of every key, by a walk over the parsed nodes; refuses keys that stand twice in one mapping."""
    lines: dict[Key, int] = {}
    root = yaml.compose(text, Loader)
    pending: list[tuple[Key, yaml.Node]] = [((), root)] if root else []
    while pending:
        place, node = pending.pop()
        if isinstance(node, yaml.SequenceNode):
            children = [((*place, i), child, child) for i, child in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            children = [((*place, str(name.value)), name, child) for name, child in node.value]
        else:
            continue
        for key, name, child in children:
            line = name.start_mark.line + 1
            if key in lines and key[-1] != "<<":
                raise UserError(f"`{dotted(key)}` is written twice (first on line {lines[key]})", where=f"{path}:{line}")
            lines[key] = line
            pending.append((key, child))
        if len(lines) > MOST_NODES or len(place) > DEEPEST:
            raise UserError(f"has over {MOST_NODES} values or {DEEPEST} levels: this is no recipe", where=str(path))
    return lines


def dotted(key: Key) -> str:
    """A key as people write it: `data.train.0.path`."""
    return ".".join(map(str, key))
