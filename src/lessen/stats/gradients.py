"""What gradients say about every channel of every unit, reduced as they arrive, so that no second copy of the model is held.

Three statistics, w the weights of a channel, g_n the gradient of batch n's loss, sums over the slices of the unit:

    WeightTaylor    sum over weights of |w * sum_n g_n|         first order, every weight for itself (LLM-Pruner, UKMP)
    MaskTaylor      sum_n |sum over weights of w * g_n|         first order, the channel as one switch (Molchanov et al. 2019)
    MaskFisher      sum_n (sum over weights of w * g_n)^2       second order by the Fisher information of that switch (Group Fisher)

A switch m_c that multiplies a channel has the gradient dL/dm_c = sum of w * g over the weights that read the channel: those of linear
layers and convolutions (`lessen.stats.readers`). Units that no such layer reads are switched where they are made.

Memory: a hook takes each gradient when autograd has finished it, multiplies it with its weight, adds up per channel, and frees it. Only
`WeightTaylor` must keep the sum of gradients itself; `passes=k` does so for a k-th of the parameters at a time, for k times the work.
Blocks that lie in a `ModuleList` are checkpointed: their activations are computed again instead of kept.

Paper for checkpointing: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lessen.core.modules import as_it_was, block_lists
from lessen.core.unit import Slice, Unit, View
from lessen.errors import LessenError
from lessen.stats.objectives import Objective, TokenFilter, default_objective, named
from lessen.stats.readers import readers


class Gradient:
    """A statistic that needs a backward pass; its value is a tensor "task channel", float64, tasks in the order of `Gradients.tasks`."""

    gradient = True


class WeightTaylor(Gradient):
    """Sum over a channel's weights of |weight * summed gradient|."""


class MaskTaylor(Gradient):
    """Sum over batches of |gradient of the channel's switch|."""


class MaskFisher(Gradient):
    """Sum over batches of the squared gradient of the channel's switch."""


@dataclass(frozen=True)
class Collecting:
    """How gradients are collected.

    Attributes:
        objective: from model and batch to losses; None takes what the batch speaks of (`default_objective`).
        keep: which predictions of a cross entropy count; None: all.
        passes: parts in which the parameters are looked at one after the other.
        recompute: checkpoint the blocks of every `ModuleList`.
    """

    objective: Objective | None = None
    keep: TokenFilter | None = None
    passes: int = 1
    recompute: bool = True


@dataclass(frozen=True)
class Gradients:
    """Values by unit name and statistic, and the names of the tasks that index their first axis."""

    values: dict[str, dict[type, Tensor]]
    tasks: tuple[str, ...]


