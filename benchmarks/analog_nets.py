"""Two small networks and their pictures, for what chips do to networks: a CNN with batch norms and a vision transformer on Fashion-MNIST.

Both are trained here, once, by a seeded command, and kept in the cache of assets:

    python -m benchmarks.analog_nets

The pictures are those of Debian's `dataset-fashion-mnist` (60,000 to train on, 10,000 to test; MIT licence).
"""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.assets import fetched, pictures
from lessen.recover.loop import recover
from lessen.recover.losses import NextToken

Name = Literal["cnn", "vit"]
EPOCHS: dict[Name, float] = {"cnn": 3, "vit": 4}
MEAN, SPREAD = 72.94 / 255, 90.02 / 255  # of the training pictures


class Pairs(Sequence[tuple[Tensor, Tensor]]):
    """Pictures `sample 1 28 28` with zero mean and unit variance, and their classes, as samples for training."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int | slice) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.images[place], self.labels[place]

    def first(self, count: int) -> "Pairs":
        """The first samples."""
        return Pairs(self.images[:count], self.labels[:count])

    def batches(self, size: int = 500) -> list[Tensor]:
        """All pictures, in batches."""
        return list(self.images.split(size))


def pairs(part: Literal["train", "test"]) -> Pairs:
    """Fashion-MNIST."""
    folder, prefix = pictures(), "train" if part == "train" else "t10k"

    def read(kind: str, skip: int) -> Tensor:
        with gzip.open(folder / f"{prefix}-{kind}-ubyte.gz") as file:
            return torch.frombuffer(bytearray(file.read()[skip:]), dtype=torch.uint8)

    images = read("images-idx3", 16).reshape(-1, 1, 28, 28).float().div_(255).sub_(MEAN).div_(SPREAD)
    return Pairs(images, read("labels-idx1", 8).long())


def cnn(width: int = 16) -> nn.Sequential:
    """Three convolutions with batch norms and a linear layer; 29 thousand weights."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    first, second, third = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
    pooled = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9 * 4 * width, 10)]
    return nn.Sequential(*first, nn.MaxPool2d(2), *second, nn.MaxPool2d(2), *third, *pooled)


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`batch token width` to the same."""
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class ViT(nn.Module):
    """A vision transformer of 16 patches of 7 x 7 pixels; 135 thousand weights."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, stride=7)
        self.places = nn.Parameter(torch.zeros(1, 16, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """`batch 1 28 28` to logits `batch class`."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def fresh(name: Name, seed: int = 0) -> nn.Module:
    """A network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch's initialisation knows only the global generator
        return cnn() if name == "cnn" else ViT()


def accuracy(model: nn.Module, data: Pairs) -> float:
    """Share of pictures whose class is found, in percent."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(data.batches(), data.labels.split(500), strict=True))
    return 100 * right / len(data)


def trained(name: Name) -> nn.Module:
    """A trained network, from the cache or trained now."""

    def fetch(folder: Path) -> None:
        model, data = fresh(name), pairs("train")
        rate = 3e-3 if name == "cnn" else 2e-3
        recover(
            model, None, data, losses=(NextToken(),), epochs=EPOCHS[name], batch=128, learning_rate=rate, weight_decay=0.05,
            betas=(0.9, 0.99), precision="float32", final=0.01,
        )  # fmt: skip
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "model.safetensors")

    model = fresh(name)
    folder = fetched(f"fashion-mnist-{name}", fetch, "it is trained here; needs no network but Debian's archive")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    test = pairs("test")
    for each in EPOCHS:
        network = trained(each)
        print(each, sum(p.numel() for p in network.parameters()), "parameters,", f"{accuracy(network, test):.2f} % of {len(test)}")
