"""What a network costs, as data."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Energy:
    """Picojoules by what spends them.

    Attributes:
        adc, dac, cells: the macro: arrays and their converters.
        digital: sums, scales, activations, and products that are computed digitally.
        buffers: activation memories, and weight memory of digital layers.
        interconnect: between tiles.
        loading: writing weights in each inference, where the chip is too small to hold them all.
    """

    adc: float = 0.0
    dac: float = 0.0
    cells: float = 0.0
    digital: float = 0.0
    buffers: float = 0.0
    interconnect: float = 0.0
    loading: float = 0.0

    @property
    def macro(self) -> float:
        """Arrays and converters."""
        return self.adc + self.dac + self.cells

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, f.name) for f in fields(self))

    @classmethod
    def sum(cls, parts: Iterable["Energy"]) -> "Energy":
        """Of several layers."""
        parts = list(parts)
        return cls(*(sum(getattr(p, f.name) for p in parts) for f in fields(cls)))


@dataclass(frozen=True)
class Area:
    """Square micrometres by what takes them.

    Attributes:
        cells, adc, dac: of all tiles.
        digital: accumulators of the tiles, and the digital unit if anything runs on it.
        buffers: activation memories, and weight memory of the digital unit.
        interconnect: routers.
    """

    cells: float = 0.0
    adc: float = 0.0
    dac: float = 0.0
    digital: float = 0.0
    buffers: float = 0.0
    interconnect: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class LayerCost:
    """One layer in one inference.

    Attributes:
        name, kind: as in its `LayerShape`.
        where: on tiles, or on the digital unit.
        macs: multiply-accumulates.
        tiles: of one replica; 0 if digital.
        replicas: copies of the layer that share its vectors.
        utilisation: share of the weights that its tiles could hold; 0 if digital.
        conversions: of column sums.
        energy: of all replicas together.
        latency_ns: from its first input to its last output.
        busy_ns: how long it keeps its tiles from the next inference.
        baseline_pj: of the same layer on the digital int8 accelerator.
        writes: of devices in each inference; 0 where weights stay.
    """

    name: str
    kind: str
    where: str
    macs: float
    tiles: int
    replicas: int
    utilisation: float
    conversions: float
    energy: Energy
    latency_ns: float
    busy_ns: float
    baseline_pj: float
    writes: float = 0.0

    @property
    def fj_a_mac(self) -> float:
        """Energy of a multiply-accumulate with all that it needs."""
        return 1000 * self.energy.total / self.macs if self.macs else 0.0


@dataclass(frozen=True)
class Baseline:
    """The same network on a digital int8 accelerator of the same technology.

    Attributes:
        energy_pj, latency_ns: of one inference.
        area_um2: of multipliers and memories.
        macs: multiply-accumulates of one inference; fewer than the chip's where layers were divided for it.
        weights: where they lie, "sram" or "dram".
    """

    energy_pj: float
    latency_ns: float
    area_um2: float
    macs: float
    weights: str


@dataclass(frozen=True)
class Cost:
    """One inference of a network on a chip.

    Attributes:
        chip: its name.
        layers: in the order in which they run.
        area: of the chip.
        tiles: that it has.
        segments: into which the network is cut where the chip is too small; 1 if all weights stay.
        latency_ns: of one inference.
        interval_ns: between two of them, layers working as a pipeline.
        baseline: the digital accelerator beside it.
        worn_after: inferences until the devices that every segment is written on are worn out; None: never, or nobody knows when.
    """

    chip: str
    layers: tuple[LayerCost, ...]
    area: Area
    tiles: int
    segments: int
    latency_ns: float
    interval_ns: float
    baseline: Baseline
    worn_after: float | None = None

    @property
    def device_writes(self) -> float:
        """Devices that are written in an inference, each as often as it is; 0 where weights stay."""
        return sum(layer.writes for layer in self.layers)

    @property
    def energy(self) -> Energy:
        """Of all layers."""
        return Energy.sum(layer.energy for layer in self.layers)

    @property
    def energy_pj(self) -> float:
        """Of one inference."""
        return self.energy.total

    @property
    def macs(self) -> float:
        """Of one inference."""
        return sum(layer.macs for layer in self.layers)

    @property
    def analog_share(self) -> float:
        """Share of the multiply-accumulates that happen on tiles."""
        return sum(layer.macs for layer in self.layers if layer.where == "tiles") / self.macs if self.macs else 0.0

    @property
    def macro_tops_per_watt(self) -> float:
        """Operations on tiles (two for a multiply-accumulate) over what arrays and converters spend: the figure that macros advertise."""
        analog = [layer for layer in self.layers if layer.where == "tiles"]
        spent = sum(layer.energy.macro for layer in analog)
        return 2 * sum(layer.macs for layer in analog) / spent if spent else 0.0

    @property
    def chip_tops_per_watt(self) -> float:
        """All operations over all energy."""
        return 2 * self.macs / self.energy_pj if self.energy_pj else 0.0

    @property
    def tops(self) -> float:
        """Operations a second of the full pipeline, in 10^12."""
        return 2e-3 * self.macs / self.interval_ns if self.interval_ns else 0.0

    @property
    def utilisation(self) -> float:
        """Of the tiles that hold layers."""
        held = sum(layer.tiles * layer.replicas for layer in self.layers)
        return sum(layer.utilisation * layer.tiles * layer.replicas for layer in self.layers) / held if held else 0.0

    @property
    def summary(self) -> dict[str, float | None]:
        """The figures that a comparison needs, units in their names."""
        return {
            "energy_uj": self.energy_pj * 1e-6,
            "latency_us": self.latency_ns * 1e-3,
            "interval_us": self.interval_ns * 1e-3,
            "area_mm2": self.area.total * 1e-6,
            "macs": self.macs,
            "analog_share": self.analog_share,
            "tiles": self.tiles,
            "segments": self.segments,
            "device_writes": self.device_writes,
            "worn_after": self.worn_after,
            "utilisation": self.utilisation,
            "macro_tops_per_watt": self.macro_tops_per_watt,
            "chip_tops_per_watt": self.chip_tops_per_watt,
            "baseline_energy_uj": self.baseline.energy_pj * 1e-6,
            "baseline_latency_us": self.baseline.latency_ns * 1e-3,
            "baseline_area_mm2": self.baseline.area_um2 * 1e-6,
            "baseline_tops_per_watt": 2 * self.baseline.macs / self.baseline.energy_pj if self.baseline.energy_pj else 0.0,
        }

    def table(self) -> str:
        """Layers in lines, for a terminal; what is written in an inference below, if anything."""
        heads = ("layer", "where", "tiles", "used", "MMAC", "uJ", "ADC", "fJ/MAC", "us", "digital uJ")
        rows = [
            (
                layer.name,
                layer.where,
                f"{layer.tiles}" + (f" x{layer.replicas}" if layer.replicas > 1 else ""),
                f"{layer.utilisation:.1%}",
                f"{layer.macs * 1e-6:.3f}",
                f"{layer.energy.total * 1e-6:.4f}",
                f"{layer.energy.adc / layer.energy.total:.0%}" if layer.energy.total else "",
                f"{layer.fj_a_mac:.0f}",
                f"{layer.latency_ns * 1e-3:.2f}",
                f"{layer.baseline_pj * 1e-6:.4f}",
            )
            for layer in self.layers
        ]
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        lines = ["  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
                 for row in [heads, *rows]]  # fmt: skip
        if self.segments > 1:
            worn = "" if self.worn_after is None else f", which wear devices out after {self.worn_after:.3g} inferences"
            lines.append(f"in {self.segments} segments: {self.device_writes:.3g} device writes an inference{worn}")
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"summary": self.summary, "energy_pj": asdict(self.energy), **asdict(self)}
