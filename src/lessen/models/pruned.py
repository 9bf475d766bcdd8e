"""Pruned models of any architecture on disk: weights as they are, and the edits by which their shapes come about.

Widths may differ from layer to layer, which no configuration file can say. So the directory holds what the model was made by, and what
was then done to it:

    model.safetensors    every tensor of the state, shared ones once, in the shapes that they have
    edits.safetensors    the decisions: kept indices, and the numbers of modules that follow from them
    config.json          the configuration before the cut, where the model has one; if the smaller one's makes it, that one, and no edits
    tokenizer.json ...   the files of tokenizer and processor, where the model was loaded from a directory that has them
    lessen.json          "pruned": {"made_by": "transformers:LlamaForCausalLM" or "package.module:factory"}

`load` makes the model that was cut, cuts it the same way, and fills it. Nothing is pickled.
"""

import copy
import functools
import importlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from lessen.core.apply import apply
from lessen.core.config import depth_field
from lessen.core.edit import Drop, Edit, Resize, load_edits, save_edits
from lessen.core.modules import EXPERTS
from lessen.core.stock import is_stock
from lessen.errors import LessenError, UsageError, one_line
from lessen.models.huggingface import PROCESSOR_FILES, TOKENIZER_FILES
from lessen.models.module import imported


def is_pruned(folder: Path) -> bool:
    """Whether `save` wrote the directory, or what is left of it."""
    if (folder / "edits.safetensors").is_file():
        return True
    try:
        return "pruned" in json.loads((folder / "lessen.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def save(model: nn.Module, edits: Sequence[Edit], folder: Path, made_by: str | None = None, told: Mapping[str, Any] | None = None) -> None:
    """Write a model that `lessen.apply(model, edits)` made smaller.

    Args:
        model: the smaller model.
        edits: what made it smaller.
        folder: where to; it must not exist.
        made_by: "package.module:factory" that makes the model before the cut; None for classes of transformers, which are made from
            their configuration.
        told: what else `lessen.json` is to say.

    Raises:
        UsageError: the directory exists, or nothing says how the model is made.
    """
    if folder.exists():
        raise UsageError(str(folder), got="a directory that exists", wanted="one to be made", remedy="choose another or remove it")
    kind = type(model)
    if made_by is None:
        if not kind.__module__.startswith("transformers."):
            got = f"a {kind.__name__}, which is no class of transformers"
            raise UsageError(str(folder), got=got, wanted="how to make it", remedy='made_by="package.module:factory"')
        made_by = f"transformers:{kind.__name__}"
    _check_maker(made_by, model, edits)
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    state = model.state_dict()
    if made_by.startswith("transformers:") and is_stock(model):
        edits = ()  # its configuration alone makes it, and stock loaders read the directory
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        save_file({name: state[name].contiguous().clone() for name in first.values()}, aside / "model.safetensors", {"format": "pt"})
        save_edits(aside / "edits.safetensors", edits)
        if made_by.startswith("transformers:"):
            config = _before(model, edits)
            source, config._name_or_path = Path(getattr(config, "_name_or_path", "") or os.devnull), ""
            (aside / "config.json").write_text(config.to_json_string(use_diff=False))
            for name in (*TOKENIZER_FILES, *PROCESSOR_FILES):
                if (source / name).is_file():
                    shutil.copyfile(source / name, aside / name)
        dtypes: Counter[str] = Counter()
        for tensor in model.parameters():
            dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.is_floating_point()
        dtype = next((name for name, count in dtypes.most_common(1) if count), None)
        about: dict[str, Any] = {"pruned": {"made_by": made_by, "dtype": dtype}}
        if experts := getattr(getattr(model, "config", None), EXPERTS, None):
            about["pruned"]["experts"] = experts
        (aside / "lessen.json").write_text(json.dumps({**about, **(told or {})}, indent=1) + "\n")
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _before(model: nn.Module, edits: Sequence[Edit]) -> Any:
    """The configuration of the whole model with the numbers that edits changed as they were."""
    config: Any = copy.deepcopy(getattr(model, "config", None))
    for edit in reversed(edits):
        if isinstance(edit, Resize) and edit.name.startswith("config."):
            *way, key = edit.name.removeprefix("config.").split(".")
            owner = functools.reduce(getattr, way, config)
            key, _, index = key.partition("[")
            if index:
                values = list(getattr(owner, key))
                values[int(index[:-1])] = edit.before
                setattr(owner, key, type(getattr(owner, key))(values))
            else:
                setattr(owner, key, edit.before)
    return _as_deep(config, edits)


def _as_deep(config: Any, edits: Sequence[Edit]) -> Any:
    """The configuration with the blocks that were dropped; what lists say of these is their neighbours', as they are dropped again."""
    field = depth_field(config.to_dict()) if hasattr(config, "to_dict") else None
    drops = [int(edit.unit.name.rpartition(".")[2]) for edit in edits if isinstance(edit, Drop)]
    if field is None or not drops:
        return config
    depth = getattr(config, field)
    lists = {key: list(v) for key, v in vars(config).items() if "layer" in key and isinstance(v, list | tuple) and len(v) == depth}
    setattr(config, field, depth + len(drops))
    for key, values in lists.items():
        for place in reversed(drops):
            values.insert(place, values[min(place, len(values) - 1)])
        setattr(config, key, values)
    return config


def load(folder: Path) -> nn.Module:
    """The smaller model that `save` wrote, in evaluation mode.

    Raises:
        LessenError: the files do not belong together.
    """
    import torch

    about = _about(folder)
    state = _read(folder / "model.safetensors", load_file)
    edits = _read(folder / "edits.safetensors", load_edits)
    with torch.random.fork_rng(devices=[]):
        model = _made(about["made_by"], folder)
    if about.get("dtype"):
        model = model.to(getattr(torch, about["dtype"]))
    model = apply(model, edits)
    if about.get("experts"):
        model.set_experts_implementation(about["experts"])  # pyright: ignore[reportCallIssue]
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)  # what a router keeps in another type
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if wrong := next((name for name in state if shapes.get(name, state[name].shape) != tuple(state[name].shape)), None):
        got, wanted = f"tensor {wrong} of shape {tuple(state[wrong].shape)}", f"{shapes[wrong]}, as {about['made_by']} makes it"
        raise LessenError(str(folder), got=got, wanted=wanted, remedy="save it again, with the made_by= that made the model")
    missing, unexpected = model.load_state_dict(state, strict=False)
    shared = {name for name, tensor in model.state_dict(keep_vars=True).items() if name in missing and _stored(model, name, tensor, state)}
    if unexpected or set(missing) - shared:
        name = next(iter([*unexpected, *(set(missing) - shared)]))
        raise LessenError(str(folder), got=f"tensor {name} on one side only", wanted="the tensors of the model", remedy="save it again")
    return model.eval()


def history(folder: Path) -> tuple[list[Edit], str]:
    """What was done to the model of a directory that `save` wrote, and what makes it as it was before."""
    return _read(folder / "edits.safetensors", load_edits), _about(folder)["made_by"]


def _about(folder: Path) -> dict[str, Any]:
    """What `lessen.json` says of how the model is made."""
    import torch

    path = folder / "lessen.json"
    try:
        about = json.loads(path.read_text())["pruned"]
        made_by, dtype = about["made_by"], about.get("dtype")
        fine = re.fullmatch(_MAKER, made_by) and (dtype is None or isinstance(getattr(torch, dtype), torch.dtype))
    except Exception as error:
        raise LessenError(str(path), got=one_line(error), wanted="what lessen.save wrote", remedy=_AGAIN) from error
    if not fine:
        raise LessenError(str(path), got=f"made_by {made_by!r}, dtype {dtype!r}", wanted="how the model is made", remedy=_AGAIN)
    return about


_MAKER = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_AGAIN = "copy the directory again, or save the model again"


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What a file of the directory holds."""
    try:
        return read(path)
    except Exception as error:
        raise LessenError(str(path), got=one_line(error), wanted="what lessen.save wrote", remedy=_AGAIN) from error


def _stored(model: nn.Module, name: str, tensor: Any, state: Any) -> bool:
    """Whether a tensor is stored under another name that shares it."""
    return any(other is tensor and key in state for key, other in model.state_dict(keep_vars=True).items() if key != name)


def _check_maker(made_by: str, model: nn.Module, edits: Sequence[Edit]) -> None:
    """Raise unless what is to make the model makes one that the edits turn into it."""
    import torch

    where = "save(made_by)"
    if not re.fullmatch(_MAKER, made_by):
        raise UsageError(where, got=repr(made_by), wanted='"package.module:factory"')
    if made_by.startswith("transformers:"):
        if made_by != f"transformers:{type(model).__name__}" or not hasattr(model, "config"):
            remedy = "leave made_by out for classes of transformers, and name a factory for others"
            raise UsageError(where, got=repr(made_by), wanted=f"what makes a {type(model).__name__}", remedy=remedy)
        return
    try:
        with torch.random.fork_rng(devices=[]):
            made = apply(_made(made_by, Path()), edits)
    except LessenError as error:
        got = f"{made_by}, which does not make the model as it was before the cut: {error.where}: got {error.got}"
        raise UsageError(where, got=got, wanted="its factory", remedy="name a function without arguments that returns the model") from error
    shapes = [{name: tuple(tensor.shape) for name, tensor in one.state_dict().items()} for one in (made, model)]
    if name := next((name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)), None):
        got = f"{made_by}, which after the edits has {name} of shape {shapes[0].get(name, 'none')}"
        raise UsageError(
            where,
            got=got,
            wanted=f"{shapes[1].get(name, 'no such tensor')}",
            remedy="give all edits that were made, and the factory of the whole",
        )


def _made(made_by: str, folder: Path) -> nn.Module:
    path, _, name = made_by.partition(":")
    try:
        if path != "transformers":
            made: Any = imported(made_by)()
            if not isinstance(made, nn.Module):
                raise TypeError(f"{name} returns a {type(made).__name__}, no torch.nn.Module")
            return made
        found: Any = getattr(importlib.import_module(path), name)
        config = found.config_class.from_json_file(folder / "config.json")
        return found._from_config(config) if hasattr(found, "_from_config") else found(config)
    except Exception as error:
        raise LessenError(
            made_by, got=one_line(error), wanted="the model before the cut", remedy="install what it needs, in the same versions"
        ) from error
