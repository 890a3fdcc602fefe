"""`luthier classify`: what a classifier says of the texts in a file, as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.errors import UserError

TOGETHER = 256
"""Texts between two lines that are written."""


def classify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, a model folder, or an adapter folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows with a text: json, jsonl, csv, parquet, or a text file.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON lines here. Default: the terminal.")] = None,
    column: Annotated[str, typer.Option(metavar="NAME", help="The column that holds the text.")] = "text",
    checkpoint: Annotated[
        int | None, typer.Option(metavar="N", help="The checkpoint of this step instead of the final weights.")
    ] = None,
) -> None:
    """Say of each text in a file what label it has, and how likely each label is."""
    from luthier.models.scoring import Classifier
    from luthier.workshop import load

    rows = _rows(file, column)
    first = next(rows, None)  # a wrong file is told before a large model is read
    if first is None:
        raise UserError("there is no row in it", where=str(file))
    model = load(name, checkpoint=checkpoint)
    if not isinstance(model, Classifier):
        raise UserError("this model gives no labels", where=name, hint="Train one with `stage: classify`.")
    with out.open("w", encoding="utf-8") if out else nullcontext(sys.stdout) as target:
        batch = [first, *islice(rows, TOGETHER - 1)]
        while batch:
            for (text, row), said in zip(batch, model.predict([text for text, _ in batch]), strict=True):
                line = {**row, column: text, "label": said.label, "scores": {k: round(v, 6) for k, v in said.scores.items()}}
                print(json.dumps(line, ensure_ascii=False, default=str), file=target)
            batch = list(islice(rows, TOGETHER))


def _rows(file: Path, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Text and whole row of each row of a file."""
    from luthier.data.problems import RowProblem
    from luthier.data.sources import rows_of
    from luthier.recipe.schema import Source

    for origin, row in rows_of(Source(path=str(file))):
        if isinstance(row, RowProblem):
            raise UserError(row.message, where=str(origin))
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            known = ", ".join(f"`{key}`" for key in row) if isinstance(row, dict) else "none"
            raise UserError(f"no text in `{column}`", where=str(origin), hint=f"Its columns are {known}; choose with `--column`.")
        yield text, row
