"""Least squares in place of training: what is left of a layer takes over what was removed, in one step, without a gradient.

A layer y = W x loses some of its inputs. If the columns that stay are simply kept, the part of y that came from the others is missing; but
inputs of a trained network are correlated, so much of that part can be told from those that stay:

    W' = argmin ||T - W' X||^2 + d ||W' - W_k||^2 = (T X^T + d W_k) (X X^T + d I)^-1

X are the inputs that stay, as the pruned model delivers them; T what the output should have been; W_k the columns that stay. The damping
d (a fraction of the mean square of X) pulls towards the weights as they were, not towards zero: where the text says nothing, nothing
changes. With the damping at infinity only the mean is corrected, b' = b + mean(T - W_k X): that is the `bias` kind.

Papers: He et al. 2017, Channel Pruning, https://arxiv.org/abs/1707.06168 (eq. 3, reconstruction after the choice); Luo et al. 2017, ThiNet,
https://arxiv.org/abs/1707.06342; An et al. 2023, FLAP, https://arxiv.org/abs/2312.11983 (the bias).
Ours: the damping towards the weights that stay, and (in `stream`) a target that is the hidden state of the dense model, so that a layer
also makes up for what went wrong before it, whole dropped blocks included.
"""

import torch
from torch import Tensor

from lessen.errors import LessenError


class Sums:
    """What least squares needs of all tokens: X X^T "in in", T X^T "out in", sums of X and T; added up in float64.

    >>> sums = Sums()
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> sums.update(x, x @ torch.tensor([[2.0], [3.0]]))
    >>> sums.solve(torch.zeros(1, 2), damping=0.0).round(decimals=6)
    tensor([[2., 3.]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.inputs: Tensor | None = None
        self.targets: Tensor | None = None
        self.count = 0

    def update(self, x: Tensor, target: Tensor) -> None:
        """Add tokens: inputs "token in", wanted outputs "token out"."""
        x, target = (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in (x, target))
        with torch.autocast(x.device.type, enabled=False):
            parts = (x.T @ x, target.T @ x, x.double().sum(0), target.double().sum(0))
        old = (self.gram, self.cross, self.inputs, self.targets)
        added = [part.double() if total is None else total.add_(part) for total, part in zip(old, parts, strict=True)]
        self.gram, self.cross, self.inputs, self.targets = added
        self.count += len(x)

    def solve(self, weight: Tensor, damping: float, bias: Tensor | None = None) -> Tensor:
        """The weight that fits best.

        Args:
            weight: as it is, "out in"; the damping pulls towards it.
            damping: fraction of the mean square of the inputs; at least 0.
            bias: what the layer adds, "out"; it is taken off the targets.

        Returns:
            float64, "out in".

        Raises:
            LessenError: no tokens were seen, or the inputs are no numbers.
        """
        if self.gram is None or self.cross is None or self.inputs is None:
            raise LessenError("regression", got="no tokens", wanted="some")
        cross = self.cross if bias is None else self.cross - torch.outer(bias.double(), self.inputs)
        strength = damping * float(self.gram.diagonal().mean())
        # Inputs that are never on leave the matrix singular without damping; a millionth of a millionth decides nothing else.
        strength = max(strength, 1e-12 * float(self.gram.diagonal().mean()), torch.finfo(torch.float64).tiny)
        damped = self.gram + strength * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        wanted = cross + strength * weight.double()
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            raise LessenError("regression", got="inputs that are no numbers", wanted="finite ones", remedy="check the weights and the text")
        return torch.cholesky_solve(wanted.T, factor).T

    def shift(self, weight: Tensor) -> Tensor:
        """The bias that makes the mean output right with this weight, float64 "out"."""
        if self.inputs is None or self.targets is None:
            raise LessenError("regression", got="no tokens", wanted="some")
        return (self.targets - weight.double() @ self.inputs) / self.count
