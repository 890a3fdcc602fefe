"""The reference pages of the docs, written from the program itself: recipe fields, commands, the models of the catalogue, tiny's card.

MkDocs calls `on_page_markdown` for each page (`hooks` in mkdocs.yml). Where a page holds one of the markers below, such as
`<!-- commands -->`, what it names takes that line's place. English is the docstring or help text as it stands in the code;
Chinese comes from `zh.yaml`, which pairs each English text with its translation. So an English text that changes has no translation
until somebody has looked at it, and a test says so. The card is the same on both pages: it is in both languages.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
import yaml

from luthier.cli.app import app
from luthier.models.catalog import NOTES, Entry, entries
from luthier.recipe.help import Field, fields, fields_of, section_at
from luthier.recipe.schema import Section
from luthier.recipe.sections.rewards import Reward, Weighted
from luthier.recipe.sections.tasks import JudgeTask

FIELDS, COMMANDS, CARD = "<!-- recipe fields -->", "<!-- commands -->", "<!-- the card of tiny -->"
METHODS, VARIANTS = "<!-- methods and families -->", "<!-- variants of LoRA and bases -->"
CATALOGUE = "<!-- the catalogue -->"
REWARDS = "<!-- rewards -->"
JUDGE = "<!-- judge -->"
UNIONS = ("stage", "method", "train.optimizer", "stage.rewards", "evaluate.tasks")
"""Fields that take one of several sections."""
TINY = Path(__file__).resolve().parents[2] / "src/luthier/models/tiny"
Translate = Callable[[str], str]


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill in the tables of a page; called by MkDocs."""
    translate = chinese if page.file.src_uri.endswith(".zh.md") else str
    writers = {
        FIELDS: recipe_reference,
        COMMANDS: command_reference,
        CATALOGUE: model_reference,
        METHODS: method_table,
        VARIANTS: variant_table,
        REWARDS: reward_reference,
        JUDGE: judge_reference,
        CARD: model_card,
    }
    for marker, write in writers.items():
        if marker in markdown:
            markdown = markdown.replace(marker, write(translate))
    return markdown


@cache
def catalogue() -> dict[str, str]:
    """English text → Chinese text."""
    pairs = yaml.safe_load(Path(__file__).with_name("zh.yaml").read_text("utf-8"))
    return {pair["en"]: pair["zh"] for pair in pairs}


def chinese(text: str) -> str:
    """The translation of a text.

    Raises:
        KeyError: there is none.
    """
    return catalogue()[text]


def recipe_reference(translate: Translate) -> str:
    """A section for each part of the recipe, a row for each field."""
    groups: dict[tuple[str, str | None], list[Field]] = {}
    for field in fields():
        groups.setdefault((field.key.rpartition(".")[0], field.only), []).append(field)
    anchors = {(key, only): f"{key}-{only}" if only else key for key, only in groups}
    parts: list[str] = []
    seen: dict[tuple[str, ...], str] = {}
    for (key, only), rows in groups.items():
        title = f"{key}: {only}" if only else key
        texts = tuple(row.text for row in rows)
        section = section_at(tuple(key.split(".")) if key else (), only)
        parts.append(f"## `{title}` {{ #{anchors[key, only]} }}" if key else f"## {translate('The whole recipe')}")
        parts.append(translate(_about(key, only)))
        if texts in seen:
            parts.append(f"{translate('The fields are those of')} [`{seen[texts]}`](#{seen[texts]}).")
            continue
        seen[texts] = anchors[key, only]
        parts.append(_table(translate, ("Field", "Value", "Meaning"), [_field(row, section, anchors, translate) for row in rows]))
        parts += [_union(row, translate) for row in rows if row.key in UNIONS]
    return "\n\n".join(parts)


def reward_reference(translate: Translate) -> str:
    """A table of what all rewards have, then one for each reward that has more."""
    common = fields_of(Weighted, ("stage", "rewards"))
    parts: list[str] = []
    for kind in (Weighted, *get_args(get_args(Reward)[0])):
        known = () if kind is Weighted else common
        rows = [row for row in fields_of(kind, ("stage", "rewards")) if row not in known and not row.key.endswith(".type")]
        about = translate(inspect.cleandoc(kind.__doc__ or ""))
        parts.append(about if kind is Weighted else f"`{kind.model_fields['type'].default}`: {about}")
        if rows:
            parts.append(_table(translate, ("Field", "Value", "Meaning"), [_field(row, kind, {}, translate) for row in rows]))
    return "\n\n".join(parts)


