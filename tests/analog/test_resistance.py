"""IR drop against Kirchhoff's equations, solved densely for every node."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lessen.analog.tiles.resistance import effective, far, lost_share, solve
from lessen.errors import LessenError, UsageError


def nodal(g: Tensor, volts: Tensor, ohm_row: float, ohm_column: float) -> Tensor:
    """Column currents in uA of one tile (row column) for drives (row): the conductance Laplacian of all nodes, a dense solve."""
    rows, columns = g.shape
    n = rows * columns
    laplacian, sent = torch.zeros(2 * n, 2 * n, dtype=torch.float64), torch.zeros(2 * n, dtype=torch.float64)
    row_wire, column_wire = 1e6 / ohm_row, 1e6 / ohm_column

    def join(a: int, b: int, value: float):
        for x, y in ((a, b), (b, a)):
            laplacian[x, x] += value
            laplacian[x, y] -= value

    for i in range(rows):
        for j in range(columns):
            here = i * columns + j
            join(here, n + here, float(g[i, j]))
            if j:
                join(here - 1, here, row_wire)
            if i:
                join(n + here - columns, n + here, column_wire)
        laplacian[i * columns, i * columns] += row_wire
        sent[i * columns] += row_wire * volts[i]
    ends = [n + j for j in range(columns)]
    for end in ends:
        laplacian[end, end] += column_wire
    return column_wire * torch.linalg.solve(laplacian, sent)[ends]


def tile(rows: int, columns: int, seed: int = 0, tiles: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g = torch.rand(tiles, rows, columns, generator=generator, dtype=torch.float64) * 100
    return g, torch.rand(tiles, 3, rows, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (6, 1), (5, 7), (12, 9)])
@pytest.mark.parametrize(("ohm_row", "ohm_column"), [(1.0, 1.0), (30.0, 2.0), (0.5, 200.0)])
def test_the_exact_and_the_iterative_solver_obey_kirchhoff(rows: int, columns: int, ohm_row: float, ohm_column: float):
    g, volts = tile(rows, columns)
    expected = torch.stack([torch.stack([nodal(a, v, ohm_row, ohm_column) for v in vs]) for a, vs in zip(g, volts, strict=True)])
    # The dense matrix mixes 1e6 / ohm with conductances of 1e-2: a condition number of 1e8 leaves half of float64's digits.
    torch.testing.assert_close(volts @ effective(g, ohm_row, ohm_column), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(solve(g, volts, ohm_row, ohm_column, tolerance=1e-10), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("ohm_row", "ohm_column"), [(0.0, 20.0), (20.0, 0.0)])
def test_one_kind_of_wire_alone_is_the_limit_of_both(ohm_row: float, ohm_column: float):
    g, volts = tile(8, 6)
    almost = effective(g, max(ohm_row, 1e-7), max(ohm_column, 1e-7))
    torch.testing.assert_close(effective(g, ohm_row, ohm_column), almost, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solve(g, volts, ohm_row, ohm_column), volts @ almost, rtol=1e-6, atol=1e-6)


def test_without_resistance_nothing_changes():
    g, volts = tile(4, 4)
    assert effective(g, 0.0, 0.0) is g
    torch.testing.assert_close(solve(g, volts, 0.0, 0.0), volts @ g)


def test_a_cell_that_is_not_ohmic_follows_its_curve():
    g, volts = torch.tensor([[[50.0]]], dtype=torch.float64), torch.tensor([[[0.4], [-0.4]]], dtype=torch.float64)
    powers = (torch.full_like(g, -30.0), torch.full_like(g, 15.0))
    found = solve(g, volts, 1000.0, 500.0, powers)
    v = 0.4 - found[0, 0, 0] * 1e-6 * 1500  # what is left of the drive behind both wires
    assert float(found[0, 0, 0]) == pytest.approx(float(50 * v - 30 * v**2 + 15 * v**3), rel=1e-7)
    assert float(found[0, 1, 0]) == pytest.approx(-float(found[0, 0, 0]), rel=1e-9)


def test_what_does_not_converge_is_an_error():
    g, volts = tile(16, 16)
    with pytest.raises(LessenError, match=r"IR drop: got an error of .*, wanted cell voltages"):
        solve(g, volts, 50.0, 50.0, iterations=3)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 99))
def test_wires_only_ever_lose(rows: int, columns: int, ohm_row: float, ohm_column: float, seed: int):
    g, _ = tile(rows, columns, seed)
    found = effective(g, ohm_row, ohm_column)
    assert bool((found > 0).all())
    assert bool((found.sum(1) < g.sum(1)).all())
    assert bool((effective(g, ohm_row * 2, ohm_column).sum((1, 2)) < found.sum((1, 2))).all())


def test_types_are_kept_and_float32_is_solved_in_float64():
    g, _ = tile(10, 10)
    found = effective(g.float(), 5.0, 5.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), effective(g, 5.0, 5.0), rtol=1e-6, atol=0)


def test_the_closed_form_is_that_of_an_evenly_loaded_column():
    rows, ohm = 400, 1.0
    for load in (0.01, 0.3, 1.0, 4.0, 20.0):
        g = torch.full((1, rows, 1), load / rows**2 / ohm * 1e6, dtype=torch.float64)
        kept = float(effective(g, 0.0, ohm).sum() / g.sum())
        lost = float(lost_share(torch.tensor(load, dtype=torch.float64)) * far(rows).mean())
        assert 1 - lost == pytest.approx(kept, rel=(1 + load) / rows)  # a wire of 400 pieces is nearly continuous
        cubic = load * (load * (0.05 * load - 0.2) + 0.5) * 2 / 3
        if load <= 1:
            assert lost == pytest.approx(cubic, rel=0.03)


def test_at_random_load_the_closed_form_is_right_to_second_order():
    generator = torch.Generator().manual_seed(0)
    rows, ohm = 256, 2.0
    g = torch.rand(1, rows, 64, generator=generator, dtype=torch.float64) * 10
    x = (torch.rand(rows, generator=generator) < 0.5).double()  # rows that are driven, the others disconnected
    exact = effective(g * x[:, None], 0.0, ohm).sum((0, 1))
    load = rows * ohm * 1e-6 * (x @ g[0])
    fast = x @ g[0] - lost_share(load) * ((x * far(rows)) @ g[0])
    assert float(load.min()) > 0.2
    # The driven cells lie unevenly by 1 / sqrt(128) = 9 %, and what they lose follows where they lie.
    assert float(((fast - exact).abs() / (x @ g[0] - exact)).max()) < 0.09


def test_inputs_coded_as_voltages_lose_a_share_that_no_input_changes():
    rows, ohm, load = 300, 1.0, 0.8
    g = torch.full((1, rows, 1), load / rows**2 / ohm * 1e6, dtype=torch.float64)
    u = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    expected = (math.sqrt(load) * (1 - u)).cosh() / math.cosh(math.sqrt(load))
    torch.testing.assert_close((effective(g, 0.0, ohm) / g)[0, :, 0], expected, rtol=2 / rows, atol=0)


def test_little_load_loses_half_of_itself():
    a = torch.tensor([0.0, 1e-8, 1e-4, 9.99e-3, 1.001e-2], dtype=torch.float64)
    expected = a * (0.5 - 0.2 * a)
    torch.testing.assert_close(lost_share(a), expected, rtol=2e-5, atol=0)  # 17/210 a^2 is what the series leaves out
    assert bool((lost_share(torch.linspace(0, 1e3, 100)) < 1.5).all())


@pytest.mark.parametrize(
    ("g", "ohm"),
    [
        (torch.ones(3, 3), 1.0),
        (torch.ones(1, 3, 3), -1.0),
        (torch.ones(1, 3, 3), math.nan),
        (torch.full((1, 3, 3), -1.0), 1.0),
        (torch.full((1, 3, 3), math.nan), 1.0),
    ],
)
def test_nonsense_is_refused(g: Tensor, ohm: float):
    with pytest.raises(UsageError, match="IR drop"):
        effective(g, ohm, 1.0)
