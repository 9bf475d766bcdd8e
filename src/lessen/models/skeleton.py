"""A Hugging Face causal LM of the right shapes without its weights, and the way to fill it.

`torch.device("meta")` would leave buffers (rotary tables, embedding scales) without values too, and those are in no file. So only
`torch.empty`, with which layers allocate their parameters, is sent to the meta device; everything else a constructor computes is real,
and whatever parameters are still real afterwards (norm gains made of ones) are emptied one by one.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lessen.core.modules import block_lists
from lessen.errors import LessenError, UsageError, nearest, one_line

if TYPE_CHECKING:
    from lessen.models.checkpoint import Checkpoint


def skeleton(config: Mapping[str, Any], where: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
    """Build the causal LM that a configuration describes, parameters on the meta device, buffers real, in eval mode.

    Args:
        config: contents of `config.json`.
        where: what to call the model in messages.
        shapes: shapes of the stored tensors; linear layers and norms that differ from them are rebuilt to fit (see `fit`).

    Raises:
        LessenError: unknown `model_type`, or one without a causal LM.
    """
    settings = _settings(config, where)
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        try:
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation="sdpa")
        except ValueError as error:
            if "scaled_dot_product" not in str(error):
                raise
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation="eager")
    empty(model)
    if shapes is not None:
        fit(model, shapes)
    return model.eval()


def empty(model: nn.Module) -> None:
    """Put every parameter that still holds memory on the meta device, keeping tied ones tied."""
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                bare = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                module._parameters[key] = done.setdefault(id(parameter), bare)
            elif parameter is not None:
                parameter.requires_grad_(False)


def restocked(model: nn.Module, config: Any) -> nn.Module:
    """What the class of a model makes of a configuration, with the weights of the model, which it shares.

    Shapes may agree where models do not: a scale of attention, or a table of frequencies, follows from the configuration alone.

    Raises:
        LessenError: the class does not take the configuration, or its tensors are other ones.
    """
    try:
        with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
            made = type(model)(config)
        empty(made)
        made.load_state_dict(model.state_dict(), assign=True)
    except Exception as error:
        where, wanted = type(model).__name__, "a configuration of which its class makes the model"
        raise LessenError(where, got=one_line(error), wanted=wanted, remedy="keep its edits") from error
    return made.eval()


def fit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the linear layers of a skeleton the shapes and biases of the stored tensors (pruned models are not uniform).

    Head counts of attention modules follow from the new shapes; other parameters (norms, embeddings) only change shape.
    """
    for path, module in model.named_modules():
        weight = shapes.get(f"{path}.weight")
        bias = f"{path}.bias"
        if isinstance(module, nn.Linear) and weight is not None:
            if (bias in shapes) != (module.bias is not None):
                module._parameters["bias"] = (
                    nn.Parameter(torch.empty(weight[0], device="meta"), requires_grad=False) if bias in shapes else None
                )
            module.out_features, module.in_features = weight
        for key, parameter in module._parameters.items():
            wanted = shapes.get(f"{path}.{key}" if path else key)
            if parameter is not None and wanted is not None and tuple(parameter.shape) != wanted:
                module._parameters[key] = nn.Parameter(torch.empty(wanted, device="meta", dtype=parameter.dtype), requires_grad=False)
    for module in model.modules():
        _fit_heads(module)


def _fit_heads(attention: nn.Module) -> None:
    size = getattr(attention, "head_dim", None)
    q, k = getattr(attention, "q_proj", None), getattr(attention, "k_proj", None)
    if not isinstance(size, int) or not isinstance(q, nn.Linear) or not isinstance(k, nn.Linear):
        return
    heads, kv_heads = q.out_features // size, k.out_features // size
    for name, value in (("num_heads", heads), ("num_key_value_heads", kv_heads), ("num_key_value_groups", heads // max(kv_heads, 1))):
        if hasattr(attention, name):
            setattr(attention, name, value)


def fill(model: nn.Module, checkpoint: "Checkpoint", dtype: torch.dtype | None = None) -> nn.Module:
    """Put the checkpoint's weights into a skeleton.

    Args:
        model: gets them.
        checkpoint: has them.
        dtype: of every floating weight; None takes that of the checkpoint, float32 if it holds several.
    """
    tensors = {name: checkpoint.read(name) for name in checkpoint.names}
    if dtype is None:
        kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        dtype = torch.float32 if len(kinds) != 1 else kinds.pop()
    for name in list(tensors):
        tensor = tensors.pop(name)
        place(model, name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
    for alias, name in checkpoint.tied.items():
        owner, key = owner_of(model, alias)
        source, source_key = owner_of(model, name)
        owner._parameters[key] = source._parameters[source_key]
    return model.eval()


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where `name` says, as a parameter without gradient or as the buffer it replaces."""
    owner, key = owner_of(model, name)
    if key in owner._buffers:
        owner._buffers[key] = tensor
    else:
        owner._parameters[key] = nn.Parameter(tensor, requires_grad=False)


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor and the attribute it holds it under."""
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder blocks: of the outermost `ModuleList`s the one with the most parameters.

    >>> blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(4, 4)])))[0]
    '1'
    """
    lists = block_lists(model)
    if not lists:
        raise LessenError(type(model).__name__, got="no ModuleList", wanted="decoder blocks in a ModuleList")
    return max(lists.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


class _EmptyOnMeta(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _settings(config: Mapping[str, Any], where: str) -> Any:
    try:
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    except ImportError:
        remedy = "pip install 'lessen[hf]'"
        raise LessenError(where, got="no transformers package", wanted="it to build the model", remedy=remedy) from None
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        known = sorted({c.model_type for c in MODEL_FOR_CAUSAL_LM_MAPPING})
        remedy = nearest(kind, known) if "model_type" in config else "write it into config.json"
        raise LessenError(where, got=f"model_type {kind!r}", wanted="an architecture that transformers has", remedy=remedy[:200])
    settings = CONFIG_MAPPING[kind].from_dict({k: v for k, v in config.items() if k != "quantization_config"})
    if type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(where, got=f"model_type {kind!r}", wanted="a causal language model", remedy="this architecture has none")
    return settings
