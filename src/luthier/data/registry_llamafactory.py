"""LLaMA-Factory's `dataset_info.json`, read as it is.

    {"name": {"file_name" | "hf_hub_url" | …: …, "formatting": "alpaca" | "sharegpt" | "openai", "columns": {…}, "tags": {…}, …}}

Its names of columns and tags become those of our formats. Three things differ on purpose. A column that an entry does not name keeps its
default, where LLaMA-Factory gives up all defaults as soon as one is named. `num_samples` takes the first rows, not a random choice. And
an entry that is a loading script (`script_url`) is refused, for it would run code. An entry that names nothing but the prompt's column,
as its pre-training sets do, is text for `stage: pt`, and a question like any other for the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.data.registry_entry import Entry, checked_options
from luthier.data.textfile import shown
from luthier.errors import UserError, did_you_mean

COLUMNS = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "system": "system",
        "tools": "tools",
        "chosen": "chosen",
        "rejected": "rejected",
        "kto_tag": "label",
    },
    "sharegpt": {
        "messages": "conversations",
        "system": "system",
        "tools": "tools",
        "chosen": "chosen",
        "rejected": "rejected",
        "kto_tag": "label",
    },
}
"""LLaMA-Factory's name of a column → ours, for each of its formats; `openai` is read as `sharegpt` is."""
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "role.user",
    "assistant_tag": "role.assistant",
    "observation_tag": "role.tool",
    "function_tag": "role.call",
    "system_tag": "role.system",
}
"""LLaMA-Factory's tags → our names."""

_MEDIA = ("images", "videos", "audios")
_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "sharegpt"}
_KNOWN_COLUMNS = {*COLUMNS["alpaca"], *COLUMNS["sharegpt"], *_MEDIA}
_KNOWN = (
    *("file_name", "file_sha1", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "load_from"),
    *("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags"),
)


def read_dataset_info(file: Path) -> dict[str, Entry]:
    """The entries of a `dataset_info.json`.

    Raises:
        UserError: it is not JSON, or an entry is not one.
    """
    try:
        values = json.loads(file.read_text("utf-8-sig"))
    except ValueError as error:
        line = getattr(error, "lineno", None)
        raise UserError("is not JSON", where=f"{shown(file)}:{line}" if line else shown(file)) from error
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise UserError("should map names to data sets", where=shown(file))
    return {name: _entry(name, value, file) for name, value in values.items()}


def _entry(name: str, values: Mapping[str, Any], file: Path) -> Entry:
    where = f"{shown(file)}: {name}"
    for key in values:
        if key not in _KNOWN:
            raise UserError(f"unknown key `{key}`", where=where, hint=did_you_mean(key, _KNOWN))
    columns, tags = values.get("columns") or {}, values.get("tags") or {}
    options = {ours: values[theirs] for theirs, ours in _SAME if values.get(theirs) is not None}
    options |= _reading(str(values.get("formatting", "alpaca")), columns, tags, where)
    checked_options(options, where)
    prompt = columns.get("prompt", "") if set(columns) == {"prompt"} and options["format"] == "alpaca" else ""
    return Entry(
        name,
        shown(file),
        _path(values, file),
        str(values.get("hf_hub_url") or ""),
        str(values.get("ms_hub_url") or ""),
        options,
        kind=_kind(values, columns, prompt),
        checksum=f"sha1:{values['file_sha1']}" if values.get("file_sha1") else "",
        refused=_refusal(values, columns),
        prompt_only=prompt if not values.get("ranking") else "",
    )


_SAME = (("subset", "subset"), ("split", "split"), ("folder", "folder"), ("num_samples", "max_examples"))


def _path(values: Mapping[str, Any], file: Path) -> str:
    """A file or address; empty where a hub comes first, as it does in LLaMA-Factory."""
    if values.get("hf_hub_url") or values.get("ms_hub_url"):
        return ""
    if values.get("cloud_file_name"):
        return str(values["cloud_file_name"])
    return os.path.normpath(file.absolute().parent / str(values["file_name"])) if values.get("file_name") else ""


def _reading(formatting: str, columns: Mapping[str, str], tags: Mapping[str, str], where: str) -> dict[str, Any]:
    """Format and columns in our names."""
    if formatting not in _FORMATS:
        raise UserError(f"unknown formatting `{formatting}`", where=where, hint=did_you_mean(formatting, _FORMATS))
    chosen = _FORMATS[formatting]
    own: dict[str, str] = {}
    for name, column in columns.items():
        if name not in _KNOWN_COLUMNS:
            raise UserError(f"unknown column `{name}`", where=where, hint=did_you_mean(name, _KNOWN_COLUMNS))
        if name in COLUMNS[chosen] and column is not None:
            own[COLUMNS[chosen][name]] = str(column)
    for name, tag in tags.items():
        if name not in TAGS:
            raise UserError(f"unknown tag `{name}`", where=where, hint=did_you_mean(name, TAGS))
        if chosen == "sharegpt" and tag is not None:
            own[TAGS[name]] = str(tag)
    return {"format": chosen, "columns": own}


def _kind(values: Mapping[str, Any], columns: Mapping[str, str], prompt: str) -> str:
    if values.get("ranking"):
        return "preference"
    return "feedback" if columns.get("kto_tag") else "pretraining" if prompt else "sft"


def _refusal(values: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Why an entry cannot be used, or nothing."""
    if media := next((name for name in _MEDIA if columns.get(name)), None):
        return f"holds {media}; only text is read"
    if values.get("hf_hub_url") or values.get("ms_hub_url"):
        return ""
    if values.get("script_url"):
        return "is a script that loads the data (`script_url`), which would run code; load it yourself and name the file, or use `python`"
    if not (values.get("cloud_file_name") or values.get("file_name")):
        return "lies on openMind only, which is not supported" if values.get("om_hub_url") else "says nowhere where it lies"
    return ""
