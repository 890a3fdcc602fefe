"""`luthier train` and `luthier resume`: start a run here, in the background, or on several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from luthier.errors import UserError
from luthier.runs.folder import RunFolder, check_name, find_pipeline, find_run, free_name

if TYPE_CHECKING:
    from luthier.runs.console import ConsoleCallback

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe, e.g. train.learning_rate=2e-4.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Run in the background; `luthier logs NAME -f` follows it.")]
Processes = Annotated[int, typer.Option("--nproc", metavar="N", min=1, help="Processes on this machine, one a GPU.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result alone.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every step as a line.")]


class TakesFields(TyperCommand):
    """A command that takes fields of a recipe. Other tools take them as options; who tries that is told how they are written here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does.

        Raises:
            UserError: no such option.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # its class has no public name in typer
            if type(error).__name__ != "NoSuchOption":
                raise
            option = str(getattr(error, "option_name", ""))
            raise UserError("no such option", where=option, hint=_as_field(option)) from None


def _as_field(option: str) -> str:
    from luthier.recipe.help import fields

    name = option.lstrip("-").replace("-", "_")
    keys = [field.key for field in fields() if field.key.rpartition(".")[2] == name]
    example = f"here `{keys[0]}=…`" if keys else "such as `train.batch_size=8`"
    return f"Fields of the recipe are set without dashes, {example}; `-h` shows the options."


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run and of its folder.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for runs.")] = None,
    detach: Detach = False,
    nproc: Processes = 1,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune a model as a recipe says.

    Any field of the recipe can be set after it: luthier train R.yaml train.learning_rate=2e-4 method.rank=16
    """
    given = [*(overrides or []), *([f"output={json.dumps(str(output), ensure_ascii=False)}"] if output else [])]
    if (detach or nproc > 1) and _lists_stages(recipe):
        from luthier.cli import train_stages

        flags = _verbosity_flags(quiet, verbose)
        if detach:
            ranks = ["--nproc", str(nproc)] if nproc > 1 else []
            raise typer.Exit(train_stages.in_background(recipe, given, name, [*flags, *ranks]))
        train_stages.on_ranks(recipe, given, name, nproc, flags)
        return
    if detach or nproc > 1:
        folder = _folder_of(recipe, given, name)
        arguments = ["train", recipe, *given, "--name", folder.name, *_verbosity_flags(quiet, verbose)]
        _elsewhere(arguments, folder, detach, nproc)
        return
    from luthier import workshop

    workshop.train(recipe, overrides=given, name=name, callbacks=[_console(quiet, verbose)], progress=False)


def resume(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run's name or its folder.")],
    overrides: Overrides = None,
    detach: Detach = False,
    nproc: Processes = 1,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Carry a run on from its last checkpoint.

    A finished run goes further with a higher goal: luthier resume NAME train.max_steps=6000
    """
    if stages := find_pipeline(name):
        _resume_stages(stages, overrides or [], detach, nproc, quiet, verbose)
        return
    folder = find_run(name)
    if detach or nproc > 1:
        arguments = ["resume", str(folder.path), *(overrides or []), *_verbosity_flags(quiet, verbose)]
        _elsewhere(arguments, folder, detach, nproc)
        return
    from luthier import workshop

    workshop.resume(folder.path, overrides=overrides or [], callbacks=[_console(quiet, verbose)], progress=False)


def _lists_stages(recipe: str) -> bool:
    from luthier.recipe.pipeline import is_pipeline

    return is_pipeline(recipe)


def _resume_stages(folder: Path, overrides: list[str], detach: bool, nproc: int, quiet: bool, verbose: bool) -> None:
    if detach:
        hint = (
            f"Resume one stage in the background, such as `{folder.name}/STAGE`, or use `nohup luthier resume {folder.name} &`."
        )
        raise UserError("works for one run, and this is a pipeline of several", where="--detach", hint=hint)
    if nproc > 1:
        from luthier.cli import train_stages

        train_stages.resumed_on_ranks(folder, nproc, _verbosity_flags(quiet, verbose))
        return
    from luthier import workshop

    workshop.resume(folder, overrides=overrides, callbacks=[_console(quiet, verbose)], progress=False)


def _elsewhere(arguments: list[str], folder: RunFolder, detach: bool, nproc: int) -> None:
    from luthier.cli import train_launch

    if detach:
        code = train_launch.in_background([*arguments, *(["--nproc", str(nproc)] if nproc > 1 else [])], folder)
    else:
        code = train_launch.on_ranks(arguments, nproc, folder)
    raise typer.Exit(code)


def _folder_of(recipe: str, overrides: list[str], name: str | None) -> RunFolder:
    """The folder a new run will have; reading the recipe here tells its mistakes before any process is started."""
    from luthier.recipe.load import load_recipe

    resolved = load_recipe(recipe, overrides)
    chosen = name or resolved.name or free_name(resolved.output, Path(recipe).stem)
    return RunFolder(Path(resolved.output) / check_name(chosen))


def _console(quiet: bool, verbose: bool) -> ConsoleCallback:
    from luthier.runs.console import NORMAL, QUIET, VERBOSE, ConsoleCallback

    return ConsoleCallback(QUIET if quiet else VERBOSE if verbose else NORMAL)


def _verbosity_flags(quiet: bool, verbose: bool) -> list[str]:
    return [*(["-q"] if quiet else []), *(["-v"] if verbose else [])]
