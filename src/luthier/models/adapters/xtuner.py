"""LoRA adapters that XTuner (0.1, on MMEngine) left as `iter_500.pth`: read without running anything, written as PEFT folders.

Such a file is a pickle: `{"state_dict": …, "meta": …, "message_hub": …, "optimizer": …}`. The tensors of `state_dict` are called
`llm.base_model.model.` + layer + `.lora_A.default.weight`; `meta["cfg"]` is the text of the training script, which alone knows α. With
DeepSpeed it is a folder, and the weights are those of its `mp_rank_00_model_states.pt` (key `module`), in sixteen bits.

Beside tensors there are objects of MMEngine's, DeepSpeed's or numpy's classes. torch's restricted unpickler (`weights_only`) refuses
names that it does not know; here each of these names is given to it as `Inert`, a class that does nothing and keeps nothing. So no code
of the file's choosing ever runs, and the packages that made it need not be there.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from luthier.errors import UserError
from luthier.models.adapters.format import CONFIG_FILE, PREFIX, WEIGHTS_FILE

MODEL = "llm."
"""What XTuner's wrapper calls the language model."""
DEEPSPEED = "mp_rank_00_model_states.pt"
"""The file of a DeepSpeed folder that holds the weights."""
_ADAPTER = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])\.default\.weight")
_WHOLE = re.compile(r"(?P<layer>.+)\.modules_to_save\.default\.(?P<part>.+)")


class Inert:
    """Stands for whatever class a pickle names: takes any arguments and any state, and forgets them."""

    def __init__(self, *_arguments: Any, **_keywords: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def import_xtuner(source: Path, out: Path, *, base: str | None = None, alpha: float | None = None) -> dict[str, Any]:
    """Write the adapter of an XTuner checkpoint as a PEFT folder, under the names that the model had in XTuner.

    Args:
        source: a `.pth` file, or the folder that DeepSpeed made in its place.
        out: the folder to write; it must not exist yet, or be empty.
        base: path or hub id of the base model; default: what the checkpoint's own configuration names.
        alpha: LoRA's α; default: what the checkpoint's own configuration says.

    Returns:
        The content of the `adapter_config.json`.

    Raises:
        UserError: no such file, nothing of LoRA in it, or α or the base are known to nobody.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("already there, and not empty", where=str(out), hint="Give another folder.")
    content = read_inert(source)
    tensors = _tensors(content, source)
    script = _script(content)
    config = _config(tensors, script, source, base, alpha)
    out.mkdir(parents=True, exist_ok=True)
    save_file({_peft_key(name): value for name, value in tensors.items()}, out / WEIGHTS_FILE, metadata={"format": "pt"})
    (out / CONFIG_FILE).write_text(json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return config


def read_inert(source: Path) -> dict[str, Any]:
    """The content of a pickled checkpoint, on the CPU, with `Inert` in the place of every object that is no plain value or tensor.

    Raises:
        UserError: no such file, or none that torch wrote.
    """
    file = source / DEEPSPEED if source.is_dir() else source
    if not file.is_file():
        raise UserError("no such checkpoint", where=str(file), hint="Give XTuner's `iter_N.pth`.")
    try:
        unknown = get_unsafe_globals_in_checkpoint(file)
        with safe_globals([(Inert, name) for name in unknown]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"not a checkpoint that can be read safely ({_reason(error)})", where=str(file)) from None
    if not isinstance(content, dict):
        raise UserError("a pickle without names, not a checkpoint", where=str(file))
    return content


def _tensors(content: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names without the wrapper's `llm.`, contiguous, as stored."""
    stored = content.get("state_dict", content.get("module", content))
    named = {name.removeprefix(MODEL): value for name, value in stored.items() if isinstance(value, Tensor)}
    found = {
        name: value.contiguous().clone() for name, value in named.items() if _ADAPTER.fullmatch(name) or _WHOLE.fullmatch(name)
    }
    if not any(_ADAPTER.fullmatch(name) for name in found):
        raise UserError(
            f"no LoRA weights among its {len(named)} tensors",
            where=str(source),
            hint="A checkpoint of full fine-tuning is a model: convert it with XTuner's `pth_to_hf`.",
        )
    if strange := sorted(name for name in named if "lora_" in name and name not in found):
        raise UserError(f"`{strange[0]}` is of a kind of adapter that Luthier does not read", where=str(source))
    return found


def _config(
    tensors: Mapping[str, Tensor], script: Mapping[str, Any], source: Path, base: str | None, alpha: float | None
) -> dict[str, Any]:
    """An `adapter_config.json`: ranks from the shapes, the rest from the training script or the caller."""
    alpha = alpha if alpha is not None else script.get("lora_alpha")
    base = base or script.get("base")
    if alpha is None:
        raise UserError("the checkpoint does not say LoRA's alpha", where=str(source), hint="Give `lora_alpha` with `--alpha`.")
    if base is None:
        raise UserError("the checkpoint does not name its base model", where=str(source), hint="Give it with `--base`.")
    ranks = {
        match["layer"].removeprefix(PREFIX): len(value)
        for name, value in tensors.items()
        if (match := _ADAPTER.fullmatch(name)) and match["part"] == "A"
    }
    rank = max(ranks.values(), key=list(ranks.values()).count)
    whole = {match["layer"].removeprefix(PREFIX) for name in tensors if (match := _WHOLE.fullmatch(name))}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": script.get("lora_dropout", 0.0),
        "use_rslora": bool(script.get("use_rslora", False)),
        "target_modules": sorted({layer.rpartition(".")[2] for layer in ranks}),
        "rank_pattern": {layer: own for layer, own in ranks.items() if own != rank},
        "modules_to_save": sorted({name.rpartition(".")[2] for name in whole}) or None,
    }


def _script(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the training script in `meta["cfg"]` says: the keywords of `lora=dict(…)`, and `base`, the model's name.

    The script is parsed, never run.
    """
    meta = content.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return {}
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except SyntaxError:
        return {}
    found: dict[str, Any] = {}
    for call in calls:
        for keyword in call.keywords:
            if keyword.arg == "lora" and isinstance(keyword.value, ast.Call):
                found |= _literals(keyword.value)
            if keyword.arg == "llm" and isinstance(keyword.value, ast.Call):
                named = _literals(keyword.value).get("pretrained_model_name_or_path")
                found |= {"base": named} if isinstance(named, str) else {}
    return found


def _literals(call: ast.Call) -> dict[str, Any]:
    """The keywords of a call whose values are plain."""
    return {
        keyword.arg: keyword.value.value for keyword in call.keywords if keyword.arg and isinstance(keyword.value, ast.Constant)
    }


def _peft_key(name: str) -> str:
    """The key in an adapter file: as in the model, without the adapter's own name."""
    return name.replace(".default.", ".").replace(".modules_to_save.", ".")


def _reason(error: Exception) -> str:
    """The line that says what is wrong, behind torch's advice to read the file unsafely."""
    lines = [line for line in str(error).partition("WeightsUnpickler error:")[2].splitlines() if line.strip()]
    return (lines or str(error).splitlines() or [type(error).__name__])[0].strip()
