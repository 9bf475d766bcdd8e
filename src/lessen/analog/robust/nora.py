"""NORA: move range from activations, which converters cut, to weights, which bear it better.

A DAC has one range for all inputs of a tile. In language models a few features of a normed hidden state are tens of times larger than
the rest; they set the range, and all others are left with a few codes. A norm multiplies by a gain for each feature just before, so the
gain can be divided by s_j and the matching input column of every linear layer that reads the norm multiplied by it:

    gamma_j / s_j,   beta_j / s_j,   W_ij s_j         s_j = max|x_j|^a / max_i|W_ij|^(1 - a),  geometric mean 1

The function stays the same. Inputs are then of one size; columns of the weight differ more, which costs range of the devices, so `a` is a
trade: a = 0 evens out the weights, a = 1 the inputs. Each norm has its own: the one with which the layers behind it, put on this very chip
with its converters and its noise, are nearest to what they should give on calibration inputs (ours; no scale at all is among the choices).

Which layers read a norm is seen in a forward pass: what a norm returns arrives at them. That nobody else reads it is proved: the model
with the edits gives the same outputs in float64, else the norm is left as it is and named with its reason.

Papers: NORA: Noise-Optimized Rescaling of LLMs on Analog Compute-in-Memory Accelerators, DATE 2025 (abstract); the form of s is that of
SmoothQuant, Xiao et al. 2022, https://arxiv.org/abs/2211.10438, eq. 4.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.analog.chip import Chip
from lessen.analog.mapping import map as put
from lessen.analog.mapping import run_batch
from lessen.analog.tiles.branches import linears, thin
from lessen.core.apply import apply
from lessen.core.edit import Edit, Replace
from lessen.core.modules import evaluating, heard, plain_experts
from lessen.core.strict import check_fields
from lessen.errors import UsageError

_PROOF = 1e-10  # of the largest output, in float64: a thousand products of rounding, far below any rescaling that is none
_RANGE = 1e4  # largest scale over smallest: beyond it the tiny ones are rounding themselves


@dataclass(frozen=True)
class Reading:
    """A norm and what reads it.

    Attributes:
        norm: its name.
        layers: linear layers that are given its output.
        inputs: a sample of it, "vector feature".
        largest: of every feature, over all that was seen.
    """

    norm: str
    layers: tuple[str, ...]
    inputs: Tensor
    largest: Tensor


@dataclass
class Rescaled:
    """What was decided.

    Attributes:
        edits: for `lessen.core.apply.apply`.
        strengths: `a` of every norm that is rescaled.
        left: norms that are not, and why.
    """

    edits: list[Replace]
    strengths: dict[str, float]
    left: dict[str, str]


@dataclass(frozen=True)
class NORA:
    """Rescale the inputs of analog layers behind norms."""

    strength: float | None = None
    """How much of the range goes to the weights (a); None: the best of a grid, for each norm."""
    steps: int = 5
    """Values of that grid between 0 and 1."""
    samples: int = 256
    """Input vectors on which a strength is judged."""
    seed: int = 0
    """Of the chip on which it is judged."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.strength is not None and not 0 <= self.strength <= 1) or self.steps < 2 or self.samples < 1:
            got = f"strength={self.strength}, steps={self.steps}, samples={self.samples}"
            raise UsageError("NORA", got=got, wanted="a strength from 0 to 1, at least 2 steps and 1 sample")

    def check(self, model: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], Any] | None = None) -> None:
        """Refuse a model with norms whose outputs cannot be compared."""
        if any(_is_norm(module) for module in model.modules()):
            with torch.no_grad(), evaluating(model):
                _tensor((run or run_batch)(model, batches[0]))

    def decide(self, model: nn.Module, chip: Chip, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None) -> Rescaled:
        """Decide on the scales of all norms.

        Args:
            model: left alone.
            chip: on which it will lie.
            batches: calibration data.
            run: how a model is called with a batch.
        """
        batches, call = list(batches), run or run_batch
        found = Rescaled([], {}, {})
        chosen: dict[str, tuple[Reading, Tensor]] = {}
        for reading in readings(model, batches, call, self.samples):
            strength, gain = self._best(model, chip, reading)
            if gain is None:
                found.left[reading.norm] = "no scale is better than none on this chip"
                continue
            chosen[reading.norm] = reading, gain
            found.strengths[reading.norm] = strength
        for norm in _changed(model, chosen, batches[0], call):
            found.left[norm] = "something else reads it too: the outputs change"
            del chosen[norm], found.strengths[norm]
        found.edits = [edit for reading, gain in chosen.values() for edit in _edits(model, reading, gain)]
        return found

    def _best(self, model: nn.Module, chip: Chip, reading: Reading) -> tuple[float, Tensor | None]:
        """The strength and the scales with the smallest error on the chip; no scales if that is without."""
        if self.strength is not None:
            return self.strength, scale_of(model, reading, self.strength)
        best, choice = self._error(model, chip, reading, torch.ones_like(reading.largest)), None
        strength = 0.0
        for step in range(self.steps):
            gain = scale_of(model, reading, step / (self.steps - 1))
            error = self._error(model, chip, reading, gain)
            if error < best:
                best, choice, strength = error, gain, step / (self.steps - 1)
        return strength, choice

    def _error(self, model: nn.Module, chip: Chip, reading: Reading, gain: Tensor) -> float:
        """Squared errors of the layers on the chip, each over its outputs."""
        total = 0.0
        for name in reading.layers:
            weight = model.get_submodule(name).get_parameter("weight").detach()
            exact = reading.inputs @ weight.t()
            mapped = put(thin(weight * gain), chip, calibration=[reading.inputs / gain]).program(self.seed)
            with torch.no_grad():
                error = mapped.model(reading.inputs / gain) - exact
            total += float(error.square().mean() / exact.square().mean().clamp(min=1e-30))
        return total


