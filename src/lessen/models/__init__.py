"""Where models come from: one door for directories, GGUF files, packaged models, factories and modules in memory."""

import copy
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
FACTORY = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"


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
        from lessen.models import pruned

        if pruned.is_pruned(path):
            return _pruned(path)
        if (path / "lessen.json").exists():
            from lessen.models.compressed import Compressed

            return Compressed(path)
        from lessen.models.huggingface import HuggingFace

        return HuggingFace(path)
    if path.is_file():
        return _open_file(path)
    if re.fullmatch(FACTORY, str(ref)):
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

    Args:
        ref: see `open_checkpoint`; here also a directory of any other class of transformers, one that `lessen.save` wrote, and a factory
            of any module.
        dtype: of the weights; None keeps that of the source (float32 for quantized and mixed ones).
    """
    import torch

    from lessen.models.skeleton import fill

    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UsageError("load(dtype)", got=f"{dtype!r} ({type(dtype).__name__})", wanted="a torch.dtype or None", remedy="torch.float16")
    model = whole(ref, dtype)
    if model is not None:
        return model
    checkpoint = open_checkpoint(ref)
    filled = fill(checkpoint.skeleton(), checkpoint, dtype)
    if isinstance(ref, str | Path) and Path(ref).expanduser().is_dir() and hasattr(filled, "config"):
        filled.config._name_or_path = str(Path(ref).expanduser())  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return filled


def whole(ref: "str | Path | nn.Module", dtype: "torch.dtype | None" = None) -> "nn.Module | None":
    """The model that `ref` names if it can only be had whole; None for what `open_checkpoint` reads tensor by tensor, causal LMs."""
    if not isinstance(ref, str | Path):
        return _plain(copy.deepcopy(ref), dtype) if _without_config(ref) else None
    path = Path(ref).expanduser()
    if path.is_dir() and (path / "config.json").is_file() and not (path / "lessen.json").exists():
        from lessen.models.huggingface import HuggingFace, Repacked
        from lessen.models.pretrained import architecture, is_causal, pretrained
        from lessen.models.tensors import read_json

        config = read_json(path / "config.json")
        if config.get("quantization_config") or architecture(config) is None:
            return None
        if not is_causal(config):
            return pretrained(path, config, dtype)
        try:
            HuggingFace(path)
        except Repacked:
            return pretrained(path, config, dtype)
    elif path.is_dir():
        from lessen.models import pruned

        return _plain(pruned.load(path), dtype) if pruned.is_pruned(path) else None
    elif not path.exists() and re.fullmatch(FACTORY, str(ref)):
        from lessen.models.module import made

        module = made(str(ref))
        return _plain(module, dtype) if _without_config(module) else None
    return None


def _without_config(module: "nn.Module") -> bool:
    """Whether a module tells nothing of itself, or that it is no causal LM."""
    from torch import nn

    from lessen.models.pretrained import is_causal

    config = getattr(module, "config", None)
    if not isinstance(module, nn.Module) or isinstance(config, dict):
        return False
    return not hasattr(config, "to_dict") or not is_causal({"architectures": [type(module).__name__]})


def _plain(module: "nn.Module", dtype: "torch.dtype | None") -> "nn.Module":
    return (module if dtype is None else module.to(dtype)).eval()


def _pruned(path: Path) -> "Checkpoint":
    """What `lessen.save` wrote, with the tokenizer that may lie beside it."""
    from lessen.models import pruned
    from lessen.models.module import InMemory

    model = pruned.load(path)
    if hasattr(model, "config"):
        model.config._name_or_path = str(path)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return InMemory(model, str(path))


def _open_file(path: Path) -> "Checkpoint":
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        from lessen.models.gguf import GGUF

        return GGUF(path)
    remedy = "give the directory that holds it" if path.suffix in (".safetensors", ".json", ".bin") else "copy or download it again"
    raise LessenError(str(path), got=f"a file that starts with {magic!r}", wanted="a GGUF file or a model directory", remedy=remedy)
