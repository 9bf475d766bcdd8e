"""A chip and what follows from it: figures that a reader of its description would compute by hand."""

from math import isfinite, log10
from pathlib import Path

import torch

from lessen.analog import chipfile
from lessen.analog.chip import Chip
from lessen.analog.cost.adc import MODELS, lossless_adc_bits
from lessen.analog.cost.macro import per_mac, tops_per_mm2
from lessen.analog.encoding import Encoding, Sliced
from lessen.analog.tiles.resistance import lost_share

_MAGNITUDE = 7  # bits of a weight or an input of 8 bits, its sign left out


def chip_of(named: str | Path | Chip) -> Chip:
    """The chip that is meant: a preset by name, a TOML file by path, or a `Chip`.

    >>> chip_of("isaac").array.rows
    128
    """
    if isinstance(named, Chip):
        return named
    text = str(named)
    if isinstance(named, Path) or text.endswith(".toml") or "/" in text or Path(text).is_file():
        return chipfile.load(Path(text).expanduser())
    return chipfile.preset(text)


def rows() -> list[dict[str, str]]:
    """The presets: name, device, array, encoding, converters, source."""
    found = []
    for name in chipfile.presets():
        chip = chipfile.preset(name)
        found.append(
            {
                "name": name,
                "device": type(chip.device).__name__,
                "array": f"{chip.array.rows} x {chip.array.columns}",
                "encoding": encoding_of(chip.encoding),
                "converters": converters(chip),
                "source": chip.source,
            }
        )
    return found


def encoding_of(encoding: Encoding) -> str:
    """An encoding in words.

    >>> encoding_of(Sliced(8, 2))
    '8 bits in cells of 2, differential'
    """
    if isinstance(encoding, Sliced):
        return f"{encoding.bits} bits in cells of {encoding.cell_bits}, {type(encoding.pair).__name__.lower()}"
    return type(encoding).__name__.lower()


def converters(chip: Chip) -> str:
    """DAC and ADC in words."""
    dac = "ideal DAC" if chip.dac.bits is None else f"DAC {chip.dac.bits} bits"
    if chip.dac.bits is not None and chip.dac.cycles > 1:
        dac += f" in {chip.dac.cycles} cycles"
    adc = "ideal ADC" if chip.adc.bits is None else f"ADC {chip.adc.bits} bits for {chip.adc.columns} columns"
    return f"{dac}, {adc}"


def derived(chip: Chip) -> dict[str, str]:
    """Figures that follow from a chip, by name, in words.

    >>> derived(chip_of("isaac"))["devices for a weight"], derived(chip_of("isaac"))["reads for an input vector"]
    ('8', '15')
    """
    rows, columns = chip.array.rows, chip.columns
    found = {
        "devices for a weight": str(chip.encoding.devices),
        "weight columns of a tile": str(columns),
        "weights of a tile": f"{rows * columns:,}",
        "reference columns of a tile": _references(chip),
        "IR drop": _ir_drop(chip),
        "reads for an input vector": str(chip.dac.cycles),
        "first time described": f"{chip.device.first:g} s",
    }
    if not chip.encoding.references:
        del found["reference columns of a tile"]
    found |= _of_use(chip)
    if chip.system.tiles is not None:
        found["weights of the chip"] = f"{chip.system.tiles * rows * columns:,}"
    found["bits of the ADC"] = "ideal" if chip.adc.bits is None else f"{chip.adc.bits} with the sign"
    cell = chip.encoding.cell_bits if isinstance(chip.encoding, Sliced) else _MAGNITUDE
    drive = chip.dac.digit_bits or ((chip.dac.bits or _MAGNITUDE + 1) - 1)
    lossless = lossless_adc_bits(rows, cell, drive) + 1
    found["bits of a lossless ADC"] = f"{lossless} with the sign, for {rows} rows, {cell} bits in a cell and {drive} driven at once"
    if chip.adc.bits is None:
        return found | {"price of a conversion": "none: an ideal ADC"}
    model = MODELS[chip.system.adc_model]
    found["price of a conversion"] = f"{model.energy_pj(chip):.3g} pJ, {model.area_um2(chip):,.0f} um2, {model.sample_ns(chip):.3g} ns"
    if chip.dac.bits is None:
        return found
    mac = per_mac(chip)
    found["energy of a MAC on a full tile"] = f"{mac.total:.3g} fJ: ADC {mac.adc:.3g}, DAC {mac.dac:.3g}, cells {mac.cells:.3g}"
    if isfinite(mac.macro_tops_per_watt):
        found["macro at its peak"] = f"{mac.macro_tops_per_watt:.3g} TOPS/W, {tops_per_mm2(chip):.3g} TOPS/mm2"
    return found


def _references(chip: Chip) -> str:
    """Columns beside those of weights, one for each group of columns that is read against one; `Array.columns` leaves them no room."""
    count, weights = len(chip.encoding.shifts), chip.columns * chip.encoding.devices
    each = ", one for each digit of a weight" if isinstance(chip.encoding, Sliced) else ""
    return f"{count} beside the {weights} of weights{each}; array.columns = {chip.array.columns} does not count them"


def _ir_drop(chip: Chip) -> str:
    """What the wire of a column takes from its current, rows all driven, by the closed form (two thirds of the loss at the far end)."""
    if not chip.wires.ohm:
        return "none described (wires.ohm = 0)"
    middle = (chip.device.g_min + chip.device.g_max) / 2
    load = torch.tensor(chip.array.rows**2 * chip.wires.ohm * middle * 1e-6, dtype=torch.float64)
    lost = 2 / 3 * float(lost_share(load))
    told = "0.1% at most" if lost < 1e-3 else f"{lost:.1%}"
    return f"{told} of the current of a column of {chip.array.rows} devices of {middle:.3g} uS, all driven, by the wire of the column alone"


def _of_use(chip: Chip) -> dict[str, str]:
    """What writing and reading do to the devices."""
    worn, year = chip.use.of(chip.device), 365 * 86400
    pulses, tolerance = chip.use.pulses_of(chip.device), chip.use.tolerance_us
    why = ", as stated" if tolerance is None else f" on average, to be within {tolerance:g} uS in the middle of the range"
    found = {"pulses for a value": f"{pulses:.3g}{why}"}
    if not isfinite(worn.endurance):
        return found
    whose = ", an order of magnitude" if chip.use.endurance is None else ""
    life, rate = chip.use.life_seconds(chip.device), "as often as stated"
    if not isfinite(life):
        life, rate = worn.lifetime_seconds(pulses, 1 / 86400), "once a day"
    found["endurance"] = f"{worn.endurance:.0e} pulses{whose}: {life / year:,.4g} years if every value is written {rate}"
    found["read disturb"] = f"{worn.disturb:.1%} a decade of reads beyond {worn.onset:.0e}" if worn.disturb else "none known"
    if worn.disturb and chip.use.reads_a_second:
        moved = worn.disturb * log10(1 + chip.use.reads_a_second * year / worn.onset)
        found["read disturb"] += f": {moved:.1%} after a year at {chip.use.reads_a_second:g} reads a second"
    return found


def description(chip: Chip) -> str:
    """A chip as TOML to edit, what follows from it in comments below."""
    figures = "".join(f"# {name}: {value}\n" for name, value in derived(chip).items())
    return f"{chipfile.dumps(chip)}\n# What follows from it:\n{figures}"
