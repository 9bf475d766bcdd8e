"""Pairs of an image and its caption, read from a directory, and split so that nothing of the held-out part was trained on.

Two layouts are read: `X.png` (or .jpg, .jpeg, .webp) beside `X.txt` whose first line is the caption, in any depth of folders, and a
`.jsonl` file with `{"image": path, "caption": text}` a line, paths relative to the file.

A split by image alone leaks: collections hold the same drawing twice, mirrored, or under a second name. So pairs are first joined into
groups, by equal captions, by equal names up to trailing digits inside one folder, and by pictures that look alike (an 8x8 difference
hash within `_ALIKE` bits, mirrored or not), and a whole group goes to one side, by the hash of its first name. Adding pairs to a
collection therefore does not move the ones that were there, unless they join two groups.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen.errors import LessenError

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_ALIKE = 3  # of 64 bits; unlike drawings differ in about 32, and a recoloured copy in none or one


@dataclass(frozen=True)
class Pair:
    """An image file and the first line that was written about it; `name` is its path inside the collection, without the suffix."""

    name: str
    image: Path
    caption: str


def pairs(source: Path) -> list[Pair]:
    """All pairs of a directory or a .jsonl file, in order of their names; images without a caption are no pairs.

    Raises:
        LessenError: there are none, or a line of the file does not name an image and a caption.
    """
    found = _listed(source) if source.suffix == ".jsonl" else _beside(source)
    if not found:
        raise LessenError(str(source), got="no image with a caption", wanted="X.png beside X.txt, or a .jsonl file of pairs")
    return sorted(found, key=lambda pair: pair.name)


def _beside(folder: Path) -> list[Pair]:
    images = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.with_suffix(".txt").exists()]
    lines = {path: path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip() for path in images}
    return [Pair(path.relative_to(folder).with_suffix("").as_posix(), path, line) for path, line in lines.items() if line]


def _listed(file: Path) -> list[Pair]:
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, caption = row["image"], row["caption"].strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LessenError(f"{file}:{number}", got=line[:60], wanted='{"image": PATH, "caption": TEXT}') from error
        found.append(Pair(Path(image).with_suffix("").as_posix(), file.parent / image, caption))
    return found


def pixels(image: Path, size: int, mean: float = 0.0, std: float = 1.0, background: int = 255) -> Tensor:
    """An image as float32 "3 size size": made square on a plain background, resized, and (value / 255 - mean) / std.

    Args:
        image: a file that Pillow opens; what is transparent shows the background.
        size: pixels a side.
        mean: of the normalisation, one for all colours.
        std: of the normalisation.
        background: grey level 0..255 of the margins and of what is transparent.

    Raises:
        LessenError: the file is no image.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(image) as opened:
            picture = opened.convert("RGBA")
    except OSError as error:
        raise LessenError(str(image), got=str(error).splitlines()[0], wanted="an image file") from error
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (background, background, background, 255))
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    values = np.asarray(square.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return (torch.from_numpy(values.copy()).permute(2, 0, 1) / 255 - mean) / std


def groups(found: Sequence[Pair], images: Tensor) -> list[int]:
    """A number for every pair, equal for pairs that must not be separated.

    Args:
        found: the pairs.
        images: their pixels in any normalisation, "pair 3 h w".

    Returns:
        For each pair the index of the first pair of its group.
    """
    parent = list(range(len(found)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        parent[high] = low

    first: dict[Any, int] = {}
    for i, pair in enumerate(found):
        keys = (("caption", _plain(pair.caption)), ("name", re.sub(r"[-_ ]*\d+$", "", pair.name.lower())))
        for key in keys:
            join(i, first.setdefault(key, i))
    own, mirrored = _hashes(images), _hashes(images.flip(-1))
    for other in (own, mirrored):
        near = (own[:, None] != other[None]).sum(-1) <= _ALIKE
        for i, j in near.nonzero().tolist():
            join(i, j)
    return [root(i) for i in range(len(found))]


def split(found: Sequence[Pair], images: Tensor, shares: Sequence[float]) -> list[list[int]]:
    """Indices of the pairs of each part; near-duplicates (see `groups`) stay together.

    Args:
        found: the pairs.
        images: their pixels, "pair 3 h w".
        shares: of the parts, which sum to 1; shares are of groups, so the counts of pairs come out roughly so.
    """
    parts: list[list[int]] = [[] for _ in shares]
    for i, group in enumerate(groups(found, images)):
        place = int.from_bytes(sha256(found[group].name.encode()).digest()[:4], "big") / 2**32
        chosen = 0
        while chosen < len(shares) - 1 and place >= sum(shares[: chosen + 1]):
            chosen += 1
        parts[chosen].append(i)
    return parts


def _plain(caption: str) -> str:
    """A caption without case, articles and signs.

    >>> _plain("A red Apple.") == _plain("the red apple")
    True
    """
    return " ".join(word for word in re.findall(r"\w+", caption.lower()) if word not in ("a", "an", "the", "some"))


def _hashes(images: Tensor) -> Tensor:
    """Which of neighbouring cells of a 8x9 thumbnail is brighter: bool "image 64"."""
    small = torch.nn.functional.interpolate(images.float().mean(1, keepdim=True), size=(8, 9), mode="area")
    return (small[..., 1:] > small[..., :-1] + 1e-4).flatten(1)
