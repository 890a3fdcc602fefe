"""`--where EXPR`: an expression over the columns of a row that says whether the row is taken.

    len(output) > 20 and department in ("内科", "外科")
    matches("^(how|what)", lower(instruction)) and row.get("score", 0) >= 4

Expressions are evaluated by simpleeval: comparisons, `and`, `or`, `not`, `in`, arithmetic, indexing, the functions below and a few
methods of texts and mappings. There is no assignment, import or lambda, and nothing that makes a large text of a small one: what is
in the tree is checked against a list before anything is evaluated, and simpleeval bounds numbers and texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Origin
from luthier.errors import UserError, did_you_mean

_FLAG = "--where"
_LONGEST = 2_000
_METHODS = {"startswith", "endswith", "isdigit", "isascii", "count", "find", "get", "split", "strip", "lower", "upper"}
_NODES = (
    *(ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Call, ast.Attribute, ast.Subscript, ast.Slice),
    *(ast.Constant, ast.Name, ast.List, ast.Tuple, ast.Set, ast.ListComp, ast.GeneratorExp, ast.comprehension),
    *(ast.operator, ast.boolop, ast.unaryop, ast.cmpop, ast.expr_context),
)


def _remainder(number: Any, divisor: Any) -> Any:
    if isinstance(number, str | bytes):
        raise TypeError("`%` is for numbers")
    return number % divisor


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


FUNCTIONS = {
    "len": len,
    "lower": str.lower,
    "upper": str.upper,
    "strip": str.strip,
    "words": lambda text: len(text.split()),
    "matches": _matches,
    "int": int,
    "float": float,
    "str": str,
    "min": min,
    "max": max,
    "abs": abs,
    "any": any,
    "all": all,
}
"""What expressions may call: `words` counts words, `matches(pattern, text)` looks for a regular expression."""


class Where:
    """A compiled expression; call it with a row.

    Args:
        expression: the text after `--where`.

    Raises:
        UserError: it is no expression.
    """

    def __init__(self, expression: str) -> None:
        from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes

        if len(expression) > _LONGEST:
            raise UserError(f"is longer than {_LONGEST:,} characters", where=_FLAG)
        try:
            self._tree: Any = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            said = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
            raise UserError(f"cannot be read: {said}", where=f"{_FLAG} {expression[:80]!r}") from error
        for node in ast.walk(self._tree):
            if not isinstance(node, _NODES) or (isinstance(node, ast.Attribute) and node.attr not in _METHODS):
                said = f"`.{node.attr}`" if isinstance(node, ast.Attribute) else f"a {type(node).__name__}"
                raise UserError(
                    f"may not hold {said}", where=f"{_FLAG} {expression[:80]!r}", hint=f"Methods: {', '.join(sorted(_METHODS))}."
                )
        self._text = expression
        self._evaluator = EvalWithCompoundTypes(functions=dict(FUNCTIONS), operators={**DEFAULT_OPERATORS, ast.Mod: _remainder})

    def __call__(self, row: Any, origin: Origin) -> bool:
        """Whether the row is taken.

        Raises:
            UserError: the expression names a column that the row has not, does something that is not allowed, or fails.
        """
        from simpleeval import InvalidExpression, NameNotDefined

        names: Mapping[str, Any] = row if isinstance(row, dict) else {"messages": row}
        self._evaluator.names = {**{"None": None, "True": True, "False": False}, **names, "row": names}
        try:
            return bool(self._evaluator.eval(self._text, previously_parsed=self._tree))
        except NameNotDefined as error:
            name = str(getattr(error, "name", "?"))
            hint = f'{did_you_mean(name, map(str, names))} A column that some rows lack is `row.get("{name}")`.'
            raise UserError(f"row has no `{name}`", where=f"{_FLAG}, {origin}", hint=hint) from error
        except (
            InvalidExpression,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            re.error,
            RecursionError,
        ) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"cannot be evaluated: {said[:200]}", where=f"{_FLAG}, {origin}") from error
