"""The model and the texts of the quality benchmarks, made once and kept in the asset cache.

Texts, 512 tokens a window: 32 windows for calibration and 4 more to judge candidates on, both from the calibration split of lessen's
built-in text; 16 windows `near` (its evaluation split) and 16 `far` (Brown corpus). No evaluation window shares 32 tokens with calibration.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import assets, tiny, variants

COUNTS = {"calibration": 32, "heldout": 4, "near": 16, "far": 16}
LENGTH = 512
EVALUATION = ("near", "far")


@dataclass(frozen=True)
class Material:
    """Where the models lie, and the file of token windows.

    Attributes:
        folder: holds one Hugging Face directory a variant, and everything derived from them.
        tokens: safetensors file of int64 "windows seq", by the names of `COUNTS`.
    """

    folder: Path
    tokens: Path

    def model(self, variant: str) -> Path:
        """The Hugging Face directory of a variant, made from the shipped one if need be."""
        return variants.write(self.folder / "shipped", variant, self.folder / variant)

    def windows(self, *names: str) -> dict[str, Tensor]:
        """Token windows by name."""
        found = load_file(self.tokens)
        return {name: found[name] for name in names}


def material(smoke: bool = False) -> Material:
    """SmolLM2 and real text, or a random model and random tokens."""
    folder = assets.cache() / ("tiny" if smoke else "smollm2-135m")
    folder.mkdir(parents=True, exist_ok=True)
    found = Material(folder, folder / "tokens.safetensors")
    if smoke:
        tiny.directory(folder / "shipped")
        made = {name: tiny.tokens(max(1, count // 8), 48, seed) for seed, (name, count) in enumerate(COUNTS.items())}
    else:
        _shipped(folder / "shipped")
        made = {} if found.tokens.exists() else _texts(folder / "shipped")
    if not found.tokens.exists():
        aside = found.tokens.with_suffix(".aside")
        save_file(made, aside)
        aside.replace(found.tokens)
    return found


def _shipped(target: Path) -> None:
    """SmolLM2-135M-Instruct as its package ships it, as a Hugging Face directory in float32."""
    from lessen.models import open_checkpoint

    if target.exists():
        return
    source = open_checkpoint("smollm2-135m")
    aside = target.with_name(f"{target.name}.aside")
    aside.mkdir(parents=True, exist_ok=True)
    source.copy_tokenizer(aside)
    config = {**source.config, "dtype": "float32"}
    (aside / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    state = {name: source.read(name).to(torch.float32).contiguous() for name in source.names}
    save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
    aside.rename(target)


def _texts(model: Path) -> dict[str, Tensor]:
    from lessen.models import open_checkpoint
    from lessen.stats import data

    tokenizer = open_checkpoint(model).tokenizer()
    calibration = data.windows(tokenizer, data.builtin("calibration"), COUNTS["calibration"] + COUNTS["heldout"], LENGTH, seed=0)
    found = {
        "calibration": calibration[: COUNTS["calibration"]].contiguous(),
        "heldout": calibration[COUNTS["calibration"] :].contiguous(),
        "near": data.windows(tokenizer, data.builtin("evaluation"), COUNTS["near"], LENGTH, seed=0),
        "far": data.windows(tokenizer, data.Text("brown", tuple(assets.brown().values())), COUNTS["far"], LENGTH, seed=0),
    }
    data.check_disjoint(calibration, {name: found[name] for name in EVALUATION}, tokenizer.decode)
    return found
