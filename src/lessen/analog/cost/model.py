"""`cost`: energy, latency and area of a network on a chip, layer by layer, and of a digital accelerator beside it.

    shapes = layers(model, lambda: model(image))
    cost(shapes, chip).table()

Layers on tiles cost what `tile` says, layers that stay digital and products of activations what `digital` says, on a unit that the chip
then has. One inference passes through the layers one after the other; as a pipeline, the next one enters when the slowest layer is free
(all digital layers share one unit).

Tiles. Without `System.tiles` the chip has as many as the network needs. With more than that, copies of the slowest layers take the rest:
a layer with R replicas serves R vectors at once, and a copy goes to the slowest layer as long as its tiles fit. With fewer, the network is
cut into segments that fit, one after the other, and all weights are written again for every inference (or for every `batch` of them): a
number that shows what such a chip is not made for. Devices that all segments share are written once for each of them, with as many pulses
as `Use` tells, and so wear out after a number of inferences (no levelling of wear is assumed). Only a layer that alone is larger than the
chip is refused.

Figures count two operations for a multiply-accumulate. Leakage, control, clock trees, input and output of the chip, and activation
memories beyond those of the tiles are not in the model.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from math import ceil, isfinite

from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.cost.adc import AdcModel
from lessen.analog.cost.components import Technology
from lessen.analog.cost.count import LayerShape
from lessen.analog.cost.digital import Digital
from lessen.analog.cost.place import place
from lessen.analog.cost.result import Area, Baseline, Cost, Energy, LayerCost
from lessen.analog.cost.tile import interval_ns, loading_pj, reads_of_vector, tile_area, tile_energy, transport_energy, vector_ns
from lessen.analog.mapping import Mapped, Split
from lessen.analog.tiles.layer import matrix
from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError, nearest


@strict()
def cost(
    shapes: Sequence[LayerShape],
    chip: Chip | Mapped,
    *,
    split: Split | Sequence[str] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    digital: Digital | None = None,
    adc: AdcModel | None = None,
    batch: int = 1,
) -> Cost:
    """What one inference of a network costs.

    Args:
        shapes: from `layers` or `language_layers`.
        chip: the same that decides accuracy; or a network on it (`map`), whose layers on tiles and weights are then what is priced. Of a
            mere chip everything that has a weight lies on tiles, also what `map` leaves digital (transposed convolutions, packed experts).
        split: which layers stay digital; a mapped network has its own.
        weights: of layers by name, as `loaded` gives them; the others are taken as normal.
        digital: the accelerator beside which the chip is set, and the unit that computes what stays digital.
        adc: prices converters in place of `System.adc_model`.
        batch: inferences for which weights are written once, if they do not all stay on the chip.

    Raises:
        LessenError: a layer that is larger than the chip.
        UsageError: ideal converters, which have no price; a split that names no layer.
    """
    if not shapes or batch < 1:
        raise UsageError("cost", got=f"{len(shapes)} layers, batch={batch}", wanted="at least one of each")
    digital, weights = digital or Digital(), weights or {}
    if isinstance(chip, Mapped):
        if split is not None:
            raise UsageError("cost(split)", got="a split and a mapped network", wanted="one of them: the network has its own")
        on_tiles, weights = [_lies_on(chip, s) for s in shapes], {name: matrix(layer) for name, layer in chip.layers.items()} | {**weights}
        chip = chip.chip
    else:
        rule = Split.of(split)
        _check_split(rule, shapes)
        on_tiles = [s.kind != "products" and not rule.keeps(s.name) for s in shapes]
    analog = [s for s, there in zip(shapes, on_tiles, strict=True) if there]
    segments = _segments(analog, chip)
    copies = _replicas(analog, chip, adc) if len(segments) == 1 else {}
    rest_kib = _kib(s for s, there in zip(shapes, on_tiles, strict=True) if not there)
    figures, all_kib, clock = Technology.of(chip.system), _kib(shapes), chip.system.clock_ghz
    found = []
    for shape, there in zip(shapes, on_tiles, strict=True):
        baseline = sum(digital.energy_pj(shape, figures, all_kib))
        if there:
            made = _on_tiles(shape, chip, weights.get(shape.name), adc, copies.get(shape.name, 1))
            if len(segments) > 1:
                energy = replace(made.energy, loading=loading_pj(shape, chip) / batch)
                made = replace(made, energy=energy, writes=place(shape, chip).devices / batch)
            found.append(replace(made, baseline_pj=baseline))
        else:
            arithmetic, memory = replace(digital, weights="sram").energy_pj(shape, figures, rest_kib)
            ns = replace(digital, weights="sram").latency_ns(shape, clock)
            energy = Energy(digital=arithmetic, buffers=memory)
            found.append(LayerCost(shape.name, shape.kind, "digital", shape.macs, 0, 1, 0.0, 0.0, energy, ns, ns, baseline))
    tiles = chip.system.tiles or sum(layer.tiles for layer in found)
    area = _area(chip, tiles, adc, digital if not all(on_tiles) else None, rest_kib)
    latency, interval = _times(found, segments, chip, batch)
    beside = digital_baseline(shapes, chip, digital)
    worn = _worn_after(chip, len(segments), batch)
    return Cost(chip.name, tuple(found), area, tiles, len(segments), latency, interval, beside, worn)


def digital_baseline(shapes: Sequence[LayerShape], chip: Chip, digital: Digital | None = None) -> Baseline:
    """The digital accelerator beside a chip, in its technology.

    Args:
        shapes: of the network as it was, where methods have divided its layers for the chip.
        chip: whose node and clock it has.
        digital: the accelerator.
    """
    digital, figures, kib = digital or Digital(), Technology.of(chip.system), _kib(shapes)
    return Baseline(
        energy_pj=sum(sum(digital.energy_pj(shape, figures, kib)) for shape in shapes),
        latency_ns=sum(digital.latency_ns(shape, chip.system.clock_ghz) for shape in shapes),
        area_um2=sum(digital.area_um2(figures, kib)),
        macs=sum(shape.macs for shape in shapes),
        weights=digital.weights,
    )


def _lies_on(mapped: Mapped, shape: LayerShape) -> bool:
    """Whether a mapped network has a layer on tiles; torch's packed projections of attention lie there as three."""
    opened = shape.name.removesuffix("in_proj_weight") + "q_proj"
    return shape.kind != "products" and (shape.name in mapped.layers or (shape.name.endswith("in_proj_weight") and opened in mapped.layers))


