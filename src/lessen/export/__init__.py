"""One solve, every runtime: each exporter repacks the same codes, reads back what it wrote, and compares logits with the source."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError, nearest
from lessen.export import gguf, gptq, huggingface, onnx
from lessen.export.files import aside, size_bytes, weights_bytes
from lessen.export.parity import farthest, proof
from lessen.models import open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lessen.core.event import Listener
    from lessen.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Exporter:
    """How one container is written and proved.

    Attributes:
        write: (checkpoint, path, *, options, listen) -> notes.
        codes_equal: (checkpoint, path, **options) -> whether what lies in the file is bit for bit what the checkpoint holds.
        logits: (checkpoint, path, probe, **options) -> (logits "batch seq vocab", runtime); raises NoRuntime.
        summary: one line for help texts.
        fits: (checkpoint) -> None; raises what `write` would say of package, architecture and formats, without reading a weight.
    """

    write: Callable[..., list[str]]
    codes_equal: Callable[..., bool]
    logits: "Callable[..., tuple[Tensor, str]]"
    summary: str
    fits: "Callable[[Checkpoint], None]"


def _exporter(module: Any, summary: str) -> Exporter:
    return Exporter(module.write, module.codes_equal, module.logits, summary, module.fits)


EXPORTERS: dict[str, Exporter] = {
    "huggingface": _exporter(huggingface, "directory for transformers and vLLM (compressed-tensors)"),
    "gptq": _exporter(gptq, "directory in the GPTQ layout for vLLM, SGLang, ExLlama, OpenVINO"),
    "gguf": _exporter(gguf, "file for llama.cpp (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F16)"),
    "onnx": _exporter(onnx, "folder for onnxruntime and onnxruntime-genai (MatMulNBits)"),
}


def options_of(format: str) -> dict[str, inspect.Parameter]:
    """The options an exporter takes, by name.

    >>> sorted(options_of("huggingface"))
    ['embedding', 'shard_bytes', 'zero_points']
    """
    if format not in EXPORTERS:
        raise UsageError("export", got=f"format {format!r}", wanted="one of the exporters", remedy=nearest(format, EXPORTERS))
    parameters = inspect.signature(EXPORTERS[format].write).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "listen"}


@strict()
def export(
    checkpoint: "Checkpoint | str | Path | nn.Module",
    out: Path | str,
    format: str,
    *,
    probe: "Tensor | None" = None,
    overwrite: bool = False,
    on_event: "Listener | None" = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a checkpoint for a runtime, without re-quantizing, and prove what was written.

    Args:
        checkpoint: plain, pruned or quantized; also anything that `open_checkpoint` takes.
        out: the directory (GGUF: file) to make.
        format: a key of `EXPORTERS`.
        probe: token ids "batch seq" on which to compare logits; None skips that.
        overwrite: replace an existing `out`.
        on_event: told about every tensor.
        options: of the exporter, see `options_of`.

    Returns:
        format, path, size_bytes (of all files), weights_bytes (of the tensors in them), codes_equal, kld_mean, kld_uniform,
        logits_max_error, top1, runtime (or runtime_skipped), seconds, notes.

    Raises:
        UsageError: unknown format or option, or `out` exists.
        LessenError: the container cannot hold a tensor exactly; the message says what would.
    """
    _check(format, options)
    if Path(out).exists() and not overwrite:  # told before a model is opened
        raise UsageError(str(out), got="a target that exists", wanted="a free name", remedy="choose another or pass overwrite")
    source: Any = checkpoint if hasattr(checkpoint, "quantized") else open_checkpoint(checkpoint)  # pyright: ignore[reportArgumentType]
    exporter, target, start = EXPORTERS[format], Path(out), time.perf_counter()
    with aside(target, overwrite) as temporary:
        notes = exporter.write(source, temporary, listen=on_event, **options)
        equal = exporter.codes_equal(source, temporary, **options)
        proved = proof(source, probe, lambda tokens: exporter.logits(source, temporary, tokens, **options))
        _insist(format, target, equal, proved)
    return {
        "format": format,
        "path": str(target),
        "size_bytes": size_bytes(target),
        "weights_bytes": weights_bytes(target),
        "codes_equal": equal,
        **proved,
        "seconds": time.perf_counter() - start,
        "notes": notes,
    }


def _check(format: str, options: dict[str, Any]) -> None:
    """Refuse unknown options, and values that an option does not take, with the nearest that it does."""
    known = options_of(format)
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"export {format}", got=f"option {name!r}", wanted="one of its options", remedy=nearest(name, known))
        choices = get_args(known[name].annotation)
        if choices and value not in choices:
            wanted = f"one of {', '.join(choices)}"
            raise UsageError(f"export {format}: {name}", got=repr(value), wanted=wanted, remedy=nearest(str(value), choices))
        if known[name].annotation is int and (not isinstance(value, int) or value < 1):
            raise UsageError(f"export {format}: {name}", got=repr(value), wanted="a whole number from 1")


def _insist(format: str, target: Path, equal: bool, proved: dict[str, Any]) -> None:
    """Refuse a file that is not what it should be; inside the aside block, so that nothing is left of it."""
    if not equal:
        got, wanted = "codes that differ from the model's after reading them back", "the same bits"
        raise LessenError(f"{format} export {target}", got=got, wanted=wanted, remedy="nothing was written; please report this model")
    kld = proved.get("kld_mean")
    if kld is not None and not kld <= (most := farthest(proved["kld_uniform"])):
        got = f"logits {kld:.3g} nats from the model's in {proved.get('runtime')}"
        wanted = f"at most {most:.3g} nats for a model that lies {proved['kld_uniform']:.3g} nats from equal chances"
        raise LessenError(f"{format} export {target}", got=got, wanted=wanted, remedy="nothing was written; the runtime reads it otherwise")


__all__ = ["EXPORTERS", "Exporter", "export", "options_of"]
