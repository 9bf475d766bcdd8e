"""What a student is asked to match: the teacher's next-token distribution, its features, the relations between them, the task itself.

Distributions, per token, p the teacher's and q the student's, a the skew:

    forward        KL(p || q)                      covers everything that the teacher holds possible
    reverse        KL(q || p)                      keeps to what the teacher holds likely
    jsd            KL(p || m)/2 + KL(q || m)/2     m = (p + q) / 2; bounded
    skew           KL(p || a p + (1-a) q)          forward KL whose gradient cannot explode where q is tiny
    skew_reverse   KL(q || (1-a) p + a q)

Features, per sample, f_s and f_t the outputs of a module of the student and of the teacher:

    mse        mean of (f_s/||f_s|| - f_t/||f_t||)^2      the norm runs over the whole sample
    cosine     mean over positions of 1 - cos(f_s, f_t)
    relation   mean of (S_s - S_t)^2, S the cosines between all positions of a sample: what is like what, whatever the axes

Papers: Hinton et al. 2015, https://arxiv.org/abs/1503.02531 (temperature, factor T^2); Gu et al. 2023, MiniLLM,
https://arxiv.org/abs/2306.08543 (reverse); Ko et al. 2024, DistiLLM, https://arxiv.org/abs/2402.03898 (section 3.1, skew); Wu et al. 2025,
UKMP, https://doi.org/10.1609/aaai.v39i8.32923 (normalised feature error); Tung and Mori 2019, https://arxiv.org/abs/1907.09682 (relations).
Changed: UKMP normalises by the norm of a whole batch; here it is that of a sample, so that a batch may be split without changing the loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from lessen.errors import UsageError
from lessen.stats.objectives import IGNORED

Divergence = Literal["forward", "reverse", "jsd", "skew", "skew_reverse"]


def divergence(student: Tensor, teacher: Tensor, kind: Divergence = "forward", temperature: float = 1.0, skew: float = 0.1) -> Tensor:
    """How far the student's distribution is from the teacher's, in nats, times the square of the temperature.

    Args:
        student: logits "... vocab".
        teacher: logits "... vocab".
        kind: see the header.
        temperature: both logits are divided by it.
        skew: share of the other distribution that is mixed in, for the skewed kinds.

    Returns:
        float32 of shape "...".

    >>> round(float(divergence(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1000.0]))), 3)  # a sure teacher, an undecided student: log 2
    0.693
    """
    if temperature != 1:
        student, teacher = student.float() / temperature, teacher.float() / temperature
    if kind == "forward" and not teacher.requires_grad:
        return _Forward.apply(student, teacher) * temperature**2
    q, p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    match kind:
        case "forward":
            found = _kl(p, q)
        case "reverse":
            found = _kl(q, p)
        case "jsd":
            middle = _mixture(p, q, 0.5)
            found = (_kl(p, middle) + _kl(q, middle)) / 2
        case "skew":
            found = _kl(p, _mixture(p, q, skew))
        case "skew_reverse":
            found = _kl(q, _mixture(q, p, skew))
    return found * temperature**2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of log-probabilities; a token that p rules out adds nothing, whatever q gives it."""
    weight = p.exp()
    return (weight * (p - q)).masked_fill(weight == 0, 0.0).sum(-1)


class _Forward(torch.autograd.Function):
    """KL(p || q) from logits, whose gradient in the student's is q - p: half the passes over a large vocabulary."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        q, p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
        found = _kl(p, q)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(q.exp_().sub_(p.exp_()).to(student.dtype))
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return outer[0].unsqueeze(-1).to(ctx.saved_tensors[0].dtype) * ctx.saved_tensors[0], None


def _mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """log(share * exp(first) + (1 - share) * exp(second))."""
    logs = torch.tensor([share, 1 - share], device=first.device).log()
    return torch.logaddexp(first + logs[0], second + logs[1])


@runtime_checkable
class OnLogits(Protocol):
    """A loss per token, from the logits of both models."""

    @property
    def weight(self) -> float:
        """Factor in the sum of losses."""
        ...

    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Loss of each row, from logits "token vocab" and labels "token" (`IGNORED` where there is none)."""
        ...


