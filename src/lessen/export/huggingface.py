"""A Hugging Face directory that stock `transformers` (and vLLM) opens: safetensors with `compressed-tensors` packing.

Linear layers are stored `pack-quantized`: codes offset to be unsigned, written as one dense bit string per row in int32 words,

    X.weight_packed      int32 "out ceil(in * bits / 32)"
    X.weight_scale       "out group"
    X.weight_zero_point  int32, packed in the same way along the output axis (asymmetric, zero_points="packed" only)
    X.weight_shape       int64 [out, in]

Zero points are the exception: transformers 5.23 expects them unpacked when it prepares a model and packed when it decodes, so an
asymmetric `pack-quantized` layer opens only in vLLM or with `CompressedTensorsConfig(dequantize=True)`. By default they are folded
into the codes: code - zero is a symmetric code one bit wider (or as wide, where the values happen to fit). That is exact and opens
everywhere; `zero_points="packed"` keeps them apart.

A quantized embedding cannot be packed: while loading, transformers insists that every `nn.Embedding` has an attribute `weight`. It
is stored `int-quantized` instead, where `X.weight` itself holds the codes as int8. A tied output head shares them; it only needs its
own copy of the scales (3 % more at groups of 32), because compressed-tensors decompresses each module from its own scales. This is exact
and the smallest that stock transformers loads; `embedding="float16"` writes a dense table instead, for runtimes that know neither.

Formats may differ from tensor to tensor: each gets a config group, the largest one under the target `Linear`, the others by name.
With several groups `from_pretrained` must not be given `CompressedTensorsConfig(dequantize=True)`: transformers 5.23 then decodes
all tensors with the first group's scheme (and in float16, the type of the scales). The default, which decompresses at the first
forward pass in the dtype of the model, is right; in float32 it gives bit for bit the weights of the codes.

Layout: https://github.com/vllm-project/compressed-tensors (pack_quantized, naive_quantized), version 0.20.
"""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lessen.core.edit import Quantize
from lessen.core.event import Event, Listener
from lessen.core.record import Run
from lessen.errors import LessenError
from lessen.export.files import SafetensorsWriter
from lessen.export.grid import Grid, grid_of
from lessen.export.parity import NoRuntime, version
from lessen.formats import spec
from lessen.formats.affine import Int, PerGroup, PerRow
from lessen.formats.pack import pack_words, unpack_words
from lessen.models.checkpoint import Checkpoint

Scheme = tuple[str, int, int | None, bool]
"""(container, bits, group or None for one scale per row, symmetric): tensors of one scheme share a config group."""


