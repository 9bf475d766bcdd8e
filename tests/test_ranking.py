"""The deciding engine: every stage by itself, against loops and by its laws."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lessen.core.edit import Keep
from lessen.core.unit import Slice, Unit, View
from lessen.errors import UsageError
from lessen.methods.budget import Budget, alike_name, parameters_per_channel, tower
from lessen.methods.ranking import Rules, rank
from lessen.methods.ukmp import UKMP
from lessen.targets.cost import Channels, Elements, Goal, parameters


def units(*sizes: int) -> list[Unit]:
    return [Unit(f"u{i}", "ffn", n, (Slice(f"u{i}.up", 0), Slice(f"u{i}.down", 1))) for i, n in enumerate(sizes)]


def shapes(of: list[Unit], width: int = 3) -> dict[str, tuple[int, ...]]:
    return {name: shape for u in of for name, shape in ((f"{u.name}.up", (u.size, width)), (f"{u.name}.down", (width, u.size)))}


def chosen(
    scores: list[Tensor], left: float, rules: Rules, partitions: list[str] | None = None, together: list[int] | None = None
) -> list[list[int]]:
    of = units(*[s.shape[-1] for s in scores])
    goal = Goal(Channels(of), left)
    return [k.tolist() for k in rank(scores, partitions or [""] * len(of), together or list(range(len(of))), goal, rules)]


def test_elements_equal_a_count_of_what_is_cut():
    # A chain of convolutions: every tensor belongs to two units, so savings depend on each other.
    a = Unit("a", "channels", 6, (Slice("c1", 0), Slice("c2", 1)))
    b = Unit("b", "channels", 8, (Slice("c2", 0), Slice("c3", 1, span=4)))
    sizes = {"c1": (6, 3, 3, 3), "c2": (8, 6, 3, 3), "c3": (10, 32), "other": (7,)}
    cost = parameters(sizes, [a, b])
    tensors = {name: torch.zeros(shape) for name, shape in sizes.items()}
    assert cost.whole == sum(t.numel() for t in tensors.values())
    for wa, wb in ((6, 8), (2, 8), (6, 5), (1, 1)):
        cut = tensors["c1"][:wa].numel() + tensors["c2"][:wb, :wa].numel() + tensors["c3"][:, : 4 * wb].numel() + 7
        assert cost.at([wa, wb]) == cut
        assert cost.saving([6, 8], 0, wa) == cost.whole - cost.at([wa, 8])
    assert cost.per_channel(0) == 3 * 9 + 8 * 9


def test_units_that_overlap_are_refused():
    heads = Unit("heads", "heads", 2, (Slice("q", 0, span=4),))
    dims = Unit("dims", "head_dim", 4, (Slice("q", 0, repeat=2, stride=4),))
    with pytest.raises(Exception, match="claim more of axis 0"):
        parameters({"q": (8, 8)}, [heads, dims])


def test_a_parameter_budget_is_met_to_within_one_channel():
    of = units(40, 40, 20)
    cost = parameters(shapes(of), of)
    scores = [torch.rand(u.size, generator=torch.Generator().manual_seed(i)) for i, u in enumerate(of)]
    for share in (0.9, 0.5, 0.3):
        for strict in (True, False):
            goal = Goal(cost, share * cost.whole, strict)
            kept = rank(scores, [""] * 3, [0, 1, 2], goal, Rules(least=0.1))
            left = cost.at([len(k) for k in kept])
            assert abs(left - goal.value) <= 6 and (left <= goal.value or not strict)


def test_a_budget_that_would_empty_a_unit_is_refused_with_what_can_be_had():
    of = units(10, 10)
    cost = parameters(shapes(of), of)
    with pytest.raises(UsageError, match="got 12 of 120 after removing all that may go"):
        rank([torch.rand(10), torch.rand(10)], ["", ""], [0, 1], Goal(cost, 0.0), Rules())
    with pytest.raises(UsageError, match="lower `least`"):
        rank([torch.rand(10), torch.rand(10)], ["", ""], [0, 1], Goal(cost, 40.0), Rules(least=0.5))


def test_normalising_inside_partitions_makes_scale_irrelevant():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(30, generator=generator) for _ in range(4)]
    loud = [s * f for s, f in zip(scores, (1.0, 1.0, 1000.0, 1000.0), strict=True)]
    towers = ["a", "a", "b", "b"]
    for how in ("mean", "minmax", "zscore"):
        for step in (None, 7):
            rules = Rules(how, step=step)
            # Multiplying by 1000 changes the last bits of a mean; the scores are far enough apart for that.
            assert chosen(scores, 60, rules, towers) == chosen(loud, 60, rules, towers)
    quiet_first = chosen(loud, 62, Rules(), towers)
    assert [len(k) for k in quiet_first] == [1, 1, 30, 30]


def test_means_are_taken_again_over_the_survivors():
    # Tower a: many tiny scores and a few large ones. Once the tiny ones are gone its mean rises, and its middle becomes removable.
    a = torch.tensor([0.0] * 8 + [1.0, 2.0, 3.0, 4.0])
    b = torch.linspace(0.5, 1.5, 12)
    renewed = chosen([a, b], 6, Rules("mean", step=2), ["a", "b"])
    once = chosen([a, b], 6, Rules("mean", renew=False, step=2), ["a", "b"])
    assert [len(k) for k in once] == [3, 3] != [len(k) for k in renewed]
    alive_a, alive_b, removed = a.tolist(), b.tolist(), 0
    while removed < 18:
        mean_a, mean_b = sum(alive_a) / len(alive_a), sum(alive_b) / len(alive_b)
        ranked = sorted([(s / mean_a, 0, s) for s in alive_a] + [(s / mean_b, 1, s) for s in alive_b])
        for _, which, s in ranked[:2]:
            (alive_a, alive_b)[which].remove(s)
        removed += 2
    assert [len(k) for k in renewed] == [len(alive_a), len(alive_b)]


def test_merging_rules():
    # Channel 0 matters to the first task only, 1 to the second only, 2 a little to both, 3 to neither.
    scores = torch.tensor([[10.0, 0.1, 3.0, 0.0], [0.1, 9.0, 3.0, 0.0]])
    first = {merge: chosen([scores], 1, Rules(merge=merge))[0] for merge in ("sum", "max", "harmonic", "rank")}
    assert first == {"sum": [0], "max": [0], "harmonic": [2], "rank": [2]}
    assert chosen([scores], 1, Rules(weights=(0.1, 1.0)))[0] == [1]


def test_what_is_narrowed_together_keeps_equal_widths():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(24, generator=generator) * (i + 1) for i in range(4)]
    kept = chosen(scores, 56, Rules(multiple=4), together=[0, 1, 0, 1])
    widths = [len(k) for k in kept]
    assert widths[0] == widths[2] and widths[1] == widths[3] and all(w % 4 == 0 for w in widths) and sum(widths) == 56
    assert widths[0] < widths[1]


def test_a_layer_loses_no_more_than_its_slack_of_the_equal_share():
    generator = torch.Generator().manual_seed(0)
    weak, strong = torch.rand(50, generator=generator) * 0.01, 1 + torch.rand(50, generator=generator) * 0.2
    widths = {slack: [len(k) for k in chosen([weak, strong], 70, Rules(least=0.1, slack=slack))] for slack in (None, 1.0, 1.5, 4.0)}
    # 30 of 100 go; alike, both layers would lose three tenths of their 50.
    assert widths == {None: [20, 50], 1.0: [35, 35], 1.5: [28, 42], 4.0: [20, 50]}
    assert [len(k) for k in chosen([weak, strong], 20, Rules(least=0.1, slack=1.1))] == [6, 14]  # alike, each keeps 10: loses at most 44
    assert [len(k) for k in chosen([weak, strong], 20, Rules(least=0.1, slack=4.0))] == [5, 15]  # `least` holds whatever the slack


def test_the_equal_share_is_one_of_the_budget_not_of_channels():
    """In a chain of two layers that share a matrix, half the channels of both leave less than half the parameters."""
    a, b = Unit("a", "channels", 40, (Slice("w1", 0), Slice("w2", 1))), Unit("b", "channels", 40, (Slice("w2", 0), Slice("w3", 1)))
    cost = parameters({"w1": (40, 2), "w2": (40, 40), "w3": (2, 40)}, [a, b])
    scores = [torch.rand(40, generator=torch.Generator().manual_seed(0)), 9 + torch.rand(40, generator=torch.Generator().manual_seed(1))]
    goal = Goal(cost, 0.5 * cost.whole)
    alike = next(width for width in range(40, 0, -1) if cost.at([width, width]) <= goal.value)
    assert alike == 27  # not 20
    kept = rank(scores, ["", ""], [0, 1], goal, Rules(slack=1.5))
    assert len(kept[0]) == 40 - int(1.5 * (40 - alike)) < len(kept[1])


lists = st.lists(st.lists(st.floats(0, 10, width=16), min_size=2, max_size=16), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    lists,
    st.floats(0.2, 1),
    st.integers(1, 4),
    st.sampled_from([None, 1, 5]),
    st.sampled_from([None, 1.0, 1.7]),
    st.sampled_from(["none", "mean", "zscore"]),
)
def test_laws_of_every_ranking(
    given_scores: list[list[float]], share: float, multiple: int, step: int | None, slack: float | None, how: str
):
    scores = [torch.tensor(s, dtype=torch.float64) for s in given_scores]
    total = sum(map(len, given_scores))
    rules = Rules(how, multiple=multiple, step=step, slack=slack, least=0.2)  # pyright: ignore[reportArgumentType]
    kept = chosen(scores, share * total, rules)
    assert kept == chosen(scores, share * total, rules)
    for score, stay in zip(scores, kept, strict=True):
        assert all(a < b for a, b in pairwise(stay)) and len(stay) >= max(1, 0.2 * len(score))
        assert len(stay) == len(score) or len(stay) % multiple == 0
        gone = [float(v) for i, v in enumerate(score) if i not in stay]
        assert not gone or max(gone) <= float(score[stay].min())


def test_ties_leave_in_order():
    assert chosen([torch.ones(4), torch.ones(4)], 5, Rules("mean", step=1)) == [[3], [0, 1, 2, 3]]


def test_towers_and_places():
    def named(name: str) -> Unit:
        return Unit(name, "ffn", 2, (Slice(f"{name}.weight", 0),))

    assert tower(named("model.visual.blocks.0.mlp")) == "vision" and tower(named("audio_tower.0.fc")) == "audio"
    assert tower(named("backbone.0.fc"), ("backbone",)) == "backbone" and tower(named("backbones.0.fc"), ("backbone",)) == "language"
    assert tower(named("qformer.encoder.layer.0.output.dense")) == tower(named("model.connector.mlp")) == "bridge"
    assert tower(named("model.layers.0.self_attn.q_proj")) == tower(named("language_model.model.layers.0.mlp.up_proj")) == "language"
    assert alike_name("a.10.b2.0") == "a.*.b2.*"
    method = UKMP()
    assert method._partition(named("vision_model.layers.1.mlp")) != method._partition(named("model.layers.1.mlp"))


def test_scores_can_be_taken_for_each_parameter():
    unit = units(4)[0]
    view = View(unit, {"u0.up": torch.zeros(4, 3), "u0.down": torch.zeros(5, 4)})
    assert parameters_per_channel(view) == 8

    class Plain(Budget):
        def score(self, view: View, stats: object) -> Tensor:
            return torch.ones(view.unit.size)

    assert Plain(per="parameter").scores([view], [{}])[0].tolist() == [0.125] * 4


def test_scores_can_be_taken_for_each_unit_of_the_budget():
    """Two units of equal scores: those leave whose removal saves more of what is budgeted, not more parameters."""
    of = units(4, 4)
    views = [View(unit, {f"{unit.name}.up": torch.zeros(4, 3), f"{unit.name}.down": torch.zeros(3, 4)}) for unit in of]
    cost = Elements("macs", shapes(of), of, {"u1.up": 9.0})  # a channel of u1 saves 3 * 9 + 3 = 30, one of u0 saves 6

    class Plain(Budget):
        def score(self, view: View, stats: object) -> Tensor:
            return torch.ones(view.unit.size)

    (edit,) = Plain(per="cost", across="model", least=0.0).decide(views, [{}, {}], Goal(cost, cost.whole - 60.0))
    assert isinstance(edit, Keep) and edit.unit.name == "u1" and len(edit.indices) == 2


def test_macs_and_constant_parts_count():
    of = units(4)
    cost = Elements("macs", shapes(of), of, {"u0.up": 10.0}, default=0.0, constant=5.0)
    assert (cost.whole, cost.at([2])) == (125.0, 65.0)


def test_layers_that_do_not_compete_lose_the_same_share_whatever_their_scores():
    """Of a budget in parameters too: one unit's scores are a thousand times the other's, its channels ten times as dear."""
    units = [Unit("a", "channels", 20, (Slice("a", 0),)), Unit("b", "channels", 40, (Slice("b", 0),))]
    cost = parameters({"a": (20, 100), "b": (40, 10)}, units)
    scores = [1000 * torch.rand(20, generator=torch.Generator().manual_seed(0)), torch.rand(40, generator=torch.Generator().manual_seed(1))]
    for step in (None, 3):
        kept = rank(scores, ["", ""], [0, 1], Goal(cost, cost.whole / 2), Rules(alone=True, step=step))
        assert [len(each) for each in kept] == [10, 20]
        for score, each in zip(scores, kept, strict=True):
            assert set(each.tolist()) == set(score.argsort()[len(score) // 2 :].tolist())