def judge_reference(translate: Translate) -> str:
    """A table of the fields of a judge, which no recipe has."""
    rows = [row for row in fields_of(JudgeTask, ("evaluate", "tasks")) if not row.key.endswith(".type")]
    table = _table(translate, ("Field", "Value", "Meaning"), [_field(row, JudgeTask, {}, translate) for row in rows])
    return f"{translate(inspect.cleandoc(JudgeTask.__doc__ or ''))}\n\n{table}"


def _about(key: str, only: str | None) -> str:
    section = section_at(tuple(key.split(".")) if key else (), only)
    return inspect.cleandoc(section.__doc__ or "") if section else ""


def _field(
    row: Field, section: type[Section] | None, anchors: Mapping[tuple[str, str | None], str], translate: Translate
) -> tuple[str, str, str]:
    name = f"`{row.key.rpartition('.')[2]}`"
    if (row.key, row.only) in anchors and row.key not in UNIONS:  # whose members have sections of their own
        name = f"[{name}](#{anchors[row.key, row.only]})"
    default = translate("required") if row.default is None else f"{translate('default')} `{row.default}`"
    return name, f"{_kind(row.type, _values(row, section), translate)}<br>{default}", translate(row.text)


def _kind(words: str, values: set[str], translate: Translate) -> str:
    """A type in words, such as `whole number | auto` or `list of (a | b)`, with the values among them as code."""
    if words.startswith("list of ("):
        return f"{translate('list of')} {_kind(_inner(words), values, translate)}"
    return " · ".join(f"`{part}`" if part in values else translate(part) for part in words.split(" | "))


def _inner(words: str) -> str:
    """`a | b` of `list of (a | b)`."""
    return words.removeprefix("list of (").removesuffix(")")


def _values(row: Field, section: type[Section] | None) -> set[str]:
    """What can be written for a field of a section as it stands: its literals, the names of its union's members, true and false."""
    name = row.key.rpartition(".")[2]
    waiting, found = [section.model_fields[name].annotation] if section else [], {"true", "false"}
    while waiting:
        kind = waiting.pop()
        parts = get_args(kind)
        if get_origin(kind) is Literal:
            found |= {str(part) for part in parts}
        elif inspect.isclass(kind) and issubclass(kind, Section):
            named = get_args(kind.model_fields["type"].annotation) if "type" in kind.model_fields else ()
            found |= {*map(str, named)} if len(named) == 1 else set()
        else:
            waiting += parts
    return found


def _union(row: Field, translate: Translate) -> str:
    about = [(f"`{tag}`", translate(_about(row.key, tag))) for tag in _inner(row.type).split(" | ")]
    return _table(translate, (f"`{row.key}`", "Meaning"), about)


def command_reference(translate: Translate) -> str:
    """A section for each command, with its arguments and options."""
    return "\n\n".join(part for path, command in commands() for part in _command(path, command, translate))


def commands() -> Iterator[tuple[str, Any]]:
    """Every command as (words, command), in the order of `--help`; groups before their members."""
    waiting = [("luthier", typer.main.get_command(app))]
    while waiting:
        path, command = waiting.pop(0)
        if path != "luthier":
            yield path, command
        waiting = [(f"{path} {name}", part) for name, part in getattr(command, "commands", {}).items()] + waiting


def _command(path: str, command: Any, translate: Translate) -> Iterator[str]:
    group = hasattr(command, "commands")
    yield f"{'##' if path.count(' ') == 1 else '###'} `{path}` {{ #{path.replace(' ', '-')} }}"
    yield from (translate(paragraph.replace("\n", " ")) for paragraph in inspect.cleandoc(command.help).split("\n\n"))
    if group:
        return
    yield f"```text\n{' '.join([path, *_usage(command)])}\n```"
    if rows := [_parameter(parameter, _choices(command, parameter.name), translate) for parameter in shown(command)]:
        yield _table(translate, ("Name", "Meaning", "Default"), rows)


def shown(command: Any) -> list[Any]:
    """The parameters that have a help text: all but `--help` itself."""
    return [parameter for parameter in command.params if parameter.help]


def _choices(command: Any, name: str) -> str:
    """`a|b` for an option that takes one of several words, else the empty string."""
    hint = get_type_hints(command.callback)[name]
    kinds = [kind for kind in (hint, *get_args(hint)) if inspect.isclass(kind) and issubclass(kind, Enum)]
    return "|".join(member.value for kind in kinds for member in kind)


