"""An independent way to cut a model by its traced units, for tests: no code of `lessen.core.apply` is used."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.unit import Unit

# float64 sums of a few hundred terms in another order differ by less than 1e-12; a wrong index makes a difference of order one.
TOLERANCE = 1e-9


def disturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """float64, evaluation mode, and no two channels alike: noise on all parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and "running" in name:
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def kept(model: nn.Module, units: Iterable[Unit], seed: int = 0) -> dict[str, list[Tensor]]:
    """For each dimension of every tensor, which indices stay when each unit loses about a third of its channels, at random."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stay = {name: [torch.ones(n, dtype=torch.bool) for n in t.shape] for name, t in tensors.items()}
    for unit in units:
        gone = torch.randperm(unit.size, generator=generator)[: max(1, unit.size // 3)]
        for part in unit.slices:
            stay[part.name][part.axis][part.indices(unit.size)[gone].reshape(-1)] = False
    return stay


def masked_and_sliced(model: nn.Module, units: Iterable[Unit]) -> tuple[nn.Module, nn.Module]:
    """Two copies: zeros where channels are gone, and smaller tensors with the numbers of groups that convolutions and norms keep."""
    stay = kept(model, units)
    masked, sliced = copy.deepcopy(model), copy.deepcopy(model)
    for name, flags in stay.items():
        for other in (masked, sliced):
            path, _, key = name.rpartition(".")
            owner = other.get_submodule(path)
            tensor = getattr(owner, key).data
            for axis, flag in enumerate(flags):
                if other is masked and name.endswith("original1") and axis == 0:
                    continue  # a direction of weight_norm has a length; its zero magnitude is enough
                shape = [-1 if d == axis else 1 for d in range(tensor.dim())]
                tensor = tensor * flag.view(shape).to(tensor.dtype) if other is masked else tensor.index_select(axis, flag.nonzero()[:, 0])
            getattr(owner, key).data = tensor
    for path, new in sliced.named_modules():
        _renumber(new, lambda key, groups, path=path: int(stay[f"{path}.{key}"][0].view(groups, -1).any(1).sum()))
    return masked, sliced


def _renumber(module: Any, left: Callable[[str, int], int]) -> None:
    """Numbers that modules of torch keep for themselves; `left(key, groups)` counts the groups of rows of which any is left."""
    match module:
        case nn.GroupNorm():
            module.num_groups, module.num_channels = left("weight", module.num_groups), len(module.weight)
        case nn.Conv1d() | nn.Conv2d() | nn.ConvTranspose2d() if module.groups > 1:
            module.groups = left("weight", module.groups)
        case nn.LayerNorm():
            module.normalized_shape = tuple(module.weight.shape)
        case nn.LSTM() | nn.GRU():
            module.hidden_size, module.input_size = (
                module.get_parameter("weight_hh_l0").shape[1],
                module.get_parameter("weight_ih_l0").shape[1],
            )


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())
