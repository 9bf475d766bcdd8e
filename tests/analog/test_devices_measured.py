"""A device from a table of measurements is the device that made the table."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.chipfile import dumps, loads
from lessen.analog.devices.device import Cells, Device
from lessen.analog.devices.measured import Fit, Measured, fit, from_measurements, through
from lessen.analog.devices.pcm import PCM
from lessen.errors import UsageError

TRUE = Measured(
    g_max=20.0,
    written=(0.3, 1.5, -0.8),
    bias=(0.1, -0.2),
    exponent=(0.09, -0.04),
    exponent_spread=(0.024, -0.016),
    reading=(0.05, 0.15),
    begins=20.0,
)
LEVELS = torch.linspace(4.0, 20.0, 9)


def table(path: Path, device: Device, devices: int, times: tuple[float, ...], reads: int, levels: Tensor = LEVELS) -> Path:
    generator = torch.Generator().manual_seed(0)
    target = levels.repeat_interleave(devices)
    cells = device.program(target, generator)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["target_us", "seconds", "conductance_us", "device", "comment"])
        for seconds in times:
            g = device.drifted(cells, seconds)
            sigma = device.read_sigma(g, seconds, cells.conductance)
            for _ in range(reads):
                seen = g if sigma is None else g + sigma * torch.randn(g.shape, generator=generator)
                count = len(target)
                writer.writerows(zip(target.tolist(), [seconds] * count, seen.tolist(), range(count), [""] * count, strict=True))
    return path


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("measured") / "chip.csv", TRUE, 500, (20.0, 3600.0, 86400.0), 3)


@pytest.fixture(scope="module")
def again(measurements: Path) -> Fit:
    return fit(measurements)


def curve(coefficients: tuple[float, ...], x: float) -> float:
    return sum(c * x**k for k, c in enumerate(coefficients))


def test_the_fit_finds_the_device_again(again: Fit):
    found = again
    assert found.left_out == 0
    assert found.device.g_max == 20.0
    assert found.device.begins == 20.0
    for x in (0.2, 0.5, 0.8, 1.0):
        # 500 devices a level know a deviation to 3.2 %; a parabola through nine of them to 2.6 % at the ends: three of these.
        assert curve(found.device.written, x) == pytest.approx(curve(TRUE.written, x), rel=0.08)
        assert curve(found.device.exponent, x) == pytest.approx(curve(TRUE.exponent, x), abs=3 * 0.024 / math.sqrt(500))
        assert curve(found.device.bias, x) == pytest.approx(curve(TRUE.bias, x), abs=0.13)
        # 500 devices, three times, two degrees of freedom each: 1.3 %. The fit sees conductances that drift spreads over a level.
        assert curve(found.device.reading, x) == pytest.approx(curve(TRUE.reading, x), rel=0.12)
        assert curve(found.device.exponent_spread, x) == pytest.approx(curve(TRUE.exponent_spread, x), rel=0.08)


def test_two_reads_of_a_device_are_enough_to_know_their_noise(tmp_path: Path):
    found = from_measurements(table(tmp_path / "twice.csv", TRUE, 800, (20.0,), 2))
    # 800 devices a level with one degree of freedom: 2.5 % each, 1 % in the middle of nine levels.
    assert curve(found.reading, 0.6) == pytest.approx(curve(TRUE.reading, 0.6), rel=0.05)
    assert curve(found.written, 0.6) == pytest.approx(curve(TRUE.written, 0.6), rel=0.05)


def test_what_wild_values_say_is_left_out(measurements: Path, again: Fit, tmp_path: Path):
    rows = measurements.read_text().splitlines()
    wild = tmp_path / "wild.csv"
    for i in range(1, len(rows), 97):  # one in a hundred reads of the first time is a stuck device or a bad contact
        cells = rows[i].split(",")
        if cells[1] == "20.0":
            rows[i] = ",".join([cells[0], cells[1], str(float(cells[0]) + 60), *cells[3:]])
    wild.write_text("\n".join(rows))
    clean, found = again.device, fit(wild).device
    for x in (0.4, 0.9):
        assert curve(found.written, x) == pytest.approx(curve(clean.written, x), rel=0.15)
        assert curve(found.exponent, x) == pytest.approx(curve(clean.exponent, x), rel=0.05)


def test_it_survives_toml_and_samples_what_was_measured(again: Fit):
    device = again.device
    chip = Chip(device=device, name="mine")
    assert loads(dumps(chip)) == chip
    target = torch.full((200_000,), 10.0)
    cells = device.program(target, torch.Generator().manual_seed(1))
    assert float(cells.conductance.std()) == pytest.approx(curve(device.written, 0.5), rel=0.01)
    assert cells.drift is not None
    assert float(cells.drift.std()) == pytest.approx(curve(device.exponent_spread, 0.5), rel=0.01)
    sigma = device.read_sigma(torch.tensor([10.0]), 20.0)
    assert sigma is not None
    assert float(sigma) == pytest.approx(curve(device.reading, 0.5), rel=1e-5)


def test_a_table_of_another_device_gives_its_spread(tmp_path: Path):
    """Written by the PCM of the literature, whose drift differs from device to device with its state."""
    pcm, path = PCM(), tmp_path / "pcm.csv"
    generator = torch.Generator().manual_seed(0)
    target = torch.linspace(5.0, 25.0, 5).repeat_interleave(1500)
    g = pcm.program(target, generator).conductance
    rows = zip(target.tolist(), [20.0] * len(target), g.tolist(), range(len(target)), strict=True)
    path.write_text("target_us,seconds,conductance_us,device\n" + "\n".join(",".join(map(str, row)) for row in rows))
    device = from_measurements(path)
    for x in (0.2, 0.6, 1.0):
        assert curve(device.written, x) == pytest.approx(0.26348 + 1.9650 * x - 1.1731 * x * x, rel=0.06)
    assert device.exponent == (0.0,)  # one time shows no drift, one read no noise
    assert device.read_sigma(g, 20.0) is None


TIMES = (20.0, 3600.0, 86400.0)
AT = torch.linspace(5.0, 25.0, 5, dtype=torch.float64)


@pytest.fixture(scope="module")
def phase_change(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    return fit(table(tmp_path_factory.mktemp("measured") / "pcm.csv", PCM(), 2000, TIMES, 3, AT))


def test_a_table_of_phase_change_ages_as_phase_change_does(phase_change: Fit):
    pcm, device = PCM(), phase_change.device
    mean, spread = pcm.exponent(AT / 25)
    # A mean is known to 0.7 % at 5 uS. A deviation of 2000 is known to 1.6 %, where reading takes part to 2.9 %: 3.4 of these.
    torch.testing.assert_close(device.figure("exponent", AT), mean, rtol=0.05, atol=0)
    torch.testing.assert_close(device.figure("exponent_spread", AT), spread, rtol=0.1, atol=0)
    torch.testing.assert_close(device.figure("written", AT), pcm.sigma(AT), rtol=0.06, atol=0)
    assert len(device.exponent_spread) > 3  # its bend at 8 uS is none of a parabola
    assert len(device.bias) <= 2  # and there is nothing to be seen in what is zero


@pytest.mark.parametrize("seconds", [*TIMES, 3e7])
def test_its_noise_of_reading_grows_with_the_logarithm_of_time(phase_change: Fit, seconds: float):
    pcm, device = PCM(), phase_change.device
    g = pcm.drifted(Cells(AT, pcm.exponent(AT / 25)[0]), seconds)
    # 12,000 degrees of freedom a level know it to 0.6 %, growth adds 2 % in a year, and noise over a level's devices is not one figure.
    torch.testing.assert_close(device.read_sigma(g, seconds, AT), pcm.read_sigma(g, seconds, AT), rtol=0.05, atol=0)
    torch.testing.assert_close(device.read_sigma(g, seconds), pcm.read_sigma(g, seconds), rtol=0.05, atol=0)


def test_growth_is_what_one_over_f_noise_has(phase_change: Fit):
    # sigma^2 ~ ln((t + t_r) / (2 t_r)), in parts of its value at 20 s; known to 6 % from three times
    assert phase_change.device.growth == pytest.approx(1 / math.log(20 / (2 * PCM.t_read)), rel=0.2)
    chip = Chip(device=phase_change.device, name="aged")
    assert loads(dumps(chip)) == chip


def test_noise_that_does_not_grow_is_not_made_to(again: Fit, tmp_path: Path):
    # 9000 degrees of freedom at each of three times know a growth to 0.0025: two of these
    assert again.device.growth < 0.005
    assert fit(table(tmp_path / "once.csv", PCM(), 20, TIMES, 1, AT)).device.growth == 0
    assert fit(table(tmp_path / "first.csv", PCM(), 20, TIMES[:1], 4, AT)).device.growth == 0


def test_devices_that_are_off_say_nothing_of_drift(tmp_path: Path):
    """Half of the devices of no conductance have none at all; the others' noise hides what they do."""
    levels = torch.cat([torch.zeros(1, dtype=torch.float64), AT])
    found = fit(table(tmp_path / "off.csv", PCM(), 600, TIMES, 3, levels))
    assert found.left_out > 250
    assert math.isnan(found.levels[0].values["exponent"])
    # 600 devices: growth to 10 %; at the lowest level the exponent is the next one's
    assert found.device.growth == pytest.approx(0.0571, rel=0.35)
    assert float(found.device.figure("exponent", levels[:1])) == pytest.approx(0.049, rel=0.1)
    # what writing leaves of a normal error with a floor at zero: mean 0.399 and deviation 0.584 of 0.26348
    assert found.levels[0].values["bias"] == pytest.approx(0.399 * 0.26348, rel=0.2)
    assert found.levels[0].values["written"] == pytest.approx(0.584 * 0.26348, rel=0.2)


