"""The person-search network, its losses, its data and its figures, held against cases worked out by hand."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lessen
from lessen.errors import LessenError, UsageError
from lessen.evaluate.person_search import average_precision, detection, evaluate_search, search
from lessen.methods import SAMP
from lessen.models.boxes import iou, nms
from lessen.models.person_search import (
    Found,
    Maps,
    Truth,
    describe,
    detection_loss,
    find,
    padded,
    person_search_net,
    true_identities,
)
from lessen.recover.oim import OIM, AdaptiveOIM
from lessen.stats.person_search import PersonSearch, Query, Scene, cuhk_sysu, prw

TINY = {"widths": (4, 6, 8, 10), "depths": (1, 1, 1), "neck": 8, "heads": (6, 8), "embedding": 5}


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def found(rows: torch.Tensor, scores: list[float], identities: list[list[float]] | None = None) -> Found:
    vectors = torch.tensor(identities) if identities is not None else torch.zeros(len(rows), 2)
    return Found(rows, torch.tensor(scores), vectors)


def test_overlap_of_boxes_that_touch_contain_each_other_and_are_empty():
    outer, inner, beside, empty = (0, 0, 10, 10), (2, 2, 7, 6), (10, 0, 20, 10), (3, 3, 3, 9)
    shared = iou(boxes(outer), boxes(inner, beside, empty, outer))
    torch.testing.assert_close(shared, torch.tensor([[0.2, 0.0, 0.0, 1.0]]))


def test_suppression_is_greedy_and_a_suppressed_box_suppresses_nothing():
    row = boxes((0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10))  # neighbours share 6/14, the outer two 2/18
    assert nms(row, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]
    assert nms(row, torch.tensor([0.7, 0.9, 0.8]), 0.4).tolist() == [1]
    assert nms(row[:0], torch.zeros(0), 0.5).tolist() == []


def test_a_seed_decides_all_weights_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    a, b, other = (person_search_net(seed, **TINY).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["stem.0.weight"], other["stem.0.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_sides_that_do_not_fit_are_refused_with_the_remedy():
    with pytest.raises(LessenError, match="padded"):
        person_search_net(0, **TINY)(torch.zeros(1, 3, 30, 32))
    assert padded(torch.zeros(1, 3, 30, 33)).shape == (1, 3, 32, 48)


def maps_of(truth: Truth, height: int = 64, width: int = 96, sharp: float = 12.0) -> Maps:
    """What a perfect network would say."""
    heat = torch.full((1, 1, height // 8, width // 8), -sharp)
    shape, identity = torch.zeros(1, 4, height // 8, width // 8), torch.zeros(1, 2, height // 8, width // 8)
    for number, (x1, y1, x2, y2) in enumerate(truth.boxes.tolist()):
        x, y = (x1 + x2) / 16, (y1 + y2) / 16
        heat[0, 0, int(y), int(x)] = sharp - number
        shape[0, :, int(y), int(x)] = torch.tensor([x % 1 - 0.5, y % 1 - 0.5, math.log((x2 - x1) / 8), math.log((y2 - y1) / 8)])
        identity[0, :, int(y), int(x)] = torch.tensor([math.cos(number), math.sin(number)])
    return Maps(heat, shape, identity)


class Fixed(nn.Module):
    """A network that says always the same."""

    def __init__(self, maps: Maps):
        super().__init__()
        self.maps = maps

    def forward(self, images: torch.Tensor) -> Maps:
        return self.maps


PEOPLE = Truth(boxes((10, 5, 26, 45), (50, 20, 70, 61)), torch.tensor([0, 1]))


def test_what_the_losses_ask_for_is_what_is_read_out():
    maps = maps_of(PEOPLE)
    # Each centre has a shoulder of the bump around it, on which a perfect answer says no; (1 - y)^4 leaves only rounding of sigmoid.
    assert float(detection_loss(maps, [PEOPLE])) < 1e-3
    (ours,) = find(Fixed(maps), torch.zeros(1, 3, 64, 96))
    torch.testing.assert_close(ours.boxes, PEOPLE.boxes)  # float32 of log and exp
    torch.testing.assert_close(ours.identities, torch.tensor([[1.0, 0.0], [math.cos(1), math.sin(1)]]))
    torch.testing.assert_close(describe(Fixed(maps), torch.zeros(3, 64, 96), PEOPLE.boxes), ours.identities)


def test_a_missed_person_a_false_one_and_a_wrong_size_each_cost():
    good = float(detection_loss(maps_of(PEOPLE), [PEOPLE]))
    missed = maps_of(Truth(PEOPLE.boxes[:1], PEOPLE.people[:1]))
    assert float(detection_loss(missed, [PEOPLE])) > good + 1
    assert float(detection_loss(maps_of(PEOPLE), [Truth(PEOPLE.boxes[:1], PEOPLE.people[:1])])) > good + 1
    wide = maps_of(PEOPLE)
    wide.shape[:, 2] += math.log(2)
    # half of |log 2| for each of two people, over two people
    assert float(detection_loss(wide, [PEOPLE])) == pytest.approx(good + 0.5 * math.log(2), abs=1e-4)


def test_an_ignored_region_makes_a_false_person_free():
    one = Truth(PEOPLE.boxes[:1], PEOPLE.people[:1], ignored=boxes((44, 10, 80, 63)))
    assert float(detection_loss(maps_of(PEOPLE), [one])) < 1e-3


def test_an_image_without_people_trains_the_heat_alone():
    nobody = Truth(boxes(), torch.zeros(0, dtype=torch.int64))
    maps = person_search_net(0, **TINY)(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    loss = detection_loss(maps, [nobody, nobody])
    assert loss.isfinite() and loss > 0
    identities, people = true_identities(maps, [nobody, nobody])
    assert identities.shape == (0, 5) and people.shape == (0,)


def test_training_on_one_image_finds_its_people():
    random = torch.Generator().manual_seed(0)
    net, image = person_search_net(0, **TINY), torch.rand(1, 3, 64, 96, generator=random) * 0.2
    for x1, y1, x2, y2 in PEOPLE.boxes.int().tolist():
        image[:, :, y1:y2, x1:x2] += 0.7
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(120):
        optimizer.zero_grad()
        detection_loss(net(image), [PEOPLE]).backward()
        optimizer.step()
    (ours,) = find(net, image, threshold=0.3)  # in training mode: batch norm of the one image it was trained on
    assert len(ours.boxes) == 2
    assert float(iou(ours.boxes, PEOPLE.boxes).amax(0).min()) > 0.6  # a network of a few hundred weights, two boxes


def test_oim_compares_with_prototypes_and_queue():
    oim = OIM(people=2, dim=2, queue=2, scale=2.0, momentum=0.5)
    a, b, stranger = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])
    oim.update(torch.stack([a, b, stranger]), torch.tensor([0, 1, -1]))
    loss = oim(torch.stack([a, b]), torch.tensor([0, -1]))  # the second has no label: it does not count
    assert float(loss) == pytest.approx(-math.log(math.e**2 / (math.e**2 + 1 + math.e**-2)), abs=1e-6)


def test_oim_moves_prototypes_by_its_momentum_and_turns_its_queue_over():
    oim = OIM(people=1, dim=2, queue=2, momentum=0.5)
    up, right = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    oim.update(up, torch.tensor([0]))
    oim.update(right, torch.tensor([0]))
    torch.testing.assert_close(oim.prototypes, torch.full((1, 2), 0.5**0.5))
    for k in range(3):
        oim.update(torch.tensor([[float(k), 0.0]]), torch.tensor([-1]))
    assert oim.queue[:, 0].tolist() == [2.0, 1.0]


def test_asking_oim_for_its_loss_changes_nothing():
    oim = OIM(people=2, dim=3)
    x = torch.eye(3)[:2].requires_grad_()
    before = {name: value.clone() for name, value in oim.state_dict().items()}
    oim(x, torch.tensor([0, 1])).backward()
    assert all(torch.equal(value, before[name]) for name, value in oim.state_dict().items())
    assert x.grad is not None


def test_oim_without_labelled_people_is_zero_and_still_a_loss():
    x = torch.ones(1, 2, requires_grad=True)
    OIM(people=1, dim=2)(x, torch.tensor([-1])).backward()
    assert x.grad is not None and not x.grad.any()


def test_oim_refuses_labels_that_it_has_no_prototype_for():
    with pytest.raises(UsageError, match="label 3"):
        OIM(people=3, dim=2)(torch.ones(1, 2), torch.tensor([3]))
    with pytest.raises(UsageError, match="momentum=1"):
        OIM(people=1, dim=1, momentum=1)


def test_adaptive_oim_trusts_a_prototype_by_its_cosine_with_the_full_models():
    full = OIM(people=3, dim=2, momentum=0.0)
    full.update(torch.tensor([[1.0, 0.0]] * 3), torch.tensor([0, 1, 2]))
    adaptive = AdaptiveOIM(full)
    torch.testing.assert_close(adaptive.refined(), full.prototypes)  # nothing has drifted yet
    adaptive.update(torch.tensor([[0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]]), torch.tensor([0, 1, 2]))
    refined = adaptive.refined()
    torch.testing.assert_close(refined[:2], full.prototypes[:2])  # cosines 0 and -1: not trusted at all
    mixed = torch.tensor([0.8 * 0.8 + 0.2, 0.8 * 0.6])
    torch.testing.assert_close(refined[2], mixed / mixed.norm())
    assert torch.equal(full.prototypes[0], torch.tensor([1.0, 0.0]))  # the full model's own are not touched


def test_average_precision_by_hand_with_a_tie():
    scores = torch.tensor([0.9, 0.8, 0.8, 0.1])
    right = torch.tensor([False, True, False, True])
    # places 2 and 3 come in together: precision 1/3 for the first right one, 2/4 for the second
    assert average_precision(scores, right) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert average_precision(scores, torch.zeros(4, dtype=torch.bool)) == 0


def test_detection_by_hand():
    here = boxes((0, 0, 10, 20), (30, 0, 40, 20), (60, 0, 70, 20), (90, 0, 100, 20))
    scene = Scene("a", here, torch.tensor([0, 1, 2, -1]), ignored=boxes((200, 0, 300, 300)))
    # right; a second box on the same person; IoU 0.4 only; a box on nothing; one in the region of which nothing is known
    ours = boxes((0, 0, 10, 20), (0, 0, 10, 18), (30, 0, 34, 20), (150, 0, 160, 20), (210, 0, 220, 20), (60, 1, 70, 20))
    figures = detection({"a": found(ours, [0.9, 0.8, 0.7, 0.6, 0.95, 0.5])}, [scene])
    # ranking without the ignored one: right, wrong, wrong, wrong, right; two of four people
    assert figures == pytest.approx({"recall": 0.5, "ap": 0.5 * (1 / 1 + 2 / 5) / 2})


def test_detection_with_nothing_found_or_nobody_there():
    nobody = Scene("b", boxes(), torch.zeros(0, dtype=torch.int64))
    somebody = Scene("a", boxes((0, 0, 9, 9)), torch.tensor([0]))
    assert detection({"a": found(boxes(), []), "b": found(boxes(), [])}, [somebody, nobody]) == {"recall": 0.0, "ap": 0.0}


def along(cosine: float) -> list[float]:
    return [cosine, math.sqrt(1 - cosine**2)]


def test_search_by_hand():
    truth = {"g1": boxes((0, 0, 40, 80))[0], "g2": boxes((10, 0, 50, 80))[0], "g3": boxes((0, 0, 40, 80))[0]}
    query = Query("q", boxes((0, 0, 40, 80))[0], 0, ("g1", "g2", "g3", "g4"), truth)
    results = {
        # the true person at 0.7, behind somebody else at 0.9; a second box of the true person at 0.6 is wrong
        "g1": found(boxes((100, 0, 140, 80), (0, 0, 40, 80), (0, 0, 40, 78)), [0.9, 0.8, 0.7], [along(0.9), along(0.7), along(0.6)]),
        "g2": found(boxes((10, 0, 50, 80)), [0.9], [along(0.8)]),
        "g3": found(boxes(), [], []),  # missed
        "g4": found(boxes((0, 0, 40, 80)), [0.9], [along(0.1)]),  # somebody else in the same place
    }
    results["g3"] = Found(boxes(), torch.zeros(0), torch.zeros(0, 2))
    figures = search([query], [torch.tensor([1.0, 0.0])], results, tops=(1, 2))
    # ranking: wrong .9, right .8, right .7, wrong, wrong; two of three images
    assert figures == pytest.approx({"map": (1 / 2 + 2 / 3) / 2 * 2 / 3, "top1": 0.0, "top2": 1.0})


def test_small_people_need_less_overlap():
    # 10 x 20 pixels: IoU >= 200 / (20 * 30) = 1/3; 40 x 80: 1/2
    for width, height, wanted in ((10.0, 20.0, True), (40.0, 80.0, False)):
        here = boxes((0, 0, width, height))
        query = Query("q", here[0], 0, ("g",), {"g": here[0]})
        shifted = boxes((0, 0.6 * height, width, 1.6 * height)) * torch.tensor([1, 1, 1, 1.0])
        part = boxes((0, 0, width, 0.4 * height))  # IoU 0.4
        assert float(iou(part, here)) == pytest.approx(0.4) and float(iou(shifted, here)) == pytest.approx(0.25)
        figures = search([query], [torch.tensor([1.0, 0.0])], {"g": found(part, [0.9], [along(0.5)])})
        assert figures["top1"] == float(wanted)
        assert search([query], [torch.tensor([1.0, 0.0])], {"g": found(shifted, [0.9], [along(0.5)])})["top1"] == 0


def test_the_querys_own_image_does_not_count():
    here = boxes((0, 0, 40, 80))
    query = Query("q", here[0], 0, ("q", "g"), {"q": here[0], "g": here[0]})
    results = {
        "q": found(here, [0.9], [along(1.0)]),
        "g": found(boxes((90, 0, 130, 80), (0, 0, 40, 80)), [0.9, 0.9], [along(0.9), along(0.8)]),
    }
    assert search([query], [torch.tensor([1.0, 0.0])], results)["map"] == pytest.approx(1 / 2)


def test_search_refuses_what_it_cannot_judge():
    query = Query("q", boxes((0, 0, 1, 1))[0], 0, ("g",), {})
    with pytest.raises(LessenError, match="gallery image g"):
        search([query], [torch.ones(2)], {})
    with pytest.raises(LessenError, match="no queries"):
        search([], [], {})


def test_a_whole_evaluation_of_a_perfect_network_is_perfect():
    net = Fixed(maps_of(PEOPLE))
    scenes = tuple(Scene(name, PEOPLE.boxes, PEOPLE.people) for name in "ab")
    queries = tuple(Query("a", PEOPLE.boxes[p], p, ("b",), {"b": PEOPLE.boxes[p]}) for p in (0, 1))
    data = PersonSearch((), scenes, queries, lambda _: torch.zeros(3, 64, 96))
    figures = evaluate_search(data, lambda image: find(net, image[None])[0], lambda image, box: describe(net, image, box))
    assert figures == pytest.approx({"ap": 1, "recall": 1, "map": 1, "top1": 1, "top5": 1, "top10": 1, "images": 2, "queries": 2})


def two_tasks() -> tuple[nn.Module, list[torch.Tensor], Callable[[nn.Module, torch.Tensor], dict[str, torch.Tensor]]]:
    """A network that was trained a little on both tasks, what it saw, and its losses."""
    random = torch.Generator().manual_seed(0)
    net = person_search_net(0, widths=(8, 12, 16, 24), depths=(1, 1, 1), neck=16, heads=(12, 12), embedding=8)
    images = [torch.rand(1, 3, 64, 96, generator=random) for _ in range(4)]
    oim = OIM(people=2, dim=8, queue=0)
    oim.update(torch.nn.functional.normalize(torch.randn(2, 8, generator=random), dim=1), torch.tensor([0, 1]))

    def losses(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        maps, truths = model(batch), [PEOPLE] * len(batch)
        return {"det": detection_loss(maps, truths), "reid": oim(*true_identities(maps, truths))}

    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(15):
        optimizer.zero_grad()
        torch.stack(list(losses(net, torch.cat(images)).values())).sum().backward()
        optimizer.step()
    return net.eval(), images, losses


def test_a_minimum_that_falls_from_round_to_round_balances_the_layers_and_is_not_one_floor_at_the_end():
    net, images, losses = two_tasks()
    structure = lessen.trace(net, images[0])

    def kept(slack: float | None, least: float, rounds: int = 4) -> torch.Tensor:
        """The share of its channels that every unit keeps, "unit"."""
        method = SAMP(per="cost", slack=slack, least=least)
        found = lessen.prune(
            net, images[0], images, method=method, to="50% macs", losses=losses, units=structure, prove=False, rounds=rounds
        )
        assert abs(found.after["macs"] / found.before["macs"] - 0.5) < 0.03  # a channel here is up to 3 % of all
        return torch.tensor([len(found.kept.get(unit.name, range(unit.size))) / unit.size for unit in found.structure])

    balanced, free = kept(1.5, 0.1), kept(None, 0.1)
    assert float(balanced.min()) > 1.5 * float(free.min()) and float(balanced.std()) < 0.75 * float(free.std())
    assert not torch.equal(balanced, kept(None, float(balanced.min()) - 1e-6))  # that share from the first round on
    assert not torch.equal(balanced, kept(1.5, 0.1, rounds=1))  # and that of one round, on the first scores


# The published layouts, three images and two people wide.


def mat(path: Path, **variables: object) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def cells(*items: object) -> np.ndarray:
    column = np.empty((len(items), 1), dtype=object)
    for place, item in enumerate(items):
        column[place, 0] = item
    return column


def records(*rows: Mapping[str, object]) -> np.ndarray:
    """A MATLAB struct array."""
    made = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        for name, value in row.items():
            made[name][0, place] = value
    return made


def place(x: int, y: int, w: int, h: int) -> np.ndarray:
    return np.array([[x, y, w, h]], dtype=np.int32)


def picture(path: Path, level: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(path)


@pytest.fixture
def sysu(tmp_path: Path) -> Path:
    box, hard = [place(1, 2, 10, 16), place(15, 2, 8, 16)], np.array([[0]])
    image = {"train.jpg": box, "query.jpg": box[:1], "hit.jpg": [place(4, 1, 9, 15), place(20, 1, 0, 15)], "miss.jpg": box[1:]}
    rows = [{"imname": n, "nAppear": len(b), "box": records(*({"idlocate": x, "ishard": hard} for x in b))} for n, b in image.items()]
    where = tmp_path / "annotation"
    mat(where / "Images.mat", Img=records(*rows))
    mat(where / "pool.mat", pool=cells("query.jpg", "hit.jpg", "miss.jpg"))
    scene = records(
        {"imname": "train.jpg", "idlocate": box[1], "ishard": hard}, {"imname": "train.jpg", "idlocate": box[1], "ishard": hard}
    )
    mat(where / "test/train_test/Train.mat", Train=cells(records({"idname": "p1", "nAppear": 2, "scene": scene})))
    empty = np.zeros((0, 0))
    gallery = records(
        {"imname": "hit.jpg", "idlocate": image["hit.jpg"][0], "ishard": hard}, {"imname": "miss.jpg", "idlocate": empty, "ishard": empty}
    )
    query = records({"imname": "query.jpg", "idlocate": box[0], "ishard": hard, "idname": "p2"})
    mat(where / "test/train_test/TestG100.mat", TestG100=records({"Query": query, "Gallery": gallery}))
    for name, level in zip(image, (0, 51, 102, 255), strict=True):
        picture(tmp_path / "Image/SSM" / name, level)
    return tmp_path


def test_cuhk_sysu_is_read_from_its_layout(sysu: Path):
    data = cuhk_sysu(sysu)
    assert [scene.name for scene in data.train] == ["train.jpg"] and data.people == 1
    assert data.train[0].boxes.tolist() == [[1, 2, 11, 18], [15, 2, 23, 18]] and data.train[0].people.tolist() == [-1, 0]
    assert [scene.name for scene in data.test] == ["query.jpg", "hit.jpg", "miss.jpg"]
    assert data.test[1].boxes.tolist() == [[4, 1, 13, 16]]  # the empty box is gone
    assert [scene.people.tolist() for scene in data.test] == [[0], [0], [-1]]
    (query,) = data.queries
    assert (query.image, query.gallery, query.box.tolist()) == ("query.jpg", ("hit.jpg", "miss.jpg"), [1, 2, 11, 18])
    assert {name: box.tolist() for name, box in query.truth.items()} == {"hit.jpg": [4, 1, 13, 16]}
    # a JPEG of one grey level keeps it to within its rounding
    torch.testing.assert_close(data.read("miss.jpg"), torch.ones(3, 20, 30), rtol=0, atol=2 / 255)


def test_cuhk_sysu_says_what_is_missing(sysu: Path):
    with pytest.raises(LessenError, match=r"TestG50\.mat: got no such file"):
        cuhk_sysu(sysu, gallery=50)
    mat(sysu / "annotation/pool.mat", pool=cells("query.jpg", "other.jpg"))
    with pytest.raises(LessenError, match=r"other\.jpg"):
        cuhk_sysu(sysu)
    mat(sysu / "annotation/pool.mat", something=1)
    with pytest.raises(LessenError, match="variables something, wanted pool"):
        cuhk_sysu(sysu)
    (sysu / "annotation/pool.mat").write_text("not a matrix at all, but long enough to have a header of some sort" * 4)
    with pytest.raises(LessenError, match=r"no \.mat file"):
        cuhk_sysu(sysu)


@pytest.fixture
def prw_folder(tmp_path: Path) -> Path:
    frames = {
        "c1s1_000001": [[7, 1, 2, 10, 16], [-2, 15, 2, 8, 16]],
        "c2s1_000002": [[9, 3, 2, 10, 16], [7, -4, 2, 10, 16]],
        "c1s1_000101": [[40, 1, 1, 8, 12]],
        "c1s1_000102": [[40, 2, 1, 8, 12], [-2, 14, 1, 8, 12]],
        "c3s1_000103": [[40, 5, 1, 8, 12]],
    }
    for number, (name, rows) in enumerate(frames.items()):
        key = ("box_new", "anno_file", "anno_previous")[number % 3]
        mat(tmp_path / "annotations" / f"{name}.jpg.mat", **{key: np.array(rows, dtype=np.float64)})
        picture(tmp_path / "frames" / f"{name}.jpg", 10 * number)
    names = list(frames)
    mat(tmp_path / "frame_train.mat", img_index_train=cells(*names[:2]))
    mat(tmp_path / "frame_test.mat", img_index_test=cells(*names[2:]))
    (tmp_path / "query_info.txt").write_text("40 1.0 1.0 8.0 12.0 c1s1_000101\r\n")
    return tmp_path


def test_prw_is_read_from_its_layout(prw_folder: Path):
    data = prw(prw_folder)
    assert [scene.people.tolist() for scene in data.train] == [[0, -1], [1, 0]]  # 7 and 9 are numbers 0 and 1
    assert data.train[1].boxes.tolist() == [[3, 2, 13, 18], [0, 2, 10, 18]] and data.train[1].camera == 2
    assert [scene.people.tolist() for scene in data.test] == [[40], [40, -1], [40]]
    (query,) = data.queries
    assert query.box.tolist() == [1, 1, 9, 13] and set(query.truth) == {"c1s1_000102.jpg", "c3s1_000103.jpg"}
    assert data.read(query.image).shape == (3, 20, 30)


def test_prw_can_be_asked_for_other_cameras_only(prw_folder: Path):
    (query,) = prw(prw_folder, other_cameras=True).queries
    assert query.gallery == ("c3s1_000103.jpg",) and set(query.truth) == {"c3s1_000103.jpg"}


def test_prw_refuses_a_query_line_of_another_form(prw_folder: Path):
    (prw_folder / "query_info.txt").write_text("40 1.0 1.0\n")
    with pytest.raises(LessenError, match="id x y w h name"):
        prw(prw_folder)


def test_the_network_is_pruned_by_its_two_tasks_and_masked_equals_sliced():
    net = person_search_net(0, **TINY).double().eval()
    random = torch.Generator().manual_seed(0)
    for module in net.modules():  # statistics of a trained network, so that nothing hides behind zeros and ones
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator=random)
    oim = AdaptiveOIM(OIM(people=2, dim=5)).double()
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64, generator=random)

    def losses(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = model(batch)
        return {"det": detection_loss(maps, [PEOPLE]), "reid": oim(*true_identities(maps, [PEOPLE]))}

    pruned = lessen.prune(net, image, [image], method=SAMP(merge="max"), to="50% macs", losses=losses)
    assert pruned.tasks == ("det", "reid")
    # a network of so few channels cannot be cut finer than a few per cent
    assert pruned.after["macs"] / pruned.before["macs"] == pytest.approx(0.5, abs=0.06)
    masked = person_search_net(0, **TINY).double().eval()
    masked.load_state_dict(net.state_dict())
    lessen.apply(masked, pruned.edits, mode="mask")
    for a, b in zip(masked(image), pruned.model(image), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)  # float64 sums in another order


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]):
    page = (Path(__file__).parents[1] / "docs" / "person-search.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code, "person-search.md", "exec"), {})
    assert capsys.readouterr().out.startswith("('det', 'reid') 0.")
