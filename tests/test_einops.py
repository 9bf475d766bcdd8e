"""Networks that are written with einops: as functions, as layers, and called before they are traced."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.core.edit import Keep
from lessen.methods import Magnitude
from lessen.structure.check import check
from lessen.structure.resize import expressible, resizes
from lessen.structure.trace import trace
from tests.cutting import disturbed

einops = pytest.importorskip("einops")
layers = pytest.importorskip("einops.layers.torch")


class Attention(nn.Module):
    """Heads taken apart and put together by `rearrange`; keys and values made by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm = 4, nn.LayerNorm(16)
        self.q, self.kv, self.out = nn.Linear(16, 24, bias=False), nn.Linear(16, 48), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = (einops.rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (self.q(x), *self.kv(x).chunk(2, -1)))
        shares = (torch.einsum("bhid,bhjd->bhij", q, k) / 5).softmax(-1)
        return self.out(einops.rearrange(torch.einsum("bhij,bhjd->bhid", shares, v), "b h n d -> b n (h d)"))


class Transformer(nn.Module):
    """Two blocks of the same sizes, so that shapes which einops has kept are those of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(layers.Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), nn.Linear(48, 16))
        self.attend = nn.ModuleList(Attention() for _ in range(2))
        self.feed = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(2))
        self.head = nn.Sequential(layers.Reduce("b n c -> b c", "mean"), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        for attend, feed in zip(self.attend, self.feed, strict=True):
            x = x + attend(x)
            x = x + feed(x)
        return self.head(x)


class Shuffled(nn.Module):
    """A shuffle of channels between groups, by a pattern, and channels that are repeated by one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 12, 1, groups=2), nn.Conv2d(24, 8, 1)
        self.shuffle, self.out = layers.Rearrange("b (g c) h w -> b (c g) h w", g=2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.shuffle(torch.relu(self.a(x))))
        x = torch.relu(self.c(einops.repeat(x, "b c h w -> b (c n) h w", n=2)))
        return self.out(einops.reduce(x, "b c h w -> b c", "mean"))


NETWORKS: dict[Callable[[], nn.Module], set[str]] = {
    Transformer: {"attend.0.heads", "attend.0.head_dim", "attend.1.heads", "attend.1.head_dim", "feed.0", "feed.1"},
    Shuffled: {"b", "c"},
}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("make", NETWORKS, ids=lambda f: f.__name__)
def test_networks_with_einops_are_traced_cut_and_proved(make: Callable[[], nn.Module], called: bool):
    model, inputs = disturbed(make()), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = copy.deepcopy(model)(inputs)
    if called:
        model(inputs)
    structure = expressible(model, trace(model, inputs))
    units = [unit for unit in structure.units if not unit.normed and unit.kind != "layer"]
    assert NETWORKS[make] <= {unit.name for unit in units}, structure
    for some in [*([unit] for unit in units), [unit for unit in units if unit.kind != "head_dim"]]:
        edits: Any = resizes(model, structure, [Keep(unit, torch.arange(unit.size)[unit.size // 3 or 1 :]) for unit in some])
        assert sum(p.numel() for p in check(model, edits, inputs).parameters()) < sum(p.numel() for p in model.parameters())
    # Numbers that einops keeps are plain ones again.
    assert torch.equal(model(inputs), expected)


def test_a_transformer_in_einops_is_pruned_to_a_budget():
    model, inputs = Transformer().eval(), torch.randn(2, 3, 8, 8)
    pruned = lessen.prune(model, inputs, method=Magnitude(), to="25%")
    assert 0.7 < pruned.after["parameters"] / pruned.before["parameters"] < 0.8
    assert pruned.model(inputs).shape == (2, 3)
