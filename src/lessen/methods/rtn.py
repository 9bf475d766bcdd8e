"""RTN: round every weight to the nearest code of its grid.

The baseline that every other method must beat, and the one that cannot fail: no data is needed, nothing can diverge. What is left to
choose is the grid. The widest weight of a group is rarely worth a grid that coarse, so the scale is searched:

    scale = argmin_s sum_j h_j (w_j - Q_s(w_j))^2

with h_j = 1 ("mse") or h_j = mean of x_j^2, the diagonal of the layer's Hessian ("hessian": an error matters where the input is large).

The weighted search is what llama.cpp calls an importance matrix; the Hessian's diagonal is from LeCun et al. 1989, Optimal Brain Damage.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lessen.core.edit import Edit, Quantize
from lessen.core.method import Stats
from lessen.core.unit import Kind, View
from lessen.methods.rounding import Rounding
from lessen.stats.accumulators import InputNorm


@dataclass(frozen=True)
class RTN(Rounding):
    """Round to nearest on a searched grid."""

    on: Literal["linears", "embeddings"] = "linears"
    """What to round: the linears of the decoder blocks, or the token table and the output head."""

    scope: ClassVar[str] = "block"

    @property
    def kind(self) -> Kind:
        return "linear" if self.on == "linears" else "embedding"

    @property
    def needs(self) -> tuple[type, ...]:
        return (InputNorm,) if self._weighted else ()

    def __call__(self, view: View, stats: Stats) -> list[Edit]:
        weight = view.weight.float()
        scale, zero = self.grid(weight, stats[InputNorm] if self._weighted else None)
        return [Quantize(view.unit.slices[0].name, self.format, self.format.round(weight, scale, zero))]

    @property
    def _weighted(self) -> bool:
        # A token table has no input to weight its columns by: it is searched with equal weights.
        return self.scale == "hessian" and self.on == "linears"
