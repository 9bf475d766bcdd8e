"""Rendered street scenes in which every box and every identity is known exactly.

An identity is its clothes: colours of shirt, trousers, shoes, hair and skin, a pattern on the shirt, the length of the legs, a bag. Colours
come from a small palette with a little spread, so that people are alike enough to be mixed up. A scene is a background of random surfaces
and clutter (some of it as high and narrow as a person) with two to five people of random size, stride and light; nearer ones hide parts
of others. A box is that of the whole person, hidden parts included. Nothing here looks like a photograph, and figures say so.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lessen.stats.person_search import PersonSearch, Query, Scene

HEIGHT, WIDTH = 192, 256
PALETTE = np.array(
    [
        (0.12, 0.12, 0.14), (0.85, 0.85, 0.83), (0.55, 0.55, 0.57), (0.15, 0.2, 0.45), (0.3, 0.45, 0.7), (0.6, 0.12, 0.14),
        (0.2, 0.38, 0.22), (0.75, 0.65, 0.45), (0.38, 0.25, 0.16), (0.8, 0.45, 0.15), (0.5, 0.2, 0.45), (0.85, 0.75, 0.2),
    ]
)  # fmt: skip
SKIN = np.array([(0.93, 0.78, 0.67), (0.8, 0.6, 0.46), (0.55, 0.38, 0.27), (0.35, 0.23, 0.16)])


@dataclass(frozen=True)
class Looks:
    """What a person wears: colours "part 3" of shirt, stripes, trousers, shoes, hair, skin, bag, and shapes."""

    colours: np.ndarray
    pattern: int  # 0 plain, 1 horizontal stripes, 2 vertical stripes, 3 two halves
    legs: float  # share of the height
    skirt: bool
    bag: int  # -1 left, 0 none, 1 right


@dataclass(frozen=True)
class Sizes:
    """How much of everything: labelled people and scenes, to train on and to test on."""

    train_people: int = 80
    train_scenes: int = 320
    test_people: int = 60
    test_scenes: int = 120


def looks(random: np.random.Generator) -> Looks:
    """A random person."""
    colours = PALETTE[random.integers(len(PALETTE), size=7)] + random.normal(0, 0.03, (7, 3))
    colours[4] = PALETTE[[0, 8, 7, 2][random.integers(4)]]
    colours[5] = SKIN[random.integers(len(SKIN))]
    bag = int(random.choice([-1, 0, 0, 1]))
    return Looks(colours.clip(0.02, 0.98), int(random.integers(4)), float(random.uniform(0.42, 0.52)), bool(random.random() < 0.2), bag)


def dataset(seed: int, sizes: Sizes = Sizes()) -> PersonSearch:
    """A data set whose test people and backgrounds are none of those of its training part."""
    random = np.random.default_rng([seed, 20231])
    pixels: dict[str, Tensor] = {}
    train = _part("train", sizes.train_people, sizes.train_scenes, 0.25, random, pixels)
    test = _part("test", sizes.test_people, sizes.test_scenes, 0.1, random, pixels)
    queries = []
    gallery = tuple(scene.name for scene in test)
    for person in range(sizes.test_people):
        shown = [scene for scene in test if bool((scene.people == person).any())]
        if len(shown) > 1:
            boxes = {scene.name: scene.boxes[scene.people == person][0] for scene in shown}
            first = shown[0].name
            queries.append(Query(first, boxes.pop(first), person, gallery, boxes))
    return PersonSearch(tuple(train), tuple(test), tuple(queries), lambda name: pixels[name].float() / 255)


def _part(part: str, people: int, count: int, strangers: float, random: np.random.Generator, pixels: dict[str, Tensor]) -> list[Scene]:
    known = [looks(random) for _ in range(people)]
    turn = np.concatenate([random.permutation(people) for _ in range(5 * count // people + 2)]).tolist()  # all are seen equally often
    scenes = []
    for number in range(count):
        here: list[int] = []
        for _ in range(int(random.integers(2, 6))):
            here.append(-1 if random.random() < strangers else int(turn.pop()))
        here = [p for place, p in enumerate(here) if p < 0 or p not in here[:place]]
        image, boxes, who = render([(p, looks(random) if p < 0 else known[p]) for p in here], random)
        name = f"{part}{number:04d}"
        pixels[name] = torch.from_numpy(image)
        scenes.append(Scene(name, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(who, dtype=torch.int64)))
    return scenes


def render(people: list[tuple[int, Looks]], random: np.random.Generator) -> tuple[np.ndarray, list[list[float]], list[int]]:
    """One scene: uint8 "3 y x", boxes, and whose they are."""
    canvas = _background(random)
    heights = np.sort(random.uniform(36, 84, len(people)))  # far ones are drawn first
    boxes: list[list[float]] = []
    who: list[int] = []
    for (person, worn), height in zip(people, heights, strict=True):
        for _ in range(20):
            feet = max(min(HEIGHT - 2.0, 70 + 1.35 * height + random.normal(0, 10)), height + 2)
            middle = random.uniform(0.25 * height, WIDTH - 0.25 * height)
            top, left = max(int(feet - 1.05 * height), 0), max(int(middle - 0.4 * height), 0)
            window = (slice(top, int(feet) + 2), slice(left, int(middle + 0.4 * height) + 1))
            drawn, mask = _person(worn, height, middle - left, feet - top, canvas[window].shape[:2], random)
            rows, columns = np.nonzero(mask)
            box = [left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1]
            if all(_shared(box, other) < 0.3 for other in boxes):
                canvas[window] = np.where(mask[..., None], drawn, canvas[window])
                boxes.append([float(v) for v in box])
                who.append(person)
                break
    light = random.uniform(0.7, 1.2) * (1 + random.normal(0, 0.05, 3))
    canvas = canvas * light + random.normal(0, 0.02, canvas.shape)
    return (canvas.clip(0, 1) * 255).astype(np.uint8).transpose(2, 0, 1).copy(), boxes, who


def _shared(a: list[float], b: list[float]) -> float:
    """Area in common over that of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0) * max(height, 0) / smaller


