"""A tokenizer without text, for reference trainers that insist on having one."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def plain_tokenizer(folder: Path, size: int) -> PreTrainedTokenizerFast:
    """One word a token id, `<pad>` and `<eos>` among them."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{index}": index for index in range(3, size)}
    file = folder / "tokenizer.json"
    Tokenizer(models.WordLevel(words, unk_token="<pad>")).save(str(file))
    return PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
