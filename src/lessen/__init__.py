"""Takes a trained network, returns the smallest one that still does its job, with the evidence.

Public names are imported on first use, so that `import lessen` costs nothing and does not load torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lessen.compress import compress
    from lessen.core.apply import apply
    from lessen.evaluate.judge import evaluate
    from lessen.export import export
    from lessen.job import plan
    from lessen.methods import METHODS
    from lessen.models import load, open_checkpoint
    from lessen.prune import prune, save
    from lessen.recover.loop import recover
    from lessen.structure.trace import trace

__version__ = "0.1.0"

__all__ = ["METHODS", "apply", "compress", "evaluate", "export", "load", "open_checkpoint", "plan", "prune", "recover", "save", "trace"]

_HOMES = {
    "METHODS": "lessen.methods",
    "apply": "lessen.core.apply",
    "compress": "lessen.compress",
    "evaluate": "lessen.evaluate.judge",
    "export": "lessen.export",
    "load": "lessen.models",
    "open_checkpoint": "lessen.models",
    "plan": "lessen.job",
    "prune": "lessen.prune",
    "recover": "lessen.recover.loop",
    "save": "lessen.prune",
    "trace": "lessen.structure.trace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lessen' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Some functions share their name with the folder that they live in; `lessen.evaluate` stays the function.

    Python binds a submodule to its package when it is first imported, which would hide the function; `from lessen.evaluate.x import y`
    does not need that binding.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
