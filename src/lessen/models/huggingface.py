"""A Hugging Face model directory (`config.json`, safetensors, tokenizer files) as a Checkpoint."""

import re
import shutil
from collections.abc import Callable
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lessen.core.edit import Quantize
from lessen.errors import LessenError
from lessen.models.skeleton import skeleton
from lessen.models.tensors import TensorFiles, checked, read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "image_processor_config.json")
_TABLES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


class Repacked(LessenError):
    """A directory whose tensors transformers puts together while it loads them, so that none can be read for itself (exit code 1)."""


class HuggingFace:
    """See `Checkpoint`. Only headers are read until a tensor is asked for.

    Raises:
        LessenError: no `config.json`, weights missing or truncated, unknown architecture, or tensors that do not fit it.
    """

    def __init__(self, folder: Path):
        self.label = str(folder)
        self.folder = folder
        if not (folder / "config.json").exists():
            files = sorted(folder.glob("*.gguf"))
            remedy = f"give the file {files[0]}" if files else "give the directory that save_pretrained wrote"
            raise LessenError(self.label, got="no config.json", wanted="a Hugging Face model directory", remedy=remedy)
        self.config: dict[str, Any] = self._read_config()
        self._files = TensorFiles.of_folder(folder)
        self.files = self._files.files
        self._shapes = self._stored_shapes()
        self._stored: dict[str, str] = {}
        self.names: list[str] = []
        self.tied: dict[str, str] = {}
        self._match()
        self.size_bytes = self._files.size_bytes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[self._key(name)]

    def read(self, name: str) -> Tensor:
        tensor = checked(self._read_stored(self._key(name)), f"{self.label}: {name}")
        return tensor.float() if tensor.dtype not in _KEPT_DTYPES else tensor

    def quantized(self, name: str) -> Quantize | None:
        return None

    def skeleton(self) -> nn.Module:
        model = skeleton(self.config, self.label)
        add_generation_config(model, self.folder)
        return model

    def tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self.label)

    def copy_tokenizer(self, folder: Path) -> None:
        copy_tokenizer_files(self.folder, folder)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return sha256(f"{self._files.digest()}{sorted(self.config.items())}".encode()).hexdigest()

    def _read_config(self) -> dict[str, Any]:
        config = read_json(self.folder / "config.json")
        method = (config.get("quantization_config") or {}).get("quant_method")
        if method:
            got = f"weights already quantized with {method}"
            raise LessenError(self.label, got=got, wanted="float weights", remedy="give the original model")
        return config

    def _stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape of every weight in the files."""
        return {key: entry.shape for key, entry in self._files.items()}

    def _read_stored(self, key: str) -> Tensor:
        return self._files.read(key)

    def _key(self, name: str) -> str:
        name = self.tied.get(name, name)
        if name not in self._stored:
            raise LessenError(self.label, got=f"a request for {name}", wanted=f"one of its {len(self.names)} tensors")
        return self._stored[name]

    def _match(self) -> None:
        """Find each tensor of the module in the files, and which share one stored tensor."""
        model = self.skeleton()
        where = model.state_dict(keep_vars=True)
        self._stored = self._stored_names(model, set(where))
        groups: dict[int, list[str]] = {}
        for name, tensor in where.items():
            groups.setdefault(id(tensor), []).append(name)
        for group in groups.values():
            present = [name for name in group if name in self._stored]
            if not present:
                if isinstance(where[group[0]], nn.Parameter):
                    raise self._missing(group[0])
                continue
            same = [name for name in present[1:] if self._equal(present[0], name)]
            if len(present) - len(same) > 1:
                self.config = {**self.config, "tie_word_embeddings": False}
                same = []
            self.names += [name for name in present if name not in same]
            self.tied |= {name: present[0] for name in group if name in same or name not in present}
        for name in self.names:
            if (got := self._shapes[self._stored[name]]) != (wanted := tuple(where[name].shape)):
                remedy = "config.json and the weights belong to different models"
                raise LessenError(f"{self.label}: {name}", got=f"shape {got}", wanted=f"{wanted} by config.json", remedy=remedy)

    def _stored_names(self, model: nn.Module, wanted: set[str]) -> dict[str, str]:
        """Name in the module -> name in the files; files of a bare base model lack its prefix, old ones have other names."""
        rename = _renaming(model)
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        buffers = {name for name, _ in model.named_buffers()}
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        stored: dict[str, str] = {}
        extra: list[str] = []
        for key in self._shapes:
            name = next((n for n in (key, prefix + key, rename(key)) if n in wanted or n in buffers), key)
            if name in wanted:
                stored[name] = key
            elif name not in buffers and not any(re.search(pattern, key) for pattern in ignored) and not _STALE.search(key):
                extra.append(key)
        if extra and _repacked(model, extra):
            got = f"tensors that transformers packs into one while it loads them ({extra[0]})"
            remedy = "lessen.load and lessen prune take it; compress streams what is stored as it runs"
            raise Repacked(self.label, got=got, wanted="one tensor for one", remedy=remedy)
        if extra:
            got = f"{len(extra)} tensors it has no place for ({extra[0]})"
            missing = next((name for name in wanted if name not in stored), None)
            wish = f"the tensors of {type(model).__name__}" + (f" ({missing} is missing)" if missing else "")
            raise LessenError(self.label, got=got, wanted=wish, remedy="check model_type in config.json")
        return stored

    def _equal(self, a: str, b: str) -> bool:
        return torch.equal(self._read_stored(self._stored[a]), self._read_stored(self._stored[b]))

    def _missing(self, name: str) -> LessenError:
        head = name.startswith(("lm_head.", "embed_out.")) and not self.config.get("tie_word_embeddings", True)
        remedy = "copy or download the model again"
        if head:
            remedy = "if the output head is the embedding, set tie_word_embeddings to true in config.json"
        return LessenError(self.label, got=f"no tensor {name} in its weights", wanted="every tensor of the model", remedy=remedy)


_KEPT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
# Constant tables that older versions of transformers saved beside the weights.
_STALE = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")


def _renaming(model: nn.Module) -> Callable[[str], str]:
    """How transformers renames the tensors of this model's published files while loading."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # before transformers 5 names were those of the files
        return lambda key: key
    steps = [step for step in get_model_conversion_mapping(cast(Any, model)) if isinstance(step, WeightRenaming)]

    def rename(key: str) -> str:
        for step in steps:
            key = step.rename_source_key(key)[0]
        return key

    return rename


