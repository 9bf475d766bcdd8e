"""Torch-Pruning 1.6.1 (Fang et al. 2023, DepGraph, https://arxiv.org/abs/2301.12900), called as its examples call it.

MetaPruner with group magnitude importance, local ratio 0.25, the layers that make the output ignored. Attention layers get `num_heads`:
the linears whose names say query, key, value (fused ones too), with the number that the nearest configuration gives; key and value
layers the number of key/value heads. Whole heads go, and no features of heads, as its example for language models has it, since rotary
positions have the size of a head. After the cut, head counts and widths that attention modules keep for themselves are set from the
layers, as its examples for BERT, ViT and Llama do by hand. It lies in a folder of its own, installed without its dependencies.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.assets import cache
from lessen.errors import LessenError
from lessen.structure.check import answers

REQUIREMENT = "torch-pruning==1.6.1"
CALLED = (
    "MetaPruner(GroupMagnitudeImportance(p=2), pruning_ratio=0.25, ignored_layers=output layers, num_heads=from the configuration, "
    "prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.25)"
)
_QUERY = re.compile(r"(q|query|q_proj|q_lin|query_proj|to_q|wq|c_attn|qkv|qkv_proj|query_key_value|Wqkv|in_proj|att_proj|q_attn)")
_KEY = re.compile(r"(k|v|key|value|k_proj|v_proj|k_lin|v_lin|key_proj|value_proj|to_k|to_v|wk|wv)")


def folder() -> Path:
    """Where it lies, installed if need be."""
    place = cache() / "peers" / REQUIREMENT.replace("==", "-")
    if not (place / "torch_pruning").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LessenError(REQUIREMENT, got=done.stderr.strip()[-200:], wanted="an installed package")
    return place


def prune(model: nn.Module, inputs: dict[str, Any]) -> nn.Module:
    """Cut a model in place and return it."""
    if str(folder()) not in sys.path:
        sys.path.append(str(folder()))
    import torch_pruning  # pyright: ignore[reportMissingImports]

    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    heads = _heads(model)
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.25,
        ignored_layers=_outputs(model, inputs),
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.25,
        forward_fn=lambda model, inputs: model(**inputs) if isinstance(inputs, dict) else model(inputs),
        output_transform=lambda out: [tensor for tensor in answers(out) if tensor.requires_grad],
    )
    pruner.step()
    _set_sizes(model, pruner.num_heads)
    return model.eval()


def _outputs(model: nn.Module, inputs: dict[str, Any]) -> list[nn.Module]:
    """Layers whose output, or a view of it, is an output of the model."""
    made: dict[int, list[nn.Module]] = {}
    kept: list[Any] = []
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = []

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor):
            kept.append(out)
            made.setdefault(out.data_ptr(), []).append(module)

    for module in model.modules():
        if isinstance(module, kinds):
            hooks.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    layers = [module for tensor in answers(out) for module in made.get(tensor.data_ptr(), [])]
    ask = getattr(model, "get_output_embeddings", None)
    try:
        head = ask() if ask else None
    except Exception:
        head = None
    return list(dict.fromkeys([*layers, *([head] if isinstance(head, nn.Module) else [])]))


def _number(config: Any, *names: str) -> int | None:
    return next((v for name in names if isinstance(v := getattr(config, name, None), int)), None)


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    found: dict[nn.Module, int] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        name = path.rpartition(".")[2]
        query, key = _QUERY.fullmatch(name), _KEY.fullmatch(name)
        if not isinstance(module, nn.Linear) or not (query or key):
            continue
        words = path.split(".")
        around = [modules[".".join(words[:end])] for end in range(len(words) - 1, -1, -1)]
        config = next((own.config for own in around if hasattr(getattr(own, "config", None), "to_dict")), None)
        own = around[0]
        heads = _number(own, "num_attention_heads", "num_heads", "n_heads", "heads") or _number(
            config, "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"
        )
        pairs = _number(own, "num_key_value_heads") or _number(config, "num_key_value_heads")
        number = (pairs or heads) if key else heads
        if number and module.out_features % number == 0:
            found[module] = number
    return found


def _set_sizes(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    for module in model.modules():
        query = next((m for n, m in module.named_children() if isinstance(m, nn.Linear) and m in heads and _QUERY.fullmatch(n)), None)
        if query is None:
            continue
        fused = 3 if query.out_features == 3 * query.in_features else 1
        number, wide = heads[query], query.out_features // fused
        for name in ("num_attention_heads", "num_heads", "n_heads"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, number)
        key = next((m for n, m in module.named_children() if isinstance(m, nn.Linear) and m in heads and _KEY.fullmatch(n)), None)
        if key is not None:
            for name, value in (("num_key_value_heads", heads[key]), ("num_key_value_groups", number // max(1, heads[key]))):
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, value)
        for name in ("attention_head_size", "head_dim"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, wide // number)
        for name in ("all_head_size", "embed_dim", "hidden_size", "inner_dim", "dim"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, wide)
