"""What a machine says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.runs import environment as module
from luthier.runs.environment import Gpu, environment, parse_nvidia_smi


def test_this_machine_is_known_and_can_be_written_down() -> None:
    here = environment()
    assert json.loads(json.dumps(here))["torch"]["version"].startswith("2.")
    assert here["cores"] >= 1
    assert here["memory"] > 2**28
    assert here["processor"]


def test_gpus_as_nvidia_smi_lists_them() -> None:
    text = "NVIDIA H200, 143771, 570.86.10, 9.0\nTesla K80, 11441, 470.199.02, [N/A]\nNo devices were found\n"
    assert parse_nvidia_smi(text) == (
        Gpu("NVIDIA H200", 143771 * 2**20, "570.86.10", "9.0"),
        Gpu("Tesla K80", 11441 * 2**20, "470.199.02", None),
    )


def test_a_tool_that_fails_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._gpus() == ()


def test_a_torch_that_cannot_be_loaded_is_a_fact(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from luthier.runs.environment import _torch; print(_torch().error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "libcudart.so.12: cannot open shared object file\n"


def test_the_libraries_of_bitsandbytes_are_read_from_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    for name in ("__init__.py", "libbitsandbytes_cpu.so", "libbitsandbytes_cuda128.so", "libbitsandbytes_cuda118_nocublaslt.so"):
        (package / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)  # one that is imported already would be found first
    assert module._bitsandbytes_cuda() == ("118", "128")
