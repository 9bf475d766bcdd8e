"""How the loss curves in the layers that read a unit: the second moments of their inputs and of the gradients of their outputs.

For a linear layer y = W x the Hessian of the loss in W is, to second order and with inputs and gradients taken as independent,

    H = A (x) G        A = mean of x x^T, "in in"        G = mean of g g^T, g = dL/dy, "out out"

which is the Kronecker-factored approximate curvature (K-FAC, Martens and Grosse 2015, https://arxiv.org/abs/1503.05671). Both factors come
from one backward pass: a zero that wants a gradient is added to each output, so that gradients reach it and no weight gets one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.modules import as_it_was
from lessen.core.unit import Unit
from lessen.errors import LessenError
from lessen.stats.accumulators import Gram
from lessen.stats.gradients import Collecting, Gradient
from lessen.stats.inputs import Read
from lessen.stats.objectives import default_objective, named
from lessen.stats.readers import Reader, readers


class OutputFisher(Gradient):
    """Mean over tokens of g g^T, g the gradient of the loss in a layer's output, "out out", float64; comes in `Read` beside `Gram`."""


def collect(
    model: nn.Module,
    units: Sequence[Unit],
    batches: Sequence[Any],
    how: Collecting,
    tick: Callable[[int], None] | None = None,
) -> dict[str, dict[type, Any]]:
    """Both factors for every layer that reads a unit, over all losses together.

    Args:
        model: in the mode in which it is to be judged; it is left as it was.
        units: whose readers to look at.
        batches: one backward pass each.
        how: objective and token filter; the rest does not matter here.
        tick: hears the number of finished batches.

    Raises:
        LessenError: no batches, or a reader that is not linear.
    """
    if not batches:
        raise LessenError("batches", got="none", wanted="one at least, to take gradients from")
    by_unit = {unit.name: readers(model, unit) for unit in units}
    factors = {reader.path: _Factors(reader) for own in by_unit.values() for reader in own}
    handles = [handle for one in factors.values() for handle in one.listen()]
    try:
        with as_it_was(model):
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for number, batch in enumerate(batches, 1):
                with torch.enable_grad():
                    losses = named((how.objective or default_objective)(model, batch), how.keep)
                    torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum().backward()
                if tick:
                    tick(number)
    finally:
        for handle in handles:
            handle.remove()
    return {name: {Read: [Read(reader, factors[reader.path].value()) for reader in own]} for name, own in by_unit.items()}


class _Factors:
    """Running sums of one layer."""

    def __init__(self, reader: Reader):
        if reader.module.get_parameter("weight").ndim != 2:
            got, remedy = f"a {type(reader.module).__name__}", "use Fisher or Taylor for convolutions"
            raise LessenError(reader.path, got=got, wanted="a linear layer", remedy=remedy)
        self.reader, self.inputs, self.gradients = reader, Gram(), Gram()

    def listen(self) -> list[Any]:
        module = self.reader.module
        return [module.register_forward_pre_hook(self._input), module.register_forward_hook(self._output)]

    def _input(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        self.inputs.update(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)

    def _output(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        probed = out + torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=True)
        probed.register_hook(partial(_seen, self.gradients))
        return probed

    def value(self) -> dict[type, Tensor]:
        if not self.gradients.count:
            wanted, remedy = "a loss that depends on it", "check losses= and the units"
            raise LessenError(self.reader.path, got="no gradient", wanted=wanted, remedy=remedy)
        return {Gram: self.inputs.value(), OutputFisher: self.gradients.value()}


def _seen(gradients: Gram, gradient: Tensor) -> None:
    gradients.update(gradient.detach().float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient.detach())
