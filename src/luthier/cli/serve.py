"""`luthier serve`: a model behind OpenAI's API."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier.errors import UserError


def serve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, a model folder, or a model's name.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR", help="A LoRA adapter, or a run that trained one, as a model of its own; may be repeated."
        ),
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(metavar="N", help="The checkpoint of this step instead of the final weights.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need `--api-key`.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="LUTHIER_API_KEY", show_envvar=False, help="Key that clients must send. Better in `LUTHIER_API_KEY`."
        ),
    ] = None,
    without_key: Annotated[bool, typer.Option("--without-key", help="Let other machines in without a key.")] = False,
    model_name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What clients call the model. Default: its name.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Answers that are written at once.")] = 32,
    waiting: Annotated[
        int, typer.Option(min=0, help="Answers that may wait for a slot; beyond them clients are told 429.")
    ] = 128,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 4096,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take, waiting included.")] = 600,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request in MiB.")] = 8,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running answers have when the server ends.")] = 30,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name by which the server may be called; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A site whose pages may use the server (CORS); may be repeated.")
    ] = None,
    adapter_folder: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Adapters in here may be loaded while the server runs; needs `--api-key`."),
    ] = None,
    pooling: Annotated[Literal["mean", "last"], typer.Option(help="How the states of a text become its embedding.")] = "mean",
) -> None:
    """Serve a model, and adapters beside it, to every client of OpenAI's API."""
    if missing := [library for library in ("fastapi", "uvicorn", "prometheus_client") if find_spec(library) is None]:
        raise UserError(f"the server needs {', '.join(missing)}", hint="pip install 'luthier[serve]'")
    from luthier.serving.adapters import adapter_folder as named
    from luthier.serving.limits import Limits
    from luthier.serving.server import Options
    from luthier.serving.server import serve as start
    from luthier.workshop import load

    options = Options(
        host=host,
        port=port,
        key=api_key,
        without_key=without_key,
        name=model_name,
        adapters=[named(text) for text in adapter or ()],
        adapter_folders=adapter_folder or (),
        allowed_hosts=allowed_host or (),
        origins=allow_origin or (),
        pooling=pooling,
        limits=Limits(slots, waiting, max_tokens, time_limit, max_body << 20, grace),
    )
    options.check()  # before a large model is read
    start(load(name, checkpoint=checkpoint), options)