def _usage(command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if not parameter.opts[0].startswith("-")]
    for parameter in arguments:
        name = parameter.metavar or parameter.name.upper()
        yield name if parameter.required else f"[{name}]" if parameter.nargs == 1 else f"[{name} …]"
    for parameter in command.params:
        if parameter.required and parameter not in arguments:
            yield f"{parameter.opts[0]} {parameter.metavar}"
    if any(parameter not in arguments and not parameter.required for parameter in shown(command)):
        yield "[OPTIONS]"


def _parameter(parameter: Any, choices: str, translate: Translate) -> tuple[str, str, str]:
    if parameter.opts[0].startswith("-"):
        value = parameter.metavar or choices
        name = ", ".join(
            f"`{option} {value}`" if value else f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts)
        )
    else:
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    given = parameter.default not in (None, False, ())
    default = f"`{parameter.default}`" if given else translate("required") if parameter.required else ""
    return name, translate(parameter.help), default


def method_table(translate: Translate) -> str:
    """A row for each method, a column for each family."""
    return _ticks(yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text("utf-8")), "families", translate)


def variant_table(translate: Translate) -> str:
    """A row for each variant of LoRA, a column for some kinds of bases."""
    return _ticks(yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text("utf-8"))["variants"], "bases", translate)


def _ticks(content: Mapping[str, Any], columns: str, translate: Translate) -> str:
    """Methods down, `columns` across: a tick, and the number of what there is to say of the cell."""
    told = [*content["cannot"], *content["partly"]]
    reasons = list(dict.fromkeys(cell["why"] for cell in told))

    def cell(method: str, column: str) -> str:
        found = next((c for c in told if method in c["methods"] and column in c[columns]), None)
        note = f"[{reasons.index(found['why']) + 1}]" if found else ""
        return note if found in content["cannot"] else f"✓ {note}".strip()

    rows = [(f"`{row['name']}`", *(cell(row["name"], column) for column in content[columns])) for row in content["methods"]]
    head = ["`method`", *content[columns].values()]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, "\n".join(f"{number}. {translate(why)}" for number, why in enumerate(reasons, 1))])


def _table(translate: Translate, head: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    titles = [title if title.startswith("`") else translate(title) for title in head]
    lines = [titles, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def model_reference(translate: Translate) -> str:
    """A table of all models of the catalogue, and what the words under their notes mean."""
    notes = _table(translate, ("Note", "Meaning"), [(f"`{note}`", translate(text)) for note, text in NOTES.items()])
    head = ("Model", "Size", "Tokens", "Licence", "Template", "Notes", "Where")
    return f"{_table(translate, head, [_model(entry) for entry in entries().values()])}\n\n{notes}"


def _model(entry: Entry) -> tuple[str, ...]:
    size = f"{entry.size} ({entry.active})" if entry.active else entry.size
    places = [
        f"[{short}](https://{site}/{id_})"
        for short, site, id_ in (("HF", "huggingface.co", entry.huggingface), ("MS", "modelscope.cn/models", entry.modelscope))
        if id_
    ]
    template, notes = f"`{entry.template}`" if entry.template else "", ", ".join(entry.notes)
    return (
        f"`{entry.name}`",
        size,
        f"{entry.context:,}" if entry.context else "",
        entry.licence,
        template,
        notes,
        " ".join(places),
    )


def model_card(_: Translate) -> str:
    """The card as it lies beside the weights: without its title and without links to what lies beside it, with its picture inside."""
    text = re.sub(r"\A---\n.*?\n---\n", "", (TINY / "README.md").read_text("utf-8"), flags=re.DOTALL)
    text = re.sub(r"^# .*\n", "", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\((\w+\.svg)\)", lambda found: f"<div>{(TINY / found[1]).read_text('utf-8').strip()}</div>", text)
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    return re.sub(r"^##", "###", text, flags=re.MULTILINE).strip()


def texts() -> set[str]:
    """Every English text that the pages of fields, commands and models hold, so that a test can ask for its translation."""
    found: set[str] = set()

    def keep(text: str) -> str:
        found.add(text)
        return text

    recipe_reference(keep)
    command_reference(keep)
    method_table(keep)
    variant_table(keep)
    model_reference(keep)
    reward_reference(keep)
    judge_reference(keep)
    return found
