"""Takes a trained network, returns the smallest one that still does its job, with the evidence.

Public names are imported on first use, so that `import lessen` costs nothing and does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lessen.compress import compress
    from lessen.core.apply import apply
    from lessen.engine import plan
    from lessen.evaluate import evaluate
    from lessen.export import export
    from lessen.methods import METHODS
    from lessen.models import load, open_checkpoint

__version__ = "0.1.0"

__all__ = ["METHODS", "apply", "compress", "evaluate", "export", "load", "open_checkpoint", "plan"]

_HOMES = {
    "METHODS": "lessen.methods",
    "apply": "lessen.core.apply",
    "compress": "lessen.compress",
    "evaluate": "lessen.evaluate",
    "export": "lessen.export",
    "load": "lessen.models",
    "open_checkpoint": "lessen.models",
    "plan": "lessen.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lessen' has no attribute {name!r}")
    # Bound for good: importing `lessen.compress` the module would otherwise hide `lessen.compress` the function.
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
