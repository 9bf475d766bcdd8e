"""Safetensors files read one tensor at a time, checked for truncation, without mapping the file.

A memory map would count every page ever touched as memory of this process, so a walk over all blocks would seem to need the whole
model; plain reads at an offset need the tensor and nothing else. Layout: 8 bytes little-endian header length, a JSON header with
dtype, shape and byte range of each tensor, then the data. https://huggingface.co/docs/safetensors
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen.errors import DamagedModel, LessenError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_SAMPLE_BYTES = 4096
_SAMPLES = 16


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: absolute byte range in `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFiles(Mapping[str, Entry]):
    """The tensors of one or several safetensors files, by name.

    Args:
        files: the shards (kept as `files`); all headers are read at once, no data.

    Raises:
        LessenError: a file is missing, shorter than its header says, or not safetensors.
    """

    def __init__(self, files: Iterable[Path]):
        self.files = tuple(files)
        self._entries: dict[str, Entry] = {}
        self._headers: list[bytes] = []
        for file in self.files:
            raw, entries = _read_header(file)
            self._headers.append(raw)
            self._entries |= entries

    @classmethod
    def of_folder(cls, folder: Path) -> "TensorFiles":
        """`model.safetensors`, or the shards that `model.safetensors.index.json` lists."""
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.exists():
            return cls([single])
        if not index.exists():
            other = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.safetensors"))
            found = f"only {other[0].name}" if other else "no weights"
            remedy = "write it with model.save_pretrained(folder), which makes model.safetensors"
            raise LessenError(str(folder), got=found, wanted="model.safetensors or its index", remedy=remedy)
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing or not shards:
            got = f"no {missing[0]} ({len(missing)} of {len(shards)} shards missing)" if missing else "an empty weight_map"
            raise LessenError(str(index), got=got, wanted="every shard it lists", remedy="copy or download the model again")
        return cls([folder / shard for shard in shards])

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.start for entry in self._entries.values())

    def read(self, name: str) -> Tensor:
        """A tensor with memory of its own, in the dtype of the file."""
        entry = self._entries[name]
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        tensor = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            if file.readinto(memoryview(tensor.numpy())) != entry.end - entry.start:  # pyright: ignore[reportArgumentType]
                raise _truncated(entry.file, entry.file.stat().st_size, entry.end)
        return tensor.view(entry.dtype).reshape(entry.shape)

    def digest(self) -> str:
        """sha256 hex of the headers and up to 64 KiB of each tensor, spread evenly: a change between the samples is not seen."""
        state = sha256()
        for header in self._headers:
            state.update(header)
        for name in sorted(self._entries):
            entry = self._entries[name]
            with entry.file.open("rb") as file:
                for start in sample_starts(entry.start, entry.end):
                    file.seek(start)
                    state.update(file.read(min(_SAMPLE_BYTES, entry.end - start)))
        return state.hexdigest()


def sample_starts(start: int, end: int) -> list[int]:
    """Where to look at a byte range to recognise it: all of it when small, else evenly spread windows of 4 KiB, both ends among them."""
    if end - start <= _SAMPLES * _SAMPLE_BYTES:
        return list(range(start, end, _SAMPLE_BYTES))
    last = end - _SAMPLE_BYTES
    return [start + (last - start) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; LessenError if it is anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise LessenError(str(path), got=f"invalid JSON ({error})", wanted="a JSON object", remedy="copy or download it again") from None
    if not isinstance(data, dict):
        raise LessenError(str(path), got=f"a JSON {type(data).__name__}", wanted="a JSON object", remedy="copy or download it again")
    return data


def checked(tensor: Tensor, where: str) -> Tensor:
    """The tensor itself if all its values are finite.

    >>> checked(torch.tensor([1.0, float("nan")]), "norm")
    Traceback (most recent call last):
    lessen.errors.DamagedModel: norm: got 1 NaN or infinite value of 2, wanted finite weights; use an undamaged copy of the model
    """
    if tensor.is_floating_point() and tensor.element_size() > 1:
        bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        if bad:
            got = f"{bad} NaN or infinite value{'s' if bad > 1 else ''} of {tensor.numel()}"
            raise DamagedModel(where, got=got, wanted="finite weights", remedy="use an undamaged copy of the model")
    return tensor


def _read_header(path: Path) -> tuple[bytes, dict[str, Entry]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= size - 8:
            raise _truncated(path, size, 8 + length if length < 1 << 40 else None)
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        entries = {
            name: Entry(path, _DTYPES[item["dtype"]], tuple(item["shape"]), *(8 + length + offset for offset in item["data_offsets"]))
            for name, item in header.items()
        }
    except KeyError as error:
        raise LessenError(str(path), got=f"dtype {error}", wanted=f"one of {', '.join(_DTYPES)}") from None
    except (ValueError, TypeError, AttributeError):
        raise LessenError(str(path), got="an unreadable header", wanted="a safetensors file", remedy="copy or download it again") from None
    for name, entry in entries.items():
        if entry.end - entry.start != prod(entry.shape) * entry.dtype.itemsize:
            got = f"{entry.end - entry.start} bytes for {name} of shape {entry.shape}"
            raise LessenError(str(path), got=got, wanted="a consistent header", remedy="copy or download it again")
    wanted = max((entry.end for entry in entries.values()), default=0)
    if wanted > size:
        raise _truncated(path, size, wanted)
    return raw, entries


def _truncated(path: Path, size: int, wanted: int | None) -> LessenError:
    want = f"{wanted} bytes as its header says" if wanted else "a safetensors file"
    return LessenError(str(path), got=f"{size} bytes", wanted=want, remedy="it is truncated or damaged: copy or download it again")
