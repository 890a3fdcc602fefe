"""What counts as the same answer, in English and Chinese, and what does not."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.objectives.rewards.texts import extract, normal, number, same
from tests.objectives.rewards.answers import value

GSM8K = {"type": "exact_match", "extract": ["marked", "number"]}
NUMBER = {"type": "exact_match", "extract": "number"}
BOXED = {"type": "exact_match", "extract": ["boxed", "number"]}
LETTER = {"type": "exact_match", "pattern": r"\b([A-D])\b"}
ENDLESS = "(a|aa)+$"
STRICT = {"type": "exact_match", "ignore": [], "numbers": False}
ASIDE = {"type": "exact_match", "ignore": ["case", "spaces", "punctuation", "width"]}


@pytest.mark.parametrize(
    ("written", "text", "reference", "expected"),
    [
        ("exact_match", "  Paris\n", "paris", 1),
        ("exact_match", "Paris", "London", 0),
        ("exact_match", "New   York", "new york", 1),
        ("exact_match", "北京", "北京", 1),
        ("exact_match", "北京。", "北京", 0),
        ("exact_match", "ＡＢＣ１２３", "abc123", 1),
        ("exact_match", "", "", 0),
        ("exact_match", "1,000", "1000", 1),
        ("exact_match", "1000.00", "1000", 1),
        ("exact_match", "$1,000.50", "1000.5", 1),
        ("exact_match", "1000 元", "1000", 1),
        ("exact_match", "￥１，０００", "1000", 1),
        ("exact_match", "50%", "50", 1),
        ("exact_match", "0.5", "1/2", 1),
        ("exact_match", "−5", "-5", 1),
        ("exact_match", "5", "-5", 0),
        ("exact_match", "1e3", "1000", 1),
        ("exact_match", "0.30000000000000004", "0.3", 0),
        ("exact_match", "四十六", "46", 1),
        ("exact_match", "两千零五", "2005", 1),
        ("exact_match", "一亿三千万", "130000000", 1),
        ("exact_match", "三点一四", "3.14", 1),
        ("exact_match", "负十二", "-12", 1),
        (STRICT, "Paris", "paris", 0),
        (STRICT, "46", "46.0", 0),
        (STRICT, " 46 ", "46", 1),
        (ASIDE, "“Yes!”", "yes", 1),
        (ASIDE, "《红楼梦》。", "红楼梦", 1),
        (GSM8K, "9 × 2 = 18 dollars a day.\n#### 18", "18", 1),
        (GSM8K, "She earns $18.", "9 * 2\n#### 18", 1),
        (GSM8K, "#### 1,080 \nmore 7", "1080", 1),
        (GSM8K, "#### 17\nno, 18", "18", 0),
        (GSM8K, "I do not know.", "18", 0),
        (NUMBER, "34 加 12 等于 46。", "46", 1),
        (NUMBER, "34 加 12 等于 46，一共四十六。", "46", 1),
        (NUMBER, "答案是四十六。", "46", 1),
        (NUMBER, "12-7=5", "5", 1),
        (NUMBER, "x = -5", "-5", 1),
        (NUMBER, "It is 3/4 of 8.", "8", 1),
        (NUMBER, "So 3/4.", "0.75", 1),
        (NUMBER, "1,2", "2", 1),
        (BOXED, r"so $\boxed{\frac{1}{2}}$", r"\frac{1}{2}", 1),
        (BOXED, "so it is 12", r"\boxed{12}", 1),
        (BOXED, r"\boxed{2}", r"\frac{1}{2}", 0),
        (BOXED, r"first \boxed{1}, no: \boxed{12}", "12", 1),
        (BOXED, r"\boxed{12", "12", 1),
        (LETTER, "The answer is (B), not A... B", "B", 1),
        (LETTER, "选 C", "C", 1),
        (LETTER, "none", "A", 0),
        ("exact_match", "46", None, "the prompt has no reference"),
    ],
)
def test_cases(written, text, reference, expected):
    assert value(written, text, reference) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1e999999999",
        "9" * 100_000,
        "1/0",
        "1/" + "0" * 300,
        "亿" * 300,
        "," * 50_000,
        "1," * 50_000,
        "-" * 50_000,
        "点",
        "\\boxed{" * 20_000,
    ],
)
def test_hostile_numbers_are_wrong_and_quick(text):
    start = time.process_time()
    assert value(NUMBER, text, "46") == 0
    assert value(BOXED, text, "46") == 0
    assert time.process_time() - start < 2


def test_an_expression_that_never_ends_is_bad():
    assert value({"type": "exact_match", "pattern": ENDLESS}, "a" * 60 + "b", "a") == "the pattern takes too long"


@given(st.integers(-(10**12), 10**12))
def test_ways_to_write_a_whole_number(n):
    written = [str(n), f"{n:,}", f"{n}.0", f"  {n}。", f"${n}" if n >= 0 else str(n), f"#### {n:,}"]
    assert all(number(text) == n for text in written[:5])
    assert extract(f"It is {n:,}.", ["number"]) == ("number", f"{n:,}")
    assert extract(f"{n + 1}\n{written[5]}", ["boxed", "marked", "number"]) == ("marked", f"{n:,}")


def chinese(n: int) -> str:
    """Chinese numerals of a number below 10^12, written as they are spoken."""
    digits, units = "零一二三四五六七八九", ["", "十", "百", "千"]

    def section(part: int) -> str:
        said, gap = "", False
        for place in (3, 2, 1, 0):
            digit = part // 10**place % 10
            if digit:
                said += ("零" if gap and said else "") + digits[digit] + units[place]
                gap = False
            else:
                gap = True
        return said

    said = ""
    for power, unit in ((8, "亿"), (4, "万"), (0, "")):
        part = n // 10**power % 10**4
        if part:
            said += ("零" if said and part < 1000 else "") + section(part) + unit
    return said or "零"


@given(st.integers(0, 10**12 - 1))
def test_chinese_numerals_mean_what_they_say(n):
    assert number(chinese(n)) == n


@given(st.fractions(), st.sampled_from(["{}", " {} ", "{}."]))
def test_fractions_are_exact(fraction, form):
    assert number(form.format(fraction)) == Fraction(fraction)


@given(st.text(max_size=60), st.text(max_size=60))
def test_sameness_is_symmetric_and_what_is_normal_stays(one, other):
    ignore = ["case", "spaces", "width"]
    assert same(one, other, ignore=ignore, numbers=True) == same(other, one, ignore=ignore, numbers=True)
    assert same(one, one, ignore=ignore, numbers=True)
    assert normal(normal(one, ["spaces"]), ["spaces"]) == normal(one, ["spaces"])
    for way in ("whole", "marked", "boxed", "number"):
        found = extract(one, [way])
        assert found is None or found[1]
