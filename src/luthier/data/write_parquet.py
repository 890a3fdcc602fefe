"""Rows to a parquet file: one type for each column, found over all rows before the first is written.

A column is text, true or false, whole numbers, numbers, or lists and mappings of these, as the data sets on the hubs have them:
`messages` becomes a list of mappings. Where rows do not agree (a text here, a list there), and where mappings reach deep, as the schemas
of functions do, the column is text, in which everything but texts is written as JSON: parquet gives each mapping the keys of all others,
and so many keys belong to nobody. The readers take both forms.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow

_DEEPEST = 3
"""Mappings within mappings that keep their form: a message, a call in it, the function that is called."""
_ROWS, _CHARACTERS = 10_000, 1 << 25
"""A group of rows has at most so many, and at most one more than have so many characters as JSON."""
_EXACT, _LARGEST = 1 << 53, 1 << 63
"""Whole numbers up to the first are floating-point numbers as well; from the second on they are no numbers of 64 bits."""


def type_of(value: Any, levels: int = _DEEPEST) -> pyarrow.DataType | None:
    """The type of a value; None where it has none, so that it can only be written as JSON."""
    import pyarrow as pa

    if value is None:
        return pa.null()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
            return pa.int32()  # stands for whole numbers that may stand beside others, and is stored as int64
        return pa.int64() if -_LARGEST <= value < _LARGEST else None
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, list | tuple):
        items = reduce(common, (type_of(item, levels) for item in value), pa.null())
        return None if items is None else pa.list_(items)
    if isinstance(value, dict) and value and levels:
        return _struct((str(key), type_of(child, levels - 1)) for key, child in value.items())
    return None


def common(one: pyarrow.DataType | None, other: pyarrow.DataType | None) -> pyarrow.DataType | None:
    """The type that holds values of both types; None where there is none."""
    import pyarrow as pa

    if one is None or other is None or one == other:
        return one if other is not None else None
    for null, known in ((one, other), (other, one)):
        if pa.types.is_null(null):
            return known
    if pa.int32() in (one, other) and {one, other} <= {pa.int32(), pa.int64(), pa.float64()}:
        return one if other == pa.int32() else other
    if pa.types.is_list(one) and pa.types.is_list(other):
        items = common(one.value_type, other.value_type)
        return None if items is None else pa.list_(items)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in (*one, *other)}
        fields |= {field.name: common(field.type, fields[field.name]) for field in one}
        return _struct(fields.items())
    return None


def _struct(fields: Iterable[tuple[str, pyarrow.DataType | None]]) -> pyarrow.DataType | None:
    import pyarrow as pa

    known = list(fields)
    return None if any(kind is None for _, kind in known) else pa.struct(known)


def write_parquet(out: BinaryIO, lines: Iterable[bytes], types: Mapping[str, pyarrow.DataType | None]) -> None:
    """Write rows that wait as JSON lines.

    Args:
        out: the file.
        lines: each a mapping.
        types: of each column, in their order; None is text with JSON in it.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema([(name, _stored(kind)) for name, kind in types.items()])
    with ParquetWriter(out, schema) as file:
        for rows in _groups(lines):
            columns = [
                pa.array([row.get(name) if kind is not None else as_text(row.get(name)) for row in rows], schema.field(name).type)
                for name, kind in types.items()
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))


def as_text(value: Any) -> str | None:
    """A value of a column that is text."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _stored(kind: pyarrow.DataType | None) -> pyarrow.DataType:
    """The type as parquet has it: what is always empty counts as text."""
    import pyarrow as pa

    if kind is None or pa.types.is_null(kind):
        return pa.string()
    if kind == pa.int32():
        return pa.int64()
    if pa.types.is_list(kind):
        return pa.list_(_stored(kind.value_type))
    return pa.struct([(field.name, _stored(field.type)) for field in kind]) if pa.types.is_struct(kind) else kind


def _groups(lines: Iterable[bytes]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    size = 0
    for line in lines:
        rows.append(json.loads(line))
        size += len(line)
        if len(rows) == _ROWS or size >= _CHARACTERS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows
