"""The registry: data sets by name, so that a recipe says `{name: alpaca_gpt4_zh}` and nothing of where it lies or how it is read.

```yaml
shop:
  path: shop.csv                # or huggingface: owner/name, modelscope: owner/name
  format: qa
  columns: {question: ask, answer: reply}
  licence: own
  sha256: 7d1a…                 # of the file; a changed file is refused
```

Two kinds of registries are read: our own `datasets.yaml`, and LLaMA-Factory's `dataset_info.json` as it is (`registry_llamafactory`).
A name is looked up in the recipe's `data.registry`, then in the `datasets.yaml` and `dataset_info.json` of the working directory, then
in the one that comes with Luthier. What the recipe says beside the name (columns, format, split …) goes before what the entry says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from luthier.data.registry_entry import Entry, checked_options
from luthier.data.textfile import shown
from luthier.errors import UserError, did_you_mean
from luthier.recipe.schema import Source

FILES = ("datasets.yaml", "dataset_info.json")
"""Registries that are found in the working directory."""
SHIPPED = Path(__file__).with_name("datasets.yaml")


def resolve(source: Source, *, registry: str | None = None, stage: str | None = None) -> Source:
    """A source given by name as one with a path; any other as it is.

    Args:
        source: the recipe's entry.
        registry: the recipe's `data.registry`.
        stage: what is learnt; decides what a set of prompts alone means.

    Raises:
        UserError: the name is not known (with the nearest one), the entry cannot be used, or its file has changed.
    """
    if not source.name or source.path:
        return source
    entry = find(source.name, registry)
    if entry.refused:
        raise UserError(entry.refused, where=f"{entry.registry}: {entry.name}")
    options = _options(entry, source, stage)
    path, hub = _place(entry, source.hub)
    if entry.checksum and hub == "auto":
        _check(entry, Path(path))
    return source.model_copy(update={**options, "path": path, "hub": hub})


def _options(entry: Entry, source: Source, stage: str | None) -> dict[str, Any]:
    """What the entry says and the source does not. Columns are added to; those of another format than is read mean nothing."""
    given = dict(entry.options)
    if entry.prompt_only and stage in ("pt", None):
        given |= {"format": "text", "columns": {"text": entry.prompt_only}}
    said = Source(path="x", **given)
    options = {name: getattr(said, name) for name in given if name not in source.model_fields_set}
    other = "format" in source.model_fields_set and source.format != said.format
    return {**options, "columns": {**({} if other else said.columns), **source.columns}}


def find(name: str, registry: str | None = None) -> Entry:
    """The entry of a name.

    Raises:
        UserError: there is none; the hint has the nearest name.
    """
    known = entries(registry)
    if name not in known:
        raise UserError(f"no data set `{name}` in the registry", where="data.train", hint=did_you_mean(name, known))
    return known[name]


def entries(registry: str | None = None) -> dict[str, Entry]:
    """All data sets by name; a name that stands in several registries means the one that is looked at first.

    Raises:
        UserError: a registry cannot be read.
    """
    files = [Path(registry)] if registry else []
    files += [Path(name) for name in FILES if Path(name).is_file()]
    found: dict[str, Entry] = {}
    for file in reversed([*files, SHIPPED]):
        state = file.stat() if file.is_file() else None
        found |= _read(file, (state.st_mtime_ns, state.st_size) if state else None)
    return dict(sorted(found.items()))


def add(entry: Mapping[str, Any], name: str, file: Path) -> None:
    """Write an entry into an own registry, which is made if it is not there; its comments and order are kept.

    Raises:
        UserError: the name stands there already, or the entry is not valid.
    """
    import yaml

    from luthier.files import write_atomic

    text = file.read_text("utf-8") if file.is_file() else ""
    if text and name in _read_own(file):
        raise UserError(f"`{name}` stands there already", where=shown(file), hint="Take another name, or edit the file.")
    _own_entry(name, dict(entry), file)
    block = yaml.safe_dump({name: dict(entry)}, allow_unicode=True, sort_keys=False, width=120)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, (text.rstrip("\n") + "\n\n" if text.strip() else "") + block)


@cache
def _read(file: Path, state: tuple[int, int] | None) -> dict[str, Entry]:
    """Entries of a registry; `state` makes a changed file be read again."""
    if state is None:
        raise UserError("no such file", where=shown(file), hint="Name a datasets.yaml or a dataset_info.json.")
    if file.suffix == ".json":
        from luthier.data.registry_llamafactory import read_dataset_info

        return read_dataset_info(file)
    return _read_own(file)


def _read_own(file: Path) -> dict[str, Entry]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{shown(file)}:{mark.line + 1}" if mark else shown(file)
        raise UserError("is not YAML", where=place) from error
    if not isinstance(values, dict):
        raise UserError("should map names to data sets", where=shown(file))
    return {str(name): _own_entry(str(name), value, file) for name, value in values.items()}


_OPTIONS = ("format", "columns", "subset", "split", "folder", "revision", "documents", "max_examples", "python")
_PLACES = ("path", "huggingface", "modelscope")
_FACTS = ("kind", "languages", "licence", "about", "sha256")


def _own_entry(name: str, values: Any, file: Path) -> Entry:
    """One entry of an own registry.

    Raises:
        UserError: a key is unknown, a value is of the wrong kind, or nothing says where the data lie.
    """
    where = f"{shown(file)}: {name}"
    if not isinstance(values, dict):
        raise UserError("should be a mapping with `path`, `huggingface` or `modelscope`", where=where)
    for key in values:
        if key not in (*_OPTIONS, *_PLACES, *_FACTS):
            raise UserError(f"unknown key `{key}`", where=where, hint=did_you_mean(str(key), (*_OPTIONS, *_PLACES, *_FACTS)))
    if not any(values.get(place) for place in (*_PLACES, "python")):
        raise UserError("says nowhere where it lies", where=where, hint="Give `path`, `huggingface`, `modelscope` or `python`.")
    options = {key: values[key] for key in _OPTIONS if key in values}
    if "python" in options:
        options["python"] = _beside(str(options["python"]), file)
    checked_options(options, where)
    return Entry(
        name,
        shown(file),
        _beside(str(values["path"]), file) if values.get("path") else "",
        str(values.get("huggingface", "")),
        str(values.get("modelscope", "")),
        options,
        kind=str(values.get("kind", "")),
        languages=tuple(values.get("languages", ())),
        licence=str(values.get("licence", "unknown")),
        about=str(values.get("about", "")),
        checksum=f"sha256:{values['sha256']}" if values.get("sha256") else "",
    )


def _beside(path: str, file: Path) -> str:
    """A path of a registry, which is relative to the registry's own folder."""
    from luthier.recipe.paths import is_address

    return path if is_address(path) else os.path.normpath(file.absolute().parent / Path(path).expanduser())


