"""What judges a network on a chip: text, the digital model's answers to batches, or a function of the user's.

The digital model's answers are computed once and kept, so that a look costs one run of the network on the chip.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.core.modules import evaluating
from lessen.errors import LessenError, one_line
from lessen.evaluate.answers import answers
from lessen.evaluate.language import Reference, evaluate
from lessen.recover.objective import call, labels_of

_KEPT = 2**27  # logits of the digital model that are kept between looks; more are computed anew each time
_EXACT_DB = 300.0  # what float64 can tell; JSON has no infinity

Evaluate = Callable[[nn.Module], "float | Mapping[str, float]"]


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation.

    Attributes:
        name: its key.
        title: for people.
        better: "lower" or "higher".
    """

    name: str
    title: str
    better: Literal["lower", "higher"]


class OnText:
    """Perplexity, and the distance to the digital model, on windows of text."""

    def __init__(self, model: nn.Module, tokens: dict[str, Tensor]):
        self.tokens = tokens
        self._remembered = _Remembered(model, tokens)

    def identity(self) -> Any:
        """The tokens; that the digital model answers to them follows from its weights."""
        return self.tokens

    @property
    def metrics(self) -> tuple[Metric, ...]:
        found = []
        for text in self.tokens:
            of = f" on {text}" if len(self.tokens) > 1 else ""
            key = f"{text}: " if len(self.tokens) > 1 else ""
            found += [
                Metric(f"{key}ppl", f"perplexity{of}", "lower"),
                Metric(f"{key}kld", f"KL to the digital model{of}", "lower"),
                Metric(f"{key}top1", f"top-1 agreement{of}", "higher"),
            ]
        return tuple(sorted(found, key=lambda m: ("ppl" not in m.name, "kld" not in m.name)))

    def __call__(self, model: nn.Module) -> dict[str, float]:
        found = evaluate(model, Reference(self._remembered, self.tokens), self.tokens)
        values: dict[str, float] = {}
        for text, row in found.items():
            key = f"{text}: " if len(found) > 1 else ""
            values |= {f"{key}ppl": row["ppl"], f"{key}kld": row["kld_mean"], f"{key}top1": row["top1"]}
        return {metric.name: values[metric.name] for metric in self.metrics}


class _Remembered:
    """Answers of a model, kept as long as they are not too many."""

    def __init__(self, model: nn.Module, tokens: dict[str, Tensor]):
        self.label, self._answers = "the digital model", answers(model, tokens)
        self._tokens, self._kept, self._size = tokens, dict[tuple[str, int], Tensor](), 0

    def logits(self, text: str, window: int, start: int, stop: int) -> Tensor:
        key = (text, window)
        if key not in self._kept:
            whole = self._answers.logits(text, window, 0, self._tokens[text].shape[1])
            if self._size + whole.numel() > _KEPT:
                return whole[start:stop]
            self._kept[key] = whole
            self._size += whole.numel()
        return self._kept[key][start:stop]


class OnBatches:
    """Agreement with the digital model, and with labels where there are any."""

    def __init__(self, model: nn.Module, batches: list[Any]):
        self.batches = batches
        with torch.no_grad(), evaluating(model):
            self.outputs = [output_of(call(model, batch)).detach().clone() for batch in batches]
        self.classes = all(out.ndim >= 2 and out.shape[-1] > 1 for out in self.outputs)
        labels = [labels_of(batch) if isinstance(batch, tuple | list | Mapping) else None for batch in batches]
        fit = [x is not None and not x.is_floating_point() and x.shape == y.shape[:-1] for x, y in zip(labels, self.outputs, strict=True)]
        self.labels = labels if fit and all(fit) else None

    def identity(self) -> Any:
        """The batches; that the digital model answers to them follows from its weights."""
        return self.batches

    @property
    def metrics(self) -> tuple[Metric, ...]:
        accuracy = (Metric("accuracy", "accuracy", "higher"),) if self.labels else ()
        agreement = (Metric("top1", "top-1 agreement with the digital model", "higher"),) if self.classes else ()
        return (*accuracy, Metric("sqnr_db", "signal to error of the outputs, dB", "higher"), *agreement)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        signal = error = agree = right = count = 0.0
        with torch.no_grad(), evaluating(model):
            for place, (batch, exact) in enumerate(zip(self.batches, self.outputs, strict=True)):
                found = output_of(call(model, batch))
                signal += float(exact.double().square().sum())
                error += float((found - exact).double().square().sum())
                if self.classes:
                    best = found.argmax(-1)
                    agree, count = agree + float((best == exact.argmax(-1)).sum()), count + best.numel()
                    if self.labels:
                        right += float((best == self.labels[place]).sum())
        ratio = 10 * math.log10(signal / error) if error > 0 and signal > 0 else _EXACT_DB
        values = {"sqnr_db": min(ratio, _EXACT_DB), "top1": agree / max(count, 1), "accuracy": right / max(count, 1)}
        return {metric.name: values[metric.name] for metric in self.metrics}


def output_of(output: Any) -> Tensor:
    """The tensor that a model is judged by: its logits, else the first floating-point tensor that it returns."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise LessenError("model", got=f"an output of type {type(output).__name__}", wanted="a tensor", remedy="judge it with --evaluate")


class Asked:
    """A function of the user's, whose mishaps are told with its name."""

    def __init__(self, function: Any, label: str):
        self.function, self.label = function, label

    def __call__(self, model: nn.Module) -> float | dict[str, float]:
        try:
            found = self.function(model)
            return {str(k): float(v) for k, v in found.items()} if isinstance(found, Mapping) else float(found)
        except Exception as error:
            raise LessenError(self.label, got=one_line(error), wanted="a number, or numbers by name, for a model") from error
