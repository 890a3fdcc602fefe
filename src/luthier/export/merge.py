"""Merge: fold what was learnt into the base, and write an ordinary transformers folder.

    W ← W + s B A     for every adapted layer, in float32, and only then cast to the type of the file

Merging in bfloat16 would round twice, and lose most of an update that is small beside its weight. It is done tensor by tensor
(`luthier.export.stream`), and where the files and the architecture differ too much for that, in memory, at four bytes for each parameter.

An adapter that was trained on a base in few bits has learnt to make up for a part of what rounding lost. There are two models to write:

* `onto="base"`: the unquantised base with the adapter. The base is better than the rounded one, the adapter a little out of place on it;
* `onto="quantised"`: the model that was trained: the rounded weights written out in full, with the adapter.

Which is nearer to the run's own measurements is shown in `docs/quantization.md`. An adapter that began with LoftQ holds what rounding
lost, so only the second is right for it.

The folder holds everything that another tool needs to talk to the model as `luthier chat` does: weights in shards with their index,
config, tokenizer with the chat template of the run, a generation config that knows the template's end of turn, and a model card. It
is built under a temporary name and renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from luthier.chat import ChatTemplate, resolve
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.engine.plan import DTYPES, choose_precision
from luthier.errors import UserError
from luthier.export.folder import new_folder
from luthier.export.stream import stream
from luthier.export.tensors import free_folder, shard_size, write_model
from luthier.generation.chat import ChatModel
from luthier.models.adapters.borrowed import check_mergeable
from luthier.models.adapters.format import kind_of
from luthier.models.adapters.merge import merge as merge_adapter
from luthier.models.catalog import template_of
from luthier.models.dense_head import FILE as DENSE_FILE
from luthier.models.hub import fetch
from luthier.models.legacy.convert import origin, to_original
from luthier.models.legacy.norm_head import copy_trained
from luthier.models.loading import load_model, read_config
from luthier.models.methods import load_adapter
from luthier.models.policy import save_description, save_model
from luthier.models.quantize.base import round_weights
from luthier.models.quantize.scheme import Scheme
from luthier.models.score_head import DENSE, is_scorer
from luthier.models.scoring import scores, scoring_of
from luthier.models.source import Source, find_source
from luthier.recipe.schema import PLAIN, LoRA
from luthier.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtype = Literal["float32", "bfloat16", "float16"]
Onto = Literal["base", "quantised"]


def merge(
    run_or_folder: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    checkpoint: int | None = None,
    max_shard_size: str = "5GB",
    dtype: Dtype | None = None,
    original_names: bool = False,
    onto: Onto = "base",
    tell: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Write a tuned model as one ordinary transformers folder, and return that folder.

    Args:
        run_or_folder: a run's name or folder, a model folder or hub id, or an adapter folder.
        out: the folder to write; it must not exist yet, or be empty.
        adapter: an adapter for a model.
        checkpoint: for a run, the step of a checkpoint; default: the final weights.
        max_shard_size: largest weight file, such as `2GB`.
        dtype: type of the written weights; default: the base model's.
        original_names: for a model made of an old checkpoint, write it as that checkpoint: its parameter names, config and tokenizer.
        onto: for an adapter trained on a base in few bits: the base before it was rounded, or after.
        tell: hears what the user should know.

    Raises:
        UserError: nothing found under that name, `out` holds something, the size is none, the adapter is a prefix or a prompt, which no
            weight can hold, or the disk is full.
    """
    out = free_folder(out)
    largest = shard_size(max_shard_size)
    source = find_source(run_or_folder, adapter=adapter, checkpoint=checkpoint)
    if source.adapter is not None:
        check_mergeable(kind_of(source.adapter))
    scheme = _trained_on(source) if onto == "quantised" else None
    wanted = getattr(torch, dtype) if dtype else _own_dtype(source)
    found = None
    if source.adapter is not None and not scores(source):
        found = stream(_base(source), source.adapter, dtype=wanted, scheme=scheme, scaling=source.base.rope_scaling)
    model = merged(source, scheme).to(wanted) if found is None else found.model
    if original_names:
        origin(model.config.to_dict(), str(run_or_folder))  # refuses a model that has no other names before anything is written

    def write(folder: Path) -> None:
        if found is None:
            save_model(model, folder, max_shard_size=max_shard_size)
        else:
            save_description(model, folder)
            write_model(folder, found.tensors, largest=largest)
            copy_trained(_base(source), folder, wanted)

    _publish(source, model, out.absolute(), write, original_names)
    if source.base.quantization is not None and source.adapter is not None and onto == "base":
        tell(TWICE if _began_with_the_loss(source) else DIFFERENCE)
    return out


