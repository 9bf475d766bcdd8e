"""Networks outside transformers that make pruning hard in known ways, in plain PyTorch, each a few thousand parameters."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(a: int, b: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(b), nn.ReLU())


class Residual(nn.Module):
    """x + f(x), with a projection where the width changes; `groups` > 1 as in ResNeXt, `squeeze` as in SENet."""

    def __init__(self, a: int, b: int, groups: int = 1, squeeze: bool = False):
        super().__init__()
        self.one, self.two = _conv(a, b, 1), _conv(b, b, 3, groups=groups)
        self.three = nn.Sequential(nn.Conv2d(b, b, 1), nn.BatchNorm2d(b))
        self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()
        self.gate = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(b, 8, 1), nn.ReLU(), nn.Conv2d(8, b, 1), nn.Sigmoid()) if squeeze else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(self.two(self.one(x)))
        return F.relu(self.skip(x) + (y * self.gate(y) if self.gate else y))


class Inverted(nn.Module):
    """MobileNet's block: expand, depthwise, squeeze and excite, project."""

    def __init__(self, a: int, b: int, wide: int, squeeze: bool):
        super().__init__()
        self.expand, self.depth, self.project = _conv(a, wide, 1), _conv(wide, wide, 3, groups=wide), nn.Conv2d(wide, b, 1)
        self.norm = nn.BatchNorm2d(b)
        self.fc1, self.fc2 = (nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)) if squeeze else (None, None)
        self.same = a == b

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        if self.fc1 is not None and self.fc2 is not None:
            y = y * F.hardsigmoid(self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True)))))
        y = self.norm(self.project(y))
        return x + y if self.same else y


class Dense(nn.Module):
    """DenseNet: every layer sees all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(16 + 12 * i), nn.ReLU(), nn.Conv2d(16 + 12 * i, 12, 3, padding=1)) for i in range(4)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.relu(torch.cat(features, 1)).mean((2, 3)))


class UNet(nn.Module):
    """Skips by concatenation, up-sampling by transposed convolution or by interpolation."""

    def __init__(self, transposed: bool):
        super().__init__()
        self.a, self.b, self.c = _conv(3, 16), _conv(16, 32, stride=2), _conv(32, 48, stride=2)
        self.up1 = nn.ConvTranspose2d(48, 32, 2, 2) if transposed else nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(48, 32, 1))
        self.d1, self.up2 = _conv(64, 32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.d2, self.out = _conv(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        y = self.d1(torch.cat([b, self.up1(self.c(b))], 1))
        return self.out(self.d2(torch.cat([a, self.up2(y)], 1)))


class Shuffle(nn.Module):
    """ShuffleNet: grouped convolutions whose channels are shuffled between groups; V2 splits the channels and shuffles the halves."""

    def __init__(self, second: bool):
        super().__init__()
        self.second = second
        self.stem = _conv(3, 32)
        wide = 16 if second else 32
        self.one, self.two = _conv(wide, wide, 1, groups=1 if second else 4), _conv(wide, wide, 3, groups=wide)
        self.three = nn.Sequential(nn.Conv2d(wide, wide, 1, groups=1 if second else 4), nn.BatchNorm2d(wide))
        self.head = nn.Sequential(nn.Conv2d(32, 64, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    @staticmethod
    def mix(x: Tensor, groups: int) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.second:
            left, right = x.chunk(2, 1)
            return self.head(self.mix(torch.cat([left, self.three(self.two(self.one(right)))], 1), 2))
        return self.head(F.relu(x + self.three(self.two(self.mix(self.one(x), 4)))))


class Inception(nn.Module):
    """Parallel branches, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 24)
        self.branches = nn.ModuleList(
            [_conv(24, 16, 1), nn.Sequential(_conv(24, 12, 1), _conv(12, 20, 3)), nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(24, 8, 1))]
        )
        self.head = nn.Linear(44, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([branch(x) for branch in self.branches], 1).flatten(2).mean(2))


