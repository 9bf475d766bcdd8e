"""Errors that a user can act on: where, what was found, what was wanted, how to mend it, in one line.

The library raises these; the command line prints the message alone and exits with `exit_code`.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LessenError(Exception):
    """A run that cannot go on (exit code 1).

    >>> str(LessenError("model.safetensors", got="12 bytes", wanted="a safetensors file", remedy="download it again"))
    'model.safetensors: got 12 bytes, wanted a safetensors file; download it again'
    """

    exit_code = 1

    def __init__(self, where: str, *, got: str, wanted: str, remedy: str | None = None):
        self.where, self.got, self.wanted, self.remedy = where, got, wanted, remedy
        super().__init__(f"{where}: got {got}, wanted {wanted}" + (f"; {remedy}" if remedy else ""))


class UsageError(LessenError):
    """A request that makes no sense as written (exit code 2)."""

    exit_code = 2


class DamagedModel(LessenError):
    """Weights that no run can use, so that nothing finished for them is worth keeping (exit code 1)."""


class QualityGateMissed(LessenError):
    """The result was written, and is worse than the user allows (exit code 3)."""

    exit_code = 3


SHOWN = 40
"""Names that a remedy lists."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The remedy for a misspelt name.

    >>> nearest("GTPQ", ["RTN", "GPTQ"])
    'did you mean GPTQ?'
    >>> nearest("zzz", ["RTN", "GPTQ"])
    'choose from GPTQ, RTN'
    """
    options = sorted(options)
    by_lower = {option.lower(): option for option in options}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    if close:
        return f"did you mean {by_lower[close[0]]}?"
    more = f" and {len(options) - SHOWN} more" if len(options) > SHOWN else ""
    return f"choose from {', '.join(options[:SHOWN])}{more}"


def one_line(error: Exception) -> str:
    r"""An error of other code in one line of at most 300 characters, to stand inside one of ours.

    >>> one_line(ValueError("a\n  long story"))
    'ValueError: a long story'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
