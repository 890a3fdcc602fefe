"""Generate the dialogues that the embedded model is taught, or the questions it is examined with.

    python recipes/tiny/dialogues.py build/tiny/dialogues.jsonl
    python recipes/tiny/dialogues.py --heldout build/tiny/heldout.jsonl

A model of five million weights cannot know much, so the dialogues cover little ground densely: each fact of `knowledge.toml`
and `computed.toml` is asked in several phrasings and both languages, each phrasing politely, curtly and carelessly; sums of all
pairs of two-digit numbers are asked in dozens of ways; small talk comes from `talk.toml`; longer dialogues are strung together
from short ones.

Everything is a function of the seed. What is held out is decided by a hash of the *question* before its wrapping (for sums: of
the unordered pair of numbers), so that no training dialogue differs from a held-out one by a "please" alone. A held-out row
carries `expect`, the alternatives of which one must occur in the answer; in a dialogue of several turns the last one is asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from computed import Row, rows_by_name

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
HELD_OUT_SHARE = 0.04
STRUNG = 4000
REPEATS = {
    "identity": 12,
    "maker": 6,
    "other": 6,
    "human": 5,
    "ability": 5,
    "unknown": 6,
    "greeting": 6,
    "list": 4,
    "joke": 4,
    "story": 4,
}
"""How often the few questions of a kind of small talk are taken, each time wrapped differently; other kinds three times."""
ALWAYS_TAUGHT = ("你是谁？", "Who are you?")
"""The questions of the demo are never held out."""


@dataclass(frozen=True)
class Turn:
    """One question, its answer, and the words by which another answer would be judged."""

    ask: str
    answer: str
    expect: tuple[str, ...]


@dataclass(frozen=True)
class Dialogue:
    """A few turns in one language. `unit` decides whether the dialogue is held out."""

    kind: str
    language: str
    turns: tuple[Turn, ...]
    unit: str
    system: str | None = None


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def is_held_out(dialogue: Dialogue) -> bool:
    """Whether the dialogue belongs to the examination."""
    return dialogue.turns[0].ask not in ALWAYS_TAUGHT and share_of(f"held out {dialogue.unit}") < HELD_OUT_SHARE


def single(kind: str, language: str, ask: str, answer: str, *expect: str) -> Dialogue:
    """A dialogue of one turn, held out by its own question."""
    return Dialogue(kind, language, (Turn(ask, answer, expect),), f"{kind} {ask}")


def load(name: str) -> dict[str, Any]:
    """One of the tables beside this file."""
    return tomllib.loads((HERE / f"{name}.toml").read_text("utf-8"))


def fill(pattern: str, row: Row) -> str:
    """Put a row's values into {name}; {Name} has a capital."""
    return pattern.format(**{key.capitalize(): value[:1].upper() + value[1:] for key, value in row.items()}, **row)


def with_rows(tables: dict[str, Any], words: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], list[Row]]]:
    """Kind, phrasings and facts of each table: listed, exchanged where it says `swap`, or computed."""
    computed = rows_by_name(words["words"], words["phrases"])
    for kind, table in tables.items():
        if isinstance(table["rows"], str):
            yield kind, table, computed[table["rows"]]()
            continue
        rows = [list(row) for row in table["rows"]]
        if table.get("swap"):
            rows += [[b, a, b_zh, a_zh] for a, b, a_zh, b_zh in rows]
        yield kind, table, [dict(zip(table["columns"], row, strict=True)) for row in rows]


def facts(kind: str, table: dict[str, Any], rows: list[Row], rng: random.Random) -> Iterator[Dialogue]:
    """Each fact in each phrasing, and chains of facts whose later questions are short."""
    for language in LANGUAGES:
        if language not in table:
            continue
        texts = table[language]
        for row in rows:
            answer, expect = fill(texts["answer"], row), fill(texts["expect"], row)
            for ask in rng.sample(texts["ask"], table.get("asks", len(texts["ask"]))):
                yield single(kind, language, fill(ask, row), answer, expect)
        for _ in range(2 * len(rows) if "follow" in texts else 0):
            yield chain(kind, language, texts, rng.sample(rows, rng.choice((2, 2, 3))), rng)


