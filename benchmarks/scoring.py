"""One evaluator for everybody: any model, ours or a peer's, against the float model it was made from, on the same windows.

The original's answers are the same for every row, so its hidden states after the last block are kept on disk (38 MB) and only the head
is computed again. Figures are those of `lessen.evaluate`, whatever made the model.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.harness import Row
from benchmarks.material import EVALUATION, Material
from lessen.evaluate.language import Reference, evaluate, prepare
from lessen.models import open_checkpoint
from lessen.models.stream import Stream
from lessen.stats import data


class Kept:
    """Answers of a float model from hidden states on disk: see `lessen.evaluate.answers.Answers`."""

    def __init__(self, model: Path, tokens: Mapping[str, Tensor], folder: Path):
        checkpoint = open_checkpoint(model)
        self.label = checkpoint.label
        self._stream = Stream(checkpoint)
        key = sha256("".join([checkpoint.fingerprint(), *(data.sha256(ids) for ids in tokens.values())]).encode()).hexdigest()[:16]
        path = folder / f"hidden-{key}.safetensors"
        if not path.exists():
            aside = path.with_suffix(".aside")
            save_file({name: self._hidden(ids) for name, ids in tokens.items()}, aside)
            aside.replace(path)
        self._windows = load_file(path)

    @torch.no_grad()
    def _hidden(self, ids: Tensor) -> Tensor:
        """Hidden states after the last block, "windows seq dim"."""
        parts = [self._stream.embed(part) for part in ids.split(4)]
        for index in range(self._stream.blocks):
            block = self._stream.block(index)
            parts = [self._stream.forward(block, index, part) for part in parts]
        return torch.cat(parts)

    @torch.no_grad()
    def logits(self, text: str, window: int, start: int, stop: int) -> Tensor:
        return self._stream.head(self._windows[text][window, start:stop])


def score(model: Any, variant: str, found: Material) -> Row:
    """Quality of a model against a float variant, flat: `near_kld`, `near_ppl`, `near_top1`, ..., `far_...`.

    Args:
        model: whatever `lessen.evaluate` takes: a checkpoint, a path, a module, a callable.
        variant: the original that the model was made from.
        found: where that lies, and the windows.
    """
    tokens = found.windows(*EVALUATION)
    reference = Reference(Kept(found.model(variant), tokens, found.folder), tokens)
    return flat(evaluate(model, reference))


def noise(variant: str, found: Material) -> Row:
    """The noise floor of a float variant: KL to itself in bfloat16."""
    floors = prepare(found.model(variant), found.windows(*EVALUATION)).noise
    return {f"{name}_kld_noise": floors[name]["kld_noise"] for name in floors}


def flat(figures: Mapping[str, Mapping[str, Any]]) -> Row:
    """The figures of `lessen.evaluate` that tables show, one level deep."""
    shown = {"kld": "kld_mean", "kld_median": "kld_median", "kld_p90": "kld_p90", "kld_error": "kld_error", "ppl": "ppl", "top1": "top1"}
    row = {f"{name}_{short}": figures[name][key] for name in figures for short, key in shown.items() if key in figures[name]}
    row |= {f"{name}_ppl_reference": figures[name]["ppl_reference"] for name in figures if "ppl_reference" in figures[name]}
    return {key: round(value, 6) for key, value in row.items()}