def test_noise_is_a_share_of_what_a_device_conducts():
    device = replace(TRUE, growth=0.1)
    g = torch.tensor([0.0, 10.0, 10.0, 10.0])
    sigma = device.read_sigma(g, 20.0 * math.e**3, torch.tensor([0.0, 20.0, 10.0, 1.0]))
    assert sigma is not None
    # off: all of it; half drifted away: half of that at 20 uS; as written; disturbed upward: that of what it conducts
    expected = torch.tensor([0.05, 0.2 / 2, 0.125, 0.125]) * math.sqrt(1.3)
    torch.testing.assert_close(sigma, expected, rtol=1e-5, atol=0)


def test_figures_are_held_where_nothing_was_measured(phase_change: Fit):
    device = phase_change.device
    assert device.lowest == 5.0
    low, high = (device.figure("written", torch.tensor([near, far])) for near, far in ((5.0, 0.0), (25.0, 40.0)))
    assert low[0] == low[1]
    assert high[0] == high[1]
    assert phase_change.notes == ("no target below 5 uS was measured: figures are held there",)


def test_a_polynomial_that_misses_its_figures_is_told(measurements: Path, again: Fit, tmp_path: Path):
    found = fit(measurements, degree=0)
    assert len(found.device.written) == 1
    # sigma goes from 0.6 to 1.0, which 500 devices know to 3 %: 6 of these and more on each side
    assert found.misfit["written"] > 5
    assert any(note.startswith("written: the polynomial of degree 0 is ") for note in found.notes)
    assert not any("polynomial" in note for note in again.notes)
    path = tmp_path / "fit.svg"
    found.plot(path)
    assert "the polynomial of degree 0 is" in path.read_text()


