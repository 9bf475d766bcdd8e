"""EfficientNet-Lite: a convolutional vision tower that small processors run well.

Inverted residuals: a 1x1 convolution widens the stream (x6), a depthwise one mixes space, a 1x1 narrows it again, and the sum is taken
where the shapes allow. The Lite variant leaves out squeeze-and-excitation and uses ReLU6, so that every activation has a known range.

    y = x + narrow(relu6(depthwise(relu6(widen(x)))))             each with a batch norm, the last without an activation

The widened channels of a block are free: `widen` makes them, `depthwise` keeps them apart and `narrow` consumes them, which is what
structured pruning removes; the residual width is shared by a whole stage.

Padding is TensorFlow's "SAME": with stride 2 on even sizes the extra zero lies right and below, so it is a module of its own.

Paper: Tan and Le 2019, EfficientNet, https://arxiv.org/abs/1905.11946 (table 1); the Lite variants were published by its authors with
their weights, without a paper.
Left out: drop-connect and dropout, which matter only when the tower is trained from nothing.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from lessen.errors import LessenError

# (kernel, stride of the first block, expansion, channels out, blocks) of every stage of Lite0
LITE0 = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))
MEAN, STD = 0.498, 0.502
"""What pixels in [0, 1] are normalised with."""

_EPS = 1e-3  # of TensorFlow's batch norm; PyTorch's default would shift every channel


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Padding as TensorFlow does it, a convolution without bias, and its norm."""
    total = kernel - stride
    before = total // 2
    pad: list[nn.Module] = [] if total <= 0 else [nn.ZeroPad2d((before, total - before, before, total - before))]
    return [*pad, nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(outputs, eps=_EPS)]


class InvertedResidual(nn.Module):
    """Widen, mix space per channel, narrow; plus the input where shapes agree. "batch in h w" to "batch out h/stride w/stride"."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.widen = nn.Sequential(*_conv(inputs, wide, 1), nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Sequential(*_conv(wide, wide, kernel, stride, groups=wide), nn.ReLU6())
        self.narrow = nn.Sequential(*_conv(wide, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """The body of EfficientNet-Lite: an image to a map of features at 1/32 of its size.

    Args:
        stages: rows of (kernel, stride, expansion, channels, blocks).
        stem: channels after the first convolution.
        dim: channels of the map; None leaves out the last 1x1 convolution.

    >>> import torch
    >>> EfficientNetLite()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1280, 2, 2])
    """

    def __init__(self, stages: tuple[tuple[int, ...], ...] = LITE0, stem: int = 32, dim: int | None = 1280):
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, stem, 3, 2), nn.ReLU6())
        blocks, inputs = [], stem
        for kernel, stride, expansion, outputs, count in stages:
            for i in range(count):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Identity() if dim is None else nn.Sequential(*_conv(inputs, dim, 1), nn.ReLU6())

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels normalised with `MEAN` and `STD`, "batch 3 h w" with h and w multiples of 32, to "batch dim h/32 w/32"."""
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def from_published(state: Mapping[str, Tensor], model: EfficientNetLite) -> EfficientNetLite:
    """Fill a tower with weights named as in the PyTorch port of EfficientNet (`_blocks.0._expand_conv.weight`), without its classifier.

    Raises:
        LessenError: a tensor is missing or has another shape; the tower is as it was.
    """
    own = model.state_dict()
    given = {name: state[theirs] for name in own if (theirs := _published(name, model)) in state}
    wrong = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if wrong:
        found = tuple(given[wrong[0]].shape) if wrong[0] in given else "nothing"
        raise LessenError(f"vision tower {wrong[0]}", got=str(found), wanted=str(tuple(own[wrong[0]].shape)), remedy="take Lite0's weights")
    model.load_state_dict(given)
    return model


def _published(name: str, model: EfficientNetLite) -> str:
    """The name that the port gives a tensor of ours."""
    parts = name.split(".")
    owner, key = name.rpartition(".")[0], parts[-1]
    norm = isinstance(model.get_submodule(owner), nn.BatchNorm2d)
    if parts[0] == "stem":
        return f"_bn0.{key}" if norm else f"_conv_stem.{key}"
    if parts[0] == "head":
        return f"_bn1.{key}" if norm else f"_conv_head.{key}"
    conv, number = {"widen": ("_expand_conv", 0), "depthwise": ("_depthwise_conv", 1), "narrow": ("_project_conv", 2)}[parts[2]]
    return f"_blocks.{parts[1]}.{f'_bn{number}' if norm else conv}.{key}"
