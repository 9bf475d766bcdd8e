"""`lessen analog`: chips are listed and described, networks simulated, priced, made robust and searched for, on models of seconds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_cli_runs import call

HERE = "tests.test_analog_cli"


def network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    net = network()
    for _ in range(8):
        x = torch.randn(64, 16, generator=random)
        yield x, net(x).argmax(-1)


def loudness(model: nn.Module) -> dict[str, float]:
    return {"loudness": float(model(torch.ones(1, 16)).abs().mean())}


def broken(model: nn.Module) -> float:
    raise ValueError("no idea")
