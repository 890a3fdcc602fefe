"""The options by which answers are written: the same for every command that has a model answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

OPTIONS: dict[str, tuple[Any, Any]] = {
    "temperature": (
        Annotated[float, typer.Option(min=0, help="0 takes the most likely token each time; 1 is the model's own variety.")],
        0.0,
    ),
    "max_new_tokens": (Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")], 512),
    "top_p": (
        Annotated[
            float, typer.Option(min=0, max=1, help="Sample from the most likely tokens that hold this share of probability.")
        ],
        1.0,
    ),
    "top_k": (Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0 is all.")], 0),
    "min_p": (
        Annotated[float, typer.Option(min=0, max=1, help="Drop tokens less likely than this share of the most likely one.")],
        0.0,
    ),
    "repetition_penalty": (Annotated[float, typer.Option(min=0.01, help="Above 1: repeat less.")], 1.0),
    "presence_penalty": (Annotated[float, typer.Option(help="Above 0: say again less what was said, however often.")], 0.0),
    "frequency_penalty": (Annotated[float, typer.Option(help="Above 0: say again less what was said often.")], 0.0),
    "stop": (
        Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text. May be repeated.")],
        None,
    ),
    "num_beams": (
        Annotated[int, typer.Option(min=1, help="Above 1: search with so many beams for the most likely answer.")],
        1,
    ),
    "length_penalty": (Annotated[float, typer.Option(help="With beams, above 0: favour long answers.")], 1.0),
    "seed": (Annotated[int, typer.Option(help="Seed of the sampling.")], 0),
}
"""Name of an option → its type with its help, and its default."""


def sampled(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that gets `decoding`, fields of `Decoding`, from options of its own; `defaults` are other than those of `OPTIONS`."""
    options = {name: (kind, defaults.get(name, default)) for name, (kind, default) in OPTIONS.items()}

    def wrapped(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**given: Any) -> None:
            decoding = {name: given.pop(name) for name in options}
            decoding["stop_strings"] = tuple(decoding.pop("stop") or ())
            command(**given, decoding=decoding)

        hints = get_type_hints(command, include_extras=True)
        own = [part for part in inspect.signature(command).parameters.values() if part.name != "decoding"]
        kinds = {part.name: hints[part.name] for part in own} | {name: kind for name, (kind, _) in options.items()}
        defaults_of = {part.name: part.default for part in own} | {name: default for name, (_, default) in options.items()}
        call.__annotations__ = {**kinds, "return": None}
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults_of[name], annotation=kind)
            for name, kind in kinds.items()
        ]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        del call.__wrapped__  # type: ignore[attr-defined]  # whose annotations would be read in place of these
        return call

    return wrapped
