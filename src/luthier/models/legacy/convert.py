"""An old checkpoint becomes a native transformers folder, and a native folder an old checkpoint again; tensor by tensor, on disk.

The native folder holds safetensors under the names of a class of transformers, a `config.json` for it, and the tokenizer. The config
also keeps where the model comes from (`luthier_origin`: the family, the original config, and the buffers that were left out), and carries
it through training and merging; hence each such folder can be written back. The original's own small files lie in `luthier/original`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.errors import UserError
from luthier.files import write_json
from luthier.models.legacy.family import NORMALISED_HEAD, ORIGIN, Config, Family
from luthier.models.legacy.mapping import carry, fill, match
from luthier.models.legacy.norm_head import HEAD, as_trained, at_rest
from luthier.models.legacy.registry import by_name
from luthier.models.legacy.weights import SHARD_BYTES, ShardWriter, stream, weight_files

ORIGINAL = Path("luthier") / "original"
"""Where a native folder keeps the original's small files."""
TOKENIZER_FILES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab*", "merges.txt", "added_tokens.json")
"""What a tokenizer encodes by."""
SMALL_FILES = (*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "*.jinja")
"""All that is kept of an original beside its config and weights. Its code is not."""
QUANTISED = "quantization_config"
"""Key of a config whose weights are in few bits."""
_CODE_KEYS = ("auto_map", "tokenizer_class", "name_or_path", "tokenizer_file")


def to_native(folder: Path, family: Family, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write an old checkpoint as a native folder.

    Args:
        folder: the old checkpoint.
        family: what it is.
        out: an empty folder that exists.
        shard_bytes: size of a written file.

    Raises:
        UserError: files or tensors are missing, torn, or not the family's.
    """
    config = read_config(folder)
    family.refuse(config, str(folder))
    native = family.native(config)
    buffers: dict[str, str] = {}
    writer = ShardWriter(out, shard_bytes)
    left_out = [*family.buffers(config), *(family.repeated if native.get("tie_word_embeddings") else ())]
    parameters = _without(left_out, stream(weight_files(folder)), buffers)
    for name, tensor in carry(parameters, family.rules(config), str(folder)):
        if name == HEAD and native.get(NORMALISED_HEAD):
            tensor = at_rest(out, tensor)
        if tensor.is_floating_point():
            native.setdefault("dtype", _name(tensor))
        writer.add(name, tensor)
    writer.close()
    write_json(out / "config.json", native | {ORIGIN: {"family": family.name, "config": dict(config), "buffers": buffers}})
    _copy(folder, out / ORIGINAL, SMALL_FILES)
    _copy(folder, out, (*TOKENIZER_FILES, "generation_config.json", "*.jinja"))
    _describe_tokenizer(folder, family, config, out)


def to_original(folder: Path, out: Path, *, small_files: Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a native folder under the names, in the shapes and with the config of the checkpoint that it comes from.

    Args:
        folder: a converted model, or one that was trained from it.
        out: an empty folder that exists.
        small_files: a converted folder to take the original's tokenizer files from, where `folder` has none.
        shard_bytes: size of a written file.

    Raises:
        UserError: the folder does not come from an old checkpoint.
    """
    native = read_config(folder)
    family, config, buffers = origin(native, str(folder))
    writer = ShardWriter(out, shard_bytes)
    tied = native.get("tie_word_embeddings")
    copies = {original: copy for copy, original in family.repeated.items() if tied and copy in buffers}
    for name, tensor in carry(_with_trained_head(folder), family.rules(config), str(folder), back=True):
        writer.add(name, tensor)
        if name in copies:
            writer.add(copies[name], tensor.clone())
    for pattern, make in family.buffers(config).items():
        for name in _names(pattern, native["num_hidden_layers"]) if pattern in buffers else ():
            writer.add(name, make().to(_dtype(buffers[pattern])))
    writer.close()
    write_json(out / "config.json", _original_config(config, native))
    originals = next((place / ORIGINAL for place in (folder, small_files) if place and (place / ORIGINAL).is_dir()), None)
    if originals is not None:
        _copy(originals, out, SMALL_FILES)


def origin(native: Config, where: str) -> tuple[Family, Config, dict[str, str]]:
    """The family, the original config, and the buffers (pattern → dtype) that a native config remembers.

    Raises:
        UserError: the model was not converted, or by a Luthier that knows more families.
    """
    kept = native.get(ORIGIN)
    if not kept:
        raise UserError("this model does not come from an old checkpoint", where=where, hint="It has no other names.")
    return by_name(kept["family"]), kept["config"], kept["buffers"]


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder.

    Raises:
        UserError: there is none, or it is no JSON object.
    """
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("not a model folder: `config.json` is missing", where=str(folder)) from None
    except ValueError as error:
        raise UserError(f"not a usable model config ({error})", where=str(file)) from None
    if not isinstance(content, dict):
        raise UserError("not a usable model config (not a JSON object)", where=str(file))
    return content


def _original_config(config: Config, native: Config) -> dict[str, Any]:
    """The original config, but for what merging changed: weights are dense that were not, a head is tied no longer."""
    kept = {key: value for key, value in config.items() if key != QUANTISED or QUANTISED in native}
    untied = config.get("tie_word_embeddings") and not native.get("tie_word_embeddings")
    return kept | {"tie_word_embeddings": False} if untied else kept


def _without(
    patterns: Sequence[str], tensors: Iterator[tuple[str, Tensor]], found: dict[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """The stream without tensors of these names; which of them there were, and of what type, is noted in `found`."""
    for name, tensor in tensors:
        buffer = next((pattern for pattern in patterns if match(pattern, name) is not None), None)
        if buffer is None:
            yield name, tensor
        else:
            found[buffer] = _name(tensor)


def _with_trained_head(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a native folder, with the head as it was trained in place of the folded one."""
    trained = as_trained(folder)
    for name, tensor in stream(weight_files(folder)):
        yield name, trained if name == HEAD and trained is not None else tensor


def _describe_tokenizer(folder: Path, family: Family, config: Config, out: Path) -> None:
    """Write what the tokenizer's code said into its files."""
    if not any(next(out.glob(pattern), None) for pattern in TOKENIZER_FILES):
        return
    added = family.tokenizer(config)
    said = {key: value for key, value in _read(folder / "tokenizer_config.json").items() if key not in _CODE_KEYS}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"} if (out / "tokenizer.json").is_file() else {}
    write_json(out / "tokenizer_config.json", dict(added.config) | said | dict(added.instead) | plain)
    if tokens := dict(added.tokens) | _placed(added.names, out):
        write_json(out / "added_tokens.json", tokens | _read(folder / "added_tokens.json"))


def _placed(names: Sequence[str], folder: Path) -> dict[str, int]:
    """Ids of special tokens: that of the piece of the same name, else numbers after the last piece."""
    from sentencepiece import SentencePieceProcessor

    file = next(folder.glob("*.model"), None)
    if file is None or not names:
        return {}
    pieces = SentencePieceProcessor(model_file=str(file))
    after = count(pieces.get_piece_size())
    known = {name: pieces.piece_to_id(name) for name in names}
    return {name: next(after) if id_ == pieces.unk_id() else id_ for name, id_ in known.items()}


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _copy(folder: Path, out: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / file.name)


def _names(pattern: str, layers: int) -> list[str]:
    return [fill(pattern, [str(layer)]) for layer in range(layers)] if "*" in pattern else [pattern]


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
