"""A pruned language model on disk, its original, and text: out comes the same model with its quality brought back.

Training runs against the original, on text of which that writes half itself, with all weights or with adapters. The result has the names
and shapes of the student: it is the student with other numbers (`Replace` edits), so everything that opens the one opens the other.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.calibration import Wish, settle
from lessen.core.edit import Edit, Replace
from lessen.core.event import Event, Listener
from lessen.core.record import Record, Run
from lessen.engine.quantize import Text
from lessen.environment import environment
from lessen.errors import LessenError, UsageError
from lessen.evaluate.cost import cost
from lessen.export import export
from lessen.models import open_checkpoint
from lessen.models.checkpoint import Checkpoint
from lessen.models.edited import Edited
from lessen.models.skeleton import fill
from lessen.recover.adapters import Adapters, attach, merge
from lessen.recover.loop import Recovered, recover
from lessen.recover.options import Options

TOKENS = 65536


@dataclass(frozen=True)
class Restoration:
    """How a model is restored.

    Attributes:
        options: of the training loop.
        adapters: train these instead of all weights.
        calibration: text file or directory, or "builtin".
        tokens: to train on.
        written: share of them that the original writes; None chooses.
    """

    options: Options = field(default_factory=lambda: Options(minutes=10))
    adapters: Adapters | None = None
    calibration: str | Path | Tensor = "builtin"
    tokens: int = TOKENS
    written: float | None = None


def restore(
    student: str | Path | nn.Module,
    teacher: str | Path | nn.Module,
    out: str | Path,
    wanted: Restoration | None = None,
    *,
    edits: Sequence[Edit] = (),
    work: str | Path | None = None,
    on_event: Listener | None = None,
) -> Run:
    """Train a pruned language model against its original and write it.

    Args:
        student: the pruned model; see `lessen.open_checkpoint`.
        teacher: the original.
        out: Hugging Face directory to write; it appears only when it is complete.
        wanted: how.
        edits: what was done to the original, for adapters that recall what was pruned.
        work: directory for checkpoints; the same call goes on there after a kill.
        on_event: hears of every step.

    Returns:
        The record of the run, as written to `out/lessen.json`.

    Raises:
        UsageError: `out` exists, vocabularies differ, settings that make no sense. LessenError: a model or text that cannot be read.
    """
    out, wanted, started = Path(out), wanted or Restoration(), time.perf_counter()
    if out.exists():
        raise UsageError(str(out), got="something that exists", wanted="a new directory", remedy="choose another --out")
    small, original = open_checkpoint(student), open_checkpoint(teacher)
    _same_vocabulary(small, original)
    if on_event:
        on_event(Event("calibrate", 0, 0, "reading the text, and letting the original write its share"))
    text, described = settle(original, Wish(wanted.calibration, wanted.tokens, wanted.options.seed, wanted.written), None, on_event)
    trained, found = _trained(small, original, text, wanted, edits, work, on_event)
    result = Edited(small, trained)
    run = Run(command="python", environment=environment(wanted.options.seed), calibration=described, notes=described.pop("notes"))
    run.source = {"label": small.label, "sampled_sha256": small.fingerprint(), "teacher": original.label}
    run.recipe = [{"name": "Recover", **_told(wanted)}]
    run.seconds = {"recover": found.seconds, "all": time.perf_counter() - started}
    run.records = [_record(edit, found) for edit in trained if isinstance(edit, Replace)]
    parameters = sum(prod(original.shape(name)) for name in original.names)
    run.sizes = {"before": cost(small, parameters=parameters), "after": cost(result, parameters=parameters)}
    run.quality = {"held-out": {"loss_before": found.before, "loss": found.best}}
    run.notes.append(f"{found.steps} steps in {found.seconds:.0f} s; ended by {found.stopped}.")
    _write(result, run, out, text)
    return run


def _trained(
    small: Checkpoint,
    original: Checkpoint,
    text: Text,
    wanted: Restoration,
    edits: Sequence[Edit],
    work: str | Path | None,
    on_event: Listener | None,
) -> tuple[list[Edit], Recovered]:
    """The tensors that training changed, and how it went."""
    student, teacher = (fill(c.skeleton(), c, torch.float32) for c in (small, original))
    if wanted.adapters is not None:
        attach(student, wanted.adapters, original if edits else None, edits)
    found = recover(student, teacher, text.calibration, text.heldout, wanted.options, work=work, on_event=on_event)
    student = found.model
    if wanted.adapters is not None:
        merge(student)
    state = student.state_dict()
    changed: list[Edit] = []
    for name in small.names:
        if name in state and not torch.equal(state[name], small.read(name).to(state[name])):
            changed.append(Replace(name, state[name].detach().cpu().clone()))
    return changed, found


def _write(result: Checkpoint, run: Run, out: Path, text: Text) -> None:
    """The directory, beside its place, and then in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.parent / f".{out.name}.lessen-aside"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        run.exports.append(export(result, stage, "huggingface", probe=text.heldout[:1, :128]) | {"path": "."})
        run.save(stage / "lessen.json")
        stage.rename(out)
    except OSError as error:
        raise LessenError(str(out), got=str(error), wanted="to write there", remedy="mend it and run again") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _record(edit: Replace, found: Recovered) -> Record:
    shape = tuple(edit.weight.shape)
    return Record(None, edit.name, "Recover", "replace", shape, shape, 32.0, reason=f"trained for {found.steps} steps")


def _told(wanted: Restoration) -> dict[str, Any]:
    options: dict[str, Any] = {key: value for key, value in asdict(wanted.options).items() if isinstance(value, str | int | float)}
    options["losses"] = [repr(loss) for loss in wanted.options.losses]
    return options | {"adapters": None if wanted.adapters is None else asdict(wanted.adapters), "tokens": wanted.tokens}


def _same_vocabulary(small: Checkpoint, original: Checkpoint) -> None:
    ours, theirs = small.config.get("vocab_size"), original.config.get("vocab_size")
    if ours != theirs:
        remedy = "name the model that the student was made from"
        raise UsageError(original.label, got=f"a vocabulary of {theirs}", wanted=f"{ours} as {small.label}", remedy=remedy)
