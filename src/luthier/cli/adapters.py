"""`luthier adapters`: look into adapter folders, and make one adapter of several."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.models.adapters.contents import Contents

adapters_app = typer.Typer(help="Look into adapters, combine several, and take over those of other tools.", no_args_is_help=True)


class Method(StrEnum):
    """Ways to make one adapter of several."""

    cat = "cat"
    svd = "svd"
    linear = "linear"
    ties = "ties"
    dare_linear = "dare_linear"
    dare_ties = "dare_ties"
    magnitude_prune = "magnitude_prune"


@adapters_app.command()
def merge(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER…", help="Two or more adapter folders, or names of runs; their weights may follow."),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write; it must not exist yet or be empty.")],
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="W…", help="One for each adapter: `--weights 0.7 0.3`. Default: 1 each, or equal shares."),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="`cat` adds the updates exactly, `svd` at a given rank; the others are cheaper or drop values.")
    ] = Method.cat,
    density: Annotated[float, typer.Option(help="Share of the values that `ties`, `dare_*` and `magnitude_prune` keep.")] = 0.5,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the result of `svd`. Default: the largest.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what `dare_*` drops.")] = 0,
) -> None:
    """Make one adapter of several adapters of the same base model; the base is not loaded."""
    from luthier.export.combine import combine

    names, numbers = _apart(adapters)
    given = [_number(part) for text in weights or () for part in text.replace(",", " ").split()] + numbers
    folder = combine(names, output, weights=given, method=method.value, density=density, rank=rank, seed=seed)
    print(f"{len(names)} adapters written as one to {folder}")


@adapters_app.command("list")
def list_adapters(
    folder: Annotated[Path, typer.Argument(help="A folder; all adapters in it and below are listed.")] = Path(),
) -> None:
    """List the adapters below a folder."""
    from luthier.models.adapters.format import CONFIG_FILE, read_settings

    found = sorted(file.parent for file in folder.rglob(CONFIG_FILE))
    if not found:
        raise UserError("no adapter here", where=str(folder))
    for each in found:
        settings = read_settings(each)
        base = settings.get("base_model_name_or_path")
        print(f"{each}  {settings.get('peft_type', 'unknown')}" + (f"  of {base}" if base else ""))


@adapters_app.command()
def show(folder: Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter folder, or the name of a run.")]) -> None:
    """Show what an adapter is made of."""
    from luthier.export.combine import adapter_folder
    from luthier.models.adapters.contents import read_contents
    from luthier.models.adapters.format import kind_of

    place = adapter_folder(folder)
    for name, value in (_facts(read_contents(place)) if kind_of(place) == "LORA" else _any(place)).items():
        print(f"{name:<10} {value}")


def _any(folder: Path) -> dict[str, str]:
    """What `show` prints of an adapter that is not LoRA: name → text."""
    from luthier.models.adapters.contents import summarised
    from luthier.models.adapters.format import WEIGHTS_FILE, load_tensors, read_settings

    settings, tensors = read_settings(folder), load_tensors(folder / WEIGHTS_FILE)
    return {
        "folder": str(folder),
        "base": settings.get("base_model_name_or_path") or "not named",
        "kind": str(settings.get("peft_type")),
        "tensors": summarised(tensors),
        "numbers": f"{sum(tensor.numel() for tensor in tensors.values()):,}",
    }


def _facts(contents: Contents) -> dict[str, str]:
    """What `show` prints of a LoRA adapter: name → text."""
    from luthier.models.adapters.contents import summarised

    config = contents.config
    kinds = [name for name, there in (("rsLoRA", config.rslora), ("DoRA", config.dora)) if there]
    ranks = sorted({len(a) for a, _ in contents.parts.values()})
    modules = sorted({name.rpartition(".")[2] for name in contents.layers})
    fused = sorted({".".join(name.split(".")[-2:]) for name in contents.experts})
    return {
        "folder": str(contents.folder),
        "base": contents.base or "not named",
        "kind": ", ".join(["LoRA", *kinds]),
        "rank": ", ".join(map(str, ranks)) + f" (alpha {config.alpha:g})",
        "layers": f"{len(contents.layers)}: {', '.join(modules)}",
        **({"experts": f"{len(contents.experts)}: {', '.join(fused)}"} if fused else {}),
        "numbers": f"{contents.count():,}",
        "besides": summarised(contents.others) or "nothing",
    }


def _apart(words: list[str]) -> tuple[list[str], list[float]]:
    """Adapters and weights: `A B --weights 0.7 0.3` leaves all but the first weight among the adapters."""
    numbers: list[float] = []
    while words and not Path(words[-1]).exists():
        try:
            numbers.insert(0, float(words[-1]))
        except ValueError:
            break
        words = words[:-1]
    return words, numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"`{text}` is not a number", where="--weights", hint="Write `--weights 0.7 0.3`.") from None
