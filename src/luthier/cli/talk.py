"""A conversation in the terminal: questions, answers as they are written, and the commands that act on them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cli.keyboard import LEAVING, Keyboard
from luthier.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from luthier.generation.speaker import Speaker

HELP = """\
/system TEXT      set the system prompt; without TEXT show it, `none` takes it away
/regenerate       answer the last question anew, with the next seed
/undo             take the last question and its answer back
/clear            forget the conversation
/save FILE        add the conversation to a file of JSON lines, to learn from
/load FILE [N]    go on from a conversation in a data file: the Nth, or the last one
/adapter NAME     answer by an adapter: a run, RUN@STEP, or a folder; `none` is the base, without NAME show them
/set NAME VALUE   change how answers are written, e.g. /set temperature 0.7; without NAME show all
/think on|off     let the model think first, or not; `auto` leaves it to the template
/exit             leave (so does Ctrl-D)
A line that ends in \\ goes on; \"\"\" opens and closes a block. Ctrl-C stops an answer."""

SETTINGS: dict[str, type[int] | type[float]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty"), float),
    **dict.fromkeys(("max_new_tokens", "top_k", "seed", "num_beams"), int),
}
"""Fields of `Decoding` that `/set` knows."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_OFF, _ON = ("none", "off"), {"on": True, "off": False, "auto": None}


def harmless(text: str) -> str:
    """`text` without the control characters by which a model could command the terminal."""
    return _CONTROL.sub("\ufffd", text)


class Talk:
    """A conversation.

    Args:
        speaker: answers.
        system: system prompt, or None.
        decoding: fields of `Decoding`.
        thinking: whether the model thinks first; None leaves it to the template.

    Attributes:
        messages: questions and answers so far.
        tools: JSON schemas of functions, of a conversation that was loaded.
    """

    def __init__(self, speaker: Speaker, system: str | None, decoding: dict[str, Any], thinking: bool | None = None) -> None:
        self.speaker, self.system, self.decoding, self.thinking = speaker, system, decoding, thinking
        self.messages: list[dict[str, Any]] = []
        self.tools: Sequence[dict[str, Any]] | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/regenerate": self._regenerate,
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": self._save,
            "/load": self._load,
            "/adapter": self._adapter,
            "/set": self._set,
            "/think": self._think,
            "/help": lambda _: print(HELP),
        }

    def run(self) -> None:
        """Answer what is typed, until the end of input or `/exit`."""
        keyboard = Keyboard()
        if keyboard.terminal:
            print(f"Talking to {self.speaker.name}. /help shows the commands, Ctrl-D leaves.")
        while True:
            try:
                entry = keyboard.read()
                if entry is None or (not entry.plain and entry.text == "/exit"):
                    return
                if entry.plain or not entry.text.startswith("/"):
                    self.answer(entry.text)
                else:
                    self.command(entry.text)
            except KeyboardInterrupt:  # beside an answer: in a command, or just after one
                print(f"\n{LEAVING}")

    def command(self, line: str) -> None:
        """Carry out a line that begins with a slash; what is wrong with it is told."""
        word, _, rest = line.partition(" ")
        try:
            if word not in self._commands:
                print(f"There is no command {word}.\n{HELP}")
            else:
                self._commands[word](rest.strip())
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            print(f"error: {rest.strip()}: {error.strerror}", file=sys.stderr)

    def answer(self, question: str) -> None:
        """Ask, print the answer as it is written, and remember both. Ctrl-C ends it; what was said so far is kept."""
        self.messages.append({"role": "user", "content": question})
        if not self._reply():
            self.messages.pop()

    def _reply(self) -> bool:
        """Answer the last message; False if it cannot be answered."""
        said: list[str] = []
        cut = False
        asked = [{name: value for name, value in message.items() if name != "weight"} for message in self.messages]
        try:
            pieces = self.speaker.stream(asked, system=self.system, tools=self.tools, thinking=self.thinking, **self.decoding)
            for piece in pieces:
                said.append(piece.text)
                print(harmless(piece.text), end="", flush=True)
                cut = piece.answer is not None and piece.answer.reason == "length"
        except KeyboardInterrupt:
            print(" …", end="")
            cut = True
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return False
        print()
        # What was cut is no example of how to end: whoever learns from the saved conversation reads it and does not learn it.
        self.messages.append({"role": "assistant", "content": "".join(said), **({"weight": 0} if cut else {})})
        return True

    def _system(self, text: str) -> None:
        self.system = None if text in _OFF else text or self.system
        print(f"System prompt: {self.system or 'none'}")

    def _regenerate(self, _: str) -> None:
        kept = list(self.messages)
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            print("There is no question yet.")
            self.messages = kept
            return
        if self.decoding["temperature"] == 0:
            print("At temperature 0 the answer is always the same; try /set temperature 0.7")
        self.decoding["seed"] += 1
        if not self._reply():
            self.messages = kept

    def _undo(self, _: str) -> None:
        while self.messages and self.messages.pop()["role"] != "user":
            pass
        print(f"{len(self.messages)} messages are left." if self.messages else "The conversation is empty.")

    def _clear(self, _: str) -> None:
        self.messages.clear()
        self.tools = None
        print("The conversation is forgotten.")

    def _save(self, name: str) -> None:
        from luthier.data.formats.written import openai_turns

        if not name:
            raise UserError("names no file", where="/save", hint="Write it as /save talks.jsonl")
        if not any(message["role"] == "assistant" for message in self.messages):
            raise UserError("there is no answer yet", where="/save")
        messages = self.messages
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        tools = {"tools": list(self.tools)} if self.tools else {}
        place = _add_line(Path(name).expanduser(), {"messages": openai_turns(messages), **tools})
        print(f"{place}: {len(messages)} messages")

    def _load(self, words: str) -> None:
        name, _, number = words.rpartition(" ") if re.search(r" \d+$", words) else (words, "", "")
        if not name:
            raise UserError("names no file", where="/load", hint="Write it as /load talks.jsonl, or /load talks.jsonl 3")
        found = _conversation(name.strip(), int(number) if number else None)
        self.tools = found.tools
        self.messages = [dict(message) for message in found.messages]
        if self.messages[0]["role"] == "system":
            self.system = self.messages.pop(0)["content"]
        for message in self.messages[-2:]:
            print(f"{message['role']}: {harmless(str(message.get('content') or ''))}")
        print(f"{found.origin}: {len(self.messages)} messages")

    def _adapter(self, name: str) -> None:
        from luthier.cli.named import split_step
        from luthier.workshop import change_adapter

        if name == "none":
            self.speaker.bare()
        elif name:
            run, step = split_step(name)
            if warning := change_adapter(self.speaker, run, checkpoint=step):
                print(warning, file=sys.stderr)
        others = ", ".join(other for other in self.speaker.names if other != self.speaker.adapter)
        print(f"Talking to {self.speaker.name}." + (f" Also there: {others}." if others else ""))

    def _set(self, words: str) -> None:
        from luthier.generation.sampling import Decoding

        name, _, text = words.replace("=", " ", 1).partition(" ")
        name = name.replace("-", "_")
        if name and name not in SETTINGS:
            raise UserError(f"there is no setting `{name}`", where="/set", hint=did_you_mean(name, SETTINGS))
        if text.strip():
            try:
                value = SETTINGS[name](text)
            except ValueError:
                kind = "a whole number" if SETTINGS[name] is int else "a number"
                raise UserError(f"`{text.strip()}` is not {kind}", where=f"/set {name}") from None
            changed = {**self.decoding, name: value}
            Decoding(**changed)
            self.decoding = changed
        for shown in [name] if name else SETTINGS:
            print(f"{shown} {self.decoding.get(shown, getattr(_defaults(), shown))}")

    def _think(self, word: str) -> None:
        if word not in _ON:
            raise UserError("takes `on`, `off` or `auto`", where="/think")
        if not self.speaker.may_think():
            raise UserError("the chat template knows no such choice", where="/think")
        self.thinking = _ON[word]
        print(f"Thinking: {word}")


def _defaults() -> Any:
    from luthier.generation.sampling import Decoding

    return Decoding()


def _add_line(path: Path, row: dict[str, Any]) -> str:
    """Add a row to a file of conversations in one write; returns its place.

    Raises:
        UserError: the file holds something else.
    """
    before = path.read_bytes() if path.is_file() else b""
    first = before.split(b"\n", 1)[0]
    try:
        fits = not first or "messages" in json.loads(first)
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise UserError("holds something else than conversations", where=str(path), hint="Choose another name.")
    line = json.dumps(row, ensure_ascii=False) + "\n"
    gap = "\n" if before and not before.endswith(b"\n") else ""
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(gap + line)
    number = before.count(b"\n") + len(gap) + 1
    return f"{path}:{number}"


def _conversation(name: str, number: int | None) -> Any:
    """The conversation of that number (from 1) in a data file of any format, or the last one."""
    from luthier.data.problems import Problems
    from luthier.data.questions import talks_of
    from luthier.recipe.schema import Source

    problems = Problems("fail")
    found = list(talks_of(Source(path=str(Path(name).expanduser())), problems))
    problems.finish()
    if not found or (number is not None and not 1 <= number <= len(found)):
        raise UserError(f"it has {len(found)} conversations", where=f"/load {name}")
    return found[(number or len(found)) - 1]
