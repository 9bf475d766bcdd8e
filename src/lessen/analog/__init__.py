"""Analog compute-in-memory: one description of a chip, and from it accuracy over time, energy, latency and area.

Public names are imported on first use, so that `from lessen import analog` does not load torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Adc": "periphery",
    "Array": "chip",
    "Chip": "chip",
    "Dac": "periphery",
    "Differential": "encoding",
    "Faults": "devices.faults",
    "Mapped": "mapping",
    "Offset": "encoding",
    "Simulation": "simulation",
    "Sliced": "encoding",
    "Split": "mapping",
    "System": "chip",
    "Wires": "periphery",
    "map": "mapping",
    "simulate": "simulation",
}
_SELF = __name__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {_SELF!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{_SELF}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
