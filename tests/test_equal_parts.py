"""Numbers that stand in the code: groups of a shuffle, halves, copies. A cut must leave them true, or the unit is held."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lessen
from lessen.core.edit import Keep
from lessen.errors import UsageError
from lessen.methods import Magnitude
from lessen.structure.check import check
from lessen.structure.resize import expressible, resizes
from lessen.structure.trace import trace
from tests.cutting import disturbed


class Body(nn.Module):
    """Layers by name, and what they do with an image."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module):
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def conv(a: int, b: int, k: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def branch(width: int) -> nn.Module:
    return nn.Sequential(conv(width, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, width, 3, groups=width), conv(width, width))


def shuffled_groups() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(m.shuffle(m.b(shuffle(F.relu(m.a(m.stem(x)))))))

    return Body(
        forward, stem=conv(3, 16), a=conv(16, 16, groups=2), b=conv(16, 16, groups=2), shuffle=nn.ChannelShuffle(2), out=conv(16, 4)
    )


def chunked_halves() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        still, worked = m.stem(x).chunk(2, 1)
        return m.out(shuffle(torch.cat([still, m.branch(worked)], 1)))

    return Body(forward, stem=conv(3, 16), branch=branch(8), out=conv(16, 4))


def sliced_halves() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        half = x.shape[1] // 2
        return m.out(torch.cat([x[:, :half], m.branch(x[:, half:])], 1))

    return Body(forward, stem=conv(3, 16), branch=branch(8), out=conv(16, 4))


def uneven_chunks() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b, c = F.relu(m.stem(x)).chunk(3, 1)
        return m.a(a) + m.b(b) * m.c(m.mid(c))

    return Body(forward, stem=conv(3, 8), a=conv(3, 4), b=conv(3, 4), mid=conv(2, 6), c=conv(6, 4))


def split_by_number() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x).split(8, 1)
        return m.out(m.mid(F.relu(a)) * torch.sigmoid(b).mean(1, keepdim=True))

    return Body(forward, stem=conv(3, 16), mid=conv(8, 6), out=conv(6, 2))


def copies() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.out(torch.cat([m.b(x.repeat(1, 2, 1, 1)), m.c(x.repeat_interleave(3, 1)), m.d(x).tensor_split([2, 5], 1)[0]], 1))

    return Body(forward, a=conv(3, 6), b=conv(12, 4), c=conv(18, 5), d=conv(6, 7), out=conv(11, 2))


def multiplied() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(F.silu(m.groups(F.silu(m.twice(F.relu(m.once(m.stem(x))))))))

    layers = {"once": conv(12, 12, 3, groups=12), "twice": conv(12, 24, 3, groups=12), "groups": conv(24, 24, 3, groups=4)}
    return Body(forward, stem=conv(3, 12), out=conv(24, 4), **layers)


def transposed() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=2), nn.ReLU(), conv(8, 2))


NETWORKS: dict[Callable[[], nn.Module], set[str]] = {
    shuffled_groups: {"stem.channels", "a", "a.channels", "b"},
    chunked_halves: {"stem", "branch"},
    sliced_halves: {"stem", "branch", "branch.4"},
    uneven_chunks: {"mid"},
    split_by_number: {"mid"},
    copies: {"a", "b", "c", "d.channels2"},
    multiplied: {"stem", "stem.channels", "twice", "out"},
    transposed: {"0", "0.channels", "2"},
}
"""Networks, and the units that can be cut: all others must be held."""


@pytest.mark.parametrize("make", NETWORKS, ids=lambda f: f.__name__)
def test_every_unit_that_is_not_held_is_proved_alone_and_with_all_others(make: Callable[[], nn.Module]):
    model, inputs = disturbed(make()), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    structure = expressible(model, trace(model, inputs))
    assert {unit.name for unit in structure.units} == NETWORKS[make], structure
    for units in [*([unit] for unit in structure.units), structure.units]:
        for left in (1, 2):
            keeps = [Keep(unit, torch.arange(unit.size)[-max(1, unit.size * left // 3) :]) for unit in units]
            smaller = check(model, resizes(model, structure, keeps), inputs)
            assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_halves_stay_equal_under_a_budget_of_the_whole_model():
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for make in (chunked_halves, sliced_halves):
        pruned = lessen.prune(disturbed(make()), inputs, method=Magnitude(across="model"), to="40%")
        assert 0 < len(pruned.kept["stem"]) < 8
        assert pruned.model.get_submodule("stem").out_channels == 2 * len(pruned.kept["stem"])


def test_heads_of_layers_that_pytorch_runs_in_one_kernel_are_proved():
    layers = [nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=first) for first in (False, True)]
    model = disturbed(nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 2)))
    inputs = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    structure = expressible(model, trace(model, inputs))
    heads = structure.unit("heads")
    fast = torch.backends.mha.get_fastpath_enabled()
    smaller: Any = check(model, resizes(model, structure, [Keep(heads, torch.tensor([0, 1, 3]))]), inputs)
    assert smaller[1].self_attn.num_heads == 3 and smaller[1].self_attn.embed_dim == 12
    assert torch.backends.mha.get_fastpath_enabled() is fast


def test_channels_that_norms_hold_together_are_named_where_there_are_no_others():
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    with pytest.raises(UsageError, match=r"no unit that it could prune.*kinds=\['width'\] takes it all the same"):
        lessen.prune(model, inputs, method=Magnitude(), to="20%")
    assert lessen.prune(model, inputs, method=Magnitude(), to="20%", kinds=["width"]).edits


def test_values_that_leave_the_traced_world_hold_their_channels():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x).relu()
            return self.c(self.b(x).relu()) + torch.from_numpy(y.detach().numpy().mean(-1, keepdims=True))

    found = lessen.trace(Outside(), torch.randn(3, 6))
    assert [unit.name for unit in found.units] == ["b"]
    assert "numpy takes its values out of what is traced" in found.held["a.weight[0]"]
