"""Baichuan and Baichuan2 (2023) → Llama, with two differences that each concern half of them.

| | positions | output head |
|---|---|---|
| Baichuan-7B | rotary | plain |
| Baichuan-13B | ALiBi | plain |
| Baichuan2-7B | rotary | rows of length 1 |
| Baichuan2-13B | ALiBi | rows of length 1 |

Queries, keys and values are one matrix, `W_pack`; all other names are Llama's. With rotary positions the native class is Llama itself;
with ALiBi none fits, and there is a small one here (`alibi.py`). For the head see `norm_head.py`.

All four call themselves `baichuan`. The 13B files have no `max_position_embeddings`; of the second generation the vocabulary has 125,696
entries, or else `tokenizer_class` is named. Where files were edited by hand, `luthier models convert --family` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.models.legacy.family import (
    LLAMA_KEYS,
    LLAMA_QKV,
    LLAMA_RULES,
    NORMALISED_HEAD,
    Added,
    Config,
    Family,
    copied,
    default_rope,
    inverse_frequencies,
)
from luthier.models.legacy.mapping import Rows, Rule

if TYPE_CHECKING:
    from torch import Tensor

FIRST_VOCABULARY, SECOND_VOCABULARY = 64000, 125696
"""Entries in the vocabularies of the two generations."""
_MARKS = {"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}


def _is_second(config: Config) -> bool:
    vocabulary = config.get("vocab_size")
    if vocabulary in (FIRST_VOCABULARY, SECOND_VOCABULARY):
        return vocabulary == SECOND_VOCABULARY
    return "tokenizer_class" in config


def _has_alibi(config: Config) -> bool:
    return "max_position_embeddings" not in config


def _rules(config: Config) -> tuple[Rule, ...]:
    return (*LLAMA_RULES, Rule("model.layers.*.self_attn.W_pack.*", LLAMA_QKV, Rows((config["hidden_size"],) * 3)))


def _buffers(config: Config) -> dict[str, Callable[[], Tensor]]:
    """The first files of the 7B models hold their rotary frequencies."""
    dimensions = config["hidden_size"] // config["num_attention_heads"]
    return {"model.layers.*.self_attn.rotary_emb.inv_freq": lambda: inverse_frequencies(dimensions)}


def _family(name: str, *, alibi: bool, second: bool) -> Family:
    def native(config: Config) -> dict[str, Any]:
        body: dict[str, Any]
        if alibi:
            body = {"architectures": ["AlibiLlamaForCausalLM"], "model_type": "luthier_alibi_llama"}
            body["max_position_embeddings"] = config.get("model_max_length", 4096)
        else:
            body = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_parameters": default_rope()}
        head = {NORMALISED_HEAD: True} if second else {}
        return copied(config, *LLAMA_KEYS) | body | head | {"tie_word_embeddings": False}

    return Family(
        name=name,
        recognises=lambda config: (
            config.get("model_type") == "baichuan" and _has_alibi(config) == alibi and _is_second(config) == second
        ),
        native=native,
        rules=_rules,
        buffers=_buffers,
        tokenizer=lambda _config: Added(config=_MARKS),
    )


BAICHUAN_7B = _family("baichuan-7b", alibi=False, second=False)
BAICHUAN_13B = _family("baichuan-13b", alibi=True, second=False)
BAICHUAN2_7B = _family("baichuan2-7b", alibi=False, second=True)
BAICHUAN2_13B = _family("baichuan2-13b", alibi=True, second=True)
