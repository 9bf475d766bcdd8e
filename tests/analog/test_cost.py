"""What a network costs on a chip: the reference's two cases, every term by hand, tiles, replicas and segments."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from lessen.analog import mapping as analog
from lessen.analog.chip import Array, Chip, System
from lessen.analog.cost.adc import Stated, survey_energy_pj
from lessen.analog.cost.components import DRAM_PJ_A_BIT, Technology
from lessen.analog.cost.count import LayerShape, layers, loaded
from lessen.analog.cost.digital import Digital
from lessen.analog.cost.macro import per_mac, tops_per_mm2
from lessen.analog.cost.model import cost
from lessen.analog.cost.place import place
from lessen.analog.cost.tile import mean_share, read_pj
from lessen.analog.devices.wear import Use
from lessen.analog.encoding import Differential, Offset, Sliced
from lessen.analog.mapping import Split
from lessen.analog.periphery import Adc, Dac
from lessen.analog.tiles.crossbar import layout
from lessen.errors import LessenError, UsageError

CHIP = Chip(dac=Dac(8), adc=Adc(8, columns=4), array=Array(64, 64), system=System(read_ns=50.0), name="small")
WIDE = LayerShape("wide", "linear", 100, 70, 1, 10.0, 1000.0, "wide.weight")
SMALL = LayerShape("small", "linear", 64, 32, 1, 3.0, 192.0, "small.weight")
SCORES = LayerShape("attend", "products", 8, 8, 1, 5.0, 100.0)


def test_the_two_cases_of_the_reference():
    """8-bit conversions of 0.85 pJ at 22 nm, spread over 512 rows and one read: 1.7 fJ; over 128 rows with 4 slices and 8 reads: 212 fJ."""
    tall = Chip(dac=Dac(8), adc=Adc(8), array=Array(512, 512))
    assert per_mac(tall).adc == pytest.approx(1000 * survey_energy_pj(8, 22, 1e8) / 512)
    assert round(per_mac(tall).adc, 1) == 1.7
    serial = replace(tall, dac=Dac(9, digit_bits=1), encoding=Sliced(8, 2), array=Array(128, 128))
    assert (serial.dac.cycles, len(serial.encoding.shifts)) == (8, 4)
    assert round(per_mac(serial).adc) == 212
    assert per_mac(serial, Stated(0.85, 1, 1)).adc == pytest.approx(850 * 4 * 8 / 128)


def test_a_layer_by_hand():
    found = cost([WIDE], CHIP)
    layer, figures = found.layers[0], Technology(22, 0.8)
    # 100 inputs on 2 row tiles, 70 outputs on 3 column tiles of 32 weights
    assert (layer.tiles, layer.conversions, layer.macs) == (6, 10 * 70 * 2, 70000)
    assert layer.utilisation == pytest.approx(7000 / (6 * 64 * 32))
    assert layer.energy.adc == pytest.approx(1400 * survey_energy_pj(8, 22, 1e8))
    row = 0.2e-3 * 64 * (48**0.5 * 0.022) * 0.64
    assert layer.energy.dac == pytest.approx(10 * 100 * 3 * (0.05 * 8 * 0.64 + row))
    assert layer.energy.cells == pytest.approx(10 * 7000 * 2 * read_pj(mean_share(None, CHIP), CHIP))
    digital = 10 * (140 * figures.shift_add_pj + 140 * figures.scale_pj + 70 * figures.add_pj)
    assert layer.energy.digital == pytest.approx(digital)
    assert layer.energy.buffers == pytest.approx(8 * (1000 * 3 + 10 * 100 * 3) * figures.memory_pj(64))
    # inputs cross to the middle of six tiles, then pass two more column tiles; partial sums of 16 bits go to the next row tile
    pitch = (found.area.total / 6) ** 0.5 * 1e-3
    along = figures.hop_pj + figures.wire_pj(pitch)
    crossing = figures.hop_pj + figures.wire_pj(pitch * 6**0.5 / 2)
    assert layer.energy.interconnect == pytest.approx(8 * 1000 * (crossing + 2 * along) + 10 * 70 * 16 * along)
    assert layer.energy.loading == 0
    # 10 vectors, 4 columns at 10 ns take less than a read of 50 ns; the last waits for its own conversions and three additions
    assert (layer.busy_ns, layer.latency_ns) == (500, 9 * 50 + 50 + 40 + 3)
    assert (found.latency_ns, found.interval_ns, found.tiles, found.segments) == (543, 500, 6, 1)


def test_slices_and_digits_multiply_conversions():
    serial = replace(CHIP, encoding=Sliced(8, 2, Differential()), dac=Dac(8, digit_bits=1), array=Array(64, 256))
    one, many = cost([SMALL], CHIP).layers[0], cost([SMALL], serial).layers[0]
    assert many.conversions == one.conversions * 4 * 7
    assert many.busy_ns == one.busy_ns * 7
    assert many.energy.adc == pytest.approx(28 * one.energy.adc)


def test_actual_weights_decide_what_cells_spend():
    full, empty = torch.ones(70, 100), torch.zeros(70, 100)
    spent = [cost([WIDE], CHIP, weights={"wide": w}).energy.cells for w in (full, empty)]
    assert spent[1] == 0 < spent[0]
    assert spent[0] == pytest.approx(10 * 7000 * 2 * read_pj(0.5, CHIP))  # one device of each pair


def test_placement_is_that_of_the_simulation_where_groups_fill_tiles():
    for shape in (WIDE, SMALL, LayerShape("g", "convolution", 100, 50, 4, 1.0, 400.0)):
        where, simulated = place(shape, CHIP), layout(shape.groups, shape.inputs, shape.outputs, CHIP)
        assert (where.row_tiles, where.column_tiles, where.tiles) == (simulated.row_tiles, simulated.column_tiles, simulated.tiles)


def test_small_groups_lie_block_diagonally_and_fill_little():
    depth = LayerShape("depth", "depthwise", 9, 1, 96, 1.0, 96.0)
    where = place(depth, CHIP)
    assert (where.tiles, where.rows, where.conversions) == (14, pytest.approx(9 * 96 / 14), 96)  # 7 blocks of 9 rows on 64
    assert where.utilisation == pytest.approx(96 * 9 / (14 * 64 * 32))
    assert where.devices == pytest.approx(2 * 96 * 9 * 96 / 14)  # the cells beside the blocks are read too
    dense = cost([LayerShape("dense", "linear", 96, 9, 1, 1.0, 96.0)], CHIP).layers[0]
    assert cost([depth], CHIP).layers[0].fj_a_mac > 3 * dense.fj_a_mac  # as many products, nine times the conversions of a tall column
    # an offset encoding holds zero at the middle of its range, so what lies beside the blocks conducts
    offset = cost([depth], replace(CHIP, encoding=Offset())).energy.cells
    assert offset > 5 * cost([depth], CHIP).energy.cells


def test_blocks_of_a_tile_are_read_in_turn():
    depth = LayerShape("depth", "depthwise", 9, 1, 96, 10.0, 960.0)
    packed, apart = (cost([depth], replace(CHIP, array=replace(CHIP.array, blocks=n))).layers[0] for n in (None, 1))
    assert (packed.tiles, apart.tiles) == (14, 96)
    assert (packed.busy_ns, apart.busy_ns) == (7 * 500, 500)  # one column to convert: a read of 50 ns decides
    assert packed.latency_ns == (10 * 7 - 1) * 50 + 50 + 10 + 2
    assert (packed.energy.adc, packed.energy.cells) == (apart.energy.adc, apart.energy.cells)  # idle cells of pairs conduct nothing
    twice = cost([depth], replace(CHIP, system=replace(CHIP.system, tiles=28))).layers[0]
    assert (twice.replicas, twice.busy_ns) == (2, 7 * 500 / 2)


def test_what_a_chip_cannot_pack_is_refused():
    with pytest.raises(UsageError, match="blocks=0"):
        Array(64, 64, blocks=0)


def test_a_reference_column_is_read_with_every_tile():
    assert place(SMALL, replace(CHIP, encoding=Offset())).devices == 64 * 32 + 64


def test_what_stays_digital_is_priced_digitally():
    found = cost([WIDE, SMALL, SCORES], CHIP, split=Split(("sm*",)))
    assert [layer.where for layer in found.layers] == ["tiles", "digital", "digital"]
    assert found.layers[1].tiles == 0 and found.layers[1].conversions == 0 and found.layers[1].energy.macro == 0
    assert found.analog_share == pytest.approx(WIDE.macs / (WIDE.macs + SMALL.macs + SCORES.macs))
    assert found.area.total > cost([WIDE], CHIP).area.total  # a digital unit is needed
    with pytest.raises(UsageError, match=r"split: got 'samll'.*did you mean small"):
        cost([WIDE, SMALL], CHIP, split=Split(("samll",)))


def test_a_mapped_network_is_priced_as_it_is_simulated():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(4 * 7 * 7, 10), nn.Linear(10, 5))
    x = torch.randn(2, 3, 8, 8)
    shapes = layers(model, lambda: model(x), inferences=2)
    mapped = analog.map(model, CHIP, split=["4"])
    found = cost(shapes, mapped)
    assert [layer.where for layer in found.layers] == ["tiles", "digital", "tiles", "digital"]
    same = cost(shapes, CHIP, split=["1", "4"], weights=loaded(model, shapes))
    assert found.energy == same.energy
    assert sum(layer.tiles for layer in found.layers) == mapped.physical_tiles
    assert found.energy.cells != cost(shapes, CHIP, split=["1", "4"]).energy.cells
    with pytest.raises(UsageError, match="the network has its own"):
        cost(shapes, mapped, split=["4"])
    attention = nn.MultiheadAttention(16, 2)
    holder = nn.ModuleDict({"attend": attention})
    packed = LayerShape("attend.in_proj_weight", "linear", 16, 48, 1, 1.0, 16.0, "attend.in_proj_weight")
    assert cost([packed], analog.map(holder, CHIP)).layers[0].where == "tiles"


def test_macro_and_chip_are_kept_apart():
    found = cost([WIDE, SCORES], CHIP)
    energy = found.layers[0].energy
    assert found.macro_tops_per_watt == pytest.approx(2 * WIDE.macs / (energy.adc + energy.dac + energy.cells))
    assert found.chip_tops_per_watt == pytest.approx(2 * (WIDE.macs + SCORES.macs) / found.energy_pj)
    assert found.macro_tops_per_watt > found.chip_tops_per_watt
    assert found.energy_pj == pytest.approx(sum(layer.energy.total for layer in found.layers))
    assert found.tops == pytest.approx(2e-3 * found.macs / found.interval_ns)


def test_spare_tiles_go_to_the_slowest_layer():
    few = cost([WIDE, SMALL], CHIP)
    assert few.tiles == 7
    more = cost([WIDE, SMALL], replace(CHIP, system=replace(CHIP.system, tiles=20)))
    assert [layer.replicas for layer in more.layers] == [3, 1]  # 6 + 1 tiles, then 2 copies of 6; the last tile is too few
    assert more.interval_ns == 4 * 50 < few.interval_ns
    assert more.energy.adc == pytest.approx(few.energy.adc)  # the same conversions, on more tiles
    assert more.area.total == pytest.approx(few.area.total * 20 / 7)
    enough = cost([WIDE, SMALL], replace(CHIP, system=replace(CHIP.system, tiles=1000)))
    assert [layer.replicas for layer in enough.layers] == [10, 3]
    assert enough.interval_ns == 50


def test_a_chip_too_small_writes_its_weights_again_and_again():
    tight = replace(CHIP, system=replace(CHIP.system, tiles=6))
    found, roomy = cost([WIDE, SMALL], tight), cost([WIDE, SMALL], CHIP)
    assert (found.segments, found.tiles) == (2, 6)
    written = (WIDE.weights + SMALL.weights) * (2 * 100.0 + 8 * DRAM_PJ_A_BIT)
    assert found.energy.loading == pytest.approx(written)
    assert found.latency_ns == pytest.approx(roomy.latency_ns + (64 + 64) * 1000)
    assert found.interval_ns == pytest.approx(500 + 150 + (64 + 64) * 1000)
    shared = cost([WIDE, SMALL], tight, batch=100)
    assert shared.energy.loading == pytest.approx(written / 100)
    assert shared.interval_ns == pytest.approx(500 + 150 + 1280)


def test_what_is_written_for_each_inference_wears_devices_out():
    roomy, use = cost([WIDE, SMALL], CHIP), Use(endurance=1e6, pulses=5.0)
    assert (roomy.device_writes, roomy.worn_after, roomy.summary["device_writes"]) == (0, None, 0)
    assert "writes" not in roomy.table()
    tight = replace(CHIP, system=replace(CHIP.system, tiles=6), use=use)
    found = cost([WIDE, SMALL], tight)
    assert found.device_writes == (WIDE.weights + SMALL.weights) * 2  # a pair of devices for each weight
    assert found.worn_after == 1e6 / (5 * 2)  # both segments are written on the first tile
    assert (found.summary["device_writes"], found.summary["worn_after"]) == (found.device_writes, 1e5)
    assert found.table().splitlines()[-1].endswith("device writes an inference, which wear devices out after 1e+05 inferences")
    shared = cost([WIDE, SMALL], tight, batch=100)
    assert (shared.device_writes, shared.worn_after) == (found.device_writes / 100, 1e7)
    for_ever = cost([WIDE, SMALL], replace(tight, use=Use()))  # exact cells are no devices that wear
    assert for_ever.worn_after is None and for_ever.device_writes == found.device_writes
    assert json.loads(json.dumps(for_ever.to_json(), allow_nan=False))["worn_after"] is None
    offset = cost([WIDE, SMALL], replace(tight, encoding=Offset(), system=replace(CHIP.system, tiles=4)))  # 64 weight columns a tile
    assert offset.device_writes == WIDE.weights + SMALL.weights + 4 * 50 + 64  # and a reference column on every tile


def test_a_layer_larger_than_the_chip_is_refused_with_a_remedy():
    with pytest.raises(LessenError, match=r"layer wide: got 6 tiles of 64 x 64, wanted at most the 5 tiles of small.*system.tiles = 6"):
        cost([WIDE], replace(CHIP, system=replace(CHIP.system, tiles=5)))
    assert cost([WIDE], replace(CHIP, system=replace(CHIP.system, tiles=5)), split=Split(("wide",))).analog_share == 0


def test_ideal_converters_have_no_price():
    with pytest.raises(UsageError, match=r"an ideal ADC.*adc\.bits = 8"):
        cost([SMALL], Chip(dac=Dac(8)))
    with pytest.raises(UsageError, match=r"an ideal DAC.*dac\.bits = 8"):
        cost([SMALL], Chip(adc=Adc(8)))
    with pytest.raises(UsageError, match="at least one"):
        cost([], CHIP)
    with pytest.raises(UsageError, match="positive"):
        Digital(side=0)
    with pytest.raises(UsageError, match="positive"):
        System(write_pj=-1.0)


def test_the_digital_accelerator_by_hand():
    figures, unit = Technology(22, 0.8), Digital(side=64)
    arithmetic, memory = unit.energy_pj(WIDE, figures, 100)
    assert arithmetic == pytest.approx(70000 * (figures.mac_pj + 40 * figures.register_pj))
    bit, behind = figures.memory_pj(64), figures.memory_pj(1024)
    fed = 8 * 10 * 100 * 2 + 10 * 70 * (2 * 32 + 8)  # two blocks wide; one partial sum out and in
    assert memory == pytest.approx(fed * bit + 8 * 1000 * (behind + bit) + 8 * 7000 * (figures.memory_pj(100) + bit))
    assert unit.latency_ns(WIDE, 1.0) == 4 * (10 + 64)
    # a vector for every weight: memory beside the chip decides energy and time
    token = LayerShape("token", "linear", 1024, 1024, 1, 1.0, 1024.0)
    off = Digital(weights="dram", dram_gb_s=10)
    assert off.latency_ns(token, 1.0) == pytest.approx(1024 * 1024 / 10)
    assert sum(off.energy_pj(token, figures, 1024)) > 2 * sum(unit.energy_pj(token, figures, 1024))
    assert off.area_um2(figures, 1024)[1] < unit.area_um2(figures, 1024)[1]
    # many vectors whose partial sums overflow the buffer fetch weights more than once
    assert Digital()._passes(replace(WIDE, vectors=1000.0)) == 8


def test_results_are_data():
    found = cost([WIDE, SMALL, SCORES], CHIP)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["chip"] == "small" and len(data["layers"]) == 3
    assert data["summary"]["energy_uj"] == pytest.approx(found.energy_pj * 1e-6)
    lines = found.table().splitlines()
    assert len(lines) == 4 and lines[1].startswith("wide") and "digital" in lines[3]


def test_tiles_of_a_cluster_share_buffer_and_router():
    alone, shared = cost([WIDE], CHIP).area, cost([WIDE], replace(CHIP, system=replace(CHIP.system, cluster=8))).area
    assert shared.buffers == pytest.approx(alone.buffers / 8) and shared.interconnect == pytest.approx(alone.interconnect / 8)
    assert shared.adc == alone.adc
    with pytest.raises(UsageError, match="cluster=0"):
        System(cluster=0)


def test_peak_density_counts_the_tile_alone():
    sparse = replace(CHIP, adc=Adc(8, columns=32))
    assert tops_per_mm2(CHIP) > 0
    operations = 2 * 64 * 32 / (10 * 32)  # 32 columns take turns of 10 ns
    assert tops_per_mm2(sparse) < operations * 1e-3 / (64 * 64 * 48 * 0.022**2 * 1e-6)
