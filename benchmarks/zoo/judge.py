"""Whether a cut was carried out rightly, judged from the two models alone, whoever made it.

All weights are random and distinct, so the values say which rows and columns of each tensor are left. Zeroing the others in the
original must give the same outputs; norms count the channels that are left (see `lessen.structure.check.KeptNorms`).
"""

import copy
from contextlib import ExitStack
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.hub import run
from lessen.core.modules import plain_attention
from lessen.errors import LessenError
from lessen.structure.check import KeptNorms, described, left_of

TOLERANCE = 1e-6
REMOVED = 0.10


class Wrong(Exception):
    """What is not right about a cut, as a sentence; `silent` if nothing would have told the user."""

    def __init__(self, why: str, silent: bool = False):
        super().__init__(why)
        self.silent = silent


def judge(original: nn.Module, smaller: nn.Module, inputs: Any) -> dict[str, Any]:
    """Figures of a cut that is right.

    Raises:
        Wrong: it is not.
    """
    before, after = _count(original), _count(smaller)
    try:
        run(smaller, inputs)
    except Exception as error:
        raise Wrong(f"does not run: {type(error).__name__}: {error}"[:300]) from error
    masked = copy.deepcopy(original)
    untied = _untie(masked, smaller)
    _mask(masked, smaller)
    worst = _compared(masked, smaller, inputs)
    _elsewhere(masked, smaller, inputs)
    try:
        described(copy.deepcopy(smaller))
    except LessenError as error:
        raise Wrong(f"attributes: {error}") from error
    removed = 1 - after / before
    if removed < REMOVED:
        raise Wrong(f"only {removed:.1%} of the parameters removed")
    if untied:
        raise Wrong(f"right, but {untied[0]} and {untied[1]} are no longer tied", silent=True)
    return {"removed": round(removed, 3), "difference": float(f"{worst:.2g}")}


def _compared(masked: nn.Module, smaller: nn.Module, inputs: Any) -> float:
    """The largest difference of outputs, over the largest output."""
    with KeptNorms(left_of(dict(masked.named_parameters()), dict(smaller.named_parameters()))):
        wanted = run(masked, inputs)
    found = run(smaller, inputs)
    if len(found) != len(wanted) or found[0].shape != wanted[0].shape:
        raise Wrong("the shape of the output changed", silent=True)
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if a.shape == b.shape and a.numel()]
    if not all(bool(a.isfinite().eq(b.isfinite()).all()) for a, b in pairs):
        raise Wrong("outputs are not finite", silent=True)
    worst = max(
        (float(torch.nan_to_num(a - b).abs().max()) / max(1.0, float(torch.nan_to_num(b).abs().max())) for a, b in pairs), default=1.0
    )
    if worst > TOLERANCE:
        raise Wrong(f"differs from the masked model by {worst:.2g}", silent=True)
    return worst


def _elsewhere(masked: nn.Module, smaller: nn.Module, inputs: Any) -> None:
    """The same with attention taken apart, and with padding at the end of a text, wherever the whole model gives numbers so.

    A number that a module keeps may be asked for in these ways alone.
    """
    for what, given, eager in (("eager attention", inputs, True), ("padding", _padded(inputs), False)):
        with ExitStack() as stack:
            if eager:
                stack.enter_context(plain_attention(masked, smaller))
            try:
                numbers = all(bool(tensor.isfinite().all()) for tensor in run(masked, given))
            except Exception:
                continue
            if not numbers:
                continue
            try:
                _compared(masked, smaller, given)
            except Wrong as error:
                raise Wrong(f"with {what}, {error}", silent=True) from error
            except Exception as error:
                raise Wrong(f"with {what}, does not run: {type(error).__name__}: {error}"[:300], silent=True) from error


