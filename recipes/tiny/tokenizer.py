"""Train the tokenizer of the embedded model and write its model folder, all but the weights.

    python recipes/tiny/tokenizer.py recipes/tiny/tokenizer.yaml

A byte-level BPE of 4096 entries: any text can be written, nothing is unknown, and encoding is lossless. The text is cut first
by the pattern of the Qwen2 family, for two reasons: it isolates every digit, so that numbers line up and can be added; and
other tools (llama.cpp among them) know this pattern by name, so that the model can be exported to them later.

The dialogues are counted along with the corpus, because most of what the model will ever read looks like them; but only one in
five, and no token is longer than twelve bytes, else their repeated sentences would become single tokens. Chinese characters
that are not rare get a token each, so that words the dialogues never use can still be learnt. The chat template is ChatML with
tools in the manner of Hermes, and `{% generation %}` marks around what the assistant says, which is the exact loss mask.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

MAX_LENGTH = 1024
PAD, END = 0, 2
"""Ids of `<|endoftext|>` and `<|im_end|>`, the first and the third of tokenizer.yaml's `special`."""
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
MARKS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""What the chat template writes around tools, their calls and their answers: ordinary text, but worth tokens of its own."""


@dataclass(frozen=True)
class Recipe:
    """What tokenizer.yaml says; the comments there explain the fields."""

    sources: tuple[Path, ...]
    output: Path
    vocabulary: int
    special: tuple[str, ...]
    pattern: str
    every_dialogue: int
    longest_token: int
    common_character: dict[str, int]

    @classmethod
    def read(cls, file: Path, **changes: Any) -> Recipe:
        """The recipe in a file, its paths seen from the file's folder; `changes` that are not None come in their place."""
        fields = yaml.safe_load(file.read_text("utf-8"))
        fields |= {key: value for key, value in changes.items() if value}
        sources = tuple((file.parent / source).resolve() for source in fields.pop("sources"))
        output = (file.parent / fields.pop("output")).resolve()
        return cls(sources, output, special=tuple(fields.pop("special")), **fields)


def texts(recipe: Recipe) -> Iterator[str]:
    """Every document, and of one dialogue in `every_dialogue` the roles, messages and tools."""
    for file in recipe.sources:
        for number, line in enumerate(file.read_text("utf-8").split("\n")):
            row = json.loads(line) if line else {"messages": ()}
            if "text" in row:
                yield row["text"]
            elif number % recipe.every_dialogue == 0:
                for message in row["messages"]:
                    yield from (message["role"], message["content"])
                yield from (mark for tool in row.get("tools", ()) for mark in (json.dumps(tool), *MARKS))


def with_characters(recipe: Recipe, samples: Sequence[str]) -> Iterator[str]:
    """The samples, then each common Chinese character by itself."""
    yield from samples
    counts = Counter(character for sample in samples for character in sample if "\u4e00" <= character <= "\u9fff")
    for character, count in sorted(counts.items()):
        if count >= recipe.common_character["from"]:
            yield from [character] * recipe.common_character["counted"]


def train(recipe: Recipe) -> Tokenizer:
    """A byte-level BPE whose 256 bytes come first, so that every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(recipe.pattern), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(recipe.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=recipe.longest_token,
        show_progress=False,
    )
    tokenizer.train_from_iterator(with_characters(recipe, list(texts(recipe))), trainer)
    return tokenizer


def configuration(vocabulary: int) -> LlamaConfig:
    """A Llama of 5.5 million weights: 11 MB in bfloat16. Every width is a multiple of 64, so 4-bit loading works too."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer, chat template and configurations as an ordinary transformers folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=tokenizer.id_to_token(END),
        pad_token=tokenizer.id_to_token(PAD),
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE.read_text("utf-8")
    wrapped.save_pretrained(folder)
    configuration(tokenizer.get_vocab_size()).save_pretrained(folder)
    GenerationConfig(eos_token_id=[END, PAD], pad_token_id=PAD).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the recipe says and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--sources", type=Path, nargs="+", help="JSON-lines files in place of the recipe's")
    parser.add_argument("--output", type=Path, help="folder in place of the recipe's")
    options = parser.parse_args(arguments)
    sources = [source.resolve() for source in options.sources or ()]
    recipe = Recipe.read(options.recipe, sources=sources, output=options.output and options.output.resolve())
    tokenizer = train(recipe)
    save(tokenizer, recipe.output)
    print(f"{recipe.output}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
