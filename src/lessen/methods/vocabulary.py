"""Vocabulary: remove the rows of a token table that the data never uses.

In small models the token table is a large part of all parameters (a fifth of SmolLM2-135M), and a model for one language or one trade
uses a small part of it. Rows are removed by how often their token occurs:

    score[v] = number of times that token v is looked up in the calibration data

The output head loses the same rows. Ids change: token v of the old vocabulary becomes its place among the kept ones (`Pruned.kept`), and
text must be encoded so. Tokens that must stay whatever the data says, such as those of the template, go into `always`.

Idea: Abdaoui et al. 2020, Load What You Need: Smaller Versions of Multilingual BERT, https://arxiv.org/abs/2010.05609 (section 3)
"""

from dataclasses import dataclass

from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import Kind, View
from lessen.errors import UsageError
from lessen.methods.budget import Budget
from lessen.stats.routed import Lookups


@dataclass(frozen=True)
class Vocabulary(Budget):
    """Remove the tokens that occur least."""

    ratio: float = 0.5
    """Fraction to remove, in [0, 1)."""
    always: tuple[int, ...] = ()
    """Ids of tokens that stay."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("vocab",)

    @property
    def needs(self) -> tuple[type, ...]:
        return (Lookups,)

    def score(self, view: View, stats: Stats) -> Tensor:
        """Shape "channel"."""
        score = stats[Lookups].clone()
        if any(not 0 <= token < len(score) for token in self.always):
            raise UsageError("Vocabulary", got=f"always={self.always}", wanted=f"ids below {len(score)}")
        score[list(self.always)] = float("inf")
        return score
