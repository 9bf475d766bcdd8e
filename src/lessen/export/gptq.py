"""The GPTQ layout, which vLLM, SGLang, ExLlama, onnxruntime-genai's builder and OpenVINO's converter read.

    X.qweight   int32 "in * bits / 32  out"      codes of one output after another along the input, as one dense bit string
    X.qzeros    int32 "group  out * bits / 32"   zero - 1 (format version 1), packed along the output
    X.scales    float16 "group out"
    X.g_idx     int32 "in"                       group of each input

Codes are unsigned, so symmetric ones get the zero 2^(bits-1). Version 1 cannot store the zero 0; such a group is reflected, which
changes nothing:  s * u  =  -s * ((2^bits - 1 - u) - (2^bits - 1)).

One width and one group size hold for the whole file, so the widest code and the finest group decide, exactly (see `grid`). The layout knows
linear layers only: embeddings are stored dense, as is the convention in float16, and the error of that is measured and said. So is a head
that would make all others wider (8 bits over layers of 4), as `"lm_head": false` says in most published files.

Layout: https://github.com/AutoGPTQ/AutoGPTQ (v0.7), https://github.com/ModelCloud/GPTQModel
"""

import json
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lessen.core.event import Event, Listener
from lessen.errors import LessenError
from lessen.export.files import SafetensorsWriter
from lessen.export.grid import Grid, grid_of
from lessen.export.parity import NoRuntime, version
from lessen.formats.pack import pack_words, unpack_words
from lessen.models.checkpoint import Checkpoint

