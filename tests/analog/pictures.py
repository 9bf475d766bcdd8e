"""Pictures of ten kinds, made and not loaded: a smooth pattern for each, shifted and noisy; and a small network that tells them apart."""

import copy
from functools import cache

import torch
from torch import Tensor, nn

from lessen.recover.loop import recover
from lessen.recover.losses import NextToken

SIDE, KINDS = 12, 10


def pictures(count: int, seed: int, noise: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a picture `1 12 12` and its kind."""
    patterns = torch.randn(KINDS, 1, 5, 5, generator=torch.Generator().manual_seed(7))
    patterns = nn.functional.interpolate(patterns, size=(SIDE, SIDE), mode="bicubic")[:, 0]
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(KINDS, (count,), generator=generator)
    shifts = torch.randint(-2, 3, (count, 2), generator=generator).tolist()
    moved = torch.stack([patterns[k].roll(shift, (0, 1)) for k, shift in zip(kinds.tolist(), shifts, strict=True)])
    images = (moved + noise * torch.randn(moved.shape, generator=generator))[:, None]
    return list(zip(images, kinds, strict=True))


def network(seed: int = 0, norms: bool = False) -> nn.Sequential:
    """Two convolutions and a linear layer with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), *[nn.BatchNorm2d(8)] * norms, nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(8, 16, 3, padding=1), *[nn.BatchNorm2d(16)] * norms, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(16 * 9, KINDS)).eval()


def trained(seed: int = 0, norms: bool = False) -> nn.Sequential:
    """A copy of the network after training."""
    return copy.deepcopy(_trained(seed, norms))


@cache
def _trained(seed: int, norms: bool) -> nn.Sequential:
    net = network(seed, norms)
    settings = {"losses": (NextToken(),), "steps": 300, "batch": 64, "learning_rate": 5e-3, "precision": "float32", "seed": seed}
    recover(net, None, pictures(2000, 1), **settings)
    return net.eval()


def stacked(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All pictures, and all kinds."""
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def accuracy(model: nn.Module, samples: list[tuple[Tensor, Tensor]]) -> float:
    """Percent of the pictures whose kind is found."""
    images, kinds = stacked(samples)
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == kinds).float().mean())


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward keeps for the way back, parameters and inputs left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()} | {x.untyped_storage().data_ptr()}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x)
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
