"""From what the user names to the folders it is made of: a run, a model folder or an adapter folder → base and adapter.

| what is named | base | adapter |
|---|---|---|
| a run, method `lora` | the recipe's model | `final/`, or a checkpoint |
| a run, method `full` or `freeze` | `final/`, or a checkpoint | none |
| a model folder | the folder | the one that is given with it |
| an adapter folder | what its config names | the folder |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from luthier.chat import ChatTemplate, resolve
from luthier.data.tokenizer import Tokenizer
from luthier.errors import UserError
from luthier.models import catalog
from luthier.models.adapters.format import CONFIG_FILE, is_adapter
from luthier.models.catalog import template_of
from luthier.models.hub import TINY, fetch
from luthier.recipe.load import load_recipe
from luthier.recipe.schema import Model, Recipe
from luthier.runs.folder import RunFolder, find_run


@dataclass(frozen=True, slots=True)
class Source:
    """The parts of a tuned model.

    Attributes:
        name: what to call it: the run's name, or the folder's.
        base: the model to load first.
        adapter: folder of the adapter to put on it, or None.
        tokenizer: folder of the tokenizer that goes with it.
        recipe: the recipe, when it is a run.
    """

    name: str
    base: Model
    adapter: Path | None
    tokenizer: Path
    recipe: Recipe | None = None


def find_source(
    run_or_folder: str | Path, *, adapter: str | Path | None = None, checkpoint: int | None = None, base: bool = False
) -> Source:
    """Find the parts of a tuned model.

    Args:
        run_or_folder: a run's name or folder, a model (folder, name of the catalogue, hub id), or an adapter folder.
        adapter: an adapter folder or hub id, for a model.
        checkpoint: for a run, the step of a checkpoint; default: the final weights, or the last checkpoint if it has not ended.
        base: for a run, the model that it started from.

    Raises:
        UserError: there is no such thing, or the options do not fit together.
    """
    folder = Path(run_or_folder)
    run = None
    if str(run_or_folder) == TINY or (folder / "config.json").is_file():
        kind = "model"
    elif is_adapter(folder):
        kind = "adapter"
    else:
        run = _find_run(run_or_folder)
        kind = "run" if run else "model"
    if checkpoint is not None and kind != "run":
        raise UserError(f"{_a(kind)} has no checkpoints", where=str(folder), hint="Leave out `--checkpoint`.")
    if base and kind != "run":
        raise UserError(f"{_a(kind)} has no base to compare with", where=str(folder), hint="Leave out `--base`.")
    if adapter is not None and kind != "model":
        raise UserError(f"an adapter goes with a model, and this is {_a(kind)}", where=str(folder), hint="Leave out `--adapter`.")
    if run is not None:
        return _base(run) if base else _run(run, checkpoint)
    if kind == "adapter":
        return _adapter(folder)
    model = Model(path=str(run_or_folder))
    found = fetch(str(adapter)) if adapter is not None else None
    home = fetch(model.path)
    return Source(Path(model.path).expanduser().resolve().name, model, found, found if found and has_tokenizer(found) else home)


def template_for(recipe: Recipe | None, tokenizer: Tokenizer, model: str = "") -> ChatTemplate:
    """The chat template that a recipe trains and talks with: the one it names, else the tokenizer's own, else the catalogue's.

    Args:
        recipe: the recipe; None for a model that was made elsewhere.
        tokenizer: the tokenizer that goes with it.
        model: name of the model where there is no recipe.
    """
    if recipe is None:
        return resolve("auto", tokenizer.chat_template, tokenizer.variables, fallback=template_of(model))
    data, fallback = recipe.data, template_of(recipe.model.path)
    return resolve(data.template, tokenizer.chat_template, tokenizer.variables, data.thinking, fallback=fallback)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def tokenizer_folder(model: Model) -> Path:
    """The folder of the tokenizer that a recipe's model comes with."""
    return fetch(model.tokenizer or model.path, hub=model.hub, revision=model.revision)


def _find_run(name: str | Path) -> RunFolder | None:
    """The run of that name; None where it is the name of a model of the catalogue, or may be that of one on a hub."""
    try:
        return find_run(name)
    except UserError as error:
        if "/" in str(name) or catalog.find(str(name)):
            return None
        if models := " or ".join(f"`{model}`" for model in catalog.similar(str(name))):
            error.hint = f"{error.hint} Or did you mean the model {models}?"
        raise


def _run(run: RunFolder, checkpoint: int | None) -> Source:
    recipe = load_recipe(run.recipe)
    trained = run.find_checkpoint(checkpoint) if checkpoint is not None else _latest(run)
    if is_adapter(trained):
        # The adapter in the folder is the whole of what was trained, the one it continued from included.
        base, adapter = recipe.model.model_copy(update={"adapter": None}), trained
    else:
        base, adapter = Model(path=str(trained), attention=recipe.model.attention), None
    tokenizer = trained if has_tokenizer(trained) else tokenizer_folder(recipe.model)
    return Source(run.name if checkpoint is None else f"{run.name}, step {checkpoint}", base, adapter, tokenizer, recipe)


def _base(run: RunFolder) -> Source:
    recipe = load_recipe(run.recipe)
    model = recipe.model
    adapter = fetch(model.adapter, hub=model.hub) if model.adapter else None
    return Source(f"{run.name} (base)", model.model_copy(update={"adapter": None}), adapter, tokenizer_folder(model), recipe)


def _latest(run: RunFolder) -> Path:
    """The final weights of a run, or of the last checkpoint when it has not come to its end."""
    if run.final.is_dir():
        return run.final
    checkpoints = list(run.checkpoints().values())
    if not checkpoints:
        raise UserError(f"run `{run.name}` has saved nothing yet", hint="Wait for its first checkpoint, or resume it.")
    return checkpoints[-1]


def _adapter(folder: Path) -> Source:
    config = folder / CONFIG_FILE
    try:
        path = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", where=str(config)) from None
    if not path:
        raise UserError(
            "the adapter does not name its base model", where=str(config), hint="Give the model folder and `--adapter`."
        )
    return Source(folder.resolve().name, Model(path=path), folder, folder if has_tokenizer(folder) else fetch(path))


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