class ConvNeXt(nn.Module):
    """Depthwise 7x7, a norm over channels last, an MLP, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.depth, self.norm = nn.Conv2d(24, 24, 7, padding=3, groups=24), nn.LayerNorm(24)
        self.up, self.down, self.gamma = nn.Linear(24, 96), nn.Linear(96, 24), nn.Parameter(torch.ones(24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """Embedding, recurrent layers, a head."""

    def __init__(self, kind: Callable[..., nn.Module], both: bool = False):
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.cell = kind(24, 32, num_layers=2, batch_first=True, bidirectional=both)
        self.mlp = nn.Sequential(nn.Linear(64 if both else 32, 96), nn.ReLU(), nn.Linear(96, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.cell(self.embed(x))[0])


class Attention(nn.Module):
    """A small transformer for images: heads by views, by `nn.MultiheadAttention`, or fused with scaled_dot_product_attention."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.heads = kind, 4
        self.patch, self.position = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.zeros(1, 16, 32))
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True) if kind == "module" else None
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 80), nn.GELU(), nn.Linear(80, 32))
        self.head = nn.Linear(32, 10)

    def attend(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            return self.attention(x, x, x, need_weights=False)[0]
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // 4 if self.kind == "fixed" else 8).permute(2, 0, 3, 1, 4)
        if self.kind == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) * 8**-0.5).softmax(-1), v)
        return self.proj(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attend(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x))).mean(1))


def _images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _ids() -> Tensor:
    return torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))


def _features() -> Tensor:
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _head(*layers: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "resnet": (lambda: _head(_conv(3, 16), Residual(16, 16), Residual(16, 40), Residual(40, 40), width=40), _images),
    "resnext": (lambda: _head(_conv(3, 16), Residual(16, 32, groups=4), Residual(32, 32, groups=4), width=32), _images),
    "senet": (lambda: _head(_conv(3, 16), Residual(16, 32, squeeze=True), Residual(32, 32, squeeze=True), width=32), _images),
    "mobilenet_v2": (lambda: _head(_conv(3, 16), Inverted(16, 16, 48, False), Inverted(16, 24, 64, False), width=24), _images),
    "mobilenet_v3": (lambda: _head(_conv(3, 16), Inverted(16, 16, 48, True), Inverted(16, 24, 64, True), width=24), _images),
    "densenet": (Dense, _images),
    "unet": (lambda: UNet(True), _images),
    "unet_upsample": (lambda: UNet(False), _images),
    "shufflenet_v1": (lambda: Shuffle(False), _images),
    "shufflenet_v2": (lambda: Shuffle(True), _images),
    "espcn": (lambda: nn.Sequential(_conv(3, 32), _conv(32, 24), nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2)), lambda: _images(16)),
    "vgg": (
        lambda: nn.Sequential(
            _conv(3, 16), nn.MaxPool2d(2), _conv(16, 32), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 48), nn.ReLU(), nn.Linear(48, 10)
        ),
        _images,
    ),
    "inception": (Inception, _images),
    "convnext": (ConvNeXt, _images),
    "decoder": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 32, 4, 2, 1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(),
            nn.ConvTranspose2d(32, 24, 4, 2, 1),
            nn.GroupNorm(4, 24),
            nn.PReLU(24),
            nn.Conv2d(24, 3, 3, padding=1),
        ),
        lambda: _images(8),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), _ids),
    "gru": (lambda: Recurrent(nn.GRU), _ids),
    "lstm_bidirectional": (lambda: Recurrent(nn.LSTM, True), _ids),
    "vit_einsum": (lambda: Attention("einsum"), _images),
    "vit_fused": (lambda: Attention("fused"), _images),
    "vit_multihead": (lambda: Attention("module"), _images),
    "transformer_encoder": (
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 80, batch_first=True), 2, enable_nested_tensor=False), nn.Linear(32, 10)
        ),
        _features,
    ),
}
"""name -> (model, what it is called with)."""
