"""One analog layer of another toolkit, timed on request: run by that toolkit's own interpreter, so it knows nothing of lessen.

    analog_layers.py TOOLKIT SIZE BATCH      then a case's name a line on stdin, a JSON of processor seconds a line on stdout

8 bits for inputs and outputs, static input range, weights disturbed by 3 % beforehand (a programmed chip); evaluation without gradients.
`as lessen` switches off what a toolkit does besides by default; `defaults` leaves its own noise and range management on.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch


def lightning(size: int) -> dict[str, Any]:
    from aihwkit_lightning.nn import AnalogLinear  # pyright: ignore[reportMissingImports]
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig  # pyright: ignore[reportMissingImports]

    def layer(rows: int) -> Any:
        config = TorchInferenceRPUConfig()
        config.forward.inp_res = config.forward.out_res = 254
        config.forward.out_bound = 12.0
        config.mapping.max_input_size = rows
        config.pre_post.input_range.enable = True
        config.pre_post.input_range.init_from_data = 0
        return disturbed(AnalogLinear(size, size, rpu_config=config))

    return {"one tile": layer(-1), "tiles of 128": layer(128)}


def aihwkit(size: int) -> dict[str, Any]:
    from aihwkit.nn import AnalogLinearMapped  # pyright: ignore[reportMissingImports]
    from aihwkit.simulator.configs import TorchInferenceRPUConfig  # pyright: ignore[reportMissingImports]
    from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType  # pyright: ignore[reportMissingImports]

    def layer(rows: int, plain: bool) -> Any:
        config = TorchInferenceRPUConfig()
        config.forward.inp_res = config.forward.out_res = 1 / 254
        if plain:
            config.forward.out_noise = 0.0
            config.forward.noise_management = NoiseManagementType.NONE
            config.forward.bound_management = BoundManagementType.NONE
        config.mapping.max_input_size = config.mapping.max_output_size = rows
        return disturbed(AnalogLinearMapped(size, size, rpu_config=config))

    return {
        "one tile as lessen": layer(size, True),
        "tiles of 128 as lessen": layer(128, True),
        "one tile defaults": layer(size, False),
        "tiles of 128 defaults": layer(128, False),
    }


def disturbed(layer: Any) -> Any:
    """Weights as a chip with 3 % programming noise would have them."""
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() == 2:
                parameter += 0.03 * parameter.abs().max() * torch.randn(parameter.shape)
    return layer.eval()


def seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main(toolkit: str, size: str, batch: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    cases = {"nn.Linear": torch.nn.Linear(int(size), int(size)), **{"lightning": lightning, "aihwkit": aihwkit}[toolkit](int(size))}
    x = torch.randn(int(batch), int(size)).clamp_(-3, 3) / 3
    print(json.dumps({"ready": list(cases), "torch": torch.__version__}), flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            layer = cases[line.strip()]
            print(json.dumps(seconds(lambda layer=layer: layer(x))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
