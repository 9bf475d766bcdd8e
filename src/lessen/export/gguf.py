"""A GGUF file for llama.cpp and everything built on it, codes repacked bit for bit.

Each quantized matrix becomes the smallest block type that holds its codes (see `gguf_blocks`); types may differ from tensor to tensor.
Matrices without codes are stored as `plain` says, vectors in float32. A tied embedding is stored once; llama.cpp uses it for the head.

For the `llama` architecture llama.cpp rotates neighbouring pairs of a head where transformers rotates its two halves. So the
rows of query and key matrices change places: with h heads, our row (head, half, i) is stored as row (head, i, half). A scale belongs to
a row, so codes and scales move together and stay exact.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lessen.core.event import Event, Listener
from lessen.errors import LessenError
from lessen.export import gguf_blocks as blocks
from lessen.export.gguf_metadata import add_model, add_tokenizer, architecture, heads, rope_divisors
from lessen.export.grid import ELSEWHERE, Grid, grid_of
from lessen.export.parity import NoRuntime, sampled, version
from lessen.models.checkpoint import Checkpoint

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
_PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def write(checkpoint: Checkpoint, path: Path, *, plain: Literal["F16", "BF16", "F32"] = "F16", listen: Listener | None = None) -> list[str]:
    """Write the file; one tensor in memory at a time.

    Args:
        checkpoint: plain, pruned or quantized.
        path: of the file.
        plain: type of matrices that are not quantized.
        listen: told about every tensor.

    Returns:
        Notes: choices that the reader of the result should know.
    """
    GGUFWriter, kinds = _package(checkpoint.label)
    places = _places(checkpoint)
    types = {name: _type(checkpoint, name, plain) for name in places}
    writer = GGUFWriter(path, architecture(checkpoint))
    notes: dict[str, None] = {}
    errors: dict[str, float] = {}
    matrices = Counter(kind for name, kind in types.items() if len(checkpoint.shape(name)) == 2 and ".layers." in name)
    add_model(writer, checkpoint, _FILE_TYPES[matrices.most_common(1)[0][0]])
    add_tokenizer(writer, checkpoint)
    divisors = rope_divisors(checkpoint)
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", divisors.shape, np.dtype(np.float32), divisors.numel() * 4)
    for name, place in places.items():
        shape, size = _byte_shape(checkpoint.shape(name), types[name])
        writer.add_tensor_info(place, shape, np.dtype(np.uint8), size, raw_dtype=kinds[types[name]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors.numpy())
    for done, name in enumerate(places):
        writer.write_tensor_data(_bytes(checkpoint, name, types[name], notes, errors))
        if listen:
            listen(Event("export gguf", done + 1, len(places)))
    writer.close()
    for kind, error in errors.items():
        notes[f"{kind}: largest relative error of a matrix {error:.1e}, from {_WHY[kind]}"] = None
    return list(notes)


def fits(checkpoint: Checkpoint) -> None:
    """Raise what `write` would say of package, architecture, tokenizer and formats, without reading a weight."""
    _package(checkpoint.label)
    for name in _places(checkpoint):
        _type(checkpoint, name, "F16")
    add_model(_Nowhere(), checkpoint, 0)
    add_tokenizer(_Nowhere(), checkpoint)
    rope_divisors(checkpoint)


class _Nowhere:
    """A writer that keeps nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


_WHY = {
    "F16": "rounding to float16",
    "BF16": "rounding to bfloat16",
    "Q4_1": "rounding minima to float16",
    "Q5_1": "rounding minima to float16",
}


def _package(where: str) -> tuple[Any, Any]:
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError:
        raise LessenError(where, got="no gguf package", wanted="it to write GGUF", remedy="pip install 'lessen[gguf]'") from None
    return GGUFWriter, GGMLQuantizationType


