"""Train the tokenizer of the embedded model and write its model folder, all but the weights.

    python recipes/tiny/tokenizer.py build/tiny/corpus.jsonl build/tiny/dialogues.jsonl src/luthier/models/tiny

A byte-level BPE of 4096 entries: any text can be written, nothing is unknown, and encoding is lossless. The text is cut first
by the pattern of the Qwen2 family, for two reasons: it isolates every digit, so that numbers line up and can be added; and
other tools (llama.cpp among them) know this pattern by name, so that the model can be exported to them later.

The dialogues are counted along with the corpus, because most of what the model will ever read looks like them; but only one in
five, and no token is longer than twelve bytes, else their repeated sentences would become single tokens. Chinese characters
that are not rare get a token each, so that words the dialogues never use can still be learnt. The chat template is ChatML with
`{% generation %}` marks around what the assistant says, which is the exact loss mask.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END, *(f"<|reserved_{index}|>" for index in range(5)))
VOCABULARY = 4096
MAX_LENGTH = 1024
THINNING, LONGEST = 5, 12
COMMON, BOOST = 20, 60
"""A character that occurs COMMON times in the files is counted BOOST times more by itself."""
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('this model knows the roles system, user and assistant, not ' + message.role) -}}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message.content + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def texts(files: Sequence[Path]) -> Iterator[str]:
    """Every document, and the messages of every fifth dialogue, of JSON-lines files."""
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").split("\n")):
            row = json.loads(line) if line else {"messages": ()}
            if "text" in row:
                yield row["text"]
            elif number % THINNING == 0:
                yield from (message["content"] for message in row["messages"])


def with_characters(samples: Sequence[str]) -> Iterator[str]:
    """The samples, then each common Chinese character by itself."""
    yield from samples
    counts = Counter(character for sample in samples for character in sample if "\u4e00" <= character <= "\u9fff")
    for character, count in sorted(counts.items()):
        if count >= COMMON:
            yield from [character] * BOOST


def train(files: Sequence[Path]) -> Tokenizer:
    """A byte-level BPE whose 256 bytes come first, so that every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(with_characters(list(texts(files))), trainer)
    return tokenizer


def configuration() -> LlamaConfig:
    """A Llama of 5.5 million weights: 11 MB in bfloat16. Every width is a multiple of 64, so 4-bit loading works too."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(END_OF_TEXT),
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer, chat template and configurations as an ordinary transformers folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    configuration().save_pretrained(folder)
    GenerationConfig(
        eos_token_id=[SPECIAL.index(END), SPECIAL.index(END_OF_TEXT)], pad_token_id=SPECIAL.index(END_OF_TEXT)
    ).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on JSON-lines files and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    tokenizer = train(options.files)
    save(tokenizer, options.out)
    print(f"{options.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
