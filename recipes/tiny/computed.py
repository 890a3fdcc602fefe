"""Facts that need no table because they can be computed: numbers, days, months, translations of the word list.

Each function of `ROWS` gives facts as mappings from a name in the phrasings of `computed.toml` to its value. The values ending in
`_zh` are for Chinese phrasings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Row = dict[str, str]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYS_ZH = ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
MONTHS_ZH = ("一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月", "十一月", "十二月")
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DIGITS_ZH = "零一二三四五六七八九"


def words_en(number: int) -> str:
    """0…99 in English words."""
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")


def words_zh(number: int) -> str:
    """0…99 in Chinese characters."""
    if number < 10:
        return DIGITS_ZH[number]
    tens = "" if number < 20 else DIGITS_ZH[number // 10]
    return f"{tens}十{DIGITS_ZH[number % 10] if number % 10 else ''}"


def numbers() -> list[Row]:
    """1…99 with neighbours, words and parity."""
    rows = []
    for n in range(1, 100):
        parity, parity_zh = ("odd", "奇数") if n % 2 else ("even", "偶数")
        row = {"n": str(n), "next": str(n + 1), "previous": str(n - 1), "words": words_en(n), "words_zh": words_zh(n)}
        rows.append({**row, "parity": parity, "parity_zh": parity_zh})
    return rows


def pairs() -> list[Row]:
    """700 pairs of different numbers below 100, and the bigger of each."""
    rng = random.Random("pairs")
    drawn = [rng.sample(range(1, 100), 2) for _ in range(700)]
    return [{"a": str(a), "b": str(b), "bigger": str(max(a, b))} for a, b in drawn]


def listing(steps: range) -> Row:
    """A range, written out."""
    low, high = min(steps[0], steps[-1]), max(steps[0], steps[-1])
    return {"low": str(low), "high": str(high), "listed": ", ".join(map(str, steps)), "listed_zh": "、".join(map(str, steps))}


def ranges() -> list[Row]:
    """Ranges of three to eleven numbers: all that start at 0 or 1, a third of those that start at up to 20."""
    return [
        listing(range(low, high + 1))
        for low in range(21)
        for high in range(low + 2, low + 11)
        if low < 2 or (low + high) % 3 == 0
    ]


def countdowns() -> list[Row]:
    """The same downwards, to 0 or 1."""
    return [listing(range(high, low - 1, -1)) for low in range(2) for high in range(low + 2, low + 11)]


def cycle(names: Sequence[str], names_zh: Sequence[str]) -> list[Row]:
    """Each name with the one after it and the one before it, around the end."""
    rows = []
    for index, (name, name_zh) in enumerate(zip(names, names_zh, strict=True)):
        after, before = (index + 1) % len(names), index - 1
        row = {"x": name, "next": names[after], "previous": names[before], "ordinal": ORDINALS[index]}
        rows.append({**row, "x_zh": name_zh, "next_zh": names_zh[after], "previous_zh": names_zh[before]})
    return rows


def translated(pairs_of_words: Sequence[Sequence[str]]) -> list[Row]:
    """Pairs of English and Chinese."""
    return [{"en": english, "zh": chinese} for english, chinese in pairs_of_words]


def rows_by_name(words: Sequence[Sequence[str]], phrases: Sequence[Sequence[str]]) -> dict[str, Callable[[], list[Row]]]:
    """What `rows = "…"` in computed.toml may name."""
    return {
        "numbers": numbers,
        "pairs": pairs,
        "ranges": ranges,
        "countdowns": countdowns,
        "days": lambda: cycle(DAYS, DAYS_ZH),
        "months": lambda: cycle(MONTHS, MONTHS_ZH),
        "words": lambda: translated(words),
        "phrases": lambda: translated(phrases),
    }
