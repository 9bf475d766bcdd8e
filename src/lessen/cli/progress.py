"""Progress on stderr: one bar and a line per finished block on a terminal, plain lines elsewhere, nothing when quiet."""

import os
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lessen.core.event import Event


class EventPrinter:
    """Listens to a run: `with EventPrinter() as on_event: compress(..., on_event=on_event)`."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase: str | None = None
        self.console.on_broken_pipe = self._unheard

    def __enter__(self) -> "EventPrinter":
        if self.console.is_terminal and not self.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def _unheard(self) -> None:
        """Nobody reads the progress any more (`lessen compress m 2>&1 | head`): go on without, since the result is a file."""
        self.quiet = self.console.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def __call__(self, event: Event) -> None:
        """Show one step."""
        if self.quiet:
            return
        if event.message or event.error is not None:
            self.console.print(line(event), soft_wrap=True, markup=False)
        if self._bar is None:
            return
        if event.phase != self._phase or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._phase, self._task = event.phase, self._bar.add_task(event.phase, total=event.total or None)
        self._bar.update(self._task, completed=event.done, total=event.total or None)


def line(event: Event) -> str:
    """One step as one line.

    >>> line(Event("quantize", 3, 30, "layers.2", error=0.00123, bits=4.25, seconds=2.14))
    'quantize 3/30  layers.2  4.25 bits  error 0.00123  2.1 s'
    """
    parts = [f"{event.phase} {event.done}/{event.total}" if event.total else event.phase, event.message]
    parts += [f"{event.bits:.2f} bits" if event.bits is not None else "", f"error {event.error:.3g}" if event.error is not None else ""]
    parts += [f"{event.seconds:.1f} s" if event.seconds is not None else ""]
    return "  ".join(part for part in parts if part)
