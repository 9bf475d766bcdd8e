"""Axis-aligned boxes in plain torch: overlap and greedy suppression.

A box is x1, y1, x2, y2 in pixels with x2 and y2 outside it, so width is x2 - x1 and no pixel is added anywhere. Everything runs on tensors
of any device; a detector's few hundred candidates an image need no compiled kernel.
"""

import torch
from torch import Tensor


def areas(boxes: Tensor) -> Tensor:
    """Area of each box, "box"; boxes turned inside out have none.

    >>> areas(torch.tensor([[0.0, 0.0, 2.0, 3.0], [5.0, 5.0, 4.0, 9.0]]))
    tensor([6., 0.])
    """
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a: "n 4".
        b: "m 4".

    Returns:
        "n m", in [0, 1]; 0 where both boxes are empty.

    >>> iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 3.0, 1.0]]))
    tensor([[0.3333, 0.0000]])
    """
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = areas(a)[:, None] + areas(b)[None] - shared
    return torch.where(union > 0, shared / union.clamp_min(torch.finfo(union.dtype).tiny), torch.zeros_like(shared))


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression: a box stays if no better box that stays overlaps it by more than `threshold`.

    Args:
        boxes: "n 4".
        scores: "n", higher is better; among equals the earlier box is the better one.
        threshold: the largest IoU that two boxes which stay may have.

    Returns:
        int64 indices of the boxes that stay, best first.

    >>> nms(torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]]), torch.tensor([0.5, 0.9, 0.1]), 0.5)
    tensor([1, 2])
    """
    order = scores.argsort(descending=True, stable=True)
    overlap = iou(boxes[order], boxes[order]) > threshold
    alive = [True] * len(order)
    for i, row in enumerate(overlap.tolist()):
        if alive[i]:
            for j in range(i + 1, len(row)):
                alive[j] = alive[j] and not row[j]
    return order[torch.tensor(alive, dtype=torch.bool, device=order.device)]
