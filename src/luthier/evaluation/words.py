"""Words, for the measures that compare texts: jieba's where a text is Chinese, else what lies between spaces and punctuation."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from luthier.errors import UserError

_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_LATIN = re.compile(r"[^\W_]+", re.UNICODE)
Language = Literal["en", "zh"]


def needed(package: str, what: str) -> Any:
    """A library of the extra `evaluate`, imported now.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{what} needs the package {package.partition('.')[0].replace('_', '-')}",
            hint="Install it with `pip install 'luthier[evaluate]'`.",
        ) from None


def language_of(texts: Sequence[str]) -> Language:
    """`zh` where at least a third of the letters are Chinese characters, else `en`."""
    whole = "".join(texts)
    letters = sum(character.isalpha() for character in whole)
    return "zh" if letters and len(_CHINESE.findall(whole)) * 3 >= letters else "en"


def words(text: str, language: Language) -> list[str]:
    """The words of a text in lower case, without punctuation.

    Raises:
        UserError: it is Chinese, and jieba is not installed.
    """
    if language == "en":
        return _LATIN.findall(text.casefold())
    return [word for word in _jieba().lcut(text.casefold()) if _LATIN.search(word)]


class Words:
    """Parts texts for rouge-score.

    Args:
        language: of the texts.
    """

    def __init__(self, language: Language) -> None:
        self.language = language

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return words(text, self.language)


@cache
def _jieba() -> Any:
    jieba = needed("jieba", "parting Chinese words")
    jieba.setLogLevel(logging.WARNING)  # it tells where its dictionary is kept
    return jieba
