"""The same model, examples, order, learning rate and seed through Luthier and through TRL's SFTTrainer: who learns what.

    python benchmarks/against_trl.py                                   # all eight cases, about 20 CPU-minutes
    python benchmarks/against_trl.py --model tiny --method lora        # the embedded model alone
    python benchmarks/against_trl.py --model build/tiny/runs/pretrain/final --data zh --rows 200

Both sides begin with the same adapter and read the same token ids and labels in the same order: Luthier's store is TRL's dataset.
Everything else is each side's own: Luthier lays the segments of a step end to end in passes of `micro_batch_tokens` and runs its fused
head, TRL pads the step to one rectangle. Single precision, constant learning rate, one epoch.

Held-out losses are measured by one function on plain transformers and PEFT, means per supervised token. `steps` is the largest
relative difference between the two training losses of a step; `answers` compares `luthier.load(run).chat` with `generate` of plain
transformers (and PEFT) on the run's final folder; `merged` is the largest difference of a logit between Luthier's model and
the merged one in plain transformers.

The random model has 27.8 million parameters (hidden 512, 8 layers, vocabulary 8192, tied) and the minimind tokenizer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

import luthier
from luthier.data.batch import GlobalBatches
from luthier.export.merge import merge
from luthier.models.adapters.format import is_adapter, write_adapter
from luthier.models.hub import fetch
from luthier.models.loading import load_model
from luthier.models.methods import apply_method
from luthier.recipe.load import recipe_from
from luthier.recipe.schema import Recipe
from luthier.workshop.assembly import prepare_data

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
DATA = {"en": SHARED / "sft/alpaca_data_en_1k.json", "zh": SHARED / "llamafactory/alpaca_zh_demo.json"}
TOKENIZER = SHARED / "tokenizers/minimind"
RATES = {"lora": 5e-3, "full": 1e-3}
IGNORED = -100
COLUMNS = ("model", "data", "method", "base", "luthier", "trl", "difference", "steps", "answers", "merged")

Row = dict[str, list[int]]
Plain = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Result:
    """What came of one case.

    Attributes:
        base, ours, theirs: held-out losses before, after Luthier, after TRL.
        reported: held-out loss of `ours` as the run itself wrote it down.
        losses, their_losses: training loss of each step.
        answers, plain_answers: what `luthier chat` says and what plain transformers says.
        merged: largest difference of a logit between the merged model and Luthier's.
    """

    base: float
    ours: float
    theirs: float
    reported: float
    losses: list[float]
    their_losses: list[float]
    answers: list[str]
    plain_answers: list[str]
    merged: float

    @property
    def difference(self) -> float:
        """How far the two held-out losses are apart, relative."""
        return abs(self.ours / self.theirs - 1)

    @property
    def steps(self) -> float:
        """The largest relative difference between the training losses of a step."""
        return max(abs(ours / theirs - 1) for ours, theirs in zip(self.losses, self.their_losses, strict=True))

    @property
    def same_answers(self) -> int:
        """How many answers are equal, character for character."""
        return sum(ours == plain for ours, plain in zip(self.answers, self.plain_answers, strict=True))


def random_llama(folder: Path, tokenizer: Path = TOKENIZER, **changes: Any) -> Path:
    """A random Llama, 27.8 million parameters unless its config is changed, with a tokenizer beside it."""
    shutil.copytree(tokenizer, folder)
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    shape = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    shape |= {"num_key_value_heads": 4, "max_position_embeddings": 1024, "tie_word_embeddings": True, "eos_token_id": end}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**(shape | changes))).save_pretrained(folder)
    return folder


def recipe_for(model: str, data: Path, method: str, folder: Path, *, rows: int, **train: Any) -> Recipe:
    """One epoch over four fifths of the first `rows` rows, constant learning rate, the rest held out."""
    values = {
        "name": "run",
        "output": str(folder / "runs"),
        "model": model,
        "data": {"train": [{"path": str(data), "max_examples": rows}], "validation": rows // 5, "max_length": 256},
        "method": method,
        "train": {
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": RATES[method],
            "schedule": "constant",
            "warmup": 0,
            "precision": "fp32",
            **train,
        },
        "report_to": [],
    }
    return recipe_from(values, Path.cwd())


def lessons(recipe: Recipe) -> tuple[list[Row], list[Row]]:
    """What the recipe learns from, in the order of its one epoch, and what it holds out."""
    _, _, dataset = prepare_data(recipe)
    batches = GlobalBatches(dataset.store, dataset.train, seed=recipe.train.seed, batch_size=recipe.train.batch_size)

    def rows(segments: Iterable[int]) -> Iterator[Row]:
        for segment in segments:
            tokens, weight = dataset.store.segment(int(segment))
            labels = [int(token) if learnt else IGNORED for token, learnt in zip(tokens, weight, strict=True)]
            yield {"input_ids": tokens.tolist(), "labels": labels}

    assert dataset.validation is not None
    train = [row for step in range(batches.steps_per_epoch) for row in rows(batches(step).segments)]
    return train, list(rows(dataset.validation.segments))


def plain(folder: Path, base: Path) -> Plain:
    """A model folder, or an adapter on its base, loaded without Luthier."""
    model = AutoModelForCausalLM.from_pretrained(base if is_adapter(folder) else folder, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, folder) if is_adapter(folder) else model).eval()


@torch.no_grad()
def held_out_loss(model: nn.Module, rows: list[Row]) -> float:
    """Mean cross-entropy per supervised token, one row at a time."""
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum").item()
        count += int((labels != IGNORED).sum())
    return total / count


def start(recipe: Recipe, base: Path, folder: Path) -> Plain:
    """The model that TRL begins with: for LoRA, PEFT's own module holding the values that Luthier draws from the seed."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if recipe.method.type != "lora":
        return model
    twin = load_model(recipe.model, dtype=torch.float32, device=torch.device("cpu"))
    apply_method(twin, recipe.method, seed=recipe.train.seed)
    write_adapter(folder, twin)
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


