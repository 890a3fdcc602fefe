"""`luthier chat` and `luthier compare`: talk to a model, or read two models' answers side by side."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.generation.chat import ChatModel

HELP = """\
/system TEXT   set the system prompt; without TEXT, show it
/clear         forget the conversation
/exit          leave (so does Ctrl-D)
Ctrl-C stops an answer."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, or a model folder.")]
Checkpoint = Annotated[
    int | None, typer.Option(metavar="N", help="Use the checkpoint of this step instead of the final weights.")
]
Adapter = Annotated[Path | None, typer.Option(metavar="DIR", help="A LoRA adapter to use with a model folder.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the most likely token each time; 1 is the model's own variety.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
TopP = Annotated[
    float, typer.Option(min=0, max=1, help="Sample from the most likely tokens that hold this share of probability.")
]
TopK = Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0 is all.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0.01, help="Above 1: repeat less.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]


def chat(
    name: Name,
    checkpoint: Checkpoint = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model of the run, without what was learnt.")] = False,
    adapter: Adapter = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this once, print the answer alone, and exit.")
    ] = None,
    system: System = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 512,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
) -> None:
    """Talk to a tuned model, any checkpoint of a run, its base, or a model folder."""
    from luthier.workshop import load_chat

    decoding: dict[str, Any] = {
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    model = load_chat(name, checkpoint=checkpoint, base=base, adapter=adapter)
    if prompt is not None:
        for text in model.stream(prompt, system=system, **decoding):
            print(text, end="", flush=True)
        print()
        return
    if sys.stdin.isatty():
        print(f"Talking to {model.name}. /help shows the commands, Ctrl-D leaves.")
    for question in (talk := Talk(model, system, decoding)).questions():
        talk.answer(question)


class Talk:
    """A conversation in the terminal.

    Args:
        model: answers.
        system: system prompt, or None.
        decoding: fields of `Decoding`.
    """

    def __init__(self, model: ChatModel, system: str | None, decoding: dict[str, Any]) -> None:
        self.model, self.system, self.decoding = model, system, decoding
        self.messages: list[dict[str, str]] = []

    def questions(self) -> Iterator[str]:
        """What the user types, until the end of input or `/exit`; commands are carried out on the way."""
        shown = "› " if sys.stdin.isatty() else ""
        if shown:
            import readline  # noqa: F401  # arrow keys and history in input()
        while True:
            try:
                line = input(shown).strip()
            except EOFError:
                if shown:
                    print()
                return
            except KeyboardInterrupt:
                print()
                continue
            if line == "/exit":
                return
            if line.startswith("/"):
                self.command(line)
            elif line:
                yield line

    def command(self, line: str) -> None:
        """Carry out a line that begins with a slash."""
        word, _, rest = line.partition(" ")
        if word == "/clear":
            self.messages.clear()
            print("The conversation is forgotten.")
        elif word == "/system":
            self.system = rest.strip() or self.system
            print(f"System prompt: {self.system or 'none'}")
        elif word == "/help":
            print(HELP)
        else:
            print(f"There is no command {word}.\n{HELP}")

    def answer(self, question: str) -> None:
        """Print the answer as it is written, and remember both. Ctrl-C ends it; what was said so far is kept."""
        self.messages.append({"role": "user", "content": question})
        said: list[str] = []
        try:
            for text in self.model.stream(self.messages, system=self.system, **self.decoding):
                said.append(text)
                print(harmless(text), end="", flush=True)
        except KeyboardInterrupt:
            print(" …", end="")
        except UserError as error:
            self.messages.pop()
            print(f"error: {error}", file=sys.stderr)
            return
        print()
        self.messages.append({"role": "assistant", "content": "".join(said)})


def harmless(text: str) -> str:
    """`text` without the control characters by which a model could command the terminal."""
    return _CONTROL.sub("\ufffd", text)


def compare(
    name: Name,
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="A question; give the option again for more.")],
    checkpoint: Checkpoint = None,
    adapter: Adapter = None,
    system: System = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of prompt, base, tuned.")] = False,
) -> None:
    """Answers of the base model and of the tuned one, side by side."""
    from luthier.workshop import load_chat

    if checkpoint is not None and adapter is not None:
        raise UserError("a model folder with an adapter has no checkpoints", where="--checkpoint", hint="Leave it out.")
    if adapter is None and (Path(name) / "config.json").is_file():
        raise UserError("a model alone has nothing to be compared with", where=name, hint="Name a run, or give `--adapter`.")
    decoding: dict[str, Any] = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    # With an adapter given, NAME is the base itself; else NAME is a run, which knows its base.
    both: tuple[dict[str, Any], ...] = ({}, {"adapter": adapter}) if adapter else ({"base": True}, {"checkpoint": checkpoint})
    answers = []
    for which in both:
        model = load_chat(name, **which)
        answers.append([answer.text.strip() for answer in model.answers(prompt, system=system, **decoding)])
        del model  # the base leaves memory before the tuned model comes
    rows = list(zip(prompt, *answers, strict=True))
    if as_json:
        print(
            json.dumps([dict(zip(("prompt", "base", "tuned"), row, strict=True)) for row in rows], ensure_ascii=False, indent=2)
        )
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        print("\n\n".join(f"prompt: {question}\nbase:   {base}\ntuned:  {tuned}" for question, base, tuned in rows))


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, expand=True)
    for title, ratio in (("prompt", 1), ("base", 2), ("tuned", 2)):
        table.add_column(title, ratio=ratio, overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(text)) for text in row))  # as text: an answer may hold what rich takes for markup
    Console().print(table)
