"""What an export begins with: one ordinary model folder, the tokenizer and the chat template that go with it.

A model with an adapter is merged first, into a folder beside the result that is removed again, so every export sees the same numbers
that `luthier export merge` writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from luthier.chat import ChatTemplate
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.export.merge import Dtype, learnt_template, merge
from luthier.files import temporary_sibling
from luthier.generation.chat import ChatModel
from luthier.models.hub import fetch
from luthier.models.loading import check_weights, read_config
from luthier.models.quantize.base import skeleton
from luthier.models.source import Source, find_source, template_for

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Ready:
    """A model that is whole.

    Attributes:
        source: what was named.
        folder: with config and weights.
        config: of the model.
        tokenizer: of the model.
        template: it was trained with, or that its tokenizer brings; None for a model that does not chat.
    """

    source: Source
    folder: Path
    config: PreTrainedConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None

    @property
    def name(self) -> str:
        """What to call the model."""
        return self.source.name

    def ends(self) -> list[int]:
        """Tokens that end an answer, in order of their numbers."""
        model = skeleton(self.config, torch.float32)
        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        if self.template is not None:
            return sorted(ChatModel(model, self.tokenizer, self.template).stop_ids())
        return [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]


@contextmanager
def ready(
    name: str | Path, out: Path, *, adapter: str | Path | None = None, checkpoint: int | None = None, dtype: Dtype | None = None
) -> Iterator[Ready]:
    """A model as one folder, for as long as it is needed.

    Args:
        name: a run's name or folder, a model folder or hub id, or an adapter folder.
        out: what will be written; a merged model lies beside it meanwhile.
        adapter: an adapter for a model.
        checkpoint: for a run, the step of a checkpoint.
        dtype: type of the weights, where an adapter is merged.

    Raises:
        UserError: nothing found under that name, or nothing that can be merged.
    """
    source = find_source(name, adapter=adapter, checkpoint=checkpoint)
    if source.adapter is None:
        folder = fetch(source.base.path, hub=source.base.hub, revision=source.base.revision)
        check_weights(folder)
        yield _ready(source, folder, load_tokenizer(source.tokenizer))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(out.absolute()).with_suffix(".merged")
    try:
        merge(name, temporary, adapter=adapter, checkpoint=checkpoint, dtype=dtype)
        yield _ready(source, temporary, load_tokenizer(temporary))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _ready(source: Source, folder: Path, tokenizer: Tokenizer) -> Ready:
    template = learnt_template(source, tokenizer)
    if template is None and tokenizer.chat_template:
        template = template_for(None, tokenizer)
    return Ready(source, folder, read_config(folder), tokenizer, template)
