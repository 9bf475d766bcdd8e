"""Progressive distillation: features first, from the bottom up, tower by tower; the task last.

A pruned network whose lower blocks are still wrong learns from its final loss to make up for them at the top. So every tower (the vision
encoder, the language encoder, the decoder) is first brought back to the teacher's features, its lower part before the whole of it, towers
in the order of the data flow, while those already done stay under their loss; only the last phase looks at the output. Block outputs can be
compared because pruning leaves the residual width.

Paper: Wu et al. 2025, UKMP, https://doi.org/10.1609/aaai.v39i8.32923 (section on progressive distillation; seven phases of table A)
Ours: any number of towers and blocks; how far up the lower part reaches and each phase's share of the samples are options.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from lessen.errors import UsageError
from lessen.recover.losses import Features, Logits, Loss, NextToken
from lessen.recover.options import Options


@dataclass(frozen=True)
class Tower:
    """A stack of blocks that is brought back as one.

    Attributes:
        name: for messages.
        modules: block of the student -> block of the teacher, from the bottom up.
        weight: of its feature loss.
        lower: how much of the stack, from the bottom, the first of its two phases takes.
        start, every: which blocks are compared: `start`, `start + every`, ...
        shares: of the samples of all phases, that its two phases take.
    """

    name: str
    modules: Mapping[str, str]
    weight: float = 1.0
    lower: float = 0.5
    start: int = 0
    every: int = 2
    shares: tuple[float, float] = (1.0, 1.0)

    def loss(self, lower: bool) -> Features:
        """The feature loss of the lower part, or of the whole tower."""
        pairs = list(self.modules.items())
        end = ceil(self.lower * len(pairs)) if lower else len(pairs)
        chosen = pairs[self.start : end : self.every] or pairs[: max(1, end)][-1:]
        return Features(dict(chosen), weight=self.weight)


def progressive(
    towers: Sequence[Tower], steps: int, base: Options, last: Sequence[Loss] = (NextToken(), Logits()), last_share: float | None = None
) -> list[Options]:
    """Phases for `lessen.recover`: two for each tower, one for the task.

    Args:
        towers: in the order of the data flow.
        steps: of all phases together.
        base: settings of every phase, its losses and limits aside.
        last: losses of the last phase.
        last_share: share of the last phase, on the scale of the towers' shares; None: as much as all the others.

    >>> tower = Tower("decoder", {"a": "a", "b": "b", "c": "c", "d": "d"}, every=1)
    >>> [(phase.name, phase.steps) for phase in progressive([tower], 8, Options(steps=1))]
    [('decoder low', 2), ('decoder all', 2), ('task', 4)]
    """
    if not towers:
        raise UsageError("progressive", got="no towers", wanted="one at least")
    done: list[Loss] = []
    planned: list[tuple[str, tuple[Loss, ...], float]] = []
    for tower in towers:
        planned.append((f"{tower.name} low", (*done, tower.loss(lower=True)), tower.shares[0]))
        done.append(tower.loss(lower=False))
        planned.append((f"{tower.name} all", tuple(done), tower.shares[1]))
    planned.append(("task", tuple(last), sum(share for *_, share in planned) if last_share is None else last_share))
    total = sum(share for *_, share in planned)
    ends = [round(steps * sum(share for *_, share in planned[: i + 1]) / total) for i in range(len(planned))]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    phases = [(name, losses, count) for (name, losses, _), count in zip(planned, counts, strict=True) if count]
    return [replace(base, name=name, losses=losses, steps=count, epochs=None, minutes=None) for name, losses, count in phases]


def ukmp(vision: Mapping[str, str], encoder: Mapping[str, str], decoder: Mapping[str, str], steps: int, base: Options) -> list[Options]:
    """The seven phases of the paper: vision encoder, language encoder, language decoder, then task and distribution.

    Args:
        vision: blocks of the student's vision encoder -> the teacher's, from the bottom up.
        encoder: of the language encoder.
        decoder: of the language decoder.
        steps: of all phases together.
        base: settings of every phase.
    """
    towers = [
        Tower("vision", vision, 1e6, lower=23 / 39, shares=(20, 20)),
        Tower("language encoder", encoder, 1e9, start=1, shares=(80, 40)),
        Tower("language decoder", decoder, 1e8, start=1, shares=(80, 80)),
    ]
    return progressive(towers, steps, base, last_share=275)
