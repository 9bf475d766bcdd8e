"""Everything of a chip but its converters to digital: one figure, one source, one rule of scaling for each.

    what                    figure                             at          source
    8-bit multiplication    0.2 pJ, 282 um2                    45 nm 0.9 V [1]
    32-bit addition         0.1 pJ, 137 um2                    45 nm 0.9 V [1]
    16-bit addition         0.05 pJ, 67 um2                    45 nm 0.9 V [1]
    register, one bit       0.009 pJ, 5.98 um2                 40 nm 0.9 V [2]
    SRAM, one bit           10/64 pJ sqrt(KiB / 8)             45 nm 0.9 V [1]: 10, 20, 100 pJ for 64 bits of 8 KiB, 32 KiB, 1 MiB
    SRAM, area of a bit     0.346 um2 / 0.7                    45 nm       [3], 70 % of the array taken by cells (ours)
    eDRAM, one bit          20.45/256 pJ, 83000/2^19 um2       32 nm 0.9 V [4]: 64 KiB
    shift and add           0.021 pJ, 60 um2                   32 nm 0.9 V [4]: 16 bits
    scaling by a factor     0.25 pJ                            40 nm 0.9 V [5]: 16 by 8 bits
    router, one bit and hop 20.74/256 pJ, 37500 um2 a tile     32 nm 0.9 V [4]
    wire, one bit and mm    0.15 pJ/V^2                        any         [6]: 310 pJ for 256 bits over 10 mm at 0.9 V
    DAC, one bit            0.05 pJ/V^2, none for one bit      any         [7]
    DAC, area               30 um2 a bit, 0.166 um2 for one    65, 32 nm   [8], [4]
    row or column wire      0.2 fF/um                          any         usual for minimal pitch (ours)
    DRAM, one bit           3.9 pJ                             off chip    [9]: HBM2, low for a chip with ordinary memory

Logic and memories scale by `scaling.py`, wires and DACs by the square of the supply, areas by the density of logic; DRAM does not scale.
Cells are physics: I V t, with the conductances that the weights take.

[1] Horowitz 2014, Computing's energy problem, ISSCC, figure 1.1.9, and the areas of its often repeated table. [2] Shao et al. 2014,
Aladdin, ISCA; the figure of hwcomponents-library. [3] Mistry et al. 2007, A 45nm logic technology, IEDM (the cell). [4] Shafiee et al.
2016, ISAAC, ISCA, table 6; energies of a transfer as hwcomponents-library derives them. [5] Andrulis et al. 2023, RAELLA, ISCA.
[6] Keckler et al. 2011, GPUs and the future of parallel computing, IEEE Micro 31(5), table 1. [7] Houshmand et al. 2023,
https://arxiv.org/abs/2305.18335. [8] Li et al. 2020, TIMELY, ISCA (8-bit digital-to-time converter, 240 um2 at 65 nm).
[9] O'Connor et al. 2017, Fine-Grained DRAM, MICRO, of HBM2. Supplies of [2], [4] and [5] are not published; 0.9 V is taken.
"""

from dataclasses import dataclass
from math import sqrt

from lessen.analog.chip import System
from lessen.analog.cost.scaling import area_factor, energy_factor

DRAM_PJ_A_BIT = 3.9
_WIRE_PF_A_MM = 0.2  # of the wires of an array


