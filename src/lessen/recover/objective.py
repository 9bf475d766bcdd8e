"""The sum of losses of one batch, and what it is divided by.

Every loss is a sum over something that can be counted before the models run: scored tokens for losses on logits, samples for all others.
The counts of all pieces of a step (micro-batches, processes) are added up first, so that a step means the same however it is cut.

A batch is a tensor (token ids "batch seq", or images), a pair (input, labels), or a mapping of keyword arguments. Labels are those of the
batch if it brings some; for token ids they are the next tokens, and positions that the attention mask rules out have none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.modules import heard
from lessen.errors import LessenError, UsageError, nearest
from lessen.recover.answers import Answers
from lessen.recover.head import Head, lowered, per_piece
from lessen.recover.losses import Loss, OnFeatures, OnLogits, OnOutput
from lessen.stats.objectives import IGNORED

Call = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch in the usual way: keyword arguments of a mapping, the first of a pair, or the tensor itself."""
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key != "labels"})
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, a field `logits`, or the first of several.

    Raises:
        LessenError: there are none.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple | list) and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor):
        remedy = "use Task(loss) for models that return something else"
        raise LessenError("recover", got=f"an output of type {type(output).__name__}", wanted="logits", remedy=remedy)
    return found


def labels_of(batch: Any) -> Tensor | None:
    """Labels of every position of the logits, `IGNORED` where nothing is scored; None if the batch says nothing about them."""
    if isinstance(batch, tuple | list):
        return batch[1]
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    given = batch.get("labels") if isinstance(batch, Mapping) else None
    if given is not None and given.ndim < 2:
        return given
    source = tokens if given is None else given
    if not isinstance(source, Tensor) or source.is_floating_point() or source.ndim != 2:
        return None
    labels = torch.full_like(source, IGNORED)
    labels[:, :-1] = source[:, 1:]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and given is None:
        labels[:, :-1].masked_fill_(mask[:, 1:] == 0, IGNORED)
    return labels


