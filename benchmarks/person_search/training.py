"""How the person-search network is trained, asked for its losses, and scored: the same for every method that prunes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.evaluate.person_search import evaluate_search
from lessen.models.person_search import Maps, Truth, describe, detection_loss, find, true_identities
from lessen.recover.loop import recover
from lessen.recover.losses import Task
from lessen.recover.oim import OIM
from lessen.recover.options import Options
from lessen.stats.person_search import PersonSearch, Scene

PEOPLE = 16  # rows of a padded sample
NOBODY = -2
THRESHOLD = 0.3  # of scores, for detections that are searched among


class Samples(Sequence[Mapping[str, Tensor]]):
    """Scenes as samples of one shape; every scene is there twice, the second time mirrored."""

    def __init__(self, data: PersonSearch, scenes: Sequence[Scene] | None = None):
        self.scenes, self.read = data.train if scenes is None else scenes, data.read

    def __len__(self) -> int:
        return 2 * len(self.scenes)

    def __getitem__(self, place: int) -> Mapping[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scene = self.scenes[place // 2]
        image = self.read(scene.name)
        boxes, ignored = (_rows(rows[:PEOPLE], 0.0) for rows in (scene.boxes, scene.ignored))
        people = torch.full((PEOPLE,), NOBODY)
        people[: min(len(scene.people), PEOPLE)] = scene.people[:PEOPLE]
        if place % 2:
            image, boxes, ignored = image.flip(2), _mirrored(boxes, image.shape[2]), _mirrored(ignored, image.shape[2])
        return {"images": image, "boxes": boxes, "people": people, "ignored": ignored}


def _rows(rows: Tensor, value: float) -> Tensor:
    return torch.cat([rows, torch.full((PEOPLE - len(rows), 4), value)])


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1) * (boxes[:, 2:3] > boxes[:, :1])


def truths(batch: Mapping[str, Tensor]) -> list[Truth]:
    """What a batch says about its images, padding taken off."""
    rows = zip(batch["boxes"], batch["people"], batch["ignored"], strict=True)
    return [Truth(b[p != NOBODY], p[p != NOBODY], r[r[:, 2] > r[:, 0]]) for b, p, r in rows]


def run(model: nn.Module, batch: Mapping[str, Tensor]) -> Maps:
    """The model on a batch.

    In the plain memory format: torch 2.13's backward pass of convolutions in `channels_last` writes out of bounds on this network (CPU).
    """
    return model(batch["images"])


class Tasks:
    """The two named losses of a batch, with one table of prototypes.

    Args:
        oim: the identity loss.
        weight: of the identity loss in training.
        learn: whether the prototypes follow what they see.
    """

    def __init__(self, oim: OIM, weight: float = 0.5, learn: bool = True):
        self.oim, self.weight, self.learn = oim, weight, learn

    def named(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        known = truths(batch)
        identities, people = true_identities(maps, known)
        losses = {"det": detection_loss(maps, known), "reid": self.oim(identities, people)}
        if self.learn:
            self.oim.update(identities, people)
        return losses

    def objective(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For methods that ask every task by itself."""
        return self.named(run(model, batch), batch)

    def total(self, maps: Maps, batch: Mapping[str, Tensor]) -> Tensor:
        """For training."""
        losses = self.named(maps, batch)
        return losses["det"] + self.weight * losses["reid"]


def train(model: nn.Module, tasks: Tasks, data: PersonSearch, *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train in place for a number of steps."""
    options = Options(losses=(Task(tasks.total),), steps=steps, batch=batch, learning_rate=rate, final=0.02, weight_decay=1e-4, clip=5.0,
                      precision="float32", patience=None, seed=seed)  # fmt: skip
    recover(model, None, Samples(data), options=options, run=run)


@torch.no_grad()
def renew_norms(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Take the statistics of every batch norm again, as means over the batches; no weight changes."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None
        module.train()
    for batch in batches:
        run(model, batch)
    for module, momentum in zip(norms, before, strict=True):
        module.momentum = momentum
    model.eval()


def score(model: nn.Module, data: PersonSearch) -> dict[str, Any]:
    """All figures on the test part."""
    model.eval()
    figures = evaluate_search(
        data,
        lambda image: find(model, image[None], threshold=0.02)[0],
        lambda image, boxes: describe(model, image, boxes),
        THRESHOLD,
    )
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