def _padded(inputs: Any) -> Any:
    """The inputs with an attention mask that leaves out the last two tokens of the first text."""
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] < 4:
        return inputs
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {**inputs, "attention_mask": mask}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _mask(masked: nn.Module, smaller: nn.Module) -> None:
    """Zero what the smaller model lacks."""
    own = dict(smaller.named_parameters(remove_duplicate=False))
    sets: dict[tuple[int, int], list[Tensor]] = {}
    for name, parameter in masked.named_parameters():
        if name not in own and (name := _same(masked, name, own)) is None:
            raise Wrong("a parameter is gone")
        kept = indices(parameter.detach(), own[name].detach(), name)
        mask = torch.zeros_like(parameter)
        mask[torch.meshgrid(*kept, indexing="ij")] = 1
        parameter.data = parameter.data * mask
        for size, indices_kept in zip(parameter.shape, kept, strict=True):
            sets.setdefault((size, len(indices_kept)), []).append(indices_kept)
    tables = dict(smaller.named_buffers())
    for name, buffer in masked.named_buffers():
        if name in tables and tables[name].shape != buffer.shape and tables[name].dim() == buffer.dim():
            _mask_buffer(buffer, tables[name], sets)


def _mask_buffer(buffer: Tensor, part: Tensor, sets: dict[tuple[int, int], list[Tensor]]) -> None:
    """Zero what a smaller table lacks; its values may repeat, so the indices are those that some parameter lost."""
    choices = [
        [torch.arange(a)] if a == b else list({tuple(k.tolist()): k for k in sets.get((a, b), [])}.values())
        for a, b in zip(buffer.shape, part.shape, strict=True)
    ]
    fits = [where for kept in product(*choices) if torch.equal(buffer[where := torch.meshgrid(*kept, indexing="ij")], part)]
    if len(fits) == 1:  # constants fit anywhere; they multiply what is zero already
        mask = torch.zeros_like(buffer)
        mask[fits[0]] = 1
        buffer.mul_(mask)


def _same(masked: nn.Module, name: str, own: dict[str, Any]) -> str | None:
    """Another name of a shared parameter."""
    wanted = dict(masked.named_parameters())[name]
    return next((n for n, p in masked.named_parameters(remove_duplicate=False) if p is wanted and n in own), None)


def indices(whole: Tensor, part: Tensor, name: str) -> list[Tensor]:
    """For every axis, the indices of `whole` that `part` consists of, found by value.

    >>> indices(torch.arange(6.0).view(2, 3), torch.tensor([[3.0, 5.0]]), "w")
    [tensor([1]), tensor([0, 2])]
    """
    if whole.shape == part.shape and not whole.numel():
        return [torch.arange(n) for n in whole.shape]
    if whole.dim() != part.dim() or any(a < b for a, b in zip(whole.shape, part.shape, strict=True)) or not part.numel():
        raise Wrong(f"{name} of shape {tuple(part.shape)} is no part of {tuple(whole.shape)}")
    if whole.shape == part.shape:
        if not torch.equal(whole, part):
            raise Wrong(f"values of {name} changed", silent=True)
        return [torch.arange(n) for n in whole.shape]
    values, order = whole.flatten().sort()
    found = torch.searchsorted(values, part.flatten().contiguous()).clamp(max=len(values) - 1)
    flat = order[found]
    if not torch.equal(whole.flatten()[flat], part.flatten()):
        raise Wrong(f"values of {name} changed", silent=True)
    places = torch.unravel_index(flat.view(part.shape), whole.shape)
    kept = [place.movedim(axis, 0).reshape(place.shape[axis], -1)[:, 0] for axis, place in enumerate(places)]
    if not torch.equal(whole[torch.meshgrid(*kept, indexing="ij")], part):
        raise Wrong(f"{name} is no selection of rows and columns", silent=True)
    return kept


def _untie(masked: nn.Module, smaller: nn.Module) -> list[str]:
    """Give tensors that share one in the original, but not in the smaller model, one each; the names of some of them."""
    groups: dict[int, list[str]] = {}
    for name, parameter in masked.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    own = dict(smaller.named_parameters(remove_duplicate=False))
    found: list[str] = []
    for names in groups.values():
        if len({id(own[name]) for name in names if name in own}) > 1:
            found = found or names
            for name in names:
                path, _, key = name.rpartition(".")
                module = masked.get_submodule(path)
                module._parameters[key] = nn.Parameter(getattr(module, key).detach().clone())
    return found
