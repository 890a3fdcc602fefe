"""Every file of the reference data, traps and all, gives what is pinned in `shared.yaml`, or is refused with the reason given there.

What LLaMA-Factory's own README says of its files is tested in `test_registry.py` with its `dataset_info.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.data.problems import Problems
from luthier.data.read_examples import read_examples
from luthier.errors import UserError
from luthier.recipe.schema import Source

from .walk import OTHERS, PINS, files, fixed_encoder, measure

LARGE = ("pretrain/full/", "sft/alpaca_data_en_51k")
PINNED: dict[str, dict[str, Any]] = yaml.safe_load(PINS.read_text("utf-8"))
FOLDERS = sorted({name.partition("/")[0] for name in PINNED})


def untokenised(pins: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pins.items() if key != "tokens"}


def test_every_file_is_pinned(shared: Path) -> None:
    assert files(shared / "data") == list(PINNED)


@pytest.mark.parametrize("folder", FOLDERS)
def test_examples_turns_and_reasons(shared: Path, folder: str) -> None:
    for name in (name for name in PINNED if name.partition("/")[0] == folder and not name.startswith(LARGE)):
        assert measure(shared / "data", name) == untokenised(PINNED[name]), name


@pytest.mark.slow
def test_supervised_tokens_and_the_large_files(shared: Path) -> None:
    encoder = fixed_encoder(shared / "data")
    for name, pins in PINNED.items():
        assert measure(shared / "data", name, encoder) == pins, name


@pytest.mark.parametrize("folder", OTHERS)
def test_what_is_no_data_is_read_or_refused_and_nothing_else(shared: Path, folder: str) -> None:
    for path in (path for path in (shared / "data" / folder).rglob("*") if path.is_file() and path.stat().st_size < 1_000_000):
        try:
            list(read_examples(Source(path=str(path)), Problems("skip")))
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 (some are read)
