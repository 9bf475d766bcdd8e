"""A chip, described once: what it computes and what that costs follow from the same object.

    Chip(device=PCM(), encoding=Differential(), dac=Dac(8), adc=Adc(8), array=Array(512, 512))

Every part is a frozen dataclass of its own; a chip in TOML is the same nesting in tables.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from lessen.analog.devices.device import Device
from lessen.analog.devices.faults import Faults
from lessen.analog.devices.wear import Use
from lessen.analog.encoding import Differential, Encoding
from lessen.analog.periphery import Adc, Dac, Wires
from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Array:
    """Cells that are read at once."""

    rows: int = 512
    """Inputs of a tile."""
    columns: int = 512
    """Physical columns of a tile; a weight takes as many as its encoding has devices."""
    blocks: int | None = None
    """Groups of one layer (grouped and depthwise convolutions) that share a tile at most, read in turn; None: as many as fit."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rows < 1 or self.columns < 1:
            raise UsageError("Array", got=f"{self.rows} x {self.columns}", wanted="at least one row and one column")
        if self.blocks is not None and self.blocks < 1:
            raise UsageError("Array", got=f"blocks={self.blocks}", wanted="at least one group on a tile, or none for as many as fit")

    def __repr__(self) -> str:  # sizes are what is read in tables
        limit = "" if self.blocks is None else f", blocks={self.blocks}"
        return f"Array(rows={self.rows}, columns={self.columns}{limit})"


@dataclass(frozen=True)
class System:
    """What holds the tiles together; only the cost depends on it."""

    node_nm: float = 22.0
    """Technology of converters and logic."""
    tiles: int | None = None
    """On the chip; None: as many as the network needs."""
    clock_ghz: float = 1.0
    """Of the digital unit."""
    read_ns: float = 100.0
    """One read of an array, converters left out."""
    adc_rate: float = 1e8
    """Samples a second of one ADC."""
    buffer_kib: float = 64.0
    """Activation memory beside a tile."""
    supply_v: float = 0.8
    """Of converters and logic."""
    read_v: float = 0.2
    """Across a cell at full drive."""
    adc_model: Literal["survey", "successive"] = "survey"
    """Whose formulae price a converter (`analog.cost.adc`)."""
    buffer: Literal["sram", "edram"] = "sram"
    """Kind of the activation memory."""
    cluster: int = 1
    """Tiles that share a buffer and a router."""
    cell_f2: float = 48.0
    """Area of one cell in squares of the node; 48 is NeuroSim's default for one transistor and one resistor."""
    write_pj: float = 100.0
    """Writing one device, all pulses and readings of its verification included: an order of magnitude that varies a hundredfold."""
    write_ns: float = 1000.0
    """Writing one row of a tile, verification included."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("node_nm", "clock_ghz", "read_ns", "adc_rate", "buffer_kib", "supply_v", "read_v", "cell_f2", "write_pj", "write_ns"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError("System", got=f"{name}={getattr(self, name)}", wanted="a positive number")
        if self.tiles is not None and self.tiles < 1:
            raise UsageError("System", got=f"tiles={self.tiles}", wanted="at least one tile, or none for as many as are needed")
        if self.cluster < 1:
            raise UsageError("System", got=f"cluster={self.cluster}", wanted="at least one tile")


@dataclass(frozen=True)
class Chip:
    """All that decides what a network does on this hardware."""

    device: Device = Device()
    encoding: Encoding = Differential()
    dac: Dac = Dac(bits=None)
    adc: Adc = Adc(bits=None)
    wires: Wires = Wires(ohm=0.0)
    array: Array = Array()
    faults: Faults = Faults()
    reads: Literal["frozen", "fresh", "quiet"] = "frozen"
    """Noise of reading: one draw for an evaluation, a new one for every input vector, or none."""
    compensation: Literal["none", "tile", "column"] = "none"
    """Digital correction of drift from a reading of known inputs: one factor for each tile, or for each of its columns."""
    system: System = System()
    use: Use = Use()
    """How often its devices are read and written, and how they stand it."""
    name: str = "unnamed"
    source: str = ""
    """Where its numbers are from."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.array.columns < self.encoding.devices:
            got = f"{self.array.columns} columns, {self.encoding.devices} devices for a weight"
            raise UsageError(f"chip {self.name}", got=got, wanted="columns enough for one weight")
        linear = self.wires.ohm and self.wires.model in ("columns", "solved")
        if linear and self.device.powers(torch.tensor([self.device.g_max])) is not None:
            got = f"wires.model={self.wires.model!r}, which takes cells to be ohmic, with {type(self.device).__name__}, which is not"
            remedy = 'wires.model="iterative" solves the curve for every input vector'
            raise UsageError(f"chip {self.name}", got=got, wanted="a model of wires for its curve", remedy=remedy)

    @property
    def columns(self) -> int:
        """Weight columns of a tile."""
        return self.array.columns // self.encoding.devices
