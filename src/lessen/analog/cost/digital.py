"""The same products on a digital int8 accelerator, so that an analog chip is compared with what it competes with.

A weight-stationary array of `side` x `side` multipliers: a block of weights is loaded, vectors stream through it, partial sums move down
the columns. For a matrix of K x N that meets V vectors (small groups lie on the array block-diagonally)

    energy = macs (multiply + 40 register bits)
           + V K ceil(N / side) activations and V N (2 (ceil(K / side) - 1) partial sums of 32 bits + 1 result), feeding buffer
           + every activation once from the activation memory, every weight once a pass from the weight memory
    cycles = ceil(K / side) ceil(N / side) (V + side)

All vectors of an inference are one pass, unless the partial sums of a matrix with more than `side` inputs overflow half of the buffer. In
a network that gives every weight one vector (a language model that generates) the fetch is nearly all there is. Leakage, control and
clock trees are left out here as they are for the analog chip.
"""

from dataclasses import dataclass
from typing import Literal

from lessen.analog.cost.components import DRAM_PJ_A_BIT, Technology
from lessen.analog.cost.count import LayerShape
from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Digital:
    """An int8 accelerator."""

    side: int = 64
    """Multipliers in a row and in a column."""
    weights: Literal["sram", "dram"] = "sram"
    """Where weights lie: all on the chip, or beside it."""
    buffer_kib: float = 64.0
    """Buffer that feeds the array and keeps partial sums."""
    memory_kib: float = 1024.0
    """Activation memory behind it."""
    dram_gb_s: float = 100.0
    """Bandwidth of the memory beside the chip."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("side", "buffer_kib", "memory_kib", "dram_gb_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError("Digital", got=f"{name}={getattr(self, name)}", wanted="a positive number")

    def energy_pj(self, shape: LayerShape, technology: Technology, weights_kib: float) -> tuple[float, float]:
        """One inference of a layer: arithmetic, and memories.

        Args:
            shape: the layer.
            technology: figures at a node.
            weights_kib: all weights that lie in the weight memory.
        """
        vectors, inputs, outputs, groups = shape.vectors, shape.inputs, shape.outputs, shape.groups
        arithmetic = shape.macs * (technology.mac_pj + 40 * technology.register_pj)
        bit, behind = technology.memory_pj(self.buffer_kib), technology.memory_pj(self.memory_kib)
        deep, wide = -(-inputs // self.side), -(-outputs // self.side)
        fed = 8 * vectors * groups * inputs * wide + vectors * groups * outputs * (2 * 32 * (deep - 1) + 8)
        memory = fed * bit + 8 * shape.reads * (behind + bit)
        if shape.weights:
            source = technology.memory_pj(weights_kib) if self.weights == "sram" else DRAM_PJ_A_BIT
            memory += 8 * shape.weights * min(1.0, vectors) * self._passes(shape) * (source + bit)
        return arithmetic, memory

    def latency_ns(self, shape: LayerShape, clock_ghz: float) -> float:
        """One inference of a layer; no sooner than its weights arrive."""
        side = self.side
        if shape.groups > 1 and shape.inputs <= side and shape.outputs <= side:
            blocks = -(-shape.groups // min(side // shape.inputs, side // shape.outputs))
        else:
            blocks = shape.groups * -(-shape.inputs // side) * -(-shape.outputs // side)
        computing = blocks * min(1.0, shape.vectors) * (max(shape.vectors, 1.0) + side) / clock_ghz
        if self.weights == "sram":
            return computing
        return max(computing, shape.weights * min(1.0, shape.vectors) * self._passes(shape) / self.dram_gb_s)

    def area_um2(self, technology: Technology, weights_kib: float) -> tuple[float, float]:
        """Multipliers, and memories on the chip."""
        held = weights_kib if self.weights == "sram" else 0.0
        memory = sum(technology.memory_um2(kib) for kib in (self.buffer_kib, self.memory_kib, held))
        return self.side**2 * technology.mac_um2, memory

    def _passes(self, shape: LayerShape) -> int:
        """How often weights are fetched in an inference."""
        kept = shape.vectors * self.side * 4 if shape.inputs > self.side else 0.0
        return max(1, int(-(-kept // (self.buffer_kib * 512))))
