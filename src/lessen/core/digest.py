"""What a thing is, in 64 hex digits, so that results that are kept on disk are never taken for those of another network, judge or data.

Tensors count by type, shape and bytes, modules by their layers and all their tensors, dataclasses by the fields that they compare by,
functions by their code and by what they see: arguments of a partial, defaults, closures, globals that their code names. An object that
knows better what makes it what it is says so with a method `identity`. No address and no order of a set counts, so that digests are the
same in every process. What cannot be looked into (an open file, a foreign object) counts by its type alone.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_DEPTH = 24  # of things in things; far beyond it lies nothing that was written down by hand
_SHARED = (tuple, frozenset, CodeType)  # whether two equal constants are one depends on whether a module was compiled or read


def digest(*values: Any) -> str:
    """Hex digest of values.

    >>> digest({"a": torch.ones(2)}) == digest({"a": torch.ones(2)}) != digest({"a": torch.zeros(2)})
    True
    """
    state, seen = sha256(), dict[int, tuple[int, Any]]()
    for part in _parts(values, seen, _DEPTH):
        state.update(part if isinstance(part, memoryview) else part.encode() + b"\0")
    return state.hexdigest()


def _parts(value: Any, seen: dict[int, tuple[int, Any]], depth: int) -> Iterator[str | memoryview]:
    """Words and bytes that tell what a value is."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{type(value).__name__} {value!r}"
        return
    if isinstance(value, Tensor):
        yield from _tensor(value)
        return
    if isinstance(value, type | ModuleType):
        yield _named(value)
        return
    if depth == 0 or (id(value) in seen and not isinstance(value, _SHARED)):
        yield f"again {seen[id(value)][0] if id(value) in seen else depth}"
        return
    seen.setdefault(id(value), (len(seen), value))  # held, so that nothing else gets its address
    yield _named(type(value))
    for part in _inside(value):
        yield from _parts(part, seen, depth - 1)


def _inside(value: Any) -> Iterator[Any]:
    """What a value is made of."""
    if callable(identity := getattr(value, "identity", None)):
        yield identity()
    elif isinstance(value, nn.Module):
        yield from _module(value)
    elif isinstance(value, Mapping):
        yield from (part for item in value.items() for part in item)
    elif isinstance(value, set | frozenset):
        yield sorted(digest(item) for item in value)
    elif isinstance(value, list | tuple | range):
        yield len(value)
        yield from value
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType):
        yield from _function(value)
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif is_dataclass(value):
        yield from (part for field in fields(value) if field.compare for part in (field.name, getattr(value, field.name)))
    elif hasattr(value, "__array_interface__"):
        yield torch.as_tensor(value) if value.dtype.kind in "biufc" else repr(value)
    elif hasattr(value, "__wrapped__"):
        yield value.__wrapped__
    elif callable(value) and hasattr(value, "__qualname__"):
        yield _named(value)
    else:
        yield from (part for item in sorted(getattr(value, "__dict__", {}).items()) for part in item)


def _tensor(value: Tensor) -> Iterator[str | memoryview]:
    yield f"tensor {value.dtype} {tuple(value.shape)}"
    if value.device.type != "meta" and value.numel():
        flat = value.detach().cpu().reshape(-1).contiguous()
        yield memoryview(flat.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def _module(value: nn.Module) -> Iterator[Any]:
    """Layers with what they print of themselves, and all tensors by name."""
    for name, module in value.named_modules():
        yield f"{name} {_named(type(module))} {re.sub(r' at 0x[0-9a-f]+', '', module.extra_repr())}"
    for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
        yield from (name, tensor)


def _function(value: FunctionType) -> Iterator[Any]:
    """Code, and what it sees; functions of other packages, and what an import made of them, count by name."""
    yield _named(value)
    yield from (value.__code__, value.__defaults__, value.__kwdefaults__)
    for cell in value.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            yield None
    for name in _names(value.__code__):
        if name in value.__globals__:
            seen = value.__globals__[name]
            foreign = isinstance(seen, FunctionType | type) and seen.__module__ != value.__module__
            yield from (name, _named(seen) if foreign else seen)


def _names(code: CodeType) -> list[str]:
    """Names that a code and those within it look up."""
    within = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return sorted({*code.co_names, *within})


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
