"""What a language model costs to keep and to run, counted from its tensors.

    bpw  = 8 * bytes / parameters            bytes as stored, scales and zero points included
    macs = weights of all matrices that a token passes through + 2 * attention width * context, summed over layers

A matrix of a decoder block multiplies every token once, so its multiply-accumulates are its number of weights; of a stack of experts
only the chosen ones count. The output head counts, the token table does not (it is looked up). Attention compares one query with
`context` keys and mixes as many values.
"""

from math import prod
from typing import Any

from torch import nn

from lessen.models.checkpoint import Checkpoint
from lessen.structure.decoder import decoder_blocks
from lessen.structure.families import FAMILIES


def cost(checkpoint: Checkpoint, context: int = 1024, parameters: int | None = None) -> dict[str, Any]:
    """Sizes and work of a model.

    Args:
        checkpoint: the model.
        context: tokens that attention looks back on, for `macs`.
        parameters: what `bpw` divides by: the parameters of the original, so that pruning counts; None takes the model's own.

    Returns:
        `parameters`, `size_bytes`, `bpw`, `macs` per token, `macs_context`; for a model with quantized tensors also `linears_bpw` and
        `embeddings_bpw` (over their own weights).
    """
    own = sum(prod(checkpoint.shape(name)) for name in checkpoint.names)
    stored = _stored(checkpoint)
    size = sum(stored.values()) if stored else float(checkpoint.size_bytes)
    skeleton = checkpoint.skeleton()
    prefix, blocks = decoder_blocks(skeleton, checkpoint.label)
    figures: dict[str, Any] = {"parameters": own, "size_bytes": round(size), "bpw": 8 * size / (parameters or own)}
    if stored:
        tables = _tables(checkpoint, skeleton)
        matrices = [n for n in stored if n.startswith(f"{prefix}.") and len(checkpoint.shape(n)) > 1]
        for part, names in (("linears", matrices), ("embeddings", tables)):
            weights = sum(prod(checkpoint.shape(name)) for name in names)
            if weights:
                figures[f"{part}_bpw"] = 8 * sum(stored[name] for name in names) / weights
    return figures | {"macs": _macs(checkpoint, skeleton, blocks, context), "macs_context": context}


def _stored(checkpoint: Checkpoint) -> dict[str, float]:
    """Bytes of every tensor; {} for a model as it came, whose file knows better (its types may be narrower than what is read)."""
    codes = {name: found for name in checkpoint.names if (found := checkpoint.quantized(name))}
    if not codes and getattr(checkpoint, "base", None) is None:
        return {}
    return {
        name: codes[name].format.bits_per_weight(checkpoint.shape(name)) * prod(checkpoint.shape(name)) / 8
        if name in codes
        else float(checkpoint.read(name).nbytes)
        for name in checkpoint.names
    }


def _tables(checkpoint: Checkpoint, skeleton: nn.Module) -> list[str]:
    """Stored names of the token table and of the head, one name if they are tied."""
    found = [f"{name}.weight" for name, module in skeleton.named_modules() if isinstance(module, nn.Embedding)]
    head = _head(skeleton)
    return list(dict.fromkeys(checkpoint.tied.get(name, name) for name in [*found, *([head] if head else [])]))


def _head(skeleton: nn.Module) -> str | None:
    """Name of the output head's weight."""
    module: Any = getattr(skeleton, "get_output_embeddings", lambda: None)()
    return next((f"{name}.weight" for name, part in skeleton.named_modules() if part is module), None) if module is not None else None


def _macs(checkpoint: Checkpoint, skeleton: nn.Module, blocks: nn.ModuleList, context: int) -> int:
    config = checkpoint.config
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    share = min(1.0, (config.get("num_experts_per_tok") or experts) / experts)
    total = 0.0
    for block in blocks:
        total += sum(p.numel() * (share if p.ndim == 3 else 1) for p in block.parameters() if p.ndim in (2, 3))
        total += 2 * context * _attention_width(checkpoint, block)
    head = _head(skeleton)
    return round(total + (prod(checkpoint.shape(checkpoint.tied.get(head, head))) if head else 0))


def _attention_width(checkpoint: Checkpoint, block: nn.Module) -> int:
    """Query heads times head size, of this very block: pruned models are not uniform."""
    family = FAMILIES.get(str(checkpoint.config.get("model_type")))
    if family:
        modules = dict(block.named_modules())
        if isinstance(out := modules.get(family.o), nn.Linear):
            return out.in_features
    heads = checkpoint.config.get("num_attention_heads") or checkpoint.config.get("n_head") or 0
    width = checkpoint.config.get("hidden_size") or checkpoint.config.get("n_embd") or 0
    return heads * (checkpoint.config.get("head_dim") or (width // heads if heads else 0))
