"""Carrying out decisions: the only code that changes a model.

Everything is worked out and checked first (`trace`), every changed tensor is computed beside the old one, and only then is the
model touched, with assignments that cannot fail: a model is changed completely or not at all.

`mode="slice"` cuts channels away, `mode="mask"` leaves the shapes and puts zeros where they were. A block that is dropped is masked by
zeroing all it holds: it then adds nothing to the residual stream. Both modes of the same edits give the same outputs, which is the
strongest test of a unit there is.

Weight normalisation writes a row as magnitude times direction, and a direction of zeros has no length: there a mask zeroes the magnitude
and leaves some direction.

`Factor` is carried out as the dense product u @ v, so that names, shapes and stock loaders hold; a runtime that profits from two thin
matrices takes them from the edit.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.core.config import bias_groups, config_changes, unit_sizes
from lessen.core.edit import Drop, Edit, Factor, Keep, Quantize, Replace, Resize
from lessen.core.sizes import groups_left, keep_directions, refresh, resized
from lessen.core.strict import strict
from lessen.core.trace import Shape, Traced, kept, renumbered, spoken_of, trace
from lessen.errors import LessenError, UsageError

_ALSO_CALLED = {
    "num_attention_heads": ("num_heads", "num_attention_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "intermediate_size": ("intermediate_size",),
    "ffn_dim": ("ffn_dim",),
}


def edited(name: str, tensor: Tensor, edits: Sequence[Edit]) -> Tensor | None:
    """The tensor `name` after the edits that speak of it, in its dtype; None if its block is dropped.

    >>> edited("w", torch.ones(2, 2), [Replace("w", torch.zeros(2, 2))])
    tensor([[0., 0.],
            [0., 0.]])
    """
    for edit in edits:
        if isinstance(edit, Drop):
            after = renumbered(name, edit)
            if after is None:
                return None
            name = after
        elif (spoken := spoken_of(name, edit)) is not None:
            tensor = carry_out(tensor, ((spoken, edit),))
    return tensor


def carry_out(tensor: Tensor, steps: Sequence[tuple[str, Edit]]) -> Tensor:
    """A tensor after the steps that `trace` found for it, in its dtype and on its device."""
    for name, edit in steps:
        match edit:
            case Keep():
                for axis, indices in kept(edit, name, tuple(tensor.shape)).items():
                    tensor = tensor.index_select(axis, indices.to(tensor.device))
            case Quantize(format=format, codes=codes):
                tensor = format.decode(codes).to(tensor)
            case Replace(_, weight):
                tensor = weight.to(tensor)
            case Factor(_, u, v):
                tensor = (u @ v).to(tensor)
            case Drop() | Resize():
                pass
    return tensor


@strict()
def apply(model: nn.Module, edits: Sequence[Edit], mode: Literal["slice", "mask"] = "slice") -> nn.Module:
    """Change a model in place.

    Args:
        model: any module; a Hugging Face one has its configuration changed along.
        edits: decisions, in order (see `lessen.core.trace` for the rules).
        mode: "slice" makes tensors smaller, "mask" zeroes instead and changes no shape.

    Returns:
        The same module.

    Raises:
        UsageError: something that is no edit. LessenError: an edit does not fit; the model is as it was.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            remedy = "lessen.plan and lessen.prune give them: plan.edits"
            raise UsageError("apply", got=f"{edit!r:.60} ({type(edit).__name__})", wanted="edits", remedy=remedy)
    stored, tied = _stored(model, edits)
    config = getattr(model, "config", None)
    settings = _settings(config)
    traced = trace({n: tuple(p.shape) for n, p in stored.items()}, edits, tied, tuple(bias_groups(settings).values()))
    if mode == "mask":
        _assign(model, dict(_masked(stored, traced)))
        keep_directions(model)
        return model
    changes = config_changes(settings, edits, traced)
    _try(config, changes)
    places = {name: tensor.place for name, tensor in traced.items()}
    tensors = {t.place: _after(stored, t) for t in traced.values() if t.steps or t.new}
    attributes = [*_attributes(model, edits, places, changes), *_groups(model, traced), *resized(model, edits)]
    shorter = list(_shorter(model, traced, stored))
    _assign(model, tensors)
    for blocks, stay in shorter:
        _renumber(blocks, stay)
    for owner, key, value in attributes:
        setattr(owner, key, value)
    for module in model.modules():
        refresh(module)
    _configure(config, changes)
    return model


