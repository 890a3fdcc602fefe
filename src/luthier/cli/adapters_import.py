"""`luthier adapters import`: adapters that other tools left in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="XTuner's `iter_N.pth`, a file or DeepSpeed's folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet or be empty.")],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model it was trained on. Default: what the checkpoint says.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(metavar="N", help="LoRA's alpha, `lora_alpha` of the training script. Default: what the checkpoint says."),
    ] = None,
) -> None:
    """Write an XTuner adapter as a PEFT folder. Its pickle is read without running anything."""
    from luthier.models.adapters.xtuner import import_xtuner

    config = import_xtuner(source, out, base=base, alpha=alpha)
    print(
        f"LoRA of rank {config['r']}, alpha {config['lora_alpha']:g}, for {config['base_model_name_or_path']}, written to {out}"
    )