def test_the_degree_is_the_lowest_that_the_errors_ask_for():
    x = np.linspace(0, 1, 9)
    noise = np.random.default_rng(0).normal(size=9) * 0.01
    for power in range(5):
        found, away = through(x, (2 * x) ** power + noise, np.full(9, 0.01), None)
        assert len(found) == power + 1
        assert away < 3
    assert len(through(x, np.sign(x - 0.4), np.full(9, 0.01), None)[0]) == 6
    assert through(x, np.sign(x - 0.4), np.full(9, 0.01), None)[1] > 4
    assert through(x, np.full(9, np.nan), np.full(9, np.nan), None) == ((0.0,), 0.0)
    assert through(x, np.zeros(9), np.zeros(9), None) == ((0.0,), 0.0)


def test_continuous_targets_are_gathered(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4000, generator=generator) * 18 + 2
    g = TRUE.program(target, generator).conductance
    path = tmp_path / "continuous.csv"
    rows = [f"{t},20,{v},{i}" for i, (t, v) in enumerate(zip(target.tolist(), g.tolist(), strict=True))]
    path.write_text("target_us,seconds,conductance_us,device\n" + "\n".join(rows))
    found = fit(path)
    assert len(found.levels) == 16
    assert curve(found.device.written, 0.5) == pytest.approx(curve(TRUE.written, 0.5), rel=0.06)


