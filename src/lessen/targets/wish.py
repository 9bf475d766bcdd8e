"""How small a model is to become, as a person writes it.

- "20%": a fifth of the parameters goes; "30% macs": the same, of the multiply-accumulates
- "0.8x": four fifths of the parameters stay; "0.5x latency": half of the measured time
- "30MB": bytes that may be left; "12ms": milliseconds that a forward may take
- "2.5M params": parameters that may be left; "1.2GMACs": multiply-accumulates that may be left
"""

import re
from dataclasses import dataclass
from typing import Literal

from lessen.errors import UsageError

Counted = Literal["parameters", "bytes", "macs", "milliseconds"]
_UNITS: dict[str, Counted] = {
    "": "parameters",
    "params": "parameters",
    "parameters": "parameters",
    "b": "bytes",
    "bytes": "bytes",
    "macs": "macs",
    "ms": "milliseconds",
    "latency": "milliseconds",
    "time": "milliseconds",
}
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}


@dataclass(frozen=True)
class Wish:
    """A budget.

    Attributes:
        counted: in what.
        left: what may be left: a fraction of the whole if `relative`, else a number.
        relative: see `left`.

    >>> Wish.parse("20%"), Wish.parse("12ms").left, Wish.parse("1.5 MiB").left
    (Wish(counted='parameters', left=0.8, relative=True), 12.0, 1572864.0)
    """

    counted: Counted
    left: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> "Wish":
        """Read a wish; UsageError for anything else."""
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%|x)?\s*(?:of\s+)?([a-z]*\s*[a-z]*)\s*", text, re.IGNORECASE)
        if found:
            number, sign, word = float(found[1]), found[2], "".join(found[3].lower().split())
            if sign and word in _UNITS and (0 <= number < 100 if sign == "%" else 0 < number <= 1):
                return cls(_UNITS[word], 1 - number / 100 if sign == "%" else number, True)
            absolute = re.fullmatch(r"([kmg]i?)?\s*(b|bytes|macs|params|parameters)|(ms)", word)
            if not sign and number > 0 and absolute:
                scale, unit = _SCALES[absolute[1] or ""], absolute[2] or absolute[3]
                return cls(_UNITS[unit], number * scale, False)
        if found and found[2] and "".join(found[3].lower().split()) in _UNITS:
            wanted = "less than 100%, as something must stay" if found[2] == "%" else "a share that stays, above 0x and at most 1x"
            raise UsageError("to", got=repr(text), wanted=wanted)
        wanted = 'a share that goes ("20%"), a share that stays ("0.8x", "0.5x macs", "0.7x latency") or an amount ("30MB", "12ms")'
        raise UsageError("to", got=repr(text), wanted=wanted)

    def value(self, whole: float) -> float:
        """What may be left of `whole`."""
        return self.left * whole if self.relative else self.left
