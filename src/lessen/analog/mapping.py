"""`map`: a network on a chip, as a twin of the model in which products happen on tiles.

    mapped = analog.map(model, chip, calibration=batches)
    mapped.program(seed=0)          # one physical chip: its programming errors, its faults, its drift
    mapped.at(86400.0)              # the same chip a day later
    mapped.model(inputs)            # an ordinary module

The model itself is not touched: the twin is a copy of its modules that shares its parameters, in which linear layers and convolutions are
replaced by layers on tiles. Which layers stay digital is data (`Split`). What stays digital otherwise is listed with its reason: what
nothing here puts on tiles (recurrent layers, transposed convolutions, products of activations); routers of experts, which are small and
whose errors send tokens elsewhere; and layers that calibration never reached, whose converters would have no range.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lessen.analog.chip import Chip
from lessen.analog.tiles.attention import AnalogAttention
from lessen.analog.tiles.crossbar import Moment
from lessen.analog.tiles.exchange import Places, names_of
from lessen.analog.tiles.experts import AnalogExperts, AnalogRouter, is_pack, is_router, routers_of, siblings
from lessen.analog.tiles.layer import Tiles, kind_of, matrix, on_tiles
from lessen.analog.tiles.streams import stream
from lessen.core.event import Event, Listener
from lessen.core.modules import evaluating, heard
from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError, nearest

NO_INPUT = "calibration gave it no input"


@dataclass(frozen=True)
class Split:
    """Which layers stay digital.

    Attributes:
        digital: names of modules, or patterns with *; a name stands for all that lies below it.
        tiles: likewise, what lies on tiles though it would stay digital by itself: routers of experts.

    >>> Split(("lm_head", "*.o_proj")).keeps("model.layers.0.self_attn.o_proj")
    True
    >>> Split.of(["lm_head", "+*.gate"])
    Split(digital=('lm_head',), tiles=('*.gate',))
    """

    digital: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()

    @classmethod
    def of(cls, split: "Split | Sequence[str] | None") -> "Split":
        """A split as it is, or from names and patterns: of what stays digital, or behind a + of what lies on tiles."""
        if isinstance(split, Split):
            return split
        given = tuple(split or ())
        return cls(tuple(p for p in given if not p.startswith("+")), tuple(p[1:] for p in given if p.startswith("+")))

    def also(self, digital: Iterable[str]) -> "Split":
        """The same, and more that stays digital."""
        return replace(self, digital=(*self.digital, *digital))

    def keeps(self, name: str) -> bool:
        """Whether a module stays digital."""
        return _among(name, self.digital)

    def places(self, name: str) -> bool:
        """Whether a module is put on tiles by name."""
        return _among(name, self.tiles)


def _among(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for p in patterns)


@dataclass
class Mapped:
    """A network on a chip.

    Attributes:
        model: the twin; call it as the model.
        chip: what it lies on.
        layers: the analog layers by name.
        digital: names of weighted modules that stayed digital, and why.
        store: number type in which programmed tiles are kept between uses; None: that of the weights.
        seed: of the chip instance that is programmed; None before.
        seconds: the moment at which it is looked at.
        split: as it was asked for.
        borrowed: layers whose converters have ranges of others, since calibration never reached them, and of which.
        plain: the digital layers in whose places those on tiles are, by name.
    """

    model: nn.Module
    chip: Chip
    layers: dict[str, nn.Module]
    digital: dict[str, str]
    store: torch.dtype | None = None
    seed: int | None = None
    seconds: float | None = None
    split: Split = field(default_factory=Split)
    borrowed: dict[str, str] = field(default_factory=dict)
    plain: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def identity(self) -> Any:
        """What it is whichever instance is programmed: weights, chip, layers and the ranges of their converters."""
        ranges = {name: (self.tiles(name).ranges.input, self.tiles(name).ranges.sums) for name in sorted(self.layers)}
        return self.model, repr(self.chip), ranges

    def tiles(self, name: str) -> Tiles:
        """The analog half of a layer."""
        return self.layers[name].tiles  # pyright: ignore[reportReturnType]

    def program(self, seed: int = 0, seconds: float | None = None, on_event: Listener | None = None) -> "Mapped":
        """Write the weights to a chip instance and look at it: at the first moment that its devices describe, or `seconds` later."""
        self.seed = int(seed)
        return self.at(self.chip.device.first if seconds is None else seconds, on_event)

    def at(self, seconds: float, on_event: Listener | None = None) -> "Mapped":
        """Look at the programmed chip at another time; the same chip at the same time is the same to the last bit."""
        if self.seed is None:
            raise UsageError("Mapped.at", got="a chip that is not programmed", wanted="program(seed) first")
        self.chip.device.check_time(seconds)
        self.seconds = seconds = float(seconds)  # the address of draws: 86400 is the moment that 86400.0 is
        with torch.no_grad():
            self._reserve()
            for done, (name, layer) in enumerate(self.layers.items(), start=1):
                tiles = self.tiles(name)
                tiles.numbers = None  # what was there makes room first
                tiles.program(matrix(layer), Moment(self.seed, name, seconds), self.store)
                tiles.generator = stream(self.seed, "fresh", name, seconds, device=matrix(layer).device)
                if on_event is not None:
                    on_event(Event("program", done, len(self.layers), name))
        return self

    def _reserve(self) -> None:
        """Memory for all layers in one piece: in small ones, passing copies would lie between them and be kept by the allocator."""
        wanted = {name: self.tiles(name).wanted(matrix(layer), self.store) for name, layer in self.layers.items()}
        for kind, device in {(kind, device) for kind, device, size in wanted.values() if size}:
            sizes = {name: size for name, (k, d, size) in wanted.items() if size and (k, d) == (kind, device)}
            rooms = torch.empty(sum(sizes.values()), dtype=kind, device=device).split(list(sizes.values()))
            for name, room in zip(sizes, rooms, strict=True):
                self.tiles(name).room = room

    def calibrate(self, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None) -> "Mapped":
        """Set the ranges of all converters from what calibration inputs ask of them; the network computes digitally meanwhile.

        An expert that no token has reached takes the widest ranges of the layer's other experts (`borrowed`). Any other layer that no
        input has reached stays digital (`digital`): there is nothing by which to set its converters, and a layer whose weight is used
        without a call, as Mamba does with its convolution, computes digitally whatever the chip.
        """
        batches, call = list(batches), run or run_batch
        if not batches:
            raise UsageError("calibration", got="no batch", wanted="at least one")
        chip = self.chip
        passes = (["inputs"] if chip.dac.bits is not None and chip.dac.range == "calibrated" else []) + (
            ["sums"] if chip.adc.bits is not None and chip.adc.range == "calibrated" else []
        )
        called: set[str] = set()
        try:
            for mode in passes or ["digital"]:
                for name in self.layers:
                    self.tiles(name).mode = mode  # pyright: ignore[reportAttributeAccessIssue]
                with torch.no_grad(), evaluating(self.model), heard(self.layers, lambda name, _, __: called.add(name)):
                    for batch in batches:
                        call(self.model, batch)
        finally:
            for name in self.layers:
                self.tiles(name).mode = "run"
        self._settle([name for name in self.layers if name not in called or self._lacks(name, passes)], passes)
        return self

    def _lacks(self, name: str, passes: Sequence[str]) -> bool:
        """Whether calibration has left a layer without a range."""
        ranges = self.tiles(name).ranges
        return ("inputs" in passes and ranges.input is None) or ("sums" in passes and ranges.sums is None)

    def _settle(self, idle: Sequence[str], passes: Sequence[str]) -> None:
        """What becomes of layers that calibration has not reached."""
        places = Places(self.model)
        for name in idle:
            beside = [other for other in siblings(name, self.layers) if other not in idle]
            if beside:
                if passes:
                    self.borrowed[name] = f"{len(beside)} other experts of its layer"
                    self.tiles(name).ranges.widen([self.tiles(other).ranges for other in beside])
                continue
            if len(self.layers) == 1:
                raise LessenError(f"calibration of {name}", got="no input", wanted="data that reaches a layer on tiles")
            self.digital[name] = NO_INPUT
            places.exchange(self.layers[name], self.plain[name])
            del self.layers[name]

    @property
    def weights(self) -> tuple[int, int]:
        """Weights on tiles, and in all weighted modules."""
        analog = sum(matrix(layer).numel() for layer in self.layers.values())
        modules = dict(self.model.named_modules())
        digital = {id(p): p.numel() for name in self.digital for p in modules[name].parameters(recurse=False) if p.dim() > 1}
        return analog, analog + sum(digital.values())

    @property
    def physical_tiles(self) -> int:
        """Tiles that the network takes."""
        return sum(self.tiles(name).place.tiles for name in self.layers)


@strict()
def map(
    model: nn.Module,
    chip: Chip,
    *,
    split: Split | Sequence[str] | None = None,
    calibration: Iterable[Any] | None = None,
    run: Callable[[nn.Module, Any], Any] | None = None,
    store: torch.dtype | None = None,
) -> Mapped:
    """Put a network's layers on the tiles of a chip.

    Args:
        model: any module; it stays as it is, and the twin shares its parameters.
        chip: a `Chip`, from a preset or of your own.
        split: which layers stay digital, by name or pattern; behind a +, which routers lie on tiles.
        calibration: batches from which the ranges of the converters are set. Not needed where the chip has none, or states them; but only
            they tell which layers are called, and a weight that is used without a call (Mamba's convolution) is not multiplied on tiles.
        run: how a model is called with a batch; by default mappings are keywords, sequences positional, all else the one argument.
        store: keep programmed tiles in this type (`torch.float16` halves their memory; its rounding lies far below any device's noise).

    Raises:
        UsageError: a pattern that names no layer; a layer that does not fit on the chip.
    """
    rule = Split.of(split)
    _check_names(model, rule)
    parameters = {id(p): p for p in model.parameters()}
    twin = copy.deepcopy(model, dict(parameters))
    layers: dict[str, nn.Module] = {}
    digital: dict[str, str] = {}
    plain: dict[str, nn.Module] = {}
    twin, routers = _open(twin, rule)
    places, names = Places(twin), names_of(twin)
    for name, module in list(twin.named_modules()):
        if not any(p.dim() > 1 for p in module.parameters(recurse=False)):
            continue
        if any(rule.keeps(each) for each in names[module]):
            digital[name] = "kept digital"
        elif name in routers:
            digital[name] = "a router of experts stays digital unless the split puts it on tiles"
        elif kind_of(module) is None:
            digital[name] = f"{type(module).__name__} has no analog counterpart"
        else:
            layers[name], plain[name] = on_tiles(module, name, chip), module
            places.exchange(module, layers[name])
    mapped = Mapped(places.root, chip, layers, digital, store, split=rule, plain=plain)
    if not layers and "kept digital" not in digital.values():  # a network that is digital as was asked is a result
        raise UsageError("map", got="no layer for tiles", wanted="linear layers or convolutions that are not kept digital")
    _check_room(mapped)
    return mapped.calibrate(calibration, run) if calibration is not None else mapped


def _open(model: nn.Module, rule: Split) -> tuple[nn.Module, set[str]]:
    """Attention modules of torch and packs of experts hide their matrices from modules; their counterparts call them.

    Returns:
        The model, which may be such a module itself, and names of the routers that stay digital.
    """
    routers = {name for name in routers_of(model) if not rule.places(name)}
    places, names = Places(model), names_of(model)
    for name, module in list(model.named_modules()):
        if any(rule.keeps(each) for each in names[module]) or name in routers:
            continue
        if type(module) is nn.MultiheadAttention:
            places.exchange(module, AnalogAttention(module))
        elif is_pack(module):
            places.exchange(module, AnalogExperts(module))
        elif is_router(module):
            places.exchange(module, AnalogRouter(module))
    return places.root, routers


def _check_names(model: nn.Module, rule: Split) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for pattern in (*rule.digital, *rule.tiles):
        if not any(_among(name, [pattern]) for name in names):
            raise UsageError("split", got=repr(pattern), wanted="a module of the model or a pattern", remedy=nearest(pattern, names))


def _check_room(mapped: Mapped) -> None:
    """Refuse a layer that needs more tiles than the chip has; layers that fit by themselves may take turns on it (`physical_tiles`)."""
    limit = mapped.chip.system.tiles
    if limit is None or not mapped.layers:
        return
    sizes = {name: mapped.tiles(name).place.tiles for name in mapped.layers}
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] > limit:
        wanted = f"at most the {limit} of chip {mapped.chip.name}"
        raise UsageError(f"layer {largest}", got=f"{sizes[largest]} tiles", wanted=wanted, remedy="keep it digital with split=")


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call a model as the form of a batch suggests: mappings are keywords, sequences positional, all else is the one argument."""
    if isinstance(batch, dict) or hasattr(batch, "keys"):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def weighted(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the layers that could lie on tiles, as `(group output) input`, by module name."""
    return {name: matrix(module) for name, module in model.named_modules() if kind_of(module) is not None}
