"""The official figures of person search: how well people are found, and how well one of them is found again.

Detection, IoU >= 0.5: a detection is right if it is the best-overlapping one of the person that it overlaps best. With all detections of
all images ranked by their score, and P(r) the precision of the first r,

    recall = right detections / people         ap = recall * sum over right r of P(r) / right detections

Search: all detections in a query's gallery are ranked by their cosine with the query. In each gallery image that shows the person, the
first detection in the ranking that overlaps the true box enough is right, all others are wrong. Enough is less for small boxes, whose
few pixels are hard to meet:

    IoU >= min(0.5, w h / ((w + 10)(h + 10)))          w, h of the true box in pixels

    mAP    mean over queries of  AP * right / images that show the person       (a person who was not detected cannot be ranked)
    top-k  share of queries with a right detection among the first k

The protocol is that of CUHK-SYSU (https://arxiv.org/abs/1604.01850) as later work computes it for both data sets; PRW
(https://arxiv.org/abs/1604.02531) takes all test frames but the query's own as the gallery, or those of other cameras (`lessen.stats.
person_search.prw`). Detections of equal score share one place of the ranking, and the interpolation of older evaluations is not used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.errors import LessenError
from lessen.models.boxes import areas, iou
from lessen.models.person_search import Found
from lessen.stats.person_search import PersonSearch, Query, Scene


def average_precision(scores: Tensor, right: Tensor) -> float:
    """Area under precision over recall, as a sum of steps; entries of equal score come in together.

    Args:
        scores: "entry", higher comes first.
        right: bool "entry".

    >>> round(average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])), 4)  # (1/1 + 2/3) / 2
    0.8333
    """
    if not bool(right.any()):
        return 0.0
    order = scores.argsort(descending=True, stable=True)
    scores, hits = scores[order], right[order].double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])  # a step ends where the score changes
    hits, places = hits[last], (torch.arange(len(scores)) + 1)[last]
    gained = torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64))
    return float((gained * hits / places).sum() / hits[-1])


def detection(found: Mapping[str, Found], truth: Sequence[Scene], overlap: float = 0.5) -> dict[str, float]:
    """Detection figures over some images.

    Args:
        found: by name of the image.
        truth: the images.
        overlap: lowest IoU of a right detection.

    Returns:
        `ap` and `recall`, in [0, 1].
    """
    scores, right = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    people = hits = 0
    for scene in truth:
        ours = found[scene.name]
        people += len(scene.boxes)
        matched = _matched(ours.boxes, scene.boxes, overlap)
        hits += int(matched.sum())
        counted = matched | ~_inside(ours.boxes, scene.ignored)
        scores.append(ours.scores[counted])
        right.append(matched[counted])
    recall = hits / people if people else 0.0
    return {"ap": recall * average_precision(torch.cat(scores), torch.cat(right)), "recall": recall}


def _matched(ours: Tensor, truth: Tensor, overlap: float) -> Tensor:
    """Which detections are right, bool: best for a person, who in turn is best for them."""
    if not len(ours) or not len(truth):
        return torch.zeros(len(ours), dtype=torch.bool)
    shared = iou(ours, truth)
    best_person, best_detection = shared.argmax(1), shared.argmax(0)
    mutual = best_detection[best_person] == torch.arange(len(ours))
    return mutual & (shared.amax(1) >= overlap)


def _inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """Which boxes lie for the most part in one of the regions, bool."""
    if not len(boxes) or not len(regions):
        return torch.zeros(len(boxes), dtype=torch.bool)
    low, high = torch.maximum(boxes[:, None, :2], regions[None, :, :2]), torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    return (shared > 0.5 * areas(boxes)[:, None]).any(1)


@dataclass(frozen=True)
class _Answer:
    """One query's ranking: average precision scaled by recall, and whether the first k hold a right one."""

    ap: float
    first: dict[int, bool]


