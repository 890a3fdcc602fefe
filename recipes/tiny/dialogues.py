"""Generate the dialogues that the embedded model is taught, or the questions it is examined with.

    python recipes/tiny/dialogues.py build/tiny/dialogues.jsonl
    python recipes/tiny/dialogues.py --heldout build/tiny/heldout.jsonl

A model of five million weights cannot know much, so the dialogues cover little ground densely: each fact of `knowledge.toml`
is asked in several phrasings and both languages, each phrasing politely, curtly and carelessly; arithmetic, counting, spelling,
days and months are computed; small talk comes from `talk.toml`; longer dialogues are strung together from short ones.

Everything is a function of the seed. What is held out is decided by a hash of the *question* before its wrapping (for sums: of
the unordered pair of numbers), so that no training dialogue differs from a held-out one by a "please" alone. A held-out row
carries `expect`, the alternatives of which one must occur in the answer; multi-turn rows leave the last answer open.
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

HERE = Path(__file__).parent
HELD_OUT_SHARE = 0.04

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYS_ZH = ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MONTHS_ZH = ("一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月", "十一月", "十二月")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth")
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DIGITS_ZH = "零一二三四五六七八九"
NAMES = (
    "Tom",
    "Anna",
    "Lily",
    "Jack",
    "Mary",
    "Peter",
    "Lucy",
    "Sam",
    "Emma",
    "Ben",
    "Kate",
    "Paul",
    "Rose",
    "Mike",
    "Jane",
    "Max",
)
NAMES_ZH = (
    "小明",
    "小红",
    "小李",
    "王芳",
    "李华",
    "张伟",
    "小丽",
    "大卫",
    "小强",
    "陈晨",
    "小梅",
    "刘洋",
    "小刚",
    "小雨",
    "阿明",
    "小兰",
)


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
    return share_of(f"held out {dialogue.unit}") < HELD_OUT_SHARE


def single(kind: str, language: str, ask: str, answer: str, *expect: str) -> Dialogue:
    """A dialogue of one turn, held out by its own question."""
    return Dialogue(kind, language, (Turn(ask, answer, expect or (answer,)),), f"{kind} {ask}")


# --- facts and small talk -------------------------------------------------------------------------------------------------


def fill(pattern: str, row: dict[str, str]) -> str:
    """Put a row's values into {name}; {Name} has a capital."""
    capitals = {key.capitalize(): value[:1].upper() + value[1:] for key, value in row.items() if key.isascii()}
    return pattern.format(**capitals, **row)


def rows_of(table: dict[str, Any]) -> list[dict[str, str]]:
    """The facts of a table as mappings, with the exchanged ones when it says `swap`."""
    rows = [list(row) for row in table["rows"]]
    if table.get("swap"):
        rows += [[b, a, b_zh, a_zh] for a, b, a_zh, b_zh in rows]
    return [dict(zip(table["columns"], row, strict=True)) for row in rows]


def facts(knowledge: dict[str, Any], rng: random.Random) -> Iterator[Dialogue]:
    """Each fact in each phrasing, and chains of facts whose later questions are short."""
    for kind, table in knowledge.items():
        rows = rows_of(table)
        for language in ("en", "zh"):
            if language not in table:
                continue
            texts = table[language]
            for row in rows:
                answer, expect = fill(texts["answer"], row), fill(texts["expect"], row)
                for ask in texts["ask"]:
                    yield single(kind, language, fill(ask, row), answer, expect)
            for _ in range(2 * len(rows)):
                yield chain(kind, language, texts, rng.sample(rows, rng.choice((2, 2, 3))), rng)


def chain(kind: str, language: str, texts: dict[str, Any], rows: Sequence[dict[str, str]], rng: random.Random) -> Dialogue:
    """A first question about one fact, then short follow-ups about others."""
    turns = []
    for index, row in enumerate(rows):
        ask = rng.choice(texts["follow"] if index else texts["ask"])
        turns.append(Turn(fill(ask, row), fill(texts["answer"], row), (fill(texts["expect"], row),)))
    return Dialogue(kind, language, tuple(turns), f"{kind} chain {' '.join(turn.ask for turn in turns)}")


