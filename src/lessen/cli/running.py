"""Around a command: progress, threads, and how a finished run is shown."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lessen.cli.options import Evaluation, Running
from lessen.cli.output import emit, printed, say, show, tell
from lessen.cli.progress import EventPrinter
from lessen.errors import LessenError, QualityGateMissed, UsageError

if TYPE_CHECKING:
    from lessen.core.record import Run


@contextmanager
def listening(running: Running) -> Iterator[EventPrinter]:
    """Progress on stderr for as long as the block runs, on the number of threads that was asked for."""
    if running.threads is not None:
        import torch

        from lessen.evaluate.speed import usable_processors

        most = usable_processors()
        if not 1 <= running.threads <= most:
            raise UsageError("--threads", got=str(running.threads), wanted=f"1 to {most}, the processors this process may use")
        torch.set_num_threads(running.threads)
    with EventPrinter(quiet=running.quiet) as printer:
        yield printer


def show_run(command: str, run: "Run", out: Path, running: Running, evaluation: Evaluation) -> None:
    """Print what a run has to say.

    Raises:
        QualityGateMissed: a text's mean KL is too large. LessenError: something was skipped under --strict.
    """
    if running.json:
        emit(command, {"out": out, "run": asdict(run)})
    else:
        from lessen.report import plain, summary

        show(summary(run), plain(run))
        tell(run.notes)
        say(f"\n{out / 'report.html'} tells the whole story")
    with printed():
        _hold(run, evaluation)


def _hold(run: "Run", evaluation: Evaluation) -> None:
    """Raise where the user asked for more than the run gives."""
    skipped = [record for record in run.records if record.action == "skip"]
    if evaluation.strict and skipped:
        raise LessenError(skipped[0].unit, got=f"{len(skipped)} skipped: {skipped[0].reason}", wanted="nothing skipped under --strict")
    gate(run.quality, evaluation.max_kld)


def gate(quality: Mapping[str, Mapping[str, Any]], max_kld: float | None) -> None:
    """Raise QualityGateMissed where a text's mean KL is above `max_kld`, and LessenError where it was not measured."""
    if max_kld is None:
        return
    for text, figures in quality.items():
        if figures.get("kld_mean") is not None and figures["kld_mean"] > max_kld:
            got = f"a mean KL of {figures['kld_mean']:.4g}"
            raise QualityGateMissed(text, got=got, wanted=f"at most {max_kld:g}", remedy="give it more bits")
    if not any(figures.get("kld_mean") is not None for figures in quality.values()):
        raise LessenError("--max-kld", got="no comparison with the original", wanted="a mean KL to judge by")


def judgeable(max_kld: float | None, judged: bool, remedy: str) -> None:
    """Refuse a limit that nothing will be measured against, before any work.

    Raises:
        UsageError: `max_kld` without a comparison, or one that nothing can keep.
    """
    if max_kld is not None and not max_kld >= 0:
        raise UsageError("--max-kld", got=f"{max_kld:g}", wanted="nats per token, 0 or more")
    if max_kld is not None and not judged:
        raise UsageError("--max-kld", got="no comparison with the original", wanted="one to hold the limit against", remedy=remedy)
