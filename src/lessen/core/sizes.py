"""Numbers that modules keep beside their tensors: those that PyTorch's own modules derive, and those that edits name.

`refresh` reads the sizes of PyTorch's layers off their tensors. Everything else (`num_heads`, `all_head_size`, a split size) is code of
the model's author; an edit `Resize` says which number becomes which.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lessen.core.edit import Edit, Resize
from lessen.errors import LessenError

_PLACE = re.compile(r"(.*?)(?:\[(\d+)\])?")


def refresh(module: nn.Module) -> None:
    """Let a layer of PyTorch say the sizes that its tensors have."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim:
        module.kdim = module.vdim = module.embed_dim
    if isinstance(module, nn.RNNBase):
        _refresh_recurrent(module)
    if weight is None:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        _refresh_convolution(module)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(weight)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = weight.shape


def _refresh_convolution(module: nn.modules.conv._ConvNd) -> None:
    first, second = module.weight.shape[:2]
    inside, out = (first, second * module.groups) if module.transposed else (second * module.groups, first)
    module.in_channels, module.out_channels = inside, out


def groups_left(module: nn.Module, rows: Tensor) -> int | None:
    """How many groups of a convolution are left when these rows of its weight are; None if it has none.

    A group goes when all of its rows do. Fewer rows in every group, as where one channel makes several, leave the groups.

    >>> import torch
    >>> depthwise = nn.Conv2d(3, 6, 1, groups=3)        # two outputs a channel
    >>> groups_left(depthwise, torch.tensor([0, 2, 4])), groups_left(depthwise, torch.tensor([0, 1, 4, 5]))
    (3, 2)
    """
    groups = getattr(module, "groups", 1)
    if not isinstance(module, nn.modules.conv._ConvNd) or groups == 1:
        return None
    return len((rows // (module.weight.shape[0] // groups)).unique())


def _refresh_recurrent(module: nn.RNNBase) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    weight = module._parameters.get("weight_ih_l0")
    if weight is not None and (weight.shape[0] // gates, weight.shape[1]) != (module.hidden_size, module.input_size):
        module.hidden_size, module.input_size = weight.shape[0] // gates, weight.shape[1]
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def keep_directions(model: nn.Module) -> None:
    """Give masked rows of weight-normalised layers a direction again: their magnitude is zero, and 0 / 0 would be no number.

    >>> import torch
    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, bias=False))
    >>> for parameter in layer.parameters():
    ...     _ = parameter.data[0].zero_()
    >>> keep_directions(layer)
    >>> layer.weight[0].tolist()
    [0.0, 0.0]
    """
    for module in model.modules():
        if not isinstance(module, ParametrizationList):
            continue
        for norm in module.children():
            if type(norm).__name__ == "_WeightNorm":
                size, direction = (module.get_parameter(key).detach() for key in ("original0", "original1"))
                dim = getattr(norm, "dim", 0)
                over = [d for d in range(direction.dim()) if dim == -1 or d != dim % direction.dim()]
                none = (direction == 0).all() if not over or dim == -1 else (direction.abs().amax(over, keepdim=True) == 0)
                direction.masked_fill_(none & (size == 0), 1.0)


def resized(model: nn.Module, edits: Sequence[Edit]) -> Iterator[tuple[Any, str, Any]]:
    """What `Resize` edits set, as (object, attribute, value); a shared configuration is copied for the module that is named.

    Raises:
        LessenError: a module does not have the number that an edit speaks of.
    """
    copies: dict[tuple[int, str], Any] = {}
    lists: dict[tuple[int, str], list[int]] = {}
    written: dict[tuple[int, str], int] = {}  # a plan after another one speaks of what that has left
    for edit in edits:
        if not isinstance(edit, Resize):
            continue
        place, index = _PLACE.fullmatch(edit.name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        owner, words, key = _owner(model, place, edit)
        for word in words:
            # What lies between a module and the number is a configuration, which others may share.
            mine = copies.get((id(owner), word))
            if mine is None:
                mine = copies[id(owner), word] = copy.copy(getattr(owner, word))
                yield owner, word, mine
            owner = mine
        value: Any = edit.after
        if index is not None:
            before = lists.setdefault((id(owner), key), list(getattr(owner, key)))
            kind = type(getattr(owner, key))
            _same(before[int(index)], edit)
            before[int(index)] = edit.after
            value = kind(before) if kind in (list, tuple) else tuple(before)
        else:
            _same(written.get((id(owner), key), getattr(owner, key, None)), edit)
            written[id(owner), key] = edit.after
        yield owner, key, value


def _owner(model: nn.Module, place: str, edit: Resize) -> tuple[Any, list[str], str]:
    """The module of a place, the attributes on the way from it to the number, and the number's own attribute."""
    module: nn.Module = model
    words = place.split(".")
    while len(words) > 1 and words[0] in module._modules and module._modules[words[0]] is not None:
        module = module._modules[words.pop(0)]  # pyright: ignore[reportAssignmentType]
    if not hasattr(module, words[0]):
        raise LessenError(edit.name, got="no such attribute", wanted=f"the number {edit.before}", remedy="plan again on this model")
    return module, words[:-1], words[-1]


def _same(found: Any, edit: Resize) -> None:
    if found != edit.before:
        raise LessenError(edit.name, got=f"{found}", wanted=f"{edit.before} before the edit", remedy="plan again on this model")
