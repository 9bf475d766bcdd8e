"""IR drop: wires between cells have resistance, so a cell sees less voltage than its row is driven with.

A driver feeds each row at its first column, an amplifier holds each column at zero volts at its first row. Neighbouring cells, a driver and
its first cell, an amplifier and its first cell, are one wire resistance apart. Three ways to the column currents:

`lost_share`  closed form for inputs coded in time: a row is driven with full voltage for a time x, then disconnected; rows lose nothing.
              Let the driven cells load the wire evenly, a = rows r sum(g x), u the distance from the amplifier: the wire's voltage obeys
              v'' = -a (1 - v), v(0) = 0, v'(1) = 0, hence 1 - v(u) = cosh(sqrt(a) (1 - u)) / cosh(sqrt(a)), and the column delivers
              tanh(sqrt(a)) / sqrt(a) of its current. Spread over the cells in the shape of the first order, 1 - (1 - u)^2, which takes 2/3
              at even load, the lost share is c(a) = 3/2 (1 - tanh(sqrt(a)) / sqrt(a)) = a/2 - a^2/5 + ...
              aihwkit's fast model (rpu_forward_backward_pass.cpp) has the cubic c = a (a (0.05 a - 0.2) + 0.5), the same within 3 % up to
              a = 1; beyond, it grows without bound. Exact for an even load that is the same at all times; `wires.lost` says what is done
              about others (inputs spread evenly over their range have a third more loss, since most rows are driven at first).
`effective`   exact for ohmic cells and inputs coded as voltages: rows at zero volts stay connected and take current from the columns. The
              network is linear, so it equals a crossbar of other conductances without wires, found once. Row after row is eliminated from
              the nodal equations (Schur complements, as in a block tridiagonal solve), from the far end to the amplifiers. With wires of
              one direction only every line is a ladder of its own, and as cheap as reading the conductances a few times.
`solve`       any current-voltage curve, by relaxation of the cells' voltages (the scheme of CrossSim): currents from voltages, drops as two
              running sums along each wire, step by 2 / (1 + lambda), the best step of Richardson's iteration for eigenvalues in
              [1, lambda]; lambda is bounded by Collatz and Wielandt's quotient, since the operator has no negative entry.

Rule of thumb: one line loses rows^2 g r / 2 at its far end; 512 rows of 25 uS with 0.35 ohm lose more than what they carry.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError

Powers = tuple[Tensor, Tensor]
"""Coefficients of V^2 and V^3 of every cell, in uS/V and uS/V^2."""


def lost_share(load: Tensor) -> Tensor:
    """Share c of a column's current that its wire loses at its far end, from the load a (see above).

    >>> [round(c, 3) for c in lost_share(torch.tensor([0.0, 0.1, 100.0])).tolist()]
    [0.0, 0.048, 1.35]
    """
    root = load.clamp(min=1e-12).sqrt()
    # Below a hundredth the difference of two nearly equal numbers loses digits; the series has them.
    series = load * (0.5 - 0.2 * load)
    return torch.where(load < 1e-2, series, 1.5 * (1 - root.tanh() / root))


def far(rows: int) -> Tensor:
    """The shape of the loss along a column: 1 - (1 - u)^2, u from the amplifier; the first row of a tile is nearest to it."""
    u = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    return 1 - (1 - u) ** 2


def effective(conductance: Tensor, ohm_row: float, ohm_column: float) -> Tensor:
    """Conductances of a crossbar with ideal wires that passes the same currents.

    Args:
        conductance: `tile row column`, in microsiemens, not negative.
        ohm_row: from cell to cell along a row.
        ohm_column: along a column; the first row is nearest to the amplifiers.

    Returns:
        The same shape and type; work in float64, cubic in the columns for each row.
    """
    _check(conductance, ohm_row, ohm_column)
    if not ohm_row and not ohm_column:
        return conductance
    g = conductance.to(torch.float64)
    if not ohm_row:
        found = _columns_alone(g, ohm_column * 1e-6)
    elif not ohm_column:
        found = _columns_alone(g.transpose(1, 2), ohm_row * 1e-6).transpose(1, 2)
    else:
        found = _both(g, ohm_row * 1e-6, ohm_column * 1e-6)
    return found.to(conductance)


def _columns_alone(g: Tensor, r: float) -> Tensor:
    """Rows of no resistance: every column is a ladder, from its far end to its amplifier.

    By reciprocity the current that a volt on row i sends into the amplifier is the current that a volt at the amplifier would send into row
    i: g_i times the voltage there. `beyond` is the conductance of all that lies farther from the amplifier than a node.
    """
    beyond = torch.zeros_like(g[:, 0])
    passed = torch.empty_like(g)  # voltage of a node over that of the next one towards the amplifier
    for i in reversed(range(g.shape[1])):
        seen = beyond + g[:, i]
        passed[:, i] = 1 / (1 + r * seen)
        beyond = seen * passed[:, i]
    return g * passed.cumprod(1)


def _both(g: Tensor, r_row: float, r_column: float) -> Tensor:
    """Rows and columns: the ladder of `_columns_alone` with a matrix for each number.

    A row with its driver is, seen from its column nodes, the conductances S_i = G - G T^-1 G with T the row wire's equations, and a source
    G T^-1 e_1 / r for each volt. `passed` maps voltages of a row's column nodes to those of the row beyond it.
    """
    tiles, _, columns = g.shape
    eye = torch.eye(columns, dtype=g.dtype, device=g.device).expand(tiles, -1, -1)
    wire = 2 * torch.eye(columns, dtype=g.dtype, device=g.device) - torch.diag(g.new_ones(columns - 1), 1)
    wire -= torch.diag(g.new_ones(columns - 1), -1)
    wire[-1, -1] = 1.0
    beyond = torch.zeros_like(eye)
    passed, sources = [], []
    for cells in g.flip(1).unbind(1):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(wire + r_row * torch.diag_embed(cells)))  # T^-1 / r
        sources.append(cells * inverse[:, :, 0])
        seen = beyond + torch.diag_embed(cells) - r_row * cells[:, :, None] * inverse * cells[:, None]
        passed.append(torch.cholesky_inverse(torch.linalg.cholesky(eye + r_column * seen)))
        beyond = seen @ passed[-1]
        beyond = (beyond + beyond.mT) / 2  # symmetric but for rounding, which must not grow from row to row
    voltage, found = eye, torch.empty_like(g)
    for i, (step, source) in enumerate(zip(reversed(passed), reversed(sources), strict=True)):
        voltage = step @ voltage
        found[:, i] = (source[:, None] @ voltage)[:, 0]
    return found


def solve(
    conductance: Tensor,
    volts: Tensor,
    ohm_row: float,
    ohm_column: float,
    powers: Powers | None = None,
    *,
    tolerance: float = 1e-9,
    iterations: int = 1000,
) -> Tensor:
    """Column currents in microamperes, `tile vector column`, by iteration.

    Args:
        conductance: `tile row column`, in microsiemens.
        volts: `tile vector row`, with which the rows are driven.
        ohm_row: from cell to cell along a row.
        ohm_column: along a column.
        powers: of cells that are not ohmic; the curve is odd, I(-V) = -I(V).
        tolerance: largest error of a cell's voltage, in parts of the largest drive.
        iterations: after which it is given up.

    Raises:
        LessenError: not converged.
    """
    _check(conductance, ohm_row, ohm_column)
    g, driven = conductance[:, None], volts[..., None]

    def current(v: Tensor) -> Tensor:
        if powers is None:
            return g * v
        return g * v + v.abs() * v * powers[0][:, None] + v**3 * powers[1][:, None]

    def dropped(i: Tensor) -> Tensor:
        """Voltage lost on both wires up to each cell."""
        along = i.flip(-1).cumsum(-1).flip(-1).cumsum(-1)
        down = i.flip(-2).cumsum(-2).flip(-2).cumsum(-2)
        return (along * ohm_row + down * ohm_column) * 1e-6

    step = 2 / (1 + _largest(lambda v: v + dropped(g * v), torch.ones_like(g * driven[:, :1])))
    v = driven.expand(-1, -1, -1, conductance.shape[2])
    scale = float(volts.abs().max()) if volts.numel() else 0.0
    error = float("inf")
    for _ in range(iterations):
        missing = driven - dropped(current(v)) - v
        error = float(missing.abs().max()) if missing.numel() else 0.0
        if error <= tolerance * scale:
            return current(v).sum(-2)
        if not error < 1e6 * max(scale, 1e-30):
            break
        v = v + step * missing
    wanted = f"cell voltages within {tolerance:g} of the drive after {iterations} iterations"
    raise LessenError("IR drop", got=f"an error of {error / max(scale, 1e-30):.2g}", wanted=wanted, remedy="fewer rows, or less resistance")


def _largest(operator: Callable[[Tensor], Tensor], v: Tensor) -> float:
    """An upper bound of the largest eigenvalue of a linear operator without negative entries: max (Mv / v) for any positive v."""
    for _ in range(8):
        v = operator(v)
        v = v / v.amax()
    return float((operator(v) / v).max())


def _check(conductance: Tensor, ohm_row: float, ohm_column: float) -> None:
    if conductance.ndim != 3:
        raise UsageError("IR drop", got=f"conductances of shape {tuple(conductance.shape)}", wanted="tile row column")
    if not (0 <= ohm_row < float("inf") and 0 <= ohm_column < float("inf")):
        raise UsageError("IR drop", got=f"{ohm_row:g} and {ohm_column:g} ohm", wanted="resistances of at least 0")
    if conductance.numel() and not 0 <= float(conductance.min()) <= float(conductance.max()) < float("inf"):
        raise UsageError("IR drop", got="a negative conductance or NaN", wanted="conductances of at least 0")