def scale_of(model: nn.Module, reading: Reading, strength: float) -> Tensor:
    """s of the header, "feature"."""
    weights = torch.stack([model.get_submodule(n).get_parameter("weight").detach().abs().amax(0) for n in reading.layers]).amax(0)
    logs = strength * _log(reading.largest) - (1 - strength) * _log(weights)
    return (logs - logs.mean()).exp()


def _log(values: Tensor) -> Tensor:
    """Logarithms; what is next to nothing counts as a ten-thousandth of the largest."""
    largest = values.max()
    return (values / largest).clamp(min=1 / _RANGE).log() if largest > 0 else torch.zeros_like(values)


def readings(model: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], Any], samples: int) -> list[Reading]:
    """Norms of which the output arrives at linear layers, in the order in which they run."""
    norms = {name: module for name, module in model.named_modules() if _is_norm(module)}
    layers = {name: model.get_submodule(name) for name in linears(model)}
    made: dict[tuple[int, int], tuple[str, Tensor]] = {}  # where a norm's output lies; the tensor is kept, so that nothing else lies there
    readers: dict[str, dict[str, None]] = {}
    inputs: dict[str, Tensor] = {}
    largest: dict[str, Tensor] = {}

    def hear(name: str, args: tuple[Any, ...], output: Any) -> None:
        if output is None:  # a linear layer is about to run
            at = made.get((args[0].data_ptr(), args[0].shape[-1]))
            if at is not None and at[1].numel() == args[0].numel():
                readers.setdefault(at[0], {})[name] = None
            return
        made[output.data_ptr(), output.shape[-1]] = name, output
        flat = output.detach().reshape(-1, output.shape[-1])
        if name not in inputs:
            inputs[name] = flat[:: -(-len(flat) // samples)].clone()
        most = flat.abs().amax(0)
        largest[name] = torch.maximum(most, largest[name]) if name in largest else most

    with torch.no_grad(), evaluating(model), heard(norms, hear), heard(layers, hear, before=True):
        for batch in batches:
            made.clear()
            run(model, batch)
    return [Reading(name, tuple(found), inputs[name], largest[name]) for name, found in readers.items()]


def _is_norm(module: nn.Module) -> bool:
    """Whether all that a module holds is a gain for each feature, and perhaps a bias."""
    own = dict(module.named_parameters())
    return set(own) <= {"weight", "bias"} and "weight" in own and all(p.dim() == 1 for p in own.values()) and not list(module.children())


def _edits(model: nn.Module, reading: Reading, gain: Tensor) -> list[Replace]:
    norm = model.get_submodule(reading.norm)
    edits = [Replace(f"{reading.norm}.{key}", p.detach() / gain.to(p)) for key, p in norm.named_parameters()]
    for name in reading.layers:
        weight = model.get_submodule(name).get_parameter("weight").detach()
        edits.append(Replace(f"{name}.weight", weight * gain.to(weight)))
    return edits


def _changed(model: nn.Module, chosen: Mapping[str, tuple[Reading, Tensor]], batch: Any, run: Callable[[nn.Module, Any], Any]) -> list[str]:
    """Norms whose rescaling changes the outputs: all are tried together, and one by one only if they do."""

    def differs(names: Iterable[str]) -> bool:
        double = copy.deepcopy(model).double().eval()
        with torch.no_grad(), plain_experts(double):
            exact = _tensor(run(double, _double(batch)))
            edits: list[Edit] = [edit for name in names for edit in _edits(double, chosen[name][0], chosen[name][1].double())]
            found = _tensor(run(apply(double, edits), _double(batch)))
        return not bool((found - exact).abs().max() <= _PROOF * exact.abs().max())

    if not chosen or not differs(chosen):
        return []
    return [name for name in chosen if differs([name])]


def _double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: _double(value) for key, value in batch.items()}
    return type(batch)(_double(value) for value in batch) if isinstance(batch, tuple | list) else batch


def _tensor(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(found, Tensor):
        raise UsageError(
            "NORA", got=f"a model that returns {type(output).__name__}", wanted="a tensor", remedy="give run= that returns one"
        )
    return found
