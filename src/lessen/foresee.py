"""What can be known to be wrong before any work: minutes of computing must not end in a refusal that the first second could have given.

A recipe says which format every tensor will have, so a stand-in for the result can be shown to the exporters before there is a result:
its codes use their range as real weights do, its scales are of the type that the format stores. Whatever a container says of
widths, groups and types it says then. What depends on the weights themselves shows only later.
"""

import re
import shutil
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from lessen.core.edit import Quantize
from lessen.engine.quantize import candidates
from lessen.errors import LessenError, UsageError, nearest
from lessen.export import EXPORTERS
from lessen.formats.affine import Codes, Int
from lessen.formats.granularity import scale_shape
from lessen.job import Settled
from lessen.methods.rounding import Rounding
from lessen.models.checkpoint import Checkpoint
from lessen.structure.decoder import units

ROOM = 16 * 2**20  # bytes beside what is known to be written
PLACES = {"gguf": "gguf/model.gguf", "onnx": "onnx", "gptq": "gptq"}


def place(out: Path, overwrite: bool) -> None:
    """Refuse a place for the result that holds something else.

    Raises:
        UsageError: `out` exists and may not be replaced, or was not written by lessen.
    """
    if not out.exists():
        return
    if not overwrite:
        raise UsageError(str(out), got="something that exists", wanted="a new directory", remedy="choose another --out, or add --overwrite")
    if not (out.is_dir() and ((out / "lessen.json").exists() or not any(out.iterdir()))):
        got = "something that lessen did not write"
        raise UsageError(str(out), got=got, wanted="a directory with lessen.json", remedy="choose another --out")


def exports(names: Sequence[str]) -> None:
    """Refuse formats that do not exist.

    Raises:
        UsageError: with the nearest name.
    """
    for name in names:
        if name == "huggingface":
            got = "'huggingface', which is always written"
            raise UsageError("--export", got=got, wanted="a further format", remedy=f"choose from {', '.join(PLACES)}, or none")
        if name not in PLACES:
            remedy = "lessen export takes options, afterwards" if "(" in name else nearest(name, PLACES)
            raise UsageError("--export", got=repr(name), wanted="a known format", remedy=remedy)
    if len(set(names)) < len(names):
        raise UsageError("--export", got=", ".join(names), wanted="each format once")


def result(found: Settled, names: Sequence[str]) -> None:
    """Refuse containers that cannot hold what the recipe will make.

    Args:
        found: model and recipe.
        names: formats that were asked for; the Hugging Face directory is always written.

    Raises:
        LessenError: what the exporter would say at the end.
    """
    prunes = any(method.scope == "model" for method in found.methods)  # then shapes are not known yet
    choices = range(max((len(candidates(method)) for method in found.methods), default=1))
    for name in ("huggingface", *names):
        refusals: list[LessenError] = []
        for choice in choices:
            try:
                if not prunes or name != "gptq":
                    seen: Any = Foreseen(found.source, [] if prunes else found.methods, choice)
                    EXPORTERS[name].fits(seen)
                break
            except LessenError as error:
                refusals.append(error)
        else:
            raise refusals[0]


def room(found: Settled, names: Sequence[str], out: Path, work: Path) -> None:
    """Refuse a disk that cannot hold the result: the decisions in `work`, every container beside `out`.

    Raises:
        LessenError: names the place and the bytes.
    """
    if any(method.scope == "model" for method in found.methods):
        return
    small = Foreseen(found.source, found.methods).size_bytes
    steps = sorted(work.glob("pass*-step*.safetensors"))
    wanted = {work: ROOM + (0 if steps else small), out.parent: ROOM + small * (1 + len(names))}
    if work.parent.stat().st_dev == out.parent.stat().st_dev:
        wanted = {out.parent: sum(wanted.values())}
    if (out.parent / f".{out.name}.lessen-work" / "result").exists():
        return  # a run to go on with has written much of it
    for folder, size in wanted.items():
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        if free < size:
            remedy = "free space, leave out exports, or choose another --out or --work"
            raise LessenError(str(folder), got=f"{free / 1e6:.0f} MB free", wanted=f"about {size / 1e6:.0f} MB for this run", remedy=remedy)


class Foreseen:
    """A stand-in for the result: the first block of the source and all outside the blocks, quantized as a recipe says.

    Args:
        source: the model.
        methods: the recipe.
        choice: which candidate of every selection is taken.
    """

    def __init__(self, source: Checkpoint, methods: Sequence[Any], choice: int = 0):
        self._source = source
        self.names = [name for name in source.names if re.search(r"\.(\d+)\.", f".{name}") is None or _block(name) == 0]
        self.formats: dict[str, Any] = {}
        for method in methods:
            tried = candidates(method)
            taken = tried[min(choice, len(tried) - 1)]
            if isinstance(taken, Rounding):
                names = [part.name for unit in units(source) if unit.kind == method.kind for part in unit.slices]
                self.formats |= {name: taken.format for name in names if len(source.shape(name)) == 2}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def quantized(self, name: str) -> Quantize | None:
        """Codes such as the tensor will have."""
        format = self.formats.get(self._source.tied.get(name, name))
        return Quantize(name, format, _codes(format, self._source.shape(name))) if format else self._source.quantized(name)

    @property
    def size_bytes(self) -> float:
        """Bytes of the whole result: codes and scales, what is not quantized at 16 bits."""
        source = self._source
        shapes = {name: source.shape(name) for name in source.names}
        return sum(prod(s) * (self.formats[n].bits_per_weight(s) if n in self.formats else 16) / 8 for n, s in shapes.items())


def _block(name: str) -> int:
    found = re.search(r"\.(\d+)\.", f".{name}")
    return int(found[1]) if found else -1


@cache
def _codes(format: Int, shape: tuple[int, ...]) -> Codes:
    """Codes over the whole range; a third stands for scales, which no narrower float than the format's holds."""
    rows, columns = shape
    stored = scale_shape((rows, columns), format.granularity)
    lowest = -(1 << format.bits - 1) if format.symmetric else 0
    span = torch.arange(columns) % 2 * ((1 << format.bits) - 1) + lowest
    values = span.to(torch.int8 if format.symmetric else torch.uint8).expand(rows, columns)
    scale = torch.full(stored, 1 / 3, dtype=format.scale_dtype)
    zero = None if format.symmetric else torch.full(stored, (1 << format.bits - 1) - 1, dtype=torch.uint8)
    return Codes(values, scale, zero)
