"""The catalogue: models by name, so that `model: qwen2.5-0.5b-instruct` is enough.

```yaml
shop-assistant:
  path: models/shop             # or huggingface: owner/name, modelscope: owner/name, both: owner/name
  template: qwen2.5             # used where the tokenizer brings none of its own
  context: 32768
  licence: own
```

A name is looked up in the `models.yaml` of the working directory, then in `catalog.yaml`, which comes with Luthier. Upper case and
underscores do not matter, and the last part of a hub id is a name too: `Qwen2.5-0.5B-Instruct` and `internlm2_5-7b-chat` are found.
A folder of that name goes before the catalogue, as everywhere.

The catalogue says where a model lies and with which chat template it was taught. It never decides how a model is computed: that stands
in the model's own files. Reading it takes nothing heavy, so `luthier models list` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from luthier.errors import UserError, did_you_mean

Hub = Literal["auto", "huggingface", "modelscope"]

OWN = "models.yaml"
"""The user's own catalogue, in the working directory."""
SHIPPED = Path(__file__).with_name("catalog.yaml")

NOTES = {
    "convert": "Published with code of its own; Luthier converts it into a native folder.",
    "copy": "A copy of the makers' weights by others, without a gate.",
    "gated": "Its makers give access on request: ask on its page, then run `luthier login`.",
    "gptq": "Stored in 4 bits (GPTQ).",
    "moe": "A mixture of experts: each token passes through the active parameters only.",
    "noncommercial": "Its licence forbids commercial use.",
    "remote-code": "Needs code from the hub, which Luthier never runs, so it cannot be loaded.",
    "remote-tokenizer": "Its tokenizer is code on the hub, which Luthier never runs: name another with `model.tokenizer`.",
    "thinking": "Writes its thoughts before an answer.",
    "vision": "Reads pictures too; Luthier works with its text.",
}
"""What the words under `notes` mean."""

