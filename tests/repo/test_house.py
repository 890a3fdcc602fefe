"""Promises about the repository itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

PICKLES = re.compile(r"\bimport pickle\b|\btorch\.load\((?![^()]*weights_only=True)|trust_remote_code\s*=\s*True")
LIMIT = 500


@pytest.fixture(scope="module")
def sources(root):
    return sorted((root / "src/luthier").rglob("*.py"))


def test_files_can_be_read_in_one_sitting(sources, root):
    long = {path.relative_to(root): len(path.read_text("utf-8").splitlines()) for path in sources}
    assert not {path: count for path, count in long.items() if count > LIMIT}


def test_nothing_is_unpickled_and_no_remote_code_runs(sources):
    assert not [path for path in sources if PICKLES.search(path.read_text("utf-8"))]


def test_every_module_says_what_it_is_about(sources):
    assert not [path for path in sources if not re.match(r'r?"""[^"\s]', path.read_text("utf-8"))]


def test_ci_runs_what_people_run(root):
    script = root / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text("utf-8")


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nsys.argv = ['luthier', '--help']\nfrom luthier.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'matplotlib', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_has_its_targets_and_python_is_checked(root):
    shown = subprocess.run(["make", "-n", "demo", "PYTHON="], cwd=root, capture_output=True, text=True)
    makefile = (root / "Makefile").read_text("utf-8")
    assert shown.returncode == 0, shown.stderr
    assert "needs Python 3.11 or newer" in makefile
    for target in ("demo", "test", "test-all", "test-compat", "lint", "format", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
