"""The training loop, for any student and any losses.

One step: the samples that its number stands for (`order`), cut into the shares of the processes and into pieces that fit into memory; the
losses of all pieces over the count of all pieces (`objective`), so that neither cut changes the result; one AdamW update of which the
learning rate rises, then falls as half a cosine. Now and then the held-out data is scored. The best state on it is kept and is what comes
back, the state before training included: recovery never returns a worse model than it was given, as far as held-out data can tell.

With step limits a run repeats bitwise, also across a kill (`storage`). Randomness inside the model is seeded by the number of the step, so
there is no random state to keep. With a time limit the clock decides how many steps there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen.core.event import Listener
from lessen.core.modules import as_it_was
from lessen.core.strict import strict
from lessen.errors import UsageError
from lessen.recover.modules import seeded, training_modes
from lessen.recover.objective import Call, Objective, call
from lessen.recover.options import Options
from lessen.recover.order import fingerprint, moved
from lessen.recover.ranks import Ranks, joined
from lessen.recover.samples import samples_of, student_of
from lessen.recover.storage import Storage
from lessen.recover.training import Session, Training


@dataclass(frozen=True)
class Recovered:
    """What a recovery gives.

    Attributes:
        model: the student with its best state; a plain module, and the one that was given unless it was sharded.
        history: one entry a step (`step`, `loss`, `learning_rate`, `seconds`) or look (`step`, `heldout`), of all phases (`phase`).
        before, best: held-out loss before training and of the state that is returned; None without held-out data.
        steps: optimizer steps taken, of all phases.
        seconds: that training took, before and after a kill.
        stopped: why: "steps", "epochs", "minutes" or "patience".
    """

    model: nn.Module
    history: list[dict[str, Any]]
    before: float | None
    best: float | None
    steps: int
    seconds: float
    stopped: str


@strict(Options)
def recover(
    student: Any,
    teacher: nn.Module | None,
    data: Any,
    heldout: Any = None,
    options: Options | Sequence[Options] | None = None,
    *,
    run: Call = call,
    work: str | Path | None = None,
    on_event: Listener | None = None,
    **settings: Any,
) -> Recovered:
    """Train a student until it is as good again as it gets in the given time.

    Args:
        student: the model to train, in place: any module (its parameters need not require gradients), or what `lessen.prune` gave.
        teacher: the original; None for losses that look at no teacher.
        data: a tensor whose rows are samples (token ids "windows seq"); samples that are tensors, pairs (input, label) or dicts of
            keyword arguments, in anything with a length and an index; or mini-batches of them, as for `lessen.prune`, a `DataLoader`
            or a generator: see `lessen.recover.samples`.
        heldout: samples of the same kind that are never trained on; None: no early stop and no guard against overfitting.
        options: settings; several of them are phases, one after the other, each with its own losses and best state.
        run: how to run a model on a batch; see `lessen.recover.objective.call`.
        work: directory for checkpoints; the same call goes on there after a kill.
        on_event: hears of every step.
        settings: fields of `Options`, instead of `options`.

    Raises:
        UsageError: settings that make no sense, no samples, student and teacher swapped, a work directory of another run.
        LessenError: a loss that is no number (the student then has its best state so far).

    >>> import torch
    >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> found = recover(student, teacher, x[:48], x[48:], steps=60, learning_rate=0.1, patience=None)
    >>> found.best < 0.05 * found.before
    True
    """
    if options is not None and settings:
        raise UsageError("recover", got="options and single settings", wanted="one of the two")
    if options is None:
        options = Options(**settings)
    phases = [options] if isinstance(options, Options) else list(options)
    if not phases:
        raise UsageError("recover", got="no phases", wanted="one at least")
    student = student_of(student, teacher)
    device = next(student.parameters()).device
    with joined(device) as ranks, as_it_was(*filter(None, (student, teacher))):
        data, heldout = _samples(phases, student, teacher, data, heldout, run, device)
        _check(phases, data, ranks)
        work = None if work is None or not ranks.first else Path(work)
        session = Session(student, teacher, data, heldout, run, ranks, on_event, device)
        storage = None if work is None else Storage(work, _settings(session, phases))
        return _phases(session, phases, storage)


def _phases(session: Session, phases: Sequence[Options], storage: Storage | None) -> Recovered:
    found = storage.load() if storage else None
    first = 0
    if session.ranks.count > 1:
        found = _spread(found)
    if found:
        first = found[1]["phase"]
        session.history, session.before = found[1]["history"], found[1]["before"]
        session.steps, session.seconds = found[1]["earlier_steps"], found[1]["earlier_seconds"]
    training = None
    for number in range(first, len(phases)):
        training = Training(session, phases[number], number, storage)
        if found:
            training.load(*found)
            found = None
        training.run()
        session.steps, session.seconds = session.steps + training.step, session.seconds + training.elapsed
    assert training is not None
    model = training.plain()
    return Recovered(model, session.history, session.before, training.best, session.steps, session.seconds, training.stopped or "")


def _samples(phases: Sequence[Options], student: nn.Module, teacher: nn.Module | None, *rest: Any) -> tuple[Any, Any]:
    """Training and held-out data by sample; the models may be asked for the losses of the first item."""
    data, heldout, run, device = rest

    def accepts(batch: Any) -> None:
        training_modes(student, teacher, norms=False)
        with torch.no_grad(), seeded(0):
            objective = Objective(phases[0].losses, teacher, run, head=False)
            objective.counts(batch)
            objective.sums(student, moved(batch, device))

    return samples_of(data, accepts), None if heldout is None else samples_of(heldout, accepts)


def _check(phases: Sequence[Options], data: Any, ranks: Ranks) -> None:
    if len({options.shard for options in phases}) > 1:
        raise UsageError("recover", got="phases with and without shard", wanted="one of the two")
    for options in phases:
        if options.batch % ranks.count:
            raise UsageError("recover", got=f"batch={options.batch} for {ranks.count} processes", wanted="a multiple of them")
        if len(data) < 1:
            raise UsageError("recover", got="no samples", wanted="one at least")


def _settings(session: Session, phases: Sequence[Options]) -> dict[str, Any]:
    """What the bits of a run depend on."""
    state = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in session.student.named_parameters()]
    told = {f"phase {i} {f.name}": _plain(getattr(o, f.name)) for i, o in enumerate(phases) for f in fields(o) if f.name != "save_every"}
    held = None if session.heldout is None else fingerprint(session.heldout)
    return {"student": state, "data": fingerprint(session.data), "heldout": held, "processes": session.ranks.count, **told}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, str | int | float | None):
        return value
    # the text of a function holds its address, which is another one after a kill
    return repr(value) if hasattr(value, "__dataclass_fields__") else getattr(value, "__qualname__", str(value))


def _spread(found: Any) -> Any:
    """The first process's checkpoint, in all of them."""
    from torch import distributed

    box = [found]
    distributed.broadcast_object_list(box, 0)
    return box[0]
