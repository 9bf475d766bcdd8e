"""HPD: a sensitive projection in two factors, the one that sees the inputs digital.

The paper's form is `svd`, the division of the weight; the default, `inputs`, is ours: it looks at the inputs and keeps the weight.

    svd      W = U S V^T                        digital z = V^T x, then (U S) z on tiles                          the paper's form
    rotated  W = (U S Q^T) (Q V^T)              the same with a random orthogonal Q between the two               ours
    inputs   W x = (W V)(V^T x) + W (x - V V^T x)   digital first term, W on tiles for what is left of x          ours, the default

When `svd` can help. If the error of a device grows with its conductance (flash below threshold), a matrix A on tiles adds noise of
sigma^2 sum_ij A_ij^2 z_j^2. For A = U S and z = V^T x that is sigma^2 |W x|^2, noise in proportion to the signal, whatever W and x are.
For W itself it is sigma^2 sum_ij W_ij^2 x_j^2: more than that where large inputs nearly cancel, less where they add up.

When it cannot. If the error belongs to the range of the device, noise is sigma^2 sum_i max_j A_ij^2 |z|^2, and the columns of U S are as
unequal as the singular values: the first column takes the range, the others drown. `rotated` makes the columns alike. And V^T at full rank
takes as many digital multiplications as W has, so nothing is saved but weights on tiles, unless the rank is cut, at a loss of its own.

`inputs` answers both. The errors of tiles are in proportion to their inputs, and the inputs of language models lie mostly in a few
directions that are the same for all tokens: V are the first eigenvectors of E[x x^T] on calibration data, r (2 in + out) digital
multiplications for a vector. What is left of x is small, and so are its noise and the range that its converter needs; W keeps its rank.

Measured on a network of two layers, 256 inputs of which six directions hold 98 % of the power, on six chips with errors of 15 % of the
range: `inputs` of rank 6 with 6.8 % of the multiplications digital loses 2.1 points of a hundred, where all on tiles loses 14.2;
`svd` cut to rank 17 (6.4 % digital) loses 7.5, at full rank (96 % digital) 42.1 since the first column takes the range, `rotated` 11.6.

Which layers: the paper finds the last block and output projections of Mamba the most sensitive, so output projections of the last block
are the default; `lessen.analog.sensitivity` measures it.

Paper: Feng et al. 2025, HPD, https://arxiv.org/abs/2508.11935 (abstract; the analysis above is ours).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.analog.mapping import run_batch
from lessen.analog.tiles.branches import Beside, Hybrid, Pair, divided, linear, linears, thin
from lessen.analog.tiles.streams import stream
from lessen.core.edit import Factor
from lessen.core.modules import block_lists, evaluating, heard
from lessen.core.strict import check_fields
from lessen.errors import UsageError

OUTPUTS = ("out_proj", "o_proj", "down_proj", "c_proj", "fc2", "dense_4h_to_h", "wo", "w2")
"""What output projections are called."""
_RANK = 16


@dataclass(frozen=True)
class HPD:
    """Divide projections between tiles and a digital unit."""

    form: Literal["svd", "rotated", "inputs"] = "inputs"
    """What the digital half is: right singular vectors of the weight (`svd`, the paper's form; `rotated`: ours), or main directions of the
    inputs' second moments (`inputs`: ours)."""
    rank: int | None = None
    """Of the digital half; None: 16 for `inputs`, full for the others (exact)."""
    targets: tuple[str, ...] = ()
    """Names or patterns of linear layers; empty: output projections of the last blocks."""
    blocks: int = 1
    """How many last blocks, where no targets are given."""
    seed: int = 0
    """Of the rotation."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.rank is not None and self.rank < 1) or self.blocks < 1:
            raise UsageError("HPD", got=f"rank={self.rank}, blocks={self.blocks}", wanted="1 or more")

    def chosen(self, model: nn.Module) -> list[str]:
        """Names of the layers to divide."""
        names = linears(model)
        if self.targets:
            found = [name for name in names if any(fnmatchcase(name, t) for t in self.targets)]
        else:
            lists = block_lists(model)
            path = max(lists, key=lambda p: sum(x.numel() for x in lists[p].parameters()), default="")
            last = range(len(lists[path]) - self.blocks, len(lists[path])) if path else ()
            starts = tuple(f"{path}.{index}." for index in last)
            found = [name for name in names if name.startswith(starts) and name.rpartition(".")[2] in OUTPUTS]
        if not found:
            got = f"targets={self.targets}" if self.targets else "no block with an output projection of a known name"
            raise UsageError("HPD", got=got, wanted="names or patterns of linear layers", remedy=f"such as {', '.join(names[-2:])}")
        return found

    def saves(self, weight: Tensor) -> bool:
        """Whether the digital half of a weight multiplies less than all of it would; the forms of the paper are as they are."""
        return self.form != "inputs" or (self.rank or _RANK) * sum(weight.shape) < weight.numel()

    def decide(self, model: nn.Module, moments: Mapping[str, Tensor] | None = None) -> list[Factor]:
        """The digital half of each layer, as the factors of a matrix.

        Args:
            model: left alone.
            moments: E[x x^T] of each layer's inputs, from `second_moments`; for `inputs`.

        Returns:
            `inputs`: the part W V V^T of W that two digital matrices make; else W = u v, u for the tiles and v digital.
        """
        edits = []
        for name in self.chosen(model):
            weight = linear(model, name).weight.detach().double()
            if self.form == "inputs":
                if moments is None or name not in moments:
                    remedy = "give second_moments(model, names, batches)"
                    raise UsageError(f"HPD of {name}", got="no calibration inputs", wanted="E[x x^T]", remedy=remedy)
                right = torch.linalg.eigh(moments[name].double())[1][:, -(self.rank or _RANK) :].t()
                left = weight @ right.t()
            else:
                left, right = self._factors(weight, name)
            dtype = linear(model, name).weight.dtype
            edits.append(Factor(f"{name}.weight", left.to(dtype), right.to(dtype)))
        return edits

    def _factors(self, weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        left, right = (u * s)[:, : self.rank], v[: self.rank]
        if self.form == "rotated":
            q = torch.linalg.qr(torch.randn(len(right), len(right), dtype=weight.dtype, generator=stream(self.seed, "hpd", name)))[0]
            left, right = left @ q.t(), q @ right
        return left, right

    def divide(self, model: nn.Module, edits: Sequence[Factor]) -> Hybrid:
        """A copy of the model with the divided layers, and the split that keeps their digital halves digital."""
        parts: dict[str, Pair | Beside] = {}
        for edit in edits:
            name = edit.name.removesuffix(".weight")
            layer = linear(model, name)
            if self.form != "inputs":
                parts[name] = Pair(thin(edit.u, layer.bias), thin(edit.v))
            else:
                base = thin(layer.weight.detach(), layer.bias)
                base.weight = layer.weight
                parts[name] = Beside(base, thin(edit.v), thin(edit.u), remove=True)
        return divided(model, parts)


def second_moments(
    model: nn.Module, names: Sequence[str], batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None
) -> dict[str, Tensor]:
    """E[x x^T] of the inputs of layers, "in in", float64.

    Raises:
        UsageError: a layer that no batch reaches.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hear(name: str, args: tuple[Any, ...], _: Any) -> None:
        x = args[0].detach().flatten(0, -2).double()
        sums[name] = sums.get(name, 0.0) + x.t() @ x
        counts[name] = counts.get(name, 0) + len(x)

    call = run or run_batch
    with torch.no_grad(), evaluating(model), heard({name: linear(model, name) for name in names}, hear, before=True):
        for batch in batches:
            call(model, batch)
    for name in names:
        if name not in sums:
            raise UsageError(f"calibration of {name}", got="no input", wanted="data that reaches the layer")
    return {name: sums[name] / counts[name] for name in names}
