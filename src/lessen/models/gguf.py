"""A GGUF file as a Checkpoint: Hugging Face names, shapes and conventions over llama.cpp's tensors, dequantized one at a time.

Three things differ from a Hugging Face directory. Tensors have short names (`blk.3.attn_q.weight`); the `gguf` package holds the map.
For `llama` the rows of the query and key matrices are stored in another order, because llama.cpp rotates neighbouring pairs where
transformers rotates the two halves of a head: with h heads, stored row (head, i, half) is our row (head, half, i). And the
configuration lies in the file's metadata. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.core.edit import Quantize
from lessen.errors import LessenError
from lessen.models.gguf_config import Metadata, build_config
from lessen.models.huggingface import copy_tokenizer_files, load_tokenizer
from lessen.models.skeleton import skeleton
from lessen.models.tensors import checked, sample_starts


@dataclass(frozen=True)
class Stored:
    """One tensor of the file: its type and byte range, and its shape as torch would have it."""

    kind: Any
    start: int
    size: int
    shape: tuple[int, ...]


class GGUF:
    """See `Checkpoint`.

    Raises:
        LessenError: truncated, an architecture or rope scaling that is not supported, or tensors that do not fit the metadata.
    """

    def __init__(self, path: Path):
        self.label = str(path)
        self.path = path
        self.files = (path,)
        metadata, self._tensors, self._header_size = _parse(path)
        self.config, uniform = build_config(metadata, {name: item.shape for name, item in self._tensors.items()}, self._numbers, self.label)
        self._permuted = metadata["general.architecture"] == "llama"
        self.size_bytes = sum(item.size for item in self._tensors.values())
        self._names: dict[str, str] = {}
        self.tied: dict[str, str] = {}
        self._match(metadata["general.architecture"], uniform)
        self.names = list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[self._key(name)].shape

    def read(self, name: str) -> Tensor:
        name = self.tied.get(name, name)
        tensor = checked(self._numbers(self._key(name)), f"{self.label}: {name}")
        if self._permuted and re.search(r"\.self_attn\.[qk]_proj\.", name):
            return _unpermuted(tensor, self.config["head_dim"])
        return tensor

    def quantized(self, name: str) -> Quantize | None:
        return None

    def skeleton(self) -> nn.Module:
        return skeleton(self.config, self.label, {name: self._tensors[key].shape for name, key in self._names.items()})

    def tokenizer(self) -> Any:
        return load_tokenizer(self._tokenizer_folder(), self.label)

    def copy_tokenizer(self, folder: Path) -> None:
        copy_tokenizer_files(self._tokenizer_folder(), folder)
        ids = {key: self.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in self.config}
        (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        state = sha256()
        with self.path.open("rb") as file:
            state.update(file.read(self._header_size))
            for item in self._tensors.values():
                for start in sample_starts(item.start, item.start + item.size):
                    file.seek(start)
                    state.update(file.read(min(4096, item.start + item.size - start)))
        return state.hexdigest()

    def _key(self, name: str) -> str:
        name = self.tied.get(name, name)
        if name not in self._names:
            raise LessenError(self.label, got=f"a request for {name}", wanted=f"one of its {len(self._names)} tensors")
        return self._names[name]

    def _numbers(self, key: str) -> Tensor:
        """A tensor of the file as float32, rows as they lie there."""
        from gguf import dequantize, quant_shape_to_byte_shape

        item = self._tensors[key]
        raw = np.fromfile(self.path, dtype=np.uint8, count=item.size, offset=item.start)
        try:
            values = dequantize(raw.reshape(quant_shape_to_byte_shape(item.shape, item.kind)), item.kind)
        except NotImplementedError:
            remedy = "give a file in F16, Q8_0, Q4_0, Q4_1 or a K-quant"
            raise LessenError(f"{self.label}: {key}", got=f"type {item.kind.name}", wanted="a readable type", remedy=remedy) from None
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(item.shape)

    def _match(self, arch: str, uniform: bool) -> None:
        """Find each tensor of the module in the file."""
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch)
        table = get_tensor_name_map(kind, self.config["num_hidden_layers"])
        seen: dict[int, str] = {}
        for name, parameter in skeleton(self.config, self.label).named_parameters(remove_duplicate=False):
            if id(parameter) in seen:
                self.tied[name] = seen[id(parameter)]
                continue
            seen[id(parameter)] = name
            key = table.get_name(name, try_suffixes=(".weight", ".bias"))
            if key not in self._tensors:
                raise LessenError(self.label, got=f"no tensor {key} ({name})", wanted=f"every tensor of {arch}", remedy=_AGAIN)
            shape, wanted = self._tensors[key].shape, tuple(parameter.shape)
            if shape != wanted and (uniform or len(shape) != len(wanted)):
                got = f"shape {shape}"
                raise LessenError(f"{self.label}: {key}", got=got, wanted=f"{wanted} by its metadata", remedy=_AGAIN)
            self._names[name] = key
        extra = sorted(self._tensors.keys() - self._names.values() - {"rope_freqs.weight"})
        if extra:
            got = f"{len(extra)} tensors it has no place for ({extra[0]})"
            remedy = "this variant of the architecture is not supported; give the Hugging Face directory"
            raise LessenError(self.label, got=got, wanted=f"the tensors of {arch}", remedy=remedy)

    def _tokenizer_folder(self) -> Path:
        """Tokenizer files made from the metadata, kept in the user's cache because making them takes many seconds."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lessen" / "tokenizers"
        folder = cache / self.fingerprint()
        if folder.exists():
            return folder
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name, local_files_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            remedy = "give the Hugging Face directory of the model"
            raise LessenError(
                self.label, got=f"tokenizer metadata that does not load ({reason})", wanted="a tokenizer", remedy=remedy
            ) from error
        aside = None
        try:
            cache.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(dir=cache))
            tokenizer.save_pretrained(aside)
            aside.rename(folder)
        except OSError as error:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            if not folder.exists():  # another process may have been first
                got = f"no way to write ({error.strerror})"
                raise LessenError(str(cache), got=got, wanted="a cache directory", remedy="set XDG_CACHE_HOME to one") from None
        return folder


_AGAIN = "copy or download the file again"


def _unpermuted(tensor: Tensor, head_dim: int) -> Tensor:
    rows = tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def _parse(path: Path) -> tuple[Metadata, dict[str, Stored], int]:
    """Metadata (without the token tables), tensors, and the size of everything before the data."""
    try:
        from gguf import GGUFReader
    except ImportError:
        remedy = "pip install 'lessen[gguf]'"
        raise LessenError(str(path), got="no gguf package", wanted="it to read GGUF files", remedy=remedy) from None
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(_TABLES)}
        tensors = {
            item.name: Stored(item.tensor_type, int(item.data_offset), int(item.n_bytes), tuple(int(n) for n in reversed(item.shape)))
            for item in reader.tensors
        }
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        got = f"{path.stat().st_size} bytes that end or break too early ({type(error).__name__})"
        raise LessenError(str(path), got=got, wanted="a whole GGUF file", remedy=_AGAIN) from None
    end = max((item.start + item.size for item in tensors.values()), default=0)
    if not tensors or end > path.stat().st_size:
        raise LessenError(str(path), got=f"{path.stat().st_size} bytes", wanted=f"{end} as its header says", remedy=_AGAIN)
    return metadata, tensors, min(item.start for item in tensors.values())


_TABLES = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
