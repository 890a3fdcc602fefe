"""The report as one HTML file: it fetches nothing, runs nothing, and can be mailed.

Pictures are SVG in the page. All that comes from the data is escaped by Jinja, private values are masked, and characters that would do
more than stand there are written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.doctor.examine import Examination
from luthier.data.doctor.kinds import KINDS, Finding
from luthier.data.doctor.row import talks
from luthier.data.doctor.summary import language_shares, ordered_tallies, verdict
from luthier.data.doctor.texts import CONTROLS, masked
from luthier.data.examples import Document, Example, Message

LISTED = 50
"""Problems of one kind that are listed."""
_CUT = 2_000
_MOST_TURNS = 12
_WIDTH, _BAR_HEIGHT, _GAP, _LABELS = 640, 18, 6, 150


@dataclass(frozen=True)
class Bar:
    """One bar of a picture, in its own coordinates."""

    y: int
    width: float
    label: str
    value: str


def page(examination: Examination, found: Mapping[str, Sequence[Finding]]) -> str:
    """The report.

    Args:
        examination: after its end.
        found: kind → problems to list, at most `LISTED` of which are.
    """
    from jinja2 import Environment, PackageLoader

    lengths = examination.tokens.lengths if examination.tokens else examination.lengths
    environment = Environment(
        loader=PackageLoader("luthier.data.doctor", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja").render(
        verdict=verdict(examination),
        clean=not examination.errors and not examination.unreadable,
        sources=examination.sources,
        unreadable=[str(error) for error in examination.unreadable],
        kinds=[(KINDS[name], tally, found.get(name, ())[:LISTED]) for name, tally in ordered_tallies(examination)],
        pictures=[
            ("Problems by kind, in rows", _bars([(name, tally.rows) for name, tally in ordered_tallies(examination)])),
            (f"Length in {lengths.unit}", _bars([(f"{least:,}–{most:,}", count) for least, most, count in lengths.bins()])),
            ("Languages, in rows", _bars(sorted(examination.languages.counts.items(), key=lambda item: -item[1]))),
        ],
        percentiles=lengths.percentiles(),
        unit=lengths.unit,
        languages=language_shares(examination),
        samples=[(str(origin), _turns(example)) for origin, example in examination.samples],
        width=_WIDTH,
        bar_height=_BAR_HEIGHT,
        labels=_LABELS,
    )


def _bars(values: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Horizontal bars, laid out."""
    most = max((value for _, value in values), default=0)
    room = _WIDTH - _LABELS - 90
    bars = [
        Bar(
            number * (_BAR_HEIGHT + _GAP),
            round(max(value / most * room, 1 if value else 0), 1) if most else 0,
            name,
            f"{value:,}",
        )
        for number, (name, value) in enumerate(values)
    ]
    return {"bars": bars, "height": len(bars) * (_BAR_HEIGHT + _GAP)}


def _turns(example: Example) -> list[tuple[str, str]]:
    """Role and text of the turns of an example, fit to be shown."""
    if isinstance(example, Document):
        return [("text", _shown(example.text))]
    turns: list[tuple[str, str]] = []
    for side, messages in talks(example):
        turns += [(f"{side} {message['role']}".strip(), _shown(_text(message))) for message in messages[:_MOST_TURNS]]
        if len(messages) > _MOST_TURNS:
            turns.append(("", f"… and {len(messages) - _MOST_TURNS} more turns"))
    return turns


def _text(message: Message) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls", ())]
    return "\n".join([*([message["content"]] if message["content"] else []), *calls])


def _shown(text: str) -> str:
    cut = text if len(text) <= _CUT else f"{text[:_CUT]} … ({len(text):,} characters)"
    shown = CONTROLS.sub(lambda found: f"<U+{ord(found[0]):04X}>", masked(cut))
    return shown.encode("utf-8", "replace").decode()
