"""Person-search data: images with boxes and identities, and the queries of a test protocol, from the published layouts.

CUHK-SYSU (18,184 images; Xiao et al. 2017, https://arxiv.org/abs/1604.01850):

    Image/SSM/*.jpg                                   the images
    annotation/Images.mat      Img(imname, nAppear, box(idlocate, ishard))     every box, x y w h
    annotation/pool.mat        pool                    names of the test images; the others are for training
    annotation/test/train_test/Train.mat       Train{person}(idname, nAppear, scene(imname, idlocate, ishard))
    annotation/test/train_test/TestG100.mat    TestG100(Query(imname, idlocate, ishard, idname), Gallery(imname, idlocate, ishard))

A query has a gallery of its own (50 to 4000 images; 100 is what is usually reported), whose first images hold the same person.

PRW (11,816 frames of six cameras; Zheng et al. 2017, https://arxiv.org/abs/1604.02531):

    frames/c1s1_000151.jpg                           camera 1
    annotations/c1s1_000151.jpg.mat                  one array of rows: id x y w h; id -2 is a person without identity
    frame_train.mat, frame_test.mat                  img_index_train, img_index_test: names without ".jpg"
    query_info.txt                                   id x y w h name

Every test frame but the query's own is its gallery; `other_cameras=True` keeps only those of other cameras.

Boxes become x1 y1 x2 y2; identities of the training part become 0, 1, 2, ... as the losses want them, -1 for a person without one.
Reading needs the extra `lessen[vision]` (scipy for .mat files, pillow for images); the annotations themselves are not shipped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError


@dataclass(frozen=True)
class Scene:
    """One image and who is in it.

    Attributes:
        name: of the image, unique in its data set.
        boxes: float32 "person 4", x1 y1 x2 y2 in pixels.
        people: int64 "person", -1 for people without an identity.
        camera: where it was taken; None if that is not known.
        ignored: "region 4": places where a detection is neither right nor wrong.
    """

    name: str
    boxes: Tensor
    people: Tensor
    camera: int | None = None
    ignored: Tensor = field(default_factory=lambda: torch.zeros(0, 4))


@dataclass(frozen=True)
class Query:
    """Somebody to look for.

    Attributes:
        image: name of the image that shows the person.
        box: where, "4".
        person: who.
        gallery: names of the images to look in; `image` does not count if it is among them.
        truth: where the person is, "4", in those of the gallery that show them.
    """

    image: str
    box: Tensor
    person: int
    gallery: tuple[str, ...]
    truth: Mapping[str, Tensor]


@dataclass(frozen=True)
class PersonSearch:
    """A data set: scenes to train on, scenes to test on, queries, and `read`, from a name to RGB in [0, 1], "3 y x"."""

    train: tuple[Scene, ...]
    test: tuple[Scene, ...]
    queries: tuple[Query, ...]
    read: Callable[[str], Tensor]

    @property
    def people(self) -> int:
        """Number of identities in the training part."""
        return 1 + max((int(scene.people.max()) for scene in self.train if len(scene.people)), default=-1)


def cuhk_sysu(folder: str | Path, gallery: Literal[50, 100, 500, 1000, 2000, 4000] = 100) -> PersonSearch:
    """CUHK-SYSU from its published layout.

    Args:
        folder: holds `Image` and `annotation`.
        gallery: images in which every query is looked for.

    Raises:
        LessenError: a file is missing, is no .mat file or says something else than the layout.
    """
    folder = Path(folder)
    where = folder / "annotation"
    images = {str(item.imname): _boxes(item.box) for item in _array(_mat(where / "Images.mat", "Img"))}
    pool = [str(name) for name in _array(_mat(where / "pool.mat", "pool"))]
    _known(pool, images, where / "pool.mat")
    labels: dict[str, Tensor] = {name: torch.full((len(boxes),), -1) for name, boxes in images.items()}
    train = where / "test" / "train_test" / "Train.mat"
    for person, item in enumerate(_array(_mat(train, "Train"))):
        for scene in _array(item.scene):
            _label(images, labels, str(scene.imname), scene.idlocate, person, train)
    name = f"TestG{gallery}"
    protocol = where / "test" / "train_test" / f"{name}.mat"
    queries = []
    for person, item in enumerate(_array(_mat(protocol, name))):
        query = _array(item.Query)[0]
        shown = {str(g.imname): _corners(g.idlocate) for g in _array(item.Gallery) if _array(g.idlocate).size}
        names = tuple(str(g.imname) for g in _array(item.Gallery))
        _known([str(query.imname), *names], images, protocol)
        queries.append(Query(str(query.imname), _corners(query.idlocate), person, names, shown))
        for image, box in ((str(query.imname), query.idlocate), *((str(g.imname), g.idlocate) for g in _array(item.Gallery))):
            if _array(box).size:
                _label(images, labels, image, box, person, protocol)
    scenes = {image: Scene(image, boxes, labels[image]) for image, boxes in images.items()}
    tested = set(pool)
    return PersonSearch(
        tuple(scene for image, scene in sorted(scenes.items()) if image not in tested),
        tuple(scenes[image] for image in pool),
        tuple(queries),
        partial(_image, folder / "Image" / "SSM"),
    )


def prw(folder: str | Path, other_cameras: bool = False) -> PersonSearch:
    """PRW from its published layout.

    Args:
        folder: holds `frames` and `annotations`.
        other_cameras: look for a query only in frames of other cameras than its own.

    Raises:
        LessenError: a file is missing, is no .mat file or says something else than the layout.
    """
    folder = Path(folder)
    parts = []
    for part in ("train", "test"):
        names = [f"{name}.jpg" for name in _array(_mat(folder / f"frame_{part}.mat", f"img_index_{part}"))]
        parts.append([_frame(folder, name) for name in names])
    found = sorted({int(person) for scene in parts[0] for person in scene.people if person >= 0})
    numbers = {person: number for number, person in enumerate(found)} | {-1: -1}
    train = tuple(Scene(s.name, s.boxes, torch.tensor([numbers[int(p)] for p in s.people]).long(), s.camera) for s in parts[0])
    test = tuple(parts[1])
    everywhere = tuple(scene.name for scene in test)
    seen: dict[int, list[Scene]] = {}
    for scene in test:
        for person in set(scene.people.tolist()) - {-1}:
            seen.setdefault(person, []).append(scene)
    elsewhere = {c: tuple(s.name for s in test if s.camera != c) for c in {s.camera for s in test}} if other_cameras else {}
    queries = []
    for line in (folder / "query_info.txt").read_text().splitlines():
        if line.strip():
            person, image, box = _prw_query(line, folder)
            camera = int(image[1])
            shown = [s for s in seen.get(person, []) if s.name != image and not (other_cameras and s.camera == camera)]
            truth = {s.name: s.boxes[s.people == person][0] for s in shown}
            queries.append(Query(image, box, person, elsewhere.get(camera, everywhere) if other_cameras else everywhere, truth))
    return PersonSearch(train, test, tuple(queries), partial(_image, folder / "frames"))


def _frame(folder: Path, name: str) -> Scene:
    path = folder / "annotations" / f"{name}.mat"
    rows = _tensor(_mat(path, "box_new", "anno_file", "anno_previous")).reshape(-1, 5)
    corners = rows[:, 1:].clamp_min(0)
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    if not name.startswith("c") or not name[1:2].isdigit():
        raise LessenError(str(path), got=f"the name {name!r}", wanted="a name that starts with its camera, as c1s1_000151.jpg")
    return Scene(name, boxes, rows[:, 0].long().clamp_min(-1), int(name[1]))


def _prw_query(line: str, folder: Path) -> tuple[int, str, Tensor]:
    """Who, in which image, where."""
    parts = line.split()
    if len(parts) != 6:
        raise LessenError(str(folder / "query_info.txt"), got=repr(line), wanted="id x y w h name")
    x, y, w, h = (float(part) for part in parts[1:5])
    return int(parts[0]), f"{parts[5]}.jpg", torch.tensor([x, y, x + w, y + h]).clamp_min(0)


def _mat(path: Path, *names: str) -> Any:
    """The one of these variables that a .mat file holds; structs become objects with their fields as attributes."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise UsageError(str(path), got="no scipy", wanted="a reader of .mat files", remedy="pip install 'lessen[vision]'") from error
    if not path.exists():
        raise LessenError(str(path), got="no such file", wanted="the published layout", remedy="see lessen.stats.person_search")
    try:
        found = loadmat(path, squeeze_me=True, struct_as_record=False)
    except (MatReadError, ValueError, NotImplementedError) as error:
        raise LessenError(str(path), got="something that is no .mat file", wanted="one", remedy="unpack the archive again") from error
    for name in names:
        if name in found:
            return found[name]
    got = ", ".join(key for key in found if not key.startswith("__")) or "nothing"
    raise LessenError(str(path), got=f"variables {got}", wanted=" or ".join(names))


