"""The notebooks: twins without outputs, and each runs from its first cell to its last."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOTH = [ROOT / "examples/quickstart.ipynb", ROOT / "examples/quickstart.zh.ipynb"]
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def shape(code: str) -> str:
    """Code without comments, and without what its texts for people say."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = node.body[1:]
        if isinstance(node, ast.Assert):
            node.msg = None
    return ast.dump(tree)


@pytest.mark.parametrize("path", BOTH, ids=lambda path: path.name)
def test_they_are_whole_and_hold_no_outputs(path: Path) -> None:
    import nbformat

    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["execution_count"], cell["outputs"]) == (None, [])


def test_both_languages_do_the_same() -> None:
    english, chinese = BOTH
    assert [shape(code) for code in cells(english, "code")] == [shape(code) for code in cells(chinese, "code")]
    assert len(cells(english, "markdown")) == len(cells(chinese, "markdown"))
    assert all(CHINESE.search(text) for text in cells(chinese, "markdown"))
    assert not any(CHINESE.search(text) for text in cells(english, "markdown"))


@pytest.mark.parametrize("path", BOTH, ids=lambda path: path.name)
def test_links_lead_to_pages(path: Path) -> None:
    for text in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert (path.parent / target).is_file(), target
        for name in re.findall(r"`(\S+\.ipynb)`", text):
            assert (path.parent / name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", BOTH, ids=lambda path: path.name)
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    for name, value in (("MODEL", "tiny"), ("QLORA", "0"), ("EPOCHS", "3"), ("REPO", "")):
        monkeypatch.setenv(f"LUTHIER_{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.km = AsyncKernelManager()
    client.km._kernel_spec = KernelSpec(  # this Python, whatever kernels the machine knows
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )
    client.execute()
    said = json.dumps([cell.get("outputs") for cell in notebook.cells], ensure_ascii=False)
    assert "image/png" in said, "the loss curve"
    assert "model.safetensors" in said
    assert "would be sent to me/violin-shop" in said
    assert (tmp_path / "runs/quickstart/final/adapter_model.safetensors").is_file()
