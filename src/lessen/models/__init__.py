"""Where models come from: one door for directories, GGUF files, packaged models, factories and modules in memory."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lessen.models.checkpoint import Checkpoint

PACKAGED = ("smollm2-135m",)


def open_checkpoint(ref: "str | Path | nn.Module") -> "Checkpoint":
    """The weights that `ref` names, read lazily.

    Args:
        ref: a Hugging Face directory, a directory that lessen wrote, a GGUF file, `smollm2-135m`, `package.module:factory`
            or a module in memory.

    Raises:
        LessenError: it does not exist or cannot be read. UsageError: it names nothing.
    """
    if not isinstance(ref, str | Path):
        from lessen.models.module import InMemory

        return InMemory(ref)
    if str(ref) in PACKAGED:
        from lessen.models.packaged import smollm2

        return smollm2()
    path = Path(ref).expanduser()
    if path.is_dir():
        if (path / "lessen.json").exists():
            from lessen.models.compressed import Compressed

            return Compressed(path)
        from lessen.models.huggingface import HuggingFace

        return HuggingFace(path)
    if path.is_file():
        return _open_file(path)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", str(ref)):
        from lessen.models.module import from_factory

        return from_factory(str(ref))
    raise UsageError(
        str(ref),
        got="nothing by that name",
        wanted="a model directory, a .gguf file, package.module:factory or a packaged model",
        remedy=nearest(str(ref), PACKAGED),
    )


@strict()
def load(ref: "str | Path | nn.Module", dtype: "torch.dtype | None" = None) -> "nn.Module":
    """The model that `ref` names as an ordinary module with all its weights, in eval mode.

    A causal LM, but for a directory of `lessen.models.pruned.save`, which may hold any model.

    Args:
        ref: see `open_checkpoint`.
        dtype: of the weights; None keeps that of the source (float32 for quantized and mixed ones).
    """
    import torch

    from lessen.models.pruned import is_pruned
    from lessen.models.pruned import load as load_pruned
    from lessen.models.skeleton import fill

    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UsageError("load(dtype)", got=f"{dtype!r} ({type(dtype).__name__})", wanted="a torch.dtype or None", remedy="torch.float16")
    if isinstance(ref, str | Path) and is_pruned(Path(ref).expanduser()):
        model = load_pruned(Path(ref).expanduser())
        return model if dtype is None else model.to(dtype)
    checkpoint = open_checkpoint(ref)
    return fill(checkpoint.skeleton(), checkpoint, dtype)


def _open_file(path: Path) -> "Checkpoint":
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        from lessen.models.gguf import GGUF

        return GGUF(path)
    remedy = "give the directory that holds it" if path.suffix in (".safetensors", ".json", ".bin") else "copy or download it again"
    raise LessenError(str(path), got=f"a file that starts with {magic!r}", wanted="a GGUF file or a model directory", remedy=remedy)