def talk(table: dict[str, Any]) -> Iterator[Dialogue]:
    """Small talk: every phrasing with every answer."""
    for kind, groups in table.items():
        for group in groups:
            for ask in group["ask"]:
                for answer in group["answer"]:
                    yield single(kind, group["language"], ask, answer, *group["expect"])


# --- what can be computed -------------------------------------------------------------------------------------------------

SUM_EN = (
    "What is {a} plus {b}?", "What is {a} + {b}?", "How much is {a} + {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "Add {a} to {b}.",
    "Calculate {a} + {b}.", "Please add {a} and {b}.", "What do you get if you add {a} and {b}?", "Can you add {a} and {b}?", "{a} plus {b} is what?",
    "Tell me {a} + {b}.", "What is the sum of {a} and {b}?", "Find the sum of {a} and {b}.", "{a} and {b} together make how much?",
)  # fmt: skip
SUM_ZH = (
    "{a}加{b}等于多少？", "{a}+{b}等于多少？", "{a}加{b}是多少？", "{a}+{b}是多少？", "计算{a}+{b}。", "请算一下{a}加{b}。", "算一算：{a}+{b}", "{a}与{b}的和是多少？",
    "{a}和{b}加起来是多少？", "{a}加上{b}得多少？", "帮我算{a}+{b}。", "求{a}加{b}的和。", "{a}加{b}得几？", "你会算{a}加{b}吗？",
)  # fmt: skip
SUM_BARE = ("{a}+{b}", "{a} + {b}", "{a}+{b}=", "{a} + {b} =", "{a}+{b}=?", "{a} + {b} = ?")
SUM_STORY_EN = (
    "I have {a} {things} and get {b} more. How many {things} do I have?", "There are {a} {things} and {b} more {things}. How many are there?",
    "{name} has {a} {things}. Then {name} buys {b} more. How many {things} does {name} have?",
)  # fmt: skip
SUM_STORY_ZH = (
    "我有{a}个{thing}，又得到{b}个，一共有多少个？", "这里有{a}个{thing}，那里有{b}个，一共多少个？", "{name}有{a}个{thing}，又买了{b}个，现在有多少个？",
)  # fmt: skip
THINGS = (
    ("apples", "苹果"),
    ("books", "本子"),
    ("eggs", "鸡蛋"),
    ("balls", "球"),
    ("pears", "梨"),
    ("cups", "杯子"),
    ("toys", "玩具"),
    ("stars", "星星"),
)


def sum_turn(pattern: str, a: int, b: int, **more: str) -> Turn:
    """One sum. The answer repeats the sum before its result, which gives the model room to line the digits up."""
    return Turn(pattern.format(a=a, b=b, **more), f"{a} + {b} = {a + b}", (f"= {a + b}",))


