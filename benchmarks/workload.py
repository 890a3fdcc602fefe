r"""What every side is given: a random Llama of 27.8 million parameters and the same rows in the same order.

The model: hidden 512, 8 layers, 8 heads, 4 key-value heads, MLP 1408, vocabulary 8192, tied; float32, one seed. The tokenizer is the
embedded model's (4,096 ids, which fit), with a ChatML template whose answers, `<|im_end|>\n` included, stand in `{% generation %}`: so
TRL, Luthier, and the ChatML templates of the other peers supervise the same tokens.

The rows are alpaca rows whose `input` is already folded into `instruction`, and they are written in the order in which Luthier visits
them. With shuffling off, each side then sees the same examples in each optimizer step, and losses can be compared.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

SEED = 42
TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}{{- message.content + '<|im_end|>\\n' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message.content + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def make_model(folder: Path) -> Path:
    """The random Llama with its tokenizer, made if it is not there yet."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from luthier.models.hub import fetch

    tokenizer = AutoTokenizer.from_pretrained(fetch("tiny"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def folded(source: Path) -> list[dict[str, str]]:
    """All rows of an alpaca file with `input` folded into `instruction`."""
    rows = json.loads(source.read_text(encoding="utf-8"))
    ask = [f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"] for row in rows]
    return [{"instruction": question, "output": row["output"]} for question, row in zip(ask, rows, strict=True)]


def short_rows(source: Path, count: int, model: Path, max_length: int) -> list[dict[str, str]]:
    """The first `count` rows that no side has to cut: each cuts in its own way, and then losses differ."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def fits(row: dict[str, str]) -> bool:
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        return len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]) <= max_length

    return list(itertools.islice(filter(fits, folded(source)), count))


def many_rows(source: Path, count: int) -> list[dict[str, str]]:
    """`count` rows, taken again from the beginning of the file when it is too short; numbered, so that none repeats."""
    rows = itertools.islice(itertools.cycle(folded(source)), count)
    return [{**row, "instruction": f"{number}. {row['instruction']}"} for number, row in enumerate(rows, 1)]


def write_rows(rows: list[dict[str, str]], folder: Path, name: str) -> tuple[Path, Path]:
    """Two files: the rows as they are, for Luthier, and in the order in which its first epoch visits them, for the peers."""
    import numpy as np

    from luthier.data.mix import Mixture, Portion

    ours, theirs = folder / f"{name}.json", folder / f"{name}-in-order.json"
    ours.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    order = Mixture((Portion(0, len(rows)),)).epoch(0, np.zeros(len(rows), np.int64), seed=SEED)
    ordered = [rows[index] for index in order]
    theirs.write_text(json.dumps(ordered, ensure_ascii=False), encoding="utf-8")
    return ours, theirs
