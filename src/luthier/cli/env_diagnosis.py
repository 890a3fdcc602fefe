"""What is wrong with a machine, said in words: the driver, torch's CUDA build, the GPU's generation, bitsandbytes, versions.

Each rule is a small function of an `Environment`, so that it can be tried on machines nobody here has. A rule says nothing when
there is nothing to say. Sources: NVIDIA's table of minimal drivers per CUDA release (CUDA Compatibility, "minor version
compatibility": any 12.x runs on a driver ≥ 525) and PyTorch's installation page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from luthier.runs.environment import Environment

MINIMAL_DRIVER = {"11": 450, "12": 525, "13": 580}
"""CUDA major version → first driver branch that runs it."""

Level = Literal["good", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about the machine; a `problem` keeps something from working."""

    level: Level
    text: str


def diagnose(here: Environment) -> list[Finding]:
    """All findings, problems first; the last is the verdict: where training will run."""
    findings = [finding for rule in RULES for finding in rule(here)]
    findings.sort(key=lambda finding: finding.level != "problem")
    return [*findings, verdict(here)]


def verdict(here: Environment) -> Finding:
    """Where training will run."""
    if here.torch.error or here.torch.version is None:
        return Finding("problem", "Nothing can be trained until torch can be imported.")
    if here.torch.cuda_available:
        names = ", ".join(gpu.name for gpu in here.gpus) or "a GPU"
        return Finding("good", f"Training runs on {names}, in {'bfloat16' if here.torch.bf16 else 'float16'}.")
    if here.torch.mps_available:
        return Finding("note", "Training runs on the CPU: Luthier does not use the GPU of Apple chips yet.")
    cores = f"{here.cores} core{'s' if here.cores > 1 else ''}"
    return Finding("good", f"Training runs on the CPU with {cores}: fine for the embedded model and small models.")


def torch_import(here: Environment) -> Iterator[Finding]:
    """Torch is there and can be loaded."""
    if here.torch.version is None and here.torch.error is None:
        yield Finding("problem", "torch is not installed: `pip install luthier` brings it.")
    elif here.torch.error:
        first = here.torch.error.splitlines()[0] if here.torch.error.strip() else "no reason given"
        yield Finding(
            "problem",
            f"torch {here.torch.version or ''} is installed but cannot be loaded ({first}). Often two versions of CUDA's libraries "
            "are mixed: `pip install --force-reinstall torch` brings a set that fits together.",
        )


def cpu_build(here: Environment) -> Iterator[Finding]:
    """There is a GPU, but torch was built without CUDA."""
    if here.gpus and here.torch.version and not here.torch.error and not here.torch.cuda and not here.torch.hip:
        tag = f"cu{newest_cuda(here.gpus[0].driver)}"
        yield Finding(
            "problem",
            f"There is a GPU ({here.gpus[0].name}), but torch {here.torch.version} is the build for CPUs only. Install the CUDA "
            f"build: `pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{tag}`.",
        )


def old_driver(here: Environment) -> Iterator[Finding]:
    """The driver is older than torch's CUDA needs."""
    if not here.gpus or not here.torch.cuda:
        return
    needed = MINIMAL_DRIVER.get(here.torch.cuda.split(".")[0])
    driver = here.gpus[0].driver
    if needed and branch(driver) < needed:
        tag = f"cu{newest_cuda(driver)}"
        yield Finding(
            "problem",
            f"The NVIDIA driver {driver} is too old for CUDA {here.torch.cuda}, which torch {here.torch.version} was built for. "
            f"Update the driver to {needed} or newer, or install a torch build from https://download.pytorch.org/whl/{tag}.",
        )


def hidden_gpu(here: Environment) -> Iterator[Finding]:
    """Driver and torch fit, and still torch sees no GPU."""
    if not here.torch.cuda or here.torch.cuda_available or here.torch.error or list(old_driver(here)):
        return
    if here.variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("note", "CUDA_VISIBLE_DEVICES is set to nothing, so that torch sees no GPU. Unset it to use the GPU.")
    elif here.gpus:
        yield Finding(
            "problem",
            f"The driver lists {here.gpus[0].name}, but torch cannot use it. In a container, start it with `--gpus all`; after a "
            "driver update, restart the machine.",
        )


