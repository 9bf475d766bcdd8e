"""Digests: the same for the same thing in every process, another for whatever would change a result."""

import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lessen.core.digest import digest

SCALE = torch.ones(3)


@dataclass(frozen=True)
class Judge:
    model: nn.Module
    cache: list[Any] = field(default_factory=list, compare=False)


class Plain:
    def __init__(self, x: torch.Tensor):
        self.x = x
        self.me = self  # a circle ends

    def __call__(self, chip: Any) -> float:
        return float(self.x.sum())


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def judged(chip: Any, by: torch.Tensor | None = None) -> float:
    return float(SCALE.sum()) + len({"one", "two", "three"})


def closing(model: nn.Module) -> Any:
    return lambda chip: model(chip)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (net(0), net(0), net(1)),
        (closing(net(0)), closing(net(0)), closing(net(1))),
        (partial(judged, by=torch.ones(2)), partial(judged, by=torch.ones(2)), partial(judged, by=torch.zeros(2))),
        (Judge(net(0), [1]), Judge(net(0), [2]), Judge(net(1))),
        (Plain(torch.ones(2)), Plain(torch.ones(2)), Plain(torch.zeros(2))),
        (Plain(torch.ones(2)).__call__, Plain(torch.ones(2)).__call__, Plain(torch.zeros(2)).__call__),
        ([torch.ones(2, 3)], [torch.ones(2, 3)], [torch.ones(3, 2)]),
        (torch.tensor(0.0), torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.ones(2).numpy(), torch.ones(2).numpy(), torch.zeros(2).numpy()),
        ((1, 2), (1, 2), ((1,), 2)),
        (judged, judged, closing),
    ],
    ids=lambda value: type(value).__name__,
)
def test_another_thing_has_another_digest(one: Any, same: Any, other: Any):
    assert digest(one) == digest(same) != digest(other)


def test_a_global_that_a_function_names_counts(monkeypatch: pytest.MonkeyPatch):
    before = digest(judged)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", torch.zeros(3))
    assert digest(judged) != before


def test_buffers_and_the_kind_of_a_layer_count():
    one, other = net(), net()
    other.get_buffer("1.running_mean").fill_(1.0)
    assert digest(one) != digest(other)
    assert digest(nn.Sequential(nn.ReLU())) != digest(nn.Sequential(nn.Tanh()))


def test_other_processes_find_the_same():
    code = "from tests.test_digest import *; print(digest(judged, closing(net()), Plain(SCALE)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    from tests import test_digest as here  # under the name that the process sees, whatever the runner calls this file

    assert found == digest(here.judged, here.closing(here.net()), here.Plain(here.SCALE))