def samples(batch: Any) -> int:
    """How many samples a batch holds."""
    if isinstance(batch, Tensor):
        return len(batch)
    return samples(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


class Objective:
    """Losses of a student against a teacher.

    Args:
        losses: what to add up; see `lessen.recover.losses`.
        teacher: the original; None if no loss looks at one.
        run: how to run a model on a batch.
        head: whether logits may be taken piece by piece (never under sharding).
    """

    def __init__(self, losses: Sequence[Loss], teacher: nn.Module | None, run: Call = call, head: bool = True):
        if not losses:
            raise UsageError("recover", got="no losses", wanted="one at least", remedy="Logits() matches the teacher's distribution")
        self.losses, self.teacher, self.run, self.head = tuple(losses), teacher, run, head
        self.on_logits = [x for x in losses if isinstance(x, OnLogits)]
        self.on_features = [x for x in losses if isinstance(x, OnFeatures)]
        self.on_output = [x for x in losses if isinstance(x, OnOutput)]
        self._heads: dict[int, Head | None] = {}
        self._answers = Answers(lambda window: logits_of(self.run(self.teacher, window)))  # pyright: ignore[reportArgumentType]
        if self.on_features and teacher is None:
            raise UsageError("recover", got="losses on features and no teacher", wanted="one whose features to match")

    def counts(self, batch: Any) -> Tensor:
        """(scored tokens, samples) of a batch, float64: what sums are divided by."""
        labels = labels_of(batch) if self.on_logits else None
        tokens = samples(batch) if labels is None else int((labels != IGNORED).sum())
        return torch.tensor([tokens, samples(batch)], dtype=torch.float64)

    def sums(self, student: nn.Module, batch: Any) -> dict[str, tuple[Tensor, int]]:
        """Weighted sum of every loss over the batch, with the place of its count in `counts`.

        Returns:
            name of the loss -> (sum, 0 for tokens or 1 for samples).
        """
        with ExitStack() as stack:
            ours = stack.enter_context(outputs_of(student, [m for x in self.on_features for m in x.modules]))
            paired = self.on_logits and self.teacher is not None
            heads = self._pair(student, batch) if self.on_logits and not self.on_output else None
            if heads is not None:
                stack.enter_context(heads[0].skipped())
            output = self.run(student, batch)
            theirs: dict[str, Tensor] = {}
            answer = None
            if self.teacher is not None and (paired or self.on_features):
                theirs = stack.enter_context(outputs_of(self.teacher, [m for x in self.on_features for m in x.modules.values()]))
                if heads is not None and heads[1] is not None and heads[1] is not heads[0]:
                    stack.enter_context(heads[1].skipped())
                with torch.no_grad():
                    known = heads is not None and not self.on_features and Answers.fit(batch)
                    answer = self._answers.of(batch) if known else self.run(self.teacher, batch)
        found = self._features(ours, theirs)
        for loss in self.on_output:
            found[type(loss).__name__] = (loss.weight * loss.of_output(output, batch) * samples(batch), 1)
        if self.on_logits:
            found["logits"] = (self._logits(logits_of(output), None if answer is None else logits_of(answer), batch, heads), 0)
        return found

    def _pair(self, student: nn.Module, batch: Any) -> "tuple[Head, Head | None] | None":
        """Heads of both models, if both can be skipped."""
        if not self.head:
            return None
        ours = self._head(student, batch)
        theirs = None if self.teacher is None else self._head(self.teacher, batch)
        return None if ours is None or (self.teacher is not None and theirs is None) else (ours, theirs)

    def _head(self, model: nn.Module, batch: Any) -> Head | None:
        if id(model) not in self._heads:
            one = _first(batch)
            self._heads[id(model)] = Head.of(model, lambda m: logits_of(self.run(m, one)))
        return self._heads[id(model)]

    def _logits(self, ours: Tensor, theirs: Tensor | None, batch: Any, heads: Any) -> Tensor:
        labels = labels_of(batch)
        if labels is None:
            labels = torch.zeros(ours.shape[:-1], dtype=torch.int64, device=ours.device)
        labels = labels.to(ours.device)
        if theirs is not None and (theirs.shape[:-1] != ours.shape[:-1] or (heads is None and theirs.shape != ours.shape)):
            raise LessenError("recover", got=f"logits {tuple(ours.shape)}", wanted=f"{tuple(theirs.shape)} as the teacher")
        scored = labels.flatten() != IGNORED
        others = [labels.flatten()[scored]] + ([] if theirs is None else [theirs.flatten(0, -2)[scored]])
        rows = ours.flatten(0, -2)[scored]
        teacher_head = heads and heads[1]
        head = None if teacher_head is None else (lowered(teacher_head.linear.weight), lowered(teacher_head.linear.bias))

        def total(logits: Tensor, labels: Tensor, answer: Tensor | None = None) -> Tensor:
            if answer is not None and head is not None:
                with torch.no_grad():
                    answer = nn.functional.linear(answer, *head)  # pyright: ignore[reportArgumentType]
            return sum((x.weight * x.of_logits(logits, answer, labels).sum() for x in self.on_logits), logits.new_zeros(()))

        return total(rows, *others) if heads is None else per_piece(total, rows, heads[0].linear, others)

    def _features(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        found: dict[str, tuple[Tensor, int]] = {}
        for loss in self.on_features:
            total: Any = 0.0
            for mine, other in loss.modules.items():
                a, b = ours[mine], theirs[other]
                if a.shape[0] != b.shape[0] or (a.shape != b.shape and type(loss).__name__ == "Features"):
                    remedy = "choose modules whose width was not pruned, or Relations()"
                    raise LessenError(mine, got=f"features {tuple(a.shape)}", wanted=f"{tuple(b.shape)} as {other}", remedy=remedy)
                total = total + loss.of_features(a, b).sum()
            name = type(loss).__name__
            before = found[name][0] if name in found else 0.0
            found[name] = (before + loss.weight * total / max(1, len(loss.modules)), 1)
        return found


def _first(batch: Any) -> Any:
    """A batch of the first sample alone."""
    if isinstance(batch, Mapping):
        return {key: _first(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_first(value) for value in batch)
    return batch[:1] if isinstance(batch, Tensor) else batch


@contextmanager
def outputs_of(model: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While the model runs, the output of each named module (the first, if it returns several).

    Raises:
        UsageError: there is no such module.
    """
    seen: dict[str, Tensor] = {}
    parts = dict(model.named_modules())
    for name in modules:
        if name not in parts:
            raise UsageError(name, got="no such module", wanted=f"one of {type(model).__name__}", remedy=nearest(name, parts)[:200])

    def hear(name: str, _: Any, output: Any) -> None:
        seen[name] = output if isinstance(output, Tensor) else output[0]

    with heard({name: parts[name] for name in modules}, hear):
        yield seen
