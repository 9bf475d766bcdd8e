"""How far one next-token distribution lies from another, token by token.

    kld = sum over the vocabulary of p log(p / q)          p: the original, q: the compressed model; nats

Perplexity alone flatters: it looks at one probability per token, and a compressed model may gain on some tokens by luck what it lost
on others. The Kullback-Leibler divergence looks at all of them and is zero only if nothing changed. The mean is the headline (it adds up
like a loss); the median and the 90th percentile say whether the harm is spread or sits in a few tokens. Top-1 agreement is the share of
tokens for which both like the same next token best.

Tokens of one window hang together, so the standard error of the mean KL is taken over windows, not over tokens.

Logits of one pass over a small text would fill gigabytes (16 windows of 512 tokens at a vocabulary of 256,000: 8 GB in float32), so the
head is asked for about 8 million at a time, and they are scored 2 million at a time: pieces that small stay in memory that the allocator
hands out again, which is measured to be three times as fast. Log-probabilities are float32, sums over tokens float64.

Papers: Kullback and Leibler 1951, On Information and Sufficiency; as a measure of quantized models: Dutta et al. 2024, Accuracy is Not All
You Need, https://arxiv.org/abs/2407.09141
"""

import math
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

_HEAD_AT_ONCE, _SCORED_AT_ONCE = 1 << 23, 1 << 21  # logits
_LARGEST_EXPONENT = 700.0  # exp of more is not a float64, and JSON has no infinity


def chunk(vocab: int) -> int:
    """Tokens to ask the head for at a time.

    >>> chunk(49152)
    170
    """
    return max(1, _HEAD_AT_ONCE // vocab)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the targets.

    Args:
        logits: "token vocab".
        targets: "token", integer.

    Returns:
        float32 nats, shape "token".
    """
    return -logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


@dataclass(frozen=True)
class TokenScores:
    """Scores of consecutive tokens, each float32 of shape "token"; the last three are None without a reference."""

    nll: Tensor
    nll_reference: Tensor | None = None
    kld: Tensor | None = None
    agrees: Tensor | None = None


_OPTIONAL = (attrgetter("nll_reference"), attrgetter("kld"), attrgetter("agrees"))


def compare(logits: Tensor, targets: Tensor, reference: Tensor | None = None) -> TokenScores:
    """Score one piece.

    Args:
        logits: "token vocab" of the model.
        targets: "token", the tokens that really came next.
        reference: "token vocab" of the original.

    >>> one = torch.tensor([[0.0, 1.0]])
    >>> compare(one, torch.tensor([1]), one).kld
    tensor([0.])
    """
    rows = max(1, _SCORED_AT_ONCE // logits.shape[-1])
    theirs = reference.split(rows) if reference is not None else [None] * len(logits.split(rows))
    return join([_compare(*piece) for piece in zip(logits.split(rows), targets.split(rows), theirs, strict=True)])


def join(parts: list[TokenScores]) -> TokenScores:
    """Scores of consecutive pieces as one."""
    return TokenScores(
        torch.cat([part.nll for part in parts]),
        *(torch.cat(column) if (column := [x for x in map(get, parts) if x is not None]) else None for get in _OPTIONAL),
    )


def _compare(logits: Tensor, targets: Tensor, reference: Tensor | None) -> TokenScores:
    if reference is None:
        return TokenScores(token_nll(logits, targets))
    ours, theirs = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    index = targets[:, None]
    nll, nll_reference = -ours.gather(-1, index)[:, 0], -theirs.gather(-1, index)[:, 0]
    difference, weight = torch.sub(theirs, ours, out=ours), theirs.exp_()
    kld = (weight * difference).sum(-1)
    if kld.isnan().any():
        # A token that the original rules out (padding of the vocabulary) adds nothing, whatever the model gives it: 0 log 0 = 0.
        kld = (weight * difference).masked_fill_(weight == 0, 0.0).sum(-1)
    return TokenScores(nll, nll_reference, kld, (logits.argmax(-1) == reference.argmax(-1)).float())


def summary(windows: list[TokenScores]) -> dict[str, float]:
    """Figures of a text from the scores of its windows.

    Returns:
        `tokens` scored, `nll` and `ppl`; with a reference also `nll_reference`, `ppl_reference`, `kld_mean`, `kld_median`, `kld_p90`,
        `kld_error` (standard error of the mean, over windows; absent for a single window) and `top1`.
    """
    nll = torch.cat([w.nll for w in windows])
    figures: dict[str, float] = {"tokens": len(nll), **_perplexity("", nll)}
    references = [w.nll_reference for w in windows if w.nll_reference is not None]
    klds = [w.kld for w in windows if w.kld is not None]
    agrees = [w.agrees for w in windows if w.agrees is not None]
    if references:
        figures |= _perplexity("_reference", torch.cat(references)) | spread(klds)
        figures["top1"] = float(torch.cat(agrees).double().mean())
    return figures


def spread(klds: list[Tensor]) -> dict[str, float]:
    """Mean, median, 90th percentile and standard error of KL values, given window by window."""
    kld = torch.cat(klds).double().numpy()
    figures = {"kld_mean": float(kld.mean()), "kld_median": float(np.quantile(kld, 0.5)), "kld_p90": float(np.quantile(kld, 0.9))}
    if len(klds) > 1:
        means = np.array([float(window.double().mean()) for window in klds])
        figures["kld_error"] = float(means.std(ddof=1) / math.sqrt(len(means)))
    return figures


def _perplexity(suffix: str, nll: Tensor) -> dict[str, float]:
    mean = float(nll.double().mean())
    return {f"nll{suffix}": mean, f"ppl{suffix}": math.exp(min(mean, _LARGEST_EXPONENT))}
