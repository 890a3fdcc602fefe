"""A tokenizer of the `tokenizers` library that can read control tokens as letters, in some places of a text and not in others.

The library knows no places: a control token is one wherever it is written, or (`encode_special_tokens`) nowhere. So a twin is made of the
tokenizer, in which each control token has the same id and another name, which nobody can know or guess. In the text of the twin the
tokens that are meant stand under these names, and what is written in the data is letters like all others. Nothing is cut, so merges,
spaces and offsets are those of the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

import numpy as np

from luthier.chat.marks import Place
from luthier.data.control_tokens import apart
from luthier.data.tokenizer_pieces import Encoded
from luthier.errors import UserError


class Twin:
    """The twin of a tokenizer.

    Args:
        rust: the tokenizer.
        controls: its control tokens.

    Raises:
        UserError: it cannot be made: the tokenizer has parts that know a control token by its name.
    """

    def __init__(self, rust: Any, controls: Sequence[str]) -> None:
        secret = token_hex(8)
        self._names = {token: f"\U0010fffd{secret}{number:x}\U0010fffd" for number, token in enumerate(controls)}
        self._controls = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))))
        try:
            self._rust = type(rust).from_str(json.dumps(_renamed(json.loads(rust.to_str()), self._names)))
        except Exception as error:  # the library has no class for what it cannot read
            raise _impossible(str(error)) from error
        if any(self._rust.token_to_id(name) != rust.token_to_id(token) for token, name in self._names.items()):
            raise _impossible("other ids")

    def encode(self, text: str, letters: Sequence[Place]) -> Encoded:
        """Ids and offsets of a text; control tokens in the given places are letters."""
        pieces: list[str] = []
        ends, grown = [], [0]
        position = 0
        for found in apart(letters, self._controls.finditer(text)):
            name = self._names[found[0]]
            pieces += [text[position : found.start()], name]
            position = found.end()
            ends.append(found.end() - grown[-1] + len(name) - len(found[0]))
            grown.append(grown[-1] + len(found[0]) - len(name))
        made = self._rust.encode("".join([*pieces, text[position:]]), add_special_tokens=False)
        places = np.array(made.offsets, np.int32).reshape(-1, 2)
        places = places + np.array(grown, np.int32)[np.searchsorted(ends, places, side="right")]
        return Encoded(np.array(made.ids, np.int32), places[:, 0], places[:, 1])


def _impossible(why: str) -> UserError:
    what = f"this tokenizer cannot read control tokens as letters ({why.splitlines()[0][:80] if why else 'unknown'})"
    return UserError(what, where="data.control_tokens", hint="Take them out of the data, or set `data.control_tokens: tokens`.")


def _renamed(content: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The content of a `tokenizer.json` with other names for some tokens."""
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    content["post_processor"] = None
    return content
