"""A small classifier on an analog chip: its quality over time, what it costs, and which layers had better stay digital.

python -m examples.analog_from_python
"""

from typing import Any

import torch
from torch import nn

from lessen.analog.chip import Array, Chip
from lessen.analog.chipfile import preset
from lessen.analog.cost.count import layers
from lessen.analog.cost.model import cost
from lessen.analog.devices.pcm import PCM
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac
from lessen.analog.simulation import simulate
from lessen.analog.splitting import find_split

DAY, YEAR = 86400.0, 365 * 86400.0


def main() -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(256, 64, generator=random)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    with torch.no_grad():
        classes = model(x).argmax(-1)

    def agreement(net: nn.Module) -> float:
        return float((net(x).argmax(-1) == classes).float().mean())

    chip = Chip(device=PCM(), dac=Dac(8), adc=Adc(8), array=Array(128, 256), compensation="column")  # or preset("pcm-hermes")
    mapped = map(model, chip, calibration=[x[:64]])
    mapped.program(seed=0, seconds=DAY)
    one = agreement(mapped.model)  # the twin is an ordinary module

    aged = simulate(mapped, agreement, digital=model, times=[20.0, DAY, YEAR], chips=3)
    for row in aged.summary():
        print(f"after {row['seconds']:.0f} s: {row['mean']:.3f} +- {row['spread']:.3f}")

    price = cost(layers(model, lambda: model(x[:1])), mapped)
    print(price.table())
    print(f"{price.energy_pj:.0f} pJ, on a digital accelerator {price.baseline.energy_pj:.0f} pJ")

    found = find_split(mapped, agreement, max_loss=0.1, better="higher", chips=2, seconds=DAY)
    print(f"digital: {', '.join(found.split.digital) or 'nothing'}; loss {found.loss:.3f}, on other chips {max(found.proof):.3f} at most")
    return {"one": one, "aged": aged.summary(), "energy_pj": price.energy_pj, "loss": found.loss, "preset": preset("pcm-hermes").name}


if __name__ == "__main__":
    main()
