"""How commands end: exit codes, one line for a mistake, and a quick start."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from luthier.cli import app as module
from luthier.cli.app import run
from luthier.errors import Stopped, UserError

HEAVY = ("torch", "transformers", "numpy", "pyarrow", "matplotlib", "pydantic", "yaml", "psutil", "tokenizers")
COMMANDS = {
    "train",
    "resume",
    "stop",
    "show",
    "logs",
    "chat",
    "classify",
    "compare",
    "generate",
    "env",
    "login",
    "adapters",
    "runs",
    "serve",
    "recipes",
    "data",
    "models",
    "template",
    "evaluate",
    "export",
}


def test_nothing_heavy_is_imported_for_the_help() -> None:
    code = f"import sys; from luthier.cli.app import run; run(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    listed = {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.startswith("  ")}
    assert listed == COMMANDS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("luthier 0.")


def test_a_mistyped_command_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert capsys.readouterr().err == "error: luthier: no such command `trian`. Did you mean `train`?\n"


@pytest.mark.parametrize(
    "arguments", [["train"], ["train", "r.yaml", "--nproc", "0"], ["runs", "list", "--jsn"], ["login", "--hub", "x"]]
)
def test_a_command_line_that_cannot_be_parsed_is_the_users_mistake(arguments: list[str]) -> None:
    assert run(arguments) == 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["chat", "first", "你好"], 'luthier chat: does not take `你好`. A question is asked with --prompt "你好".'),
        (["show", "first", "now"], "luthier show: does not take `now`. Write `luthier show [OPTIONS] NAME`; `-h` tells more."),
        (["compare", "first"], "luthier compare: there is nothing to ask. Give it as --prompt TEXT, or --file FILE."),
        (
            ["export", "merge"],
            "luthier export merge: `NAME` is missing. Write `luthier export merge [OPTIONS] NAME`; `-h` tells more.",
        ),
        (["runs", "list", "--jsn"], "--jsn: no such option. Did you mean `--json`?"),
        (["chat", "first", "--top-p", "2"], "--top-p: Input should be less than or equal to 1. `-h` tells more."),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(typed) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_group_of_commands_alone_gives_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data"]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("no `output`", where="a.json:7", hint="Add it."), 2, "error: a.json:7: no `output`. Add it.\n"),
        (Stopped("Stopped after step 5."), 3, "Stopped after step 5.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "error: the disk is full (runs/x)."),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_end_has_its_exit_code(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("luthier.cli.runs.find_run", command)
    assert run(["show", "first"]) == code
    assert capsys.readouterr().err.startswith(text)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("luthier.cli.runs.find_run", command)
    with pytest.raises(ZeroDivisionError):
        run(["show", "first"])


def test_another_rank_lets_rank_0_speak_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    naps: list[float] = []
    monkeypatch.setattr(module.time, "sleep", naps.append)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir("/")
    assert run(["show", "nothing-of-that-name"]) == 2
    assert naps == [module.RANK_GRACE]
    assert capsys.readouterr().err.startswith("rank 1: error: there is no run")


def test_half_a_character_is_printed_as_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    """A file may hold half of a surrogate pair, and a message may quote it."""
    run(["--version"])
    print("\ud83d")
    assert "\\ud83d" in capsys.readouterr().out
