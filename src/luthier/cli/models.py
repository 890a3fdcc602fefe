"""`luthier models`: the models that recipes can name, what is known of them, and names for one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.login import Hub
from luthier.cli.models_convert import convert

if TYPE_CHECKING:
    from luthier.models.catalog import Entry

models_app = typer.Typer(
    help="Models by name: list them, fetch them, name your own; old checkpoints made new.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model, or its hub id.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models_app.callback()
def models() -> None:
    """Models by name: list them, fetch them, name your own; old checkpoints made new."""


models_app.command()(convert)


@models_app.command("list")
def list_(
    family: Annotated[
        str | None, typer.Option(metavar="FAMILY", help="Only families whose name holds this, e.g. qwen or qwen2.5.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """List the models that recipes can name."""
    from luthier.models.catalog import entries

    found = [entry for entry in entries().values() if family is None or family.lower() in entry.family.lower()]
    if not found:
        _refuse_family(str(family))
    if as_json:
        print(json.dumps({entry.name: _facts(entry) for entry in found}, ensure_ascii=False, indent=2))
        return
    rows = [("NAME", "SIZE", "CONTEXT", "LICENCE", "TEMPLATE", "NOTES"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(found)} models; use one with `model: NAME` in a recipe, or `luthier chat NAME`")


@models_app.command()
def show(name: Name, as_json: AsJSON = False) -> None:
    """Print what the catalogue says about a model."""
    from luthier.models.catalog import NOTES, get

    entry = get(name)
    if as_json:
        print(json.dumps(_facts(entry), ensure_ascii=False, indent=2))
        return
    for key, value in _facts(entry).items():
        if key != "notes":
            print(f"{key}: {value}")
    for note in entry.notes:
        print(f"{note}: {NOTES[note]}")


@models_app.command()
def pull(
    name: Name,
    hub: Annotated[
        Hub | None, typer.Option(help="Where to take it from. Default: Hugging Face, or the only hub that has it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Fetch a model into the hub's own cache and print its folder; what is there already is not fetched again."""
    from luthier.models.catalog import NOTES
    from luthier.models.catalog import find as find_entry
    from luthier.models.hub import find

    entry = find_entry(name)
    for note in entry.notes if entry else ():
        print(f"{note}: {NOTES[note]}", file=sys.stderr)
    print(find(name, hub=hub.value if hub else "auto", revision=revision))


@models_app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that recipes are to use.")],
    place: Annotated[str, typer.Argument(metavar="PLACE", help="A model folder, or a hub id.")],
    hub: Annotated[Hub, typer.Option(help="The hub of an id.")] = Hub.huggingface,
    template: Annotated[
        str, typer.Option(metavar="FAMILY", help="Family of chat templates, for a tokenizer that brings none.")
    ] = "",
    context: Annotated[int | None, typer.Option(metavar="N", min=1, help="Tokens that it takes.")] = None,
    size: Annotated[str, typer.Option(metavar="SIZE", help="Its number of parameters, such as 7B.")] = "",
    licence: Annotated[str, typer.Option(metavar="NAME", help="Its licence.")] = "unknown",
    about: Annotated[str, typer.Option(metavar="TEXT", help="What it is, in one line.")] = "",
) -> None:
    """Give a model of your own a name; it is written into models.yaml in the working directory."""
    from luthier.models.catalog import OWN
    from luthier.models.catalog import add as write_entry

    _check_template(template)
    values: dict[str, Any] = {**_place(place, hub), "template": template, "context": context, "size": size, "about": about}
    values = {key: value for key, value in values.items() if value} | {"licence": licence}
    write_entry(values, name, Path(OWN))
    print(f"{OWN}: `{name}`; use it with `model: {name}` in a recipe, or `luthier chat {name}`")


def _facts(entry: Entry) -> dict[str, Any]:
    """What an entry says, without what it leaves open."""
    names = ("name", "about", "family", "kind", "size", "active", "context", "licence", "template", "path", "huggingface")
    facts = {key: getattr(entry, key) for key in (*names, "modelscope", "notes", "registry")}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in facts.items() if value not in ("", None, ())
    }


def _row(entry: Entry) -> tuple[str, ...]:
    size = f"{entry.size} ({entry.active})" if entry.active else entry.size
    context = f"{entry.context:,}" if entry.context else ""
    return entry.name, size, context, entry.licence, entry.template, ", ".join(entry.notes)


def _refuse_family(family: str) -> None:
    from luthier.errors import UserError, did_you_mean
    from luthier.models.catalog import families

    raise UserError(f"no family `{family}`", where="--family", hint=did_you_mean(family, families()))


def _check_template(template: str) -> None:
    from luthier.chat.families import by_any_name
    from luthier.errors import UserError, did_you_mean

    if template and template not in by_any_name():
        raise UserError(f"unknown template `{template}`", where="--template", hint=did_you_mean(template, by_any_name()))


def _place(place: str, hub: Hub) -> dict[str, str]:
    """Where the model lies, as an entry says it: a folder, relative to this one where it is inside; or an id on a hub."""
    from luthier.errors import UserError
    from luthier.recipe.paths import is_hub_id

    folder = Path(place).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError("not a model folder: `config.json` is missing", where=place)
        inside = folder.absolute().is_relative_to(Path.cwd())
        return {"path": str(folder.absolute().relative_to(Path.cwd()) if inside else folder.absolute())}
    if not is_hub_id(place):
        raise UserError("no such folder", where=place, hint="Give an existing model folder, or a hub id such as `owner/model`.")
    return {hub.value: place}
