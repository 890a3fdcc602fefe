"""`luthier data`: look at what a recipe would learn from, before it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.data_cache import cache_app
from luthier.cli.data_check import check
from luthier.cli.data_convert import convert
from luthier.cli.data_registry import add, formats, list_, show
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.data.loader import Batches
    from luthier.data.prepare import Dataset
    from luthier.data.tokenizer import Tokenizer

data_app = typer.Typer(help="Look at data before learning from it.", no_args_is_help=True)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe, e.g. data.max_length=512.")
]


@data_app.callback()
def data() -> None:
    """Look at data before learning from it."""


data_app.command()(check)
data_app.command()(convert)
data_app.command()(formats)
data_app.command("list")(list_)
data_app.command()(show)
data_app.command()(add)
data_app.add_typer(cache_app, name="cache")


@data_app.command()
def preview(
    recipe: RecipeName,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Show at most so many segments of the batch.")] = 8,
) -> None:
    """Print the first batch as the model will see it; what is learnt is coloured and stands between ⟦ ⟧."""
    from rich.console import Console

    from luthier.data.preview import coloured

    _, batches, tokenizer = _prepared(recipe, overrides or [])
    drawn, console = batches(0), Console(highlight=False, soft_wrap=True)
    store, batch = drawn.store, drawn.segments
    for number, segment in enumerate(batch[:rows].tolist(), 1):
        tokens, weight = store.segment(segment)
        learnt = int((weight != 0).sum())
        title = f"── {number} of {len(batch)} · {store.origin(segment)} · {len(tokens)} tokens, {learnt} learnt ──"
        console.print(title, style="dim", markup=False)
        console.print(coloured(tokenizer, tokens, weight))
    if len(batch) > rows:
        console.print(f"… and {len(batch) - rows} more (--rows)")


@data_app.command()
def stats(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print lengths, truncated share, supervised share and steps per epoch."""
    from luthier.data.preview import stats as measure

    dataset, batches, _ = _prepared(recipe, overrides or [])
    if batches.steps_per_epoch is None:
        raise UserError(
            "a stream has no length that could be measured", where="data.streaming", hint="Use `luthier data preview`."
        )
    for line in [*dataset.report.lines(), *measure(dataset, batches).lines()]:
        print(line)


def _prepared(name: str, overrides: list[str]) -> tuple[Dataset, Batches, Tokenizer]:
    """The dataset of a recipe and its batches, as `luthier train` would make them."""
    from rich.console import Console
    from rich.progress import Progress

    from luthier.data.loader import batches_of
    from luthier.engine.plan import batch_of
    from luthier.recipe.load import load_recipe, placed
    from luthier.workshop.assembly import prepare_data

    recipe = load_recipe(name, overrides)
    console = Console(stderr=True)
    with placed(name, recipe), Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokenising", total=None)
        tokenizer, _, dataset = prepare_data(
            recipe, progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)
        )
        examples, tokens = batch_of(recipe.train, recipe.stage.type, recipe.data.max_length, 1)
    return dataset, batches_of(dataset, recipe, (examples, tokens)), tokenizer
