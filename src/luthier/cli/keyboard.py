"""What a person types: lines of a terminal or a pipe, put together to entries, with a history that outlives the session.

A line that ends in a backslash goes on; `\"\"\"` opens a block and closes it. Text that is pasted arrives as one entry, however many
lines it has: the terminal encloses it in marks (bracketed paste), which readline knows.

The history is a file of JSON strings, one for each entry, so that an entry of several lines comes back as one. It is its owner's
alone: people type what is nobody's business.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from luthier.files import cache_home

PROMPT, MORE = "› ", "… "
FENCE = '"""'
REMEMBERED = 1_000
"""Entries of the history that are read; a file of twice as many is cut back to so many."""
LEAVING = "Ctrl-D or /exit leaves."


@dataclass(frozen=True, slots=True)
class Entry:
    """What was typed.

    Args:
        text: without the marks of a block.
        plain: it was pasted or written as a block, so it is no command.
    """

    text: str
    plain: bool = False


class Keyboard:
    """Reads entries from standard input.

    Attributes:
        terminal: a person sits there, so there are a prompt, editing keys and the history.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        known = self.terminal and find_spec("readline") is not None
        self._history = History(cache_home() / "chat-history.jsonl") if known else None

    def read(self) -> Entry | None:
        """The next entry, or None at the end of input. Ctrl-C forgets what was begun; with nothing begun it says how to leave."""
        while True:
            lines: list[str] = []
            try:
                entry = self._entry(lines)
            except EOFError:
                if self.terminal:
                    print()
                return Entry("\n".join(lines).strip(), plain=True) if any(lines) else None
            except KeyboardInterrupt:
                print("" if lines or (self._history and self._history.begun()) else f"\n{LEAVING}")
                continue
            if entry.text:
                if self._history:
                    self._history.add(entry)
                return entry

    def _entry(self, lines: list[str]) -> Entry:
        """One entry; `lines` holds what there is of it.

        Raises:
            EOFError, KeyboardInterrupt: in the middle of it.
        """
        first = self._line(PROMPT)
        if "\n" in first:
            return Entry(first.strip(), plain=True)
        if first.lstrip().startswith(FENCE):
            return self._block(first.lstrip().removeprefix(FENCE), lines)
        lines.append(first)
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line(MORE))
        return Entry("\n".join(lines).strip(), plain=len(lines) > 1)

    def _block(self, line: str, lines: list[str]) -> Entry:
        while FENCE not in line:
            lines.append(line)
            line = self._line(MORE)
        lines.append(line.partition(FENCE)[0])
        return Entry("\n".join(lines).strip(), plain=True)

    def _line(self, prompt: str) -> str:
        return input(prompt if self.terminal else "")


class History:
    """The entries of this and earlier sessions, behind the arrow keys.

    Args:
        path: of the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        import readline

        self._path, self._readline, self._kept = path, readline, True
        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.set_auto_history(False)  # whole entries are added, not their lines
        readline.clear_history()
        for text in self._read():
            readline.add_history(text)

    def begun(self) -> bool:
        """Whether there was anything on the line that Ctrl-C ended."""
        return bool(self._readline.get_line_buffer())

    def add(self, entry: Entry) -> None:
        """Remember an entry, now and for later sessions."""
        text = f"{FENCE}{entry.text}{FENCE}" if entry.plain and "\n" not in entry.text else entry.text
        if (count := self._readline.get_current_history_length()) and self._readline.get_history_item(count) == text:
            return
        self._readline.add_history(text)
        self._write([text], os.O_APPEND)

    def _read(self) -> list[str]:
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        texts = [text for line in lines if isinstance(text := _loaded(line), str)]
        if len(lines) > 2 * REMEMBERED:
            self._write(texts[-REMEMBERED:], os.O_TRUNC)
        return texts[-REMEMBERED:]

    def _write(self, texts: list[str], how: int) -> None:
        """Put entries into the file; a place that cannot be written is told once, and the talk goes on."""
        if not self._kept:
            return
        try:
            self._put(texts, how)
        except OSError as error:
            self._kept = False
            print(f"The history is not kept: {self._path}: {error.strerror}", file=sys.stderr)

    def _put(self, texts: list[str], how: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | how, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, "".join(f"{json.dumps(text)}\n" for text in texts).encode())
        finally:
            os.close(descriptor)


def _loaded(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:  # the torn end of a session that was killed
        return None
