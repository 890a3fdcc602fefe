"""Every method on every family: it learns, and what it saves is what others load."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import UserError
from tests.method_table import CELLS, FAMILIES, METHODS, check_cell, refusal

QUICK = [(method, list(FAMILIES)[number % len(FAMILIES)]) for number, method in enumerate(METHODS)]


@pytest.mark.parametrize(("method", "family"), QUICK)
def test_a_diagonal_of_the_table(method: str, family: str, tmp_path: Path) -> None:
    try_cell(method, family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family"), [cell for cell in CELLS if cell not in QUICK])
def test_the_rest_of_the_table(method: str, family: str, tmp_path: Path) -> None:
    try_cell(method, family, tmp_path)


def try_cell(method: str, family: str, folder: Path) -> None:
    if (told := refusal(method, family)) is None:
        check_cell(method, family, folder)
        return
    with pytest.raises(UserError) as caught:
        check_cell(method, family, folder)
    assert told in str(caught.value)