WIDTHS = (2, 3, 4, 8)
_HEAD = "lm_head.weight"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dense: Literal["float16", "bfloat16", "float32"] = "float16",
    shard_bytes: int = 5 << 30,
    listen: Listener | None = None,
) -> list[str]:
    """Write the directory; one tensor in memory at a time.

    Args:
        checkpoint: with quantized linear layers.
        folder: does not exist yet, or is empty.
        dense: type of everything that is not a quantized linear layer.
        shard_bytes: begin a further safetensors file beyond this size.
        listen: told about every tensor.

    Returns:
        Notes: choices that the reader of the result should know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bits, group, linears = _common(checkpoint)
    notes: dict[str, None] = {}
    symmetric, worst = True, 0.0
    room = sum(4 * (len(name) + 160) for name in checkpoint.names) + 4096
    with SafetensorsWriter(folder, room, shard_bytes) as writer:
        for done, name in enumerate(checkpoint.names):
            if name in linears:
                grid = _fitted(checkpoint, name, bits, group)
                notes |= dict.fromkeys(grid.notes)
                symmetric &= grid.symmetric
                for key, tensor in _stored(grid).items():
                    writer.add(f"{name.removesuffix('weight')}{key}", tensor)
            else:
                tensor = checkpoint.read(name)
                writer.add(name, tensor.to(_DTYPES[dense]))
                worst = max(worst, _error(tensor, tensor.to(_DTYPES[dense])))
            if listen:
                listen(Event("export gptq", done + 1, len(checkpoint.names)))
    if worst:
        notes[f"tensors outside the layout are {dense}, largest relative error {worst:.1e}"] = None
    quantization = _settings(checkpoint, bits, group, symmetric, linears)
    config = {key: value for key, value in checkpoint.config.items() if key not in ("quantization_config", "torch_dtype")}
    config |= {"dtype": dense, "torch_dtype": dense, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "quantize_config.json").write_text(json.dumps(quantization, indent=2) + "\n")
    checkpoint.copy_tokenizer(folder)
    return list(notes)


def fits(checkpoint: Checkpoint) -> None:
    """Raise what `write` would say of the formats, without reading a weight."""
    bits, group, linears = _common(checkpoint)
    for name in sorted(linears):
        _fitted(checkpoint, name, bits, group)


def _linears(checkpoint: Checkpoint) -> dict[str, bool]:
    """Weights of linear layers -> whether they are quantized; a tied head is no layer of its own."""
    modules = checkpoint.skeleton().named_modules()
    names = {f"{path}.weight" for path, module in modules if isinstance(module, nn.Linear)}
    return {name: checkpoint.quantized(name) is not None for name in checkpoint.names if name in names}


def _common(checkpoint: Checkpoint) -> tuple[int, int | None, set[str]]:
    """Width and group that hold all quantized linear layers (None: one scale to a row), and their names."""
    linears = {name for name, quantized in _linears(checkpoint).items() if quantized}
    if not linears:
        remedy = "export to huggingface, or quantize first"
        raise LessenError(checkpoint.label, got="no quantized linear layer", wanted="codes for GPTQ", remedy=remedy)
    bits, group, by_row = 2, 0, True
    for name in sorted(linears, key=lambda name: (name == _HEAD, name)):
        edit = checkpoint.quantized(name)
        assert edit is not None, "it is one of the quantized ones"
        grid = grid_of(edit)
        if name == _HEAD and group and (grid.bits > _width(bits) or grid.group % group):
            linears = linears - {_HEAD}
            continue
        bits, group = max(bits, grid.bits), gcd(group, grid.group)
        by_row &= grid.scale.shape[1] == 1
    return _width(bits), None if by_row else group, linears


def _width(bits: int) -> int:
    return next(width for width in WIDTHS if width >= bits)


def _fitted(checkpoint: Checkpoint, name: str, bits: int, group: int | None) -> Grid:
    """The codes of a linear layer in the common width and group, no zero being 0."""
    edit = checkpoint.quantized(name)
    assert edit is not None, "it is one of the quantized ones"
    grid = grid_of(edit).half_scale().widened(bits)
    grid = grid if group is None else grid.split(group)
    for size, axis in ((grid.codes.shape[1], "input"), (grid.codes.shape[0], "output")):
        if size * bits % 32 or (axis == "input" and size % 32):
            remedy = "export to huggingface, which has no such limit"
            raise LessenError(name, got=f"{size} {axis} features of {bits} bits", wanted="a multiple of 32 for GPTQ", remedy=remedy)
    if grid.symmetric or not bool((grid.zero == 0).any()):
        return grid
    top = (1 << bits) - 1
    at_zero = grid.zero == 0
    flip = at_zero.repeat_interleave(grid.group, 1)
    note = "groups with the zero point 0 reflected (exact)"
    return replace(
        grid,
        codes=torch.where(flip, top - grid.codes, grid.codes),
        zero=torch.where(at_zero, top, grid.zero),
        scale=torch.where(at_zero, -grid.scale, grid.scale),
        notes=(*grid.notes, note),
    )


def _stored(grid: Grid) -> dict[str, Tensor]:
    return {
        "qweight": pack_words(grid.codes, grid.bits).T,
        "qzeros": pack_words((grid.zero.T - 1).contiguous(), grid.bits),
        "scales": grid.scale.T,
        "g_idx": (torch.arange(grid.codes.shape[1]) // grid.group).to(torch.int32),
    }


def _settings(checkpoint: Checkpoint, bits: int, group: int | None, symmetric: bool, linears: set[str]) -> dict[str, Any]:
    """`quantization_config`; linear layers without codes are excepted by name."""
    settings: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group or -1,
        "desc_act": False,
        "sym": symmetric,
        "lm_head": _HEAD in linears,
        "true_sequential": True,
        "damp_percent": 0.01,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
    }
    plain = [name.removesuffix(".weight") for name, quantized in _linears(checkpoint).items() if not quantized and name != _HEAD]
    if plain:
        settings["dynamic"] = {"-:^" + path.replace(".", r"\.") + "$": {} for path in plain}
    return settings


def _error(wanted: Tensor, got: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30))


def codes_equal(checkpoint: Checkpoint, folder: Path, *, dense: str = "float16", **_: Any) -> bool:
    """Whether the directory, read back, gives bit for bit the weights of the codes, and the dense tensors as they were rounded."""
    stored: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            stored |= dict.fromkeys(opened.keys(), file)

    def read(key: str) -> Tensor:
        with safe_open(stored[key], "pt") as opened:
            return opened.get_tensor(key)

    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    for name in checkpoint.names:
        edit, prefix = checkpoint.quantized(name), name.removesuffix("weight")
        if edit is None or f"{prefix}qweight" not in stored:
            if not torch.equal(read(name), checkpoint.read(name).to(_DTYPES[dense])):
                return False
            continue
        parts = [read(f"{prefix}{key}") for key in ("qweight", "qzeros", "scales", "g_idx")]
        if not torch.equal(meaning(*parts, bits=settings["bits"]), grid_of(edit).dequantized()):
            return False
    return True


def meaning(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, bits: int) -> Tensor:
    """float32 "out in": the weights that a runtime reads from the four tensors of a layer."""
    columns, rows = len(g_idx), scales.shape[1]
    codes = unpack_words(qweight.T.contiguous(), bits, columns).float()
    zero = unpack_words(qzeros, bits, rows).float() + 1
    return (codes - zero[g_idx].T) * scales[g_idx].T.float()


def logits(checkpoint: Checkpoint, folder: Path, probe: Tensor, **_: Any) -> tuple[Tensor, str]:
    """Logits of transformers with gptqmodel on the directory; NoRuntime where that is not installed."""
    runtime = f"{version('transformers')}, {version('gptqmodel')}"
    from transformers import AutoModelForCausalLM

    try:
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
            return model(probe, use_cache=False).logits.float(), runtime
    except ImportError as error:
        raise NoRuntime(f"{runtime} cannot run here: {error}") from error
