"""Coverage-guided fuzzing of readers, formats, doctor and converter with atheris (libFuzzer).

    python tests/data/fuzz_guided.py CORPUS_FOLDER -max_total_time=60

The first byte of an input chooses the suffix of the file, the rest is the file. A bug is any exception other than the ones that tell a
user's mistake.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["luthier.data"]):
    from luthier.data.convert import Plan, convert
    from luthier.data.doctor import Examination
    from luthier.data.doctor.mend import Mender
    from luthier.data.doctor.page import page
    from luthier.data.formats import FORMATS
    from luthier.data.problems import Problems
    from luthier.data.read import read_rows
    from luthier.data.read_examples import choose_format
    from luthier.data.write import RowWriter

from luthier.errors import UserError
from luthier.recipe.schema import Source

SUFFIXES = ("json", "jsonl", "csv", "tsv", "txt", "parquet", "json.gz", "jsonl.zst", "bin", "md")
FOLDER = Path(tempfile.mkdtemp())
os.chdir(FOLDER)


def one_input(data: bytes) -> None:
    """Examine, mend, report and convert one file."""
    if len(data) < 2:
        return
    path = FOLDER / f"f.{SUFFIXES[data[0] % len(SUFFIXES)]}"
    path.write_bytes(data[1:])
    source = Source(path=str(path))
    with (
        contextlib.suppress(UserError),
        contextlib.redirect_stdout(io.StringIO()),
        RowWriter(FOLDER / "fixed.jsonl", replace=True) as writer,
    ):
        examination = Examination(on_row=Mender(writer))
        found = {finding.kind.name: [finding] for finding in examination.findings([source]) if str(finding)}
        page(examination, found)
    with contextlib.suppress(UserError), RowWriter(FOLDER / "out.jsonl", replace=True) as writer:
        chosen, rows = choose_format(source, read_rows(path))
        target = list(FORMATS.values())[data[-1] % len(FORMATS)]
        convert(rows, Plan(chosen, target), writer, Problems("skip"))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