def collect(
    model: nn.Module,
    units: Sequence[Unit],
    needs: Sequence[type],
    batches: Iterable[Any],
    how: Collecting = Collecting(),
    tick: Callable[[int], None] | None = None,
) -> Gradients:
    """Run every batch forward and backward, and leave the model as it was.

    Args:
        model: in the mode in which it is to be judged; its weights, gradients and `requires_grad` flags are the same afterwards.
        units: whose channels to look at.
        needs: of `WeightTaylor`, `MaskTaylor`, `MaskFisher`.
        batches: one backward pass each (and per loss); a batch counts as one sample to the mask statistics.
        how: objective, token filter and memory.
        tick: hears the number of finished batches.

    Raises:
        LessenError: no batches, a loss that is not a number, parameters of integer type.
    """
    batches = list(batches)
    if not batches:
        remedy = "prune(model, example_inputs, batches), or a method that looks at none (Magnitude)"
        raise LessenError("batches", got="none", wanted="one at least, to take gradients from", remedy=remedy)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = list(dict.fromkeys(part.name for unit in units for part in unit.slices if part.name in parameters))
    total = _Total(model, units, tuple(needs))
    # A switch needs all its weights' gradients at once; they are freed as they arrive, so nothing is lost by one pass.
    size = max(1, -(-len(names) // (1 if total.masked else max(1, how.passes))))
    with as_it_was(model), _recomputing(model, how.recompute):
        for number, start in enumerate(range(0, len(names), size)):
            total.over({name: parameters[name] for name in names[start : start + size]}, batches, how, tick, number * len(batches))
    if not total.sums:
        got = "no gradient for any unit"
        raise LessenError(
            type(model).__name__, got=got, wanted="a loss that depends on the weights", remedy="look at losses= and at the units"
        )
    return total.value()


class _Total:
    """Running sums of every statistic, by task and unit."""

    def __init__(self, model: nn.Module, units: Sequence[Unit], needs: tuple[type, ...]):
        self.model, self.units, self.needs = model, units, needs
        self.tasks: dict[str, int] = {}
        self.sums: dict[tuple[type, str, str], Tensor] = {}
        self.masked = any(need in (MaskTaylor, MaskFisher) for need in needs)
        self.by_tensor: dict[str, list[tuple[Unit, Slice, bool]]] = {}
        for unit in units:
            switches = {part.part for part in readers(model, unit)} if self.masked else set()
            for part in dict.fromkeys(unit.slices):
                self.by_tensor.setdefault(part.name, []).append((unit, part, part in switches or not switches))

    def over(self, chosen: dict[str, nn.Parameter], batches: Sequence[Any], how: Collecting, tick: Any, done: int) -> None:
        """Add what all batches say about some parameters."""
        arrived = _Arrived(self, chosen)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        handles = [p.register_post_accumulate_grad_hook(arrived) for p in arrived.watch()]
        try:
            for number, batch in enumerate(batches, 1):
                with torch.enable_grad():
                    losses = named((how.objective or default_objective)(self.model, batch), how.keep)
                for place, (task, loss) in enumerate(losses.items()):
                    self.tasks.setdefault(task, len(self.tasks))
                    arrived.task = task
                    if loss.requires_grad:  # a task may not depend on the parameters of this pass
                        loss.backward(retain_graph=place + 1 < len(losses))
                    arrived.settle()
                if tick:
                    tick(done + number)
            arrived.finish()
        finally:
            for handle in handles:
                handle.remove()
            for parameter in self.model.parameters():
                parameter.grad = None

    def add(self, need: type, task: str, unit: Unit, part: Tensor) -> None:
        key = (need, task, unit.name)
        self.sums[key] = part.double().cpu() if key not in self.sums else self.sums[key].add_(part.double().cpu())

    def value(self) -> Gradients:
        tasks = tuple(self.tasks)
        values: dict[str, dict[type, Tensor]] = {}
        for unit in self.units:
            zero = torch.zeros(unit.size, dtype=torch.float64)
            values[unit.name] = {need: torch.stack([self.sums.get((need, task, unit.name), zero) for task in tasks]) for need in self.needs}
        return Gradients(values, tasks)


class _Arrived:
    """Takes each gradient as autograd finishes it; called with the parameter."""

    def __init__(self, total: _Total, chosen: dict[str, nn.Parameter]):
        self.total, self.task = total, ""
        self.names: dict[int, list[str]] = {}
        self.chosen = chosen
        for name, parameter in chosen.items():
            if not parameter.is_floating_point():
                raise LessenError(name, got=str(parameter.dtype), wanted="a floating-point parameter", remedy="prune before quantizing")
            self.names.setdefault(id(parameter), []).append(name)
        self.summed: dict[tuple[str, int], Tensor] = {}
        self.sample: dict[str, Tensor] = {}

    def watch(self) -> list[nn.Parameter]:
        unique = list({id(p): p for p in self.chosen.values()}.values())
        for parameter in unique:
            parameter.requires_grad_(True)
        return unique

    def __call__(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if self.total.masked:
            product = gradient.float() * parameter.detach().float()
            for name in self.names[id(parameter)]:
                for unit, part, switch in self.total.by_tensor.get(name, ()):
                    if switch:
                        reduced = per_channel(unit, part, product).double()
                        self.sample[unit.name] = self.sample[unit.name] + reduced if unit.name in self.sample else reduced
        if WeightTaylor in self.total.needs:
            key = (self.task, id(parameter))
            wide = gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float()
            self.summed[key] = wide if key not in self.summed else self.summed[key].add_(wide)

    def settle(self) -> None:
        """One backward pass is over: a sample's switches are complete."""
        by_name = {unit.name: unit for unit in self.total.units}
        for name, gradient in self.sample.items():
            if MaskTaylor in self.total.needs:
                self.total.add(MaskTaylor, self.task, by_name[name], gradient.abs())
            if MaskFisher in self.total.needs:
                self.total.add(MaskFisher, self.task, by_name[name], gradient.square())
        self.sample = {}

    def finish(self) -> None:
        """All batches are over: the summed gradients are complete."""
        tensors = {id(parameter): parameter for parameter in self.chosen.values()}
        for (task, key), gradient in self.summed.items():
            product = gradient.mul_(tensors[key].detach()).abs_()
            for name in self.names[key]:
                for unit, part, _ in self.total.by_tensor.get(name, ()):
                    if _is_matrix(tensors[key]):
                        self.total.add(WeightTaylor, task, unit, per_channel(unit, part, product))
        self.summed = {}


def per_channel(unit: Unit, part: Slice, tensor: Tensor) -> Tensor:
    """Sum of one slice's elements over everything but the channel, shape "channel"."""
    return View(Unit(unit.name, unit.kind, unit.size, (part,)), {}).sum_per_channel({part.name: tensor})


def _is_matrix(tensor: Tensor) -> bool:
    """Biases and norm gains are not scored: they carry no channel by themselves, and their gradients are out of proportion."""
    return tensor.ndim > 1


@contextmanager
def _recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Checkpoint the members of every outermost `ModuleList` that have a forward of their own."""
    lists = block_lists(model).values() if wanted else ()
    blocks = [block for blocks in lists for block in blocks if not isinstance(block, nn.ModuleList | nn.ModuleDict)]
    # What is computed again would be appended to a cache of keys and values again.
    configs: dict[int, Any] = {id(c): c for m in model.modules() if getattr(c := getattr(m, "config", None), "use_cache", None) is True}
    shadowed = [(block, block.__dict__.get("forward")) for block in blocks]
    for config in configs.values():
        config.use_cache = False
    for block, _ in shadowed:
        block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=block.training)
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
        for block, own in shadowed:
            del block.__dict__["forward"]
            if own is not None:
                block.__dict__["forward"] = own
