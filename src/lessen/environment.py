"""Where and with what a run was made."""

import os
import platform
import shlex
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "safetensors", "transformers", "compressed-tensors", "gguf", "onnxruntime", "onnxruntime-genai", "xllamacpp")


def environment(seed: int | None = None) -> dict[str, Any]:
    """Versions, processor, threads and seed, as plain data."""
    import lessen

    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return {
        "lessen": lessen.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "versions": versions,
    }


def command() -> str:
    """How this process was started, if it is the command line."""
    program = Path(sys.argv[0])
    ours = program.name == "lessen" or (program.name == "__main__.py" and program.parent.name == "lessen")
    return shlex.join(["lessen", *sys.argv[1:]]) if ours else "python"


def available_bytes() -> int | None:
    """Memory that a process can still have: what the system has free, within what its control group may use; None if nothing tells."""
    found: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