def test_devices_read_below_zero_have_no_exponent_and_are_counted(tmp_path: Path):
    path = table(tmp_path / "low.csv", replace(TRUE, reading=(0.0,)), 20, (20.0, 3600.0), 1)
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([cells[0], cells[1], "-0.01", *cells[3:]])
    path.write_text("\n".join(lines))
    assert fit(path).left_out == 1


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_fit_can_be_looked_at(measurements: Path, again: Fit, tmp_path: Path, ending: str):
    path = tmp_path / f"fit.{ending}"
    assert from_measurements(measurements, plot=path) == again.device
    assert path.read_bytes()[:4] in (b"<?xm", b"\x89PNG")
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


HEAD = "target_us,seconds,conductance_us,device\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "no rows"),
        ("target_us,seconds,conductance_us\n1,2,3", "no column device"),
        (HEAD + "1,20,nan,0", r":2: got conductance_us = 'nan', wanted a number"),
        (HEAD + "1,20,3,0\n1,20,,0", r":3: got conductance_us = '', wanted a number"),
        (HEAD + "-1,20,3,0", r":2: got target_us = '-1', wanted a number of at least 0"),
        (HEAD + "1,0,3,0", r":2: got seconds = '0', wanted a number above 0"),
        (HEAD + "1,-5,3,0", r":2: got seconds = '-5'"),
        (HEAD + "1,soon,3,0", r":2: got seconds = 'soon'"),
        (HEAD + "0,20,0,0", "no target above 0"),
        (
            HEAD + "\n".join(f"{1 + i % 3},20,{-1 - i % 3},{i}" for i in range(30)),
            "got -3 uS as mean of the highest target, wanted conductances above 0",
        ),
        (HEAD + "1,20,1,0\n2,20,2,1", "got 2 levels of targets with at least 1 devices, wanted 3 levels or more with 8 devices"),
        (
            HEAD + "\n".join(f"{1 + i % 3},{20 + (i % 3 == 0)},{1 + i % 3 + i / 99},{i}" for i in range(30)),
            "measured at the same first time",
        ),
    ],
)
def test_tables_that_say_too_little_are_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        from_measurements(path)


def test_a_missing_table_and_a_wild_degree_are_refused(tmp_path: Path, measurements: Path):
    with pytest.raises(UsageError, match="no such file"):
        from_measurements(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="0 to 6"):
        fit(measurements, degree=9)


@pytest.mark.parametrize(
    "change",
    [
        {"written": ()},
        {"reading": (math.nan,)},
        {"exponent_spread": (math.inf,)},
        {"begins": 0.0},
        {"begins": math.nan},
        {"growth": -0.1},
        {"growth": math.nan},
        {"lowest": 20.0},
        {"lowest": -1.0},
    ],
)
def test_coefficients_are_numbers(change: dict[str, object]):
    with pytest.raises(UsageError, match="Measured"):
        replace(TRUE, **change)
    with pytest.raises(UsageError, match="at least 20 s"):
        TRUE.drifted(TRUE.program(torch.ones(2), torch.Generator()), 1.0)


@pytest.mark.parametrize(("name", "says"), [("fit.xyz", "ends in .svg, .png or .pdf"), ("nowhere/fit.svg", "no such file")])
def test_a_plot_that_cannot_be_written_is_refused_in_a_line(name: str, says: str, again: Fit, tmp_path: Path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=says):
        again.plot(tmp_path / name)