@runtime_checkable
class OnFeatures(Protocol):
    """A loss per sample, from the outputs of one module of each model."""

    @property
    def weight(self) -> float:
        """Factor in the sum of losses."""
        ...

    @property
    def modules(self) -> Mapping[str, str]:
        """Module of the student -> module of the teacher."""
        ...

    def of_features(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of each sample, shape "batch", from features "batch ..."."""
        ...


@runtime_checkable
class OnOutput(Protocol):
    """A loss of a whole batch, from whatever the student returns."""

    @property
    def weight(self) -> float:
        """Factor in the sum of losses."""
        ...

    def of_output(self, output: Any, batch: Any) -> Tensor:
        """Mean over the samples of the batch."""
        ...


@dataclass(frozen=True)
class Logits:
    """Match the teacher's distribution at every position that is scored."""

    kind: Divergence = "forward"
    """Which divergence: forward, reverse, jsd, skew, skew_reverse."""
    weight: float = 1.0
    """Factor in the sum of losses."""
    temperature: float = 1.0
    """Both logits are divided by it."""
    skew: float = 0.1
    """Share that is mixed in, for the skewed kinds."""

    def __post_init__(self) -> None:
        if self.kind not in ("forward", "reverse", "jsd", "skew", "skew_reverse"):
            raise UsageError("Logits", got=f"kind={self.kind!r}", wanted="forward, reverse, jsd, skew or skew_reverse")
        if self.temperature <= 0 or not 0 <= self.skew < 1:
            got = f"temperature={self.temperature}, skew={self.skew}"
            raise UsageError("Logits", got=got, wanted="a temperature above 0 and a skew in [0, 1)")

    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        if teacher is None:
            raise UsageError("Logits", got="no teacher", wanted="one to match", remedy="give a teacher, or use Task() alone")
        return divergence(student, teacher, self.kind, self.temperature, self.skew)


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy with the labels: of a language model the next tokens, of a classifier the classes."""

    weight: float = 1.0
    """Factor in the sum of losses."""

    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        return F.cross_entropy(student.float(), labels, ignore_index=IGNORED, reduction="none")


@dataclass(frozen=True)
class Task:
    """Any loss of the model's own output: `loss(output, batch)`, a mean over the batch."""

    loss: Callable[[Any, Any], Tensor]
    """What to minimise."""
    weight: float = 1.0
    """Factor in the sum of losses."""

    def of_output(self, output: Any, batch: Any) -> Tensor:
        return self.loss(output, batch)


@dataclass(frozen=True)
class Features:
    """Match what modules put out."""

    modules: Mapping[str, str]
    """Module of the student -> module of the teacher."""
    kind: Literal["mse", "cosine"] = "mse"
    """Normalised squared error, or 1 - cosine at every position, over channels: the second axis of maps, else the last one."""
    weight: float = 1.0
    """Factor in the sum of losses."""

    def of_features(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = student.float(), teacher.float()
        if self.kind == "cosine":
            return (1 - F.cosine_similarity(student, teacher, dim=1 if student.ndim == 4 else -1)).flatten(1).mean(1)
        flat = [F.normalize(x.flatten(1), dim=1) for x in (student, teacher)]
        return (flat[0] - flat[1]).square().mean(1)


@dataclass(frozen=True)
class Relations:
    """Match which positions of a sample are alike; the widths of the two models may differ."""

    modules: Mapping[str, str]
    """Module of the student -> module of the teacher."""
    weight: float = 1.0
    """Factor in the sum of losses."""

    def of_features(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (_cosines(student) - _cosines(teacher)).square().flatten(1).mean(1)


def _cosines(features: Tensor) -> Tensor:
    """Cosines between all positions of each sample, "batch position position"; channels first for maps, last for sequences."""
    features = features.float()
    rows = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features.flatten(1, -2)
    rows = F.normalize(rows, dim=-1)
    return rows @ rows.transpose(1, 2)


Loss = OnLogits | OnFeatures | OnOutput
