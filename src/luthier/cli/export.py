"""`luthier export`: what leaves the workshop."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(help="Take a tuned model out of the workshop.", no_args_is_help=True)


class Dtype(StrEnum):
    """Types that weights can be written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Onto(StrEnum):
    """What an adapter is merged into."""

    base = "base"
    quantised = "quantised"


@export_app.callback()
def export() -> None:
    """Take a tuned model out of the workshop."""


@export_app.command()
def merge(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, a model folder, or an adapter folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not exist yet or be empty.")],
    checkpoint: Annotated[
        int | None, typer.Option(metavar="N", help="The checkpoint of this step instead of the final weights.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="A LoRA adapter to merge into a model folder.")] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file, such as 2GB or 500MB.")] = "5GB",
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the written weights. Default: the base model's.")] = None,
    original_names: Annotated[
        bool,
        typer.Option("--original-names", help="Write a model made of an old checkpoint under that checkpoint's parameter names."),
    ] = False,
    onto: Annotated[
        Onto, typer.Option(help="For an adapter trained on a base in few bits: the base before it was rounded, or after.")
    ] = Onto.base,
) -> None:
    """Fold what was learnt into the base: one ordinary transformers folder, without any adapter."""
    from luthier.export.merge import merge as merge_into_folder

    folder = merge_into_folder(
        name,
        out,
        adapter=adapter,
        checkpoint=checkpoint,
        max_shard_size=max_shard_size,
        dtype=dtype.value if dtype else None,
        original_names=original_names,
        onto=onto.value,
        tell=lambda sentence: print(f"note: {sentence}", file=sys.stderr),
    )
    print(f"Merged model written to {folder}")
