"""One phase of training: steps, looks at the held-out data, checkpoints. See `lessen.recover.loop` for what it amounts to."""

import math
import time
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.event import Event, Listener
from lessen.errors import LessenError
from lessen.recover.modules import autocast, bare, repeated, seeded, trainable, training_modes
from lessen.recover.objective import Call, Objective
from lessen.recover.options import Options
from lessen.recover.order import collate, indices, moved, pieces
from lessen.recover.ranks import Ranks, Shared, gathered
from lessen.recover.storage import Storage

_SEEDS = 1_000_003  # seeds of neighbouring steps are far apart


@dataclass
class Session:
    """What all phases of a run share: the arguments of `lessen.recover.loop.recover`, and what has happened so far."""

    student: nn.Module
    teacher: nn.Module | None
    data: Any
    heldout: Any
    run: Call
    ranks: Ranks
    on_event: Listener | None
    device: torch.device
    history: list[dict[str, Any]] = field(default_factory=list)
    empty: nn.Module | None = None  # the student's structure, from before it was sharded
    before: float | None = None
    steps: int = 0
    seconds: float = 0.0


class Training:
    """One phase under way."""

    def __init__(self, session: Session, options: Options, number: int, storage: Storage | None):
        self.session, self.options, self.number, self.storage = session, options, number, storage
        self.step, self.elapsed, self.waited = 0, 0.0, 0
        self.best: float | None = None
        self.stopped: str | None = None
        student = session.student
        self.names = trainable(student, options.train)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name in self.names)
        training_modes(student, session.teacher, options.norms)
        sharded = options.shard and session.ranks.count > 1
        self.objective = Objective(options.losses, session.teacher, session.run, head=not sharded)
        module = _Loss(student, self.objective)
        blocks = repeated(student) if sharded and session.empty is None else None
        if sharded and session.empty is None:
            session.empty = bare(student)
        self.shared = Shared(module, student, blocks, session.ranks, options.shard, partly=not self.objective.on_logits)
        self.parameters = {name: p for name, p in student.named_parameters() if name in self.names}
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=options.learning_rate, betas=options.betas, foreach=True)
        self.kept: dict[str, Tensor] = {}

    def run(self) -> None:
        """Train until a limit is reached, then go back to the best state."""
        try:
            if self.step == 0 and self.session.heldout is not None:
                self._look(self.now())
            while self.stopped is None and not self._limit():
                started, before = self.now(), self.elapsed
                loss, rate = self._step()
                self.step += 1
                self.elapsed = self.session.ranks.agreed(before + self.now() - started)
                self._note({"loss": loss, "learning_rate": rate, "seconds": round(self.elapsed, 3)})
                at_end = self._limit()
                if self.session.heldout is not None and (self.step % self.options.evaluate_every == 0 or at_end):
                    self._look(self.now())
                if self.storage and (self.step % self.options.save_every == 0 or at_end or self.stopped):
                    self._save()
        finally:
            if self.kept:
                self.shared.restore(self.kept)

    def now(self) -> float:
        """Seconds on the clock that the time limit means."""
        return time.perf_counter() if self.options.clock == "wall" else time.process_time() / torch.get_num_threads()

    def _limit(self) -> bool:
        """Whether a limit is reached; notes which."""
        options, count = self.options, len(self.session.data)
        if options.steps is not None and self.step >= options.steps:
            self.stopped = self.stopped or "steps"
        elif options.epochs is not None and self.step * options.batch >= options.epochs * count:
            self.stopped = self.stopped or "epochs"
        elif options.minutes is not None and self.elapsed >= options.minutes * 60:
            self.stopped = self.stopped or "minutes"
        return self.stopped is not None

    def progress(self) -> float:
        """How much of the training is over, 0 to 1: of the limit that is nearest."""
        options = self.options
        steps = [n for n in (options.steps, options.epochs and options.epochs * len(self.session.data) / options.batch) if n]
        parts = [(self.step + 1) / n for n in steps]
        parts += [self.elapsed / (60 * options.minutes)] if options.minutes else []
        return min(1.0, max(parts))

    def _rate(self) -> float:
        options, done = self.options, self.progress()
        if done < options.warmup:
            return options.learning_rate * max(done / options.warmup, 0.1)
        falling = (done - options.warmup) / max(1 - options.warmup, 1e-9)
        return options.learning_rate * (options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * falling)))

    def _step(self) -> tuple[float, float]:
        """One update; its loss and learning rate."""
        session, options = self.session, self.options
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        chosen = indices(self.step, options.batch, len(session.data), options.seed)
        mine = pieces(chosen, session.ranks.rank, session.ranks.count, options.micro)
        batches = [collate(session.data, piece) for piece in mine]
        counts = session.ranks.total(torch.stack([self.objective.counts(batch) for batch in batches]).sum(0))
        total = torch.zeros((), dtype=torch.float64)
        with seeded(options.seed * _SEEDS + self.step * session.ranks.count + session.ranks.rank):
            for number, batch in enumerate(batches):
                with self.shared.adding_up(number == len(batches) - 1), self._precision():
                    loss = self.shared((moved(batch, session.device), counts))
                    total += loss.detach().double().cpu()
                    # Both ways of sharing take the mean over processes, and the counts are already those of all of them.
                    (loss * session.ranks.count).backward()
        norm = self._clip()
        value = float(session.ranks.total(total))
        if not math.isfinite(value) or not math.isfinite(norm):
            where = f"{options.name}, step {self.step + 1}"
            raise LessenError(where, got=f"loss {value}, gradient norm {norm}", wanted="numbers", remedy="lower the learning rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        if options.after_step is not None:
            with torch.no_grad():
                options.after_step(session.student)
        return value, rate

    def _clip(self) -> float:
        limit = self.options.clip if self.options.clip is not None else math.inf
        return float(gathered(nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)))

    def _precision(self) -> Any:
        return autocast(self.options.precision, self.session.device)

    def heldout(self) -> float:
        """The loss on the held-out data."""
        session, options = self.session, self.options
        ranks, data = session.ranks, session.heldout
        share = range(ranks.rank, len(data), ranks.count)
        size = options.micro or max(1, options.batch // ranks.count)
        # Every process runs as often as the others: sharded weights are gathered together. Who has no sample left repeats one for nothing.
        rounds = ceil(ceil(len(data) / ranks.count) / size)
        sums: list[tuple[Tensor, Tensor]] = []
        batch_norms = [m for m in session.student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        for module in batch_norms:
            module.eval()
        with torch.no_grad(), self._precision(), seeded(options.seed):
            for number in range(rounds):
                mine = list(share[number * size : (number + 1) * size])
                batch = collate(data, mine or [0])
                part = self.shared.module.parts(moved(batch, session.device)) * bool(mine)  # pyright: ignore[reportCallIssue]
                sums.append((part, self.objective.counts(batch) * bool(mine)))
        for module in batch_norms:
            module.train()
        total, counts = (ranks.total(torch.stack(list(column)).sum(0)) for column in zip(*sums, strict=True))
        return float((total / counts.clamp_min(1)).sum())

    def _look(self, started: float) -> None:
        """Score the held-out data, keep the state if it is the best, stop if there was none for long."""
        value = self.heldout()
        self._note({"heldout": value})
        if self.session.before is None:
            self.session.before = value
        if math.isfinite(value) and (self.best is None or value < self.best):
            self.best, self.waited = value, 0
            self.kept = {name: tensor.detach().clone() for name, tensor in self._state().items()}
        else:
            self.waited += 1
            if self.options.patience is not None and self.waited >= self.options.patience:
                self.stopped = self.stopped or "patience"
        self.elapsed = self.session.ranks.agreed(self.elapsed + self.now() - started)

    def _note(self, entry: dict[str, Any]) -> None:
        self.session.history.append({"phase": self.number, "step": self.step, **entry})
        if self.session.on_event and self.session.ranks.first:
            steps = self.options.steps or 0
            what = f"held-out loss {entry['heldout']:.5g}" if "heldout" in entry else f"loss {entry['loss']:.5g}"
            self.session.on_event(Event(self.options.name, self.step, steps, what, seconds=round(self.elapsed, 1)))

    def _state(self) -> dict[str, Tensor]:
        """What training changes: trained parameters and buffers, whole."""
        buffers = {name for name, _ in self.session.student.named_buffers()}
        return {name: tensor for name, tensor in self.shared.state().items() if name in self.names or name in buffers}

    def _save(self) -> None:
        assert self.storage is not None
        tensors = {f"model/{name}": tensor for name, tensor in self._state().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.kept.items()}
        moments = {name: self.optimizer.state.get(p, {}) for name, p in self.parameters.items()}
        tensors |= {f"optimizer/{name}/{key}": value for name, state in moments.items() for key, value in state.items()}
        session = self.session
        own = {"phase": self.number, "best": self.best, "waited": self.waited, "elapsed": self.elapsed, "stopped": self.stopped}
        shared = {"history": session.history, "before": session.before, "earlier_steps": session.steps}
        self.storage.save(session.steps + self.step, tensors, {"in_phase": self.step, **own, **shared, "earlier_seconds": session.seconds})

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {})[rest] = tensor.to(self.session.device)
        self.shared.restore(parts.get("model", {}))
        self.kept = parts.get("best", {})
        for name, tensor in parts.get("optimizer", {}).items():
            parameter, _, key = name.rpartition("/")
            self.optimizer.state[self.parameters[parameter]][key] = tensor.cpu() if key == "step" else tensor
        self.step, self.best, self.waited = state["in_phase"], state["best"], state["waited"]
        self.elapsed, self.stopped = state["elapsed"], state["stopped"]

    def plain(self) -> nn.Module:
        """The student as an ordinary module."""
        if self.session.empty is None:
            return self.session.student
        tensors = self.shared.state()
        for path, module in self.session.empty.named_modules():
            for key in module._parameters:
                if module._parameters[key] is not None:
                    module._parameters[key] = nn.Parameter(tensors[f"{path}.{key}" if path else key], requires_grad=False)
        return self.session.empty


class _Loss(nn.Module):
    """The student and its losses as one module: batch in, loss out, which is what sharing gradients takes."""

    def __init__(self, student: nn.Module, objective: Objective):
        super().__init__()
        self.student = student
        self._objective = [objective]  # in a list: its teacher is none of this module's parts

    def parts(self, batch: Any) -> Tensor:
        """Sums of the losses per token and per sample, float64 of shape "2"."""
        sums = self._objective[0].sums(self.student, batch).values()
        return torch.stack([sum((x.double().cpu() for x, kind in sums if kind == k), torch.zeros((), dtype=torch.float64)) for k in (0, 1)])

    def forward(self, batch: tuple[Any, Tensor]) -> Tensor:
        inputs, counts = batch
        return sum(value / counts[kind].item() for value, kind in self._objective[0].sums(self.student, inputs).values())  # pyright: ignore
