r"""Several adapters as one: stacked exactly, or merged by one of the rules that PEFT knows.

With the updates ΔW_i = s_i B_i A_i and weights w_i:

| method | what comes out | rank |
|---|---|---|
| `cat` | Σ w_i ΔW_i, exactly: the factors side by side. All adapters at once, with weight 1 each | the sum |
| `svd` | the best approximation of Σ w_i ΔW_i at a given rank | chosen; default: the largest |
| `linear` | factors averaged apart, (Σ √w B_i)(Σ √w A_i): cheap, and not the sum of the updates | the same for all |
| `ties` | small values dropped, signs settled by majority, those that agree averaged (Yadav et al. 2023, arXiv:2306.01708) | the same |
| `dare_linear`, `dare_ties` | values dropped at random, the rest scaled up, then as above (Yu et al. 2023, arXiv:2311.03099) | the same |
| `magnitude_prune` | small values dropped, then as `linear` | the same |

The arithmetic is PEFT's own (`LoraModel.add_weighted_adapter`). It is done on a skeleton that has the adapted layers' names and sizes and
no weights, so the base model is not loaded, however large it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.data.tokenizer import load_tokenizer
from luthier.errors import UserError
from luthier.export.folder import new_folder
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.contents import Contents, Pair, as_stored, read_contents
from luthier.models.adapters.format import is_adapter, write_tensors
from luthier.models.source import find_source, has_tokenizer

CombineMethod = Literal["cat", "svd", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
"""Methods that keep a share of the values."""


def combine(
    adapters: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] = (),
    method: CombineMethod = "cat",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> Path:
    """Write several LoRA adapters of one base model as one, in PEFT's format, and return its folder.

    Args:
        adapters: folders of adapters, or names of runs.
        out: the folder to write; it must not exist yet, or be empty.
        weights: one for each adapter; may be negative. Default: 1 each for `cat`, else equal shares of 1.
        method: see above.
        density: share of the values that `ties`, `dare_*` and `magnitude_prune` keep.
        rank: rank that `svd` gives.
        seed: of what `dare_*` drops.

    Raises:
        UserError: PEFT is not installed, the adapters do not fit together or cannot be combined, or `out` holds something.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("already there, and not empty", where=str(out), hint="Give another folder with `--output`.")
    folders = [adapter_folder(name) for name in adapters]
    contents = [read_contents(folder) for folder in folders]
    shares = _shares(weights, len(folders), method)
    _check(contents, method, density)
    tensors = _combined(contents, shares, method, density=density, rank=rank, seed=seed)
    _write(out.absolute(), contents, tensors, folders[0])
    return out


def adapter_folder(name: str | Path) -> Path:
    """The folder of an adapter: itself, or the one that a run ended with.

    Raises:
        UserError: there is no adapter of that name.
    """
    if is_adapter(Path(name)):
        return Path(name)
    found = find_source(name).adapter
    if found is None:
        raise UserError(
            "a whole model, without adapter", where=str(name), hint="Give an adapter folder, or a run that trains one."
        )
    return found


def _shares(weights: Sequence[float], count: int, method: str) -> list[float]:
    if not weights:
        return [1.0 if method == "cat" else 1 / count] * count
    if len(weights) != count:
        raise UserError(f"{len(weights)} weights for {count} adapters", where="--weights", hint="Give one for each.")
    return list(weights)


def _check(contents: Sequence[Contents], method: str, density: float) -> None:
    """Refuse what cannot be combined.

    Raises:
        UserError: saying which adapter, and why.
    """
    if len(contents) < 2:
        raise UserError("at least two adapters are needed", where="adapters")
    if not 0 < density <= 1:
        raise UserError(f"`{density}` is not a share of the values", where="--density", hint="Give one above 0 and up to 1.")
    for each in contents:
        extra = [what for what, there in (("DoRA", each.config.dora), ("modules or rows trained whole", each.others)) if there]
        if extra:
            raise UserError(
                f"an adapter with {extra[0]} cannot be added to another", where=str(each.folder), hint="Merge it into its base."
            )
    first, *rest = contents
    for each in rest:
        for name in first.parts.keys() & each.parts.keys():
            (outputs, inputs), (others, other) = _shape(each.parts[name]), _shape(first.parts[name])
            if (outputs, inputs) != (others, other):
                raise UserError(
                    f"`{name}` maps {inputs} numbers to {outputs}, and {other} to {others} in `{first.folder}`",
                    where=str(each.folder),
                    hint="Adapters of one base model are needed.",
                )
    ranks = [each.largest_rank for each in contents]
    if method not in ("cat", "svd") and len(set(ranks)) > 1:
        raise UserError(
            f"`{method}` needs adapters of one rank, and these have {', '.join(map(str, ranks))}",
            where="--method",
            hint="Use `cat` or `svd`.",
        )