def _background(random: np.random.Generator) -> np.ndarray:
    rows = np.arange(HEIGHT)[:, None]
    horizon = random.uniform(40, 90)
    wall, ground = (random.uniform(0.25, 0.75, 3) for _ in range(2))
    canvas = np.where((rows > horizon)[..., None], ground, wall) * (0.85 + 0.3 * rows / HEIGHT)[..., None] * np.ones((1, WIDTH, 1))
    for _ in range(int(random.integers(8, 20))):
        y, x = random.uniform(0, HEIGHT), random.uniform(0, WIDTH)
        tall = random.random() < 0.4  # poles, bins and doors: as high and narrow as people
        h, w = (random.uniform(30, 90), random.uniform(4, 24)) if tall else (random.uniform(4, 40), random.uniform(10, 80))
        inside = (slice(max(round(y - h / 2), 0), max(round(y + h / 2), 0)), slice(max(round(x - w / 2), 0), max(round(x + w / 2), 0)))
        colour = PALETTE[random.integers(len(PALETTE))] if random.random() < 0.5 else random.uniform(0.1, 0.9, 3)
        canvas[inside] = 0.3 * canvas[inside] + 0.7 * colour
    coarse = random.normal(0, 0.04, (HEIGHT // 4, WIDTH // 4, 3))
    return canvas + coarse.repeat(4, 0).repeat(4, 1)


def _person(
    worn: Looks, height: float, middle: float, feet: float, window: tuple[int, ...], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Colours and mask of one person in a window "y x" of the canvas."""
    rows, columns = np.mgrid[0 : window[0], 0 : window[1]]
    up = (feet - rows) / height  # 0 at the feet, 1 at the crown
    side = (columns - middle) / height * (1 if random.random() < 0.5 else -1)
    shirt, stripes, trousers, shoes, hair, skin, bag = worn.colours
    stride, swing, stout = random.uniform(0.0, 0.14), random.uniform(-0.1, 0.1), random.uniform(0.1, 0.125)
    legs = worn.legs
    colour = np.zeros((*window, 3))
    mask = np.zeros(window, dtype=bool)

    def paint(where: np.ndarray, what: np.ndarray) -> None:
        colour[where], mask[where] = what, True

    for sign in (-1, 1):  # legs open towards the ground
        centre = sign * (0.04 + stride * np.clip(legs - up, 0, legs) / legs)
        leg = (up > 0) & (up < legs) & (abs(side - centre) < 0.045)
        paint(leg, skin if worn.skirt else trousers)
        paint(leg & (up < 0.05), shoes)
    if worn.skirt:
        paint((up > legs * 0.55) & (up < legs) & (abs(side) < stout * (1.2 - 0.4 * (up - legs * 0.55) / legs)), trousers)
    torso = (up >= legs - 0.02) & (up < 0.84) & (abs(side) < stout)
    paint(torso, shirt)
    match worn.pattern:
        case 1:
            paint(torso & (np.floor(up * 22) % 2 == 0), stripes)
        case 2:
            paint(torso & (np.floor((side + 1) * 26) % 2 == 0), stripes)
        case 3:
            paint(torso & (up < (legs + 0.84) / 2), stripes)
    for sign in (-1, 1):
        arm = (up > legs - 0.02) & (up < 0.82) & (abs(side - sign * (stout + 0.02) - sign * abs(swing) * (0.82 - up)) < 0.032)
        paint(arm, shirt)
        paint(arm & (up < legs + 0.03), skin)
    if worn.bag:
        paint((up > legs - 0.1) & (up < legs + 0.1) & (abs(side - worn.bag * (stout + 0.06)) < 0.05), bag)
    head = ((up - 0.92) / 0.08) ** 2 + (side / 0.058) ** 2 < 1
    paint(head, skin)
    paint(head & (up > 0.94), hair)
    return colour * random.uniform(0.85, 1.1), mask