def _place(entry: Entry, hub: str) -> tuple[str, Any]:
    """Where a set lies, and on which hub: the one that was asked for, else the one it is on."""
    if entry.path or not (entry.huggingface or entry.modelscope):
        return entry.path, "auto"
    prefers_modelscope = hub == "modelscope" or (
        hub == "auto" and os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes")
    )
    if hub != "auto" and not getattr(entry, hub):
        other = "huggingface" if hub == "modelscope" else "modelscope"
        raise UserError(f"`{entry.name}` is not known to be on this hub", where=entry.registry, hint=f"Set `hub: {other}`.")
    if entry.modelscope and (prefers_modelscope or not entry.huggingface):
        return entry.modelscope, "modelscope"
    return entry.huggingface, "huggingface"


def _check(entry: Entry, file: Path) -> None:
    """Compare a file with its checksum.

    Raises:
        UserError: it is another file than the registry means.
    """
    import hashlib

    method, _, wanted = entry.checksum.partition(":")
    if not file.is_file():
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, method).hexdigest()
    if found != wanted:
        what = f"has changed: its {method} is {found[:12]}…, the registry says {wanted[:12]}…"
        raise UserError(what, where=shown(file), hint=f"Put the old file back, or mend `{entry.name}` in {entry.registry}.")
