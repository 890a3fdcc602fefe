"""The tokenizer in a GGUF file: its tokens with their kinds, its merges or scores, its special tokens, and the chat template.

Whatever a model came with, it is first saved as a `tokenizer.json` (`luthier.data.tokenizer`), which knows two kinds that llama.cpp has:

* byte-level BPE (`gpt2` there): tokens, merges, and the name of how a text is cut into words first (`pretokenizers.yaml`);
* BPE over characters with bytes for the rest (`llama` there), as SentencePiece makes it: tokens with scores. The best score is merged
  first; the score of a token is therefore minus the rank of the merge that makes it.

A tokenizer that llama.cpp would not follow is refused: a model that is asked in other tokens than it has learnt answers, and badly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.data.tokenizer import Tokenizer
from luthier.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, as llama.cpp counts them."""

_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LOWEST = -1e6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: `gpt2` or `llama`.
        pre: how a text is cut into words.
        tokens: texts by id.
        kinds: of the tokens.
        merges: of `gpt2`, as `left right`, the first first.
        scores: of `llama`.
        flags: further settings, by the name of the writer's method.
        notes: what the user should know.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    flags: dict[str, Any]
    notes: tuple[str, ...] = ()

    def write(self, writer: GGUFWriter) -> None:
        """Add all of it to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, value in self.flags.items():
            getattr(writer, f"add_{name}")(value)


def vocabulary_of(tokenizer: Tokenizer, rows: int, ends: Sequence[int], template: str | None, where: str) -> Vocabulary:
    """The vocabulary of a tokenizer, as long as the model's embeddings.

    Args:
        tokenizer: of the model.
        rows: of the embeddings.
        ends: tokens that end an answer, the most usual first.
        template: Jinja source, or None.
        where: for messages.

    Raises:
        UserError: llama.cpp has no tokenizer like it.
    """
    content = _as_json(tokenizer, where)
    if content["model"].get("type") != "BPE":
        raise UserError(f"llama.cpp is not given tokenizers of kind `{content['model'].get('type')}`", where=where)
    tokens, kinds = _tokens(content, rows)
    steps, notes = _steps(content["pre_tokenizer"]), _notes(content)
    flags = _special(tokenizer, ends, rows) | ({"chat_template": without_marks(template)} if template else {})
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in content["model"]["merges"]]
    if not merges:
        raise UserError(
            "llama.cpp does not read a tokenizer that merges nothing", where=where, hint="Serve the model with Luthier."
        )
    if _is_byte_level(content):
        name = _pre(steps, whole=bool(content["model"].get("ignore_merges")), where=where)
        return Vocabulary("gpt2", name, tokens, kinds, [" ".join(pair) for pair in merges], [], flags, notes)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = [-float(ranks[token]) if token in ranks else _LOWEST for token in tokens]
    flags["add_space_prefix"] = _begins_with_space(content)
    return Vocabulary("llama", "default", tokens, kinds, [], scores, flags, notes)


def without_marks(template: str) -> str:
    """A chat template that other engines read: `{% generation %}`, which marks what is learnt, becomes a condition that always holds."""
    return _GENERATION.sub(lambda mark: f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}", template)


def _as_json(tokenizer: Tokenizer, where: str) -> dict[str, Any]:
    """The content of the `tokenizer.json` that says the same."""
    with TemporaryDirectory() as folder:
        note = tokenizer.save(Path(folder))
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"llama.cpp would read other tokens than the model has learnt ({note})", where=where)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


def _tokens(content: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and kinds by id; ids that no token has are filled with unused ones, as many as there are embeddings."""
    tokens, kinds = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    unknown = content["model"].get("unk_token")
    for text, number in content["model"]["vocab"].items():
        if number < rows:
            kind = UNKNOWN if text == unknown else BYTE if _BYTE.fullmatch(text) and not _is_byte_level(content) else NORMAL
            tokens[number], kinds[number] = text, kind
    for token in content["added_tokens"]:
        if token["id"] < rows:
            kind = CONTROL if token["special"] else USER_DEFINED
            tokens[token["id"]] = token["content"]
            kinds[token["id"]] = UNKNOWN if token["content"] == unknown else kind
    return tokens, kinds


def _special(tokenizer: Tokenizer, ends: Sequence[int], rows: int) -> dict[str, Any]:
    """Which tokens begin and end a text."""
    usual = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(ends), None)
    turn = next((end for end in ends if end != usual), None)
    ids = {"bos": tokenizer.bos_id, "eos": usual, "eot": turn, "pad": tokenizer.pad_id}
    found: dict[str, Any] = {f"{role}_token_id": id_ for role, id_ in ids.items() if id_ is not None and id_ < rows}
    return found | {"add_bos_token": tokenizer.adds_bos, "add_eos_token": False}


def _is_byte_level(content: Mapping[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _flat(content["pre_tokenizer"], "pretokenizers"))


def _flat(step: Any, inner: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the only one."""
    if step is None:
        return []
    return [each for part in step[inner] for each in _flat(part, inner)] if step["type"] == "Sequence" else [step]


def _steps(pre_tokenizer: Any) -> list[Any]:
    """The steps of a pre-tokenizer in the words of `pretokenizers.yaml`."""
    found: list[Any] = []
    for step in _flat(pre_tokenizer, "pretokenizers"):
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            found.append({"split": step["pattern"].get("Regex", step["pattern"].get("String"))})
        elif kind == "ByteLevel" and step["use_regex"] and not step["add_prefix_space"]:
            found.append("gpt2")
        elif kind == "Digits" and step["individual_digits"]:
            found.append("digits")
        elif kind == "Punctuation":
            found.append("punctuation")
        elif kind != "ByteLevel" or step["add_prefix_space"]:
            found.append(kind)
    return found


def _pre(steps: list[Any], *, whole: bool, where: str) -> str:
    """llama.cpp's name for the steps.

    Raises:
        UserError: it has none.
    """
    for entry in _known():
        if entry["steps"] == steps and entry.get("whole", whole) == whole:
            return str(entry["name"])
    shown = ", ".join(step["split"] if isinstance(step, dict) else step for step in steps) or "none"
    raise UserError(
        f"llama.cpp does not cut words as this tokenizer does ({shown[:200]})", where=where, hint="Serve the model with Luthier."
    )


@cache
def _known() -> list[dict[str, Any]]:
    import yaml

    text = files("luthier.export.gguf").joinpath("pretokenizers.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load(text))


def _begins_with_space(content: Mapping[str, Any]) -> bool:
    """Whether a text is read as if a space stood before it."""
    if any(step["type"] == "Prepend" for step in _flat(content["normalizer"], "normalizers")):
        return True
    steps = _flat(content["pre_tokenizer"], "pretokenizers")
    return any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)


def _notes(content: Mapping[str, Any]) -> tuple[str, ...]:
    forms = [
        step["type"] for step in _flat(content["normalizer"], "normalizers") if step["type"] in ("NFC", "NFKC", "NFD", "NFKD")
    ]
    if not forms:
        return ()
    return (
        f"the tokenizer brings characters into form {forms[0]} first and llama.cpp does not: accents in two parts are read otherwise",
    )
