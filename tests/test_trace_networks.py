"""Masked equals sliced, in float64, for networks of every kind: if an axis were coupled wrongly, the two would differ."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.structure.trace import trace
from tests.cutting import TOLERANCE, disturbed, error, masked_and_sliced


class Body(nn.Module):
    """Layers by name, and a forward function."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return self._forward(self, *args, **kwargs)


def image(channels: int = 3, size: int = 12) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def words(width: int = 6, length: int = 5) -> Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def conv(i: int, o: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, size, padding=size // 2, **options)


def residual() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = torch.relu(x + m.n2(m.c2(torch.relu(m.n1(m.c1(x))))))
        return m.head(F.adaptive_avg_pool2d(x, 2).flatten(1))

    return Body(
        forward, stem=conv(3, 9), c1=conv(9, 12), n1=nn.BatchNorm2d(12), c2=conv(12, 9), n2=nn.BatchNorm2d(9), head=nn.Linear(36, 4)
    ), image()


def depthwise() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.out(F.silu(m.dw(F.silu(m.up(x))))).mean((2, 3)))

    return Body(forward, up=conv(3, 9, 1), dw=conv(9, 18, groups=9), out=conv(18, 6, 1), head=nn.Linear(6, 4)), image()


def grouped() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.b(torch.relu(m.a(m.up(x)))).amax((2, 3)))

    return Body(forward, up=conv(3, 12), a=conv(12, 24, groups=3), b=conv(24, 12, groups=3), head=nn.Linear(12, 4)), image()


def squeeze_excite() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.up(x)
        return m.out(x * torch.sigmoid(m.b(torch.relu(m.a(x.mean((2, 3), keepdim=True))))))

    return Body(forward, up=conv(3, 9), a=conv(9, 6, 1), b=conv(6, 9, 1), out=conv(9, 2)), image()


def dense() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.stem(x)
        b = m.c1(torch.relu(m.n1(a)))
        c = m.c2(torch.relu(m.n2(torch.cat([a, b], 1))))
        return m.head(torch.cat([a, b, c], 1))

    return Body(
        forward,
        stem=conv(3, 6),
        n1=nn.BatchNorm2d(6),
        c1=conv(6, 4),
        n2=nn.BatchNorm2d(10),
        c2=conv(10, 5),
        head=conv(15, 2),
    ), image()


def unet() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = torch.relu(m.down1(x))
        b = torch.relu(m.down2(F.max_pool2d(a, 2)))
        c = m.up(b)
        return m.out(torch.cat([a, c], 1)) + m.skip(F.interpolate(b, scale_factor=2, mode="bilinear"))

    return Body(
        forward, down1=conv(3, 6), down2=conv(6, 9), up=nn.ConvTranspose2d(9, 5, 2, stride=2), out=conv(11, 2), skip=conv(9, 2)
    ), image()


def shuffled() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        b, c, h, w = x.shape
        x = x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
        return m.head(m.b(torch.relu(x)))

    return Body(forward, a=conv(3, 12), b=conv(12, 8), head=conv(8, 2)), image()


def transposed_groups() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.b(torch.relu(m.a(x)))))

    return Body(forward, a=conv(3, 12), b=nn.ConvTranspose2d(12, 6, 2, stride=2, groups=3), head=conv(6, 2)), image()


def pixels() -> tuple[nn.Module, Tensor]:
    return Body(lambda m, x: m.out(torch.relu(F.pixel_shuffle(m.up(x), 2))), up=conv(3, 24), out=conv(6, 2)), image()


def padded_shortcut() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)) + m.c2(torch.relu(m.c1(x))))

    return Body(forward, stem=conv(3, 6), c1=conv(6, 9, stride=2), c2=conv(9, 12), head=conv(12, 2)), image()


def weight_normed() -> tuple[nn.Module, Tensor]:
    norm = torch.nn.utils.parametrizations.weight_norm
    return Body(lambda m, x: m.b(torch.relu(m.a(x))), a=norm(conv(3, 9)), b=norm(conv(9, 2))), image()


def lstm() -> tuple[nn.Module, Tensor]:
    return Body(lambda m, x: m.head(m.a(x)[0]), a=nn.LSTM(6, 9, batch_first=True), head=nn.Linear(9, 2)), words()


def gru() -> tuple[nn.Module, Tensor]:
    return Body(lambda m, x: m.head(m.a(m.up(x))[0]), up=nn.Linear(6, 9), a=nn.GRU(9, 6, batch_first=True), head=nn.Linear(6, 2)), words()


