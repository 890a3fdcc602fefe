"""`luthier login`: keep a hub's access token on this machine, for gated and private models."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from luthier.errors import UserError


class Hub(StrEnum):
    """Where models come from."""

    huggingface = "huggingface"
    modelscope = "modelscope"


def login(
    hub: Annotated[Hub, typer.Option(help="The hub that the token is for.")] = Hub.huggingface,
    token: Annotated[
        str | None, typer.Option(help="The token. Without it you are asked, or it is read from standard input.")
    ] = None,
) -> None:
    """Store an access token for gated and private models."""
    if token is None:
        token = typer.prompt(f"Token for {hub}", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not token.strip():
        raise UserError("the token is empty", where="--token")
    from luthier.models.hub import login as store

    print(f"The token for {store(token.strip(), hub.value)} is stored.")
