"""The search for chips: its front against all designs, killed and resumed, several processes, and refusals."""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lessen.analog.chip import Array, Chip, System
from lessen.analog.cost.count import LayerShape
from lessen.analog.cost.model import cost
from lessen.analog.devices.device import Device
from lessen.analog.encoding import Differential, Sliced
from lessen.analog.periphery import Adc, Dac
from lessen.analog.search.change import changed
from lessen.analog.search.explore import Design, Exploration, Range, Search, explore, pareto
from lessen.errors import LessenError, UsageError

SHAPES = [LayerShape("a", "linear", 300, 200, 1, 4.0, 1200.0), LayerShape("b", "linear", 200, 10, 1, 4.0, 800.0)]
BASE = Chip(dac=Dac(8), adc=Adc(8))
SPACE: dict[str, Any] = {
    "array": [Array(64, 64), Array(128, 128), Array(256, 256)],
    "adc.bits": [4, 6, 8, 10],
    "encoding": [Differential(), Sliced(8, 2)],
}
PRICE = partial(cost, SHAPES)


def quality(chip: Chip) -> float:
    """More bits and slices help, more rows hurt: as on a real chip, and computed at once."""
    return (chip.adc.bits or 16) + len(chip.encoding.shifts) - 0.01 * chip.array.rows


def dies(chip: Chip) -> float:
    """Ends its process in the middle of the third design that it is given."""
    count = int(os.environ["LESSEN_TEST_DESIGNS"]) + 1
    os.environ["LESSEN_TEST_DESIGNS"] = str(count)
    if count == 3:
        raise KeyboardInterrupt
    return quality(chip)


def breaks(chip: Chip) -> float:
    raise ValueError("out of paper")


def everything() -> list[Design]:
    found = []
    for array, bits, encoding in product(*SPACE.values()):
        chip = replace(BASE, array=array, adc=Adc(bits), encoding=encoding)
        priced = cost(SHAPES, chip)
        found.append(Design(len(found), {"a": repr(array), "b": bits, "c": repr(encoding)}, quality(chip), priced.energy_pj,
                            priced.area.total, priced.latency_ns))  # fmt: skip
    return found


def test_the_front_of_all_designs_is_found():
    found = explore(quality, PRICE, BASE, SPACE, Search(trials=100))
    assert len(found.designs) == 24 and not found.refused  # as many as there are, each once
    wanted = {d.losses for d in pareto(everything())}
    assert {d.losses for d in found.front} == wanted and 1 < len(wanted) < 24
    energies = [d.energy_pj for d in found.front]
    assert energies == sorted(energies)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["front"] == [d.number for d in found.front] and len(data["designs"]) == 24
    assert found.table().count("\n") == len(wanted) - 1 and "adc.bits" in found.table()


def test_a_front_by_hand():
    def at(number: int, *figures: float) -> Design:
        return Design(number, {}, figures[0], figures[1], figures[2], 1.0)

    designs = [at(0, 1, 5, 5), at(1, 1, 5, 5), at(2, 1, 6, 5), at(3, 0.5, 4, 5), at(4, 0.9, 5, 5), at(5, 2, 9, 9)]
    assert [d.number for d in pareto(designs)] == [0, 1, 3, 5]
    assert Exploration(()).front == []


def test_energy_and_area_alone_need_no_quality():
    found = explore(None, PRICE, BASE, {"array": SPACE["array"]}, Search(trials=10))
    assert len(found.designs) == 3 and all(d.quality is None and len(d.losses) == 2 for d in found.designs)