def chain(kind: str, language: str, texts: dict[str, Any], rows: Sequence[Row], rng: random.Random) -> Dialogue:
    """A first question about one fact, then short follow-ups about others."""
    turns = []
    for index, row in enumerate(rows):
        ask = rng.choice(texts["follow"] if index else texts["ask"])
        turns.append(Turn(fill(ask, row), fill(texts["answer"], row), (fill(texts["expect"], row),)))
    return Dialogue(kind, language, tuple(turns), f"{kind} chain {' '.join(turn.ask for turn in turns)}")


def talk(tables: dict[str, Any]) -> Iterator[Dialogue]:
    """Small talk: every phrasing with every answer, as often as `REPEATS` says."""
    for kind, groups in tables.items():
        for group in groups:
            for ask in group["ask"]:
                for answer in group["answer"]:
                    yield from [single(kind, group["language"], ask, answer, *group["expect"])] * REPEATS.get(kind, 3)


def sum_turn(pattern: str, a: int, b: int, **more: str) -> Turn:
    """One sum. The answer repeats the sum before its result, which gives the model room to line the digits up."""
    return Turn(pattern.format(a=a, b=b, **more), f"{a} + {b} = {a + b}", (f"= {a + b}",))


def sums(table: dict[str, Any], names: dict[str, Any], rng: random.Random) -> Iterator[Dialogue]:
    """All pairs of two-digit numbers, twice; pairs with one digit, more often; some told as stories, some continued."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)] * 2
    pairs += [(a, b) for a in range(10) for b in range(10)] * 4
    pairs += [pair for a in range(10, 100) for b in rng.sample(range(1, 10), 5) for pair in ((a, b), (b, a))]
    for a, b in pairs:
        unit = f"sum {min(a, b)} {max(a, b)}"
        language = rng.choice(LANGUAGES)
        texts = table[language]
        if rng.random() < 0.12:
            things = rng.choice(table["things"])[LANGUAGES.index(language)]
            turn = sum_turn(rng.choice(texts["story"]), a, b, things=things, name=rng.choice(names[language]["names"]))
        else:
            turn = sum_turn(rng.choice(texts["ask"] + table["bare"]), a, b)
        yield Dialogue("sum", language, (turn,), unit)
        if rng.random() < 0.08 and a + b < 100:
            yield Dialogue("sum", language, (turn, sum_turn(rng.choice(texts["more"]), a + b, rng.randint(1, 9))), unit)


def introductions(table: dict[str, Any], rng: random.Random) -> Iterator[Dialogue]:
    """Somebody says a name, and asks for it later."""
    for language in LANGUAGES:
        texts = table[language]
        for name in texts["names"]:
            for told in texts["told"]:
                first = Turn(told.format(name=name), texts["hello"].format(name=name), (name,))
                yield Dialogue("name", language, (first,), f"name {first.ask}")
                for asked in texts["asked"]:
                    middle = (Turn(*rng.choice(texts["between"]), ()),) if rng.random() < 0.4 else ()
                    last = Turn(asked, texts["reply"].format(name=name), (name,))
                    yield Dialogue("name", language, (first, *middle, last), f"name {first.ask} {asked}")


def clean_dialogues(seed: int) -> list[Dialogue]:
    """Every dialogue before wrapping, duplicates kept: they weigh more."""
    knowledge, computed, words = load("knowledge"), load("computed"), load("words")
    sum_table, names, _ = (computed.pop(kind) for kind in ("sum", "name", "wrapping"))
    dialogues: list[Dialogue] = []
    for kind, table, rows in with_rows({**knowledge, **computed}, words):
        dialogues += facts(kind, table, rows, random.Random(f"{seed} {kind}"))
    dialogues += sums(sum_table, names, random.Random(f"{seed} sums"))
    dialogues += introductions(names, random.Random(f"{seed} names"))
    dialogues += talk(load("talk"))
    return dialogues


def strung(dialogues: Sequence[Dialogue], count: int, rng: random.Random) -> Iterator[Dialogue]:
    """Longer dialogues: a greeting, questions of different kinds, thanks."""
    by_kind: dict[str, dict[str, list[Dialogue]]] = {language: {} for language in LANGUAGES}
    for dialogue in dialogues:
        if len(dialogue.turns) == 1:
            by_kind[dialogue.language].setdefault(dialogue.kind, []).append(dialogue)
    for index in range(count):
        language = rng.choice(LANGUAGES)
        kinds = by_kind[language]
        parts = [rng.choice(kinds[kind]) for kind in rng.choices(sorted(kinds), k=rng.choice((1, 2, 2, 3)))]
        if rng.random() < 0.5:
            parts.insert(0, rng.choice(kinds["greeting"] + kinds["wellbeing"]))
        if rng.random() < 0.5 or len(parts) == 1:
            parts.append(rng.choice(kinds["thanks"] + kinds["goodbye"]))
        yield Dialogue("strung", language, tuple(part.turns[0] for part in parts), f"strung {index}")


def wrapped(ask: str, texts: dict[str, Any], english: bool, plain: bool, rng: random.Random) -> str:
    """A question as somebody might type it: as it is, without punctuation, in lower case, or politely."""
    chance = rng.random()
    if chance < 0.4:
        return ask
    if chance < 0.6 or plain:
        bare = ask.rstrip("?？.。!！")
        return f"{bare}?" if ask[-1] in "?？" and rng.random() < 0.5 else bare
    if chance < 0.72:
        return ask[0].lower() + ask[1:] if english and not ask.startswith("I ") else ask.replace("？", "?")
    return rng.choice(texts["before"]) + ask if chance < 0.93 else ask + rng.choice(texts["after"])


def with_wrapping(dialogue: Dialogue, wrapping: dict[str, Any], rng: random.Random) -> Dialogue:
    """The dialogue with its first question wrapped, and now and then a system message."""
    first, texts = dialogue.turns[0], wrapping[dialogue.language]
    ask = wrapped(first.ask, texts, dialogue.language == "en", dialogue.kind in wrapping["plain"], rng)
    system = rng.choice(texts["system"]) if rng.random() < 0.05 else None
    return replace(dialogue, turns=(replace(first, ask=ask), *dialogue.turns[1:]), system=system)


def training(seed: int) -> list[Dialogue]:
    """The training dialogues, distinct and shuffled."""
    kept = [dialogue for dialogue in clean_dialogues(seed) if not is_held_out(dialogue)]
    kept += strung(kept, STRUNG, random.Random(f"{seed} strung"))
    rng, wrapping = random.Random(f"{seed} wrapping"), load("computed")["wrapping"]
    made = [with_wrapping(dialogue, wrapping, rng) for dialogue in kept]
    distinct = list({json.dumps(row(dialogue), ensure_ascii=False): dialogue for dialogue in made}.values())
    rng.shuffle(distinct)
    return distinct


def held_out(seed: int, per_kind: int) -> list[Dialogue]:
    """The examination: at most `per_kind` questions of each kind, none of them among the training dialogues."""
    candidates = list({dialogue.unit: dialogue for dialogue in clean_dialogues(seed) if is_held_out(dialogue)}.values())
    random.Random(f"{seed} held out").shuffle(candidates)
    taught = {tuple(turn.ask for turn in dialogue.turns) for dialogue in training(seed)}
    taken: dict[str, list[Dialogue]] = {}
    for dialogue in candidates:
        same_kind = taken.setdefault(dialogue.kind, [])
        if tuple(turn.ask for turn in dialogue.turns) not in taught and len(same_kind) < per_kind:
            same_kind.append(dialogue)
    return [dialogue for kind in sorted(taken) for dialogue in taken[kind]]


def row(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as a row of OpenAI messages."""
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for turn in dialogue.turns:
        messages += [{"role": "user", "content": turn.ask}, {"role": "assistant", "content": turn.answer}]
    return {"messages": messages}


def question(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as a question with its rule: the last answer is left open."""
    last, messages = dialogue.turns[-1], row(dialogue)["messages"][:-1]
    where = {"kind": dialogue.kind, "language": dialogue.language}
    return {**where, "messages": messages, "answer": last.answer, "expect": list(last.expect)}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines and say how many."""
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), "utf-8")
    print(f"{path}: {len(lines)} dialogues")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the training dialogues, or with --heldout the examination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heldout", action="store_true", help="write the examination in place of the training dialogues")
    parser.add_argument("--per-kind", type=int, default=60, help="questions of each kind in the examination")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.heldout:
        write(options.out, map(question, held_out(options.seed, options.per_kind)))
    else:
        write(options.out, map(row, training(options.seed)))


if __name__ == "__main__":
    main()
