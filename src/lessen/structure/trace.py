"""Structure of any network: one watched forward pass, and what may be cut follows.

    structure = lessen.trace(model, torch.zeros(1, 3, 224, 224))
    print(structure)

The model runs once, without gradients, in evaluation mode, on the given example, while `watch` gives every dimension of every tensor an
axis and unifies the axes that operations tie together. Then:

    inputs      are what the caller passes, outputs what the caller gets: their axes are held
    parameters  and buffers of modules named in `freeze` are held
    the rest    whatever is left, and lives in a tensor that took part, is a `Unit`: its slices must be cut together

A large model, or one on the meta device, runs on fake tensors: shapes alone, no memory, seconds for thirty layers. Where its code asks
for values (experts that are looked up, masks that select rows) it runs again on its weights, which are not copied; a model on the meta
device has none, and there is an error that says so. With real weights there are two passes, the second with other values: what either
ties together is tied, and a model that takes another way is refused.

Afterwards the model is what it was, also if anything failed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from lessen.core.modules import plain_attention
from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError, nearest, one_line
from lessen.structure.agree import agree
from lessen.structure.axes import Axis, describe, leaves
from lessen.structure.couple import couple, experts, layers, vocabulary
from lessen.structure.example import arguments, mapped
from lessen.structure.found import Structure
from lessen.structure.resize import expressible
from lessen.structure.rules import Rule
from lessen.structure.siblings import adopt
from lessen.structure.sizes import remembered
from lessen.structure.state import plain_kernels, untouched
from lessen.structure.watch import Watch, tensors_in

FAKE_ABOVE = 20_000_000
"""Parameters from which on a model is traced on fake tensors."""

INTERNAL = ("past_key_values", "cache", "mems", "states", "hidden_states", "attentions", "last_hidden_state", "loss")
"""Ends of the names of outputs that models hand out beside their answer: they are held only if there is nothing else."""


@strict()
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    freeze: Sequence[str] = (),
    rules: Mapping[str, Rule] | None = None,
) -> Structure:
    """Find what can be cut from a model.

    Args:
        model: any module, on any device, "meta" too.
        example_inputs: what it is called with: a tensor, a tuple of arguments, or a dictionary of keyword arguments.
        freeze: modules, parameters or buffers (dotted names) of which nothing may be cut.
        rules: rules for operations that have none ("mylib.op": rule), see `lessen.structure.rules.call`.

    Raises:
        UsageError: `freeze` names nothing.
        LessenError: the model fails on its example, or an operation has no rule.

    >>> import torch
    >>> mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(unit.name, unit.kind, unit.size) for unit in trace(mlp, torch.zeros(1, 4)).units]
    [('0', 'channels', 8)]
    """
    modules = dict(model.named_modules())
    tensors = _tensors(model)
    _check_freeze(freeze, [*modules, *tensors])

    def watched(fake: bool) -> tuple[Watch, dict[str, list[Axis]], set[str]]:
        watch = Watch({module: name for name, module in modules.items()}, rules or {}, freeze)
        with untouched(model), plain_attention(model), remembered(model, watch.values), plain_kernels():
            return watch, *_run(model, watch, tensors, example_inputs, fake)

    try:
        watch, dims, used = watched(_wants_fake(model))
    except _NeedsValues as error:
        if any(tensor.is_meta for tensor in tensors.values()):
            raise
        watch, dims, used = watched(fake=False)
        watch.notes[f"traced with real weights, since without values there was {error.got}"] = None
    watch.notes |= dict.fromkeys(adopt(model, watch.axes, dims, used))
    agree(watch.axes, watch.sites)
    live = {name: axes for name, axes in dims.items() if name in used}
    parameters = dict(model.named_parameters())
    blocks = layers(watch.residual, freeze, parameters)
    units, names = couple(watch.axes, live, [block.name for block in blocks])
    packed, of_experts = experts(live)
    # The unused end of a table of positions is no part of the weights.
    units = [unit for unit in units if any(part.name in parameters for part in unit.slices)]
    found = [*units, *packed, *blocks]
    held = {f"{n}[{d}]": reason for n, axes in dims.items() for d, a in enumerate(axes) if (reason := _held(a, n in used))}
    structure = Structure(
        units=tuple(found),
        held=held,
        sites=(*watch.sites, *watch.constants()),
        notes=tuple(watch.notes),
        vocabulary=tuple(vocabulary(live)),
        dims={name: tuple(axes) for name, axes in dims.items()},
        leaves=names | of_experts,
    )
    return expressible(model, structure)


class _NeedsValues(LessenError):
    """A pass on fake tensors that came to a question about values."""


def _held(axis: Axis, used: bool) -> str | None:
    if axis.size <= 1:
        return None
    below = list(leaves(axis))
    if not all(leaf.pin is not None or leaf.size == 1 for leaf in below):
        return None if used else "it takes no part in the example"
    return next((leaf.pin for leaf in below if leaf.pin is not None), "single indices")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once, by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _wants_fake(model: nn.Module) -> bool:
    own = list(model.parameters())
    return any(p.is_meta for p in own) or sum(p.numel() for p in own) > FAKE_ABOVE


def _check_freeze(freeze: Sequence[str], known: Sequence[str]) -> None:
    for name in freeze:
        if name not in known:
            raise UsageError("trace", got=f"freeze={name!r}", wanted="a module, parameter or buffer", remedy=nearest(name, known))


def _run(model: nn.Module, watch: Watch, tensors: Mapping[str, Tensor], example: Any, fake: bool) -> tuple[dict[str, list[Axis]], set[str]]:
    """Forward passes. Returns the axes of every parameter and buffer, and the names of those that took part."""
    args, kwargs = arguments(example)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if fake:
            mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stand_ins = {name: _fake(mode, tensor.detach()) for name, tensor in tensors.items()}
            examples = [(mapped(args, lambda t: _fake(mode, t)), mapped(kwargs, lambda t: _fake(mode, t)))]
            call = lambda a, k: torch.func.functional_call(model, dict(stand_ins), a, k)  # noqa: E731
        else:
            stand_ins, call = dict(tensors), lambda a, k: model(*a, **k)
            examples = [(mapped(args, torch.clone), mapped(kwargs, torch.clone)), (mapped(args, _other), mapped(kwargs, _other))]
        dims = {name: [watch.axes.leaf(n) for n in t.shape] for name, t in stand_ins.items()}
        for name, tensor in stand_ins.items():
            watch.name(tensor, dims[name], static=True)
            for prefix in watch.freeze:
                if f"{name}.".startswith(f"{prefix}.") or not prefix:
                    for axis in dims[name]:
                        watch.axes.pin(axis, f"{prefix or 'everything'} is frozen")
        _pass(model, watch, call, examples[0])
        used = {name for name, tensor in stand_ins.items() if id(tensor) in watch.touched}
        if len(examples) > 1:
            _second(model, watch, call, examples[1], stand_ins)
        return dims, used


def _second(model: nn.Module, watch: Watch, call: Callable[..., Any], example: Any, stand_ins: Mapping[str, Tensor]) -> None:
    """The same with other values: what it ties together is tied, and it must go the same way.

    Experts are not held to that: of a list or dictionary of modules, or of tensors in one, other entries may take part.

    Raises:
        LessenError: a module or tensor takes part in one pass and not in the other.
    """
    ran, touched = set(watch.ran), set(watch.touched)
    sites = list(watch.sites)
    watch.ran.clear()
    watch.touched.clear()
    try:
        _pass(model, watch, call, example)
    except LessenError as error:
        watch.notes[f"a second pass with other values, to see whether the model goes another way, failed: {error.where} {error.got}"] = None
        watch.touched |= touched
        return
    finally:
        watch.sites = sites
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.ModuleDict)]
    ways = ran ^ set(watch.ran) | {name for name, t in stand_ins.items() if id(t) in touched ^ watch.touched}
    other = sorted(name for name in ways if not any(name.startswith(f"{path}.") for path in lists))
    if other:
        raise LessenError(
            type(model).__name__,
            got=f"{other[0]} takes part with some inputs and not with others",
            wanted="a model that does the same operations whatever the values",
            remedy="trace the branches as models of their own, with the rest of the model left alone",
        )
    watch.touched |= touched


def _other(tensor: Tensor) -> Tensor:
    """Other values of the same kind: numbers scaled and of the other sign, indices in another order, truth values as they are."""
    if tensor.is_floating_point():
        return tensor * -0.75
    return tensor.clone() if tensor.dtype == torch.bool or not tensor.dim() else tensor.roll(1, -1)


def _pass(model: nn.Module, watch: Watch, call: Callable[..., Any], example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """One forward pass; its inputs and answers are held."""
    for tensor in tensors_in(list(example)):
        watch.name(tensor, [watch.axes.leaf(n, pin="inputs are what the caller passes") for n in tensor.shape])
        watch.inputs.add(id(tensor))
    watch.stack.clear()
    for key, tensor in _answers(_call(model, watch, lambda: call(*example))):
        for axis in watch.axes_of(tensor):
            watch.axes.pin(axis, f"outputs are what the caller gets{f' as {key}' if key else ''}")


def _call(model: nn.Module, watch: Watch, call: Callable[[], Any]) -> Any:
    where = type(model).__name__
    try:
        with watch.following():
            return call()
    except LessenError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise _NeedsValues(
            watch.failed or where,
            got=f"{error}, which depends on values, in a model traced without values",
            wanted="shapes and ways that do not depend on data",
            remedy="trace a small copy of the model with real weights on the CPU",
        ) from error
    except Exception as error:
        remedy = "call the model with this example yourself; it must run in evaluation mode"
        raise LessenError(watch.failed or where, got=one_line(error), wanted="a model that runs on its example", remedy=remedy) from error


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """Shape, strides and type without values; what lies on the meta device is taken to lie on the CPU."""
    if not tensor.is_meta:
        return mode.from_tensor(tensor)
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _answers(out: Any) -> Iterator[tuple[str, Tensor]]:
    """What the caller gets: every tensor, but of a named output that has others, not the internal ones."""
    if isinstance(out, Mapping):
        named = {str(k): v for k, v in out.items()}
        first = next(iter(named), "")
        for key, value in named.items():
            if key == first or not key.endswith(INTERNAL):
                yield from ((key, t) for t in tensors_in(value))
        return
    yield from (("", t) for t in tensors_in(out))


__all__ = ["Structure", "describe", "trace"]
