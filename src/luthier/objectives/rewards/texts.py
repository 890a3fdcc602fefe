r"""Finding the final answer in a text, and comparing two of them as a reader would.

Models and data sets write the same result in many ways: `72`, `#### 72`, `\boxed{72}`, "72.0 dollars", "１，０００", "一千". What counts
of a text is *extracted*; what is left is *normalised* (Unicode NFKC for full-width forms, case, spaces, punctuation), and where both sides
are numbers, their values are compared, as exact fractions and not as floats.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable
from fractions import Fraction

import regex

MARK = "####"
"""Stands before the result in GSM8K and in data made like it."""
SECONDS = 1.0
"""Longest time that one search of a user's expression may take."""
_BOX = "\\boxed{"
_ARABIC = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]*\.?[0-9]+"
_SIGN, _EXPONENT, _UNDER = r"(?:(?<![\w.)\]])[-+])?", r"(?:[eE][-+]?[0-9]+)?", r"(?:\s?/\s?[0-9]+)?"
_CHINESE = "零〇一二两三四五六七八九十百千万亿"
_ARABIC_NUMBER = regex.compile(rf"{_SIGN}(?:{_ARABIC}){_EXPONENT}{_UNDER}")
_CHINESE_NUMBER = regex.compile(rf"[-+负]?[{_CHINESE}]+(?:点[{_CHINESE}]+)?")
_UNITS = regex.compile(r"^(?:us\$|[$¥€£]|rmb)\s?|\s?(?:%|[$¥€£]|元|美元)$", regex.IGNORECASE)
_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-"})
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_TENS = {"十": 10, "百": 100, "千": 1000}
_LONGEST = 400
"""Characters of the longest text that is read as a number; fractions of longer ones would cost more than they tell."""


def extract(text: str, ways: Iterable[str]) -> tuple[str, str] | None:
    """The first of these ways that finds something, and what it finds: `whole`, `marked`, `boxed` or `number`; None if none does."""
    finders: dict[str, Callable[[str], str | None]] = {
        "whole": str.strip,
        "marked": _marked,
        "boxed": _boxed,
        "number": _last_number,
    }
    return next(((way, found) for way in ways if (found := finders[way](text))), None)


def matched(text: str, pattern: str) -> str | None:
    """The last match of an expression, of that the first group if there is one.

    Raises:
        TimeoutError: it takes longer than `SECONDS`.
    """
    found = list(regex.finditer(pattern, text, timeout=SECONDS))
    if not found:
        return None
    return (found[-1][1] if found[-1].re.groups else found[-1][0]) or ""


def same(one: str, other: str, *, ignore: Collection[str], numbers: bool) -> bool:
    """Whether two answers are the same.

    Args:
        one: an answer.
        other: another.
        ignore: differences that do not count: `case`, `spaces`, `punctuation`, `width`.
        numbers: compare by value where both are numbers.
    """
    if numbers and (value := number(one)) is not None and value == number(other):
        return True
    return normal(one, ignore) == normal(other, ignore)


def normal(text: str, ignore: Collection[str]) -> str:
    """The text without the differences that do not count."""
    if "width" in ignore:
        text = unicodedata.normalize("NFKC", text)
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = "".join(" " if unicodedata.category(letter).startswith("P") else letter for letter in text)
    return " ".join(text.split()) if "spaces" in ignore else text.strip()


def number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else but a currency, a percent sign or a full stop; else None.

    The percent sign is taken for a unit, so `50%` is 50.
    """
    text = unicodedata.normalize("NFKC", text).translate(_MINUS).strip().rstrip("。").removesuffix(".").strip()
    text = _UNITS.sub("", _UNITS.sub("", text)).replace(r"\$", "").strip()
    if len(text) > _LONGEST:
        return None
    if _ARABIC_NUMBER.fullmatch(text):
        return _arabic(text)
    return _chinese(text) if _CHINESE_NUMBER.fullmatch(text) else None


def _arabic(text: str) -> Fraction | None:
    over, _, under = text.replace(",", "").replace(" ", "").partition("/")
    _, _, exponent = over.lower().partition("e")
    if len(exponent.strip("+-")) > 3:
        return None
    try:
        return Fraction(over) / int(under or "1")
    except (ValueError, ZeroDivisionError):
        return None


def _chinese(text: str) -> Fraction | None:
    """The value of Chinese numerals: 十二, 两千零五, 三亿, 一二三, 三点一四."""
    sign = -1 if text[0] in "负-" else 1
    whole, _, decimals = text.lstrip("负-+").partition("点")
    if any(letter not in _DIGITS for letter in decimals):
        return None
    after = Fraction(int("".join(str(_DIGITS[letter]) for letter in decimals) or "0"), 10 ** len(decimals))
    if all(letter in _DIGITS for letter in whole):
        return sign * (int("".join(str(_DIGITS[letter]) for letter in whole)) + after)
    total = below = digit = 0
    for letter in whole:
        if letter in _DIGITS:
            digit = _DIGITS[letter]
        elif letter in _TENS:
            below, digit = below + (digit or 1) * _TENS[letter], 0
        else:
            section = below + digit
            total = (total + section) * 10**8 if letter == "亿" else total + section * 10**4
            below = digit = 0
    return sign * (total + below + digit + after)


def _marked(text: str) -> str | None:
    _, mark, behind = text.rpartition(MARK)
    return behind.strip().split("\n")[0].strip() if mark else None


def _boxed(text: str) -> str | None:
    r"""What the last `\boxed{…}` holds, braces within it kept."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth = 0
    for place in range(start + len(_BOX) - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len(_BOX) : place].strip()
    return None


def _last_number(text: str) -> str | None:
    """The last number in digits; only where there is none, the last in Chinese numerals, for `一` is also a part of many words."""
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    found = _ARABIC_NUMBER.findall(text) or _CHINESE_NUMBER.findall(text)
    return found[-1] if found else None
