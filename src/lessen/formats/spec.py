"""Formats as JSON and back: the one place that names them outside Python."""

from typing import Any

from lessen.errors import UsageError, nearest
from lessen.formats.affine import Int
from lessen.formats.floating import Float
from lessen.formats.granularity import SCALE_DTYPES, Granularity, PerGroup, PerRow, PerTensor

Format = Int | Float
"""Any number format: each has bits, granularity, scale_dtype, grid, search, round, encode, decode, bits_per_weight, levels, bounds."""

_TYPES: dict[str, type[Int] | type[Float]] = {"int": Int, "float": Float}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SCALE_DTYPES}
_GRANULARITIES: dict[str, Granularity] = {"tensor": PerTensor(), "row": PerRow()}
_OPTIONS = {Int: ("bits", "group", "symmetric", "full_range", "scale_dtype"), Float: ("kind", "group", "scale_dtype")}


def to_json(format: Format) -> dict[str, Any]:
    """A JSON object that `from_json` turns back into an equal format.

    >>> to_json(Int(4, PerGroup(32)))
    {'type': 'int', 'bits': 4, 'group': 32, 'symmetric': True, 'full_range': True, 'scale_dtype': 'float16'}
    >>> to_json(Float("e4m3", PerRow()))
    {'type': 'float', 'kind': 'e4m3', 'group': 'row', 'scale_dtype': 'float32'}
    """
    granularity = format.granularity
    written = {
        "group": granularity.size if isinstance(granularity, PerGroup) else "row" if isinstance(granularity, PerRow) else "tensor",
        "scale_dtype": str(format.scale_dtype).removeprefix("torch."),
    }
    name = next(name for name, type_ in _TYPES.items() if isinstance(format, type_))
    return {"type": name} | {option: written.get(option, getattr(format, option, None)) for option in _OPTIONS[type(format)]}


def from_json(data: dict[str, Any], where: str = "format") -> Format:
    """The format that `to_json` described; UsageError for anything else.

    >>> from_json({"type": "int", "bits": 4, "group": "row", "symmetric": True, "full_range": True, "scale_dtype": "float16"})
    Int(bits=4, granularity=PerRow(), symmetric=True, full_range=True, scale_dtype=torch.float16)
    >>> from_json({"type": "flaot", "kind": "e4m3"})
    Traceback (most recent call last):
    lessen.errors.UsageError: format: got type 'flaot', wanted int or float; did you mean float?
    """
    name = data.get("type")
    if name not in _TYPES:
        raise UsageError(where, got=f"type {name!r}", wanted=" or ".join(_TYPES), remedy=nearest(str(name), _TYPES))
    options = {key: value for key, value in data.items() if key != "type"}
    known = _OPTIONS[_TYPES[name]]
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(where, got=f"option {unknown[0]!r}", wanted=f"an option of {name}", remedy=nearest(unknown[0], known))
    if missing := [option for option in known if option not in options]:
        raise UsageError(where, got=f"no {missing[0]!r}", wanted=f"{', '.join(known)}")
    group, dtype = options.pop("group"), options.pop("scale_dtype")
    if dtype not in _DTYPES:
        raise UsageError(where, got=f"scale_dtype {dtype!r}", wanted=" or ".join(_DTYPES), remedy=nearest(str(dtype), _DTYPES))
    return _TYPES[name](**options, granularity=_granularity(group, where), scale_dtype=_DTYPES[dtype])


def _granularity(group: Any, where: str) -> Granularity:
    if isinstance(group, int) and not isinstance(group, bool) and group > 0:
        return PerGroup(group)
    if group not in _GRANULARITIES:
        raise UsageError(where, got=f"group {group!r}", wanted="'tensor', 'row' or a number of weights")
    return _GRANULARITIES[group]


def int_from_json(data: dict[str, Any], where: str = "format") -> Int:
    """`from_json` where only integer formats can be held: in edits and in the containers that models are saved in."""
    format = from_json(data, where)
    if not isinstance(format, Int):
        raise UsageError(where, got=f"a {data['type']} format", wanted="an int format", remedy="quantize to integers")
    return format