@dataclass
class _Groups:
    """Which module is stored how, gathered while writing."""

    linears: set[str]
    members: dict[Scheme, list[str]] = field(default_factory=dict)

    def add(self, scheme: Scheme, modules: list[str]) -> None:
        self.members.setdefault(scheme, []).extend(modules)

    def config(self) -> dict[str, Any]:
        """`quantization_config` of config.json."""
        quantized = {module for modules in self.members.values() for module in modules}
        packed = [scheme for scheme in self.members if scheme[0] == "pack-quantized"]
        largest = max(packed, key=lambda scheme: len(self.members[scheme]), default=None)
        groups = {}
        # `Linear` comes last: compressed-tensors warns about names that follow a class which matches the same modules.
        for i, (scheme, modules) in enumerate(sorted(self.members.items(), key=lambda item: item[0] == largest)):
            container, bits, group, symmetric = scheme
            groups[f"group_{i}"] = {
                "targets": ["Linear"] if scheme == largest else modules,
                "format": container,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "channel" if group is None else "group",
                    "group_size": group,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        containers = {scheme[0] for scheme in self.members}
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": containers.pop() if len(containers) == 1 else "mixed-precision",
            "config_groups": groups,
            "ignore": sorted(self.linears - quantized),
        }


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    embedding: Literal["codes", "float16"] = "codes",
    zero_points: Literal["folded", "packed"] = "folded",
    shard_bytes: int = 5 << 30,
    listen: Listener | None = None,
) -> list[str]:
    """Write the directory; one tensor in memory at a time.

    Args:
        checkpoint: plain, pruned or quantized.
        folder: does not exist yet, or is empty.
        embedding: "codes" keeps a quantized embedding quantized; "float16" stores it dense, rounded.
        zero_points: "folded" into the codes, for transformers, or "packed" beside them, for vLLM.
        shard_bytes: begin a further safetensors file beyond this size.
        listen: told about every tensor.

    Returns:
        Notes: choices that the reader of the result should know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    modules = dict(checkpoint.skeleton().named_modules())
    groups = _Groups({name for name, module in modules.items() if isinstance(module, nn.Linear)})
    notes: dict[str, None] = {}
    formats: dict[str, Any] = {}
    room = sum(4 * (len(name) + 160) for name in checkpoint.names) + 4096
    with SafetensorsWriter(folder, room, shard_bytes) as writer:
        for done, name in enumerate(checkpoint.names):
            edit = checkpoint.quantized(name)
            if edit is None:
                writer.add(name, checkpoint.read(name))
            else:
                module = modules.get(name.removesuffix(".weight"))
                grid = stored_grid(edit, module, zero_points)
                notes |= dict.fromkeys(grid.notes)
                if isinstance(module, nn.Embedding) and embedding == "float16":
                    writer.add(name, _rounded(grid, notes))
                    continue
                formats[name] = _format(grid, edit)
                for key, tensor in _stored(checkpoint, grid, module, groups):
                    writer.add(key, tensor)
            if listen:
                listen(Event("export huggingface", done + 1, len(checkpoint.names)))
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    if groups.members:
        config["quantization_config"] = groups.config()
        if str(config.get("dtype", config.get("torch_dtype"))) == "bfloat16":
            notes[
                "config.json says bfloat16: transformers rounds the scales to it; load with dtype=torch.float32 for the exact weights"
            ] = None
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    checkpoint.copy_tokenizer(folder)
    if formats:
        Run(source={"model": checkpoint.label}, formats=formats, notes=list(notes)).save(folder / "lessen.json")
    return list(notes)


def fits(checkpoint: Checkpoint, **_: Any) -> None:
    """Raise what `write` would say of the formats, without reading a weight."""
    modules = dict(checkpoint.skeleton().named_modules())
    for name in checkpoint.names:
        if edit := checkpoint.quantized(name):
            stored_grid(edit, modules.get(name.removesuffix(".weight")), "folded")


def stored_grid(edit: Quantize, module: nn.Module | None, zero_points: str) -> Grid:
    """The codes as they go into the file."""
    grid = grid_of(edit)
    if not isinstance(module, nn.Linear | nn.Embedding):
        got = f"codes of a {type(module).__name__}"
        raise LessenError(grid.name, got=got, wanted="a Linear or an Embedding", remedy="leave this tensor out of the recipe")
    if grid.symmetric or zero_points == "packed" or isinstance(module, nn.Embedding):
        return grid
    for bits in range(grid.bits, 9):
        folded = grid.folded(bits)
        if folded is not None:
            return folded
    remedy = "quantize it with symmetric=true, or with 7 bits"
    raise LessenError(grid.name, got="asymmetric 8-bit codes", wanted="code - zero within 8 bits", remedy=remedy)


def _format(grid: Grid, edit: Quantize) -> dict[str, Any]:
    granularity = PerRow() if grid.scale.shape[1] == 1 else PerGroup(grid.group)
    full_range = not isinstance(edit.format, Int) or edit.format.full_range or not edit.format.symmetric
    stored = Int(grid.bits, granularity, grid.symmetric, full_range, grid.scale.dtype)
    return spec.to_json(stored)


def _rounded(grid: Grid, notes: dict[str, None]) -> Tensor:
    dense = grid.dequantized()
    rounded = dense.half()
    error = float((rounded.float() - dense).norm() / dense.norm())
    notes[f"{grid.name}: codes dequantized and rounded to float16, relative error {error:.1e}"] = None
    return rounded


def _stored(checkpoint: Checkpoint, grid: Grid, module: nn.Module | None, groups: _Groups) -> Iterator[tuple[str, Tensor]]:
    """The tensors that stand for one quantized matrix."""
    path = grid.name.removesuffix(".weight")
    group = None if grid.scale.shape[1] == 1 else grid.group
    half = 1 << grid.bits - 1
    if isinstance(module, nn.Linear):
        groups.add(("pack-quantized", grid.bits, group, grid.symmetric), [path])
        yield f"{path}.weight_packed", pack_words(grid.codes, grid.bits)
        yield f"{path}.weight_scale", grid.scale
        if not grid.symmetric:
            yield f"{path}.weight_zero_point", pack_words(grid.zero.T, grid.bits).T
        yield f"{path}.weight_shape", torch.tensor(grid.codes.shape)
        return
    users = [path, *(alias.removesuffix(".weight") for alias, name in checkpoint.tied.items() if name == grid.name)]
    groups.add(("int-quantized", grid.bits, group, grid.symmetric), users)
    yield grid.name, (grid.codes.to(torch.int16) - half).to(torch.int8)
    for user in users:
        yield f"{user}.weight_scale", grid.scale
        if not grid.symmetric:
            yield f"{user}.weight_zero_point", (grid.zero.to(torch.int16) - half).to(torch.int8)


def codes_equal(checkpoint: Checkpoint, folder: Path, *, zero_points: str = "folded", **_: Any) -> bool:
    """Whether every tensor of the directory, read back, is bit for bit what the checkpoint holds."""
    files = sorted(folder.glob("*.safetensors"))
    stored: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            stored |= dict.fromkeys(opened.keys(), file)

    def read(key: str) -> Tensor:
        with safe_open(stored[key], "pt") as opened:
            return opened.get_tensor(key)

    modules = dict(checkpoint.skeleton().named_modules())
    for name in checkpoint.names:
        edit = checkpoint.quantized(name)
        if edit is None:
            if not torch.equal(read(name), checkpoint.read(name)):
                return False
            continue
        path = name.removesuffix(".weight")
        grid = stored_grid(edit, modules.get(path), zero_points)
        if f"{path}.weight_packed" in stored:
            codes = unpack_words(read(f"{path}.weight_packed"), grid.bits, grid.codes.shape[1])
            zero = None if grid.symmetric else unpack_words(read(f"{path}.weight_zero_point").T, grid.bits, grid.codes.shape[0]).T
        elif f"{path}.weight_scale" in stored:
            half = 1 << grid.bits - 1
            codes = (read(name).to(torch.int16) + half).to(torch.uint8)
            zero = None if grid.symmetric else (read(f"{path}.weight_zero_point").to(torch.int16) + half).to(torch.uint8)
        else:
            if not torch.equal(read(name), grid.dequantized().half()):
                return False
            continue
        if not torch.equal(codes, grid.codes) or not torch.equal(read(f"{path}.weight_scale"), grid.scale):
            return False
        if zero is not None and not torch.equal(zero, grid.zero):
            return False
    return True


def stock_shapes(checkpoint: Checkpoint) -> bool:
    """Whether an unmodified `from_pretrained` can build this model: its configuration alone gives the shapes of all tensors."""
    from lessen.models.skeleton import skeleton

    plain = {name: tuple(tensor.shape) for name, tensor in skeleton(checkpoint.config, checkpoint.label).state_dict().items()}
    return all(plain.get(name) == checkpoint.shape(name) for name in checkpoint.names)


def logits(checkpoint: Checkpoint, folder: Path, probe: Tensor, **_: Any) -> tuple[Tensor, str]:
    """Logits of stock transformers on the directory; NoRuntime where it cannot open it."""
    runtime = version("transformers")
    if "quantization_config" in json.loads((folder / "config.json").read_text()):
        runtime += f", {version('compressed-tensors')}"
    if not stock_shapes(checkpoint):
        raise NoRuntime("layers have different widths, which config.json cannot say: lessen.load opens it, stock transformers does not")
    from transformers import AutoModelForCausalLM

    # compressed-tensors draws progress bars without being asked.
    with redirect_stderr(io.StringIO()), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        return model(probe, use_cache=False).logits.float(), runtime