def attend(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    b, s = q.shape[:2]
    q, k, v = (t.view(b, s, -1, size).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2).reshape(b, s, -1)


def grouped_queries() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.o(attend(m.q(x), m.k(x), m.v(x), 4))

    return Body(forward, q=nn.Linear(6, 24), k=nn.Linear(6, 12), v=nn.Linear(6, 12), o=nn.Linear(24, 6)), words()


def one_key_head() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.o(attend(m.q(x), m.k(x), m.v(x), 4))

    return Body(forward, q=nn.Linear(6, 24), k=nn.Linear(6, 4), v=nn.Linear(6, 4), o=nn.Linear(24, 6)), words()


def fused_heads() -> tuple[nn.Module, Tensor]:
    """GPT-NeoX: q, k, v inside each head."""

    def forward(m: Any, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = m.qkv(x).view(b, s, -1, 12).transpose(1, 2).chunk(3, dim=-1)
        return m.o((torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v).transpose(1, 2).reshape(b, s, -1))

    return Body(forward, qkv=nn.Linear(6, 36), o=nn.Linear(12, 6)), words()


def fused_rows() -> tuple[nn.Module, Tensor]:
    """ViT: q, k, v one behind the other, seen as 3 x heads x features."""

    def forward(m: Any, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = m.qkv(x).reshape(b, s, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return m.o((torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v).transpose(1, 2).reshape(b, s, -1))

    return Body(forward, qkv=nn.Linear(6, 36), o=nn.Linear(12, 6)), words()


def rotary() -> tuple[nn.Module, Tensor]:
    def turn(x: Tensor, angles: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

    def forward(m: Any, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        angles = torch.outer(torch.arange(s, dtype=x.dtype), m.frequencies)
        angles = torch.cat([angles, angles], -1)
        q, k = (turn(p(x).view(b, s, 3, -1), angles[:, None]).transpose(1, 2) for p in (m.q, m.k))
        v = m.v(x).view(b, s, 3, -1).transpose(1, 2)
        return m.o((torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v).transpose(1, 2).reshape(b, s, -1))

    body = Body(forward, q=nn.Linear(6, 18), k=nn.Linear(6, 18), v=nn.Linear(6, 18), o=nn.Linear(18, 6))
    body.register_buffer("frequencies", torch.tensor([1.0, 0.1, 0.01]))
    return body, words()


def gated_fused() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        gate, up = m.both(x).chunk(2, -1)
        return m.down(F.silu(gate) * up) + m.other(F.glu(m.both2(x)))

    return Body(forward, both=nn.Linear(6, 18), down=nn.Linear(9, 6), both2=nn.Linear(6, 12), other=nn.Linear(6, 6)), words()


def packed_experts() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        weights = torch.softmax(m.router(x), -1)
        hidden = torch.einsum("bsd,edf->bsef", x, m.up).relu()
        return torch.einsum("bsef,efd,bse->bsd", hidden, m.down, weights)

    up, down = nn.Parameter(torch.randn(4, 6, 9)), nn.Parameter(torch.randn(4, 9, 6))
    return Body(forward, router=nn.Linear(6, 4), up=up, down=down), words()


def mixer() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = x + m.b(F.gelu(m.a(x.transpose(1, 2)))).transpose(1, 2)
        return m.d(F.gelu(m.c(x)))

    return Body(forward, a=nn.Linear(5, 9), b=nn.Linear(9, 5), c=nn.Linear(6, 12), d=nn.Linear(12, 6)), words()


def state_space() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        u, gate = m.inside(x).chunk(2, -1)
        u = F.silu(m.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        rank, size = m.step.weight.shape[1], m.decay.shape[1]
        step, b, c = m.mix(u).split([rank, size, size], -1)
        step = F.softplus(m.step(step))
        state, outs = torch.zeros(x.shape[0], u.shape[-1], size, dtype=x.dtype), []
        for t in range(x.shape[1]):
            state = torch.exp(step[:, t, :, None] * -m.decay.exp()) * state + step[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
            outs.append((state * c[:, t, None]).sum(-1))
        return m.out((torch.stack(outs, 1) + u * m.skip) * F.silu(gate))

    return Body(
        forward,
        inside=nn.Linear(6, 18),
        conv=nn.Conv1d(9, 9, 3, padding=2, groups=9),
        mix=nn.Linear(9, 10),
        step=nn.Linear(2, 9),
        decay=nn.Parameter(torch.randn(9, 4)),
        skip=nn.Parameter(torch.randn(9)),
        out=nn.Linear(9, 6),
    ), words()


NETWORKS: dict[Callable[[], tuple[nn.Module, Tensor]], set[str]] = {
    residual: {"stem", "c1"},
    depthwise: {"up", "out"},
    grouped: {"up", "a", "b"},
    squeeze_excite: {"up", "a"},
    dense: {"stem", "c1", "c2"},
    unet: {"down1", "down2", "up"},
    shuffled: {"a", "b"},
    transposed_groups: {"a", "b"},
    pixels: {"up"},
    padded_shortcut: {"stem", "c1"},
    weight_normed: {"a"},
    lstm: {"a"},
    gru: {"up", "a"},
    grouped_queries: {"q", "k", "v"},
    one_key_head: {"q"},
    fused_heads: {"qkv"},
    fused_rows: {"qkv"},
    rotary: {"q", "k", "v"},
    gated_fused: {"both", "both2"},
    packed_experts: {"up"},
    mixer: {"a", "c"},
    state_space: {"inside", "mix"},
}
"""Networks, and modules that must lose outputs: a tracer that holds everything would pass every comparison."""

WRITTEN = {
    shuffled: lambda unit: unit.size == 3,
    grouped_queries: lambda unit: unit.kind == "head_dim",
    one_key_head: lambda unit: unit.kind == "head_dim",
    fused_heads: lambda unit: unit.kind == "head_dim",
    fused_rows: lambda unit: unit.kind == "head_dim",
    rotary: lambda unit: unit.kind == "heads",
}
"""Units whose size stands as a number in the code of the network, which a cut cannot reach."""


@pytest.mark.parametrize("make", NETWORKS, ids=lambda f: f.__name__)
def test_masked_equals_sliced(make: Callable[[], tuple[nn.Module, Tensor]]):
    torch.manual_seed(0)
    model, example = make()
    model = disturbed(model)
    structure = trace(model, example)
    written = WRITTEN.get(make, lambda unit: False)
    units = [unit for unit in structure.units if not unit.normed and not written(unit)]
    able = {part.name.split(".")[0] for unit in units for part in unit.slices if part.axis == 0 or part.name in ("up", "down")}
    assert NETWORKS[make] <= able, structure
    for chosen in [*([unit] for unit in units), units]:
        masked, sliced = masked_and_sliced(model, chosen)
        assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            assert error(sliced(example), masked(example)) < TOLERANCE, [unit.name for unit in chosen]