def _repacked(model: nn.Module, keys: list[str]) -> bool:
    """Whether tensors of the files become parts of others, experts of a pack for example."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:
        return False
    steps = [step for step in get_model_conversion_mapping(cast(Any, model)) if isinstance(step, WeightConverter)]
    patterns = [re.escape(p).replace(r"\*", r"\d+") for step in steps for p in step.source_patterns]
    return any(re.search(pattern, key) for pattern in patterns for key in keys)


def load_tokenizer(folder: Path, label: str) -> Any:
    """The tokenizer of a directory; LessenError that says what to add when there is none."""
    if not any((folder / name).exists() for name in _TABLES):
        remedy = "copy tokenizer.json and tokenizer_config.json of the original model into it"
        raise LessenError(label, got="no tokenizer files", wanted="tokenizer.json", remedy=remedy)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        remedy = "copy the tokenizer files of the original model again"
        raise LessenError(label, got=f"a tokenizer that does not load ({reason})", wanted="tokenizer files", remedy=remedy) from error


def copy_tokenizer_files(source: Path, folder: Path) -> None:
    """Copy the tokenizer files and the generation settings that `source` has into `folder`."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def add_generation_config(model: nn.Module, folder: Path) -> None:
    """Let `generate` know what `generation_config.json` says."""
    if (folder / "generation_config.json").exists() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        settings: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
        model.generation_config = settings
