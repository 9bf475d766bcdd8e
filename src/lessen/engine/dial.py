"""From one wish, a size, to a recipe: everything else is derived, and said aloud.

Linears and token table get one grid each. Of all pairs whose bytes stay under the wish, the one with the least expected damage is
taken, with the noise of uniform rounding as the measure: a group of g weights spans about 2 sqrt(2 ln g) deviations, so b bits leave a
relative error of about (2/3) ln(g) 4^-b. The two parts count alike, since an error in either reaches every token.
"""

from dataclasses import dataclass
from itertools import product
from math import log, prod
from typing import TYPE_CHECKING, Any

from lessen.core.unit import Unit
from lessen.errors import UsageError
from lessen.formats.affine import Int
from lessen.formats.granularity import PerGroup, PerRow
from lessen.methods.gptq import GPTQ
from lessen.methods.rtn import RTN
from lessen.methods.select import Select
from lessen.models.checkpoint import Checkpoint
from lessen.structure.decoder import units

if TYPE_CHECKING:
    from lessen.recipe import Dial

GROUPS = (32, 48, 64, 96, 128, 192, 256)  # multiples of 16: what packed containers and kernels take
EMBEDDING_BITS = 8
DEFAULT_BITS, DEFAULT_GROUP = 4, 32


def candidates(bits: int, group: int | None) -> Select:
    """The default way to round linears."""
    # GPTQ with correction=0.5 as a third candidate was measured too: the same KL within 1.5 % for half as much time again.
    return Select((GPTQ(bits, group), RTN(bits, group)))


def default(checkpoint: Checkpoint) -> tuple[list[Any], list[str]]:
    """The recipe for no wish at all: 4 bits in groups of 32, which every runtime reads, and 8 bits for the token table.

    Returns:
        Methods, and the choices made as sentences.
    """
    linears, tables = _widths(checkpoint)
    group, table_group = fitting(DEFAULT_GROUP, linears), fitting(DEFAULT_GROUP, tables)
    notes = [f"No size was asked for: linears get {DEFAULT_BITS} bits in groups of {_words(group)}, tables and head {EMBEDDING_BITS} bits."]
    if group != DEFAULT_GROUP:
        notes.append(f"Groups of {DEFAULT_GROUP} do not divide {sorted(linears)}: {_words(group)} it is, which some runtimes cannot read.")
    return [*_tables(EMBEDDING_BITS, table_group, tables), candidates(DEFAULT_BITS, group)], notes


def solve(checkpoint: Checkpoint, dial: "Dial") -> tuple[list[Any], list[str]]:
    """The recipe with the least expected damage among those that meet a wish.

    Raises:
        UsageError: even two bits are too many; says what can be reached.
    """
    budget = _budget(checkpoint, dial)
    linears, tables = _widths(checkpoint)
    options = sorted(_options(checkpoint, linears, tables), key=lambda option: (option.damage, option.size_bytes))
    fit = next((option for option in options if option.size_bytes <= budget), None)
    if fit is None:
        least = min(options, key=lambda option: option.size_bytes)
        raise UsageError(
            f"--to {dial.value:g} {dial.kind}",
            got=f"a budget of {_bytes(budget)}",
            wanted=f"at least {_bytes(least.size_bytes)} ({_bpw(checkpoint, least.size_bytes):.2f}bpw) for this model",
            remedy="ask for more, or prune first with a recipe",
        )
    notes = [
        f"For {_bytes(budget)}: linears {fit.bits} bits in groups of {_words(fit.group)}, tables and head {fit.table_bits} bits "
        f"in groups of {_words(fit.table_group)}: {_bytes(fit.size_bytes)}, {_bpw(checkpoint, fit.size_bytes):.2f} bits per weight."
    ]
    return [*_tables(fit.table_bits, fit.table_group, tables), candidates(fit.bits, fit.group)], notes


