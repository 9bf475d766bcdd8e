"""From one wish, a size, to a recipe: everything else is derived, and said aloud.

Linears and token table get one grid each. The wish is held against the largest file that will be written: a container that keeps 3-bit
codes in 4-bit blocks gains nothing from the third bit. Of all pairs of grids that meet it the one with the least expected damage is
taken, with the noise of uniform rounding as the measure: a group of g weights spans about 2 sqrt(2 ln g) deviations, so b bits leave a
relative error of about (2/3) ln(g) 4^-b. The two parts count alike, since an error in either reaches every token.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, inf, log, prod
from typing import TYPE_CHECKING, Any

from lessen.core.unit import Unit
from lessen.errors import UsageError
from lessen.methods.gptq import GPTQ
from lessen.methods.rtn import RTN
from lessen.methods.select import Select
from lessen.models.checkpoint import Checkpoint
from lessen.structure.decoder import units

if TYPE_CHECKING:
    from lessen.recipe import Dial

GROUPS = (32, 48, 64, 96, 128, 192, 256)  # multiples of 16: what packed containers and kernels take
HELD = (32, 64, 128)  # what every container holds: GGUF repeats the scale for each 32, kernels for packed weights know no others
EMBEDDING_BITS = 8
DEFAULT_BITS, DEFAULT_GROUP = 4, 32

Price = Callable[[Any], dict[str, float]]
"""(bits, group, table bits, table group) -> bytes by container."""


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


def solve(checkpoint: Checkpoint, dial: "Dial", price: Price, embeddings: bool = True) -> tuple[list[Any], list[str]]:
    """The recipe with the least expected damage among those whose files all meet a wish.

    Args:
        checkpoint: the model.
        dial: the wish.
        price: bytes by container of (bits, group, table bits, table group); infinite where a container cannot hold that.
        embeddings: False leaves token table and head as they are.

    Raises:
        UsageError: even the smallest grids that the containers hold are too many; says what can be reached.
    """
    budget = budget_of(checkpoint, dial)
    linears, tables = _widths(checkpoint)
    options = sorted(_options(linears, tables if embeddings else set(), price), key=lambda option: (option.damage, option.size_bytes))
    fit = next((option for option in options if option.size_bytes <= budget), None)
    if fit is None:
        raise _unreachable(checkpoint, dial, budget, options)
    tabled = f", tables and head {fit.table_bits} bits in groups of {_words(fit.table_group)}" if fit.table_bits < 16 else ""
    files = ", ".join(f"{_bytes(size)} as {name}" for name, size in fit.sizes.items())
    notes = [f"For {_bytes(budget)}: linears {fit.bits} bits in groups of {_words(fit.group)}{tabled}; expected weights: {files}."]
    methods = _tables(fit.table_bits, fit.table_group, tables) if fit.table_bits < 16 else []
    return [*methods, candidates(fit.bits, fit.group)], notes


def _unreachable(checkpoint: Checkpoint, dial: "Dial", budget: float, options: "list[_Option]") -> UsageError:
    """What can be reached with all containers that were asked for, and with the Hugging Face directory alone."""
    least = min(options, key=lambda option: option.size_bytes)
    alone = min(option.sizes.get("huggingface", inf) for option in options)
    widest = max(least.sizes, key=lambda name: least.sizes[name])
    fewer = f"leave out exports (--export none reaches {_least(alone)}), " if alone < 0.995 * least.size_bytes else ""
    reached = f"{_least(least.size_bytes)} ({_bpw(checkpoint, least.size_bytes) + 0.005:.2f}bpw)"
    return UsageError(
        f"--to {dial}",
        got=f"a budget of {_bytes(budget)}",
        wanted=f"at least {reached}, below which {widest} weights of this model do not come",
        remedy=f"ask for more, {fewer}or prune first with a recipe",
    )


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
    sizes: dict[str, float]
    damage: float

    @property
    def size_bytes(self) -> float:
        return max(self.sizes.values())


def _options(linears: set[int], tables: set[int], price: Price) -> list[_Option]:
    found = []
    grids = [(table_bits, group) for table_bits in (8, 6, 5, 4) for group in _groups(tables)] if tables else [(16, None)]
    for bits, group, (table_bits, table_group) in product((8, 6, 5, 4, 3, 2), _groups(linears), grids):
        damage = _noise(bits, group or max(linears)) + (_noise(table_bits, table_group or max(tables)) if tables else 0.0)
        found.append(_Option(bits, group, table_bits, table_group, price((bits, group, table_bits, table_group)), damage))
    held = [option for option in found if option.size_bytes < inf]
    if held:
        return held
    # Rows that no container's groups divide: the exports refuse or are left out, and only the others have a price.
    return [replace(option, sizes={name: size for name, size in option.sizes.items() if size < inf}) for option in found]


def _groups(widths: set[int]) -> list[int | None]:
    """Groups that divide every row and that all containers hold as they are; else the nearest that fits."""
    return [group for group in HELD if all(width % group == 0 for width in widths)] or [fitting(DEFAULT_GROUP, widths)]


def _noise(bits: int, group: int) -> float:
    return 2 / 3 * log(group) * 4.0**-bits


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


def budget_of(checkpoint: Checkpoint, dial: "Dial") -> float:
    """Bytes that a wish stands for."""
    scale = {"bytes": 1.0, "bpw": _parameters(checkpoint) / 8, "times": float(checkpoint.size_bytes)}
    return dial.value * scale[dial.kind]


def _bpw(checkpoint: Checkpoint, size_bytes: float) -> float:
    return 8 * size_bytes / _parameters(checkpoint)


def _words(group: int | None) -> str:
    return "a whole row" if group is None else str(group)


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _least(size: float) -> str:
    """A size that is enough: rounded up."""
    return f"{ceil(size / 1e5) / 10:.1f}MB" if size >= 1e6 else f"{ceil(size / 1e2) / 10:.1f}kB"
