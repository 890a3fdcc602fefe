"""What `luthier env` says about machines nobody here has."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from luthier.cli import env_diagnosis as rules
from luthier.cli.app import run
from luthier.cli.env_diagnosis import diagnose, newest_cuda, runs_on, unfit_versions
from luthier.runs.environment import Environment, Gpu, Torch

H200 = Gpu("NVIDIA H200", 141 * 2**30, "570.86.10", "9.0")
GOOD = Torch("2.13.0+cu128", cuda="12.8", cuda_available=True, architectures=("sm_80", "sm_90"), bf16=True, threads=8)


def machine(torch: Torch = GOOD, gpus: tuple[Gpu, ...] = (H200,), **changes: Any) -> Environment:
    here = Environment("0.1.0", "3.12.0", "Linux", "EPYC", 8, 2**36, gpus, torch, {"bitsandbytes": "0.50"}, ("118", "128"))
    return replace(here, **changes)


CPU = Torch("2.13.0+cpu", threads=8)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (machine(CPU), ["NVIDIA H200", "build for CPUs only", "whl/cu128"]),
        (machine(CPU, (replace(H200, driver="580.65.06"),)), ["whl/cu130"]),
        (
            machine(replace(GOOD, cuda="13.0", cuda_available=False)),
            ["570.86.10 is too old for CUDA 13.0", "to 580 or newer", "whl/cu128"],
        ),
        (machine(replace(GOOD, cuda_available=False), (replace(H200, driver="470.57"),)), ["to 525 or newer", "whl/cu118"]),
        (machine(replace(GOOD, cuda_available=False)), ["torch cannot use it", "--gpus all"]),
        (machine(gpus=(replace(H200, name="RTX 5090", capability="12.0"),)), ["no code for RTX 5090", "12.0", "sm_80, sm_90"]),
        (machine(replace(GOOD, cuda="13.0"), (replace(H200, driver="580.1"),)), ["bitsandbytes 0.50", "CUDA 130", "118, 128"]),
        (machine(variables={"BNB_CUDA_VERSION": "121"}), ["CUDA 121", "BNB_CUDA_VERSION asks for"]),
        (machine(Torch("2.13.0", "libcudart.so.12: cannot open")), ["cannot be loaded (libcudart.so.12: cannot open)"]),
        (machine(Torch()), ["torch is not installed"]),
    ],
)
def test_a_problem_is_told_in_words_with_what_to_do(here: Environment, words: list[str]) -> None:
    first = diagnose(here)[0]
    assert first.level == "problem"
    assert all(word in first.text for word in words), first.text


def test_one_cause_is_one_problem() -> None:
    """An old driver also hides the GPU from torch; only the driver is to blame."""
    findings = diagnose(machine(replace(GOOD, cuda="13.0", cuda_available=False), packages={}))
    assert [finding.level for finding in findings].count("problem") == 1


@pytest.mark.parametrize(
    ("here", "verdict"),
    [
        (machine(), "Training runs on NVIDIA H200, in bfloat16."),
        (machine(replace(GOOD, bf16=False)), "Training runs on NVIDIA H200, in float16."),
        (machine(CPU, ()), "Training runs on the CPU with 8 cores: fine for the embedded model and small models."),
        (
            machine(replace(CPU, mps_available=True), ()),
            "Training runs on the CPU: Luthier does not use the GPU of Apple chips yet.",
        ),
        (machine(Torch()), "Nothing can be trained until torch can be imported."),
    ],
)
def test_the_verdict_says_where_training_runs(here: Environment, verdict: str) -> None:
    assert diagnose(here)[-1].text == verdict


def test_a_good_machine_has_no_problem() -> None:
    assert {finding.level for finding in diagnose(machine())} == {"good"}


@pytest.mark.parametrize(
    ("here", "rule", "words"),
    [
        (machine(packages={}), rules.bitsandbytes, "luthier[quantize]"),
        (machine(replace(GOOD, bf16=False)), rules.no_bf16, "float16 with loss scaling"),
        (
            machine(replace(GOOD, cuda_available=False), variables={"CUDA_VISIBLE_DEVICES": ""}),
            rules.hidden_gpu,
            "set to nothing",
        ),
        (
            machine(replace(CPU, threads=1), (), variables={"OMP_NUM_THREADS": "1"}),
            rules.threads,
            "1 of 8 cores (OMP_NUM_THREADS)",
        ),
    ],
)
def test_notes(here: Environment, rule: Any, words: str) -> None:
    (finding,) = rule(here)
    assert finding.level == "note"
    assert words in finding.text


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ("8.6", ("sm_80",), True),
        ("8.0", ("sm_86",), False),
        ("9.0", ("sm_90a",), True),
        ("12.0", ("sm_90", "compute_90"), True),
        ("7.5", ("sm_80", "compute_80"), False),
        ("10.3", ("sm_100",), True),
        ("8.9", (), False),
    ],
)
def test_which_code_runs_on_which_gpu(capability: str, architectures: tuple[str, ...], expected: bool) -> None:
    assert runs_on(capability, architectures) is expected


@pytest.mark.parametrize(
    ("driver", "tag"), [("580.65.06", "130"), ("570.1", "128"), ("525.60", "128"), ("470.1", "118"), ("?", "118")]
)
def test_the_newest_build_a_driver_runs(driver: str, tag: str) -> None:
    assert newest_cuda(driver) == tag


def test_versions_outside_of_the_tested_range() -> None:
    requirements = ["torch>=2.11,<2.14", "transformers<5.24,>=5.17", 'bitsandbytes>=0.48; extra == "quantize"', "yaml"]
    packages = {"torch": "2.13.0+cu128", "transformers": "5.30.0", "bitsandbytes": "0.45"}
    texts = [finding.text for finding in unfit_versions(packages, requirements)]
    assert [text.split(" is installed")[0] for text in texts] == ["transformers 5.30.0", "bitsandbytes 0.45"]


def test_the_command_prints_facts_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["env", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][-1]["text"].startswith(("Training runs", "Nothing can"))
    assert code == (2 if any(finding["level"] == "problem" for finding in told["findings"]) else 0)
    assert run(["env"]) == code
    text = capsys.readouterr().out
    assert text.startswith("luthier ")
    assert text.splitlines()[-1] == told["findings"][-1]["text"]
