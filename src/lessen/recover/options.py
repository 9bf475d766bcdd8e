"""Settings of the training loop. The docstring under a field is its help, here and on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lessen.errors import UsageError
from lessen.recover.losses import Logits, Loss


@dataclass(frozen=True)
class Options:
    """How to train. At least one of steps, epochs and minutes says when to stop; the first that is reached does."""

    name: str = "recover"
    """What to call this phase in messages."""
    losses: Sequence[Loss] = (Logits(),)
    """What to minimise; see lessen.recover.losses."""
    steps: int | None = None
    """Optimizer steps at most."""
    epochs: float | None = None
    """Passes over the data at most."""
    minutes: float | None = None
    """Minutes at most, held-out scoring included; the number of steps then depends on the machine."""
    clock: Literal["wall", "processor"] = "wall"
    """What minutes are of: the clock on the wall, or processor time over the number of threads, which a busy machine does not stretch."""
    batch: int = 8
    """Samples of one optimizer step, over all processes."""
    micro: int | None = None
    """Samples that one process computes at a time; none takes its whole share of the batch."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    final: float = 0.1
    """Learning rate at the end, as a fraction of the peak (cosine)."""
    warmup: float = 0.05
    """Fraction of the training during which the learning rate rises."""
    weight_decay: float = 0.0
    """Decay of matrices; vectors have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of AdamW's moments."""
    clip: float | None = 1.0
    """Largest norm of the gradient; none leaves it."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Of matrix products (weights stay as they are); none takes bfloat16 where the processor multiplies it, float32 elsewhere."""
    train: tuple[str, ...] = ()
    """Train only parameters whose name contains one of these; empty trains all (with adapters: the adapters)."""
    norms: bool = True
    """Let batch norms follow the data while training, of each process and micro-batch by itself; dropout is off either way."""
    evaluate_every: int = 20
    """Steps between two looks at the held-out data."""
    patience: int | None = 5
    """Stop after this many looks without a better one; none never does."""
    save_every: int = 50
    """Steps between two checkpoints, if there is a work directory."""
    shard: bool = False
    """With several processes: shard weights, gradients and optimizer state (FSDP2) instead of copying them (DDP)."""
    after_step: Callable[[nn.Module], None] | None = None
    """Called with the student after every step, without gradients: what brings its parameters back to where they may be."""
    seed: int = 0
    """Of the order of the samples, and of whatever randomness the model has."""

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None and self.minutes is None:
            raise UsageError("recover", got="no limit", wanted="steps, epochs or minutes", remedy="minutes=10, for example")
        for name in ("steps", "epochs", "minutes", "batch", "micro", "learning_rate", "evaluate_every", "patience", "save_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError("recover", got=f"{name}={value}", wanted="a positive number")
        for name in ("final", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError("recover", got=f"{name}={getattr(self, name)}", wanted="a fraction from 0 to 1")
        if self.clock not in ("wall", "processor"):
            raise UsageError("recover", got=f"clock={self.clock!r}", wanted="wall or processor")
        if self.precision not in (None, "float32", "bfloat16"):
            raise UsageError("recover", got=f"precision={self.precision!r}", wanted="float32 or bfloat16")
