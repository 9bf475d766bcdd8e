"""What networks cost on analog chips: the formulae against their sources, published chips, two networks, and a search for better chips.

Converters: the regression's table, and the package that it is from, unpacked into a folder of its own. Published chips: the presets with
all cells in use, as their makers count, beside what was measured; nothing is tuned to agree. Networks: EfficientNet-Lite0 on a picture and
SmolLM2-135M on a prompt of 256 tokens and on the token after it, with every weight on the chip. The search: array sizes, converter bits,
slices, devices and converter noise for Lite0, with the logits' signal-to-noise ratio on 8 pictures, one day after programming, as quality.
There its depthwise convolutions are digital, which costs less and is less fragile: 1 % of noise on the other weights alone leaves 10 dB.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import torch

from benchmarks import assets
from benchmarks.harness import Goal, Row, Session, at_least, at_most
from benchmarks.peers import hwcomponents_adc
from lessen.analog.chip import Array, Chip
from lessen.analog.chipfile import preset, presets
from lessen.analog.cost.adc import survey_area_um2, survey_energy_pj
from lessen.analog.cost.components import Technology
from lessen.analog.cost.count import LayerShape, language_layers, layers, loaded
from lessen.analog.cost.digital import Digital
from lessen.analog.cost.macro import per_mac
from lessen.analog.cost.model import cost
from lessen.analog.encoding import Differential, Sliced
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac
from lessen.analog.search.explore import Search, explore
from lessen.errors import LessenError

# pJ and um2 of 4 to 10 bits at 100 MS/s, evaluated outside this project
TABLE = {
    65: [(3.50, 9860), (3.55, 9900), (4.04, 10289), (4.97, 10951), (6.49, 11862), (8.87, 13020), (12.5, 14443)],
    32: [(0.924, 3274), (0.936, 3287), (1.07, 3417), (1.31, 3637), (1.71, 3939), (2.34, 4324), (3.31, 4796)],
    22: [(0.457, 1828), (0.463, 1835), (0.527, 1907), (0.649, 2030), (0.847, 2199), (1.16, 2414), (1.64, 2678)],
}
DAY = 86400.0
TOKENS = 256
TRIALS = 30


def rows(session: Session) -> Iterator[Row | None]:
    torch.set_num_threads(1)
    yield session.row("converters", lambda: _converters(session.smoke))
    yield session.row("two cases", _cases)
    yield session.row("published chips", _published)
    yield session.row("EfficientNet-Lite0", lambda: _network(_lite0_shapes(session.smoke)))
    if not session.smoke:
        yield session.row("SmolLM2", _language)
    yield session.row("search", lambda: _search(session.smoke))


def _converters(smoke: bool) -> Row:
    """Cells of the table that differ in the third digit (energy) or the unit (area), and the largest difference to the package."""
    wrong = 0
    for node, cells in TABLE.items():
        for bits, (energy, area) in enumerate(cells, start=4):
            wrong += float(f"{survey_energy_pj(bits, node, 1e8):.3g}") != energy
            wrong += round(survey_area_um2(bits, node, 1e8)) != area
    found: Row = {"cells": 2 * sum(len(cells) for cells in TABLE.values()), "wrong": wrong}
    if smoke:
        return found
    try:
        hwcomponents_adc.install()
    except LessenError as error:
        return found | {"not_installed": str(error)}
    differences, compared = [], 0
    for bits in (4, 5.5, 6, 8, 10, 12, 14):
        for node in (7, 14, 22, 40, 65, 130):
            for rate in (1e6, 1e8, 1e9, 5e9):
                ours = survey_energy_pj(bits, node, rate), survey_area_um2(bits, node, rate)
                differences += [abs(a / b - 1) for a, b in zip(ours, hwcomponents_adc.price(bits, node, rate), strict=True)]
                compared += 2
    return found | {"package": hwcomponents_adc.REQUIREMENT, "compared": compared, "largest_difference": max(differences)}


def _cases() -> Row:
    """Conversions for one multiply-accumulate, in femtojoules: a tall array read once, and a short one with 4 slices read 8 times."""
    tall = Chip(dac=Dac(8), adc=Adc(8), array=Array(512, 512))
    serial = replace(tall, dac=Dac(9, digit_bits=1), encoding=Sliced(8, 2), array=Array(128, 128))
    return {
        "tall_fj": per_mac(tall).adc,
        "serial_fj": per_mac(serial).adc,
        "tall": asdict(per_mac(tall)),
        "serial": asdict(per_mac(serial)),
    }


def _full(chip: Chip) -> dict[str, Any]:
    """All tiles of a chip in use by one matrix as wide as it is deep."""
    side = int((chip.system.tiles or 1) ** 0.5)
    inputs, outputs = side * chip.array.rows, side * chip.columns
    shape = LayerShape("all tiles", "linear", inputs, outputs, 1, 1.0, float(inputs))
    found = cost([shape], replace(chip, system=replace(chip.system, tiles=side * side)))
    keys = ("macro_tops_per_watt", "chip_tops_per_watt", "area_mm2")
    energy = {f"{name}_fj_a_mac": 1000 * value / shape.macs for name, value in asdict(found.energy).items()}
    return {key: found.summary[key] for key in keys} | {"tops": found.tops} | energy


def _published() -> Row:
    """Ours and theirs, figure by figure."""
    hermes = preset("pcm-hermes")
    quick = replace(hermes, system=replace(hermes.system, read_ns=133.0, adc_rate=7.5e6))
    isaac, at32, at130 = preset("isaac"), Technology(32, 0.9), Technology(130, 1.8)
    return {
        "hermes, one phase": _full(quick) | {"published_tops": 63.1, "published_tops_per_watt": 9.76},
        "hermes, four phases": _full(hermes) | {"published_tops": 16.1, "published_tops_per_watt": 2.48},
        "isaac": _full(isaac) | {"published_tops_per_watt": 0.38, "published": "16-bit operations, from memory"},
        "isaac, converter": {"pj": survey_energy_pj(8, 32, 1.2e9), "um2": survey_area_um2(8, 32, 1.2e9), "published_pj": 1.667,
                             "published_um2": 1200},
        "isaac, row driver": {"pj": at32.dac_pj(1) + at32.row_pj(128, 48**0.5 * 0.032), "published_pj": 0.417},
        "isaac, shift and add": {"pj": at32.shift_add_pj, "published_pj": 0.021, "same_source": True},
        "neurram, converter of 8 bits": {"pj": survey_energy_pj(8, 130, 1e6), "um2": survey_area_um2(8, 130, 1e6),
                                         "published_pj_least": 0.3 + 1.2 + 0.25, "published_pj_most": 128 * 0.3 + 7 * (1.2 + 0.25)},
        "neurram, shift and add": {"pj": at130.shift_add_pj, "published_pj": 0.1},
        "raella, scaling": {"pj": Technology(40, 0.9).scale_pj, "published_pj": 0.25, "same_source": True,
                            "from_horowitz_pj": 2 * 0.2 * Technology(40, 0.9).mac_pj / 0.3},
        "int8 multiply-accumulate, 7 nm, with registers": {"pj": Technology(7, 0.8).mac_pj + 40 * Technology(7, 0.8).register_pj,
                                                           "published_pj": "0.05 to 0.1 with local SRAM, prior knowledge"},
    }  # fmt: skip


@cache
def _lite0(smoke: bool) -> torch.nn.Module:
    from benchmarks.lite0 import classifier

    return classifier(smoke)


@cache
def _lite0_shapes(smoke: bool) -> tuple[list[LayerShape], torch.nn.Module]:
    model, side = _lite0(smoke), 32 if smoke else 224
    return layers(model, lambda: model(torch.zeros(1, 3, side, side))), model


def _depthwise(shapes: list[LayerShape]) -> list[str]:
    return [shape.name for shape in shapes if shape.kind == "depthwise"]


def _priced(chip: Chip) -> Chip:
    """A preset with prices for what it leaves ideal, and as many tiles as it takes."""
    dac = chip.dac if chip.dac.bits else replace(chip.dac, bits=8)
    adc = chip.adc if chip.adc.bits else replace(chip.adc, bits=8)
    return replace(chip, dac=dac, adc=adc, system=replace(chip.system, tiles=None))


def _network(counted: tuple[list[LayerShape], torch.nn.Module]) -> Row:
    """One inference on every preset, all weights on the chip, and on a chip with room for copies of slow layers."""
    shapes, model = counted
    weights = loaded(model, shapes)
    found = {name: cost(shapes, _priced(preset(name)), weights=weights).summary for name in presets()}
    best = _priced(preset("pcm-nandakumar"))
    needed = cost(shapes, best).tiles
    for times in (2, 4):
        room = replace(best, system=replace(best.system, tiles=times * needed))
        found[f"pcm-nandakumar, {times} times the tiles"] = cost(shapes, room, weights=weights).summary
    apart = replace(best, array=replace(best.array, blocks=8))
    found["pcm-nandakumar, at most 8 groups on a tile"] = cost(shapes, apart, weights=weights).summary
    split = cost(shapes, best, weights=weights, split=_depthwise(shapes))
    found["pcm-nandakumar, depthwise convolutions digital"] = split.summary
    layer = {c.kind: c for c in sorted(cost(shapes, best, weights=weights).layers, key=lambda c: c.macs)}
    kinds = {kind: {"name": c.name, "utilisation": c.utilisation, "fj_a_mac": c.fj_a_mac} for kind, c in layer.items()}
    return {"chips": found, "largest_of_a_kind": kinds}


def _language() -> Row:
    """A prompt and the token after it, on a chip that holds all weights, beside digital accelerators with memory on and off the chip."""
    from benchmarks.material import material
    from lessen.models import load

    prompt, token = language_layers(load(material().model("shipped")).eval(), TOKENS)
    chip = _priced(preset("pcm-nandakumar"))
    found = {}
    for name, shapes in (("prompt", prompt), ("token", token)):
        for where in ("sram", "dram"):
            found[f"{name}, baseline with weights in {where}"] = cost(shapes, chip, digital=Digital(weights=where)).summary
    return {"tokens": TOKENS, "runs": found}


def _searched(smoke: bool) -> dict[str, Any]:
    if smoke:
        return {"array": [Array(32, 32), Array(64, 64)], "adc.bits": [6, 8]}
    devices = [preset(name).device for name in ("pcm-nandakumar", "rram-cmo", "nor-wtm2101", "sonos-40nm")]
    return {
        "array": [Array(128, 128), Array(256, 256), Array(512, 512), Array(1024, 512)],
        "adc.bits": [5, 6, 7, 8, 9],
        "adc.noise": [0.0, 0.5],
        "encoding": [Differential(), Sliced(8, 4), Sliced(8, 2)],
        "device": devices,
    }


@cache
def _pictures(smoke: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from benchmarks.lite0 import pictures

    seen, held = pictures(4, odd=False, smoke=smoke), pictures(8, odd=True, smoke=smoke)
    with torch.no_grad():
        return seen, held, _lite0(smoke)(held)


def judge(chip: Chip, smoke: bool = False) -> float:
    """Signal-to-noise ratio of Lite0's logits in dB, on one chip a day after programming."""
    from benchmarks.lite0 import agreement

    seen, held, digital = _pictures(smoke)
    roomy = replace(chip, system=replace(chip.system, tiles=None))
    mapped = map(_lite0(smoke), roomy, split=_depthwise(_lite0_shapes(smoke)[0]), calibration=[seen]).program(seed=0)
    with torch.no_grad():
        return agreement(mapped.at(max(DAY, chip.device.first)).model(held), digital)["sqnr_db"]