def search(
    queries: Sequence[Query], described: Sequence[Tensor], found: Mapping[str, Found], tops: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Search figures.

    Args:
        queries: who is looked for, and where.
        described: for each query its unit vector, "dim".
        found: what was detected in every gallery image, by name.
        tops: values of k.

    Returns:
        `map` and `top1`, `top5`, ... in [0, 1], means over the queries.

    Raises:
        LessenError: no queries, or a gallery image that was not looked at.
    """
    if not queries:
        raise LessenError("person search", got="no queries", wanted="one at least")
    answers = []
    gallery = _Gallery((), {})
    for query, vector in zip(queries, described, strict=True):
        if gallery.names is not query.gallery:
            gallery = _Gallery(query.gallery, found)
        answers.append(_answer(query, vector, gallery, tops))
    figures = {f"top{k}": sum(answer.first[k] for answer in answers) / len(answers) for k in tops}
    return {"map": sum(answer.ap for answer in answers) / len(answers)} | figures


class _Gallery:
    """All detections of some images in one matrix, and which rows are whose."""

    def __init__(self, names: tuple[str, ...], found: Mapping[str, Found]):
        for name in names:
            if name not in found:
                raise LessenError(f"gallery image {name}", got="no result", wanted="its detections, if only none")
        self.names = names
        parts = [found[name] for name in names]
        counts = [len(part.scores) for part in parts]
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        self.rows = {name: slice(starts[i], starts[i + 1]) for i, name in enumerate(names)}
        self.identities = torch.cat([part.identities.float() for part in parts]) if parts else torch.zeros(0, 1)
        self.boxes = torch.cat([part.boxes for part in parts]) if parts else torch.zeros(0, 4)


def _answer(query: Query, vector: Tensor, gallery: _Gallery, tops: Sequence[int]) -> _Answer:
    cosine = gallery.identities @ vector.float()
    right, counted = torch.zeros(len(cosine), dtype=torch.bool), torch.ones(len(cosine), dtype=torch.bool)
    if query.image in gallery.rows:
        counted[gallery.rows[query.image]] = False
    shown = {name: box for name, box in query.truth.items() if name != query.image}
    hits = 0
    for name, box in shown.items():
        rows = gallery.rows[name]
        order = cosine[rows].argsort(descending=True, stable=True)
        near = iou(gallery.boxes[rows][order], box[None])[:, 0] >= _enough(box)
        if bool(near.any()):
            right[rows.start + int(order[near.int().argmax()])] = True
            hits += 1
    cosine, right = cosine[counted], right[counted]
    ranked = right[cosine.argsort(descending=True, stable=True)]
    recall = hits / len(shown) if shown else 0.0
    return _Answer(recall * average_precision(cosine, right), {k: bool(ranked[:k].any()) for k in tops})


def _enough(box: Tensor) -> float:
    """The IoU that a detection of this person needs."""
    width, height = (box[2:] - box[:2]).tolist()
    return min(0.5, width * height / ((width + 10) * (height + 10)))


def evaluate_search(
    data: PersonSearch,
    find: Callable[[Tensor], Found],
    describe: Callable[[Tensor, Tensor], Tensor],
    threshold: float = 0.5,
) -> dict[str, Any]:
    """All figures of a network on the test part of a data set.

    Args:
        data: the data set.
        find: from an image "3 y x" to what was found in it, down to low scores.
        describe: from an image and boxes "box 4" to unit vectors "box dim".
        threshold: lowest score of a detection that is searched among.

    Returns:
        those of `detection` and `search`, with `images` and `queries` counted.
    """
    needed = {name for query in data.queries for name in query.gallery} | {scene.name for scene in data.test}
    found = {name: find(data.read(name)) for name in sorted(needed)}
    sure = {}
    for name, ours in found.items():
        kept = ours.scores >= threshold
        sure[name] = Found(ours.boxes[kept], ours.scores[kept], ours.identities[kept])
    vectors = [describe(data.read(query.image), query.box[None])[0] for query in data.queries]
    figures = detection(found, data.test) | search(data.queries, vectors, sure)
    return figures | {"images": len(data.test), "queries": len(data.queries)}
