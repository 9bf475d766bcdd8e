"""A real surveillance video as a person-search data set, with pseudo labels: nobody has marked the people in it.

The video is vtest.avi of Debian's opencv-doc: 795 frames of 768 x 576 at 10 per second, one fixed camera, a handful of people who walk
about and come back. Every second frame is used, at half its size.

    boxes         `label_video`: background subtraction and OpenCV's HOG detector agree
    identities    tracklets: boxes of following frames that overlap most. Somebody who is lost and found again is two identities.
    split         the first three fifths of the frames train, the last third tests; the actors are the same ones
    queries       boxes of test tracklets; their gallery is the rest of the tracklet's time, two seconds away at least

Within the time of a tracklet all other people in view are certainly others, so that false "others" do not enter the figures. What is
measured is agreement with these labels, not with the truth; the rendered scenes are there for that.
"""

import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import assets, peers
from lessen.models.boxes import iou
from lessen.stats.person_search import PersonSearch, Query, Scene

EVERY, SCALE = 2, 0.5
FPS = 10 / EVERY
APART = int(2 * FPS)  # frames between a query and its gallery
LOST = 3  # a tracklet ends after so many frames without its person
SHORT = int(1.5 * FPS)  # shorter tracklets have no identity


def labelled() -> Path:
    """Frames and pseudo boxes, made once."""
    path = assets.cache() / "opencv-doc" / f"vtest-{EVERY}-{SCALE}.npz"
    if not path.exists():
        video = assets.pedestrians()
        script = Path(__file__).with_name("label_video.py")
        command = [str(peers.python("opencv")), str(script), str(video), str(path), str(EVERY), str(SCALE)]
        subprocess.run(command, check=True)
    return path


def dataset() -> PersonSearch:
    """The data set; the same at every call."""
    found = np.load(labelled(), allow_pickle=False)
    frames = torch.from_numpy(found["frames"]).permute(0, 3, 1, 2)
    boxes, regions = (_by_frame(found[name], len(frames)) for name in ("boxes", "regions"))
    end, start = 3 * len(frames) // 5, 2 * len(frames) // 3
    train = _scenes(boxes, regions, range(end))
    test = _scenes(boxes, regions, range(start, len(frames)))
    return PersonSearch(train, test[::2], _queries(test), lambda name: frames[int(name)].float() / 255)


def _by_frame(rows: np.ndarray, count: int) -> list[Tensor]:
    rows_ = torch.from_numpy(rows)
    return [rows_[rows_[:, 0] == number, 1:] for number in range(count)]


def tracklets(boxes: list[Tensor]) -> list[Tensor]:
    """For every frame, int64 "box": the number of its tracklet.

    >>> here, moved, away = (torch.tensor([[x, 0.0, x + 9, 9.0]]) for x in (0.0, 1.0, 50.0))
    >>> [numbers.tolist() for numbers in tracklets([here, moved, torch.cat([away, moved])])]
    [[0], [0], [1, 0]]
    """
    last: dict[int, tuple[int, Tensor]] = {}
    numbers, fresh = [], 0
    for frame, here in enumerate(boxes):
        alive = {number: box for number, (seen, box) in last.items() if frame - seen <= LOST}
        labels = torch.full((len(here),), -1)
        if alive and len(here):
            shared = iou(torch.stack(list(alive.values())), here)
            for place in shared.flatten().argsort(descending=True, stable=True).tolist():
                track, box = list(alive)[place // len(here)], place % len(here)
                if float(shared.flatten()[place]) < 0.3:
                    break
                if labels[box] < 0 and track not in labels.tolist():
                    labels[box] = track
        for box in (labels < 0).nonzero()[:, 0].tolist():
            labels[box], fresh = fresh, fresh + 1
        last |= {int(number): (frame, box) for number, box in zip(labels, here, strict=True)}
        numbers.append(labels)
    return numbers


def _scenes(boxes: list[Tensor], regions: list[Tensor], part: range) -> tuple[Scene, ...]:
    numbers = tracklets([boxes[frame] for frame in part])
    tracks, lengths = torch.cat(numbers).unique(return_counts=True)
    known = {int(track): place for place, track in enumerate(tracks[lengths >= SHORT].tolist())}
    return tuple(
        Scene(str(frame), boxes[frame], torch.tensor([known.get(int(n), -1) for n in labels]).long(), 0, regions[frame])
        for frame, labels in zip(part, numbers, strict=True)
    )


def _queries(test: tuple[Scene, ...]) -> tuple[Query, ...]:
    looked_at = test[::2]
    queries = []
    for person in range(1 + max(int(scene.people.max()) for scene in test if len(scene.people))):
        shown = [scene for scene in looked_at if bool((scene.people == person).any())]
        for asked in shown[:: int(1.5 * FPS)]:
            far = [scene for scene in looked_at if abs(int(scene.name) - int(asked.name)) >= APART]
            far = [scene for scene in far if int(shown[0].name) <= int(scene.name) <= int(shown[-1].name)]
            truth = {scene.name: scene.boxes[scene.people == person][0] for scene in far if bool((scene.people == person).any())}
            if truth:
                box = asked.boxes[asked.people == person][0]
                queries.append(Query(asked.name, box, person, tuple(scene.name for scene in far), truth))
    return tuple(queries)
