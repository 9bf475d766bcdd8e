"""The command that brings quality back: recover."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from lessen.cli.app import app, epilogue
from lessen.cli.options import Calibration, Running, Switch
from lessen.cli.output import emit, say, tell
from lessen.cli.running import listening

TRAINING = Group("Training", sort_key=2)


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True)
class Training:
    """How long, and what at."""

    minutes: float | None = None
    """Minutes to train at most (10 if no other limit is given)."""
    steps: int | None = None
    """Optimizer steps at most; unlike a time limit, this repeats to the bit."""
    batch: int = 8
    """Samples of one step."""
    micro: int | None = None
    """Samples at a time, if a whole batch does not fit."""
    learning_rate: float | None = None
    """Peak learning rate (1e-4; 1e-3 with adapters)."""
    loss: Literal["forward", "reverse", "jsd", "skew", "skew_reverse"] = "forward"
    """Divergence from the original's next-token distribution."""
    task: float = 0.0
    """Weight of the cross-entropy with the text itself."""
    rank: Annotated[int | None, Parameter(metavar="RANK")] = None
    """Train low-rank adapters of this rank, merged at the end, instead of all weights."""
    shard: Switch = False
    """Under torchrun: shard the model over the processes instead of copying it."""


@app.command(
    help_epilogue=epilogue(
        "lessen recover pruned --teacher path/to/model --out recovered --minutes 10",
        "lessen recover pruned --teacher smollm2-135m --out recovered --rank 16 --calibration stories.txt --json",
        "lessen recover pruned --teacher path/to/model --out recovered --steps 500 --loss skew",
        "torchrun --nproc-per-node 2 -m lessen recover pruned --teacher path/to/model --out recovered --steps 500 --work .work",
    )
)
def recover(
    student: str,
    /,
    *,
    teacher: Annotated[str, Parameter(metavar="MODEL")],
    out: Annotated[Path, Parameter(metavar="DIR")],
    work: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    training: Training = Training(),
    calibration: Calibration = Calibration(),
    running: Running = Running(),
) -> None:
    """Train a smaller model against its original until its quality is back.

    Args:
        student: The smaller model: a directory that lessen wrote, or any model of the same vocabulary.
        teacher: The original.
        out: Directory to write; it appears only when it is complete.
        work: Directory for checkpoints; the same command goes on there after a kill.
    """
    from lessen.recover.adapters import Adapters
    from lessen.recover.losses import Logits, NextToken
    from lessen.recover.options import Options
    from lessen.restore import TOKENS, Restoration, restore

    losses = (Logits(training.loss), *((NextToken(training.task),) if training.task else ()))
    options = Options(
        losses=losses,
        minutes=10.0 if training.minutes is None and training.steps is None else training.minutes,
        steps=training.steps,
        batch=training.batch,
        micro=training.micro,
        learning_rate=training.learning_rate or (1e-4 if training.rank is None else 1e-3),
        shard=training.shard,
        seed=calibration.seed or 0,
    )
    adapters = None if training.rank is None else Adapters(rank=training.rank, alpha=2.0 * training.rank)
    text = calibration.calibration or "builtin"
    wanted = Restoration(options, adapters, text, calibration.tokens or TOKENS, calibration.written)
    with listening(running) as on_event:
        run = restore(student, teacher, out, wanted, work=work, on_event=on_event)
    held = run.quality["held-out"]
    if running.json:
        emit("recover", {"student": student, "teacher": teacher, "out": out, "heldout": held, "seconds": run.seconds, "notes": run.notes})
        return
    say(f"held-out loss {held['loss_before']:.4f}, then {held['loss']:.4f}")
    tell(run.notes)
