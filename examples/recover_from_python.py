"""Prune a language model, repair it in closed form, then train it back: the recipe of `python -m benchmarks prune_llm`.

    python examples/recover_from_python.py smollm2-135m 20% 10 [DIR]

1. Text: lessen's own, and as much again that the model writes itself, so that the result holds on other kinds of text.
2. Surgeon: channels and heads leave where the loss minds least, and what stays is refitted.
3. Least squares, block by block, on the inputs that the pruned model really delivers; kept if held-out text agrees.
4. Training on the original's next-token distribution. The token table stays as it is: text of minutes would only spoil rare tokens.
"""

import sys
from pathlib import Path

import torch

import lessen
from lessen.calibration import Wish, settle
from lessen.methods import Surgeon
from lessen.models.module import InMemory
from lessen.recover.stream import improved
from lessen.structure.decoder import units

LOOKED_AT = 64  # windows that decide; all are trained on


def main(model: str = "smollm2-135m", to: str = "20%", minutes: str | float = 10, out: str | None = None, *, tokens: int = 131072) -> None:
    source = lessen.open_checkpoint(model)
    text, _ = settle(source, Wish("builtin", tokens, seed=0, written=0.5))
    some = torch.cat([text.calibration[: LOOKED_AT // 2], text.calibration[-LOOKED_AT // 2 :]])  # from either kind
    teacher = lessen.load(model, dtype=torch.float32)

    cut = [unit for unit in units(source) if unit.kind in ("ffn", "kv_group")]
    example = {"input_ids": some[:1, :32]}
    pruned = lessen.prune(teacher, example, list(some.split(1)), method=Surgeon(), to=to, units=cut, prove=False)
    edits = improved(source, pruned.edits, some, text.heldout)

    student = lessen.apply(lessen.load(model, dtype=torch.float32), edits)
    settings = {"train": ("layers.",), "learning_rate": 1.5e-4, "batch": 4, "warmup": 0.1, "evaluate_every": 40, "patience": None}
    found = lessen.recover(student, teacher, text.calibration, text.heldout, minutes=float(minutes), **settings)
    print(f"{pruned.before['parameters']:,.0f} parameters became {pruned.after['parameters']:,.0f}")
    print(f"held-out KL {found.before:.3f}, after {found.steps} steps {found.best:.3f}")
    if out is not None:
        lessen.export(InMemory(student), Path(out), "huggingface")


if __name__ == "__main__":
    main(*sys.argv[1:5])
