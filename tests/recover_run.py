"""A recovery in a process of its own: recover_run.py OUT WORK DIE_AT [--ranks]; its curve and tensors go to OUT.

Killed with SIGKILL after step DIE_AT if that is above 0. With --ranks it is started by torchrun and trains twice, copied and sharded.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from lessen.core.event import Event
from lessen.recover.loop import Recovered, recover
from lessen.recover.losses import Features, Logits
from lessen.recover.options import Options
from tests.decoders import decoder, tokens

FIRST = Options("features", (Features({"model.layers.0": "model.layers.0"}, weight=100.0),), steps=4, batch=8, micro=2, learning_rate=3e-3)
SECOND = Options("logits", (Logits(),), steps=8, batch=8, micro=2, learning_rate=3e-3, precision="float32", evaluate_every=3, save_every=2)
PHASES = [replace(FIRST, precision="float32", save_every=2), SECOND]


def train(work: Path | None = None, shard: bool = False, die_at: int = 0) -> Recovered:
    """Three layers that learn from three others."""
    seen = 0

    def listen(event: Event) -> None:
        nonlocal seen
        seen += event.message.startswith("loss")
        if die_at and seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    student, teacher = decoder("llama", torch.float32, seed=1), decoder("llama", torch.float32)
    phases = [replace(phase, shard=shard) for phase in PHASES]
    return recover(student, teacher, tokens(48, 10), tokens(6, 10, 7), phases, work=work, on_event=listen)


def write(out: Path, name: str, found: Recovered) -> None:
    """The loss curve and the tensors."""
    out.mkdir(exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps({"history": found.history, "best": found.best, "stopped": found.stopped}))
    save_file({k: v.contiguous() for k, v in found.model.state_dict().items() if k != "lm_head.weight"}, out / f"{name}.safetensors")


def main(out: str, work: str, die_at: str, *ranks: str) -> None:
    torch.set_num_threads(1)
    if not ranks:
        write(Path(out), "0", train(Path(work), die_at=int(die_at)))
        return
    for kind, shard in (("copied", False), ("sharded", True)):
        time.sleep(2 * int(os.environ["RANK"]))  # the first process must not meet the other one's address of the run before
        write(Path(out), f"{kind}{os.environ['RANK']}", train(shard=shard))


if __name__ == "__main__":
    main(*sys.argv[1:])
