"""In which script a text is written, as a stand-in for its language: cheap, certain, and enough to see a mixture.

Japanese is told from Chinese by kana. Latin stands for all languages written so; telling English from Spanish would need a model.
"""

from __future__ import annotations

import re

from luthier.data.examples import Origin

_SAMPLE = 1_000
_FEWEST = 12
"""Letters (ideographs count four) below which a text is of no language."""
_SCRIPTS = {
    "Chinese": "\u3400-\u4dbf\u4e00-\u9fff",
    "Japanese": "\u3040-\u30ff",
    "Korean": "\u1100-\u11ff\uac00-\ud7af",
    "Cyrillic": "\u0400-\u052f",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Hebrew": "\u0590-\u05ff",
    "Greek": "\u0370-\u03ff",
    "Latin": "A-Za-z\u00c0-\u024f",
}
LANGUAGES = (*_SCRIPTS, "other")
_PATTERNS = {name: re.compile(f"[{ranges}]") for name, ranges in _SCRIPTS.items()}
_LETTERS = re.compile(r"[A-Za-z]")
_IDEOGRAPHIC = ("Chinese", "Japanese", "Korean")


def language(text: str) -> str:
    """The script of most of a text, empty when it has too few letters."""
    sample = text[:_SAMPLE]
    if sample.isascii():
        return "Latin" if len(_LETTERS.findall(sample)) >= _FEWEST else ""
    counts = {name: len(pattern.findall(sample)) * (4 if name in _IDEOGRAPHIC else 1) for name, pattern in _PATTERNS.items()}
    if counts["Japanese"] * 5 >= counts["Chinese"]:
        counts["Japanese"] += counts["Chinese"] if counts["Japanese"] else 0
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= _FEWEST else ""


class Languages:
    """Counts the rows of each language, and remembers where the rare ones are.

    Attributes:
        counts: language → rows, `other` for rows that have none.
    """

    _REMEMBERED = 1_000
    _RARE, _MAIN, _ENOUGH = 0.02, 0.9, 100

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._places: dict[str, list[tuple[Origin, str | None]]] = {}

    def add(self, text: str, origin: Origin, name: str | None) -> None:
        """Take note of one row."""
        found = language(text) or "other"
        self.counts[found] = count = self.counts.get(found, 0) + 1
        if count <= self._REMEMBERED:
            self._places.setdefault(found, []).append((origin, name))

    def strangers(self) -> list[tuple[Origin, str | None, str]]:
        """Rows in a language that hardly any other row is in, with what to say of them."""
        told = {name: count for name, count in self.counts.items() if name != "other"}
        total = sum(told.values())
        main = max(told, key=lambda name: told[name], default="")
        if total < self._ENOUGH or told[main] < self._MAIN * total:
            return []
        return [
            (origin, row, f"is {name}, while {told[main] / total:.1%} of the rows are {main}")
            for name, count in told.items()
            if name != main and count <= self._RARE * total
            for origin, row in self._places[name]
        ]