@dataclass(frozen=True)
class Technology:
    """Figures at a node and supply."""

    node_nm: float
    supply_v: float

    @classmethod
    def of(cls, system: System) -> "Technology":
        """That of a chip's converters and logic."""
        return cls(system.node_nm, system.supply_v)

    def _pj(self, figure: float, node_nm: float) -> float:
        return figure * energy_factor(self.node_nm, self.supply_v, of=(node_nm, 0.9))

    def _um2(self, figure: float, node_nm: float) -> float:
        return figure * area_factor(self.node_nm, of=node_nm)

    @property
    def mac_pj(self) -> float:
        """One int8 multiplication and its 32-bit addition, operands at hand.

        >>> round(Technology(45, 0.9).mac_pj, 3)
        0.3
        """
        return self._pj(0.2 + 0.1, 45)

    @property
    def mac_um2(self) -> float:
        """Multiplier, adder, and registers for two operands and a 32-bit sum."""
        return self._um2(282 + 137, 45) + self._um2(48 * 5.98, 40)

    @property
    def add_pj(self) -> float:
        """One 16-bit addition: a bias, an activation function that is a comparison, a sum of two branches."""
        return self._pj(0.05, 45)

    @property
    def add_um2(self) -> float:
        """A 16-bit adder."""
        return self._um2(67, 45)

    @property
    def register_pj(self) -> float:
        """One bit into or out of a register."""
        return self._pj(0.009, 40)

    @property
    def shift_add_pj(self) -> float:
        """One partial sum of 16 bits shifted and added."""
        return self._pj(0.021, 32)

    @property
    def shift_add_um2(self) -> float:
        """A unit for it."""
        return self._um2(60, 32)

    @property
    def scale_pj(self) -> float:
        """One 16-bit sum times its column's factor."""
        return self._pj(0.25, 40)

    def memory_pj(self, kib: float, kind: str = "sram") -> float:
        """One bit read from or written to a memory of a size; of more than a MiB in banks of one, with the wires to reach them.

        >>> [round(64 * Technology(45, 0.9).memory_pj(kib)) for kib in (8, 32, 1024)]  # published: 10, 20, 100
        [10, 20, 113]
        """
        bank = min(kib, 1024.0)
        if kind == "edram":
            return self._pj(20.45 / 256 * sqrt(bank / 64), 32) + self.wire_pj(self._reach_mm(kib, kind))
        return self._pj(10 / 64 * sqrt(bank / 8), 45) + self.wire_pj(self._reach_mm(kib, kind))

    def _reach_mm(self, kib: float, kind: str) -> float:
        """From the middle of a memory to one of its banks, on average; the way within a bank is in its own figure."""
        return 0.0 if kib <= 1024 else 0.5 * sqrt(self.memory_um2(kib, kind)) * 1e-3

    def memory_um2(self, kib: float, kind: str = "sram") -> float:
        """Area of a memory."""
        bit = self._um2(83000 / 2**19, 32) if kind == "edram" else self._um2(0.346 / 0.7, 45)
        return kib * 8192 * bit

    def wire_pj(self, mm: float) -> float:
        """One bit over a distance between tiles."""
        return 0.15 * self.supply_v**2 * mm

    @property
    def hop_pj(self) -> float:
        """One bit through a router."""
        return self._pj(20.74 / 256, 32)

    @property
    def router_um2(self) -> float:
        """A tile's share of one."""
        return self._um2(37500, 32)

    def dac_pj(self, bits: int) -> float:
        """One conversion; a single bit needs none."""
        return 0.0 if bits <= 1 else 0.05 * bits * self.supply_v**2

    def dac_um2(self, bits: int) -> float:
        """One converter."""
        return self._um2(0.166, 32) if bits <= 1 else self._um2(30.0 * bits, 65)

    def row_pj(self, cells: int, cell_um: float) -> float:
        """Charging the wire of a row of cells once."""
        return _WIRE_PF_A_MM * 1e-3 * cells * cell_um * self.supply_v**2


def cell_read_pj(conductance_us: float, read_v: float, read_ns: float, drive: float) -> float:
    """One device in one read: G V^2 t.

    Args:
        conductance_us: mean over devices.
        read_v: at full drive.
        read_ns: how long.
        drive: mean square of the inputs, over full drive: 1/3 for evenly spread inputs, 1/2 for random bits.

    >>> f"{cell_read_pj(10.0, 0.2, 100.0, 1.0) * 1000:.3g} fJ"
    '40 fJ'
    """
    return conductance_us * 1e-6 * read_v**2 * read_ns * 1e3 * drive
