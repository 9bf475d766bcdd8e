"""A device from a table of measurements is the device that made the table."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lessen.analog.chip import Chip
from lessen.analog.chipfile import dumps, loads
from lessen.analog.devices.measured import Measured, fit, from_measurements
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


def table(path: Path, device: Measured, devices: int, times: tuple[float, ...], reads: int, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    target = LEVELS.repeat_interleave(devices)
    cells = device.program(target, generator)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["target_us", "seconds", "conductance_us", "device", "comment"])
        for seconds in times:
            g = device.drifted(cells, seconds)
            sigma = device.read_sigma(g, seconds)
            for _ in range(reads):
                seen = g if sigma is None else g + sigma * torch.randn(g.shape, generator=generator)
                count = len(target)
                writer.writerows(zip(target.tolist(), [seconds] * count, seen.tolist(), range(count), [""] * count, strict=True))
    return path


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("measured") / "chip.csv", TRUE, 500, (20.0, 3600.0, 86400.0), 3)


def curve(coefficients: tuple[float, ...], x: float) -> float:
    return sum(c * x**k for k, c in enumerate(coefficients))


def test_the_fit_finds_the_device_again(measurements: Path):
    found = fit(measurements)
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


def test_what_wild_values_say_is_left_out(measurements: Path, tmp_path: Path):
    rows = measurements.read_text().splitlines()
    wild = tmp_path / "wild.csv"
    for i in range(1, len(rows), 97):  # one in a hundred reads of the first time is a stuck device or a bad contact
        cells = rows[i].split(",")
        if cells[1] == "20.0":
            rows[i] = ",".join([cells[0], cells[1], str(float(cells[0]) + 60), *cells[3:]])
    wild.write_text("\n".join(rows))
    clean, found = fit(measurements).device, fit(wild).device
    for x in (0.4, 0.9):
        assert curve(found.written, x) == pytest.approx(curve(clean.written, x), rel=0.15)
        assert curve(found.exponent, x) == pytest.approx(curve(clean.exponent, x), rel=0.05)


def test_it_survives_toml_and_samples_what_was_measured(measurements: Path):
    device = from_measurements(measurements)
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
def test_the_fit_can_be_looked_at(measurements: Path, tmp_path: Path, ending: str):
    path = tmp_path / f"fit.{ending}"
    from_measurements(measurements, plot=path)
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
    "change", [{"written": ()}, {"reading": (math.nan,)}, {"exponent_spread": (math.inf,)}, {"begins": 0.0}, {"begins": math.nan}]
)
def test_coefficients_are_numbers(change: dict[str, object]):
    with pytest.raises(UsageError, match="Measured"):
        replace(TRUE, **change)
    with pytest.raises(UsageError, match="at least 20 s"):
        TRUE.drifted(TRUE.program(torch.ones(2), torch.Generator()), 1.0)


@pytest.mark.parametrize(("name", "says"), [("fit.xyz", "ends in .svg, .png or .pdf"), ("nowhere/fit.svg", "no such file")])
def test_a_plot_that_cannot_be_written_is_refused_in_a_line(name: str, says: str, measurements: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=says):
        fit(measurements).plot(tmp_path / name)
