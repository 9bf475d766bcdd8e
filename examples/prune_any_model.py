"""Prune any PyTorch model, look at what went, bring it back, and keep it.

    python examples/prune_any_model.py [DIR]

The model is a vision transformer of transformers with random weights, so that nothing is downloaded; `lessen.load("path/to/model")` opens
a directory of any other. Its example inputs are made from its configuration. Random images stand for data.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import lessen
from lessen.methods import UKMP
from lessen.models.inputs import example_inputs
from lessen.recover.adapters import Adapters, attach, merge
from lessen.recover.losses import Logits
from lessen.recover.options import Options
from lessen.recover.progressive import Tower, progressive


def network() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "num_labels": 10,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }
        return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).eval()


def main(out: str | None = None, *, steps: int = 30) -> None:
    model = network()
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(128, 3, 32, 32, generator=random), torch.randint(0, 10, (128,), generator=random)
    batches = [{"pixel_values": x, "labels": y} for x, y in zip(images.split(16), labels.split(16), strict=True)]

    pruned = lessen.prune(model, example_inputs(model), batches, method=UKMP(), to="30%", freeze=["vit.layers.0.attention"])
    print(pruned)

    # Recall adapters look up what was cut away; blocks are matched from the bottom up, then answers. Merged, nothing of them is left.
    attach(pruned.model, Adapters(rank=8), model, pruned.edits)
    blocks = {f"vit.layers.{i}": f"vit.layers.{i}" for i in range(3)}
    phases = progressive([Tower("vision", blocks, every=1)], steps, Options(steps=1, learning_rate=3e-3), last=[Logits()])
    found = lessen.recover(pruned.model, model, images[:96], images[96:], phases)
    merge(pruned.model)
    print(f"held-out KL to the original after {found.steps} steps: {found.best:.2g}")

    if out is not None:
        lessen.save(pruned, Path(out))
        print(f"{sum(p.numel() for p in lessen.load(out).parameters()):,} parameters in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
