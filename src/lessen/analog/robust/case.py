"""A network on its way to a chip: what robustness methods take and change, one after the other.

Methods change the model, the chip, what stays digital, or what is done once the network is mapped. The digital network that all is
compared with stays as it is: a method that needs to change weights gets its own (`Case.own`).
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.analog.chip import Chip
from lessen.analog.mapping import Mapped, Split
from lessen.analog.mapping import map as put
from lessen.analog.run.judges import output_of
from lessen.analog.run.subject import Subject, batches_of
from lessen.analog.training.rehearsal import Rehearsal
from lessen.core.digest import digest
from lessen.core.event import Listener
from lessen.core.strict import check_fields
from lessen.errors import UsageError
from lessen.recover.losses import Logits, Loss, Task
from lessen.recover.objective import call
from lessen.recover.options import Options
from lessen.stats.data import windows
from lessen.stats.text import builtin

_TRAINING_WINDOWS = 64


@dataclass(frozen=True)
class Training:
    """How methods that train do it: distillation from the digital model."""

    data: str | Iterable[Any] | None = None
    """Batches, or `module:name` of such or of a function that returns some; None: built-in text, for language models alone."""
    steps: int | None = None
    """Optimizer steps; None: 100, unless minutes are given."""
    minutes: float | None = None
    """Minutes to train at most."""
    batch: int = 8
    """Samples of one step."""
    learning_rate: float = 1e-4
    """Peak learning rate."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.options(())

    def options(self, losses: Sequence[Loss], seed: int = 0) -> Options:
        """Settings of the training loop."""
        steps = 100 if self.steps is None and self.minutes is None else self.steps
        chosen: dict[str, Any] = {"steps": steps, "minutes": self.minutes, "batch": self.batch, "learning_rate": self.learning_rate}
        return Options(losses=losses, seed=seed, **chosen)


@runtime_checkable
class Undone(Protocol):
    """What is done at a look and would be in the way of the next one."""

    def undo(self, mapped: Mapped) -> None:
        """Make the network what it was when it was mapped."""
        ...


@dataclass
class Case:
    """A network on its way to a chip.

    Attributes:
        network: the digital model and what judges it; left alone.
        model: what is to be mapped; shares its parameters with the network's until a method needs to change them.
        chip: on which.
        split: what stays digital.
        training: how methods train.
        seed: of everything random.
        on_event: progress.
        rehearsal: with the full scales that training has learned, if it has.
        mapping: done to the mapped network, in order, before it is programmed.
        looking: done to it at every look.
        notes: what there is to know.
        changed: whether the weights differ from the network's.
    """

    network: Subject
    model: nn.Module
    chip: Chip
    split: Split = field(default_factory=Split)
    training: Training = field(default_factory=Training)
    seed: int = 0
    on_event: Listener | None = None
    rehearsal: Rehearsal | None = None
    mapping: list[Callable[[Mapped], Any]] = field(default_factory=list)
    looking: list[Callable[[Mapped], Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: bool = False

    def identity(self) -> Any:
        """What it does to the mapped network at every look."""
        return self.looking

    def mapped(self) -> Mapped:
        """The network on the chip, calibrated; to be programmed."""
        batches = self.network.calibration
        if self.rehearsal is not None:
            mapped = self.rehearsal.mapped(batches, self.chip)
        else:
            mapped = put(self.model, self.chip, split=self.split, calibration=batches, run=call)
        for step in self.mapping:
            step(mapped)
        return mapped

    def adapt(self, mapped: Mapped) -> None:
        """What is done at every look; first all of them find the network as it was mapped, whatever an earlier look has made of it."""
        for step in self.looking:
            if isinstance(step, Undone):
                step.undo(mapped)
        for step in self.looking:
            step(mapped)

    def own(self) -> nn.Module:
        """The model, with parameters of its own that may be changed."""
        if not self.changed:
            self.model, self.changed = copy.deepcopy(self.model), True
        return self.model

    def divided(self, model: nn.Module, split: Split) -> None:
        """Another model, more of which stays digital."""
        if self.rehearsal is not None:
            self.notes.append("Full scales that training had learned are calibrated again, since layers were divided after it.")
            self.rehearsal = None
        self.model, self.split = model, self.split.also(split.digital)

    def data(self) -> tuple[Any, Any]:
        """Samples to train on, and samples to score on."""
        network, given = self.network, self.training.data
        if given is not None:
            found: Any = samples_of(batches_of(given))
        elif network.language:
            length = max(int(batch.shape[-1]) for batch in network.calibration)
            found = windows(network.tokenizer, builtin("calibration"), _TRAINING_WINDOWS, length, self.seed + 1)
            self.notes.append(f"Trained on {_TRAINING_WINDOWS} windows of {length} tokens of built-in text (--train).")
        else:
            raise UsageError("training", got="no data", wanted="batches to train on", remedy="--train package.module:name")
        held = max(1, len(found) // 8)
        if len(found) <= held:
            raise UsageError("training", got=f"{len(found)} samples", wanted="at least 2: some are held out")
        return found[:-held], found[-held:]

    def losses(self) -> tuple[Loss, ...]:
        """What is minimised: the distance to the digital model."""
        if self.network.language or any(metric.name in ("top1", "accuracy") for metric in self.network.metrics):
            return (Logits(),)
        return (Task(Distance(self.network.model)),)

    def trained(self, rehearsal: Rehearsal, name: str) -> None:
        """Train with a rehearsal, and keep what it has learned."""
        data, held = self.data()
        before = digest(dict(self.model.named_parameters()))
        found = rehearsal.train(
            data, held, self.training.options(self.losses(), self.seed), teacher=self.network.model, on_event=self.on_event
        )
        self.rehearsal = rehearsal
        same = digest(dict(self.model.named_parameters())) == before
        kept = "weights are as before" if same else f"weights are those of before, as {name} leaves them (binary, or clipped)"
        better = found.best is not None and found.before is not None and found.best < found.before
        best = f"held-out loss {found.before:.4g} to {found.best:.4g}" if better else f"no state was better on held-out data: {kept}"
        self.notes.append(f"{name} trained {found.steps} steps, with the digital model as teacher; {best}.")


@dataclass(frozen=True)
class Distance:
    """Squared distance of a student's output to that of a frozen model, over the latter's square."""

    teacher: nn.Module

    def __call__(self, output: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            exact = output_of(call(self.teacher, batch))
        return F.mse_loss(output_of(output), exact) / exact.square().mean().clamp(min=1e-12)


def samples_of(batches: Sequence[Any]) -> Any:
    """Batches as single samples, as the training loop takes them."""
    if all(isinstance(batch, Tensor) for batch in batches):
        return torch.cat(list(batches))
    found: list[Any] = []
    for batch in batches:
        if isinstance(batch, Mapping):
            keys = [key for key, value in batch.items() if isinstance(value, Tensor) and value.ndim]
            found += [{key: batch[key][i] for key in keys} for i in range(len(batch[keys[0]]))]
        elif isinstance(batch, Tensor):
            found += list(batch)
        else:
            found += [tuple(part[i] for part in batch) for i in range(len(batch[0]))]
    return found
