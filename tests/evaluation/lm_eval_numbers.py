"""What lm-evaluation-harness says of the embedded model on 200 questions and some texts: numbers alone, no text.

    python -m tests.evaluation.lm_eval_numbers

The library builds the prompts, tokenises and scores by itself (its `HFLM`), from the files that Luthier reads: 100 questions of MMLU
behind one solved example, 60 of ARC, 40 of PIQA, and the running texts of the general set. Written to `lm_eval.json`, with the
version; needs `pip install 'luthier[lm_eval]'`. The slow test measures anew, where the library is there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from luthier.evaluation.general import PROSE, rows
from luthier.evaluation.published import Files, Question, rows_in, subjects_of
from tests.workspace import TINY

NUMBERS = Path(__file__).with_name("lm_eval.json")
SHARED = Path(__file__).resolve().parents[3] / "shared/data/eval"
SUBJECTS = ("anatomy", "astronomy", "marketing", "philosophy")
EACH, ARC, PIQA, WINDOW = 25, 60, 40, 256
HEAD = "The following are multiple choice questions (with answers) about {}.\n\n"
LETTERED = "{{text.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"


def measure(shared: Path = SHARED) -> dict[str, Any]:
    """The library's numbers: task → likelihoods of the choices of each question, or of each text."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tasks = [*_subjects(place, shared), *_rows(place, shared), *_texts(place)]
        model = HFLM(pretrained=str(TINY), dtype="float32", device="cpu", batch_size=8, max_length=WINDOW)
        found = lm_eval.simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0)
    numbers: dict[str, Any] = {"lm_eval": lm_eval.__version__}
    for name, samples in found["samples"].items():
        said = [[float(one[0][0] if isinstance(one[0], list | tuple) else one[0]) for one in each["resps"]] for each in samples]
        numbers[name] = [[round(one, 5) for one in each] for each in said]
    for name, values in found["results"].items():
        numbers[f"{name}/means"] = {key: value for key, value in values.items() if isinstance(value, float)}
    return numbers


def _task(
    name: str, place: Path, questions: list[dict[str, Any]], solved: list[dict[str, Any]], **settings: Any
) -> dict[str, Any]:
    files = {}
    for split, given in (("test", questions), ("train", solved)):
        if given:
            files[split] = str(place / f"{name}-{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in given), "utf-8")
    few = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}} if solved else {}
    common = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    return common | few | {"num_fewshot": len(solved)} | settings


def _plain(questions: list[Question]) -> list[dict[str, Any]]:
    return [{"text": each.text, "choices": list(each.choices), "gold": each.answer} for each in questions]


def _subjects(place: Path, shared: Path) -> list[dict[str, Any]]:
    files = Files(str(shared / "mmlu/mmlu.zip"))
    asked, solved = subjects_of(files, "test", SUBJECTS), subjects_of(files, "dev", SUBJECTS)
    how = {
        "output_type": "multiple_choice",
        "doc_to_text": LETTERED,
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "gold",
    }
    return [
        _task(name, place, _plain(asked[name][:EACH]), _plain(solved[name][:1]), description=HEAD.format(name), **how)
        for name in SUBJECTS
    ]


def _rows(place: Path, shared: Path) -> list[dict[str, Any]]:
    how = {"output_type": "multiple_choice", "doc_to_text": "Question: {{text}}\nAnswer:"}
    how |= {"doc_to_choice": "{{choices}}", "doc_to_target": "gold"}
    how["metric_list"] = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]  # type: ignore[assignment]
    counts = {"arc_easy": ARC, "piqa": PIQA}
    return [
        _task(name, place, _plain(rows_in(str(shared / f"{name}.jsonl"))[:count]), [], **how) for name, count in counts.items()
    ]


def _texts(place: Path) -> list[dict[str, Any]]:
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    how = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    return [_task(name, place, rows(name), [], metric_list=[{"metric": each} for each in names], **how) for name in PROSE]


if __name__ == "__main__":
    NUMBERS.write_text(json.dumps(measure(), indent=None, separators=(",", ":")) + "\n", "utf-8")
    sys.exit(0)
