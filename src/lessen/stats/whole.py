"""Everything that methods need to know about units, collected on a whole model in memory: inputs, angles, blocks and gradients."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lessen.core.event import Event, Listener
from lessen.core.modules import evaluating
from lessen.core.unit import Unit
from lessen.errors import LessenError, UsageError, one_line
from lessen.stats import curvature, gradients, inputs, routed
from lessen.stats.gradients import Collecting, Gradient
from lessen.stats.objectives import Objective, forward


def survey(
    model: nn.Module,
    units: Sequence[Unit],
    needs: Sequence[type],
    batches: Iterable[Any],
    how: Collecting | None = None,
    on_event: Listener | None = None,
) -> tuple[list[dict[type, Any]], tuple[str, ...]]:
    """Statistics of every unit.

    Args:
        model: run in evaluation mode, otherwise left as it was.
        units: about which something is needed.
        needs: statistics: accumulators of `lessen.stats.accumulators`, `AngleEntropy`, and the gradients of `lessen.stats.gradients`.
        batches: what the objective takes; used twice if both inputs and gradients are needed.
        how: objective, token filter and memory.
        on_event: hears of every batch.

    Returns:
        one dict per unit, and the names of the losses.

    Raises:
        UsageError: something is needed and there are no batches. LessenError: the model fails on one.
    """
    if not needs:
        return [{} for _ in units], ()
    how = how or Collecting()
    batches = list(batches)
    if not batches:
        remedy = "give batches= (--batches or --calibration), or a method that looks at none (Magnitude)"
        raise UsageError("batches", got="none", wanted="one at least: the method looks at data", remedy=remedy)
    by_gradient = [need for need in needs if issubclass(need, Gradient)]
    by_input = [need for need in needs if not issubclass(need, Gradient)]
    total = len(batches) * (bool(by_gradient) * max(1, how.passes) + bool(by_input))
    offset = 0

    def tick(done: int) -> None:
        if on_event:
            on_event(Event("survey", offset + done, total))

    found: list[dict[type, Any]] = [{} for _ in units]
    tasks: tuple[str, ...] = ()
    try:
        with evaluating(model):
            if by_input:
                objective = how.objective or forward
                seen = _forward(model, units, by_input, batches, objective, tick)
                for unit, stats in zip(units, found, strict=True):
                    stats.update(seen[unit.name])
                offset = len(batches)
            if curvature.OutputFisher in by_gradient:
                factored = curvature.collect(model, units, batches, how, tick)
                for unit, stats in zip(units, found, strict=True):
                    stats.update(factored[unit.name])
            elif by_gradient:
                measured = gradients.collect(model, units, by_gradient, batches, how, tick)
                tasks = measured.tasks
                for unit, stats in zip(units, found, strict=True):
                    stats.update(measured.values[unit.name])
    except LessenError:
        raise
    except Exception as error:  # the model's own code, or the caller's loss
        takes = ", ".join(name for name in inspect.signature(model.forward).parameters if name not in ("args", "kwargs"))
        wanted = f"batches that {type(model).__name__} takes ({takes})"[:200]
        remedy = "try one batch by hand: the model (and losses=) must take it"
        raise LessenError("batches", got=f"{one_line(error)} from {_told(batches[0])}", wanted=wanted, remedy=remedy) from error
    return found, tasks


def _told(batch: Any) -> str:
    """A batch in a few words.

    >>> _told({"x": 1}), _told((1, 2))
    ('a mapping with x', 'a tuple of int, int')
    """
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(str, batch)) or 'nothing'}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch[:4])}"
    shape = getattr(batch, "shape", None)
    return f"a {type(batch).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")


def _forward(
    model: nn.Module,
    units: Sequence[Unit],
    needs: Sequence[type],
    batches: Sequence[Any],
    objective: Objective,
    tick: Callable[[int], None],
) -> dict[str, dict[type, Any]]:
    """Statistics of a forward pass: of routers and tables if they are asked for, else of inputs."""
    counted = [need for need in needs if need in (routed.RoutedNorm, routed.Lookups)]
    return (
        routed.collect(model, units, counted, batches, objective)
        if counted
        else inputs.collect(model, units, needs, batches, objective, tick)
    )
