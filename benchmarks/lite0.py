"""EfficientNet-Lite0 with its ImageNet classifier, and the pictures that it is judged on: Tux Paint's stamps, of which none is labelled.

What is compared is therefore agreement with the digital network: the share of pictures of the same class, and the signal-to-noise ratio
of the logits. Calibration takes the pictures of even place, evaluation those of odd place.
"""

from collections import OrderedDict

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import assets
from lessen.models import efficientnet
from lessen.models.efficientnet import EfficientNetLite
from lessen.stats import image_text

SIZE = 224


def classifier(smoke: bool = False) -> nn.Module:
    """The network, "batch 3 h w" to logits; a small random one in smoke size."""
    if smoke:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tower, dim, state = EfficientNetLite(((3, 1, 1, 8, 1), (3, 2, 2, 8, 2)), 8, 32), 32, None
            net = _assembled(tower, dim, 10)
    else:
        state = load_file(assets.lite0())
        net = _assembled(efficientnet.from_published(state, EfficientNetLite()), 1280, 1000)
        net.get_submodule("fc").load_state_dict({name: state[f"_fc.{name}"] for name in ("weight", "bias")})
    return net.eval()


def _assembled(tower: nn.Module, dim: int, classes: int) -> nn.Module:
    parts = {"tower": tower, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(dim, classes)}
    return nn.Sequential(OrderedDict(parts))


def pictures(count: int, odd: bool, smoke: bool = False) -> Tensor:
    """Pictures of odd or even place, "count 3 h w", normalised; random ones of 32 pixels in smoke size."""
    if smoke:
        return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(int(odd)))
    chosen = image_text.pairs(assets.stamps())[int(odd) :: 2][:count]
    return torch.stack([image_text.pixels(pair.image, SIZE, efficientnet.MEAN, efficientnet.STD) for pair in chosen])


def agreement(logits: Tensor, digital: Tensor) -> dict[str, float]:
    """Share of the same first class in percent, and the logits' signal-to-noise ratio in dB."""
    noise = (logits - digital).square().sum()
    same = 100 * (logits.argmax(-1) == digital.argmax(-1)).double().mean()
    return {"agreement": float(same), "sqnr_db": float(10 * torch.log10(digital.square().sum() / noise.clamp(min=1e-30)))}