def _places(checkpoint: Checkpoint) -> dict[str, str]:
    """Name of every stored tensor -> its name in the file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = architecture(checkpoint)
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch)
    table = get_tensor_name_map(kind, int(checkpoint.config["num_hidden_layers"]))
    places: dict[str, str] = {}
    for name in checkpoint.names:
        place = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise LessenError(checkpoint.label, got=f"a tensor {name}", wanted=f"tensors of llama.cpp's {arch}", remedy=ELSEWHERE)
        places[name] = place
    return places


def _order(checkpoint: Checkpoint, name: str) -> Tensor | None:
    """int64 "out": which of our rows each stored row is; None where they stay in place."""
    part = name.split(".")
    if architecture(checkpoint) not in ("llama", "deci") or len(part) < 5 or part[4] not in ("q_proj", "k_proj"):
        return None
    count = heads(checkpoint, int(part[2]))[part[4] == "k_proj"]
    rows = torch.arange(checkpoint.shape(name)[0])
    return rows.view(count, 2, -1).transpose(1, 2).reshape(-1)


def _grid(checkpoint: Checkpoint, name: str) -> Grid | None:
    """The codes of a tensor with its rows where they are stored."""
    edit = checkpoint.quantized(name)
    if edit is None:
        return None
    order = _order(checkpoint, name)
    return grid_of(edit) if order is None else grid_of(edit).rows(order)


def _type(checkpoint: Checkpoint, name: str, plain: str) -> str:
    grid = _grid(checkpoint, name)
    if grid is not None:
        return blocks.choose(grid)
    return plain if len(checkpoint.shape(name)) == 2 else "F32"


def _byte_shape(shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], int]:
    """Shape in bytes and number of bytes of a tensor."""
    row = shape[-1] // blocks.BLOCK * blocks.BLOCK_BYTES[kind] if kind in blocks.BLOCK_BYTES else shape[-1] * _PLAIN[kind].itemsize
    byte_shape = (*shape[:-1], row)
    return byte_shape, int(np.prod(byte_shape))


def _bytes(checkpoint: Checkpoint, name: str, kind: str, notes: dict[str, None], errors: dict[str, float]) -> np.ndarray:
    grid = _grid(checkpoint, name)
    if grid is not None:
        data, said = blocks.pack(grid, kind)
        notes |= dict.fromkeys(said)
        if kind in blocks.WITH_MINIMUM:
            _note_error(errors, kind, grid.dequantized(), blocks.meaning(grid, kind))
        return data
    tensor, stored = _plain(checkpoint, name, kind)
    if tensor.ndim == 2:
        _note_error(errors, kind, tensor.float(), stored.float())
    return stored.contiguous().view(torch.uint8).numpy()


def _plain(checkpoint: Checkpoint, name: str, kind: str) -> tuple[Tensor, Tensor]:
    """A tensor without codes, rows where they are stored: as it is, and as the file has it."""
    tensor = checkpoint.read(name)
    order = _order(checkpoint, name)
    tensor = tensor if order is None else tensor[order]
    stored = tensor.to(_PLAIN[kind])
    if not bool(stored.isfinite().all()):
        raise LessenError(
            name,
            got=f"values up to {float(tensor.abs().max()):.3g}",
            wanted="values that float16 holds",
            remedy="lessen export --format gguf --plain F32",
        )
    return tensor, stored


def _note_error(errors: dict[str, float], kind: str, wanted: Tensor, got: Tensor) -> None:
    if not torch.equal(wanted, got):
        errors[kind] = max(errors.get(kind, 0.0), float((wanted - got).norm() / wanted.norm()))


def codes_equal(checkpoint: Checkpoint, path: Path, *, plain: str = "F16", **_: Any) -> bool:
    """Whether the file, read back by the `gguf` package, gives bit for bit the weights of the codes.

    In Q4_1 and Q5_1 blocks: the weights of the codes with the rounded minima.
    """
    from gguf import GGUFReader, dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for name, place in _places(checkpoint).items():
        tensor = stored[place]
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        grid = _grid(checkpoint, name)
        if grid is not None:
            wanted = blocks.meaning(grid, tensor.tensor_type.name)
        else:
            wanted = _plain(checkpoint, name, tensor.tensor_type.name)[1].float()
        if not torch.equal(values.view(wanted.shape), wanted):
            return False
    return True


def logits(checkpoint: Checkpoint, path: Path, probe: Tensor, **_: Any) -> tuple[Tensor, str]:
    """Log-probabilities of llama.cpp at up to 12 positions, evenly spaced; the others are NaN.

    llama.cpp's server interface gives the distribution after the last token of a prompt, so each position is a prompt of its own (with the
    cache of the one before). The token it then chooses is forced to be an `a`, because it says nothing about tokens that end the text
    or are half a character; the distribution is that from before.
    """
    runtime = version("xllamacpp")
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.fit_params, params.warmup, params.verbosity = probe.shape[1] + 8, 1, False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise LessenError(str(path), got=f"a file that llama.cpp does not open ({error})", wanted="one that it does") from error
    vocab = checkpoint.shape("model.embed_tokens.weight")[0]
    result = torch.full((*probe.shape, vocab), torch.nan)
    letter = checkpoint.tokenizer()("a", add_special_tokens=False)["input_ids"][0]
    asked = {"max_tokens": 1, "temperature": 0.0, "logprobs": vocab, "n_probs": vocab, "logit_bias": [[letter, 1e4]]}
    for batch, last in sampled(probe):
        answer: Any = server.handle_completions({"prompt": probe[batch, : last + 1].tolist(), **asked})
        if not answer.get("choices") or not answer["choices"][0]["logprobs"]:
            raise NoRuntime(f"{runtime} answered {str(answer)[:200]}")
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            result[batch, last, entry["id"]] = entry["logprob"]
    return result, runtime