@pytest.mark.parametrize("suffix", ["db", "log"])
def test_a_killed_search_goes_on_to_the_same_designs(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LESSEN_TEST_DESIGNS", "0")
    file = tmp_path / f"search.{suffix}"
    search = Search(trials=8, storage=file)
    with pytest.raises(KeyboardInterrupt):
        explore(dies, PRICE, BASE, SPACE, search)
    resumed = explore(dies, PRICE, BASE, SPACE, search)
    assert os.environ["LESSEN_TEST_DESIGNS"] == "9"  # 8 designs, one of them twice: it had no result
    whole = explore(quality, PRICE, BASE, SPACE, Search(trials=8))
    assert resumed == whole
    assert explore(dies, PRICE, BASE, SPACE, search) == resumed  # nothing left to do
    assert os.environ["LESSEN_TEST_DESIGNS"] == "9"
    with pytest.raises(UsageError, match="a search with another space"):
        explore(dies, PRICE, BASE, {"adc.bits": [4, 5]}, search)
    with pytest.raises(UsageError, match="a search with another base"):
        explore(dies, PRICE, Chip(), SPACE, search)
    with pytest.raises(UsageError, match="a search with another quality"):
        explore(quality, PRICE, BASE, SPACE, search)


def test_the_seed_decides_the_order():
    numbers = [tuple(str(d.choices) for d in explore(quality, PRICE, BASE, SPACE, Search(trials=6, seed=s)).designs) for s in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_several_processes_share_the_work(monkeypatch: pytest.MonkeyPatch):
    events, started, few = [], [], {path: SPACE[path] for path in ("array", "encoding")}
    start = SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, "start", lambda process: (started.append(process), start(process)))
    found = explore(quality, PRICE, BASE, few, Search(trials=6, workers=2), on_event=events.append)
    assert len(started) == 2, "what two processes tried at once is made up for here"
    alone = explore(quality, PRICE, BASE, few, Search(trials=6))
    assert {d.losses for d in found.designs} == {d.losses for d in alone.designs}
    assert len(found.designs) == 6 and events[-1].done == events[-1].total == 6


def test_ranges_parts_and_their_fields_vary():
    space = {
        "device": [Device(g_max=20.0), Device(g_max=40.0)],
        "device.g_min": Range(0.0, 5.0),
        "system.adc_rate": Range(1e7, 1e9, log=True),
    }
    found = explore(quality, PRICE, BASE, space, Search(trials=8))
    assert len({d.energy_pj for d in found.designs}) == 8
    assert all(0 <= d.choices["device.g_min"] <= 5 and 1e7 <= d.choices["system.adc_rate"] <= 1e9 for d in found.designs)
    chip = changed(BASE, {"device.g_min": 1.0, "device": Device(g_max=40.0)})
    assert (chip.device.g_min, chip.device.g_max) == (1.0, 40.0)


def test_designs_that_cannot_be_are_refused_with_their_reason():
    base = replace(BASE, system=System(tiles=8))
    found = explore(quality, PRICE, base, {"array.rows": [8, 512], "adc.bits": [1, 8]}, Search(trials=10))
    assert len(found.designs) == 1
    reasons = {(c["array.rows"], c["adc.bits"]): why for c, why in found.refused}
    assert "2 to 20 bits" in reasons[512, 1] and "at most the 8 tiles" in reasons[8, 8]
    nothing = explore(lambda _: float("nan"), PRICE, BASE, {"adc.bits": [8]}, Search())
    assert "finite numbers" in nothing.refused[0][1]


def test_a_broken_function_ends_the_search_and_is_tried_again(tmp_path: Path):
    search = Search(trials=3, storage=tmp_path / "search.log")
    for _ in range(2):
        with pytest.raises(LessenError, match="ValueError: out of paper"):
            explore(breaks, PRICE, BASE, SPACE, search)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "nothing that varies"),
        ({"adc.bit": [4]}, r"did you mean bits\?"),
        ({"ad.bits": [4]}, r"did you mean adc\?"),
        ({"adc.bits.more": [4]}, "a field of int"),
        ({"adc.bits": [4, 4]}, "the same value twice"),
        ({"adc.bits": []}, "no value"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(space: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        explore(quality, PRICE, BASE, space, Search(trials=1))


def test_searches_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="at least one of each"):
        Search(trials=0)
    with pytest.raises(UsageError, match="two finite ends"):
        Range(1.0, 1.0)
    with pytest.raises(UsageError, match=r"NAME\.db"):
        explore(quality, PRICE, BASE, SPACE, Search(storage="search.pickle"))
    with pytest.raises(UsageError, match="functions that stand in a module"):
        explore(lambda _: 1.0, PRICE, BASE, SPACE, Search(workers=2))
    with pytest.raises(UsageError, match="a storage that all machines reach"):
        Search(backend="ray")


def test_without_optuna_or_ray_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LessenError, match="pip install ray"):
        explore(quality, PRICE, BASE, SPACE, Search(trials=2, backend="ray", storage=tmp_path / "s.log"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(LessenError, match=r"pip install lessen\[explore\]"):
        explore(quality, PRICE, BASE, SPACE)


def test_ray_is_asked_to_run_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in that runs at once: what is shown is the hand-over, not Ray."""
    ray: Any = ModuleType("ray")
    started: list[bool] = []
    ray.is_initialized = lambda: bool(started)
    ray.init = lambda **_: started.append(True)
    ray.remote = lambda work: SimpleNamespace(remote=work)
    ray.get = list
    monkeypatch.setitem(sys.modules, "ray", ray)
    found = explore(quality, PRICE, BASE, SPACE, Search(trials=5, workers=2, backend="ray", storage=tmp_path / "s.log"))
    assert len(found.designs) == 5 and started == [True]


def judged_on(scale: Any, chip: Chip) -> float:
    return quality(chip) * float(scale.sum())


def test_a_storage_of_another_network_or_of_other_data_is_refused(tmp_path: Path):
    from torch import nn, ones, zeros

    def of(model: nn.Module) -> Any:
        return lambda chip: quality(chip) + float(model.get_parameter("weight").detach().sum())

    few = {"adc.bits": [4, 6]}
    for number, (mine, other) in enumerate(
        [(partial(judged_on, ones(2)), partial(judged_on, zeros(2))), (of(nn.Linear(2, 2)), of(nn.Linear(2, 2)))]
    ):
        search = Search(trials=2, storage=tmp_path / f"{number}.log")
        found = explore(mine, PRICE, BASE, few, search)
        assert explore(mine, PRICE, BASE, few, search) == found
        with pytest.raises(UsageError, match="a search with another network, judge or data"):
            explore(other, PRICE, BASE, few, search)
        with pytest.raises(UsageError, match="a search with another price"):
            explore(mine, partial(cost, SHAPES[:1]), BASE, few, search)


def test_a_storage_knows_the_weights_and_the_batches_of_a_run(tmp_path: Path):
    import torch

    from lessen.analog.run.job import searched
    from lessen.analog.run.subject import Data

    def net(seed: int) -> Any:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(8, 4))

    x = torch.randn(8, 8)
    search, few = Search(trials=1, storage=tmp_path / "s.log"), {"adc.bits": (8,)}
    given: dict[str, Any] = {"data": Data(batches=[x, x]), "chips": 1}
    assert (
        searched(net(0), "pcm-nandakumar", few, search, **given).exploration
        == searched(net(0), "pcm-nandakumar", few, search, **given).exploration
    )
    changes = [(net(1), {}), (net(0), {"data": Data(batches=[x, 2 * x])}), (net(0), {"chips": 2}), (net(0), {"seconds": 60.0})]
    for model, change in changes:
        with pytest.raises(UsageError, match="a search with another network, judge or data"):
            searched(model, "pcm-nandakumar", few, search, **given | change)