def _array(value: Any) -> Any:
    """A flat object array of what scipy has squeezed to a scalar, an array or nothing."""
    import numpy as np

    return np.atleast_1d(value).ravel()


def _tensor(value: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def _corners(box: Any) -> Tensor:
    """x y w h to x1 y1 x2 y2."""
    x, y, w, h = _tensor(box).reshape(-1)[:4].tolist()
    return torch.tensor([x, y, x + w, y + h])


def _boxes(boxes: Any) -> Tensor:
    found = [_corners(box.idlocate) for box in _array(boxes)]
    kept = [box for box in found if bool((box[2:] > box[:2]).all())]  # a few published boxes are empty
    return torch.stack(kept) if kept else torch.zeros(0, 4)


def _label(images: Mapping[str, Tensor], labels: Mapping[str, Tensor], name: str, box: Any, person: int, path: Path) -> None:
    _known([name], images, path)
    same = (images[name] == _corners(box)).all(1)
    labels[name][same] = person


def _known(names: list[str], images: Mapping[str, Tensor], path: Path) -> None:
    for name in names:
        if name not in images:
            raise LessenError(str(path), got=f"image {name!r}", wanted="images that Images.mat knows")


def _image(folder: Path, name: str) -> Tensor:
    import numpy as np

    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(name, got="no pillow", wanted="a reader of images", remedy="pip install 'lessen[vision]'") from error
    try:
        with Image.open(folder / name) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise LessenError(str(folder / name), got="no readable image", wanted="one", remedy="unpack the archive again") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