def merged(source: Source, scheme: Scheme | None = None) -> PreTrainedModel:
    """The model with its adapter folded in, float32, on the CPU, ready to be written.

    Args:
        source: base and adapter.
        scheme: round the base's layers by it first.
    """
    base = source.base.model_copy(update={"quantization": None, "attention": "auto"})
    scoring = scoring_of(source, load_tokenizer(source.tokenizer)) if scores(source) else None
    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"), scoring=scoring)
    if scheme is not None:
        round_weights(model, scheme)
    if source.adapter is not None:
        load_adapter(model, source.adapter)
        merge_adapter(model)
    model.config.use_cache = True  # off in training; whoever loads this folder wants to generate
    return model


DIFFERENCE = (
    "the adapter was trained on a base in few bits and is merged into the one before rounding: the model differs a little from the one "
    "that was trained. `--onto quantised` writes that one out in full (see docs/quantization.md)"
)
"""What is said when the merged model is not quite the trained one."""
TWICE = (
    "the adapter began with what rounding had lost (`init: loftq`), and is merged into the base before rounding, which has not lost it: "
    "that part counts twice. `--onto quantised` writes the model that was trained (see docs/quantization.md)"
)
"""What is said when it is the wrong one."""


def _began_with_the_loss(source: Source) -> bool:
    """Whether the adapter was given what rounding had lost."""
    method = source.recipe.method if source.recipe is not None else None
    return isinstance(method, LoRA) and method.init == "loftq"


def _trained_on(source: Source) -> Scheme | None:
    """How the base was rounded in training; None for a base whose files are in few bits themselves.

    Raises:
        UserError: nothing says so.
    """
    if source.base.quantization is not None:
        cpu = torch.device("cpu")
        return Scheme(source.base.quantization, DTYPES[choose_precision(source.recipe, cpu)], cpu)
    if getattr(read_config(_base(source)), "quantization_config", None) is not None:
        return None
    raise UserError(
        "nothing says that this adapter was trained on a base in few bits", where="--onto", hint="Name the run that made it."
    )


def _base(source: Source) -> Path:
    return fetch(source.base.path, hub=source.base.hub, revision=source.base.revision)


def _own_dtype(source: Source) -> torch.dtype:
    """The type that the base's files are in."""
    declared = read_config(_base(source), scoring=scores(source)).dtype
    return declared if isinstance(declared, torch.dtype) else torch.float32


def _publish(source: Source, model: PreTrainedModel, out: Path, write: Callable[[Path], None], original_names: bool) -> None:
    """Write the folder under a temporary name and rename it; `write` writes the model, which may be without weights here."""
    tokenizer = load_tokenizer(source.tokenizer)
    template = learnt_template(source, tokenizer)
    if template is not None and getattr(model, "generation_config", None) is not None:
        # A base model's own ends often lack the template's end of turn, and then a tuned model seems never to stop.
        model.generation_config.eos_token_id = sorted(ChatModel(model, tokenizer, template).stop_ids()) or None
    original = "original"
    with new_folder(out, within=original if original_names else ".") as temporary:
        write(temporary)
        tokenizer.save(temporary, template.source if template is not None else None)
        (temporary / "README.md").write_text(model_card(source, model), encoding="utf-8")
        if original_names:
            (temporary / original).mkdir()
            to_original(temporary, temporary / original, small_files=_first_base(source))


def _first_base(source: Source) -> Path:
    """The folder of the model that it all began with."""
    model = source.recipe.model if source.recipe is not None else source.base
    return fetch(model.path, hub=model.hub, revision=model.revision)


def learnt_template(source: Source, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template that a run learnt with; None where nothing is known beyond the tokenizer's own."""
    if source.recipe is None or source.recipe.stage.type in PLAIN:
        return None
    data, fallback = source.recipe.data, template_of(source.recipe.model.path)
    return resolve(data.template, tokenizer.chat_template, tokenizer.variables, data.thinking, fallback=fallback)


def from_hub(name: str) -> bool:
    """Whether this is a model's or data set's id on a hub, and no folder or file of this machine."""
    return name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name).exists()


def model_card(source: Source, model: PreTrainedModel) -> str:
    """A short README: what the model is made of, and how to load it."""
    origin = source.recipe.model.path if source.recipe is not None else source.base.path
    parts = [f"base model: {origin if from_hub(origin) else Path(origin).name}"]
    if source.recipe is not None:
        parts += [f"stage: {source.recipe.stage.type}", f"method: {source.recipe.method.type}"]
    parts.append(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    parts.append(f"dtype: {str(model.dtype).removeprefix('torch.')}")
    kind, task = ("CausalLM", "text-generation") if not is_scorer(model) else ("SequenceClassification", "text-classification")
    header = f"library_name: transformers\npipeline_tag: {task}\ntags: [luthier]"
    if from_hub(origin):
        header += f"\nbase_model: {origin}"
    listing = "\n".join(f"- {part}" for part in parts)
    if getattr(model.config, DENSE, None):
        listing += (
            f"\n\nIts head has dense layers, which lie in `{DENSE_FILE}`: `luthier.load` finds them, transformers alone does not."
        )
    return f"""---
{header}
---

# {source.name}

Fine-tuned with Luthier {__version__}; adapters, if any, are merged into the weights.

{listing}

```python
from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""
