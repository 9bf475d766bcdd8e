"""A decision as data. Methods return edits, `apply` carries them out, records describe them.

An edit can be printed, saved beside its block (safetensors, never pickle), replayed on another copy of the model, or thrown away.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lessen.core.unit import Slice, Unit
from lessen.formats import spec
from lessen.formats.affine import Codes, Int


@dataclass(frozen=True)
class Keep:
    """Keep these channels of a unit, in this order; the others are cut away. indices: int64, sorted, shape "kept"."""

    unit: Unit
    indices: Tensor


@dataclass(frozen=True)
class Quantize:
    """Store the tensor `name` as codes of `format`; `note` says what its method had to put up with."""

    name: str
    format: Int
    codes: Codes
    note: str = ""


@dataclass(frozen=True)
class Replace:
    """Put `weight` in place of the tensor `name` (which may not exist before: a new bias)."""

    name: str
    weight: Tensor


@dataclass(frozen=True)
class Factor:
    """Write the matrix `name` as u @ v, "out rank" times "rank in"."""

    name: str
    u: Tensor
    v: Tensor


@dataclass(frozen=True)
class Drop:
    """Remove a whole unit (a decoder layer); the ones after it move up."""

    unit: Unit


@dataclass(frozen=True)
class Resize:
    """Write a number that a module keeps for itself: `name` is "path.attribute", "path.attribute[i]" or "path.config.attribute".

    A configuration object that modules share is copied for the one that is named. `before` is what must be there.
    """

    name: str
    before: int
    after: int


class StoredQuantize(Quantize):
    """A `Quantize` whose codes stay on disk and are read every time they are looked at, so that a whole plan fits in memory."""

    def __init__(self, name: str, format: spec.Format, path: Path, index: int, note: str = ""):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "format", format)
        object.__setattr__(self, "note", note)
        object.__setattr__(self, "_place", (path, index))

    @property
    def codes(self) -> Codes:  # pyright: ignore[reportIncompatibleVariableOverride]
        path, index = self._place  # pyright: ignore[reportAttributeAccessIssue]
        with safe_open(path, "pt") as file:
            return _codes(file, index)


Edit = Keep | Quantize | Replace | Factor | Drop | Resize


def save_edits(path: Path, edits: Sequence[Edit]) -> None:
    """Write edits to one safetensors file, aside and then renamed, so that a file that exists is complete."""
    tensors: dict[str, Tensor] = {}
    heads: list[dict[str, Any]] = []
    for i, edit in enumerate(edits):
        match edit:
            case Keep(unit, indices):
                heads.append({"kind": "keep", "unit": _unit_to_json(unit)})
                tensors[f"{i}.indices"] = indices
            case Quantize(name, format, codes, note):
                heads.append({"kind": "quantize", "name": name, "format": spec.to_json(format), "note": note})
                tensors |= {f"{i}.values": codes.values, f"{i}.scale": codes.scale}
                if codes.zero is not None:
                    tensors[f"{i}.zero"] = codes.zero
            case Replace(name, weight):
                heads.append({"kind": "replace", "name": name})
                tensors[f"{i}.weight"] = weight
            case Factor(name, u, v):
                heads.append({"kind": "factor", "name": name})
                tensors |= {f"{i}.u": u, f"{i}.v": v}
            case Resize(name, before, after):
                heads.append({"kind": "resize", "name": name, "before": before, "after": after})
            case Drop(unit):
                heads.append({"kind": "drop", "unit": _unit_to_json(unit)})
    aside = path.with_suffix(".aside")
    save_file({k: v.contiguous() for k, v in tensors.items()}, aside, metadata={"edits": json.dumps(heads)})
    aside.replace(path)


def load_edits(path: Path) -> list[Edit]:
    """Read what `save_edits` wrote. Codes stay in the file, which must outlive the edits."""
    edits: list[Edit] = []
    with safe_open(path, "pt") as file:
        for i, head in enumerate(json.loads(file.metadata()["edits"])):
            match head["kind"]:
                case "keep":
                    edits.append(Keep(_unit_from_json(head["unit"]), file.get_tensor(f"{i}.indices")))
                case "quantize":
                    edits.append(StoredQuantize(head["name"], spec.int_from_json(head["format"]), path, i))
                case "replace":
                    edits.append(Replace(head["name"], file.get_tensor(f"{i}.weight")))
                case "factor":
                    edits.append(Factor(head["name"], file.get_tensor(f"{i}.u"), file.get_tensor(f"{i}.v")))
                case "resize":
                    edits.append(Resize(head["name"], head["before"], head["after"]))
                case _:
                    edits.append(Drop(_unit_from_json(head["unit"])))
    return edits


def _codes(file: Any, index: int) -> Codes:
    zero = file.get_tensor(f"{index}.zero") if f"{index}.zero" in file.keys() else None  # noqa: SIM118
    return Codes(file.get_tensor(f"{index}.values"), file.get_tensor(f"{index}.scale"), zero)


def _unit_to_json(unit: Unit) -> dict[str, Any]:
    data = {k: getattr(unit, k) for k in ("name", "kind", "size", "block", "reason", "normed", "complete", "among")}
    data["slices"] = [_slice_to_json(s) for s in unit.slices]
    data["sizes"] = dict(unit.sizes)
    data["producer"] = _slice_to_json(unit.producer) if unit.producer else None
    return data


def _slice_to_json(part: Slice) -> list[Any]:
    return [part.name, part.axis, part.span, part.start, part.repeat, part.stride, part.length]


def _unit_from_json(data: dict[str, Any]) -> Unit:
    producer = Slice(*data["producer"]) if data["producer"] else None
    return Unit(**{**data, "slices": tuple(Slice(*s) for s in data["slices"]), "producer": producer})


def same(a: Edit, b: Edit) -> bool:
    """Bitwise equality of two edits, for tests of resume and determinism."""
    match a, b:
        case Keep(), Keep():
            return a.unit == b.unit and torch.equal(a.indices, b.indices)
        case Quantize(), Quantize():
            return (a.name, a.format) == (b.name, b.format) and _same_codes(a.codes, b.codes)
        case Replace(), Replace():
            return a.name == b.name and torch.equal(a.weight, b.weight)
        case Factor(), Factor():
            return a.name == b.name and torch.equal(a.u, b.u) and torch.equal(a.v, b.v)
        case (Drop(), Drop()) | (Resize(), Resize()):
            return a == b
    return False


def _same_codes(a: Codes, b: Codes) -> bool:
    if a.zero is not None and b.zero is not None and not torch.equal(a.zero, b.zero):
        return False
    return (a.zero is None) == (b.zero is None) and torch.equal(a.values, b.values) and torch.equal(a.scale, b.scale)
