"""`luthier chat` in a real terminal: keys are pressed, and what a person would see is read from a screen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

ROWS, COLUMNS = 40, 100
SPEAKER = """
import time
from types import SimpleNamespace
from luthier.cli.talk import Talk

class Speaker:
    name, names, adapter = "echo", (), None

    def stream(self, messages, **settings):
        question = messages[-1]["content"]
        if question == "for ever":
            while True:
                yield SimpleNamespace(text="and on ", answer=None)
                time.sleep(0.02)
        said = f"<{len(question.splitlines())}|{question[-12:]}>"
        yield SimpleNamespace(text=said, answer=SimpleNamespace(reason="stop"))

Talk(Speaker(), None, {"temperature": 0.0, "seed": 0}).run()
print("left")
"""
UP, ENTER, END_OF_INPUT, INTERRUPT = "\x1b[A", "\r", "\x04", "\x03"


class Terminal:
    """A program in a pseudo terminal."""

    def __init__(self, *command: str, cache: Path) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "LUTHIER_CACHE": str(cache), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}

        def take_terminal() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the tests may run behind a shell that ignores it
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=take_terminal
        )
        os.close(theirs)

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def see(self, wanted: str, times: int = 1, within: float = 90) -> str:
        """Wait until the screen holds `wanted` (a regular expression) so often."""
        end = time.monotonic() + within
        while len(re.findall(wanted, self.text, re.MULTILINE)) < times:
            assert time.monotonic() < end, f"no {wanted!r} in:\n{self.text}"
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self._stream.feed(os.read(self._ours, 1 << 16))
                except OSError:  # the other side is closed
                    assert re.search(wanted, self.text, re.MULTILINE), f"no {wanted!r} in:\n{self.text}"
        return self.text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts programs; what still runs at the end is killed."""
    terminals: list[Terminal] = []

    def start(*command: str) -> Terminal:
        terminals.append(Terminal(*command, cache=tmp_path / "cache"))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def talk(started: Callable[..., Terminal]) -> Callable[[], Terminal]:
    """Starts a chat with an echo, and waits for its prompt."""

    def start() -> Terminal:
        terminal = started("-c", SPEAKER)
        terminal.see("^› *$")
        return terminal

    return start


def test_history_is_kept_across_sessions_and_is_its_owners_alone(talk: Callable[[], Terminal], tmp_path: Path) -> None:
    first = talk()
    first.press("你好 there" + ENTER)
    first.see(re.escape("<1|你好 there>"))
    first.press('"""two' + ENTER + 'lines"""' + ENTER)
    first.see(re.escape("<2|two"))
    first.press(END_OF_INPUT)
    first.see("^left")
    file = tmp_path / "cache/chat-history.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == ["你好 there", "two\nlines"]
    assert file.stat().st_mode & 0o777 == 0o600
    second = talk()
    second.press(UP + ENTER)
    second.see(r"<2\|two")
    second.press(UP + UP + ENTER)
    second.see(re.escape("<1|你好 there>"))


def test_ctrl_c_stops_the_answer_and_not_the_program(talk: Callable[[], Terminal]) -> None:
    terminal = talk()
    terminal.press("for ever" + ENTER)
    terminal.see("and on and on")
    terminal.press(INTERRUPT)
    terminal.see(r"…\n› *$")
    assert "leaves." not in terminal.text.partition("for ever")[2]
    terminal.press(INTERRUPT)
    terminal.see("^Ctrl-D or /exit leaves.")
    terminal.press("half a line")
    terminal.see("half a line$")
    terminal.press(INTERRUPT)
    terminal.see(r"half a line(\^C)?\n› *$")  # a signal may arrive after what was typed after it
    terminal.press("still here" + ENTER)
    terminal.see(re.escape("<1|still here>"))
    assert len(re.findall("^Ctrl-D or /exit leaves.", terminal.text, re.MULTILINE)) == 1
    terminal.press("/exit" + ENTER)
    terminal.see("^left")
    assert terminal.process.wait(30) == 0


def test_what_is_pasted_is_one_question_and_no_command(talk: Callable[[], Terminal]) -> None:
    terminal = talk()
    terminal.press("\x1b[200~/exit\nsecond line\\\nthe third\x1b[201~")
    terminal.press(ENTER)
    terminal.see(re.escape("<3|") + ".*|" + re.escape("the third>"))
    terminal.see("the third>")
    terminal.press("goes \\" + ENTER)
    terminal.see("^…")
    terminal.press("on" + ENTER)
    terminal.see(re.escape("<2|goes"))
    assert "left" not in terminal.text


@pytest.mark.slow
def test_the_embedded_model_talks_changes_adapters_and_is_interrupted(started: Callable[..., Terminal], tmp_path: Path) -> None:
    import torch

    from luthier.models.adapters.config import AdapterConfig
    from luthier.models.adapters.format import write_adapter
    from luthier.models.adapters.insert import insert_adapter
    from luthier.models.loading import load_model
    from luthier.recipe.schema import Model

    model = load_model(Model(path="tiny"), dtype=torch.float32, device=torch.device("cpu"))
    insert_adapter(model, AdapterConfig(rank=2, alpha=64), seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.05)
    write_adapter(tmp_path / "strange", model)
    terminal = started("-m", "luthier", "chat", "tiny")
    terminal.see("^› *$")
    terminal.press("What is 2 + 3?" + ENTER)
    terminal.see(r"3\?\n.+\n› *$")
    answer = re.search(r"3\?\n(.+)\n", terminal.text)
    assert answer is not None
    terminal.press(f"/undo{ENTER}/adapter {tmp_path / 'strange'}{ENTER}")
    terminal.see("^Talking to strange.")
    terminal.press(f"/set temperature 50{ENTER}/set max_new_tokens 100000{ENTER}What is 2 + 3?{ENTER}")
    terminal.see(r"3\?\n[^›\n]+")
    terminal.press(INTERRUPT)
    terminal.see("…\n› *$")
    terminal.press(f"/clear{ENTER}/set temperature 0{ENTER}/adapter none{ENTER}What is 2 + 3?{ENTER}")
    terminal.see("^Talking to tiny. Also there: strange.")
    terminal.see(re.escape(answer[1]), times=2)


def test_a_place_that_cannot_be_written_costs_the_history_alone(talk: Callable[[], Terminal], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    terminal = talk()
    for question in ("one", "two"):
        terminal.press(question + ENTER)
        terminal.see(re.escape(f"<1|{question}>"))
    assert terminal.text.count("The history is not kept") == 1
    terminal.press(UP + UP + ENTER)
    terminal.see(re.escape("<1|one>"), times=2)


def test_a_history_that_has_grown_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.cli import keyboard

    monkeypatch.setattr(keyboard, "REMEMBERED", 3)
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f'"{number}"\n' for number in range(7)) + '"torn')
    path.chmod(0o644)
    history = keyboard.History(path)
    assert path.read_text() == '"4"\n"5"\n"6"\n'
    assert path.stat().st_mode & 0o777 == 0o600
    for text in ("6", "/etc is what?"):
        history.add(keyboard.Entry(text, plain=text.startswith("/")))
    assert path.read_text() == '"4"\n"5"\n"6"\n"\\"\\"\\"/etc is what?\\"\\"\\""\n', "what was just there is not kept twice"
