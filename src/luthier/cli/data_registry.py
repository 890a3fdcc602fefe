"""`luthier data list`, `show`, `add` and `formats`: data sets by name, and how rows can be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.data.registry_entry import Entry

Name = Annotated[str, typer.Argument(help="Name of the data set.")]
Registry = Annotated[
    str | None,
    typer.Option("--registry", metavar="FILE", help="Look here first: a datasets.yaml, or LLaMA-Factory's dataset_info.json."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_(
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Only this kind: pretraining, sft, preference, feedback or prompts."),
    ] = None,
    language: Annotated[str | None, typer.Option(metavar="LANGUAGE", help="Only sets in this language, e.g. zh.")] = None,
    registry: Registry = None,
    as_json: AsJSON = False,
) -> None:
    """List the data sets that recipes can name."""
    from luthier.data.registry import entries

    found = {
        name: entry
        for name, entry in entries(registry).items()
        if kind in (None, entry.kind) and (language is None or language in entry.languages)
    }
    if as_json:
        print(json.dumps({name: _facts(entry) for name, entry in found.items()}, ensure_ascii=False, indent=2))
        return
    width = max(map(len, found), default=0)
    for name, entry in found.items():
        languages = ",".join(entry.languages)
        where = f"refused: {entry.refused}" if entry.refused else _lies(entry)
        print(f"{name:{width}}  {entry.kind:11}  {languages:6}  {entry.licence:16}  {where}")
    print(f"{len(found)} data sets; use one with `data.train: [{{name: …}}]`")


def show(
    name: Name,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="Also print the first N examples.")] = 0,
    registry: Registry = None,
    as_json: AsJSON = False,
) -> None:
    """Print what the registry says about a data set, and its first examples on demand."""
    from luthier.data.registry import find

    entry = find(name, registry)
    if as_json:
        print(json.dumps(_facts(entry), ensure_ascii=False, indent=2))
    else:
        for key, value in _facts(entry).items():
            print(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    if rows:
        for line in _examples(name, registry, rows):
            print(line)


def add(
    name: Name,
    place: Annotated[str, typer.Argument(metavar="PATH", help="A file, folder, pattern, address or hub id.")],
    format_name: Annotated[
        str, typer.Option("--as", metavar="FORMAT", help="How rows are read. Default: as their keys tell.")
    ] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="Own column names, e.g. instruction=question. May be repeated."),
    ] = None,
    hub: Annotated[str, typer.Option(metavar="HUB", help="Of a hub id: huggingface or modelscope.")] = "huggingface",
    licence: Annotated[str, typer.Option(metavar="NAME", help="Its licence.")] = "unknown",
    about: Annotated[str, typer.Option(metavar="TEXT", help="What it is, in one line.")] = "",
    registry: Annotated[Path, typer.Option("--registry", metavar="FILE", help="The registry to write into.")] = Path(
        "datasets.yaml"
    ),
) -> None:
    """Give data a name that recipes can use; a file's checksum is kept, so that a changed file is noticed."""
    from luthier.cli.data_sources import check_format, column_names
    from luthier.data.registry import add as write_entry

    entry = {**_place(place, hub, registry), **_reading(place, check_format(format_name, "--as"), column_names(columns))}
    entry |= {key: value for key, value in (("licence", licence), ("about", about)) if value}
    write_entry(entry, name, registry)
    print(f"{registry}: `{name}`, read as `{entry.get('format', 'auto')}`; use it with `data.train: [{{name: {name}}}]`")


def formats() -> None:
    """List the formats of rows that are read."""
    from luthier.data.formats import FORMATS

    width = max(map(len, FORMATS))
    for name, each in FORMATS.items():
        print(f"{name:{width}}  {each.ABOUT}")


def _facts(entry: Entry) -> dict[str, Any]:
    """What an entry says, without what it leaves open."""
    facts = {
        "name": entry.name,
        "about": entry.about,
        "kind": entry.kind,
        "languages": list(entry.languages),
        "licence": entry.licence,
        "path": entry.path,
        "huggingface": entry.huggingface,
        "modelscope": entry.modelscope,
        **entry.options,
        "checksum": entry.checksum,
        "refused": entry.refused,
        "registry": entry.registry,
    }
    return {key: value for key, value in facts.items() if value not in ("", [], {})}


def _lies(entry: Entry) -> str:
    from luthier.data.textfile import shown

    places = (
        shown(Path(entry.path)) if entry.path else "",
        entry.huggingface,
        f"ms:{entry.modelscope}" if entry.modelscope else "",
    )
    return " · ".join(place for place in places if place)


def _examples(name: str, registry: str | None, count: int) -> list[str]:
    """The first examples of a data set, as JSON lines."""
    from dataclasses import asdict
    from itertools import islice

    from luthier.data.problems import Problems
    from luthier.data.read_examples import read_examples
    from luthier.data.registry import resolve
    from luthier.data.sources import rows_of
    from luthier.recipe.schema import Source

    source = resolve(Source(name=name), registry=registry)
    found = islice(read_examples(source, Problems("skip"), rows=rows_of(source, on_the_way=True)), count)
    shown = ({key: value for key, value in asdict(example).items() if key != "origin" and value is not None} for example in found)
    return [json.dumps(example, ensure_ascii=False) for example in shown]


def _place(place: str, hub: str, registry: Path) -> dict[str, str]:
    """Where the data lie, as an entry says it: a path relative to the registry, an address, or a hub id."""
    from luthier.data.sources import is_on_hub
    from luthier.errors import UserError
    from luthier.files import sha256
    from luthier.recipe.paths import is_address

    if hub not in ("huggingface", "modelscope"):
        raise UserError(f"no such hub: `{hub}`", where="--hub", hint="There are huggingface and modelscope.")
    if is_address(place):
        return {"path": place}
    if is_on_hub(place):
        return {hub: place}
    file, folder = Path(place), registry.absolute().parent
    inside = file.absolute().is_relative_to(folder)
    path = str(file.absolute().relative_to(folder)) if inside else str(file.absolute())
    return {"path": path, **({"sha256": sha256(file)} if file.is_file() else {})}


def _reading(place: str, format_name: str, columns: dict[str, str]) -> dict[str, Any]:
    """Format and columns; the format of data on this disk is told from its first rows."""
    from luthier.data.read_examples import check_columns, choose_format
    from luthier.data.sources import is_on_hub, rows_of
    from luthier.recipe.paths import is_address
    from luthier.recipe.schema import Source

    if not (is_address(place) or is_on_hub(place)):
        source = Source.model_validate({"path": place, "format": format_name, "columns": columns})
        chosen, _ = choose_format(source, rows_of(source))
        check_columns(chosen, source)
        format_name = chosen.NAME
    return ({"format": format_name} if format_name != "auto" else {}) | ({"columns": columns} if columns else {})