def _combined(
    contents: Sequence[Contents], weights: Sequence[float], method: str, *, density: float, rank: int | None, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, in] and B [out, r] of each layer; their product is the update, with scaling 1."""
    try:
        import peft
    except ImportError:
        raise UserError("combining adapters needs PEFT", hint="Install it with `pip install 'luthier[peft]'`.") from None

    names = [f"adapter{number}" for number in range(len(contents))]
    model: Any = None
    for name, each in zip(names, contents, strict=True):
        settings = _settings(peft, each)
        if model is None:
            model = peft.PeftModel(_skeleton(contents), settings, adapter_name=name)
        else:
            model.add_adapter(name, settings)
        for layer, (a, b) in each.parts.items():
            module = model.base_model.model.get_submodule(layer)
            module.lora_A[name].weight.data, module.lora_B[name].weight.data = a, b
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_weighted_adapter(
            names,
            list(weights),
            "combined",
            combination_type=method,
            density=density if method in PRUNING else None,
            svd_rank=rank,
            svd_full_matrices=False,
        )
    found = {}
    for layer in sorted({layer for each in contents for layer in each.parts}):
        module = model.base_model.model.get_submodule(layer)
        found[layer] = module.lora_A["combined"].weight.data, module.lora_B["combined"].weight.data
    return found


def _settings(peft: Any, contents: Contents) -> Any:
    """An adapter's settings for PEFT, its layers by their full names."""
    config = contents.config
    ranks = {name: len(a) for name, (a, _) in contents.parts.items()}
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        target_modules=list(ranks),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != config.rank},
        alpha_pattern={name: contents.alpha(name) for name in ranks},
        init_lora_weights=False,
    )


def _shape(pair: Pair) -> tuple[int, int]:
    """(out, in) of an adapted layer."""
    a, b = pair
    return b.shape[0], a.shape[1]


def _skeleton(contents: Sequence[Contents]) -> nn.Module:
    """Modules of the adapted layers' names and sizes, whose weights take no memory."""
    root = nn.Module()
    for each in contents:
        for name, pair in each.parts.items():
            outputs, inputs = _shape(pair)
            *path, leaf = name.split(".")
            parent = root
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            linear = nn.Linear(inputs, outputs, bias=False, device="meta")
            linear.weight = nn.Parameter(torch.zeros(()).expand(outputs, inputs), requires_grad=False)
            parent.add_module(leaf, linear)
    return root


def _gathered(name: str, parts: Mapping[str, Pair]) -> Pair:
    """A [E, r, in] and B [E, out, r] of a fused parameter, from those of its experts."""
    count = sum(part.rpartition(".")[0] == name for part in parts)
    a, b = zip(*(parts[f"{name}.{expert}"] for expert in range(count)), strict=True)
    return torch.stack(a), torch.stack(b)


def _write(out: Path, contents: Sequence[Contents], parts: Mapping[str, Pair], tokenizer: Path) -> None:
    """The combined adapter as a folder, with the tokenizer of the first one beside it."""
    first, fused = contents[0], sorted({name for each in contents for name in each.experts})
    experts = {name: _gathered(name, parts) for name in fused}
    layers = {name: pair for name, pair in parts.items() if name.rpartition(".")[0] not in experts}
    apart = {name for name in layers for each in contents if each.config.names_weight_of(name)}
    ranks = {f"{name}.weight" if name in apart else name: len(a) for name, (a, _) in layers.items()}
    ranks |= {name: a.shape[1] for name, (a, _) in experts.items()}
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    config = AdapterConfig(
        rank=rank,
        alpha=rank,
        target=tuple(name for name in layers if name not in apart),
        parameters=(*(f"{name}.weight" for name in sorted(apart)), *fused),
        rank_pattern=others,
        alpha_pattern={name: float(own) for name, own in others.items()},
    )
    with new_folder(out) as temporary:
        write_tensors(temporary, config.to_peft(base=first.base, transposed=first.transposed), layers | as_stored(experts))
        if has_tokenizer(tokenizer):
            load_tokenizer(tokenizer).save(temporary)
