"""From the name of a run, or a model folder made elsewhere, to a model that one can talk to."""

from __future__ import annotations

from pathlib import Path

import torch

from luthier.chat import ChatTemplate, resolve
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.engine.plan import DTYPES, choose_precision
from luthier.errors import UserError
from luthier.generation.chat import ChatModel
from luthier.models.adapters.format import CONFIG_FILE as CONFIG
from luthier.models.hub import fetch
from luthier.models.load import load_model
from luthier.models.methods import load_adapter
from luthier.recipe.load import load_recipe
from luthier.recipe.schema import Model, Recipe
from luthier.runs.folder import RunFolder, find_run
from luthier.workshop.run import Run


def load(
    run_or_model: Run | str | Path, *, checkpoint: int | None = None, base: bool = False, adapter: str | Path | None = None
) -> ChatModel:
    """A model ready to talk to.

    Args:
        run_or_model: a run, its name under `./runs`, its folder; or a model folder, an adapter folder, a hub id or `tiny`.
        checkpoint: the step whose weights to take instead of the final ones (runs only).
        base: the model that the run started from (runs only).
        adapter: a PEFT adapter to put on a model (models only).

    Raises:
        UserError: nothing of that name, or a combination that makes no sense.
    """
    run = _as_run(run_or_model)
    if run is not None:
        if adapter is not None:
            raise UserError("a run brings its own adapter", where="--adapter", hint="Give the base model's folder instead.")
        return _load_run(run, checkpoint, base)
    if checkpoint is not None or base:
        raise UserError(f"`{run_or_model}` is a model, not a run", hint="A checkpoint or base can be chosen for runs only.")
    return _load_model(str(run_or_model), adapter)


def template_for(recipe: Recipe, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template that a recipe trains and talks with."""
    return resolve(recipe.data.template, tokenizer.chat_template, tokenizer.variables)


def tokenizer_for(section: Model) -> Tokenizer:
    """The tokenizer of a recipe's model."""
    return load_tokenizer(fetch(section.tokenizer or section.path, hub=section.hub, revision=section.revision))


def device() -> torch.device:
    """Where to compute: the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _as_run(run_or_model: Run | str | Path) -> RunFolder | None:
    """The run meant, or None when a model is meant."""
    if isinstance(run_or_model, Run):
        return run_or_model.folder
    path = Path(run_or_model)
    if (path / "config.json").is_file() or (path / CONFIG).is_file() or str(run_or_model) == "tiny":
        return None
    try:
        return find_run(run_or_model)
    except UserError:
        if path.is_dir() or "/" in str(run_or_model):
            return None
        raise


def _load_run(folder: RunFolder, checkpoint: int | None, base: bool) -> ChatModel:
    recipe = load_recipe(folder.recipe)
    tokenizer = tokenizer_for(recipe.model)
    dtype = DTYPES[choose_precision(recipe, device())]
    weights = None if base else _weights(folder, checkpoint)
    section = recipe.model
    if weights is not None and not (weights / CONFIG).is_file():
        section = Model(path=str(weights), dtype=section.dtype, attention=section.attention)
    model = load_model(section, dtype=dtype, device=device())
    if weights is not None and (weights / CONFIG).is_file():
        load_adapter(model, weights)
    elif base and recipe.model.adapter is not None:
        load_adapter(model, fetch(recipe.model.adapter, hub=recipe.model.hub))
    name = f"{folder.name} (base)" if base else f"{folder.name}, step {checkpoint}" if checkpoint is not None else folder.name
    return ChatModel(model.eval(), tokenizer, template_for(recipe, tokenizer), name=name)


def _weights(folder: RunFolder, checkpoint: int | None) -> Path:
    if checkpoint is not None:
        return folder.find_checkpoint(checkpoint)
    if folder.final.is_dir():
        return folder.final
    saved = folder.checkpoints()
    if not saved:
        raise UserError(f"run `{folder.name}` has saved nothing yet", hint="Wait for its first checkpoint, or use --base.")
    return saved[max(saved)]


def _load_model(path: str, adapter: str | Path | None) -> ChatModel:
    """A model folder, hub id or `tiny`; an adapter folder brings its base model with it."""
    folder = fetch(path)
    if (folder / CONFIG).is_file() and not (folder / "config.json").is_file():
        if adapter is not None:
            raise UserError("is an adapter itself", where=path, hint="Give the base model's folder, and this one as --adapter.")
        adapter, path = folder, _base_of(folder)
    section = Model(path=path)
    dtype = DTYPES["bf16" if device().type == "cuda" else "fp32"]
    model = load_model(section, dtype=dtype, device=device())
    if adapter is not None:
        load_adapter(model, fetch(str(adapter)))
    tokenizer = tokenizer_for(section)
    template = resolve("auto", tokenizer.chat_template, tokenizer.variables)
    return ChatModel(model.eval(), tokenizer, template, name=Path(path).name)


def _base_of(adapter: Path) -> str:
    """The base model that an adapter's config names.

    Raises:
        UserError: it names none.
    """
    import json

    base = json.loads((adapter / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(
            "the adapter does not name its base model", where=str(adapter), hint="Give the base model, and this as --adapter."
        )
    return str(base)
