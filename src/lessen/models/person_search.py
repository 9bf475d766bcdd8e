"""A one-stage, anchor-free person-search network: where are people, and who are they, in one pass over an image.

Person search joins two tasks on one trunk. Detection must call every person by one name, re-identification must tell persons apart, so
they pull the shared channels in different directions; that is what makes the network a test of multi-task pruning.

A residual trunk (strides 2, 4, 8, 16) and one top-down step give a feature map of stride 8. Two heads of one 3x3 convolution each read it:

    heat      p = sigmoid(.)              is there a person's centre in this cell
    shape     dx, dy, log w/8, log h/8    the centre inside its cell (from the cell's middle), the size in cells
    identity  e / |e|                     a unit vector; persons are compared by their cosine

A person is a local maximum of the heat; its box and vector are read in that cell, so no anchors and no region pooling are needed. With
y the Gaussian bump drawn at every true centre and N their number, the detection loss is

    L_det = -1/N sum_cells { (1-p)^2 log p        where y = 1        + 0.5 sum |shape - true shape| / N
                           { (1-y)^4 p^2 log(1-p)  elsewhere

The identity loss is `lessen.recover.oim`, over the vectors at true centres.

Papers: Zhou et al. 2019, Objects as Points, https://arxiv.org/abs/1904.07850 (sections 3-4: heat, focal loss, sizes) and Zhang et al. 2021,
FairMOT, https://arxiv.org/abs/2004.01888 (section 4: identities read at centres). Ours: the small trunk, stride 8, log sizes, one bump
width for both axes. Not here: deformable layers, multi-scale heads, tracking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss, logsigmoid, max_pool2d, normalize, pad, relu

from lessen.errors import LessenError
from lessen.models.boxes import nms

STRIDE = 8  # of the maps
COARSEST = 16  # the trunk's last stride; images are multiples of it


class Maps(NamedTuple):
    """What the network says of a batch of images, cell by cell.

    Attributes:
        heat: logits, "batch 1 y x".
        shape: dx, dy, log width, log height in cells, "batch 4 y x".
        identity: unit vectors, "batch dim y x".
    """

    heat: Tensor
    shape: Tensor
    identity: Tensor


@dataclass(frozen=True)
class Truth:
    """The people of one image.

    Attributes:
        boxes: "person 4", x1 y1 x2 y2 in pixels.
        people: int64 "person", from 0; -1 for a person whose identity is not known.
        ignored: "region 4": places where a detection is neither right nor wrong.
    """

    boxes: Tensor
    people: Tensor
    ignored: Tensor | None = None


@dataclass(frozen=True)
class Found:
    """The people that were found in one image, best first: boxes "person 4", scores "person" in (0, 1), identities "person dim"."""

    boxes: Tensor
    scores: Tensor
    identities: Tensor


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: "batch in y x" to "batch out y/stride x/stride"."""
        y = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _unit(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class PersonSearchNet(nn.Module):
    """The network; `person_search_net` makes one from a seed.

    Args:
        widths: channels at strides 2, 4, 8 and 16.
        depths: residual blocks at strides 4, 8 and 16.
        neck: channels of the map that both heads read.
        heads: channels inside the detection head and the identity head.
        embedding: length of an identity vector.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 24, 48, 96),
        depths: Sequence[int] = (1, 1, 2),
        neck: int = 64,
        heads: Sequence[int] = (48, 64),
        embedding: int = 64,
    ):
        super().__init__()
        self.stem = _unit(3, widths[0], 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(a, b, 2), *(Residual(b, b, 1) for _ in range(depth - 1)))
            for (a, b), depth in zip(pairwise(widths), depths, strict=True)
        )
        self.lateral = nn.Conv2d(widths[2], neck, 1)
        self.top = nn.Conv2d(widths[3], neck, 1)
        self.neck = _unit(neck, neck, 3)
        self.detect = _unit(neck, heads[0], 3)
        self.heat = nn.Conv2d(heads[0], 1, 1)
        self.shape = nn.Conv2d(heads[0], 4, 1)
        self.identify = _unit(neck, heads[1], 3)
        self.identity = nn.Conv2d(heads[1], embedding, 1)

    def forward(self, images: Tensor) -> Maps:
        """Maps of a batch.

        Args:
            images: RGB in [0, 1], "batch 3 y x", sides multiples of 16.

        Raises:
            LessenError: sides that are not; `padded` makes them so.
        """
        if images.shape[-1] % COARSEST or images.shape[-2] % COARSEST:
            got = f"an image of {images.shape[-1]} x {images.shape[-2]}"
            raise LessenError("PersonSearchNet", got=got, wanted=f"sides that are multiples of {COARSEST}", remedy="see `padded`")
        x = self.stem((images - 0.45) * 4)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top = interpolate(self.top(levels[2]), scale_factor=2.0, mode="nearest")
        x = self.neck(relu(self.lateral(levels[1]) + top))
        found = self.detect(x)
        return Maps(self.heat(found), self.shape(found), normalize(self.identity(self.identify(x)), dim=1))


def person_search_net(seed: int = 0, **sizes: Sequence[int] | int) -> PersonSearchNet:
    """A network with random weights that depend on the seed alone; `sizes` are those of `PersonSearchNet`.

    >>> net = person_search_net(0, widths=(4, 4, 8, 8), neck=8, heads=(8, 8), embedding=6)
    >>> [tuple(map_.shape) for map_ in net(torch.zeros(1, 3, 32, 48))]
    [(1, 1, 4, 6), (1, 4, 4, 6), (1, 6, 4, 6)]
    """
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator as they are made; every draw is replaced below
        net = PersonSearchNet(**sizes)  # pyright: ignore[reportArgumentType]
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=random)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for last in (net.heat, net.shape):
        nn.init.normal_(last.weight, std=0.01, generator=random)
    nn.init.constant_(net.heat.bias, -2.2)  # pyright: ignore[reportArgumentType]  # p = 0.1 everywhere: the focal loss starts flat
    return net


def padded(images: Tensor) -> Tensor:
    """Images with black rows below and columns on the right, up to the next multiple of 16; boxes stay what they are."""
    return pad(images, (0, -images.shape[-1] % COARSEST, 0, -images.shape[-2] % COARSEST))


def detection_loss(maps: Maps, truths: Sequence[Truth]) -> Tensor:
    """The detection loss of a batch, a scalar; see the file's header. One Truth an image."""
    bumps, counted = zip(*(_targets(truth, maps.heat[0, 0]) for truth in truths), strict=True)
    y, counted = torch.stack(bumps)[:, None], torch.stack(counted)[:, None]
    p = maps.heat.sigmoid()
    hit = (1 - p).square() * logsigmoid(maps.heat) * (y == 1)
    miss = (1 - y).pow(4) * p.square() * logsigmoid(-maps.heat) * counted
    number = max(sum(len(truth.boxes) for truth in truths), 1)
    loss = -(hit + miss).sum() / number
    image, row, column, boxes = _centres(truths, maps.heat)
    if len(boxes) == 0:
        return loss
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / (2 * STRIDE), (boxes[:, 2:] - boxes[:, :2]) / STRIDE
    inside = centre - torch.stack([column, row], 1) - 0.5
    wanted = torch.cat([inside, size.clamp_min(0.1).log()], 1)
    return loss + 0.5 * l1_loss(maps.shape[image, :, row, column], wanted, reduction="sum") / number


def true_identities(maps: Maps, truths: Sequence[Truth]) -> tuple[Tensor, Tensor]:
    """The vectors at the true centres of a batch.

    Returns:
        unit vectors "person dim" and their identities, int64 "person" (-1: unknown), in the order of the images.
    """
    image, row, column, _ = _centres(truths, maps.heat)
    return maps.identity[image, :, row, column], torch.cat([truth.people for truth in truths]).to(image)


def _centres(truths: Sequence[Truth], like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, row and column of every true centre, all int64 "person", and the boxes "person 4"."""
    boxes = torch.cat([truth.boxes for truth in truths]).to(like)
    image = torch.cat([torch.full((len(truth.boxes),), i) for i, truth in enumerate(truths)]).to(like.device)
    column, row = ((boxes[:, axis] + boxes[:, axis + 2]) / (2 * STRIDE) for axis in (0, 1))
    return image, row.long().clamp(0, like.shape[-2] - 1), column.long().clamp(0, like.shape[-1] - 1), boxes


def _targets(truth: Truth, like: Tensor) -> tuple[Tensor, Tensor]:
    """The heat that is wanted, and which cells count when they are no centre; both "y x"."""
    rows, columns = (torch.arange(n, device=like.device)[:, None] for n in like.shape)
    y, counted = torch.zeros_like(like), torch.ones_like(like)
    image, row, column, boxes = _centres([truth], like[None, None])
    for i in range(len(image)):
        # A box shifted by a sixth of its shorter side is still a good box, and its centre still a good centre.
        width = ((boxes[i, 2:] - boxes[i, :2]).min() / (6 * STRIDE)).clamp_min(0.4)
        bump = torch.exp(-((rows - row[i]).square() + (columns.T - column[i]).square()) / (2 * width.square()))
        y = torch.maximum(y, bump)
    for x1, y1, x2, y2 in (truth.ignored if truth.ignored is not None else torch.zeros(0, 4)).div(STRIDE).tolist():
        counted[int(max(y1, 0)) : int(y2) + 1, int(max(x1, 0)) : int(x2) + 1] = 0
    return y, counted


@torch.no_grad()
def find(net: nn.Module, images: Tensor, *, threshold: float = 0.05, most: int = 64, overlap: float = 0.5) -> list[Found]:
    """The people in a batch of images, by a network in evaluation mode.

    Args:
        net: a `PersonSearchNet`, or one that was made of it.
        images: "batch 3 y x".
        threshold: lowest score that counts as a person.
        most: at most this many people an image.
        overlap: the largest IoU of two boxes of one image.
    """
    height, width = images.shape[-2:]
    maps = net(padded(images))
    peaks = maps.heat.sigmoid()
    peaks = torch.where(max_pool2d(peaks, 3, 1, 1) == peaks, peaks, torch.zeros_like(peaks))
    found = []
    for heat, shape, identity in zip(peaks[:, 0], maps.shape, maps.identity, strict=True):
        scores, cells = heat.flatten().topk(min(most, heat.numel()))
        cells, scores = cells[scores > threshold], scores[scores > threshold]
        row, column = cells // heat.shape[1], cells % heat.shape[1]
        dx, dy, log_width, log_height = shape[:, row, column]
        centre = torch.stack([column + 0.5 + dx, row + 0.5 + dy], 1) * STRIDE
        half = torch.stack([log_width, log_height], 1).clamp_max(6).exp() * STRIDE / 2
        boxes = torch.cat([centre - half, centre + half], 1).clamp_min(0)
        boxes = torch.minimum(boxes, boxes.new_tensor([width, height, width, height]))
        stay = nms(boxes, scores, overlap)
        found.append(Found(boxes[stay], scores[stay], identity[:, row, column].T[stay]))
    return found


@torch.no_grad()
def describe(net: nn.Module, image: Tensor, boxes: Tensor) -> Tensor:
    """Identity vectors of given boxes (queries), "box dim", read at their centres; image "3 y x"."""
    people = torch.zeros(len(boxes), dtype=torch.int64)
    return true_identities(net(padded(image[None])), [Truth(boxes, people)])[0]
