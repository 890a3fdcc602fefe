"""Self-Instruct seed tasks: an instruction with several instances of input and output, each an example (Wang et al. 2022). Read only.

{"id": …, "instruction": …, "instances": [{"input": …, "output": …}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats import alpaca
from luthier.data.formats.fields import kind, structure_of, text_of
from luthier.data.formats.written import read_only
from luthier.data.problems import RowError

NAME = "seed_tasks"
ABOUT = "Self-Instruct seed tasks: an instruction with instances (read only)"
COLUMNS = ("instruction", "instances")
MAKES = (Conversation,)


def matches(row: Any) -> bool:
    """Whether the row has an instruction with instances."""
    return isinstance(row, dict) and "instruction" in row and isinstance(row.get("instances"), list)


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation for each instance.

    Raises:
        RowError: no instances, or one without an answer.
    """
    instruction, column = text_of(row, "instruction", columns, required=True), columns.get("instances", "instances")
    instances = structure_of(row.get(column), f"`{column}`")
    if not isinstance(instances, list) or not instances or not all(isinstance(each, dict) for each in instances):
        raise RowError(f"`{column}` is {kind(instances)}, it should be a list of instances")
    rows = ({"instruction": instruction, "input": each.get("input"), "output": each.get("output")} for each in instances)
    return [example for each in rows for example in alpaca.parse(each, origin, {})]


def write(_example: Example) -> NoReturn:
    """Seed tasks are only read.

    Raises:
        RowError: always.
    """
    read_only(NAME)
