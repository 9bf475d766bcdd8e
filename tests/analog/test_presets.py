"""Chip files: read strictly, written exactly; presets say where their numbers are from."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.analog.chip import Array, Chip, System
from lessen.analog.chipfile import dumps, load, loads, preset, presets
from lessen.analog.devices import DEVICES
from lessen.analog.devices.device import Device
from lessen.analog.devices.faults import Faults
from lessen.analog.encoding import Differential, Offset, Sliced
from lessen.analog.periphery import Adc, Dac, Wires
from lessen.errors import UsageError

MINE = """
name = "mine"
[device]
kind = "PCM"
g_max = 20
[encoding]
kind = "Sliced"
bits = 4
[encoding.pair]
kind = "Offset"
[adc]
bits = "none"
"""

WANTED = {
    "pcm-hermes",
    "pcm-nandakumar",
    "pcm-joshi",
    "pcm-foundation",
    "rram-neurram",
    "rram-milo",
    "rram-cmo",
    "nor-wtm2101",
    "sonos-40nm",
    "sram-charge",
    "isaac",
    "ideal",
}


def test_the_promised_chips_are_there():
    assert set(presets()) >= WANTED


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_named_has_a_source_and_works(name: str):
    chip = preset(name)
    assert chip.name == name
    assert len(chip.source) > 20
    assert loads(dumps(chip)) == chip
    device = chip.device
    generator = torch.Generator().manual_seed(0)
    target = torch.linspace(device.g_min, device.g_max, 1000)
    seconds = max(device.first, 86400.0)
    g = device.drifted(device.program(target, generator), seconds)
    # A day leaves of every chip's conductances something that still tells high from low.
    assert float(torch.corrcoef(torch.stack([target, g]))[0, 1]) > 0.8
    assert chip.columns >= 1


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_it_assumes(name: str):
    text = (Path(load.__code__.co_filename).parent / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert name == "ideal" or "ssumed" in text or "prior knowledge" in text


def test_what_is_left_out_keeps_its_default_and_none_is_a_word():
    chip = loads(MINE)
    assert chip.name == "mine"
    assert chip.device == DEVICES[[kind.__name__ for kind in DEVICES].index("PCM")](g_max=20.0)
    assert chip.encoding == Sliced(bits=4, pair=Offset())
    assert chip.adc.bits is None
    assert chip.array == Array()


def test_a_file_is_a_chip(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE, encoding="utf-8")
    assert load(path) == loads(MINE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nme = "x"', r"chip:1: got the key nme, wanted a key of Chip; did you mean name\?"),
        ("[adc]\nbit = 8", r"chip:2: got the key bit, wanted a key of Adc; did you mean bits\?"),
        ('[adc]\nbits = "eight"', r"chip:2: got Adc.bits = 'eight' \(str\), wanted an integer or none"),
        ("[adc]\nbits = 0", r"chip:1: Adc: got bits=0, wanted 2 to 20 bits"),
        ('[device]\nkind = "PMC"', r"chip:2: got kind = 'PMC' in \[device\], wanted one that exists; did you mean PCM\?"),
        ("[device]\ng_max = 3.0", r"chip:1: got no kind in \[device\]"),
        ('[device]\nkind = "PCM"\ng_max = -1', r"chip:1: PCM: got g_min=0, g_max=-1, wanted 0 <= g_min < g_max"),
        ('[device]\nkind = "PCM"\ng_max = nan', r"chip:1: PCM: got g_min=0, g_max=nan"),
        ('[device]\nkind = "PCM"\nfirst = 1.0', r"chip:3: got the key first, wanted a key of PCM"),
        ('[encoding]\nkind = "Sliced"\n[encoding.pair]\nkind = "Sliced"', r"chip:4: got kind = 'Sliced' in \[encoding.pair\]"),
        ("device = 3", r"chip:1: got device = 3, wanted a table \[device\]"),
        ('compensation = "tiles"', r"chip:1: got Chip.compensation = 'tiles', wanted .*; did you mean tile\?"),
        ("[array]\nrows = 1.5", r"chip:2: got Array.rows = 1.5 \(float\), wanted an integer"),
        ("name = mine", r"chip:1: got .*, wanted TOML; words need quotes"),
        ("[array]\nkind = 'Array'", r"chip:2: got the key kind"),
    ],
)
def test_wrong_files_are_refused_with_line_and_remedy(text: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        loads(text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_preset_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="did you mean nor-wtm2101"):
        preset("nor-wtm-2101")


positive = st.floats(1e-6, 1e6, allow_nan=False)
texts = st.text(max_size=30)


@st.composite
def devices(draw: Any) -> Device:
    kind = draw(st.sampled_from(DEVICES))
    made = kind()
    span = made.g_max - made.g_min
    return replace(made, g_min=made.g_min + draw(st.floats(0.0, 0.4)) * span, g_max=made.g_max - draw(st.floats(0.0, 0.4)) * span)


pairs = st.builds(Differential, scale=st.sampled_from(["column", "tile"])) | st.builds(Offset, scale=st.sampled_from(["column", "tile"]))
encodings = pairs | st.integers(2, 16).flatmap(lambda b: st.builds(Sliced, bits=st.just(b), cell_bits=st.integers(1, b), pair=pairs))
dacs = st.builds(Dac, bits=st.none() | st.integers(2, 16), quantile=st.floats(0.5, 1.0))
adcs = st.builds(Adc, bits=st.none() | st.integers(2, 20), range=st.just("calibrated") | positive, noise=st.floats(0, 10))
chips = st.builds(
    Chip,
    device=devices(),
    encoding=encodings,
    dac=dacs,
    adc=adcs,
    wires=st.builds(Wires, ohm=st.floats(0, 100), model=st.sampled_from(["fast", "iterative"])),
    array=st.builds(Array, rows=st.integers(1, 4096), columns=st.integers(32, 4096)),
    faults=st.builds(Faults, low=st.floats(0, 0.5), high=st.floats(0, 0.5)),
    reads=st.sampled_from(["frozen", "fresh", "quiet"]),
    compensation=st.sampled_from(["none", "tile", "column"]),
    system=st.builds(System, node_nm=positive, tiles=st.none() | st.integers(1, 99), adc_rate=positive),
    name=texts,
    source=texts,
)


@given(chips)
@settings(max_examples=60)
def test_what_is_written_is_read_again_exactly(chip: Chip):
    again = loads(dumps(chip))
    assert again == chip
    assert type(again.device) is type(chip.device)
    for field in fields(System):
        assert type(getattr(again.system, field.name)) is type(getattr(chip.system, field.name))


def test_numbers_survive_to_the_last_digit():
    chip = Chip(system=System(node_nm=math.nextafter(22.0, 23.0), adc_rate=1e300))
    assert loads(dumps(chip)).system == chip.system
