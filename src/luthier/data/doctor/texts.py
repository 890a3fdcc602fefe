r"""What can be wrong with any text of a row: damaged encoding, odd characters, placeholders, and what looks private.

*Encoding damage* is text that was decoded wrongly once: `Ã©` for `é`, `锟斤拷` (UTF-8 replacement characters read as GBK), U+FFFD, or
private-use characters as PDF files give them. Whether Latin letters are mojibake is judged by ftfy's tables (Speer, 2019).
*Odd characters* do more than stand there: C0 and C1 controls other than tab and line ends, zero-width spaces, byte order marks inside
a text, and marks that turn the direction of writing. Joiners that emoji, Persian and Indic scripts need are none.

Most texts hold nothing of all this, so each check first looks for a character without which it cannot fire.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from luthier.data.doctor.row import Row, strings
from luthier.data.problems import printable

Found = Iterator[tuple[str, str]]
"""Kind and what, for each problem in a text."""

CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
"""Odd characters."""
_HTML = "A|B|I|P|BR|HR|LI|TD|TH|TR|UL|OL|HTML|HEAD|BODY|TITLE|DIV|SPAN|TABLE|FORM|INPUT|IMG|LINK|META|SCRIPT|STYLE|CENTER|FONT|PRE|CODE"
_TOKENS = "EOS|BOS|PAD|UNK|MASK|SEP|CLS|INST|SYS|TEXT|CR|LF|TAB|ENTER|ESC"
PLACEHOLDER = re.compile(rf"\{{\{{\s*[\w.\- ]{{1,40}}\s*\}}\}}|<(?!(?:{_HTML}|{_TOKENS})>)[A-Z][A-Z_]{{1,30}}>")
"""`{{name}}` and `<NAME>`; tags of HTML and tokens of models are none."""
_REPLACED = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯|[\ue000-\uf8ff]")
_MOJIBAKE = re.compile("[\xc2-\xf4\u0152-\u0192\u0400-\u04ff][\x80-\xbf\u2010-\u203a\u20ac\u2122\u0152-\u017e\u02c6\u02dc]")
SPECIAL = re.compile(
    r"<\|[A-Za-z0-9_]{2,40}\|>|<｜[^｜]{1,30}｜>|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
)
"""Tokens that open and close turns in chat models."""

EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,12}(?![\w@])", re.ASCII)
_FICTIONAL = re.compile(r"@(?:[\w.-]*\.)?(?:example|test|invalid|localhost|domain|email|mail)\.|@(?:company|abc|xyz)\.", re.I)
PHONE = re.compile(
    r"(?<![\d.+/-])(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # mobile, China
    r"|0\d{2,3}-\d{7,8}"  # landline, China
    r"|\+\d{1,3}[ -]\(?\d{1,4}\)?(?:[ -]\d{2,4}){2,4}"  # international
    r"|(?:\(\d{3}\) ?|\d{3}[-.])(?!555)\d{3}[-.]\d{4}"  # North America; 555 is for fiction
    r")(?![\d-])"
)
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|hf_[A-Za-z0-9]{30,}|xox[abprs]-[\w-]{10,}"
    r"|AIza[\w-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{5,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
    r"|(?i:\b(?:api[_-]?key|secret|access[_-]?token|password|passwd)\b)[\"']?\s*[:=]\s*[\"'][^\"'\s]{8,}[\"']"
)
_SECRET_SIGNS = ("AKIA", "sk-", "gh", "hf_", "xox", "AIza", "eyJ", "-----BEGIN", "=", ":")
_DIGITS = re.compile(r"\d\d")


def mask(value: str) -> str:
    """A private value so that it can be found again but not read: its first two characters and its length."""
    return f"{printable(value[:2])}… ({len(value)} characters)"


def masked(text: str) -> str:
    """A text without the private values in it."""
    for pattern in (SECRET, EMAIL, PHONE):
        text = pattern.sub(lambda found: mask(found[0]), text)
    return text


def is_mojibake(text: str) -> bool:
    """Whether ftfy holds some of the text to be UTF-8 that was read as something else."""
    if text.isascii() or not _MOJIBAKE.search(text):
        return False
    from ftfy.badness import is_bad

    return bool(is_bad(text))


def encoding(text: str) -> Found:
    """Characters that were decoded wrongly."""
    if text.isascii():
        return
    if found := _REPLACED.search(text):
        yield "lost-character", f"holds {printable(found[0])}, where a character was lost"
    elif is_mojibake(text):
        shown = masked(text)
        place = _MOJIBAKE.search(shown)
        begin = max(place.start() - 10, 0) if place else 0
        yield "mojibake", f"was decoded wrongly once: {printable(shown[begin : begin + 30])}"


def control(text: str) -> Found:
    """Characters that do more than stand there."""
    if text.isprintable():
        return
    names = dict.fromkeys(f"U+{ord(letter):04X}" for letter in CONTROLS.findall(text))
    if names:
        yield "control", f"holds {', '.join(list(names)[:4])}{' …' if len(names) > 4 else ''}"


def placeholder(text: str) -> Found:
    """`{{name}}` or `<NAME>` that nobody filled in."""
    if "{{" not in text and "<" not in text:
        return
    names = dict.fromkeys(PLACEHOLDER.findall(text))
    if names:
        yield "placeholder", f"holds {', '.join(f'`{printable(name)}`' for name in list(names)[:4])}"


def secret(text: str) -> Found:
    """Keys and passwords."""
    if any(sign in text for sign in _SECRET_SIGNS) and (found := SECRET.search(text)):
        yield "secret", f"holds what looks like a secret: {mask(found[0])}"


def email(text: str) -> Found:
    """Addresses; those of `example.com` and the like belong to nobody."""
    if "@" in text:
        found = next((found for found in EMAIL.findall(text) if not _FICTIONAL.search(found)), None)
        if found:
            yield "email", f"holds what looks like an e-mail address: {mask(found)}"


def phone(text: str) -> Found:
    """Phone numbers of China, North America, and international ones with `+`."""
    if _DIGITS.search(text) and (found := PHONE.search(text)):
        yield "phone", f"holds what looks like a phone number: {mask(found[0])}"


CHECKS: tuple[Callable[[str], Found], ...] = (encoding, control, placeholder, secret, email, phone)
"""The checks of a text."""


def check_texts(row: Row) -> None:
    """All checks on all texts of a row; each kind once for each text."""
    for place, text in strings(row.value):
        for check in CHECKS:
            for kind, what in check(text):
                row.find(kind, what, f"`{printable(place)}`")