def _check_split(split: Split, shapes: Sequence[LayerShape]) -> None:
    for pattern in split.digital:
        if not any(Split((pattern,)).keeps(s.name) for s in shapes):
            raise UsageError("split", got=repr(pattern), wanted="a layer's name", remedy=nearest(pattern, [s.name for s in shapes]))


def _on_tiles(shape: LayerShape, chip: Chip, weight: Tensor | None, adc: AdcModel | None, replicas: int) -> LayerCost:
    where, cycles = place(shape, chip), chip.dac.cycles
    energy = Energy.sum([tile_energy(shape, chip, weight, adc), transport_energy(shape, chip, adc)])
    busy = _busy_ns(shape, chip, adc, replicas)
    latency = busy - reads_of_vector(where, chip) * interval_ns(chip, adc, where) + vector_ns(where, chip, adc)
    conversions = shape.vectors * cycles * where.conversions
    return LayerCost(
        shape.name, shape.kind, "tiles", shape.macs, where.tiles, replicas, where.utilisation, conversions, energy, latency, busy, 0.0
    )


def _busy_ns(shape: LayerShape, chip: Chip, adc: AdcModel | None, replicas: int) -> float:
    """How long an inference keeps a layer's tiles: each replica takes its share of the reads, at least one."""
    where = place(shape, chip)
    return max(1, ceil(shape.vectors * where.turns / replicas)) * chip.dac.cycles * interval_ns(chip, adc, where)


def _segments(analog: Sequence[LayerShape], chip: Chip) -> list[list[LayerShape]]:
    """Consecutive layers that fit the chip together."""
    room = chip.system.tiles
    if room is None or not analog:
        return [list(analog)]
    parts: list[list[LayerShape]] = [[]]
    left = room
    for shape in analog:
        needed = place(shape, chip).tiles
        if needed > room:
            raise LessenError(
                f"layer {shape.name}",
                got=f"{needed} tiles of {chip.array.rows} x {chip.array.columns}",
                wanted=f"at most the {room} tiles of {chip.name}",
                remedy=f"keep it digital (split), or give the chip more or larger tiles (system.tiles = {needed})",
            )
        if needed > left:
            parts.append([])
            left = room
        parts[-1].append(shape)
        left -= needed
    return parts


def _worn_after(chip: Chip, segments: int, batch: int) -> float | None:
    """Inferences until devices that every segment is written on are worn out."""
    endurance = chip.use.of(chip.device).endurance
    return endurance * batch / (chip.use.pulses_of(chip.device) * segments) if segments > 1 and isfinite(endurance) else None


def _replicas(analog: Sequence[LayerShape], chip: Chip, adc: AdcModel | None) -> dict[str, int]:
    """Copies of each layer: the slowest gets another as long as there are tiles for it."""
    left = (chip.system.tiles or 0) - sum(place(s, chip).tiles for s in analog)
    copies = {s.name: 1 for s in analog}
    slowest = [(-_busy_ns(s, chip, adc, 1), i) for i, s in enumerate(analog)]
    heapq.heapify(slowest)
    while slowest:
        _, index = heapq.heappop(slowest)
        shape = analog[index]
        needed = place(shape, chip).tiles
        if needed > left or copies[shape.name] >= shape.vectors:
            break  # nothing makes the chip faster any more
        copies[shape.name] += 1
        left -= needed
        heapq.heappush(slowest, (-_busy_ns(shape, chip, adc, copies[shape.name]), index))
    return copies


def _times(found: Sequence[LayerCost], segments: Sequence[Sequence[LayerShape]], chip: Chip, batch: int) -> tuple[float, float]:
    """Latency of an inference, and the time between two of them."""
    latency = sum(layer.latency_ns for layer in found)
    unit = sum(layer.busy_ns for layer in found if layer.where == "digital")
    busy = {layer.name: layer.busy_ns for layer in found if layer.where == "tiles"}
    if len(segments) == 1:
        return latency, max([unit, *busy.values()])
    writing = sum(max(min(s.inputs, chip.array.rows) for s in part) for part in segments) * chip.system.write_ns
    return latency + writing, max(unit, sum(max(busy[s.name] for s in part) for part in segments)) + writing / batch


def _area(chip: Chip, tiles: int, adc: AdcModel | None, digital: Digital | None, kib: float) -> Area:
    one = tile_area(chip, adc)
    area = Area(*(tiles * getattr(one, f.name) for f in fields(Area)))
    if digital is None:
        return area
    arithmetic, memory = replace(digital, weights="sram").area_um2(Technology.of(chip.system), kib)
    return replace(area, digital=area.digital + arithmetic, buffers=area.buffers + memory)


def _kib(shapes: Iterable[LayerShape]) -> float:
    """Weights of a byte each; at least a small memory."""
    return max(1.0, sum(s.weights for s in shapes) / 1024)
