"""What routers and token ids say: how much each expert contributes, how often each row of a table is looked up."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.core.unit import Unit
from lessen.errors import LessenError


class RoutedNorm:
    """Mean over the tokens that a router sent to an expert of (router weight times norm of the expert's output), "channel"."""


class Lookups:
    """How often each row of a table was looked up, "channel"."""


def collect(
    model: nn.Module, units: Sequence[Unit], needs: Sequence[type], batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> dict[str, dict[type, Tensor]]:
    """Run every batch forward and count.

    Args:
        model: not changed.
        units: of kind "experts" for `RoutedNorm`, of a table's rows for `Lookups`.
        needs: which of the two.
        batches: what `forward` takes.
        forward: runs the model on a batch.

    Raises:
        LessenError: experts that are not packed in one module called with (tokens, chosen, weights).
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {unit.name: torch.zeros(unit.size, dtype=torch.float64) for unit in units}
    batches = list(batches)
    if not batches:
        raise LessenError("batches", got="none", wanted="one at least, to see what is chosen in them")
    handles = []
    try:
        for unit in units:
            sums[unit.name] = torch.zeros(unit.size, dtype=torch.float64)
            if RoutedNorm in needs:
                hook = partial(_routed, unit, sums[unit.name], counts[unit.name])
                handles.append(_pack(model, unit).register_forward_pre_hook(hook, with_kwargs=True))
            if Lookups in needs:
                table = model.get_submodule(unit.slices[0].name.rpartition(".")[0])
                handles.append(table.register_forward_pre_hook(partial(_looked_up, counts[unit.name])))
        for batch in batches:
            with torch.no_grad():
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, dict[type, Tensor]] = {}
    for unit in units:
        count = counts[unit.name]
        values: Mapping[type, Tensor] = {RoutedNorm: sums[unit.name] / count.clamp_min(1), Lookups: count}
        found[unit.name] = {need: values[need] for need in needs}
    return found


def _pack(model: nn.Module, unit: Unit) -> nn.Module:
    """The module that holds the experts' weights, "expert out in" each."""
    path = next((part.name.rpartition(".")[0] for part in unit.slices if part.name.endswith("down_proj")), None)
    if path is None or not hasattr(model.get_submodule(path), "gate_up_proj"):
        wanted = "experts packed as gate_up_proj and down_proj, as transformers has them"
        raise LessenError(unit.name, got=f"slices {[part.name for part in unit.slices]}", wanted=wanted)
    return model.get_submodule(path)


def _routed(unit: Unit, sums: Tensor, counts: Tensor, pack: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Work out each expert's output on its tokens once more: the module adds them up before anyone sees them."""
    given = [*args, *kwargs.values()]
    if len(given) < 3:
        got = f"{len(given)} arguments"
        raise LessenError(unit.name, got=got, wanted="a call with tokens, chosen experts and their weights")
    hidden, chosen, weights = given[:3]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    chosen, weights = chosen.reshape(len(hidden), -1), weights.reshape(len(hidden), -1)
    for expert in chosen.unique().tolist():
        if expert >= unit.size:
            continue
        token, place = (chosen == expert).nonzero(as_tuple=True)
        inner = F.linear(hidden[token], pack.gate_up_proj[expert])
        gate, up = inner.chunk(2, -1)
        out = F.linear(pack.act_fn(gate) * up, pack.down_proj[expert])
        sums[expert] += float((weights[token, place].double() * out.double().norm(dim=-1)).sum())
        counts[expert] += len(token)


def _looked_up(counts: Tensor, _: nn.Module, args: tuple[Any, ...]) -> None:
    counts += torch.bincount(args[0].reshape(-1).cpu(), minlength=len(counts))[: len(counts)]
