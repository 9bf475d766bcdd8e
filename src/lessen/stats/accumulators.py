"""What the calibration text says about one input, accumulated batch by batch: `update`, `merge`, `value`.

Each is a sum over tokens and a count, so shards merge exactly and the order of batches does not matter beyond float64 rounding.
Products are taken in the stream's own precision (a float32 matrix product is where the time goes) and added up in float64, since
sums over 10^4 tokens of products that differ by 10^4 in size would otherwise lose the small features that matter to a ranking.
"""

import torch
from torch import Tensor


class Accumulator:
    """Mean over tokens of `summand`; subclasses say what is averaged.

    Inputs `x` have shape "... in"; leading axes are tokens. `drifted` is the same input as the original model would have had it,
    used only by statistics that compare the two.
    """

    paired = False  # whether `update` needs the original model's input as well

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        """The sum over the tokens of one batch; x is "token in"."""
        raise TypeError(f"{type(self).__name__} has no summand")

    def update(self, x: Tensor, original: Tensor | None = None) -> None:
        """Add one batch of tokens, "... in"."""
        x = x.reshape(-1, x.shape[-1])
        # Autocast would round a float32 product to bfloat16, and moments so rounded are no longer positive definite.
        with torch.autocast(x.device.type, enabled=False):
            part = self.summand(x, None if original is None else original.reshape(x.shape)).double()
        self.total = part if self.total is None else self.total.add_(part)
        self.count += len(x)

    def merge(self, other: "Accumulator") -> None:
        """Add what another accumulator of the same kind has seen."""
        if other.total is not None:
            self.total = other.total.clone() if self.total is None else self.total.add_(other.total)
            self.count += other.count

    def value(self) -> Tensor:
        """The mean over all tokens seen, float64."""
        if self.total is None:
            raise ValueError(f"{type(self).__name__}: no calibration tokens were seen")
        return self.total / self.count


class Gram(Accumulator):
    """Mean of x x^T, "in in": the Hessian of a linear layer's squared output error, up to a factor of 2.

    >>> gram = Gram()
    >>> gram.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> gram.value()
    tensor([[5., 1.],
            [1., 2.]], dtype=torch.float64)
    """

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        return x.T @ x


class Drift(Accumulator):
    """Mean of (original - x) x^T, "in in": how far compressing the earlier blocks has moved this input."""

    paired = True

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        if original is None:
            raise ValueError("Drift compares two streams; give the original input as well")
        return (original - x).T @ x


class InputNorm(Accumulator):
    """Mean square of every input feature, "in"; Wanda's norm is its root times the root of the token count."""

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        return x.double().square().sum(0)


class InputMagnitude(Accumulator):
    """Mean absolute value of every input feature, "in"."""

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        return x.double().abs().sum(0)


class InputMean(Accumulator):
    """Mean of every input feature, "in"."""

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        return x.double().sum(0)


class InputVariance(Accumulator):
    """Variance of every input feature over tokens, "in".

    Keeps mean and mean square: in float64 the cancellation costs digits only where the variance is below 1e-14 of the mean square.
    """

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        x = x.double()
        return torch.stack([x.sum(0), x.square().sum(0)])

    def value(self) -> Tensor:
        mean, square = super().value()
        return (square - mean.square()).clamp_min(0)


class BlockSimilarity(Accumulator):
    """Mean cosine between a block's input and its output, a scalar; collected from the pair (output, input)."""

    paired = True

    def summand(self, x: Tensor, original: Tensor | None) -> Tensor:
        if original is None:
            raise ValueError("BlockSimilarity compares a block's output with its input; give both")
        return torch.cosine_similarity(x.double(), original.double(), dim=-1).sum()
