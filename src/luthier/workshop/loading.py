"""From the name of a run, or a model folder made elsewhere, to a model that one can talk to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from luthier.chat import ChatTemplate
from luthier.chat.agreement import PLAIN, compare
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.engine.plan import DTYPES, choose_precision
from luthier.errors import UserError
from luthier.generation.adapters import CannotShare
from luthier.generation.chat import ChatModel
from luthier.generation.speaker import Speaker
from luthier.models.loading import load_model
from luthier.models.methods import load_adapter
from luthier.models.scoring import Classifier, RewardModel, scorer_of, scores
from luthier.models.source import Source, find_source, has_tokenizer, template_for
from luthier.workshop.run import Run


def load(
    run_or_model: Run | str | Path, *, checkpoint: int | None = None, base: bool = False, adapter: str | Path | None = None
) -> ChatModel | RewardModel | Classifier:
    """A model ready to talk to, or, where it was trained to score texts, ready to score them.

    Args:
        run_or_model: a run, its name under `./runs`, its folder; or a model folder, an adapter folder, a hub id or `tiny`.
        checkpoint: the step whose weights to take instead of the final ones (runs only).
        base: the model that the run started from (runs only).
        adapter: a PEFT adapter to put on a model (models only).

    Raises:
        UserError: nothing of that name, or a combination that makes no sense.
    """
    source = _source(run_or_model, checkpoint, base, adapter)
    return scorer_of(source) if scores(source) else _chat_model(source)


def load_chat(
    run_or_model: Run | str | Path, *, checkpoint: int | None = None, base: bool = False, adapter: str | Path | None = None
) -> ChatModel:
    """A model ready to talk to. Arguments are those of `load`.

    Raises:
        UserError: as `load`; or a model that scores texts and writes none.
    """
    source = _source(run_or_model, checkpoint, base, adapter)
    if scores(source):
        raise UserError(
            "this model scores texts and writes none", where=source.name, hint=f'Use `luthier.load("{source.name}")`.'
        )
    return _chat_model(source)


def load_speaker(
    run_or_model: Run | str | Path, *, checkpoint: int | None = None, base: bool = False, adapter: str | Path | None = None
) -> Speaker:
    """A model to talk to whose adapters can be changed. Arguments and errors are those of `load_chat`."""
    source = _source(run_or_model, checkpoint, base, adapter)
    if source.adapter is None:
        return Speaker(load_chat(run_or_model, checkpoint=checkpoint, base=base), base=source.base.path)
    bare = replace(source, adapter=None, name=source.base.path)
    speaker = Speaker(_chat_model(bare), base=source.base.path)
    try:
        speaker.use(source.name, source.adapter)
    except CannotShare:
        load_adapter(speaker.chat.model, source.adapter)
        speaker.chat.name = source.name
        return Speaker(speaker.chat, base=source.base.path, fixed=True)
    return speaker


def change_adapter(speaker: Speaker, name: str, *, checkpoint: int | None = None) -> str | None:
    """Have an adapter answer that a name leads to: one that was read before, a run's, or a folder's.

    Returns:
        A warning, if it was trained on a model of another name.

    Raises:
        UserError: there is none of that name, or it does not fit the model.
    """
    if name in speaker.names and checkpoint is None:
        speaker.use(name)
        return None
    source = find_source(name, checkpoint=checkpoint)
    if source.adapter is None:
        raise UserError("this is no adapter", where=name, hint="Name the folder of an adapter, or a run that trained one.")
    if known := speaker.named(source.adapter):
        speaker.use(known)
        return None
    tokenizer = load_tokenizer(source.tokenizer)
    if tokenizer.vocab_size != speaker.chat.tokenizer.vocab_size:
        raise UserError("this adapter has other tokens than the model", where=name, hint="Start with it, or merge it first.")
    own = source.recipe is not None or has_tokenizer(source.adapter)
    title = source.name if source.name not in speaker.names else str(source.adapter)
    speaker.use(title, source.adapter, template_for(source.recipe, tokenizer, source.base.path) if own else None)
    if Path(source.base.path).name == Path(speaker.base).name:
        return None
    return f"warning: `{source.name}` was trained on `{source.base.path}`, and this is `{speaker.base}`"


def _source(run_or_model: Run | str | Path, checkpoint: int | None, base: bool, adapter: str | Path | None) -> Source:
    place = run_or_model.path if isinstance(run_or_model, Run) else run_or_model
    return find_source(place, adapter=adapter, checkpoint=checkpoint, base=base)


def _chat_model(source: Source) -> ChatModel:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(source.recipe, device)
    model = load_model(source.base, dtype=DTYPES[precision], device=device)
    if source.adapter is not None:
        load_adapter(model, source.adapter)
    tokenizer = load_tokenizer(source.tokenizer)
    return ChatModel(model.eval(), tokenizer, template_for(source.recipe, tokenizer, source.base.path), name=source.name)


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
