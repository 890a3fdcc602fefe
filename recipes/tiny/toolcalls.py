"""Dialogues in which the embedded model asks a tool, reads its answer and says it in words.

One call and one short answer is all that a model of this size can learn: two tools of one argument each, in both languages. Some
dialogues offer only a tool that does not fit, so that the model reads what it is offered; then it says that it does not know.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from dialogue import LANGUAGES, Dialogue, Turn, unit_of

NEEDED = 0.84
"""How often the tool that the question needs is among those offered."""
TIMES = 3
"""How often each city is asked about in each phrasing, with other answers of the tool."""


def tool_dialogues(table: dict[str, Any], rng: random.Random) -> Iterator[Dialogue]:
    """Every question about every city."""
    for index, language in enumerate(LANGUAGES):
        for name in table["asked"]:
            for pattern in table[name][language]["ask"]:
                for city in table["cities"] * TIMES:
                    yield tool_dialogue(table, name, language, pattern.format(place=city[index]), city[index], rng)


def tool_dialogue(table: dict[str, Any], name: str, language: str, ask: str, city: str, rng: random.Random) -> Dialogue:
    """One question, with the tool that it needs among those offered, or without it."""
    if rng.random() < NEEDED:
        values = draw(table, language, rng)
        texts = {key: table[name][language][key].format(place=city, **values) for key in ("answer", "expect")}
        keys = table["results"][name]
        result = json.dumps({key: int(values[key]) if key == "degrees" else values[key] for key in keys}, ensure_ascii=False)
        turn = Turn(ask, texts["answer"], (texts["expect"],), call=(name, city), result=result)
        tools = [*offered(table, name, rng.choice((0, 1, 1, 2)), rng), name]
    else:
        turn = Turn(ask, table["without"][language]["answer"], (table["without"][language]["expect"],))
        tools = offered(table, name, rng.choice((1, 1, 2)), rng)
    rng.shuffle(tools)
    return Dialogue("tool", language, (turn,), unit_of("tool", ask), tools=tuple(tools))


def draw(table: dict[str, Any], language: str, rng: random.Random) -> dict[str, str]:
    """What a tool might answer."""
    weather = rng.choice(table["weathers"])[LANGUAGES.index(language)]
    return {"weather": weather, "degrees": str(rng.randint(1, 35)), "time": f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"}


def offered(table: dict[str, Any], needed: str, count: int, rng: random.Random) -> list[str]:
    """Tools that do not help."""
    return rng.sample([name for name in table["offered"] if name != needed], count)
