"""Quantiles near the largest value, without sorting what lies below.

    rank = q (n - 1),    quantile = (1 - f) v[floor(rank)] + f v[ceil(rank)],    f = rank - floor(rank),    v ascending

A converter's range is a quantile such as 0.9999, for which the few largest of thousands of values suffice: n - floor(rank) of them, which
`torch.topk` selects. They lie in the blocks with the largest maxima, as many blocks as values, so of all other blocks nothing but the
maximum is needed. The rank is reckoned in the type of the values as `torch.quantile` does, so both give the same number.
"""

from math import isqrt

import torch
from torch import Tensor

_FEW = 16  # times as many values as are selected make a selection sooner than a sort


def quantile(values: Tensor, share: float, dim: int = 0) -> Tensor:
    """A quantile along a dimension, which stays with one entry; NaN where a value is NaN.

    >>> quantile(torch.arange(101.0), 0.99)
    tensor([99.])
    """
    count = values.shape[dim]
    rank = float(torch.tensor(share, dtype=values.dtype) * (count - 1))
    few = count - int(rank)
    if few * _FEW > count or few < 2:
        return values.amax(dim, keepdim=True) if few == 1 else torch.quantile(values, share, dim=dim, keepdim=True)
    above, below = _largest(values, few, dim).narrow(dim, few - 2, 2).split(1, dim)
    return torch.lerp(below, above, rank - int(rank))


def _largest(values: Tensor, few: int, dim: int) -> Tensor:
    """The largest values along a dimension, in order."""
    size = isqrt(values.shape[dim] // few)  # as many maxima as candidates
    blocks, rest = values.shape[dim] // size, values.shape[dim] % size
    cut = values.narrow(dim, 0, blocks * size).unflatten(dim, (blocks, size))
    chosen = torch.topk(cut.amax(dim + 1), few, dim).indices.unsqueeze(dim + 1)
    candidates = [cut.take_along_dim(chosen, dim).flatten(dim, dim + 1), values.narrow(dim, blocks * size, rest)]
    return torch.topk(torch.cat(candidates, dim), few, dim).values
