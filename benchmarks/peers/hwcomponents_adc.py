"""hwcomponents-adc 1.0.21 (Andrulis et al. 2024, https://arxiv.org/abs/2404.06553): energy and area of converters, by its own functions.

Its wheel asks for Python 3.12 for the sake of its framework; the functions that compute, and the coefficients beside them, run on any. So
it is unpacked without its dependencies into a folder of its own, and its two modules are loaded without the package around them.
"""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.assets import cache
from lessen.errors import LessenError

REQUIREMENT = "hwcomponents-adc==1.0.21"


def folder() -> Path:
    """Where it lies, installed or not."""
    return cache() / "peers" / REQUIREMENT.replace("==", "-")


def installed() -> bool:
    """Whether it lies there."""
    return (folder() / "hwcomponents_adc" / "model.py").exists()


def install() -> None:
    """Unpack it if need be.

    Raises:
        LessenError: pip could not fetch it.
    """
    if installed():
        return
    how = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--target", str(folder())]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *how, REQUIREMENT], capture_output=True, text=True)
    if done.returncode:
        raise LessenError(REQUIREMENT, got=done.stderr.strip()[-200:], wanted="an installed package")


def price(bits: float, node_nm: float, rate: float) -> tuple[float, float]:
    """Picojoules of a conversion and square micrometres of a converter."""
    headers, model = _module("headers"), _module("model")
    coefficients = _coefficients()
    asked: dict[str, Any] = {headers.ENOB: bits, headers.TECH: math.log(node_nm), headers.FREQ: math.log(rate)}
    energy = model.get_energy(asked, coefficients, True)
    return energy, model.get_area(asked | {headers.ENRG: math.log(energy)}, coefficients)


def _module(name: str) -> ModuleType:
    full = f"hwcomponents_adc.{name}"
    if full in sys.modules:
        return sys.modules[full]
    package = ModuleType("hwcomponents_adc")  # an empty one: the real one imports its framework
    package.__path__ = [str(folder() / "hwcomponents_adc")]
    sys.modules.setdefault("hwcomponents_adc", package)
    spec = importlib.util.spec_from_file_location(full, folder() / "hwcomponents_adc" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise LessenError(full, got="no file", wanted="an installed package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module


def _coefficients() -> dict[str, Any]:
    import yaml

    return yaml.safe_load((folder() / "hwcomponents_adc" / "adc_data" / "model.yaml").read_text())


if __name__ == "__main__":
    install()
    print(json.dumps({f"{bits} bits, {node} nm": price(bits, node, 1e8) for node in (65, 32, 22) for bits in range(4, 11)}, indent=1))
