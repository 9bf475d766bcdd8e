"""What a long run tells whoever listens; the library itself prints nothing."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One step of progress.

    Attributes:
        phase: what is going on ("quantize", "evaluate", "export gguf").
        done, total: steps finished and in all; total 0 if unknown.
        message: one line for people, "" for a mere tick.
        error: relative squared error of the finished block, None if there is none.
        bits: bits per weight of the finished block.
        seconds: what the step took.
    """

    phase: str
    done: int
    total: int
    message: str = ""
    error: float | None = None
    bits: float | None = None
    seconds: float | None = None


Listener = Callable[[Event], None]
