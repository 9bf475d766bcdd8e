"""From one wish, a size, to a recipe: everything else is derived, and said aloud.

Linears and token table get one grid each. The wish is held against the largest file that will be written: a container that keeps 3-bit
codes in 4-bit blocks gains nothing from the third bit. Of all pairs of grids that meet it the one with the least expected damage is
taken, with the noise of uniform rounding as the measure: a group of g weights spans about 2 sqrt(2 ln g) deviations, so b bits leave a
relative error of about (2/3) ln(g) 4^-b. The two parts count alike, since an error in either reaches every token.

A container that was asked for by name must meet the wish. A usual one that nobody named is left out, aloud, where it cannot, or where
only two bits would: rounding to two bits spoils most models. The Hugging Face directory is what remains; alone, it may have groups that
divide no block of a kernel, at the price of half a bit in the comparison.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import ceil, inf, log, prod
from typing import TYPE_CHECKING, Any

from lessen.core.unit import Unit
from lessen.errors import UsageError
from lessen.methods.gptq import GPTQ
from lessen.methods.rtn import RTN
from lessen.methods.select import Select
from lessen.models.checkpoint import Checkpoint
from lessen.structure.decoder import units, without_linears

if TYPE_CHECKING:
    from lessen.recipe import Dial

GROUPS = (32, 48, 64, 96, 128, 192, 256)  # multiples of 16: what packed containers and kernels take
HELD = (32, 64, 128)  # what every container holds: GGUF repeats the scale for each 32, kernels for packed weights know no others
ANY = (*GROUPS, None)
EMBEDDING_BITS = 8
DEFAULT_BITS, DEFAULT_GROUP = 4, 32
_SPOILT = 2  # bits at which rounding alone leaves little of most models

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


@dataclass(frozen=True)
class Choice:
    """A recipe for a wish.

    Attributes:
        methods: in order.
        notes: the choices made, as sentences.
        left_out: containers that nobody named, and that would have spoilt it.
    """

    methods: list[Any]
    notes: list[str]
    left_out: tuple[str, ...] = ()


def solve(checkpoint: Checkpoint, dial: "Dial", price: Price, spare: Collection[str] = (), embeddings: bool = True) -> Choice:
    """The recipe with the least expected damage among those whose files all meet a wish.

    Args:
        checkpoint: the model.
        dial: the wish.
        price: bytes by container of (bits, group, table bits, table group); infinite where a container cannot hold that.
        spare: containers that may be left out: those that cannot meet the wish, or only at two bits where the others have more.
        embeddings: False leaves token table and head as they are.

    Raises:
        UsageError: even the smallest grids that the containers hold are too many; says what can be reached.
    """
    budget = budget_of(checkpoint, dial)
    linears, tables = _widths(checkpoint)
    options = _options(linears, tables if embeddings else set(), price)
    kept = _kept(options, spare)
    tiers = [_only(files, options) for files in kept]
    if len(kept[-1]) == 1:
        tiers[-1] = _only(kept[-1], _options(linears, tables if embeddings else set(), price, ANY))
    found = [min(fits, key=_merit) for tier in tiers if (fits := [option for option in tier if option.size_bytes <= budget])]
    if not found:
        raise _unreachable(checkpoint, dial, budget, tiers[-1], options)
    fit = next((option for option in found if option.bits > _SPOILT), found[0])
    tabled = f", tables and head {fit.table_bits} bits in groups of {_words(fit.table_group)}" if fit.table_bits < 16 else ""
    files = ", ".join(f"{_bytes(size)} as {name}" for name, size in fit.sizes.items())
    notes = [f"For {_bytes(budget)}: linears {fit.bits} bits in groups of {_words(fit.group)}{tabled}; expected weights: {files}."]
    left_out = tuple(name for name in kept[0] if name not in fit.sizes)
    notes += [_why_left_out(name, options, budget) for name in left_out]
    if fit.bits == _SPOILT:
        better = min((option.size_bytes for tier in tiers for option in tier if option.bits > _SPOILT), default=inf)
        notes.append(f"2 bits without training spoil most models: look at the quality first. More begin at --to {_least(better)}.")
    methods = _tables(fit.table_bits, fit.table_group, tables) if fit.table_bits < 16 else []
    return Choice([*methods, candidates(fit.bits, fit.group)], notes, left_out)


def _why_left_out(name: str, options: "list[_Option]", budget: float) -> str:
    least = min(option.sizes[name] for option in options)
    if least > budget:
        return f"{name} is left out: its weights take {_least(least)} at the least."
    return f"{name} is left out: within {_bytes(budget)} it holds no more than 2 bits; --export {name} insists."


def _unreachable(checkpoint: Checkpoint, dial: "Dial", budget: float, reachable: "list[_Option]", options: "list[_Option]") -> UsageError:
    """What can be reached with all containers that were asked for, and with the Hugging Face directory alone."""
    least = min(reachable, key=lambda option: option.size_bytes)
    alone = min(option.sizes["huggingface"] for option in options)
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


def _merit(option: _Option) -> tuple[float, float]:
    return option.damage, option.size_bytes


def _kept(options: list[_Option], spare: Collection[str]) -> list[tuple[str, ...]]:
    """The files to write, from all of them to those that may not be left out."""
    names = tuple(options[0].sizes)
    spare = [name for name in spare if name in names]
    gone = [left for count in range(len(spare) + 1) for left in combinations(spare, count)]
    return [tuple(name for name in names if name not in left) for left in gone]


def _only(names: tuple[str, ...], options: list[_Option]) -> list[_Option]:
    """The options, priced in some files."""
    return [replace(option, sizes={name: option.sizes[name] for name in names}) for option in options]


def _options(linears: set[int], tables: set[int], price: Price, known: Sequence[int | None] = HELD) -> list[_Option]:
    found = []
    grids = [(table_bits, group) for table_bits in (8, 6, 5, 4) for group in _groups(tables, known)] if tables else [(16, None)]
    for bits, group, (table_bits, table_group) in product((8, 6, 5, 4, 3, 2), _groups(linears, known), grids):
        damage = _noise(bits, group, linears) + (_noise(table_bits, table_group, tables) if tables else 0.0)
        found.append(_Option(bits, group, table_bits, table_group, price((bits, group, table_bits, table_group)), damage))
    # Rows that no group of a container divides: its export refuses or is left out, and only the others have a price.
    held = {name for option in found for name, size in option.sizes.items() if size < inf}
    return [replace(option, sizes={name: size for name, size in option.sizes.items() if name in held}) for option in found]


def _groups(widths: set[int], known: Sequence[int | None]) -> list[int | None]:
    """Those of the known groups that divide every row; else the nearest that fits."""
    fits = [group for group in known if group is None or all(width % group == 0 for width in widths)]
    return fits or [fitting(DEFAULT_GROUP, widths)]


def _noise(bits: int, group: int | None, widths: set[int]) -> float:
    """What rounding adds; a group that only transformers reads must be worth half a bit."""
    return (1 if group in HELD else 2) * 2 / 3 * log(group or max(widths)) * 4.0**-bits


def _tables(bits: int, group: int | None, widths: set[int]) -> list[Any]:
    return [RTN(bits, group, scale="mse", on="embeddings")] if widths else []


def _widths(checkpoint: Checkpoint) -> tuple[set[int], set[int]]:
    found = units(checkpoint)

    def widths(kind: str) -> set[int]:
        return {checkpoint.shape(unit.slices[0].name)[1] for unit in found if unit.kind == kind}

    if not widths("linear"):
        raise without_linears(checkpoint)
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
