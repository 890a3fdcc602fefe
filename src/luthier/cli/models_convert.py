"""`luthier models convert`: an old checkpoint as a folder of today's class, or a converted model under its original names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder or hub id; with --original-names a converted model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet or be empty.")],
    original_names: Annotated[
        bool,
        typer.Option("--original-names", "--back", help="Write a converted model back as the checkpoint that it comes from."),
    ] = False,
    family: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the checkpoint is, where its config.json does not tell, such as baichuan2-13b."),
    ] = None,
) -> None:
    """Write an old checkpoint (ChatGLM, Baichuan, InternLM, Qwen 1, XVERSE …) as a folder that transformers loads by itself.

    Nothing but conversion is done; training and chatting convert an old checkpoint by themselves, once, into the cache.
    """
    from luthier.models.legacy.command import convert_folder

    convert_folder(source, out, original_names=original_names, family=family)
    print(f"Written to {out}")
