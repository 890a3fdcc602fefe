"""What lies in a tokenizer's folder: which kind of vocabulary, and the names of its special tokens.

Kinds, in the order in which they are looked for: `tokenizer.json` (also `.gz`), a SentencePiece model or tiktoken ranks
(`tokenizer.model`, `*.model*`, `*.tiktoken`), `vocab.json` with `merges.txt`, and whatever else AutoTokenizer can read.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_DEFINING = ("tokenizer*", "*.model*", "*.tiktoken", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json")
_USUAL = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    "eos_token": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>"),
}


def vocabulary(folder: Path) -> Path | None:
    """The file that holds the vocabulary, None when only AutoTokenizer may know."""
    for pattern in ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model", "*.tiktoken", "*.model", "*.model.*", "vocab.json"):
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and (file.name != "vocab.json" or (folder / "merges.txt").is_file()):
                return file
    return None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is absent."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def open_text(file: Path) -> str:
    """Content of a file, unpacked when its name ends in `.gz`."""
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")


def chat_template(folder: Path) -> str | None:
    """The folder's chat template: `chat_template.jinja`, or the one in `tokenizer_config.json`."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    return one_template(read_json(folder / CONFIG).get("chat_template"))


def one_template(templates: Any) -> str | None:
    """A template as it stands, or the one called `default` of several."""
    if isinstance(templates, list):
        templates = {entry["name"]: entry["template"] for entry in templates}
    return templates.get("default") if isinstance(templates, Mapping) else templates


def added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that the folder adds to the vocabulary: text → id."""
    listed = read_json(folder / CONFIG).get("added_tokens_decoder", {})
    return {entry["content"]: int(id_) for id_, entry in listed.items()} | read_json(folder / "added_tokens.json")


def control_tokens(folder: Path, specials: Mapping[str, int], own: Iterable[str], known: int) -> list[str]:
    """Special tokens that stand for no text.

    Args:
        folder: may say of added tokens whether they are such (`special` in `tokenizer_config.json`).
        specials: all special tokens, text → id.
        own: those that the vocabulary itself says are such.
        known: ids of the vocabulary; those above are added, and are such unless it is said that they are not.
    """
    listed = read_json(folder / CONFIG).get("added_tokens_decoder", {})
    said = {entry["content"]: entry.get("special") for entry in listed.values()}
    sure = {*own, *(text for text, special in said.items() if special)}
    return [text for text, id_ in specials.items() if text in sure or (id_ >= known and said.get(text) is not False)]


def roles(folder: Path, specials: Mapping[str, int]) -> dict[str, str]:
    """Role (`eos_token` …) → text of the token.

    From `tokenizer_config.json`, else by the ids in the model's configuration, else by the usual names among `specials`.
    """
    config = read_json(folder / CONFIG)
    model = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    texts = {id_: text for text, id_ in specials.items()}
    found = {}
    for role in ROLES:
        named = config.get(role)
        if isinstance(named, Mapping):
            named = named.get("content")
        by_id = _first(model.get(f"{role}_id"))
        usual = next((text for text in _USUAL.get(role, ()) if text in specials), None)
        if text := named or texts.get(by_id) or usual:
            found[role] = text
    return found


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def fingerprint(folder: Path) -> str:
    """Digest of every file that decides which ids a text gets."""
    return digest(f"{file.name}\0".encode() + file.read_bytes() for file in sorted(_defining(folder)))


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over parts, each with its length, so that no two lists of parts run together."""
    total = sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def _defining(folder: Path) -> set[Path]:
    return {file for pattern in _DEFINING for file in folder.glob(pattern) if file.is_file()}
