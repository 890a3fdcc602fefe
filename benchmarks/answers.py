"""How fast answers are written: by the rollouts' writer, by the slots of chat, and by transformers' `generate`, on one thread.

    python benchmarks/answers.py

The embedded model writes 8 answers of at most 96 tokens to each of 32 sums and 16 stories, at temperature 1 in single precision. `generate`
gets all of them as one padded batch, the rollouts' writer and the slots have 128 rows. Tokens are those up to the end of an answer, seconds
those of the process. Below, the cost of choosing one token for 128 rows: by inverting the distribution function, and by Gumbel noise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import luthier
from luthier.generation.bulk import write_answers
from luthier.generation.decode import generate
from luthier.generation.sampling import Decoding, draw

ANSWERS, ROWS, LONGEST = 8, 128, 96


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and how long the processor took."""
    began = time.process_time()
    return call(), time.process_time() - began


def writing() -> None:
    """Print tokens per CPU-second of the three ways."""
    chat = luthier.load("tiny")
    model = chat.model.float()
    rng = random.Random(0)
    sums = [f"How much is {rng.randint(10, 99)} + {rng.randint(10, 99)}?" for _ in range(32)]
    prompts = [chat.prompt(text) for text in [*sums, *["Tell me a story about a cat."] * 16]]
    settings = replace(chat.decoding(max_new_tokens=LONGEST, temperature=1.0), stop_strings=())
    each = [prompt for prompt in prompts for _ in range(ANSWERS)]

    def plain() -> list[list[int]]:
        width = max(map(len, each))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in each])
        mask = torch.arange(width) >= torch.tensor([[width - len(prompt)] for prompt in each])
        ends = sorted(settings.stop_ids)
        how = {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "max_new_tokens": LONGEST,
            "eos_token_id": ends,
            "pad_token_id": 0,
        }
        said = model.generate(input_ids=ids, attention_mask=mask.long(), **how)[:, width:].tolist()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in said]

    ways: dict[str, Callable[[], list[Any]]] = {
        "rollouts": lambda: [
            each.tokens for each in write_answers(model, chat.tokenizer, prompts, settings, answers=ANSWERS, rows=ROWS)
        ],
        "slots": lambda: [each.tokens for each in generate(model, chat.tokenizer, each, settings, slots=ROWS)],
        "transformers": plain,
    }
    print("| way | tokens per CPU-second |\n| --- | --- |")
    for name, way in ways.items():
        said, seconds = timed(way)
        print(f"| {name} | {sum(map(len, said)) / seconds:.0f} |", flush=True)


def choosing() -> None:
    """Print milliseconds for a token of each of 128 rows."""
    print("\n| vocabulary | inverse distribution, ms | Gumbel noise, ms |\n| --- | --- | --- |")
    for size in (4096, 32768):
        logits, index = torch.randn(ROWS, size) * 3, np.arange(ROWS)
        settings = Decoding(temperature=1.0)
        golden = torch.arange(1, size + 1) * -7046029254386353131

        def noisy(logits: torch.Tensor = logits, golden: torch.Tensor = golden) -> torch.Tensor:
            word = torch.arange(ROWS)[:, None] * 6364136223846793005 + golden
            for shift in (30, 27, 31):
                word = (word ^ (word >> shift)) * -4658895280553007687
            uniform = ((word >> 32).float() * 2.0**-32 + 0.5).clamp(2.0**-33, 1 - 2.0**-24)
            return (logits - torch.log(-torch.log1p(-uniform))).argmax(-1)

        spent = []
        for call in (lambda logits=logits, index=index, settings=settings: draw(logits, settings, index, index), noisy):  # type: ignore[misc]
            timed(call)
            spent.append(timed(lambda call=call: [call() for _ in range(10)])[1] * 100)
        print(f"| {size:,} | {spent[0]:.1f} | {spent[1]:.1f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    writing()
    choosing()
