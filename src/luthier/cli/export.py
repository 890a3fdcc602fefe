"""`luthier export`: what leaves the workshop."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.export.check import Difference

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


class Rounding(StrEnum):
    """Ways to write a model in few bits."""

    nf4 = "nf4"
    int8 = "int8"
    torchao_int8 = "torchao-int8"
    torchao_int4 = "torchao-int4"
    gptq = "gptq"
    awq = "awq"


class Engine(StrEnum):
    """Engines that put an adapter on a base of their own."""

    llamacpp = "llamacpp"
    vllm = "vllm"


class HubName(StrEnum):
    """Hubs to send a model to."""

    auto = "auto"
    huggingface = "huggingface"
    modelscope = "modelscope"


Name = Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, a model folder, or an adapter folder.")]
Folder = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not exist yet or be empty.")]
Step = Annotated[int | None, typer.Option(metavar="N", help="The checkpoint of this step instead of the final weights.")]
Adapter = Annotated[Path | None, typer.Option(metavar="DIR", help="A LoRA adapter to merge into a model folder.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not read the result back: the model stands in memory for that.")]
Tolerance = Annotated[
    float | None, typer.Option(min=0, metavar="SHARE", help="How far the result may be from the model. Default: by its type.")
]


@export_app.callback()
def export() -> None:
    """Take a tuned model out of the workshop."""


@export_app.command()
def merge(
    name: Name,
    out: Folder,
    checkpoint: Step = None,
    adapter: Adapter = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file, such as 2GB or 500MB.")] = "5GB",
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the written weights. Default: the base model's.")] = None,
    original_names: Annotated[
        bool,
        typer.Option("--original-names", help="Write a model made of an old checkpoint under that checkpoint's parameter names."),
    ] = False,
    onto: Annotated[
        Onto, typer.Option(help="For an adapter trained on a base in few bits: the base before it was rounded, or after.")
    ] = Onto.base,
    no_check: NoCheck = False,
) -> None:
    """Fold what was learnt into the base: one ordinary transformers folder, without any adapter."""
    from luthier.export.merge import merge as merge_into_folder
    from luthier.export.merge_check import compared

    folder = merge_into_folder(
        name,
        out,
        adapter=adapter,
        checkpoint=checkpoint,
        max_shard_size=max_shard_size,
        dtype=dtype.value if dtype else None,
        original_names=original_names,
        onto=onto.value,
        tell=_note,
    )
    plain = not (no_check or original_names or onto is Onto.quantised)
    found = compared(name, folder, adapter=adapter, checkpoint=checkpoint) if plain else None
    if found is not None and not found.ok:
        rmtree(folder)
        found.demand(name)
    _done(f"Merged model written to {folder}", found)


@export_app.command()
def shards(
    name: Name,
    out: Folder,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file, such as 2GB or 500MB.")] = "2GB",
    checkpoint: Step = None,
) -> None:
    """Cut the weight files of a folder anew, tensor by tensor; the rest is copied."""
    from luthier.export.shards import reshard

    count = reshard(name, out, max_shard_size=max_shard_size, checkpoint=checkpoint)
    print(f"{count} weight file{'s' if count > 1 else ''} written to {out}; every tensor read back is the one that was read")


@export_app.command()
def gguf(
    name: Name,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write; it must not exist yet.")],
    type_: Annotated[
        str,
        typer.Option(
            "--type", metavar="TYPE", help="f32, f16, bf16, q8_0; others, such as q4_k_m, by llama.cpp's llama-quantize."
        ),
    ] = "f16",
    checkpoint: Step = None,
    adapter: Adapter = None,
    tolerance: Tolerance = None,
    no_check: NoCheck = False,
) -> None:
    """Write a model as one file for llama.cpp, with tokenizer and chat template."""
    from luthier.export.gguf.export import export_gguf

    found = export_gguf(
        name, out, kind=type_, adapter=adapter, checkpoint=checkpoint, tolerance=tolerance, check=not no_check, tell=_note
    )
    _done(f"GGUF file written to {out}", found)


@export_app.command()
def ollama(
    name: Name,
    out: Folder,
    type_: Annotated[str, typer.Option("--type", metavar="TYPE", help="Type of the weights, as for `gguf`.")] = "q8_0",
    checkpoint: Step = None,
    adapter: Adapter = None,
    tolerance: Tolerance = None,
) -> None:
    """Write a folder for Ollama: a GGUF file, and a Modelfile with template, stop words and settings."""
    from luthier.export.ollama import export_ollama

    found = export_ollama(name, out, kind=type_, adapter=adapter, checkpoint=checkpoint, tolerance=tolerance, tell=_note)
    _done(f"Ollama's folder written to {out}", found)
    print(f"Take it over with: ollama create NAME -f {out}/Modelfile")


@export_app.command()
def adapter(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, or an adapter folder.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="File (llamacpp) or folder (vllm) to write; it must not exist yet.")],
    engine: Annotated[Engine, typer.Option("--for", help="What will read it.")],
    checkpoint: Step = None,
) -> None:
    """Write a LoRA adapter for engines that put it on a base of their own: llama.cpp or vLLM."""
    from luthier.export.adapter import for_llamacpp, for_vllm

    write = for_llamacpp if engine is Engine.llamacpp else for_vllm
    _done(f"Adapter written to {out}", write(name, out, checkpoint=checkpoint))


@export_app.command()
def quantize(
    name: Name,
    out: Folder,
    method: Annotated[
        Rounding, typer.Option(help="nf4 and int8 by bitsandbytes, torchao-… by torchao, gptq and awq by gptqmodel.")
    ],
    checkpoint: Step = None,
    adapter: Adapter = None,
    tolerance: Tolerance = None,
) -> None:
    """Write a model in few bits, as a folder that transformers loads; gptq and awq learn from the run's own data."""
    from luthier.export.quantize import quantize as write_in_few_bits

    found = write_in_few_bits(name, out, method=method.value, adapter=adapter, checkpoint=checkpoint, tolerance=tolerance)
    _done(f"Model in few bits written to {out}", found)


