"""From the technology in which a figure was published to the one that is asked about.

    energy: E(node, V) ~ a V^2 + b V + c, coefficients for ten nodes from 130 to 7 nm; a figure is multiplied by the ratio of two of them
    area:   a table of relative densities for the same nodes

Between two nodes both are interpolated on logarithms. The energy polynomials have their minimum below the voltages that they were fitted
to; a voltage below it counts as the minimum. Outside the table energy follows the square root of the node and area the node itself: a
guess, and slower than the table's own pace. Wires follow the voltage alone: their capacitance for a length hardly changes.

Coefficients: Stillmaker and Baas 2017, Scaling equations for the accurate prediction of CMOS device performance from 180 nm to 7 nm,
Integration 58, https://doi.org/10.1016/j.vlsi.2017.02.002 (tables of energy and area; general-purpose devices).
"""

from math import exp, log, sqrt

NODES_NM = (130.0, 90.0, 65.0, 45.0, 32.0, 20.0, 16.0, 14.0, 10.0, 7.0)
_ENERGY = (
    (7.171, -6.709, 2.904),
    (4.762, -4.781, 2.092),
    (3.755, -4.398, 1.975),
    (1.103, -0.362, 0.2767),
    (0.9559, -0.7823, 0.471),
    (0.373, -0.1582, 0.04104),
    (0.2958, -0.1241, 0.03024),
    (0.2363, -0.09675, 0.02239),
    (0.2068, -0.09311, 0.02375),
    (0.1776, -0.09097, 0.02447),
)
_AREA = (1.0, 0.44, 0.23, 0.16, 0.072, 0.033, 0.03, 0.027, 0.016, 0.0092)


def energy_factor(node_nm: float, supply_v: float, *, of: tuple[float, float]) -> float:
    """What an energy is multiplied by.

    Args:
        node_nm: where it is asked for.
        supply_v: its supply.
        of: node and supply of the published figure.

    >>> round(energy_factor(22, 0.8, of=(45, 0.9)), 3)
    0.226
    """
    return _energy(node_nm, supply_v) / _energy(*of)


def area_factor(node_nm: float, *, of: float) -> float:
    """What an area is multiplied by.

    >>> round(area_factor(16, of=130), 6)
    0.03
    """
    return _between(node_nm, _AREA, 1.0) / _between(of, _AREA, 1.0)


def _energy(node_nm: float, supply_v: float) -> float:
    def at(a: float, b: float, c: float) -> float:
        v = max(supply_v, -b / (2 * a))
        return a * v * v + b * v + c

    return _between(node_nm, tuple(at(*row) for row in _ENERGY), 0.5)


def _between(node_nm: float, values: tuple[float, ...], beyond: float) -> float:
    """The value at a node; outside the table that of its end, times the ratio of nodes to the power `beyond`."""
    inside = min(max(node_nm, NODES_NM[-1]), NODES_NM[0])
    index = next(i for i in range(1, len(NODES_NM)) if inside >= NODES_NM[i])
    (upper, lower), (first, second) = NODES_NM[index - 1 : index + 1], values[index - 1 : index + 1]
    share = log(inside / lower) / log(upper / lower)
    value = first if share == 1 else exp(share * log(first) + (1 - share) * log(second))
    return value * (sqrt(node_nm / inside) if beyond == 0.5 else node_nm / inside)
