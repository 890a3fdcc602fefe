"""An examination told: a table in the terminal, plain data, and one HTML file that fetches nothing, runs nothing, and can be mailed.

`evaluation.json` has the numbers, `items/TASK.jsonl` all that was asked and answered (of base and tuned on one line), `report.html`
both, for readers of English and of Chinese. All that models or data wrote is escaped by Jinja, and stands in the terminal without
control characters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.evaluation.examination import Examined, Found, Report
from luthier.evaluation.statistics import Compared, Estimate, Measure
from luthier.files import write_atomic, write_json

SHOWN, CUT = 20, 1500
"""Items of a task that are shown in the HTML report, and characters of each text."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
Row = tuple[str, str, str, str, str, str]


def number(value: float, measure: Measure, *, signed: bool = False) -> str:
    """A value as it is told: per cent with two digits, or four digits that count."""
    if not math.isfinite(value):
        return "–"
    if measure.percent:
        return f"{100 * value:+.2f}" if signed else f"{100 * value:.2f}"
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def told(found: Estimate | None, measure: Measure, *, signed: bool = False) -> str:
    """A value with its interval."""
    if found is None:
        return ""
    value = number(found.value, measure, signed=signed)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{number(found.low, measure, signed=signed)}, {number(found.high, measure, signed=signed)}]"


def sign(found: Compared, measure: Measure) -> str:
    """`better` or `worse` where the interval of the difference lies on one side of zero, else the empty string."""
    if not found.sure or found.difference is None:
        return ""
    return "better" if (found.difference.value > 0) == measure.higher else "worse"


def rows(report: Report, *, groups: bool = False) -> Iterator[Row]:
    """Lines of the table: task, measure, base, tuned, difference, items; with `groups` those of parts, too."""
    for task in report.tasks:
        for one in task.found:
            yield _row(task.title, one.measure.name + (" %" if one.measure.percent else ""), one.measure, one.compared)
            for name, part in one.groups.items() if groups else ():
                yield _row("", f"  {name}", one.measure, part)


def table(report: Report) -> None:
    """Print the table, and what there is to say of it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    both = len(report.models) == 2
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    grid = Table(box=None, padding=(0, 2, 0, 0))
    head = ("TASK", "MEASURE", *(("BASE", "TUNED", "DIFFERENCE") if both else ("VALUE",)), "ITEMS")
    for title in head:
        grid.add_column(title, no_wrap=not console.is_terminal, justify="right" if title == "ITEMS" else "left")
    for task, name, base, tuned, difference, items in rows(report):
        values = (base, tuned, difference) if both else (base or tuned,)
        grid.add_row(*(Text(harmless(cell), style=_style(cell)) for cell in (task, name, *values, items)))
    console.print(", ".join(f"{which}: {harmless(name)}" for which, name in report.models.items()))
    console.print(grid)
    for note in (f"{task.title}: {note}" for task in report.tasks for note in task.notes):
        console.print(harmless(note))
    console.print("In brackets: 95 % of bootstrap resamples" + (", of the difference in pairs." if both else "."))


def write_report(report: Report, folder: Path) -> None:
    """Write `evaluation.json`, `report.html` and `items/` into a folder, which is made if need be.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        (folder / "items").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made ({error.strerror})", where=str(folder)) from None
    write_json(folder / "evaluation.json", report.as_dict())
    for task in report.tasks:
        lines = [json.dumps(line, ensure_ascii=False) for line in items(task)]
        file = re.sub(r"[^\w.-]", "-", task.title)
        write_atomic(folder / "items" / f"{file}.jsonl", "".join(f"{line}\n" for line in lines))
    write_atomic(folder / "report.html", page(report))


def items(task: Examined) -> Iterator[dict[str, Any]]:
    """What happened with each item: of two models what they share, and what each said."""
    outcomes = {which: one for which, one in (("base", task.base), ("tuned", task.tuned)) if one is not None}
    for each in zip_longest(*(one.items for one in outcomes.values()), fillvalue={}):
        first: Mapping[str, Any] = each[0]
        shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in each)}
        own = {
            which: {key: value for key, value in item.items() if key not in shared or key in ("answer", "right")}
            for which, item in zip(outcomes, each, strict=True)
        }
        yield {key: value for key, value in shared.items() if key not in ("answer", "right")} | own


def page(report: Report) -> str:
    """The HTML report."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("luthier.evaluation", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        models=report.models,
        both=len(report.models) == 2,
        seed=report.seed,
        tasks=[
            {
                "title": harmless(task.title),
                "notes": [harmless(note) for note in task.notes],
                "measures": [_shown(one) for one in task.found],
                "items": [_item(item) for _, item in zip(range(SHOWN), items(task), strict=False) if "question" in item],
            }
            for task in report.tasks
        ],
    )


def harmless(text: str) -> str:
    """A text without characters that would do more than stand there."""
    return _CONTROL.sub("\ufffd", text)


def _row(title: str, name: str, measure: Measure, found: Compared) -> Row:
    difference = told(found.difference, measure, signed=True)
    verdict = sign(found, measure)
    return (
        title,
        name,
        told(found.base, measure),
        told(found.tuned, measure),
        f"{difference} {verdict}".strip(),
        f"{found.items:,}" if found.items else "",
    )


def _style(cell: str) -> str:
    return "green" if cell.endswith(" better") else "red" if cell.endswith(" worse") else ""


def _shown(one: Found) -> dict[str, Any]:
    measure = one.measure
    parts = [(name, *_row("", "", measure, part)[2:]) for name, part in one.groups.items()]
    return {
        "name": measure.name + (" (%)" if measure.percent else ""),
        "higher": measure.higher,
        "cells": _row("", "", measure, one.compared)[2:],
        "sign": sign(one.compared, measure),
        "bars": _bars(one.compared),
        "groups": parts,
    }


def _bars(found: Compared) -> list[dict[str, Any]]:
    """Base and tuned as points with their intervals, from 0 to 100 across what both need."""
    known = [
        (which, one) for which, one in (("base", found.base), ("tuned", found.tuned)) if one is not None and one.low is not None
    ]
    edges = [edge for _, one in known for edge in (one.low, one.high) if edge is not None]
    if not edges or not all(map(math.isfinite, edges)):
        return []
    low, width = min(edges), (max(edges) - min(edges)) or 1.0

    def place(value: float | None) -> float:
        return round(5 + 90 * ((value or 0.0) - low) / width, 2)

    return [{"which": which, "at": place(one.value), "low": place(one.low), "high": place(one.high)} for which, one in known]


def _item(item: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of an item."""
    said = {
        which: {
            "answer": _text(item[which].get("answer", item.get("answer", ""))),
            "right": item[which].get("right", item.get("right")),
            "judge": [_text(text) for text in item[which].get("judge", ())],
        }
        for which in ("base", "tuned")
        if which in item
    }
    reference = item.get("reference")
    return {"question": _text(item["question"]), "reference": "" if reference is None else _text(reference), "said": said}


def _text(value: Any) -> str:
    text = harmless(str(value))
    return text if len(text) <= CUT else f"{text[:CUT]} …"