def _stored(model: nn.Module, edits: Sequence[Edit]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters, and the buffers that edits name, each once; and by which name the others of a shared one are stored."""
    named = {part.name for edit in edits if isinstance(edit, Keep) for part in edit.unit.slices}
    tensors: list[tuple[str, Tensor]] = list(model.named_parameters(remove_duplicate=False))
    tensors += [(name, buffer) for name, buffer in model.named_buffers(remove_duplicate=False) if name in named]
    by_id: dict[int, str] = {}
    for name, tensor in tensors:
        by_id.setdefault(id(tensor), name)
    stored = {name: tensor for name, tensor in tensors if by_id[id(tensor)] == name}
    return stored, {name: by_id[id(tensor)] for name, tensor in tensors if by_id[id(tensor)] != name}


def _settings(config: Any) -> dict[str, Any]:
    """A configuration object, a plain dict, or none at all, as a dict."""
    return config if isinstance(config, dict) else config.to_dict() if hasattr(config, "to_dict") else {}


def _configure(config: Any, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        config.__setitem__(key, value) if isinstance(config, dict) else setattr(config, key, value)


def _try(config: Any, changes: Mapping[str, Any]) -> None:
    """Make the changes on a copy of the configuration, which may refuse them."""
    try:
        _configure(copy.deepcopy(config) if changes else config, changes)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise LessenError(type(config).__name__, got=f"{dict(changes)}", wanted="a configuration that it accepts", remedy=reason) from error


def _before(stored: Mapping[str, Tensor], tensor: Traced) -> Tensor:
    """The tensor before its steps; for a new bias, something of its dtype and device."""
    if tensor.new:
        weight = stored[f"{tensor.place.removesuffix('bias')}weight"].detach()
        return weight.new_zeros(tensor.shape)
    return stored[tensor.place].detach()


def _after(stored: Mapping[str, Tensor], tensor: Traced) -> Tensor:
    """The tensor after its steps; on the meta device only its shape is worked out."""
    before = _before(stored, tensor)
    return before.new_empty(tensor.after) if before.is_meta else carry_out(before, tensor.steps)


def _masked(stored: Mapping[str, Tensor], traced: Mapping[str, Traced]) -> Iterator[tuple[str, Tensor]]:
    """Changed tensors in their first shapes, zero where channels or blocks are gone."""
    for name in stored.keys() - {t.place for t in traced.values()}:
        yield name, torch.zeros_like(stored[name])
    for tensor in traced.values():
        if not tensor.steps and not tensor.new:
            continue
        value = carry_out(_before(stored, tensor), tensor.steps)
        if tensor.new:
            # A bias may come after rows were cut: its entries lie where the rows that are left lie.
            weight = next(t for t in traced.values() if t.place == f"{tensor.place.removesuffix('bias')}weight")
            full = value.new_zeros(stored[weight.place].shape[:1])
            places = _surviving(tuple(stored[weight.place].shape), weight.steps)[:1]
        else:
            full = torch.zeros_like(stored[tensor.place])
            places = _surviving(tensor.shape, tensor.steps)
        full[torch.meshgrid(*places, indexing="ij")] = value
        yield tensor.place, full.detach()


def _surviving(shape: Shape, steps: Sequence[tuple[str, Edit]]) -> list[Tensor]:
    """For each axis, the first indices of what is left after the steps."""
    places = [torch.arange(size) for size in shape]
    for name, edit in steps:
        if isinstance(edit, Keep):
            for axis, indices in kept(edit, name, tuple(len(p) for p in places)).items():
                places[axis] = places[axis][indices]
    return places


def _assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into the parameters that exist, so that what shares them goes on sharing, and make the biases that do not."""
    for name, tensor in tensors.items():
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        parameter = owner._parameters.get(key)
        if key in owner._buffers:
            _set_buffer(owner, key, tensor)
        elif parameter is None:
            grad = next(owner.parameters()).requires_grad
            owner.register_parameter(key, nn.Parameter(tensor, requires_grad=grad))
        else:
            parameter.data = tensor
            parameter.grad = None


def _set_buffer(owner: nn.Module, key: str, tensor: Tensor) -> None:
    """Change a buffer in place, so that what shares it goes on sharing."""
    buffer = owner._buffers[key]
    if buffer is None or buffer.shape == tensor.shape:
        owner._buffers[key] = tensor
    else:
        buffer.data = tensor


def _attributes(
    model: nn.Module, edits: Sequence[Edit], places: Mapping[str, str], changes: Mapping[str, Any]
) -> Iterator[tuple[Any, str, Any]]:
    """Sizes that modules keep for themselves, as (module, attribute, value)."""
    configs: dict[int, Any] = {}
    for field, by_unit in unit_sizes(edits).items():
        for unit, value in by_unit.items():
            # Units are known by their final names; tensors below them tell where the module is in the model as it stands.
            below = next((n for n in places if n.startswith(f"{unit}.")), None)
            if below is None:
                continue
            depth = below.removeprefix(unit).count(".")
            module = model.get_submodule(places[below].rsplit(".", depth)[0])
            for key in _ALSO_CALLED.get(field, (field,)):
                if isinstance(getattr(module, key, None), int):
                    yield module, key, value
            own = getattr(module, "config", None)
            if own is not None and hasattr(own, field) and field not in changes and getattr(own, field) != value:
                # Blocks differ, and this module asks its configuration: it gets one of its own.
                own = configs.setdefault(id(module), copy.copy(own))
                setattr(own, field, value)
                yield module, "config", own


def _groups(model: nn.Module, traced: Mapping[str, Traced]) -> Iterator[tuple[nn.Module, str, int]]:
    """Numbers of groups of convolutions that lost some, as (module, attribute, value)."""
    for tensor in traced.values():
        if tensor.steps and tensor.place.endswith("weight"):
            module = model.get_submodule(tensor.place.rpartition(".")[0])
            left = groups_left(module, _surviving(tensor.shape, tensor.steps)[0])
            if left is not None:
                yield module, "groups", left


def _shorter(
    model: nn.Module, traced: Mapping[str, Traced], stored: Mapping[str, Tensor]
) -> Iterator[tuple[nn.ModuleList, list[nn.Module]]]:
    """Lists of blocks of which some are dropped, with those that stay."""
    places = {tensor.place for tensor in traced.values()}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            had = {n[len(path) + 1 :].split(".")[0] for n in stored if n.startswith(f"{path}.")}
            has = {n[len(path) + 1 :].split(".")[0] for n in places if n.startswith(f"{path}.")}
            if had != has and has:
                yield module, [block for number, block in module.named_children() if number not in had - has]


def _renumber(blocks: nn.ModuleList, stay: Sequence[nn.Module]) -> None:
    blocks._modules = {str(number): block for number, block in enumerate(stay)}
    for number, block in enumerate(stay):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", number)  # noqa: B010  (nn.Module types attributes as modules)
