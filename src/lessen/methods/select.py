"""Select: of several candidates keep, block by block, the one that does best on text that none of them has seen.

No rounding method is best everywhere: corrections that pay in one block overfit the calibration text in another, and a Gram matrix
from too few tokens can make error feedback worse than plain rounding. Every candidate decides the whole block, the block is run on
held-out calibration text as the blocks compressed before it deliver it, and the candidate with the smallest error

    mean over tokens t of ||block_q(x_q)_t - block(x)_t||^2 / ||block(x)_t||^2

is kept. Tokens are compared relative to their own size because the next block normalises each of them first; without that, the few
tokens with enormous activations would decide alone. RTN is always among the candidates, so no block ends worse than RTN.

This selector is ours; the need for one is shown by reports that corrections such as GPTAQ do not always help.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from lessen.core.method import Method
from lessen.core.unit import Kind
from lessen.errors import UsageError
from lessen.methods.gptq import GPTQ
from lessen.methods.rtn import RTN


@dataclass(frozen=True)
class Select:
    """Try several methods on every block and keep the best on held-out text."""

    candidates: tuple[Method, ...] = (GPTQ(), RTN())
    """Methods to try; RTN on the grid of the first is added if it is missing."""

    kind: ClassVar[Kind] = "linear"
    scope: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        if not self.candidates:
            raise UsageError("Select.candidates", got="none", wanted="at least one method")
        first: Any = self.candidates[0]
        grid = {name: getattr(first, name) for name in ("bits", "group", "symmetric", "full_range") if hasattr(first, name)}
        if not any(isinstance(c, RTN) and all(getattr(c, name) == value for name, value in grid.items()) for c in self.candidates):
            object.__setattr__(self, "candidates", (*self.candidates, RTN(**grid)))

    @property
    def needs(self) -> tuple[type, ...]:
        candidates: tuple[Any, ...] = self.candidates
        return tuple(dict.fromkeys(need for candidate in candidates for need in candidate.needs))
