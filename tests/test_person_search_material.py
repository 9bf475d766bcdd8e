"""The benchmark's material: rendered scenes whose truth is exact, tracklets, samples, and what the figures are held against."""

import json

import pytest
import torch
from torch import nn

from benchmarks.person_search import scenes, table, training, video
from benchmarks.prune_person_search import DEVELOPMENT, OTHERS, SAMP_STYLE, goals
from lessen.models.person_search import person_search_net
from lessen.stats.person_search import PersonSearch, Scene

SIZES = scenes.Sizes(train_people=4, train_scenes=6, test_people=3, test_scenes=6)


def test_scenes_follow_from_their_seed():
    a, b, other = (scenes.dataset(seed, SIZES) for seed in (0, 0, 1))
    for first, second in zip(a.train + a.test, b.train + b.test, strict=True):
        assert torch.equal(a.read(first.name), b.read(second.name)) and torch.equal(first.boxes, second.boxes)
    assert not torch.equal(a.read("train0000"), other.read("train0000"))


def test_boxes_lie_in_the_image_and_labels_in_the_table():
    data = scenes.dataset(0, SIZES)
    for scene in data.train + data.test:
        assert data.read(scene.name).shape == (3, scenes.HEIGHT, scenes.WIDTH)
        assert bool((scene.boxes >= 0).all()) and bool((scene.boxes[:, 2:] <= torch.tensor([scenes.WIDTH, scenes.HEIGHT])).all())
        sizes = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert bool((sizes[:, 1] > sizes[:, 0]).all())  # people stand
        assert len(scene.people[scene.people >= 0].unique()) == int((scene.people >= 0).sum())
    assert data.people <= SIZES.train_people


def test_queries_point_at_their_person_and_at_other_images():
    data = scenes.dataset(0, SIZES)
    by_name = {scene.name: scene for scene in data.test}
    assert data.queries
    for query in data.queries:
        assert query.image not in query.truth and query.truth
        for name, box in (*query.truth.items(), (query.image, query.box)):
            (place,) = (by_name[name].boxes == box).all(1).nonzero()[:, 0].tolist()
            assert int(by_name[name].people[place]) == query.person


def test_tracklets_follow_overlap_and_end_when_a_person_is_lost():
    def box(x: float) -> torch.Tensor:
        return torch.tensor([[x, 0.0, x + 10, 20.0]])

    nothing = torch.zeros(0, 4)
    walk = [box(0), torch.cat([box(40), box(2)]), nothing, box(4), *[nothing] * (video.LOST + 1), box(5)]
    assert [numbers.tolist() for numbers in video.tracklets(walk)] == [[0], [1, 0], [], [0], *[[]] * (video.LOST + 1), [2]]


def test_every_second_sample_is_the_mirrored_one_before_it():
    image = torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(0))
    scene = Scene("a", torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([3]))
    samples = training.Samples(PersonSearch((scene,), (), (), lambda _: image))
    plain, mirrored = samples[0], samples[1]
    assert torch.equal(mirrored["images"], image.flip(2)) and torch.equal(plain["images"], image)
    (truth,) = training.truths({key: value[None] for key, value in mirrored.items()})
    assert truth.boxes.tolist() == [[6, 2, 9, 8]] and truth.people.tolist() == [3]
    assert truth.ignored is not None and len(truth.ignored) == 0


def test_renewed_norms_are_the_means_over_the_batches_and_weights_stay():
    net = person_search_net(0, widths=(4, 4, 8, 8), depths=(1, 1, 1), neck=8, heads=(8, 8), embedding=4)
    before = [p.clone() for p in net.parameters()]
    random = torch.Generator().manual_seed(0)
    batches = [{"images": torch.rand(2, 3, 32, 32, generator=random)} for _ in range(3)]
    training.renew_norms(net, batches)
    first = net.stem[1]
    assert isinstance(first, nn.BatchNorm2d) and first.momentum == 0.1 and not net.training
    with torch.no_grad():
        means = torch.stack([net.stem[0]((batch["images"] - 0.45) * 4).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(first.running_mean, means, rtol=1e-4, atol=1e-5)  # a cumulative mean in float32
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_the_table_of_the_page_is_that_of_the_result():
    assert table.fresh(table.PAGE.read_text(), json.loads(table.RESULT.read_text())["rows"]) == table.PAGE.read_text()


def test_goals_compare_means_over_fresh_seeds_with_the_best_other_method():
    def row(method: str, seed: int, value: float, material: str = "scenes") -> dict[str, object]:
        return {"material": material, "seed": seed, "removed": 50, "method": method, "after": {"map": value, "ap": 0.5, "top1": 0.5}}

    rows = [row(method, seed, 0.2 + 0.1 * seed, material) for method in OTHERS for seed in (1, 2) for material in ("scenes", "video")]
    rows += [row(SAMP_STYLE, 1, 0.5), row(SAMP_STYLE, 2, 0.2), row(SAMP_STYLE, 2, 0.3, "video")]
    rows += [row(method, DEVELOPMENT, 0.0) for method in OTHERS] + [row(SAMP_STYLE, DEVELOPMENT, 1.0)]  # counts for nobody
    rows += [row(f"{SAMP_STYLE}, plain OIM", 1, 1.0)]
    found = {goal.name: goal for goal in goals(rows)}
    assert len(found) == 12
    assert found["scenes, 50 % of MACs, 2 fresh seeds: search mAP of SAMP-style minus the best other"].value == pytest.approx(0)
    # a seed under way counts for nobody either: the video's first one has no SAMP-style
    assert found["video, 50 % of MACs, 1 fresh seed: search mAP of SAMP-style minus the best other"].value == pytest.approx(-0.1)
    assert found["scenes, 30 % of MACs, 0 fresh seeds: search mAP of SAMP-style minus the best other"].met is None
