r"""A model in few bits, as a folder that transformers, vLLM and others load as it stands.

| method | bits | needs data | library | read by |
|---|---|---|---|---|
| `nf4`, `int8` | 4, 8 | no | bitsandbytes | transformers, vLLM |
| `torchao-int8`, `torchao-int4` | 8, 4 | no | torchao | transformers, vLLM |
| `gptq`, `awq` | 4 | yes | gptqmodel | transformers, vLLM, SGLang |

The first two round each weight for itself. GPTQ (Frantar et al. 2022, arXiv:2210.17323) rounds the columns of a matrix one after the
other and lets those that are left make up for the error, which needs the layer's inputs; AWQ (Lin et al. 2023, arXiv:2306.00978)
scales the inputs that matter most before it rounds. Both are shown texts that the run has learnt from, in its own template: what the
model will be asked is what must stay right.

The whole model stands in memory. Afterwards the folder is loaded again, and its perplexity on the same texts is compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.data.prepare import prepare
from luthier.errors import UserError
from luthier.export.check import Difference, answer, answer_of, difference, question
from luthier.export.folder import new_folder
from luthier.export.source import Ready, ready
from luthier.export.tensors import free_folder
from luthier.models.loading import quiet

Method = Literal["nf4", "int8", "torchao-int8", "torchao-int4", "gptq", "awq"]
PACKAGES = {
    "nf4": ("bitsandbytes", "quantize"),
    "int8": ("bitsandbytes", "quantize"),
    "torchao-int8": ("torchao", "torchao"),
    "torchao-int4": ("torchao", "torchao"),
    "gptq": ("gptqmodel", ""),
    "awq": ("gptqmodel", ""),
}
"""Method → the package that does it, and the extra that brings it."""
TOLERANCE = {method: 0.02 if method.endswith("int8") else 0.25 for method in get_args(Method)}
"""How far the perplexity may be off, as a share."""
GROUP = 128
"""Weights that share a scale in GPTQ and AWQ; 32 in models whose layers are too narrow for it."""
TEXTS, LENGTH = 128, 512
"""Texts shown to GPTQ and AWQ, and tokens of each, at most."""


def quantize(
    name: str | Path,
    out: str | Path,
    *,
    method: Method,
    adapter: str | Path | None = None,
    checkpoint: int | None = None,
    tolerance: float | None = None,
) -> Difference:
    """Write a model in few bits.

    Args:
        name: a run, a model folder or hub id, or an adapter folder, which is merged first.
        out: the folder to write; it must not exist yet, or be empty.
        method: see above.
        adapter: an adapter for a model.
        checkpoint: for a run, the step of a checkpoint.
        tolerance: how far the perplexity may be off, as a share, in place of the usual one of the method.

    Returns:
        How far it is off.

    Raises:
        UserError: a package is missing or refuses, there is no data where some is needed, or the result differs too much.
    """
    package, extra = PACKAGES[method]
    if importlib.util.find_spec(package) is None:
        hint = f"pip install 'luthier[{extra}]'" if extra else f"pip install {package}"
        raise UserError(f"`{method}` needs the package `{package}`", where="--method", hint=f"Install it with `{hint}`.")
    out = free_folder(out)
    with new_folder(out) as temporary, ready(name, out, adapter=adapter, checkpoint=checkpoint) as model:
        texts = calibration(model)
        if method in ("gptq", "awq") and not texts:
            raise UserError(f"`{method}` needs texts, and only a run has some", where=str(name), hint="Name the run, or use nf4.")
        tokens = torch.cat(texts)[:LENGTH] if texts else question(model.tokenizer, model.config.vocab_size)
        expected = answer_of(model.folder, tokens)
        _written(model, temporary, method, texts, str(name))
        source = model.template.source if model.template is not None else None
        model.tokenizer.save(temporary, source)
        allowed = TOLERANCE[method] if tolerance is None else tolerance
        found = difference("perplexity", expected, _asked(temporary, tokens), tokens, allowed, "transformers")
        found.demand(str(name))
    return found


def calibration(model: Ready) -> list[Tensor]:
    """Texts that a run has learnt from, as tokens: spread over its data, each cut to `LENGTH`. None for a model without a run.

    Args:
        model: with its recipe, tokenizer and template.
    """
    recipe = model.source.recipe
    if recipe is None or recipe.data.streaming:
        return []
    store = prepare(recipe, model.tokenizer, model.template).store
    offsets = store.offsets
    count = len(offsets) - 1
    chosen = range(0, count, max(1, count // TEXTS))
    texts = [torch.as_tensor(store.tokens[offsets[at] : offsets[at + 1]][:LENGTH].copy()).long() for at in chosen]
    return [text for text in texts if len(text) > 1][:TEXTS]


def _written(model: Ready, folder: Path, method: Method, texts: Sequence[Tensor], where: str) -> None:
    """Quantise and save by whichever library does it."""
    write: Callable[[], None]
    if method in ("gptq", "awq"):
        write = lambda: _by_gptqmodel(model.folder, folder, method, texts)  # noqa: E731
    else:
        write = lambda: _rounded(model.folder, method).save_pretrained(folder)  # noqa: E731
    try:
        with quiet():
            write()
    except (OSError, SafetensorError, UserError):
        raise
    except Exception as error:  # of a library, which knows best what it cannot do on this machine
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"`{PACKAGES[method][0]}` cannot write this model ({first})", where=where, hint="Try another method."
        ) from error


def _rounded(folder: Path, method: Method) -> PreTrainedModel:
    """The model, rounded while it is loaded."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    settings: Any
    if method == "nf4":
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    elif method == "int8":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup

        four = method == "torchao-int4"
        int4 = torch.int4  # type: ignore[attr-defined]
        settings = TorchAoConfig(IntxWeightOnlyConfig(int4, granularity=PerGroup(32)) if four else Int8WeightOnlyConfig())
    device = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, device_map=device, dtype="auto", use_safetensors=True, local_files_only=True
    )


def _by_gptqmodel(folder: Path, out: Path, method: Method, texts: Sequence[Tensor]) -> None:
    import gptqmodel

    settings: dict[str, Any] = {"bits": 4, "group_size": GROUP}
    if method == "awq":
        settings |= {"quant_method": "awq", "format": "gemm"}
    model = gptqmodel.GPTQModel.load(str(folder), gptqmodel.QuantizeConfig(**settings))
    model.quantize([{"input_ids": text.tolist(), "attention_mask": [1] * len(text)} for text in texts], batch_size=1)
    model.save(str(out))


def _asked(folder: Path, tokens: Tensor) -> Tensor:
    """Logits [T, V] of what was written."""
    device = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, device_map=device, dtype="auto", local_files_only=True)
    return answer(model, tokens)