def sums(rng: random.Random) -> Iterator[Dialogue]:
    """All pairs of two-digit numbers, twice; pairs with one digit, more often; some told as stories, some continued."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)] * 2
    pairs += [(a, b) for a in range(10) for b in range(10)] * 4
    pairs += [pair for a in range(10, 100) for b in rng.sample(range(1, 10), 5) for pair in ((a, b), (b, a))]
    for a, b in pairs:
        unit = f"sum {min(a, b)} {max(a, b)}"
        language = rng.choice(("en", "zh"))
        if rng.random() < 0.12:
            things, thing = rng.choice(THINGS)
            pattern = rng.choice(SUM_STORY_EN if language == "en" else SUM_STORY_ZH)
            name = rng.choice(NAMES if language == "en" else NAMES_ZH)
            turn = sum_turn(pattern, a, b, things=things, thing=thing, name=name)
        else:
            turn = sum_turn(rng.choice((SUM_EN if language == "en" else SUM_ZH) + SUM_BARE), a, b)
        yield Dialogue("sum", language, (turn,), unit)
        if rng.random() < 0.08 and a + b < 100:
            more = rng.randint(1, 9)
            ask = rng.choice(
                ("And plus {b}?", "Add {b} more.", "Now add {b}.")
                if language == "en"
                else ("再加{b}呢？", "再加上{b}是多少？", "再加{b}。")
            )
            yield Dialogue("sum", language, (turn, sum_turn(ask, a + b, more)), unit)


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


def numbers(rng: random.Random) -> Iterator[Dialogue]:
    """Neighbours, comparisons, even and odd, number words."""
    for n in range(1, 100):
        for ask in ("What number comes after {n}?", "Which number follows {n}?", "What comes after {n}?"):
            yield single("after", "en", ask.format(n=n), f"{n + 1} comes after {n}.", f"{n + 1} comes")
        for ask in ("{n}后面的数是几？", "{n}的下一个数是多少？", "{n}后面是几？"):
            yield single("after", "zh", ask.format(n=n), f"{n}后面是{n + 1}。", f"是{n + 1}")
        for ask in ("What number comes before {n}?", "Which number is just before {n}?"):
            yield single("before", "en", ask.format(n=n), f"{n - 1} comes before {n}.", f"{n - 1} comes")
        for ask in ("{n}前面的数是几？", "{n}的前一个数是多少？"):
            yield single("before", "zh", ask.format(n=n), f"{n}前面是{n - 1}。", f"是{n - 1}")
        for ask in ("How do you write {n} in words?", "Write {n} as a word.", "Spell the number {n}."):
            yield single("number word", "en", ask.format(n=n), f"{n} is {words_en(n)}.", f"is {words_en(n)}.")
        for ask in ("{n}用汉字怎么写？", "把{n}写成汉字。", "{n}的中文写法是什么？"):
            yield single("number word", "zh", ask.format(n=n), f"{n}写作{words_zh(n)}。", f"写作{words_zh(n)}。")
        kind, kind_zh = ("odd", "奇数") if n % 2 else ("even", "偶数")
        yield single("parity", "en", f"Is {n} even or odd?", f"{n} is {kind}.", kind)
        yield single("parity", "zh", f"{n}是奇数还是偶数？", f"{n}是{kind_zh}。", kind_zh)
    for _ in range(1200):
        a, b = rng.sample(range(1, 100), 2)
        ask = rng.choice(
            ("Which is bigger, {a} or {b}?", "Which number is larger: {a} or {b}?", "What is more, {a} or {b}?")
        ).format(a=a, b=b)
        yield single("compare", "en", ask, f"{max(a, b)} is bigger.", f"{max(a, b)} is")
        ask = rng.choice(("{a}和{b}哪个大？", "{a}大还是{b}大？", "哪个数更大，{a}还是{b}？")).format(a=a, b=b)
        yield single("compare", "zh", ask, f"{max(a, b)}更大。", f"{max(a, b)}更大")


def counting() -> Iterator[Dialogue]:
    """Counting up, and down from small numbers."""
    for low in range(21):
        for high in range(low + 2, low + 11):
            up = range(low, high + 1)
            if low < 2 or (low + high) % 3 == 0:
                for ask in ("Count from {a} to {b}.", "Can you count from {a} to {b}?", "Write the numbers from {a} to {b}."):
                    listed = ", ".join(map(str, up))
                    yield single("count", "en", ask.format(a=low, b=high), f"{listed}.", listed)
                for ask in ("从{a}数到{b}。", "请从{a}数到{b}。", "写出{a}到{b}的数字。"):
                    listed = "、".join(map(str, up))
                    yield single("count", "zh", ask.format(a=low, b=high), f"{listed}。", listed)
            if low < 2:
                down = ", ".join(map(str, reversed(up)))
                yield single("count", "en", f"Count down from {high} to {low}.", f"{down}.", down)
                down = "、".join(map(str, reversed(up)))
                yield single("count", "zh", f"从{high}倒数到{low}。", f"{down}。", down)


def calendar() -> Iterator[Dialogue]:
    """What comes before and after each day and month; the n-th month."""
    tables = (("day", DAYS, DAYS_ZH, "Which day", "哪一天"), ("month", MONTHS, MONTHS_ZH, "Which month", "哪个月"))
    for kind, names, names_zh, which, which_zh in tables:
        for index, (name, name_zh) in enumerate(zip(names, names_zh, strict=True)):
            after, after_zh = names[(index + 1) % len(names)], names_zh[(index + 1) % len(names)]
            before, before_zh = names[index - 1], names_zh[index - 1]
            for ask in (
                "{which} comes after {x}?",
                "What comes after {x}?",
                "What {kind} is after {x}?",
                "{which} follows {x}?",
                "{x} is over. What is next?",
            ):
                yield single(
                    kind, "en", ask.format(which=which, x=name, kind=kind), f"{after} comes after {name}.", f"{after} comes"
                )
            for ask in ("{which} comes before {x}?", "What comes before {x}?", "What {kind} is before {x}?"):
                yield single(
                    kind, "en", ask.format(which=which, x=name, kind=kind), f"{before} comes before {name}.", f"{before} comes"
                )
            for ask in ("{x}后面是{which}？", "{x}的后面是什么？", "{x}之后是{which}？", "{x}过了是{which}？"):
                yield single(kind, "zh", ask.format(which=which_zh, x=name_zh), f"{name_zh}后面是{after_zh}。", f"是{after_zh}")
            for ask in ("{x}前面是{which}？", "{x}的前面是什么？", "{x}之前是{which}？"):
                yield single(kind, "zh", ask.format(which=which_zh, x=name_zh), f"{name_zh}前面是{before_zh}。", f"是{before_zh}")
    for index, name in enumerate(DAYS):
        tomorrow, yesterday = DAYS[(index + 1) % 7], DAYS[index - 1]
        for ask in ("Today is {x}. What day is tomorrow?", "If today is {x}, what is tomorrow?"):
            yield single("day", "en", ask.format(x=name), f"Tomorrow is {tomorrow}.", tomorrow)
        for ask in ("Today is {x}. What day was yesterday?", "If today is {x}, what was yesterday?"):
            yield single("day", "en", ask.format(x=name), f"Yesterday was {yesterday}.", yesterday)
        for ask in ("今天是{x}，明天是星期几？", "今天{x}，明天星期几？"):
            yield single(
                "day", "zh", ask.format(x=DAYS_ZH[index]), f"明天是{DAYS_ZH[(index + 1) % 7]}。", DAYS_ZH[(index + 1) % 7]
            )
        for ask in ("今天是{x}，昨天是星期几？", "今天{x}，昨天星期几？"):
            yield single("day", "zh", ask.format(x=DAYS_ZH[index]), f"昨天是{DAYS_ZH[index - 1]}。", DAYS_ZH[index - 1])
    for index, name in enumerate(MONTHS):
        for ask in ("What is the {n} month of the year?", "Which month is the {n}?", "Name the {n} month."):
            yield single("month", "en", ask.format(n=ORDINALS[index]), f"The {ORDINALS[index]} month is {name}.", name)


def letters(lexicon: Sequence[tuple[str, str]]) -> Iterator[Dialogue]:
    """Capital letters, spelling, first letters, the alphabet."""
    for word, _ in lexicon:
        if not (word.isalpha() and len(word) <= 8):
            continue
        for ask in ("Write {w} in capital letters.", 'Write "{w}" in capitals.', "Put {w} in upper case."):
            yield single("capitals", "en", ask.format(w=word), word.upper(), word.upper())
        for ask in ("把{w}写成大写。", "{w}的大写是什么？"):
            yield single("capitals", "zh", ask.format(w=word), word.upper(), word.upper())
        spelled = "-".join(word.lower())
        for ask in ("How do you spell {w}?", 'Spell "{w}".', "Spell the word {w}."):
            yield single("spelling", "en", ask.format(w=word), f"{spelled}.", f"{spelled}.")
        yield single("spelling", "zh", f"{word}怎么拼写？", f"{spelled}。", f"{spelled}。")
        for ask in ("What is the first letter of {w}?", "Which letter does {w} begin with?"):
            yield single(
                "first letter",
                "en",
                ask.format(w=word),
                f"The first letter of {word} is {word[0].upper()}.",
                f"is {word[0].upper()}.",
            )
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for letter, following in zip(alphabet, alphabet[1:], strict=False):
        for ask in ("Which letter comes after {x}?", "What letter follows {x}?", "What comes after {x} in the alphabet?"):
            yield single("alphabet", "en", ask.format(x=letter), f"{following} comes after {letter}.", f"{following} comes")
        for ask in ("字母{x}后面是什么？", "{x}的下一个字母是什么？"):
            yield single("alphabet", "zh", ask.format(x=letter), f"{letter}后面是{following}。", f"是{following}")


TO_ZH = (
    "How do you say \"{en}\" in Chinese?", "What is {en} in Chinese?", "Translate \"{en}\" into Chinese.", "Translate into Chinese: {en}", "Say {en} in Chinese.",
    "What is the Chinese word for {en}?", "“{en}”用中文怎么说？", "{en}的中文是什么？", "把“{en}”翻译成中文。", "翻译成中文：{en}", "{en}是什么意思？", "用中文说{en}。",
)  # fmt: skip
TO_EN = (
    "“{zh}”用英文怎么说？", "{zh}用英语怎么说？", "{zh}的英文是什么？", "把“{zh}”翻译成英文。", "翻译成英文：{zh}", "用英文说{zh}。", "How do you say \"{zh}\" in English?",
    "What does {zh} mean?", "Translate \"{zh}\" into English.", "Translate into English: {zh}", "What is {zh} in English?", "{zh} in English?",
)  # fmt: skip


def translations(words: Sequence[tuple[str, str]], phrases: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[Dialogue]:
    """Words and phrases both ways; the answer is the translation alone, so the language of the question does not matter."""
    for kind, pairs in (("word", words), ("phrase", phrases)):
        for english, chinese in pairs:
            for ask in TO_ZH:
                yield single(f"{kind} to zh", "en" if ask.isascii() else "zh", ask.format(en=english), chinese, chinese)
            for ask in TO_EN:
                yield single(
                    f"{kind} to en", "en" if ask.format(zh="").isascii() else "zh", ask.format(zh=chinese), english, english
                )
        for _ in range(2 * len(pairs)):
            (en1, zh1), (en2, zh2) = rng.sample(pairs, 2)
            if rng.random() < 0.5:
                follow = rng.choice(("And {x}?", "What about {x}?", "那{x}呢？")).format(x=en2)
                turns = (Turn(rng.choice(TO_ZH).format(en=en1), zh1, (zh1,)), Turn(follow, zh2, (zh2,)))
            else:
                follow = rng.choice(("And {x}?", "那{x}呢？", "{x}呢？")).format(x=zh2)
                turns = (Turn(rng.choice(TO_EN).format(zh=zh1), en1, (en1,)), Turn(follow, en2, (en2,)))
            yield Dialogue(
                f"{kind} to {'zh' if turns[0].answer == zh1 else 'en'}", "en", turns, f"{kind} chain {turns[0].ask} {follow}"
            )


def copying(words: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[Dialogue]:
    """Repeating a word, and remembering a name over the turns."""
    for english, chinese in words:
        for ask in ("Repeat after me: {x}", 'Say "{x}".', "Please say {x}."):
            yield single("repeat", "en", ask.format(x=english), english, english)
        for ask in ("跟我说：{x}", "请说“{x}”。", "重复一遍：{x}"):
            yield single("repeat", "zh", ask.format(x=chinese), chinese, chinese)
    for names, language in ((NAMES, "en"), (NAMES_ZH, "zh")):
        for name in names:
            yield from name_dialogues(name, language, rng)


def name_dialogues(name: str, language: str, rng: random.Random) -> Iterator[Dialogue]:
    """Somebody says a name, and asks for it later."""
    if language == "en":
        told = [f"My name is {name}.", f"I am {name}.", f"Hello, I am {name}.", f"Call me {name}.", f"Hi! My name is {name}."]
        asked = ["What is my name?", "Who am I?", "Do you remember my name?", "Do you know my name?"]
        hello, reply = f"Nice to meet you, {name}!", f"Your name is {name}."
        between = (Turn("How are you?", "I am fine, thank you. And you?", ()), Turn("Thank you.", "You are welcome!", ()))
    else:
        told = [f"我叫{name}。", f"我是{name}。", f"你好，我叫{name}。", f"我的名字是{name}。", f"叫我{name}吧。"]
        asked = ["我叫什么名字？", "我是谁？", "你记得我的名字吗？", "我叫什么？"]
        hello, reply = f"很高兴认识你，{name}！", f"你叫{name}。"
        between = (Turn("你好吗？", "我很好，谢谢。你呢？", ()), Turn("谢谢。", "不客气！", ()))
    for first in told:
        yield single("name", language, first, hello, name)
        for last in asked:
            middle = (rng.choice(between),) if rng.random() < 0.4 else ()
            yield Dialogue(
                "name", language, (Turn(first, hello, (name,)), *middle, Turn(last, reply, (name,))), f"name {first} {last}"
            )


# --- from clean questions to what people type -----------------------------------------------------------------------------

BEFORE_EN = (
    "Hello! ",
    "Hi, ",
    "Please tell me: ",
    "I have a question. ",
    "Excuse me. ",
    "Can you help me? ",
    "OK. ",
    "Well, ",
    "Tell me, ",
    "Quick question: ",
)
AFTER_EN = (" Thanks.", " Thank you!", " Please.", " I want to know.")
BEFORE_ZH = ("你好，", "你好！", "请问，", "请问", "请告诉我，", "我想问一下，", "我有个问题：", "好的。", "那么，", "帮个忙，")
AFTER_ZH = ("谢谢。", "谢谢！", "请回答。", "我想知道。")
PLAIN = {"greeting", "goodbye", "thanks", "apology", "praise", "mood", "complaint", "strung"}
SYSTEM_EN = ("You are a helpful assistant.", "You are a friendly assistant. Answer briefly.", "Answer in one short sentence.")
SYSTEM_ZH = ("你是一个有用的助手。", "你是一个友好的助手，请简短回答。", "请用一句话回答。")


def wrapped(ask: str, language: str, plain: bool, rng: random.Random) -> str:
    """A question as somebody might type it: politely, in lower case, without punctuation."""
    chance = rng.random()
    if chance < 0.40:
        return ask
    if chance < 0.60 or (plain and chance >= 0.72):
        bare = ask.rstrip("?？.。!！")
        return bare if rng.random() < 0.5 else bare + {"en": "?", "zh": "?"}[language] if ask[-1] in "?？" else bare
    if chance < 0.72:
        return ask[0].lower() + ask[1:] if language == "en" and not ask.startswith("I ") else ask.replace("？", "?")
    before, after = (BEFORE_EN, AFTER_EN) if language == "en" else (BEFORE_ZH, AFTER_ZH)
    return rng.choice(before) + ask if chance < 0.93 else ask + rng.choice(after)


def with_wrapping(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """The dialogue with its first question wrapped, and now and then a system message."""
    first = dialogue.turns[0]
    ask = wrapped(first.ask, dialogue.language, dialogue.kind in PLAIN, rng)
    system = rng.choice(SYSTEM_EN if dialogue.language == "en" else SYSTEM_ZH) if rng.random() < 0.05 else None
    return replace(dialogue, turns=(replace(first, ask=ask), *dialogue.turns[1:]), system=system)


def strung(singles: Sequence[Dialogue], count: int, rng: random.Random) -> Iterator[Dialogue]:
    """Longer dialogues: a greeting, questions of different kinds, thanks."""
    pools = {language: [d for d in singles if d.language == language and len(d.turns) == 1] for language in ("en", "zh")}
    openings = {language: [d for d in pool if d.kind in ("greeting", "wellbeing")] for language, pool in pools.items()}
    closings = {language: [d for d in pool if d.kind in ("thanks", "goodbye")] for language, pool in pools.items()}
    by_kind = {
        language: [[d for d in pool if d.kind == kind] for kind in sorted({d.kind for d in pool})]
        for language, pool in pools.items()
    }
    for index in range(count):
        language = rng.choice(("en", "zh"))
        parts = [rng.choice(rng.choice(by_kind[language])) for _ in range(rng.choice((1, 2, 2, 3)))]
        if rng.random() < 0.5:
            parts.insert(0, rng.choice(openings[language]))
        if rng.random() < 0.5 or len(parts) == 1:
            parts.append(rng.choice(closings[language]))
        yield Dialogue("strung", language, tuple(part.turns[0] for part in parts), f"strung {index}")


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
"""How often the few questions of a kind are taken, each time wrapped differently. Facts are taken once a phrasing."""
SMALL_TALK_REPEATS = 3


def clean_dialogues(seed: int) -> list[Dialogue]:
    """Every dialogue before wrapping, duplicates kept: they weigh more."""
    tables = {name: tomllib.loads((HERE / f"{name}.toml").read_text("utf-8")) for name in ("knowledge", "talk", "words")}
    words = [(english, chinese) for english, chinese in tables["words"]["words"]]
    phrases = [(english, chinese) for english, chinese in tables["words"]["phrases"]]

    def rng(purpose: str) -> random.Random:
        return random.Random(f"{seed} {purpose}")

    dialogues = [
        *facts(tables["knowledge"], rng("facts")),
        *sums(rng("sums")),
        *numbers(rng("numbers")),
        *counting(),
        *calendar(),
    ]
    dialogues += [*letters(words), *translations(words, phrases, rng("translations")), *copying(words, rng("copying"))]
    for dialogue in talk(tables["talk"]):
        dialogues += [dialogue] * REPEATS.get(dialogue.kind, SMALL_TALK_REPEATS)
    return dialogues


def training(seed: int) -> list[Dialogue]:
    """The training dialogues, distinct and shuffled."""
    kept = [dialogue for dialogue in clean_dialogues(seed) if not is_held_out(dialogue)]
    rng = random.Random(f"{seed} wrapping")
    made = [with_wrapping(dialogue, rng) for dialogue in kept]
    made += [with_wrapping(dialogue, rng) for dialogue in strung(kept, 4000, random.Random(f"{seed} strung"))]
    distinct = list({json.dumps(row(dialogue), ensure_ascii=False): dialogue for dialogue in made}.values())
    rng.shuffle(distinct)
    return distinct


def held_out(seed: int, per_kind: int) -> list[Dialogue]:
    """The examination: at most `per_kind` questions of each kind, none of them among the training dialogues."""
    rng = random.Random(f"{seed} held out")
    candidates = list({dialogue.unit: dialogue for dialogue in clean_dialogues(seed) if is_held_out(dialogue)}.values())
    rng.shuffle(candidates)
    asked = {tuple(turn.ask for turn in dialogue.turns) for dialogue in training(seed)}
    taken: dict[str, list[Dialogue]] = {}
    for dialogue in candidates:
        if tuple(turn.ask for turn in dialogue.turns) not in asked and len(taken.setdefault(dialogue.kind, [])) < per_kind:
            taken[dialogue.kind].append(dialogue)
    return [dialogue for kind in sorted(taken) for dialogue in taken[kind]]


def row(dialogue: Dialogue, open_end: bool = False) -> dict[str, Any]:
    """A dialogue as a row of OpenAI messages; with `open_end` as a question with its rule."""
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for turn in dialogue.turns:
        messages += [{"role": "user", "content": turn.ask}, {"role": "assistant", "content": turn.answer}]
    if not open_end:
        return {"messages": messages}
    last = dialogue.turns[-1]
    return {
        "kind": dialogue.kind,
        "language": dialogue.language,
        "messages": messages[:-1],
        "answer": last.answer,
        "expect": list(last.expect),
    }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), "utf-8")
    return len(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the training dialogues, or with --heldout the examination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heldout", action="store_true", help="write the examination in place of the training dialogues")
    parser.add_argument("--per-kind", type=int, default=60, help="questions of each kind in the examination")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.heldout:
        count = write(options.out, (row(dialogue, open_end=True) for dialogue in held_out(options.seed, options.per_kind)))
    else:
        count = write(options.out, (row(dialogue) for dialogue in training(options.seed)))
    print(f"{options.out}: {count} dialogues")


if __name__ == "__main__":
    main()
