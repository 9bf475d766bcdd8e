"""How well a model names pictures: likelihood of captions that it has not seen, and finding the picture that a caption was written about.

    ce      mean negative log-likelihood of a caption's tokens given its picture, in nats; ppl = exp(ce)
    top1    share of those tokens that the model ranks first
    r1      share of captions for which the right picture gives the highest likelihood among all pictures; r5, r10 alike

Pictures are ranked for a caption, not captions for a picture: then a caption's own likelihood, which depends on its length and on how
common its words are, is the same for all candidates. A tie counts against the model, so that one blind to pictures finds nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.core.modules import evaluating
from lessen.errors import LessenError
from lessen.stats.objectives import IGNORED

Sample = Mapping[str, Tensor]
"""`pixel_values` "3 h w", `input_ids` "seq", and `labels` "seq": the tokens themselves, `IGNORED` where nothing is scored."""


def captions(model: nn.Module, samples: Sequence[Sample], batch: int = 16) -> dict[str, float]:
    """`ce`, `ppl`, `top1` and `tokens` of held-out captions.

    Args:
        model: called with `pixel_values` and `input_ids`, returns logits "batch seq vocab" of the next tokens.
        samples: of one length; see `Sample`.
        batch: samples at a time.

    Raises:
        LessenError: there is nothing to score.
    """
    total = right = tokens = 0.0
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            labels = torch.stack([sample["labels"] for sample in part])[:, 1:]
            logits = _logits(model, torch.stack([s["pixel_values"] for s in part]), torch.stack([s["input_ids"] for s in part]))[:, :-1]
            scored = labels != IGNORED
            total += float(F.cross_entropy(logits[scored].float(), labels[scored], reduction="sum"))
            right += float((logits.argmax(-1) == labels)[scored].sum())
            tokens += int(scored.sum())
    if not tokens:
        raise LessenError("captions", got=f"{len(samples)} samples without a scored token", wanted="captions to score")
    ce = total / tokens
    return {"ce": ce, "ppl": float(torch.tensor(ce, dtype=torch.float64).exp()), "top1": right / tokens, "tokens": tokens}


def retrieval(model: nn.Module, samples: Sequence[Sample], at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`r1`, `r5`, `r10` among the samples' own pictures, and their number `images`.

    Args:
        model: as for `captions`; if it has a method `cells`, every picture is looked at once only.
        samples: pairs whose captions differ.
        at: how many pictures may be named.
    """
    pictures = torch.stack([sample["pixel_values"] for sample in samples])
    with torch.no_grad(), evaluating(model):
        look: Any = getattr(model, "cells", None)
        if look is not None and pictures.dim() == 4:
            pictures = torch.cat([look(part) for part in pictures.split(16)])
        ranks = [_rank(_likelihoods(model, pictures, sample), place) for place, sample in enumerate(samples)]
    return {f"r{k}": sum(rank < k for rank in ranks) / len(ranks) for k in at} | {"images": len(samples)}


def _likelihoods(model: nn.Module, pictures: Tensor, sample: Sample) -> Tensor:
    """Log-likelihood of one caption under every picture, "image"."""
    length = int((sample["labels"] != IGNORED).nonzero()[-1]) + 1
    ids, labels = sample["input_ids"][:length], sample["labels"][1:length]
    found = []
    for part in pictures.split(32):
        logits = _logits(model, part, ids.expand(len(part), -1))[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(part), -1), ignore_index=IGNORED, reduction="none")
        found.append(-losses.double().sum(1))
    return torch.cat(found)


def _rank(likelihoods: Tensor, right: int) -> int:
    """How many other pictures are at least as likely.

    >>> _rank(torch.tensor([0.1, 0.5, 0.1]), 0)
    2
    """
    return int((likelihoods >= likelihoods[right]).sum()) - 1


def _logits(model: nn.Module, pictures: Tensor, ids: Tensor) -> Tensor:
    output: Any = model(pixel_values=pictures, input_ids=ids)
    return getattr(output, "logits", output)
