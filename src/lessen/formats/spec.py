"""Formats as JSON and back: the one place that names them outside Python."""

from typing import Any

import torch

from lessen.formats.affine import Int
from lessen.formats.granularity import PerGroup, PerRow, PerTensor

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def to_json(format: Int) -> dict[str, Any]:
    """A JSON object that `from_json` turns back into an equal format.

    >>> to_json(Int(4, PerGroup(32)))
    {'type': 'int', 'bits': 4, 'group': 32, 'symmetric': True, 'full_range': True, 'scale_dtype': 'float16'}
    """
    group = {PerTensor: "tensor", PerRow: "row"}.get(type(format.granularity)) or format.granularity.size  # pyright: ignore
    return {
        "type": "int",
        "bits": format.bits,
        "group": group,
        "symmetric": format.symmetric,
        "full_range": format.full_range,
        "scale_dtype": str(format.scale_dtype).removeprefix("torch."),
    }


def from_json(data: dict[str, Any]) -> Int:
    """The format that `to_json` described."""
    group = data["group"]
    granularity = {"tensor": PerTensor(), "row": PerRow()}.get(group) or PerGroup(group)
    return Int(data["bits"], granularity, data["symmetric"], data["full_range"], _DTYPES[data["scale_dtype"]])
