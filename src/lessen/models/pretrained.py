"""Directories of models that are no causal LMs: the class that `config.json` names, filled by transformers itself.

A causal LM is read tensor by tensor, so that it can be streamed. Everything else (ViT, BERT, T5, CLIP, DETR, LLaVA) is loaded whole, and
so are mixtures of experts whose files hold one tensor for each expert where the module holds one for all.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen.errors import LessenError, UsageError, nearest, one_line


def architecture(config: Mapping[str, Any]) -> str | None:
    """The class that a configuration names."""
    return next(iter(config.get("architectures") or []), None)


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether a configuration names a causal LM, or nothing that transformers has."""
    try:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        return True  # who reads it says what is missing
    name = architecture(config)
    known = {value if isinstance(value, str) else value[0] for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    return name is None or name in known or not hasattr(transformers, name)


def pretrained(folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a directory with all its weights, in eval mode.

    Args:
        folder: what `save_pretrained` wrote.
        config: contents of its `config.json`.
        dtype: of the weights; None keeps that of the files.

    Raises:
        LessenError: transformers has no such class, or the weights are not those of the class.
    """
    import transformers

    name = architecture(config)
    kind: Any = getattr(transformers, name or "", None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        known = [key for key in dir(transformers) if key.startswith((name or "?")[:3])]
        remedy = nearest(name or "", known)[:200]
        raise UsageError(str(folder), got=f"architectures: {name}", wanted="a class of transformers", remedy=remedy)
    try:
        with _silent(), torch.random.fork_rng(devices=[]):
            model, told = kind.from_pretrained(folder, local_files_only=True, dtype=dtype or "auto", output_loading_info=True)
    except Exception as error:
        remedy = "config.json and the weights must belong together: copy or download the model again"
        raise LessenError(str(folder), got=one_line(error), wanted=f"a {name} that loads", remedy=remedy) from error
    for key, word in (("missing_keys", "no tensor"), ("unexpected_keys", "a tensor it has no place for:")):
        if told[key]:
            remedy = "check architectures in config.json, or copy the model again"
            raise LessenError(str(folder), got=f"{word} {min(told[key])}", wanted=f"the tensors of {name}", remedy=remedy)
    return model.eval()


@contextmanager
def _silent() -> Iterator[None]:
    """No bars and no advice on stderr for the while."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
