"""Proof that an exported file is the model it came from: the logits of a runtime against those of the weights in memory."""

from collections.abc import Callable
from importlib import metadata
from math import log, prod
from typing import Any

import torch
from torch import Tensor

from lessen.environment import available_bytes
from lessen.errors import LessenError
from lessen.models.checkpoint import Checkpoint

FARTHEST = 0.3
"""Nats. Runtimes that round activations to 8 bits lie at 0.001 to 0.02 on a short probe (the first tokens of a text carry the largest
activations); a wrong nibble order or head permutation lies at 5 and more."""

MEMORY = 0.5
"""Of the available memory, what the float32 weights of a model may take to be tried in a runtime; beside them are its file and itself."""

SHARE = 0.1
"""Of the model's own distance from equal chances for all tokens."""

ROUNDING = 1e-6
"""Nats; float32 logits of a model that knows nothing at all."""


class NoRuntime(Exception):
    """The runtime that would open the file is not there, or cannot hold this model; the message says which and why."""


def version(package: str) -> str:
    """`package version`, or NoRuntime if it is not installed.

    >>> version("torch").startswith("torch ")
    True
    """
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        raise NoRuntime(f"{package} is not installed") from None


@torch.no_grad()
def reference(checkpoint: Checkpoint, probe: Tensor) -> Tensor:
    """Logits of the checkpoint's own weights in float32, one decoder block in memory at a time.

    Args:
        checkpoint: whose weights.
        probe: token ids "batch seq".

    Returns:
        float32 "batch seq vocab".
    """
    from lessen.models.stream import Stream

    stream = Stream(checkpoint, dtype=torch.float32)
    hidden = stream.embed(probe)
    for i in range(stream.blocks):
        hidden = stream.forward(stream.block(i), i, hidden)
    return stream.head(hidden).float()


def random_probe(checkpoint: Checkpoint, length: int = 128, seed: int = 0) -> Tensor:
    """Token ids "1 length" drawn evenly from the whole vocabulary: all that a proof needs where there is no text and no tokenizer."""
    skeleton: Any = checkpoint.skeleton()
    context = int(checkpoint.config.get("max_position_embeddings") or checkpoint.config.get("n_positions") or length)
    vocabulary = skeleton.get_input_embeddings().num_embeddings
    return torch.randint(vocabulary, (1, min(length, context)), generator=torch.Generator().manual_seed(seed))


def farthest(kld_uniform: float) -> float:
    """How far, in nats, the logits of a file may lie from the model's.

    `FARTHEST` alone would pass anything on a model that knows little: one with random weights may lie 0.01 nats from equal chances for
    all tokens, so a file that answers just that would be proved. Equal chances lie `kld_uniform` from the model, unrelated answers that
    are as decided lie about twice as far, and rounding of activations stays below a hundredth.

    Args:
        kld_uniform: of the model, from `compare`.

    >>> farthest(7.0), farthest(0.5)
    (0.3, 0.05)
    """
    return min(FARTHEST, max(SHARE * kld_uniform, ROUNDING))


def too_large(checkpoint: Checkpoint) -> str | None:
    """Why a proof is left out: runtimes hold the model whole, in float32, and that would take too much of the memory there is."""
    whole, free = 4 * sum(prod(checkpoint.shape(name)) for name in checkpoint.names), available_bytes()
    if free is None or whole <= MEMORY * free:
        return None
    return f"a runtime would hold {whole / 1e9:.3g} GB of float32 weights, more than {MEMORY:.0%} of the {free / 1e9:.3g} GB available"


def sampled(probe: Tensor, at_most: int = 12) -> list[tuple[int, int]]:
    """(row, column) of some positions of a probe "batch seq", evenly spaced, for runtimes that answer one position at a time.

    >>> sampled(torch.zeros(2, 3), 3)
    [(0, 0), (0, 2), (1, 2)]
    """
    flat = torch.linspace(0, probe.numel() - 1, min(at_most, probe.numel())).long().unique().tolist()
    return [divmod(position, probe.shape[1]) for position in flat]


def compare(wanted: Tensor, got: Tensor) -> dict[str, float]:
    """Distance of two sets of logits "... vocab"; positions where `got` is NaN were not asked for and do not count.

    Some runtimes give log-probabilities only, so both are normalised first: a constant in all logits of a position is no difference.

    Returns:
        kld_mean (nats per token, wanted to got), kld_uniform (nats per token, wanted to equal chances for all tokens), logits_max_error
        (largest difference of a log-probability), top1 (agreement of the likeliest token), positions (how many were compared).

    >>> compare(torch.tensor([[0.0, 1000.0]]), torch.tensor([[2.0, 1002.0]]))
    {'kld_mean': 0.0, 'kld_uniform': 0.6931471805599453, 'logits_max_error': 0.0, 'top1': 1.0, 'positions': 1}
    """
    asked = ~got[..., 0].isnan()
    log_p, log_q = (logits[asked].double().log_softmax(-1) for logits in (wanted, got))
    kld = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    knows = (log_p.exp() * log_p).sum(-1).mean() + log(log_p.shape[-1])
    return {
        "kld_mean": max(0.0, float(kld)),
        "kld_uniform": max(0.0, float(knows)),
        "logits_max_error": float((log_p - log_q).abs().max()),
        "top1": float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean()),
        "positions": int(asked.sum()),
    }


def proof(checkpoint: Checkpoint, probe: Tensor | None, run: Callable[[Tensor], tuple[Tensor, str]]) -> dict[str, Any]:
    """What a result says about the runtime.

    Args:
        checkpoint: what was exported.
        probe: token ids "batch seq"; None skips the proof.
        run: (logits "batch seq vocab", name of the runtime) of the exported file; raises NoRuntime.

    Returns:
        kld_mean, kld_uniform, logits_max_error, top1, positions, runtime; None with the reason in `runtime_skipped` if there was no proof.
    """
    nothing = {"kld_mean": None, "kld_uniform": None, "logits_max_error": None, "top1": None, "positions": 0, "runtime": None}
    if probe is None:
        return {**nothing, "runtime_skipped": "no probe tokens were given"}
    try:
        logits, runtime = run(probe)
    except NoRuntime as reason:
        return {**nothing, "runtime_skipped": str(reason)}
    except LessenError:
        raise
    except Exception as error:  # runtimes raise classes of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        got = f"a file on which its runtime fails ({first})"
        raise LessenError(
            checkpoint.label, got=got, wanted="one that it runs", remedy="please report it; without probe it is written"
        ) from error
    return {**compare(reference(checkpoint, probe), logits), "runtime": runtime}
