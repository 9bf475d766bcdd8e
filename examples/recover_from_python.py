"""Prune a language model in memory, repair it in closed form, then train it back against the original.

    python examples/recover_from_python.py smollm2-135m 20% 10

Every step works on any module: `lessen.prune` finds what hangs together, `compensate` fits what is left by least squares, and
`lessen.recover` is one plain training loop whose losses, limits and phases are its options.
"""

import sys

import torch

import lessen
from lessen.methods import Magnitude
from lessen.recover.losses import Logits, NextToken
from lessen.recover.module import compensate
from lessen.stats.data import builtin, windows


def main(model: str = "smollm2-135m", to: str = "20%", minutes: str | float = 10, *, length: int = 256, count: int = 64) -> None:
    tokenizer = lessen.open_checkpoint(model).tokenizer()
    text = windows(tokenizer, builtin("calibration"), count + 4, length, seed=0)
    train, heldout = text[:count], text[count:]
    teacher = lessen.load(model, dtype=torch.float32)
    pruned = lessen.prune(teacher, {"input_ids": train[:1, :32]}, method=Magnitude(), to=to)
    student = lessen.apply(pruned.model, compensate(pruned.model, teacher, pruned.edits, train[:8]))
    losses = (Logits(), NextToken(0.1))
    found = lessen.recover(student, teacher, train, heldout, losses=losses, minutes=float(minutes), batch=4, evaluate_every=10)
    print(f"{pruned.before['parameters']:,.0f} parameters became {pruned.after['parameters']:,.0f}")
    print(f"held-out loss {found.before:.3f}, after {found.steps} steps {found.best:.3f}")


if __name__ == "__main__":
    main(**dict(zip(("model", "to", "minutes"), sys.argv[1:], strict=False)))