def fitting(group: int, widths: set[int]) -> int | None:
    """The largest group up to `group` that divides every width; None (a whole row) if only odd ones would.

    >>> fitting(128, {576, 1536})
    96
    >>> fitting(32, {50})
    """
    fits = [size for size in (*GROUPS, 16) if size <= group and all(width % size == 0 for width in widths)]
    return max(fits, default=None)


@dataclass(frozen=True)
class _Option:
    bits: int
    group: int | None
    table_bits: int
    table_group: int | None
    size_bytes: float
    damage: float


def _options(checkpoint: Checkpoint, linears: set[int], tables: set[int]) -> list[_Option]:
    sizes = _Sizes(checkpoint)
    groups = [g for g in GROUPS if all(width % g == 0 for width in linears)]
    table_group = fitting(32, tables)
    found = []
    for bits, group, table_bits in product((8, 6, 5, 4, 3, 2), [*groups, None], (8, 6, 5, 4)):
        damage = _noise(bits, group or max(linears)) + (_noise(table_bits, table_group or max(tables)) if tables else 0.0)
        found.append(_Option(bits, group, table_bits, table_group, sizes.total(bits, group, table_bits, table_group), damage))
    return found


def _noise(bits: int, group: int) -> float:
    return 2 / 3 * log(group) * 4.0**-bits


class _Sizes:
    """Bytes of a model with a grid for its linears and one for its tables; the rest at 16 bits."""

    def __init__(self, checkpoint: Checkpoint):
        found = units(checkpoint)
        self.linears = [checkpoint.shape(u.slices[0].name) for u in found if u.kind == "linear"]
        self.tables = [checkpoint.shape(u.slices[0].name) for u in found if u.kind == "embedding"]
        self.rest = _parameters(checkpoint) - sum(prod(shape) for shape in (*self.linears, *self.tables))

    def total(self, bits: int, group: int | None, table_bits: int, table_group: int | None) -> float:
        grids = ((self.linears, _format(bits, group)), (self.tables, _format(table_bits, table_group)))
        return sum(grid.bits_per_weight(s) * prod(s) for shapes, grid in grids for s in shapes) / 8 + 2 * self.rest


def _format(bits: int, group: int | None) -> Int:
    return Int(bits, PerRow() if group is None else PerGroup(group))


def _tables(bits: int, group: int | None, widths: set[int]) -> list[Any]:
    return [RTN(bits, group, scale="mse", on="embeddings")] if widths else []


def _widths(checkpoint: Checkpoint) -> tuple[set[int], set[int]]:
    found = units(checkpoint)

    def widths(kind: str) -> set[int]:
        return {checkpoint.shape(unit.slices[0].name)[1] for unit in found if unit.kind == kind}

    return widths("linear"), widths("embedding")


def table_method(checkpoint: Checkpoint) -> tuple[list[Any], list[str]]:
    """What is done to tables and head when a recipe says nothing about them."""
    tables: list[Unit] = units(checkpoint, "embedding")
    widths = {checkpoint.shape(unit.slices[0].name)[1] for unit in tables}
    share = sum(prod(checkpoint.shape(unit.slices[0].name)) for unit in tables) / _parameters(checkpoint)
    note = f"Token table and head ({share:.0%} of the parameters) get {EMBEDDING_BITS} bits."
    return _tables(EMBEDDING_BITS, fitting(DEFAULT_GROUP, widths), widths), [note] if tables else []


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(checkpoint.shape(name)) for name in checkpoint.names)


def _budget(checkpoint: Checkpoint, dial: "Dial") -> float:
    scale = {"bytes": 1.0, "bpw": _parameters(checkpoint) / 8, "times": float(checkpoint.size_bytes)}
    return dial.value * scale[dial.kind]


def _bpw(checkpoint: Checkpoint, size_bytes: float) -> float:
    return 8 * size_bytes / _parameters(checkpoint)


def _words(group: int | None) -> str:
    return "a whole row" if group is None else str(group)


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
