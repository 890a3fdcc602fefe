"""Models to examine, small enough for quick tests."""

from __future__ import annotations

from functools import cache

import torch
from transformers import AutoModelForCausalLM

from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.examinee import Examinee
from luthier.generation.chat import ChatModel
from luthier.models.source import template_for
from tests.families import build
from tests.workspace import TINY


@cache
def tiny() -> Examinee:
    """The embedded model in float32."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(TINY)
    return Examinee(ChatModel(model, tokenizer, template_for(None, tokenizer, "tiny"), name="tiny"))


def random(family: str) -> Examinee:
    """A random model of a family with the embedded tokenizer."""
    tokenizer = load_tokenizer(TINY)
    model = build(family, seed=0, vocab_size=tokenizer.vocab_size)
    return Examinee(ChatModel(model, tokenizer, template_for(None, tokenizer, "tiny"), name=family))


def silent(what: str, done: int, total: int) -> None:
    """A progress that nobody watches."""
