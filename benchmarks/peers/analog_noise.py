"""Conductances as aihwkit draws them, saved on request: run by that toolkit's own interpreter, so it knows nothing of lessen.

analog_noise.py FILE COUNT      writes FILE.npz: an array of COUNT conductances for every "DEVICE TARGET SECONDS" on stdin
"""

import sys
from typing import Any

import numpy as np
import torch


def models() -> dict[str, Any]:
    from aihwkit.inference.noise.hermes import HermesNoiseModel  # pyright: ignore[reportMissingImports]
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel  # pyright: ignore[reportMissingImports]
    from aihwkit.inference.noise.reram import ReRamWan2022NoiseModel  # pyright: ignore[reportMissingImports]

    return {
        "PCM": PCMLikeNoiseModel(g_max=25.0),
        "HermesPCM": HermesNoiseModel(num_devices=2),
        "HermesSinglePCM": HermesNoiseModel(num_devices=1),
        "WanRRAM": ReRamWan2022NoiseModel(g_max=40.0),
    }


def draw(model: Any, target: float, seconds: float, count: int) -> np.ndarray:
    """Its time begins at its first reading (t_0), except for resistive memory, whose time is that of the measurement."""
    wanted = torch.full((count,), target)
    written = model.apply_programming_noise_to_conductance(wanted)
    if not hasattr(model, "t_0"):
        return model.apply_drift_noise_to_conductance(wanted, wanted, seconds).numpy()
    drift = model.generate_drift_coefficients(wanted)
    return model.apply_drift_noise_to_conductance(written, drift, seconds - model.t_0).numpy()


if __name__ == "__main__":
    torch.manual_seed(1)
    known = models()
    cases = [line.split() for line in sys.stdin.read().splitlines()]
    found = {" ".join(case): draw(known[case[0]], float(case[1]), float(case[2]), int(sys.argv[2])) for case in cases}
    np.savez(sys.argv[1], **found)  # pyright: ignore[reportArgumentType]
