"""`luthier chat`: talk to a model, or ask it one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.sampling import sampled
from luthier.cli.talk import Talk

Name = Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, or a model folder.")]
Checkpoint = Annotated[
    int | None, typer.Option(metavar="N", help="Use the checkpoint of this step instead of the final weights.")
]
Adapter = Annotated[Path | None, typer.Option(metavar="DIR", help="A LoRA adapter to use with a model folder.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")]
Think = Annotated[
    bool | None, typer.Option("--think/--no-think", help="Let the model think first, or not. Default: as the template has it.")
]


@sampled()
def chat(
    name: Name,
    *,
    checkpoint: Checkpoint = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model of the run, without what was learnt.")] = False,
    adapter: Adapter = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this once, print the answer alone, and exit.")
    ] = None,
    system: System = None,
    think: Think = None,
    decoding: dict[str, Any],
) -> None:
    """Talk to a tuned model, any checkpoint of a run, its base, or a model folder."""
    from luthier.workshop import load_chat, load_speaker

    which: dict[str, Any] = {"checkpoint": checkpoint, "base": base, "adapter": adapter}
    if prompt is None:
        Talk(load_speaker(name, **which), system, decoding, think).run()
        return
    for text in load_chat(name, **which).stream(prompt, system=system, thinking=think, **decoding):
        print(text, end="", flush=True)
    print()
