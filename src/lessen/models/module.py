"""A module in memory as a Checkpoint, and `package.module:factory` references that make one."""

import copy
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.edit import Quantize
from lessen.errors import LessenError, UsageError, nearest
from lessen.models.huggingface import copy_tokenizer_files, load_tokenizer
from lessen.models.skeleton import empty
from lessen.models.tensors import checked


class InMemory:
    """See `Checkpoint`. The module is read, never changed; change it yourself only between runs.

    Args:
        module: a causal LM with a Hugging Face style `config` (anything with `to_dict`, or a dict).
        label: what to call it in messages.

    Raises:
        UsageError: not a module, or one without a configuration.
    """

    def __init__(self, module: nn.Module, label: str | None = None):
        self.label = label or type(module).__name__
        if not isinstance(module, nn.Module):
            got = f"a {type(module).__name__}"
            raise UsageError(self.label, got=got, wanted="a torch.nn.Module", remedy="return the model itself")
        config = getattr(module, "config", None)
        if not isinstance(config, dict) and not hasattr(config, "to_dict"):
            remedy = "set model.config to a transformers configuration or a dict with model_type"
            raise UsageError(self.label, got=f"config of type {type(config).__name__}", wanted="a causal LM's configuration", remedy=remedy)
        self.module = module
        self.config = _as_json(config, module)
        self._tensors: dict[str, Tensor] = {}
        self.tied: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, tensor in module.state_dict(keep_vars=True).items():
            if tensor.is_meta:
                raise UsageError(f"{self.label}: {name}", got="a tensor on the meta device", wanted="a model that holds its weights")
            if (stored := first.setdefault(id(tensor), name)) == name:
                self._tensors[name] = tensor
            else:
                self.tied[name] = stored
        self.names = list(self._tensors)
        self.size_bytes = sum(tensor.nbytes for tensor in self._tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).shape)

    def read(self, name: str) -> Tensor:
        tensor = checked(self._tensor(name).detach().cpu(), f"{self.label}: {name}")
        kept = tensor.dtype in (torch.float16, torch.bfloat16) or not tensor.is_floating_point()
        return tensor.clone() if kept else tensor.to(torch.float32, copy=True)

    def quantized(self, name: str) -> Quantize | None:
        return None

    def skeleton(self) -> nn.Module:
        bare = {
            id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            for parameter in self.module.parameters()
        }
        model = copy.deepcopy(self.module, bare)
        empty(model)
        return model.eval()

    def tokenizer(self) -> Any:
        return load_tokenizer(self._folder(), self.label)

    def copy_tokenizer(self, folder: Path) -> None:
        copy_tokenizer_files(self._folder(), folder)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        state = sha256(f"{sorted((k, str(v)) for k, v in self.config.items())}".encode())
        for name, tensor in self._tensors.items():
            flat = tensor.detach().reshape(-1)
            stride = max(1, flat.numel() // 16384)
            sample = flat[::stride].contiguous().view(torch.uint8).cpu()
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
        return state.hexdigest()

    def _tensor(self, name: str) -> Tensor:
        name = self.tied.get(name, name)
        if name not in self._tensors:
            raise LessenError(self.label, got=f"a request for {name}", wanted=f"one of its {len(self.names)} tensors")
        return self._tensors[name]

    def _folder(self) -> Path:
        """The directory that the model was loaded from, where its tokenizer lies."""
        return Path(getattr(getattr(self.module, "config", None), "_name_or_path", "") or os.devnull)


def from_factory(ref: str) -> InMemory:
    """Import `package.module`, call `factory()` and take the causal LM it returns.

    Raises:
        UsageError: the module or attribute does not exist, or what it returns is no causal LM.
    """
    return InMemory(made(ref), ref)


def made(ref: str) -> nn.Module:
    """Import `package.module`, call `factory()` and take the module it returns, of whatever kind.

    Modules in the current directory are found too, as with `python -m`.

    Raises:
        UsageError: the module or attribute does not exist, or what it returns is no module.
    """
    with _importing_from_here():
        found = _attribute(ref)
        if not isinstance(found, nn.Module):
            if not callable(found):
                raise UsageError(ref, got=f"a {type(found).__name__}", wanted="a function that returns a causal LM")
            try:
                found = found()
            except LessenError:
                raise
            except Exception as error:
                raise LessenError(ref, got=_first_line(error), wanted="a factory that works without arguments") from error
    if not isinstance(found, nn.Module):
        raise UsageError(ref, got=f"a factory that returns {type(found).__name__}", wanted="a torch.nn.Module", remedy="return the model")
    return found


def imported(ref: str) -> Any:
    """What `package.module:name` names.

    Raises:
        UsageError: the module or attribute does not exist. LessenError: importing it fails.
    """
    with _importing_from_here():
        return _attribute(ref)


def _attribute(ref: str) -> Any:
    path, _, attribute = ref.partition(":")
    found: Any = _imported(path, ref)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")] or ["nothing"]
            raise UsageError(ref, got=f"no {part} in {path}", wanted="a factory", remedy=nearest(part, names)[:200])
        found = getattr(found, part)
    return found


def _imported(path: str, ref: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            got = f"an import of {error.name} that fails"
            raise LessenError(ref, got=got, wanted="an importable module", remedy="install it") from error
        remedy = "install the package or run from the directory that holds it"
        raise UsageError(ref, got=f"no module {error.name}", wanted="an importable module", remedy=remedy) from None
    except Exception as error:
        raise LessenError(ref, got=_first_line(error), wanted="an importable module") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """The current directory at the end of the import path, as with `python -m`."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _as_json(config: Any, module: nn.Module) -> dict[str, Any]:
    """What `config.json` of this module would hold."""
    if isinstance(config, dict):
        data = dict(config)
    else:
        data = json.loads(config.to_json_string()) if hasattr(config, "to_json_string") else config.to_dict()
    if not data.get("architectures"):
        data["architectures"] = [type(module).__name__]
    data.pop("_name_or_path", None)
    return data
