"""`luthier recipes`: the recipes that come with Luthier, to look at and to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipes_app = typer.Typer(help="The shipped recipes, and the schema of all recipes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name as `luthier recipes list` prints it, e.g. tiny/identity.")]


@recipes_app.command("list")
def list_recipes() -> None:
    """Names of the shipped recipes, and what each is for."""
    from luthier.recipe.shipped import shipped_recipes, summary

    recipes = shipped_recipes()
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        typer.echo(f"{name:{width}}  {summary(path)}".rstrip())


@recipes_app.command("show")
def show_recipe(name: Name) -> None:
    """Print a shipped recipe."""
    from luthier.recipe.shipped import find_shipped

    typer.echo(find_shipped(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Name, file: Annotated[Path, typer.Argument(help="Where to write it: a file that is not there yet, or a folder.")]
) -> None:
    """Write a shipped recipe to a file of your own; the paths in it go on pointing to the shipped data."""
    from luthier.recipe.shipped import copy_shipped

    typer.echo(f"wrote {copy_shipped(name, file)}")


@recipes_app.command("schema")
def show_schema() -> None:
    """Print the JSON schema of recipes, for editors and other tools."""
    import json

    from luthier.recipe.help import json_schema

    typer.echo(json.dumps(json_schema(), ensure_ascii=False, indent=2))
