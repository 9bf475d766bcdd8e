"""Analog compute-in-memory: one description of a chip, and from it accuracy over time, energy, latency and area.

Public names are imported on first use, so that `from lessen import analog` does not load torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AdaBS": "robust.adabs",
    "Adc": "periphery",
    "Array": "chip",
    "AutoSplit": "robust.applied",
    "BatchNorms": "robust.applied",
    "BWMA": "robust.bwma",
    "Chip": "chip",
    "Compensation": "robust.applied",
    "Dac": "periphery",
    "Differential": "encoding",
    "EST": "robust.est",
    "explore": "search.explore",
    "Faults": "devices.faults",
    "find_split": "splitting",
    "foundation": "robust.hwa",
    "from_measurements": "devices.measured",
    "GradientNorm": "robust.gradient_norm",
    "HaLoRA": "robust.halora",
    "HardwareAware": "robust.hwa",
    "hardened": "run.hardening",
    "HPD": "robust.hpd",
    "Injected": "training.noise",
    "load": "chipfile",
    "map": "mapping",
    "Mapped": "mapping",
    "NORA": "robust.nora",
    "Offset": "encoding",
    "preset": "chipfile",
    "priced": "run.job",
    "Programmed": "training.noise",
    "RangeSearch": "robust.percentile",
    "Rehearsal": "training.rehearsal",
    "rehearse": "training.rehearsal",
    "Remap": "robust.remap",
    "ROMER": "robust.romer",
    "searched": "run.job",
    "simulate": "simulation",
    "simulated": "run.job",
    "Simulation": "simulation",
    "Search": "search.explore",
    "Sliced": "encoding",
    "Split": "mapping",
    "System": "chip",
    "Use": "devices.wear",
    "Wires": "periphery",
}
_ROOMS = ("cost", "devices", "robust")  # `analog.devices.PCM`, `analog.cost.model.cost`
_SELF = __name__


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{_SELF}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {_SELF!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{_SELF}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
