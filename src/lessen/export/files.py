"""Files that exist only when they are complete: everything is written aside and renamed; memory is one tensor."""

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError

_NO_SPACE = 1 << 16
_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextmanager
def aside(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to; takes its place when the block ends well, vanishes when it fails.

    Raises:
        UsageError: the target exists and must not be overwritten.
        LessenError: no space left.
    """
    if target.exists() and not overwrite:
        raise UsageError(str(target), got="a target that exists", wanted="a free name", remedy="choose another or pass overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.aside"
    try:
        yield temporary
        if target.is_dir():
            old = temporary.with_suffix(".old")
            target.rename(old)
            temporary.rename(target)
            _remove(old)
        else:
            temporary.replace(target)
    except OSError as error:
        # numpy says that fewer bytes were written than asked, and no more: so look at the disk itself.
        free = shutil.disk_usage(target.parent).free
        if error.errno == ENOSPC or free < _NO_SPACE:
            raise LessenError(str(target), got=f"a full disk ({free >> 20} MiB free)", wanted="room for it", remedy="free some") from error
        raise
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def weights_bytes(path: Path) -> int:
    """Bytes of the tensors in what an exporter wrote: no header, tokenizer or configuration.

    Args:
        path: a .gguf file, or a folder with .safetensors files or with the data of an ONNX graph.
    """
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.onnx.data")]
    return sum(file.stat().st_size - _before_data(file) for file in files)


def _before_data(file: Path) -> int:
    """Bytes before the first tensor."""
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            return 8 + int.from_bytes(opened.read(8), "little")
    if file.suffix == ".data":
        return 0
    from gguf import GGUFReader

    return int(GGUFReader(file).data_offset)


class SafetensorsWriter:
    """Tensors to safetensors files as they come, with one tensor in memory; a further file is begun when one is full.

    The header, which comes first in the file, is only known at the end. Room for it is left and filled up with spaces, as the
    format allows.

    Args:
        folder: gets `model.safetensors`, or numbered files with `model.safetensors.index.json`.
        names: how many tensors at most, times the length of their names: fixes the room for the header.
        shard_bytes: a file is closed when it has reached this size.
    """

    def __init__(self, folder: Path, header_bytes: int, shard_bytes: int = 5 << 30):
        self.folder, self.shard_bytes = folder, shard_bytes
        self.room = -(-header_bytes // 4096) * 4096
        self.shards: list[Path] = []
        self.where: dict[str, int] = {}
        self.total = 0
        self._file: Any = None
        self._header: dict[str, Any] = {}
        self._offset = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor."""
        if self._file is None or self._offset >= self.shard_bytes:
            self._close()
            self.shards.append(self.folder / f"model-{len(self.shards) + 1:05}.part")
            self._file = self.shards[-1].open("wb")
            self._file.seek(8 + self.room)
            self._header, self._offset = {"__metadata__": {"format": "pt"}}, 0
        data = tensor.detach().contiguous().cpu()
        raw = data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b""
        self._file.write(raw)
        size = data.numel() * data.element_size()
        self._header[name] = {
            "dtype": _DTYPE_NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self._offset, self._offset + size],
        }
        self.where[name] = len(self.shards) - 1
        self._offset += size
        self.total += size

    def _close(self) -> None:
        if self._file is None:
            return
        header = json.dumps(self._header, separators=(",", ":")).encode()
        assert len(header) <= self.room, "room for the header was computed too small"
        self._file.seek(0)
        self._file.write(self.room.to_bytes(8, "little") + header.ljust(self.room))
        self._file.close()
        self._file = None

    def close(self) -> None:
        """Write the headers, give the files their names, write the index if there are several."""
        self._close()
        if len(self.shards) == 1:
            self.shards[0].rename(self.folder / "model.safetensors")
            return
        names = [f"model-{i + 1:05}-of-{len(self.shards):05}.safetensors" for i in range(len(self.shards))]
        for shard, name in zip(self.shards, names, strict=True):
            shard.rename(self.folder / name)
        index = {"metadata": {"total_size": self.total}, "weight_map": {key: names[shard] for key, shard in self.where.items()}}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()