def unknown_generation(here: Environment) -> Iterator[Finding]:
    """Torch holds no code for this GPU's generation."""
    if not here.torch.cuda_available or not here.torch.architectures:
        return
    for gpu in {gpu.name: gpu for gpu in here.gpus}.values():
        if gpu.capability and not runs_on(gpu.capability, here.torch.architectures):
            yield Finding(
                "problem",
                f"torch {here.torch.version} holds no code for {gpu.name} (compute capability {gpu.capability}; it has "
                f"{', '.join(here.torch.architectures)}). A newer GPU needs a newer torch, an old GPU an older CUDA build.",
            )


def no_bf16(here: Environment) -> Iterator[Finding]:
    """A GPU without bfloat16."""
    if here.torch.cuda_available and not here.torch.bf16:
        yield Finding("note", "This GPU does not compute in bfloat16; `train.precision: auto` takes float16 with loss scaling.")


def bitsandbytes(here: Environment) -> Iterator[Finding]:
    """bitsandbytes holds code for another CUDA than torch's."""
    installed = here.packages.get("bitsandbytes")
    if installed is None:
        if here.torch.cuda_available:
            yield Finding(
                "note", "bitsandbytes is not installed; `model.quantization` needs it: `pip install 'luthier[quantize]'`."
            )
        return
    if not here.torch.cuda or here.torch.error:
        return
    wanted = here.variables.get("BNB_CUDA_VERSION") or here.torch.cuda.replace(".", "")
    if here.bitsandbytes_cuda and wanted not in here.bitsandbytes_cuda:
        asked = "BNB_CUDA_VERSION" in here.variables
        source, remedy = (
            ("BNB_CUDA_VERSION asks for", "Unset BNB_CUDA_VERSION")
            if asked
            else ("torch uses", "`pip install --upgrade bitsandbytes`")
        )
        yield Finding(
            "problem",
            f"bitsandbytes {installed} has no library for CUDA {wanted}, which {source} (it has "
            f"{', '.join(here.bitsandbytes_cuda)}). {remedy}.",
        )


def versions(here: Environment) -> Iterator[Finding]:
    """Installed versions outside of what Luthier is tested with."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        wanted = requires("luthier") or []
    except PackageNotFoundError:
        return
    yield from unfit_versions(here.packages, wanted)


def unfit_versions(packages: dict[str, str], requirements: list[str]) -> Iterator[Finding]:
    """Packages whose installed version does not meet `requirements` (as in a package's metadata, extras included)."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        installed = packages.get(requirement.name)
        if installed and not requirement.specifier.contains(installed, prereleases=True):
            yield Finding(
                "problem",
                f"{requirement.name} {installed} is installed; Luthier works with {requirement.specifier}. "
                f"`pip install '{requirement.name}{requirement.specifier}'`.",
            )


def threads(here: Environment) -> Iterator[Finding]:
    """Torch computes with fewer threads than there are cores."""
    if not here.torch.cuda_available and here.torch.version and here.torch.threads < here.cores:
        cause = " (OMP_NUM_THREADS)" if "OMP_NUM_THREADS" in here.variables else ""
        yield Finding("note", f"torch uses {here.torch.threads} of {here.cores} cores{cause}.")


RULES: tuple[Callable[[Environment], Iterator[Finding]], ...] = (
    torch_import,
    cpu_build,
    old_driver,
    hidden_gpu,
    unknown_generation,
    no_bf16,
    bitsandbytes,
    versions,
    threads,
)


def branch(driver: str) -> int:
    """The branch of a driver version: 570 for `570.86.10`."""
    head = driver.split(".")[0]
    return int(head) if head.isdigit() else 0


def newest_cuda(driver: str) -> str:
    """The tag of the newest torch build that the driver runs: `118`, `128` or `130`."""
    if branch(driver) >= MINIMAL_DRIVER["13"]:
        return "130"
    return "128" if branch(driver) >= MINIMAL_DRIVER["12"] else "118"


def runs_on(capability: str, architectures: tuple[str, ...]) -> bool:
    """True if code for one of `architectures` runs on a GPU of `capability`.

    Machine code (`sm_86`) runs on the same major generation with an equal or higher minor; PTX (`compute_90`) on any newer one.
    """
    major, minor = (int(part) for part in capability.split(".")[:2])
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")
        if not digits.isdigit():
            continue
        its_major, its_minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and its_major == major and its_minor <= minor:
            return True
        if kind == "compute" and (its_major, its_minor) <= (major, minor):
            return True
    return False