def train_with_trl(recipe: Recipe, base: Path, rows: list[Row], folder: Path) -> tuple[nn.Module, list[float]]:
    """TRL's model after one epoch over `rows` in their order, and the loss of each step."""
    train = recipe.train
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=1,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=train.weight_decay,
        adam_beta1=train.optimizer.beta1,
        adam_beta2=train.optimizer.beta2,
        adam_epsilon=train.optimizer.epsilon,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        train_sampling_strategy="sequential",
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    model, tokenizer = start(recipe, base, folder / "adapter"), AutoTokenizer.from_pretrained(base)
    trainer = SFTTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model.eval(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def plain_answers(model: Plain, folder: Path, questions: list[str], length: int) -> list[str]:
    """Greedy answers by plain transformers, with the tokenizer and the template that lie in `folder`."""
    tokenizer, answers = AutoTokenizer.from_pretrained(folder), []
    for question in questions:
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        tokens = model.generate(**prompt, max_new_tokens=length, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return answers


@torch.no_grad()
def logit_difference(one: nn.Module, other: nn.Module, rows: list[Row]) -> float:
    """The largest difference of a logit over some rows."""
    tokens = [torch.tensor([row["input_ids"]]) for row in rows]
    return max(
        (one(input_ids=t, use_cache=False).logits - other(input_ids=t, use_cache=False).logits).abs().max().item() for t in tokens
    )


def compare(recipe: Recipe, folder: Path, *, questions: int = 8, length: int = 48) -> Result:
    """Train on both sides, measure, ask the first questions of the data, merge."""
    base = fetch(recipe.model.path)
    rows, held_out = lessons(recipe)
    run = luthier.train(recipe, progress=False)
    tuned, chat = plain(run.folder.final, base), luthier.load(run)
    theirs, their_losses = train_with_trl(recipe, base, rows, folder)
    asked = [row["instruction"] for row in json.loads(Path(recipe.data.train[0].path).read_text(encoding="utf-8"))[:questions]]
    whole = plain(merge(run.path, folder / "merged", dtype="float32"), base)
    metrics = run.metrics()
    return Result(
        base=held_out_loss(plain(base, base), held_out),
        ours=held_out_loss(tuned, held_out),
        theirs=held_out_loss(theirs, held_out),
        reported=next(entry["eval_loss"] for entry in reversed(metrics) if "eval_loss" in entry),
        losses=[entry["loss"] for entry in metrics if "loss" in entry],
        their_losses=their_losses,
        answers=[chat.chat(question, max_new_tokens=length) for question in asked],
        plain_answers=plain_answers(tuned, run.folder.final, asked, length),
        merged=logit_difference(chat.model, whole, held_out[:questions]),
    )


def line(case: tuple[str, str, str], result: Result) -> str:
    """One line of the table."""
    numbers = [f"{value:.4f}" for value in (result.base, result.ours, result.theirs)]
    answers = f"{result.same_answers} of {len(result.answers)}"
    return table_line([*case, *numbers, f"{result.difference:.4%}", f"{result.steps:.1e}", answers, f"{result.merged:.1e}"])


def table_line(cells: Sequence[str]) -> str:
    """Cells of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["random", "tiny"], help="`random`, `tiny`, or a model folder")
    parser.add_argument("--data", nargs="+", default=["en", "zh"], choices=DATA)
    parser.add_argument("--method", nargs="+", default=["lora", "full"], choices=RATES)
    parser.add_argument("--rows", type=int, default=200, help="rows of the file to use, a fifth of them held out")
    parser.add_argument("--learning-rate", type=float, help="in place of the method's own")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    train = {"learning_rate": chosen.learning_rate} if chosen.learning_rate else {}
    print(table_line(COLUMNS), table_line(["---"] * len(COLUMNS)), sep="\n", flush=True)
    for model, data, method in itertools.product(chosen.model, chosen.data, chosen.method):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ["LUTHIER_CACHE"] = str(folder / "cache")
            path = str(random_llama(folder / "model")) if model == "random" else model
            result = compare(recipe_for(path, DATA[data], method, folder, rows=chosen.rows, **train), folder)
        print(line((model, data, method), result), flush=True)


if __name__ == "__main__":
    main()
