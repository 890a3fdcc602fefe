"""Token ids and labels that axolotl made of one conversation, reproduced with templates: an implementation that is not ours.

Two of its habits are not those of the models and are left to the test: the vicuna fixture ends answers with `</s>` written as
characters before the token itself, and the Llama 2 fixture is padded and begins one sequence more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.chat import ChatTemplate, resolve
from luthier.data.encode import weigh
from luthier.data.examples import Origin
from luthier.data.formats import sharegpt
from luthier.data.texts import joined
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.data.tokenizer_pieces import PieceBackend
from luthier.data.tokenizer_spm import SentencePieceEngine

VICUNA = """{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
detailed, and polite answers to the user's questions.  {% for message in messages %}
{% if message.role == 'user' %}USER: {{ message.content }}  {% else %}ASSISTANT:{% generation %} {{ message.content }}\
</s>{{ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}"""

META = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. Your answers should "
    "not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses are "
    "socially unbiased and positive in nature.\n\nIf a question does not make any sense, or is not factually coherent, explain why "
    "instead of answering something not correct. If you don't know the answer to a question, please don't share false information."
)


def conversation(shared: Path, name: str = "conversation.json") -> list[dict[str, Any]]:
    row = json.loads((shared / "data/formats/axolotl" / name).read_text(encoding="utf-8"))
    (example,) = sharegpt.parse(row, Origin("", 1, 0), {})
    return [dict(message) for message in example.messages]


def encoded(tokenizer: Tokenizer, template: ChatTemplate, messages: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and labels as axolotl writes them: -100 where nothing is learnt."""
    (segment,) = template.supervise(messages)
    found = tokenizer.encode(segment.text)
    return found.ids, np.where(weigh(found, joined(segment.spans)) > 0, found.ids, -100)


def expected(shared: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    fixture = json.loads((shared / f"data/formats/axolotl/{name}.json").read_text(encoding="utf-8"))
    return np.array(fixture["input_ids"]), np.array(fixture["labels"])


def test_llama2(shared: Path) -> None:
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama2")
    messages = [{"role": "system", "content": META}, *conversation(shared)]
    ids, labels = encoded(tokenizer, resolve("llama2", None, tokenizer.variables), messages)
    theirs, their_labels = expected(shared, "conversation.tokenized_llama2chat")
    length = len(ids)
    assert ids.tolist() == theirs[:length].tolist()
    assert labels.tolist() == their_labels[:length].tolist()
    assert set(theirs[length:]) == {0, 1}


def test_vicuna(shared: Path) -> None:
    """`</s>` is text to this tokenizer, and `<end>` its end of a sequence."""
    engine = SentencePieceEngine(shared / "data/tokenizers/llama2/tokenizer.model")
    roles = {"bos_token": "<s>", "eos_token": "<end>"}
    tokenizer = Tokenizer(PieceBackend(engine, {"<s>": 1, "<end>": 2}), roles=roles, fingerprint="", adds_bos=True)
    ids, labels = encoded(tokenizer, resolve(VICUNA, None, roles), conversation(shared))
    theirs, their_labels = expected(shared, "conversation.tokenized")
    assert ids.tolist() == theirs.tolist()
    assert labels.tolist() == their_labels.tolist()


@pytest.mark.parametrize("name", ["llama2", "vicuna"])
def test_an_empty_answer_learns_its_end(shared: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama2")
    messages = conversation(shared, "conversation.missingturns.json")
    template = resolve(name, None, tokenizer.variables)
    (segment,) = template.supervise(messages)
    begin, end, _ = segment.spans[0]
    assert segment.text[begin:end].strip() == "</s>"
    assert len(segment.spans) == sum(message["role"] == "assistant" for message in messages)
