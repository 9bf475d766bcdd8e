"""Image-caption pairs: what is read, and that near-duplicates are never on both sides of a split."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lessen.errors import LessenError
from lessen.stats.image_text import Pair, groups, pairs, pixels, split


def noise(seed: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 36, 36, generator=torch.Generator().manual_seed(seed))


def named(*names: str) -> list[Pair]:
    return [Pair(name, Path(f"{name}.png"), f"a picture called {name}") for name in names]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    for name, caption in {"b/cat": "A cat.\nfr=Un chat.\n", "a/dog": "A dog.", "a/empty": "\nfr=Rien.", "lonely": None}.items():
        image = tmp_path / f"{name}.png"
        image.parent.mkdir(exist_ok=True)
        Image.new("RGBA", (4, 8), (255, 0, 0, 255)).save(image)
        if caption is not None:
            image.with_suffix(".txt").write_text(caption)
    return tmp_path


def test_an_image_and_the_first_line_beside_it_are_a_pair(collection: Path):
    assert [(pair.name, pair.caption) for pair in pairs(collection)] == [("a/dog", "A dog."), ("b/cat", "A cat.")]


def test_a_jsonl_file_names_pairs_relative_to_itself(collection: Path):
    file = collection / "pairs.jsonl"
    file.write_text(json.dumps({"image": "b/cat.png", "caption": " A cat "}) + "\n\n")
    (found,) = pairs(file)
    assert (found.name, found.image, found.caption) == ("b/cat", collection / "b/cat.png", "A cat")


@pytest.mark.parametrize("line", ["{", '{"image": "x.png"}', '{"image": "x.png", "caption": 3}', "[]"])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str):
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(LessenError, match=r"pairs\.jsonl:1: got .*, wanted"):
        pairs(tmp_path / "pairs.jsonl")


def test_a_folder_without_pairs_is_an_error(tmp_path: Path):
    with pytest.raises(LessenError, match="no image with a caption"):
        pairs(tmp_path)


def test_pixels_are_squared_on_a_background_and_normalised(collection: Path):
    found = pixels(collection / "a/dog.png", 8, mean=0.5, std=0.5)
    assert found.shape == (3, 8, 8)
    torch.testing.assert_close(found[:, :, 4], torch.tensor([1.0, -1.0, -1.0])[:, None].expand(3, 8))  # the red picture, 4 of 8 wide
    assert bool((found[:, :, 0] == 1).all())  # the white margin


def test_what_is_transparent_shows_the_background(tmp_path: Path):
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(tmp_path / "clear.png")
    assert bool((pixels(tmp_path / "clear.png", 4, background=0) == 0).all())


def test_a_file_that_is_no_image_is_an_error(tmp_path: Path):
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(LessenError, match=r"x\.png"):
        pixels(tmp_path / "x.png", 4)


def test_equal_captions_and_numbered_names_are_joined():
    found = [*named("frog", "frog-1", "toad"), Pair("other", Path("o.png"), "The picture called TOAD!")]
    assert groups(found, noise(0, 4)) == [0, 0, 2, 2]


def test_equal_and_mirrored_pictures_are_joined_and_others_are_not():
    images = torch.cat([noise(0, 3), noise(0, 3)[1:2].flip(-1), noise(0, 3)[2:] * 0.9])
    assert groups(named("a", "b", "c", "d", "e"), images) == [0, 1, 2, 1, 2]


def test_no_group_is_on_two_sides_and_nothing_is_lost():
    images = noise(0, 60)
    images[30:] = images[:30].flip(-1)
    found = named(*(f"picture {'abcdefghij'[i // 10]}{'klmnopqrst'[i % 10]}" for i in range(60)))
    parts = split(found, images, (0.6, 0.2, 0.2))
    assert sorted(i for part in parts for i in part) == list(range(60))
    for part in parts:
        assert {i % 30 for i in part} == {i % 30 for i in part if i < 30}
    assert all(parts)


def test_pairs_that_are_added_do_not_move_others():
    found, images = named(*(f"{letter} thing" for letter in "abcdefghijklmnop")), noise(0, 16)
    before = split(found[:8], images[:8], (0.5, 0.5))
    after = split(found, images, (0.5, 0.5))
    assert [[i for i in part if i < 8] for part in after] == before
