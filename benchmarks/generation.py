"""How many tokens a processor second gives: 32 chats in Luthier's slots, and the same one after the other by transformers' `generate`.

    python benchmarks/generation.py
    python benchmarks/generation.py --rounds 3 --temperature 0.8

The embedded model in single precision, one thread, both sides in one process, in turn, on the same prompts. Greedy answers are
those that transformers gives, token for token, which is checked; tokens are those up to the end of an answer, seconds are of the
process. Prompts are of different length, and answers end when they end, as those of chats do. In the last two lines every chat has
settings of its own, or an adapter of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import luthier
from luthier.generation.adapters import Adapters
from luthier.generation.decode import Decoder, Request
from luthier.generation.sampling import Decoding
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter

CHATS, LONGEST = 32, 96
TOPICS = ("a cat", "the sea", "an old clock", "rain", "bread", "a train", "winter", "a kind girl")
QUESTIONS = (
    "Tell me a story about {}.",
    "Write three sentences about {}.",
    "What do you know about {}? Tell me a lot.",
    "请讲一个关于 {} 的故事。",
)


def timed(call: Callable[[], list[Sequence[int]]]) -> tuple[list[Sequence[int]], float]:
    """Answers, and how long the processor took for them."""
    began = time.process_time()
    return call(), time.process_time() - began


def in_slots(
    chat: Any, prompts: list[list[int]], settings: Sequence[Decoding], adapters: Adapters | None = None
) -> list[Sequence[int]]:
    """All at once."""
    decoder = Decoder(chat.model, chat.tokenizer, adapters=adapters)
    names = adapters.names if adapters else [None] * len(prompts)
    chats = enumerate(zip(prompts, settings, names, strict=True))
    requests = [Request(prompt, how, index, name) for index, (prompt, how, name) in chats]
    for request in requests:
        decoder.submit(request)
    answers = {piece.request: piece.answer.tokens for piece in decoder.run() if piece.answer}
    return [answers[request] for request in requests]


def one_by_one(chat: Any, prompts: list[list[int]], settings: Decoding) -> list[Sequence[int]]:
    """One after the other, by transformers."""
    how: dict[str, Any] = (
        {"do_sample": False}
        if settings.temperature == 0
        else {"do_sample": True, "temperature": settings.temperature, "top_k": 0}
    )
    how |= {"max_new_tokens": settings.max_new_tokens, "eos_token_id": sorted(settings.stop_ids), "pad_token_id": 0}
    torch.manual_seed(0)
    return [chat.model.generate(torch.tensor([prompt]), **how)[0, len(prompt) :].tolist() for prompt in prompts]


def loaded(chat: Any, count: int, folder: Path) -> Adapters:
    """That many adapters of rank 8 beside all linear layers."""
    adapters, other = Adapters(chat.model), luthier.load("tiny").model.float()
    insert_adapter(other, AdapterConfig(rank=8, alpha=16), seed=0)
    for number in range(count):
        write_adapter(folder / str(number), other)
        adapters.load(str(number), folder / str(number))
    return adapters


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--temperature", type=float, default=0.0, help="of both sides; 0 is greedy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chat = luthier.load("tiny")
    chat.model.float()
    prompts = [chat.prompt(QUESTIONS[n % 4].format(TOPICS[n // 4])) for n in range(CHATS)]
    settings = replace(chat.decoding(max_new_tokens=LONGEST, temperature=options.temperature), stop_strings=())
    each = [
        replace(settings, temperature=0.5 + n / 64, top_p=0.9, top_k=40 + n, seed=n, presence_penalty=0.1) for n in range(CHATS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], list[Sequence[int]]]] = {
            "transformers, one by one": lambda: one_by_one(chat, prompts, settings),
            "slots": lambda: in_slots(chat, prompts, [settings] * CHATS),
            "slots, settings of their own": lambda: in_slots(chat, prompts, each),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()  # first calls are slower
        for _ in range(options.rounds):
            said = {}
            for name, way in ways.items():
                said[name], seconds = timed(way)
                speeds[name].append(sum(map(len, said[name])) / seconds)
            if options.temperature == 0:
                first, second = said["transformers, one by one"], said["slots"]
                assert list(map(list, first)) == list(map(list, second)), "greedy answers differ"
        adapters = loaded(chat, CHATS, Path(folder))
        name = f"slots, {CHATS} adapters"
        speeds[name] = []
        for _ in range(options.rounds + 1):
            answers, seconds = timed(lambda: in_slots(chat, prompts, [settings] * CHATS, adapters))
            speeds[name].append(sum(map(len, answers)) / seconds)
        speeds[name].pop(0)
    print(f"| {CHATS} chats | tokens per CPU-second | times transformers |\n| --- | --- | --- |")
    plain = speeds["transformers, one by one"]
    for name, found in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(found, plain, strict=True))
        print(f"| {name} | {statistics.median(found):,.0f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