_PLACES = ("path", "huggingface", "modelscope", "both")
_FACTS = ("kind", "family", "size", "active", "context", "licence", "template", "notes", "about")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue.

    Attributes:
        name: as recipes call it.
        registry: the file that it stands in.
        path: a folder; empty for a model on a hub.
        huggingface: its id there, empty where it is not.
        modelscope: its id there, empty where it is not or the id is not known.
        kind: `base`, or `chat` for what was taught to answer; empty where nobody said.
        family: models of one make and generation.
        size: parameters as its makers count them, such as `7B`.
        active: parameters that one token passes through, of a mixture of experts.
        context: tokens that it takes, None where that is not known.
        licence: as its makers name it.
        template: family of chat templates it was taught with; empty for base models, and where the tokenizer brings its own.
        notes: names in `NOTES`.
        about: one line.
    """

    name: str
    registry: str
    path: str = ""
    huggingface: str = ""
    modelscope: str = ""
    kind: str = ""
    family: str = ""
    size: str = ""
    active: str = ""
    context: int | None = None
    licence: str = "unknown"
    template: str = ""
    notes: tuple[str, ...] = ()
    about: str = ""

    def place(self, hub: Hub = "auto") -> tuple[str, Hub]:
        """Where it is to be taken from: a path and `auto`, or an id and its hub.

        Args:
            hub: the hub that was asked for; `auto` takes the usual one, or the only one that has it.

        Raises:
            UserError: it is not known to be on the hub that was asked for, or it needs code from the hub.
        """
        if "remote-code" in self.notes:
            raise UserError(f"`{self.name}` runs only with code from its hub, which Luthier never runs", where=self.name)
        if self.path:
            return self.path, "auto"
        wanted = default_hub() if hub == "auto" else hub
        other: Hub = "huggingface" if wanted == "modelscope" else "modelscope"
        ids = {"huggingface": self.huggingface, "modelscope": self.modelscope}
        if ids[wanted]:
            return ids[wanted], wanted
        if hub == "auto":
            return ids[other], other
        raise UserError(f"`{self.name}` is not known to be on this hub", where=self.registry, hint=f"Set `hub: {other}`.")


def default_hub() -> Hub:
    """The hub of an id that comes without one: Hugging Face, or ModelScope with `USE_MODELSCOPE_HUB=1`."""
    asked = os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes")
    return "modelscope" if asked else "huggingface"


def entries() -> dict[str, Entry]:
    """All models by name, those of the own catalogue last; a name that stands in both means the own one.

    Raises:
        UserError: a catalogue cannot be read.
    """
    own = Path(OWN)
    state = own.stat() if own.is_file() else None
    return {**_shipped(), **(_own(own.absolute(), (state.st_mtime_ns, state.st_size)) if state else {})}


def find(name: str) -> Entry | None:
    """The model of a name, of the last part of a hub id, or of a whole hub id; None where the catalogue has none."""
    known = entries()
    if name in known:
        return known[name]
    wanted = _folded(name)
    whole = "/" in name
    for entry in reversed([*known.values()]) if whole else known.values():
        ids = [_folded(id_) for id_ in (entry.huggingface, entry.modelscope) if id_]
        if wanted in (ids if whole else [_folded(entry.name), *(id_.rpartition("/")[2] for id_ in ids)]):
            return entry
    return None


def get(name: str) -> Entry:
    """As `find`, for names that must be there.

    Raises:
        UserError: the catalogue has no such model; the hint has the nearest names.
    """
    entry = find(name)
    if entry is None:
        raise UserError("no such folder, and no model of this name in the catalogue", where=name, hint=nearest_names(name))
    return entry


def similar(name: str) -> list[str]:
    """Up to three names of the catalogue that look most like an unknown one, the nearest first."""
    folded = {_folded(known): known for known in entries()}
    return [folded[found] for found in get_close_matches(_folded(name), folded, n=3, cutoff=0.6)]


def nearest_names(name: str) -> str:
    """A hint for an unknown name."""
    near = " or ".join(f"`{known}`" for known in similar(name))
    listed = "`luthier models list` shows all names; a model on a hub is written `owner/name`."
    return f"Did you mean {near}? {listed}" if near else listed


def template_of(model: str) -> str:
    """The chat template that the catalogue names for a model (by name or hub id); empty where it names none."""
    entry = find(model) if model and not Path(model).expanduser().is_dir() else None
    return entry.template if entry else ""


def families() -> list[str]:
    """Names of all families, in the order of the catalogue."""
    return list(dict.fromkeys(entry.family for entry in entries().values() if entry.family))


def add(values: Mapping[str, Any], name: str, file: Path) -> Entry:
    """Write a model into an own catalogue, which is made if it is not there; its comments and order are kept.

    Raises:
        UserError: the name stands there already or cannot be one, or the entry is not valid.
    """
    import yaml

    from luthier.files import write_atomic

    if not name or "/" in name or name == "tiny" or name.startswith((".", "~", "-")):
        raise UserError(f"`{name}` cannot name a model", hint="Use letters, digits, `-` and `.`; `tiny` is the embedded model.")
    text = file.read_text("utf-8") if file.is_file() else ""
    if text and name in _mapping(file):
        raise UserError(f"`{name}` stands there already", where=str(file), hint="Take another name, or edit the file.")
    entry = _entry(name, dict(values), file)
    block = yaml.safe_dump({name: dict(values)}, allow_unicode=True, sort_keys=False, width=120)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, (text.rstrip("\n") + "\n\n" if text.strip() else "") + block)
    return entry


@cache
def _shipped() -> dict[str, Entry]:
    """The catalogue that comes with Luthier, its families flattened: what holds for a family is laid under each of its models."""
    found: dict[str, Entry] = {}
    for family, values in _mapping(SHIPPED).items():
        common = {key: value for key, value in values.items() if key not in ("base", "chat")}
        for kind in ("base", "chat"):
            shared = common if kind == "chat" else {**common, "template": None}
            for name, own in values.get(kind, {}).items():
                found[name] = _entry(name, {**shared, **own, "kind": kind, "family": family}, SHIPPED)
    return found


@cache
def _own(file: Path, state: tuple[int, int]) -> dict[str, Entry]:
    """The models of an own catalogue; `state` makes a changed file be read again."""
    return {name: _entry(name, values, file) for name, values in _mapping(file).items()}


def _mapping(file: Path) -> dict[str, Any]:
    import yaml

    # Both loaders are safe ones; that in C reads the catalogue ten times as fast, the other is there where a platform has no libyaml.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        values = yaml.load(file.read_text("utf-8"), Loader=loader) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError("is not YAML", where=f"{file.name}:{mark.line + 1}" if mark else file.name) from error
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise UserError("should map names to models", where=file.name)
    return {str(name): value for name, value in values.items()}


def _entry(name: str, values: Mapping[str, Any], file: Path) -> Entry:
    """One model.

    Raises:
        UserError: a key or a note is unknown, a value is of the wrong kind, or nothing says where the model lies.
    """
    where = f"{file.name}: {name}"
    for key in values:
        if key not in (*_PLACES, *_FACTS):
            raise UserError(f"unknown key `{key}`", where=where, hint=did_you_mean(str(key), (*_PLACES, *_FACTS)))
    if not any(values.get(place) for place in _PLACES):
        raise UserError("says nowhere where it lies", where=where, hint="Give `path`, `huggingface`, `modelscope` or `both`.")
    notes, context = values.get("notes") or [], values.get("context")
    if not isinstance(notes, list) or not (context is None or (isinstance(context, int) and context > 0)):
        raise UserError("`notes` should be a list, `context` a number of tokens", where=where)
    for note in notes:
        if note not in NOTES:
            raise UserError(f"unknown note `{note}`", where=where, hint=did_you_mean(str(note), NOTES))
    both = values.get("both")
    texts = {key: str(values.get(key) or "") for key in ("kind", "family", "size", "active", "template", "about")}
    return Entry(
        name,
        file.name,
        path=os.path.normpath(file.absolute().parent / Path(str(values["path"])).expanduser()) if values.get("path") else "",
        huggingface=str(values.get("huggingface") or both or ""),
        modelscope=str(values.get("modelscope") or both or ""),
        context=context,
        licence=str(values.get("licence") or "unknown"),
        notes=tuple(notes),
        **texts,
    )


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")
