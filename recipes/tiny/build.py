"""Rebuild the embedded model from its sources, in one command.

    python recipes/tiny/build.py --text ../shared/data/pretrain/full

Corpus and dialogues → tokenizer → random weights → `luthier train pretrain.yaml` → `luthier train chat.yaml` → bfloat16 weights in
`src/luthier/models/tiny`, and beside them what was measured: `build.json`, the model card, the loss curves. Everything on the way
lies in `build/tiny`. A step whose result is there is not repeated: started again after an interruption, the command goes on where
it was, inside a training too. `--fresh` starts over.

Fields of the two recipes can be changed, to train longer or shorter, and the folders too:

    python recipes/tiny/build.py --text … --pretrain train.epochs=2 --chat train.epochs=6 --work build/longer --out build/longer/tiny

Training runs on one thread, since the order of a sum, and so its last bit, depends on how many threads share it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = Path("build/tiny")
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


def train(recipe: str, work: Path, overrides: Sequence[str]) -> Path:
    """Train a recipe to its end, resuming where an earlier attempt stopped; returns the trained model's folder."""
    folder = work / "runs" / recipe
    status = ROOT / folder / "status.json"
    luthier = [Path(sys.executable).with_name("luthier")]
    if not (ROOT / folder).exists():
        run(*luthier, "train", HERE.relative_to(ROOT) / f"{recipe}.yaml", *places(recipe, work), *overrides)
    elif not status.exists() or json.loads(status.read_text("utf-8"))["state"] != "done":
        run(*luthier, "resume", folder)
    return folder / "final"


def places(recipe: str, work: Path) -> list[str]:
    """Overrides that put a training into another folder than the one its recipe names."""
    if work == WORK:
        return []
    here = ROOT / work
    before, rows = {"pretrain": ("init", "corpus.jsonl"), "chat": ("runs/pretrain/final", "dialogues.jsonl")}[recipe]
    moved = [f"output={here / 'runs'}", f"model.path={here / before}", f"data.train={here / rows}"]
    return moved + [f"data.validation.path={here / 'corpus_heldout.jsonl'}"] * (recipe == "pretrain")


def publish(work: Path, folder: Path) -> None:
    """Write the trained weights in bfloat16 into the package, with tokenizer, configuration and attributions."""
    import torch
    from safetensors.torch import load_file, save_file

    source = work / "init"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)
    shutil.copyfile(work / "ATTRIBUTION.md", folder / "ATTRIBUTION.md")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2, sort_keys=True) + "\n", "utf-8")
    trained = load_file(work / "runs/chat/final/model.safetensors")
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in trained.items()}
    weights.pop("lm_head.weight", None)  # tied to the embeddings
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def describe(work: Path, folder: Path) -> None:
    """Measure the published model and write down what was found: build.json, the loss curves, the card."""
    from card import card
    from curves import draw
    from examine import table
    from record import record

    found = record(work, folder)
    (folder / "build.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    runs = [("pre-training", work / "runs/pretrain"), ("dialogues", work / "runs/chat")]
    (folder / "loss.svg").write_text(draw(runs), "utf-8")
    (folder / "README.md").write_text(card(found), "utf-8")
    print(table(found["exam"]))


def weigh(folder: Path) -> None:
    """Stop if the package would grow too large."""
    total = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {total / 1e6:.1f} MB")
    if total > MAX_BYTES:
        sys.exit(f"error: {folder}: {total} bytes, more than {MAX_BYTES}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps whose results are missing."""
    from record import note_commit

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of NAME.txt.gz with SOURCES.md (see corpus.py)")
    parser.add_argument("--pretrain", action="append", default=[], metavar="KEY=VALUE", help="change a field of pretrain.yaml")
    parser.add_argument("--chat", action="append", default=[], metavar="KEY=VALUE", help="change a field of chat.yaml")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what lies on the way, seen from the checkout")
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder of the model, seen from the checkout")
    parser.add_argument("--fresh", action="store_true", help="forget what is in the folder of what lies on the way")
    options = parser.parse_args(arguments)
    work, folder = options.work, ROOT / options.out
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if options.fresh:
        shutil.rmtree(ROOT / work, ignore_errors=True)
    corpus, dialogues, counted, init = work / "corpus.jsonl", work / "dialogues.jsonl", work / "counted.jsonl", work / "init"
    make("dialogues.py", dialogues, dialogues)
    make("dialogues.py", counted, "--every-sum", counted)
    make("corpus.py", corpus, "--text", options.text.resolve(), corpus)
    tokenizer = ("--sources", corpus, counted, "--output", init)
    make("tokenizer.py", init / "tokenizer.json", HERE / "tokenizer.yaml", *tokenizer)
    initialise(ROOT / init)
    note_commit(ROOT / work)
    train("pretrain", work, options.pretrain)
    train("chat", work, options.chat)
    publish(ROOT / work, folder)
    describe(ROOT / work, folder)
    weigh(folder)


if __name__ == "__main__":
    main()
