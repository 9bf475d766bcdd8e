"""Laws of axes: whatever is unified stays the same index by index, through any later refinement."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.structure.axes import Axes, Axis, describe, factors, find, free, leaves, parts, pinned
from lessen.structure.trace import trace

Labels = list[frozenset[tuple[int, int]]]


def labels(axis: Axis) -> Labels:
    """For every index, the free (leaf, index) pairs with which it falls."""
    root = find(axis)
    if root.kind == "leaf":
        return [frozenset() if root.pin or root.size == 1 else frozenset([(id(root), i)]) for i in range(root.size)]
    below = [labels(part) for part in root.parts]
    if root.kind == "concat":
        return [label for part in below for label in part]
    return [frozenset().union(*choice) for choice in product(*below)]


def run(data: st.DataObject) -> list[tuple[str, Axis, list[Axis]]]:
    """Random refinements and unions; what each claims."""
    axes = Axes()
    pool = [axes.leaf(n) for n in (12, 12, 24, 24, 24, 6, 4)]
    claims: list[tuple[str, Axis, list[Axis]]] = []
    for _ in range(data.draw(st.integers(1, 14))):
        axis = data.draw(st.sampled_from(pool))
        made: list[Axis] = []
        match data.draw(st.sampled_from(["factor", "cut", "join", "concat", "unify", "unify", "unify", "pin"])):
            case "factor":
                outer = data.draw(st.sampled_from([n for n in range(1, axis.size + 1) if axis.size % n == 0]))
                made = list(axes.factor(axis, outer) or [])
                claims.append(("product", axis, made))
            case "cut":
                bound = data.draw(st.integers(1, axis.size))
                made = axes.cut(axis, sorted({bound, axis.size})) or []
                claims.append(("concat", axis, made))
            case "join":
                other = data.draw(st.sampled_from(pool))
                if axis.size * other.size <= 48:
                    made = [axes.join([axis, other])]
                    claims.append(("product", made[0], [axis, other]))
            case "concat":
                other = data.draw(st.sampled_from(pool))
                if axis.size + other.size <= 48:
                    made = [axes.concat([axis, other])]
                    claims.append(("concat", made[0], [axis, other]))
            case "unify":
                other = data.draw(st.sampled_from([a for a in pool if a.size == axis.size]))
                axes.unify(axis, other)
                claims.append(("concat", axis, [other]))
            case _:
                if data.draw(st.integers(0, 3)) == 0:
                    axes.pin(axis, "held for the test")
        pool += [a for a in made if a.size > 1]
    return claims


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_claims_hold_index_by_index(data: st.DataObject):
    for kind, axis, pieces in run(data):
        if not pieces:
            continue
        below = [labels(piece) for piece in pieces]
        together = [x for part in below for x in part] if kind == "concat" else [frozenset().union(*choice) for choice in product(*below)]
        assert labels(axis) == together


def test_nine_heads_meet_three_groups_of_three():
    axes = Axes()
    query = axes.leaf(72)
    heads = axes.factor(query, 9)
    assert heads
    groups, repeat, inner = axes.leaf(3), axes.leaf(3), axes.leaf(8)
    assert axes.unify(axes.join([heads[0], heads[1]]), axes.join([groups, repeat, inner]))
    assert [find(f) for f in factors(query)] == [find(groups), find(repeat), find(inner)]


def test_halves_of_a_rotation_become_one():
    axes = Axes()
    head = axes.leaf(8)
    halves = axes.cut(head, [4, 8])
    assert halves
    assert axes.unify(head, axes.concat(halves[::-1]))
    assert free(head) == [find(halves[0])] == [find(halves[1])]


def test_a_chunk_in_three_meets_a_view_as_three():
    axes = Axes()
    fused, viewed = axes.leaf(24), axes.leaf(24)
    thirds, pair = axes.cut(fused, [8, 16, 24]), axes.factor(viewed, 3)
    assert thirds
    assert pair
    assert axes.unify(fused, viewed)
    assert {find(t) for t in thirds} == {find(pair[1])}
    assert not free(pair[0])


def test_heads_of_queries_keys_and_values_in_one_tensor():
    axes = Axes()
    fused = axes.leaf(40)
    pair = axes.factor(fused, 10)
    assert pair
    pieces = axes.cut(fused, [24, 32, 40])
    assert pieces
    assert [p.size for p in parts(pair[0])] == [6, 2, 2]
    assert [describe(p) for p in pieces] == ["6x4", "2x4", "2x4"]


def test_what_does_not_nest_is_held_with_the_reason():
    axes = Axes()
    axes.cause = "add in block"
    a, b = axes.leaf(24), axes.leaf(24)
    assert axes.factor(a, 4)
    assert axes.factor(b, 6)
    assert not axes.unify(a, b)
    assert pinned(a)
    assert pinned(b)
    assert "add in block matches 4x6 with 6x4" in str(next(leaves(a)).pin)


@pytest.mark.parametrize("size", [0, 5])
def test_factors_that_do_not_divide_change_nothing(size: int):
    axes = Axes()
    axis = axes.leaf(12)
    assert axes.factor(axis, size) is None
    assert find(axis).kind == "leaf"


def test_windows_that_overlap_keep_the_dimensions_beside_them():
    class Windows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.up(x).view(2, 4, 2, 5)
            return self.down(y.as_strided((2, 7, 2, 5), (40, 5, 5, 1)))

    structure = trace(Windows(), torch.randn(2, 8, 3))
    assert [unit.size for unit in structure.stuck] == [5], structure  # its width is a number in the code
    assert {part.name for part in structure.stuck[0].slices} == {"up.weight", "up.bias", "down.weight"}
