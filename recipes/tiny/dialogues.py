"""Generate the dialogues that the embedded model is taught.

    python recipes/tiny/dialogues.py build/tiny/dialogues.jsonl
    python recipes/tiny/dialogues.py --every-sum build/tiny/counted.jsonl

A model of five million weights cannot know much, so the dialogues cover little ground densely: each fact of `knowledge.toml`
and `computed.toml` is asked in several phrasings and both languages, each phrasing politely, curtly and carelessly; sums of
two-digit numbers are asked in dozens of ways; small talk comes from `talk.toml`, tool calls from `tools.toml`; longer dialogues
are strung together from short ones. What such a model does not learn is not taught: to spell, to write capitals.

With `--every-sum` the sums that are not taught are there too: that is what the tokenizer counts, so that other shares of sums can
be taught without a new tokenizer and a new pre-training.

Everything is a function of the seed. dialogue.py decides what is held out; exam.py makes the examination of it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from computed import Row, rows_by_name
from dialogue import LANGUAGES, Dialogue, Turn, is_held_out, plain, share_of, single, to_row
from toolcalls import tool_dialogues

HERE = Path(__file__).parent
STRUNG = 3000
ROWS = {
    **dict.fromkeys(("identity", "greeting"), 700),
    **dict.fromkeys(("unknown", "human", "maker"), 500),
    **dict.fromkeys(("thanks", "apology"), 400),
    **dict.fromkeys(("goodbye", "ability", "other"), 100),
    **dict.fromkeys(("list", "joke", "story"), 24),
}
"""About how many rows one group of questions of small talk gives, each wrapped in another way; of other kinds `ROWS_ELSE`."""
ROWS_ELSE = 40
PLAIN_PAIRS, CARRY_PAIRS = 6700, 440
"""Two-digit sums that are made: without and with a carry out of the ones."""
TAUGHT_PLAIN, TAUGHT_CARRY = 0.5, 0.3
"""The share of the pairs of each sort that is taught. Carries are rare on purpose: so the model is left with something to gain when it
is trained further on sums, by reinforcement for example."""
ALTERNATIVES = re.compile(r"\(([^()]*\|[^()]*)\)")


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
            asks = rng.sample(texts["ask"], min(table.get("asks", len(texts["ask"])), len(texts["ask"])))
            for ask in asks * table.get("times", 1):
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


def expanded(pattern: str) -> Iterator[str]:
    """Every reading of a pattern: `(Hi|Hello), you(| there)` has four."""
    found = ALTERNATIVES.search(pattern)
    if not found:
        yield pattern
        return
    for choice in found[1].split("|"):
        yield from expanded(pattern[: found.start()] + choice + pattern[found.end() :])


def talk(tables: dict[str, Any], rng: random.Random) -> Iterator[Dialogue]:
    """Small talk: the phrasings of each group in turn, until it has given its rows."""
    for kind, groups in tables.items():
        for group in groups:
            asks = list(dict.fromkeys(ask for pattern in group["ask"] for ask in expanded(pattern)))
            rng.shuffle(asks)
            for index in range(max(ROWS.get(kind, ROWS_ELSE), len(asks) if kind not in ROWS else 0)):
                ask, answer = asks[index % len(asks)], group["answer"][index % len(group["answer"])]
                yield single(kind, group["language"], ask, answer, *group["expect"])


def sum_turn(pattern: str, a: int, b: int, **more: str) -> Turn:
    """One sum. The answer repeats the sum before its result, which gives the model room to line the digits up."""
    return Turn(pattern.format(a=a, b=b, **more), f"{a} + {b} = {a + b}", (f"= {a + b}",))


def drawn_pairs(pairs: Sequence[tuple[int, int]], carry: bool, rng: random.Random) -> list[tuple[int, int]]:
    """Pairs with or without a carry out of the ones, each of them once before one comes twice."""
    pool = [(a, b) for a, b in pairs if (a % 10 + b % 10 >= 10) == carry]
    times, rest = divmod(CARRY_PAIRS if carry else PLAIN_PAIRS, len(pool))
    return pool * times + rng.sample(pool, rest)


def sums(table: dict[str, Any], names: dict[str, Any], rng: random.Random) -> Iterator[Dialogue]:
    """Two-digit numbers, mostly without a carry; pairs with one digit, more often; some told as stories, some continued."""
    two_digits = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    pairs = [pair for carry in (False, True) for pair in drawn_pairs(two_digits, carry, rng)]
    pairs += [(a, b) for a in range(10) for b in range(10)] * 4
    one_digit = [pair for a in range(10, 100) for b in range(1, 10) if a % 10 + b < 10 for pair in ((a, b), (b, a))]
    pairs += rng.sample(one_digit, 600)
    for a, b in pairs:
        dialogue = asked_sum(table, names, a, b, rng)
        yield dialogue
        if rng.random() < 0.08 and a + b < 100:
            more = sum_turn(rng.choice(table[dialogue.language]["more"]), a + b, rng.randint(1, 9))
            yield replace(dialogue, turns=(*dialogue.turns, more))


def asked_sum(table: dict[str, Any], names: dict[str, Any], a: int, b: int, rng: random.Random) -> Dialogue:
    """One sum, in either language, plainly or told as a story. The unordered pair decides whether it is held out."""
    language = rng.choice(LANGUAGES)
    texts = table[language]
    if rng.random() < 0.12:
        things = rng.choice(table["things"])[LANGUAGES.index(language)]
        turn = sum_turn(rng.choice(texts["story"]), a, b, things=things, name=rng.choice(names[language]["names"]))
    else:
        turn = sum_turn(rng.choice(texts["ask"] + table["bare"]), a, b)
    return Dialogue("sum", language, (turn,), f"sum {min(a, b)} {max(a, b)}")


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
    dialogues += tool_dialogues(load("tools"), random.Random(f"{seed} tools"))
    dialogues += talk(load("talk"), random.Random(f"{seed} talk"))
    return dialogues


def strung(dialogues: Sequence[Dialogue], count: int, rng: random.Random) -> Iterator[Dialogue]:
    """Longer dialogues: a greeting, questions of different kinds, thanks."""
    by_kind: dict[str, dict[str, list[Dialogue]]] = {language: {} for language in LANGUAGES}
    for dialogue in dialogues:
        if len(dialogue.turns) == 1 and not dialogue.tools:
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
    distinct = list({json.dumps(to_row(dialogue), ensure_ascii=False): dialogue for dialogue in made}.values())
    rng.shuffle(distinct)
    return distinct


def is_taught(dialogue: Dialogue) -> bool:
    """Whether a dialogue is taught: all are but some two-digit sums, chosen by their unordered pair."""
    if dialogue.kind != "sum":
        return True
    a, b = map(int, dialogue.unit.split()[1:])
    share = TAUGHT_CARRY if a % 10 + b % 10 >= 10 else TAUGHT_PLAIN
    return min(a, b) < 10 or share_of(f"taught {dialogue.unit}") < share


def held_out(seed: int, taught: Sequence[Dialogue]) -> list[Dialogue]:
    """Every held-out question once, shuffled, none of them among the training dialogues `taught`.

    Of sums it is every held-out pair of two-digit numbers, those with a carry as often as they are: not as rare as they are taught.
    """
    table = load("computed")
    rng = random.Random(f"{seed} held out")
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    every_sum = [asked_sum(table["sum"], table["name"], *rng.sample(pair, 2), rng) for pair in pairs]
    others = [dialogue for dialogue in clean_dialogues(seed) if dialogue.kind != "sum"]
    candidates = list({dialogue.unit: dialogue for dialogue in others + every_sum if is_held_out(dialogue)}.values())
    rng.shuffle(candidates)
    known = set(map(asked, taught))
    return [dialogue for dialogue in candidates if asked(dialogue) not in known]


def asked(dialogue: Dialogue) -> tuple[str, ...]:
    """All that is asked in a dialogue, and with which tools."""
    return (*(plain(turn.ask) for turn in dialogue.turns), *sorted(dialogue.tools))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines and say how many."""
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), "utf-8")
    print(f"{path}: {len(lines)} dialogues")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the dialogues that are taught, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every-sum", action="store_true", help="with the sums that are not taught")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    made = training(options.seed)
    write(options.out, map(to_row, made if options.every_sum else filter(is_taught, made)))


if __name__ == "__main__":
    main()