def _search(smoke: bool) -> Row:
    """The front, and all designs that it was found among."""
    shapes, _ = _lite0_shapes(smoke)
    base = Chip(dac=Dac(8), adc=Adc(8), compensation="column", name="searched")
    search = Search(trials=4 if smoke else TRIALS, storage=None if smoke else assets.cache() / "analog_cost" / "search.log")
    found = explore(partial(judge, smoke=smoke), partial(cost, shapes, split=_depthwise(shapes)), base, _searched(smoke), search)
    return {"quality": "SQNR of the logits in dB, 8 pictures, one day", "designs_on_the_front": len(found.front)} | found.to_json()


def goals(rows: list[Row]) -> list[Goal]:
    """The figures that were promised."""
    found = {row["key"]: row for row in rows}
    cases, search = found.get("two cases", {}), found.get("search", {})
    return [
        at_most("ADC table: cells of 42 that differ in the third digit", found.get("converters", {}).get("wrong"), 0),
        at_most("ADC: largest relative difference to hwcomponents-adc", found.get("converters", {}).get("largest_difference"), 1e-9),
        _equal("conversion per MAC: 8 bits, 22 nm, 512 rows, one read", cases.get("tall_fj"), "1.7 fJ", 1),
        _equal("conversion per MAC: 128 rows, 4 slices, 8 reads", cases.get("serial_fj"), "212 fJ", 0),
        at_least("EfficientNet-Lite0: designs on the Pareto front", search.get("designs_on_the_front"), 3),
    ]


def _equal(name: str, value: float | None, target: str, digits: int) -> Goal:
    """A goal met by the value that the reference gives, to its digits."""
    if value is None:
        return Goal(name, "not measured", target, None)
    return Goal(name, round(value, digits), target, f"{value:.{digits}f}" == target.split()[0])
