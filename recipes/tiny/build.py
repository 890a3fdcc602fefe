"""Rebuild the embedded model from its sources, in one command.

    python recipes/tiny/build.py --text ../shared/data/pretrain/full

Corpus and dialogues → tokenizer → random weights → `luthier train pretrain.yaml` → `luthier train chat.yaml` → bfloat16 weights in
`src/luthier/models/tiny`. Everything on the way lies in `build/tiny`. A step whose result is there is not repeated: started
again after an interruption, the command goes on where it was, inside a training too. `--fresh` starts over.

Fields of the two recipes can be changed, to train longer or shorter:

    python recipes/tiny/build.py --text … --pretrain train.epochs=2 --chat train.epochs=6 --chat train.learning_rate=1e-3
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = Path("build/tiny")
PACKAGE = Path("src/luthier/models/tiny")
MAX_BYTES = 12_000_000
"""The wheel stays small: all files of the embedded model together."""


def run(*command: str | Path) -> None:
    """Run a command in the checkout, and stop here if it fails, with its own exit code."""
    print("$", *command, flush=True)
    code = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def make(script: str, result: Path, *arguments: str | Path) -> None:
    """Run one of the scripts beside this one, unless its result is there."""
    if not (ROOT / result).exists():
        run(sys.executable, HERE / script, *arguments)


def initialise(folder: Path, seed: int = 1) -> None:
    """Random float32 weights for the configuration in `folder`, the matrices that write into the residual stream scaled down.

    The scale 1/√(2·layers) of those matrices (Radford et al. 2019) keeps the variance of the stream independent of depth.
    """
    if (folder / "model.safetensors").exists():
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter /= (2 * config.num_hidden_layers) ** 0.5
    generation = (folder / "generation_config.json").read_text("utf-8")
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation, "utf-8")
    print(f"{folder}: {sum(parameter.numel() for parameter in model.parameters())} random weights")


def train(recipe: str, overrides: Sequence[str]) -> Path:
    """Train a recipe to its end, resuming where an earlier attempt stopped; returns the trained model's folder."""
    folder = BUILD / "runs" / recipe
    status = ROOT / folder / "status.json"
    luthier = [Path(sys.executable).with_name("luthier")]
    if not (ROOT / folder).exists():
        run(*luthier, "train", HERE.relative_to(ROOT) / f"{recipe}.yaml", *overrides)
    elif not status.exists() or json.loads(status.read_text("utf-8"))["state"] != "done":
        run(*luthier, "resume", folder)
    return folder / "final"


def publish(trained: Path, folder: Path) -> None:
    """Write the trained weights in bfloat16 into the package, with tokenizer, configuration and attributions."""
    import torch
    from safetensors.torch import load_file, save_file

    source = ROOT / BUILD / "init"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)
    shutil.copyfile(ROOT / BUILD / "ATTRIBUTION.md", folder / "ATTRIBUTION.md")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2, sort_keys=True) + "\n", "utf-8")
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(trained / "model.safetensors").items()}
    weights.pop("lm_head.weight", None)  # tied to the embeddings
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    total = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {total / 1e6:.1f} MB")
    if total > MAX_BYTES:
        sys.exit(f"error: {folder}: {total} bytes, more than {MAX_BYTES}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps whose results are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of NAME.txt.gz with SOURCES.md (see corpus.py)")
    parser.add_argument("--pretrain", action="append", default=[], metavar="KEY=VALUE", help="change a field of pretrain.yaml")
    parser.add_argument("--chat", action="append", default=[], metavar="KEY=VALUE", help="change a field of chat.yaml")
    parser.add_argument("--fresh", action="store_true", help="forget what is in build/tiny")
    options = parser.parse_args(arguments)
    if options.fresh:
        shutil.rmtree(ROOT / BUILD, ignore_errors=True)
    corpus, dialogues, exam, init = BUILD / "corpus.jsonl", BUILD / "dialogues.jsonl", BUILD / "heldout.jsonl", BUILD / "init"
    make("dialogues.py", dialogues, dialogues)
    make("dialogues.py", exam, "--heldout", exam)
    make("corpus.py", corpus, "--text", options.text.resolve(), corpus)
    make("tokenizer.py", init / "tokenizer.json", corpus, dialogues, init)
    initialise(ROOT / init)
    train("pretrain", options.pretrain)
    trained = train("chat", options.chat)
    publish(ROOT / trained, ROOT / PACKAGE)
    run(sys.executable, HERE / "examine.py", PACKAGE, exam)


if __name__ == "__main__":
    main()
