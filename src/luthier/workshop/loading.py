"""From the name of a run, or a model folder made elsewhere, to a model that one can talk to."""

from __future__ import annotations

from pathlib import Path

import torch

from luthier.chat import ChatTemplate, resolve
from luthier.chat.agreement import PLAIN, compare
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.engine.plan import DTYPES, choose_precision
from luthier.export.source import find_source
from luthier.generation.chat import ChatModel
from luthier.models.catalog import template_of
from luthier.models.loading import load_model
from luthier.models.methods import load_adapter
from luthier.recipe.schema import Recipe
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
    place = run_or_model.path if isinstance(run_or_model, Run) else run_or_model
    source = find_source(place, adapter=adapter, checkpoint=checkpoint, base=base)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(source.recipe, device)
    model = load_model(source.base, dtype=DTYPES[precision], device=device)
    if source.adapter is not None:
        load_adapter(model, source.adapter)
    tokenizer = load_tokenizer(source.tokenizer)
    return ChatModel(model.eval(), tokenizer, template_for(source.recipe, tokenizer, source.base.path), name=source.name)


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


def served_otherwise(template: ChatTemplate, tokenizer: Tokenizer) -> str | None:
    """A warning, if a model is to be taught in another format than the one that it came with; None if the two agree.

    The trained model is written with the template that it learnt with, so the warning is for those who serve an adapter on the base
    model, and for those who named the wrong template.
    """
    own = tokenizer.chat_template
    if own is None or own == template.source:
        return None
    serving = ChatTemplate("the model's own", own, tokenizer.variables)
    findings = compare(
        template,
        serving,
        lambda text: tokenizer.encode(text).ids.tolist(),
        lambda ids: tokenizer.decode(ids, skip_special=False),
        PLAIN,
    )
    found = next((finding for finding in findings if not finding.agree), None)
    if found is None:
        return None
    return (
        f"warning: the template `{template.name}` is not the one that this model came with; {found.line()}. Serve the model with the "
        f"template that is saved beside it, or train with `data.template: auto`"
    )
