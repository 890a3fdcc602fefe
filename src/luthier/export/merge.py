"""Merge: fold what was learnt into the base, and write an ordinary transformers folder.

    W ← W + s B A     for every adapted layer, in float32, and only then cast to the type of the file

Merging in bfloat16 would round twice, and lose most of an update that is small beside its weight. The price is memory: four bytes
for each parameter of the model. A base that was quantised in training is merged in its unquantised form.

The folder holds everything that another tool needs to talk to the model as `luthier chat` does: weights in shards with their index,
config, tokenizer with the chat template of the run, a generation config that knows the template's end of turn, and a model card. It
is built under a temporary name and renamed.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError

from luthier import __version__
from luthier.chat import ChatTemplate, resolve
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.errors import UserError
from luthier.export.source import Source, find_source
from luthier.files import is_disk_full, publish, temporary_sibling
from luthier.generation.chat import ChatModel
from luthier.models.adapters.merge import merge as merge_adapter
from luthier.models.hub import fetch
from luthier.models.legacy.convert import origin, to_original
from luthier.models.loading import load_model, read_config
from luthier.models.methods import load_adapter
from luthier.models.policy import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtype = Literal["float32", "bfloat16", "float16"]

_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]B", re.IGNORECASE)


def merge(
    run_or_folder: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    checkpoint: int | None = None,
    max_shard_size: str = "5GB",
    dtype: Dtype | None = None,
    original_names: bool = False,
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

    Raises:
        UserError: nothing found under that name, `out` holds something, the size is none, or the disk is full.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("already there, and not empty", where=str(out), hint="Give another folder with `--out`.")
    if not _SIZE.fullmatch(max_shard_size):
        raise UserError(f"`{max_shard_size}` is not a size", where="--max-shard-size", hint="Write it as `2GB` or `500MB`.")
    source = find_source(run_or_folder, adapter=adapter, checkpoint=checkpoint)
    model = merged(source)
    model.to(getattr(torch, dtype) if dtype else _own_dtype(source))
    if original_names:
        origin(model.config.to_dict(), str(run_or_folder))  # refuses a model that has no other names before anything is written
    _publish(source, model, out.absolute(), max_shard_size, original_names)
    return out


def merged(source: Source) -> PreTrainedModel:
    """The model with its adapter folded in, float32, on the CPU, ready to be written."""
    base = source.base.model_copy(update={"quantization": None, "attention": "auto"})
    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    if source.adapter is not None:
        load_adapter(model, source.adapter)
        merge_adapter(model)
    model.config.use_cache = True  # off in training; whoever loads this folder wants to generate
    return model


def _own_dtype(source: Source) -> torch.dtype:
    """The type that the base's files are in."""
    declared = read_config(fetch(source.base.path, hub=source.base.hub, revision=source.base.revision)).dtype
    return declared if isinstance(declared, torch.dtype) else torch.float32


def _publish(source: Source, model: PreTrainedModel, out: Path, max_shard_size: str, original_names: bool) -> None:
    tokenizer = load_tokenizer(source.tokenizer)
    template = _learnt_template(source, tokenizer)
    if template is not None and model.generation_config is not None:
        # A base model's own ends often lack the template's end of turn, and then a tuned model seems never to stop.
        model.generation_config.eos_token_id = sorted(ChatModel(model, tokenizer, template).stop_ids()) or None
    temporary = temporary_sibling(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, temporary, max_shard_size=max_shard_size)
        tokenizer.save(temporary, template.source if template is not None else None)
        (temporary / "README.md").write_text(model_card(source, model), encoding="utf-8")
        finished = temporary
        if original_names:
            (finished := temporary / "original").mkdir()
            to_original(temporary, finished, small_files=_first_base(source))
        publish(finished, out)
    except (OSError, SafetensorError) as error:
        reason = "the disk is full" if is_disk_full(error) else getattr(error, "strerror", None) or error
        raise UserError(f"cannot write the merged model: {reason}", where=str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _first_base(source: Source) -> Path:
    """The folder of the model that it all began with."""
    model = source.recipe.model if source.recipe is not None else source.base
    return fetch(model.path, hub=model.hub, revision=model.revision)


def _learnt_template(source: Source, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template that a run learnt with; None where nothing is known beyond the tokenizer's own."""
    if source.recipe is None or source.recipe.stage.type == "pt":
        return None
    data = source.recipe.data
    return resolve(data.template, tokenizer.chat_template, tokenizer.variables, data.thinking)


def model_card(source: Source, model: PreTrainedModel) -> str:
    """A short README: what the model is made of, and how to load it."""
    origin = source.recipe.model.path if source.recipe is not None else source.base.path
    from_hub = not Path(origin).is_dir() and "/" in origin
    parts = [f"base model: {origin if from_hub else Path(origin).name}"]
    if source.recipe is not None:
        parts += [f"stage: {source.recipe.stage.type}", f"method: {source.recipe.method.type}"]
    parts.append(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    parts.append(f"dtype: {str(model.dtype).removeprefix('torch.')}")
    header = "library_name: transformers\npipeline_tag: text-generation\ntags: [luthier]"
    if from_hub:
        header += f"\nbase_model: {origin}"
    listing = "\n".join(f"- {part}" for part in parts)
    return f"""---
{header}
---

# {source.name}

Fine-tuned with Luthier {__version__}; adapters, if any, are merged into the weights.

{listing}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""
