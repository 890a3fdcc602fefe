"""`--where`: what expressions say of rows, and that they do nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.data.examples import Origin
from luthier.data.where import Where
from luthier.errors import UserError

ORIGIN = Origin("rows.csv", 3, 1)
ROW = {
    "output": "Maple, mostly.",
    "score": 4,
    "department": "内科",
    "a-b": "x",
    "messages": [{"role": "user"}, {"role": "assistant"}],
}


@pytest.mark.parametrize(
    ("expression", "taken"),
    [
        ("len(output) > 5 and score >= 4", True),
        ('department in ("外科", "儿科")', False),
        ('"Maple" in output', True),
        ("words(output) == 2", True),
        (r'matches("^maple\\b", lower(output))', True),
        ('row["a-b"] == "x"', True),
        ('row.get("rank", 0) > 1', False),
        ('any(turn["role"] == "tool" for turn in messages)', False),
        ("messages[-1]['role'] == 'assistant'", True),
        ("not output.startswith('M') or score % 2 == 0", True),
        ("int(str(score) + '0') == 40", True),
        ("1 if score else 0", True),
    ],
)
def test_expressions(expression: str, taken: bool) -> None:
    assert Where(expression)(ROW, ORIGIN) is taken


def test_a_row_that_is_a_list_is_called_messages() -> None:
    assert Where("len(messages) == 1")([{"role": "user"}], ORIGIN)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("outptu == ''", 'row has no `outptu`. Did you mean `output`? A column that some rows lack is `row.get("outptu")`.'),
        ("output > 3", "'>' not supported between instances of 'str' and 'int'"),
        ("len(output", "cannot be read: '(' was never closed"),
        ("score = 3", "cannot be read: invalid syntax"),
        ("matches('(', output)", "cannot be evaluated: missing ), unterminated subpattern"),
        ("messages[7]", "cannot be evaluated: list index out of range"),
        ("1 / 0", "division by zero"),
        ("(" * 5_000, "is longer than 2,000 characters"),
    ],
)
def test_mistakes_are_one_line_with_their_place(expression: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        Where(expression)(ROW, ORIGIN)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--where")


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "output.__class__.__mro__",
        "().__class__.__bases__[0].__subclasses__()",
        "(lambda: 1)()",
        "output.format(1)",
        "'{0.__class__}'.format(output)",
        "f'{output!r:>99999999999}'",
        "'%99999999999d' % 1",
        "output.zfill(10 ** 10)",
        "output * 10 ** 10",
        "9 ** 9 ** 9",
        "[1] * 10 ** 10",
        "[i for i in range(10 ** 10)]",
        "str.__doc__",
        "eval('1')",
        "(x := 1)",
        "{**row}",
    ],
)
def test_nothing_dangerous_is_evaluated(expression: str) -> None:
    def evaluate() -> Any:
        return Where(expression)(ROW, ORIGIN)

    with pytest.raises(UserError):
        evaluate()
