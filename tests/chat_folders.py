"""Small model folders with a tokenizer and a chat template: what `luthier chat` and `export` are given."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from tests.families import build, save

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>")


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A byte-level tokenizer of 256 ids as transformers saves one: three special tokens, and all bytes but three UTF-8 never uses."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set("ýþÿ"))  # bytes FD to FF
    vocabulary = {text: number for number, text in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def model_folder(family: str, folder: Path, *, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """A random model with that tokenizer beside it."""
    return write_tokenizer(save(family, folder, seed=seed), template)


def adapter_folder(family: str, folder: Path, base: Path, **settings: object) -> Path:
    """A LoRA adapter whose update is as large as the weights, so that a mistake shows."""
    model = build(family)
    model.config.name_or_path = str(base)
    insert_adapter(model, AdapterConfig(rank=4, alpha=8, **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    write_adapter(folder, model)
    return folder
