"""Other people's quantizers, each in an environment of its own, run as scripts that know nothing of lessen.

A script is given a model directory and calibration token ids and writes a directory that `transformers` opens; lessen's evaluator
scores that. The environments lie in the asset cache and are built once; what cannot be built is reported as a row, not skipped.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.assets import cache
from lessen.errors import LessenError

REQUIREMENTS = {
    "llm_compressor": "llmcompressor==0.14.0.1",
    "sign_round": "auto-round==0.16.1",
    "opencv": "opencv-python-headless==4.12.0.88",
    "lightning": "aihwkit-lightning==2.1.0",
    "aihwkit": "aihwkit==1.1.0",
}
TORCH = "torch==2.13.0"  # the version that lessen's constraints pin: one arithmetic for all
ALONE = ("opencv",)  # what needs no torch
# What is installed without the dependencies that it declares, and what it does need: aihwkit asks for torchvision, and replaces torch.
BESIDES = {"aihwkit": ("numpy", "scipy", "requests", "protobuf>=4", "tqdm")}


def script(name: str) -> Path:
    """The script of a peer."""
    return Path(__file__).with_name(f"{name}.py")


def python(name: str) -> Path:
    """The interpreter of a peer's environment, built if need be.

    Raises:
        LessenError: pip could not install it; the message ends with pip's last line.
    """
    folder = cache() / "peers" / REQUIREMENTS[name].replace("==", "-")
    ready = folder / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        torch = () if name in ALONE else (TORCH,)
        wanted = [(*torch, *BESIDES[name]), ("--no-deps", REQUIREMENTS[name])] if name in BESIDES else [(*torch, REQUIREMENTS[name])]
        for packages in wanted:
            done = subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                got = lines[-1] if lines else f"exit code {done.returncode}"
                raise LessenError(REQUIREMENTS[name], got=got, wanted="an installed package")
        ready.touch()
    return folder / "bin/python"


def scale_bits(saved: Path) -> int:
    """Bits of a stored scale in what a peer saved: those of the file's scales, or 16 where weights were saved decoded."""
    from safetensors import safe_open

    with safe_open(next(saved.glob("*.safetensors")), "pt") as file:
        scales = [name for name in file.keys() if name.endswith("weight_scale")]  # noqa: SIM118
        return {"F32": 32}.get(file.get_slice(scales[0]).get_dtype(), 16) if scales else 16
