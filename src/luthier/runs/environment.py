"""What a run is executed on: versions, processor, GPUs, threads. Kept as `environment.json`, and shown by `luthier env`.

Nothing here fails where something is missing: a broken driver, a torch that cannot be imported or a GPU without its tools are
findings, and so are facts of their own (`None`, an empty list, the text of an error).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pyarrow",
    "tensorboard",
    "bitsandbytes",
    "flash-attn",
    "modelscope",
    "wandb",
    "mlflow-skinny",
    "swanlab",
)
"""Packages whose version a run notes, where they are installed."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver sees it.

    Args:
        name: as the maker calls it.
        memory: bytes.
        driver: version of the driver, e.g. `570.86.10`.
        capability: compute capability, e.g. `9.0`; None where the driver does not say.
    """

    name: str
    memory: int
    driver: str
    capability: str | None


@dataclass(frozen=True, slots=True)
class Torch:
    """What torch says of itself.

    Args:
        version: e.g. `2.13.0+cu128`; None if it could not be imported.
        error: why it could not be imported.
        cuda: CUDA version it was built for; None in a build without CUDA.
        hip: ROCm version it was built for.
        cuda_available: it can use a GPU now.
        mps_available: it can use the GPU of an Apple chip now.
        architectures: GPU generations it holds code for, e.g. `sm_90`.
        bf16: the first GPU computes in bfloat16.
        threads: threads of one operation on the CPU.
    """

    version: str | None = None
    error: str | None = None
    cuda: str | None = None
    hip: str | None = None
    cuda_available: bool = False
    mps_available: bool = False
    architectures: tuple[str, ...] = ()
    bf16: bool = False
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Environment:
    """All there is to know.

    Args:
        luthier: our own version.
        python: version of the interpreter.
        platform: operating system and machine.
        processor: name of the CPU.
        cores: logical cores this process may use.
        memory: bytes of RAM.
        gpus: what the NVIDIA driver lists.
        torch: see `Torch`.
        packages: name → version of `PACKAGES` that are installed.
        bitsandbytes_cuda: CUDA versions that the installed bitsandbytes holds code for, e.g. `128`.
        variables: environment variables that change what is used.
    """

    luthier: str
    python: str
    platform: str
    processor: str
    cores: int
    memory: int
    gpus: tuple[Gpu, ...] = ()
    torch: Torch = Torch()
    packages: dict[str, str] = field(default_factory=dict)
    bitsandbytes_cuda: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "BNB_CUDA_VERSION", "HF_ENDPOINT", "HF_HUB_OFFLINE", "USE_MODELSCOPE_HUB")
"""Environment variables that are noted."""


def environment() -> dict[str, Any]:
    """The content of `environment.json`: everything `look_around` finds, as plain data."""
    return asdict(look_around())


def look_around() -> Environment:
    """All facts about this machine. Imports torch, so it takes a second or two in a fresh process."""
    import psutil

    from luthier.version import __version__

    return Environment(
        luthier=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=int(psutil.virtual_memory().total),
        gpus=_gpus(),
        torch=_torch(),
        packages=_packages(),
        bitsandbytes_cuda=_bitsandbytes_cuda(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = "name,memory.total,driver_version,compute_cap"
    command = [tool, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """GPUs from `nvidia-smi --query-gpu=name,memory.total,driver_version,compute_cap --format=csv,noheader,nounits`."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 4:
            name, memory, driver, capability = cells
            known = capability.replace(".", "").isdigit()
            gpus.append(Gpu(name, int(memory) * 2**20 if memory.isdigit() else 0, driver, capability if known else None))
    return tuple(gpus)


def _torch() -> Torch:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Torch(version=_installed("torch"), error=str(error))
    available = torch.cuda.is_available()
    return Torch(
        version=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        cuda_available=available,
        mps_available=torch.backends.mps.is_available(),
        architectures=tuple(torch.cuda.get_arch_list()) if available else (),
        bf16=available and torch.cuda.is_bf16_supported(),
        threads=torch.get_num_threads(),
    )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages() -> dict[str, str]:
    return {name: found for name in PACKAGES if (found := _installed(name))}


def _bitsandbytes_cuda() -> tuple[str, ...]:
    """Read from the names of its libraries; importing it would load one."""
    spec = find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return ()
    names = (path.stem for path in Path(spec.origin).parent.glob("libbitsandbytes_cuda*.*"))
    return tuple(sorted({name.removeprefix("libbitsandbytes_cuda").removesuffix("_nocublaslt") for name in names}))
