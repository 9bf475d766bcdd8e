"""Methods in words, for records and progress."""

from dataclasses import MISSING, fields
from typing import Any


def describe(method: Any) -> str:
    """A method with its grid and the options that differ from their defaults.

    >>> from lessen.methods.rtn import RTN
    >>> describe(RTN(bits=3, scale="mse"))
    "RTN(bits=3, group=32, scale='mse')"
    >>> from lessen.methods.select import Select
    >>> describe(Select((RTN(bits=3), RTN(bits=4))))
    'Select(candidates=[RTN(bits=3, group=32), RTN(bits=4, group=32)])'
    """
    shown = []
    for field in fields(method):
        value = getattr(method, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in ("bits", "group", "ratio") or value != default:
            told = f"[{', '.join(map(describe, value))}]" if field.name == "candidates" else repr(value)
            shown.append(f"{field.name}={told}")
    return f"{type(method).__name__}({', '.join(shown)})"