@export_app.command()
def card(
    name: Name,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write README.md into, and loss.png; it may hold the model.")
    ],
    licence: Annotated[str | None, typer.Option(metavar="NAME", help="Licence of the tuned model, such as apache-2.0.")] = None,
    evaluation: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file with results to show.")] = None,
    checkpoint: Step = None,
) -> None:
    """Write the model's card: base, data and their licences, recipe, loss curve, results, environment."""
    from luthier.export.card import write_card

    file = write_card(name, out, licence=licence, evaluation=evaluation, checkpoint=checkpoint)
    print(f"Card written to {file}")


@export_app.command()
def push(
    name: Name,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub; made if it is not there.")],
    hub: Annotated[
        HubName, typer.Option(help="Where to send it. `auto`: Hugging Face, or ModelScope with USE_MODELSCOPE_HUB=1.")
    ] = (HubName.auto),
    merged: Annotated[bool, typer.Option("--merged", help="Send the whole model with its adapter merged in.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made can be seen by everyone.")] = False,
    licence: Annotated[str | None, typer.Option(metavar="NAME", help="Licence of the tuned model, for its card.")] = None,
    evaluation: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file with results, for its card.")] = None,
    checkpoint: Step = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
) -> None:
    """Send an adapter, a model or an exported folder to a hub, with its card."""
    from luthier.export.push import push as send

    sent = send(
        name,
        repo,
        hub=hub.value,
        merged=merged,
        private=not public,
        checkpoint=checkpoint,
        licence=licence,
        evaluation=evaluation,
        dry_run=dry_run,
    )
    for file, size in sent.files.items():
        print(f"{size:>14,}  {file}")
    what = f"{len(sent.files)} files, {sent.size:,} bytes"
    print(f"{what} would be sent to {sent.repo} on {sent.hub}" if dry_run else f"{what} sent to {sent.url}")


def _note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)


def _done(sentence: str, found: Difference | None) -> None:
    print(sentence + (f"; {found}" if found is not None else "; not read back"))
