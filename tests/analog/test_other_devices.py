"""Whatever is computed stays where the weights are.

Tensors of the kind `meta` have a place and no values, and refuse to meet tensors of the CPU: what runs on them would not meet a tensor left
behind on a GPU either. Questions about values are answered for them.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lessen.analog import mapping
from lessen.analog.chipfile import preset, presets
from lessen.analog.devices.device import Device
from lessen.analog.devices.faults import Faults
from lessen.analog.mapping import map
from lessen.analog.periphery import Wires
from lessen.analog.tiles.streams import normal, stream

WIRES = ("fast", "columns", "solved")  # the iterative model ends by values
CASES = [*((name, None) for name in presets()), *(("pcm-nandakumar", wires) for wires in WIRES)]


@pytest.fixture
def valueless(monkeypatch: pytest.MonkeyPatch):
    """Tensors without values say yes, and are one; there are no generators for them."""
    truth, number = Tensor.__bool__, Tensor.__float__
    monkeypatch.setattr(Device, "check_target", lambda device, target: None)
    monkeypatch.setattr(Tensor, "__bool__", lambda t: True if t.is_meta else truth(t))
    monkeypatch.setattr(Tensor, "__float__", lambda t: 1.0 if t.is_meta else number(t))
    monkeypatch.setattr(mapping, "stream", lambda *address, device: stream(*address))


@pytest.mark.usefixtures("valueless")
@pytest.mark.parametrize("reads", ["frozen", "fresh"])
@pytest.mark.parametrize(("name", "wires"), CASES)
def test_a_chip_is_computed_where_the_weights_are(name: str, reads: str, wires: str | None):
    made = preset(name)
    parts = {"dac": replace(made.dac, range="dynamic"), "adc": replace(made.adc, range=10.0), "system": replace(made.system, tiles=None)}
    line = Wires(0.0) if wires is None else Wires(2.0, wires)  # pyright: ignore[reportArgumentType]
    chip = replace(made, reads=reads, faults=Faults(0.1, 0.1), wires=line, **parts)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5)).to("meta").eval()
    with torch.no_grad():
        assert map(model, chip).program(0, seconds=1e5)(torch.empty(2, 3, 6, 6, device="meta")).is_meta


def test_draws_come_from_where_the_generator_is_and_go_where_they_are_wanted():
    assert normal(torch.empty(3, device="meta"), stream(0, "a")).is_meta
    assert torch.equal(normal(torch.empty(3), stream(0, "a")), normal(torch.empty(3), stream(0, "a", device="cpu")))
