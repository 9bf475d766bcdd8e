"""Quality of a compressed language model on held-out text, against the original.

Every window is scored on its own; its first token is never scored (nothing comes before it), so a window of 512 tokens gives 511 scores.
KL and agreement are taken at the very same positions.

Noise floor: the KL of the original to itself when weights and the hidden states between blocks are rounded to bfloat16, arithmetic in
float32. Nobody calls that a different model: it is how such models are shipped and served. A compressed model whose KL is near the
floor cannot be told from the original, and a difference smaller than the floor is no difference. Hidden states are rounded too because a
model shipped in bfloat16 has weights that rounding does not move. The first four windows of a text tell the floor well enough.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lessen.core.event import Event, Listener
from lessen.errors import LessenError, UsageError
from lessen.evaluate.answers import Answers, Ref, Tokens, answers
from lessen.evaluate.divergence import TokenScores, chunk, compare, join, spread, summary
from lessen.stats.data import sha256

METRICS_VERSION = 1
"""Figures of different versions must not be compared; rises whenever a definition above changes."""
_NOISE_WINDOWS = 4


@dataclass(frozen=True)
class Reference:
    """An original prepared once and compared with many: its answers, the windows they belong to, its noise floor by text."""

    answers: Answers
    tokens: Tokens
    noise: Mapping[str, dict[str, float]] = field(default_factory=dict)


def prepare(
    reference: Ref, tokens: Tokens | Tensor, *, noise: bool = True, device: str = "cpu", on_event: Listener | None = None
) -> Reference:
    """Run an original over all windows, to compare several models with it.

    Args:
        reference: see `lessen.evaluate.answers.Ref`.
        tokens: "windows seq", by name of the text.
        noise: also measure the noise floor (a second run, over a few windows).
        device: where to compute.
        on_event: hears of every block.

    Raises:
        LessenError: see `evaluate`.
    """
    windows = named(tokens)
    original = answers(reference, windows, device=device, on_event=on_event)
    if not noise:
        return Reference(original, windows)
    some = {name: ids[:_NOISE_WINDOWS] for name, ids in windows.items()}
    rounded = answers(reference, some, precision=torch.bfloat16, device=device, on_event=on_event)
    floors = {}
    for name, ids in some.items():
        figures = spread([scores.kld for scores in _windows(name, ids, rounded, original) if scores.kld is not None])
        floors[name] = {"kld_noise": figures["kld_mean"], "kld_noise_p90": figures["kld_p90"]}
    return Reference(original, windows, floors)


def evaluate(
    model: Ref,
    reference: Ref | Reference | None = None,
    tokens: Tokens | Tensor | None = None,
    *,
    noise: bool = False,
    device: str = "cpu",
    on_event: Listener | None = None,
) -> dict[str, dict[str, Any]]:
    """Perplexity of a model, and its distance to the original, on each text.

    Args:
        model: see `lessen.evaluate.answers.Ref`.
        reference: the original: as `model`, or what `prepare` gave.
        tokens: "windows seq", by name of the text; may be left out with a prepared reference.
        noise: as for `lessen.evaluate`.
        device: where to compute.
        on_event: hears of every block and every scored window.

    Returns:
        For each text the figures that `lessen.evaluate` returns, without notes.

    Raises:
        LessenError: vocabularies that differ, token ids outside of them, logits that are not numbers.
        UsageError: no windows, or others than those the reference was prepared on.
    """
    if isinstance(reference, Reference):
        tokens = reference.tokens if tokens is None else named(tokens)
        if {k: sha256(v) for k, v in tokens.items()} != {k: sha256(v) for k, v in reference.tokens.items()}:
            raise UsageError(
                "evaluate", got="other windows than the reference was prepared on", wanted="the same", remedy="prepare it again"
            )
    elif tokens is None:
        raise UsageError("evaluate", got="no tokens", wanted="windows of token ids by name of the text")
    texts = named(tokens)
    if reference is not None and not isinstance(reference, Reference):
        reference = prepare(reference, texts, noise=noise, device=device, on_event=on_event)
    ours = answers(model, texts, device=device, on_event=on_event)
    results = {}
    for name, ids in texts.items():
        scores: list[TokenScores] = []
        for window in _windows(name, ids, ours, reference.answers if reference else None):
            scores.append(window)
            if on_event:
                on_event(Event(f"score {name}", len(scores), len(ids)))
        head = {"windows": len(ids), "window_tokens": ids.shape[1], "sha256": sha256(ids), "metrics_version": METRICS_VERSION}
        results[name] = summary(scores) | (reference.noise.get(name, {}) if reference else {}) | head
    return results


def named(tokens: Tokens | Tensor) -> Tokens:
    """Windows by name, checked. UsageError: not token ids of shape "windows seq", or none."""
    given = {"text": tokens} if isinstance(tokens, Tensor) else dict(tokens)
    for name, ids in given.items():
        if ids.ndim != 2 or ids.is_floating_point() or ids.shape[0] < 1 or ids.shape[1] < 2:
            got = f"{str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}"
            raise UsageError(f"text {name!r}", got=got, wanted="token ids of shape windows seq, seq at least 2")
    if not given:
        raise UsageError("evaluate", got="no text", wanted="at least one")
    return given


def _windows(name: str, ids: Tensor, model: Answers, reference: Answers | None) -> Iterator[TokenScores]:
    """Scores of each window, in order."""
    for window, row in enumerate(ids):
        yield _window(name, window, row, model, reference)


def _window(name: str, window: int, row: Tensor, model: Answers, reference: Answers | None) -> TokenScores:
    last = len(row) - 1
    size = chunk(model.logits(name, window, 0, 1).shape[-1])
    parts = []
    for start in range(0, last, size):
        stop = min(start + size, last)
        logits = model.logits(name, window, start, stop).cpu()
        theirs = reference.logits(name, window, start, stop).cpu() if reference else None
        if theirs is not None and theirs.shape != logits.shape:
            raise LessenError(
                model.label, got=f"{logits.shape[-1]} logits", wanted=f"{theirs.shape[-1]} as {reference and reference.label}"
            )
        scores = compare(logits, row[start + 1 : stop + 1], theirs)
        if not all(math.isfinite(float(x.sum())) for x in (scores.nll, scores.nll_reference, scores.kld) if x is not None):
            where = f"{model.label}: text {name!r}, window {window}, from token {start}"
            raise LessenError(where, got="logits that give no finite score", wanted="numbers", remedy="look for NaN in the weights")
        parts.append(scores)
    return join(parts)
