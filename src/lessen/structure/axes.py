"""Axes: what the dimensions of tensors are made of, and which of them are the same.

Every dimension of every tensor is an `Axis`. Two axes are *unified* when index i of one stands or falls with index i of the other: the
rows of `up_proj` and the columns of `down_proj`, the two sides of an addition. Unified axes form classes (a union-find forest, Tarjan
1975), and a class that nothing holds in place can lose indices.

A dimension is not always one axis. A view of 576 as 9 x 64 shows that it was a product all along, and a chunk of 1728 into three that
it was a concatenation. So an axis may be *refined*, at any time, and all that is unified with it is refined along:

    leaf        indices that nothing has told apart yet
    product     outer axis first, row-major: index = (outer * inner size) + inner
    concat      parts that lie one behind the other

Unifying two refined axes means finding a common refinement:

    product, product    factor by factor from the outside; 9 against 3 x 3 refines the 9
    concat, concat      at the boundaries of both
    product, concat     the outer factor is cut at the boundaries (heads of q, k, v in one tensor), or the concatenation is periodic and
                        every period is the inner factor (a chunk into three against a view as 3 x ...)

Where there is none (4 x 6 against 6 x 4), removing an index of one would remove a scattered set of the other, and both are *pinned*: no
index may go. Pinning is always safe; a wrong union never is.

Axes of size 1 stand for nothing (they broadcast), match everything and are left out of products.

Every union and refinement keeps its cause, so that `why` can tell through which operations two dimensions are coupled.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import prod


class Axis:
    """A dimension of a tensor, or a factor or part of one. Made by `Axes`.

    Attributes:
        size: number of indices.
        holds: why no index may be removed, by the first word of the reason (an operation, mostly); of a leaf.
        marks: properties of a leaf, each with the operation that showed it.
    """

    __slots__ = ("holds", "kind", "links", "marks", "parent", "parts", "size")

    def __init__(self, size: int, pin: str | None = None):
        self.size = size
        self.holds: dict[str, str] = {} if pin is None else {pin.split()[0]: pin}
        self.parent: Axis | None = None
        self.kind: str = "leaf"
        self.parts: tuple[Axis, ...] = ()
        self.marks: dict[str, str] = {}
        self.links: list[tuple[Axis, str]] = []

    @property
    def pin(self) -> str | None:
        """The first reason why no index may be removed; None if indices may."""
        return next(iter(self.holds.values()), None)

    def __repr__(self) -> str:
        return describe(self)


def find(axis: Axis) -> Axis:
    """The axis that stands for the class."""
    root = axis
    while root.parent is not None:
        root = root.parent
    while axis.parent is not None:
        axis.parent, axis = root, axis.parent
    return root


def factors(axis: Axis) -> list[Axis]:
    """Outer to inner, each a leaf or a concat; axes of size 1 have none."""
    root = find(axis)
    if root.size == 1:
        return []
    return [f for part in root.parts for f in factors(part)] if root.kind == "product" else [root]


def parts(axis: Axis) -> list[Axis]:
    """In order, each a leaf or a product; an axis that is no concat is its own only part."""
    root = find(axis)
    return [p for part in root.parts for p in parts(part)] if root.kind == "concat" else [root]


def leaves(axis: Axis) -> Iterator[Axis]:
    """Every leaf below an axis, in order, repeated ones repeatedly."""
    root = find(axis)
    if root.kind == "leaf":
        yield root
    for part in root.parts:
        yield from leaves(part)


def pinned(axis: Axis) -> bool:
    """Whether no index at all may be removed."""
    return all(leaf.pin is not None or leaf.size == 1 for leaf in leaves(axis))


def free(axis: Axis) -> list[Axis]:
    """Leaves below the axis of which indices may be removed, each once."""
    return list(dict.fromkeys(leaf for leaf in leaves(axis) if leaf.pin is None and leaf.size > 1))


def parted(axis: Axis, bounds: Sequence[int]) -> bool:
    """Whether the axis was already cut into parts that end at these bounds (the last is the size)."""
    root = find(axis)
    if root.kind == "concat":
        return {*bounds} <= {*_bounds(parts(root))}
    if root.kind == "product":
        first, *rest = factors(root)
        inner = prod(f.size for f in rest)
        return all(bound % inner == 0 for bound in bounds) and parted(first, [bound // inner for bound in bounds])
    return len(bounds) == 1


def describe(axis: Axis) -> str:
    """Sizes as a formula.

    >>> axes = Axes()
    >>> width = axes.leaf(12)
    >>> _ = axes.factor(width, 3)
    >>> describe(width)
    '3x4'
    """
    root = find(axis)
    if root.kind == "product":
        return "x".join(f"({describe(f)})" if find(f).kind == "concat" else describe(f) for f in root.parts)
    if root.kind == "concat":
        return "+".join(describe(p) for p in root.parts)
    return str(root.size)


class Axes:
    """Makes and unifies axes. `cause` is what the operation at hand is called in explanations."""

    def __init__(self) -> None:
        self.cause = ""

    def leaf(self, size: int, pin: str | None = None) -> Axis:
        """An axis of which nothing is known yet."""
        return Axis(int(size), pin)

    def join(self, axes: Iterable[Axis]) -> Axis:
        """The product, outer axis first."""
        flat = [f for axis in axes for f in factors(axis)]
        if not flat:
            return Axis(1)
        if len(flat) == 1:
            return flat[0]
        return self._made(Axis(prod(f.size for f in flat)), "product", flat)

    def concat(self, axes: Sequence[Axis]) -> Axis:
        """One behind the other."""
        flat = [p for axis in axes for p in parts(axis) if p.size]
        return flat[0] if len(flat) == 1 else self._made(Axis(sum(p.size for p in flat)), "concat", flat)

    def pin(self, axis: Axis, reason: str) -> None:
        """Let no index of the axis be removed."""
        for leaf in leaves(axis):
            leaf.holds.setdefault(reason.split()[0], reason)

    def mark(self, axis: Axis, word: str) -> None:
        """Note a property of every leaf below the axis, with the operation at hand as its cause."""
        for leaf in leaves(axis):
            leaf.marks.setdefault(word, self.cause)

    def unify(self, a: Axis, b: Axis) -> bool:
        """Make two axes the same. Returns False, with both pinned, if they have no common refinement."""
        if a is b or a.size == 1 or b.size == 1:
            return True
        x, y = find(a), find(b)
        if x is y:
            return True
        a.links.append((b, self.cause))
        b.links.append((a, self.cause))
        if x.size != y.size:
            return self._clash(x, y)
        if x.kind == "leaf":
            return self._link(x, y)
        if y.kind == "leaf":
            return self._link(y, x)
        if x.kind == y.kind == "concat":
            agreed = self._unify_concats(x, y)
        elif "concat" in (x.kind, y.kind):
            agreed = self._unify_mixed(*((x, y) if x.kind == "product" else (y, x)))
        else:
            agreed = self._unify_products(factors(x), factors(y))
        if not agreed:
            return self._clash(x, y)
        x, y = find(x), find(y)
        if x is not y:
            x.parent = y
        return True

    def factor(self, axis: Axis, outer: int) -> tuple[Axis, Axis] | None:
        """Refine into outer x inner; None, with nothing changed, if that cannot be."""
        root = find(axis)
        if outer <= 0 or root.size % outer:
            return None
        if outer == 1:
            return Axis(1), root
        if outer == root.size:
            return root, Axis(1)
        if root.kind == "leaf":
            pair = self.leaf(outer), self.leaf(root.size // outer)
            self._refine(root, "product", pair)
            return pair
        return self._factor_product(root, outer) if root.kind == "product" else self._factor_concat(root, outer)

    def cut(self, axis: Axis, bounds: Sequence[int]) -> list[Axis] | None:
        """Refine into parts that end at `bounds` (the last is the size); None if that cannot be."""
        root = find(axis)
        if not bounds or bounds[-1] != root.size or list(bounds) != sorted(bounds):
            return None
        starts = [0, *bounds[:-1]]
        if 0 in (end - start for start, end in zip(starts, bounds, strict=True)):
            # Empty pieces stand beside the axis: it must never be a part of itself.
            full = self.cut(root, sorted({*bounds} - {0}))
            rest = iter(full or [])
            return full and [next(rest) if end > start else Axis(0) for start, end in zip(starts, bounds, strict=True)]
        if len(bounds) == 1:
            return [root]
        if root.kind == "leaf":
            pieces = [self.leaf(end - start) for start, end in zip(starts, bounds, strict=True)]
            self._refine(root, "concat", pieces)
            return pieces
        if root.kind == "product":
            first, *rest = factors(root)
            inner = prod(f.size for f in rest)
            if any(b % inner for b in bounds):
                return None
            outer = self.cut(first, [b // inner for b in bounds])
            return outer and [self.join([piece, *rest]) if piece.size else piece for piece in outer]
        return self._cut_concat(root, bounds)

    def why(self, start: Axis, goals: Iterable[Axis]) -> dict[Axis, tuple[Axis, list[str]]]:
        """For every goal: the nearest other goal (or the start) on the way from the start, and the causes in between."""
        wanted = {*goals, start}
        before: dict[Axis, tuple[Axis, str] | None] = {start: None}
        queue = deque([start])
        while queue:
            axis = queue.popleft()
            for other, cause in axis.links:
                if other not in before:
                    before[other] = (axis, cause)
                    queue.append(other)
        ways: dict[Axis, tuple[Axis, list[str]]] = {}
        for goal in wanted - {start}:
            causes: list[str] = []
            step = before.get(goal)
            axis = goal
            while step is not None:
                axis, cause = step
                if not causes or causes[-1] != cause:
                    causes.append(cause)
                if axis in wanted:
                    break
                step = before[axis]
            ways[goal] = (axis, causes[::-1])
        return ways

    def _made(self, node: Axis, kind: str, pieces: Sequence[Axis]) -> Axis:
        node.kind, node.parts = kind, tuple(pieces)
        for piece in pieces:
            node.links.append((piece, self.cause))
            piece.links.append((node, self.cause))
        return node

    def _refine(self, leaf: Axis, kind: str, pieces: Sequence[Axis]) -> None:
        for piece in pieces:
            piece.holds = leaf.holds | piece.holds
            piece.marks = leaf.marks | piece.marks
        self._made(leaf, kind, pieces)

    def _link(self, leaf: Axis, other: Axis) -> bool:
        leaf.parent = other
        for below in leaves(other):
            below.holds = leaf.holds | below.holds
            below.marks = leaf.marks | below.marks
        return True

    def _clash(self, a: Axis, b: Axis) -> bool:
        reason = f"{self.cause} matches {describe(a)} with {describe(b)}, which have no common refinement"
        self.pin(a, reason)
        self.pin(b, reason)
        return False

    def _unify_products(self, left: list[Axis], right: list[Axis]) -> bool:
        left, right = left[::-1], right[::-1]
        while left and right:
            a, b = find(left.pop()), find(right.pop())
            if a.kind == "product" or b.kind == "product":
                left += factors(a)[::-1]
                right += factors(b)[::-1]
                continue
            if a.size == b.size:
                if not self.unify(a, b):
                    return False
                continue
            if a.size > b.size:
                a, b, left, right = b, a, right, left
            pair = self.factor(b, a.size)
            if pair is None or not self.unify(a, pair[0]):
                return False
            right.append(pair[1])
        return not left and not right

    def _unify_concats(self, a: Axis, b: Axis) -> bool:
        bounds = sorted({*_bounds(parts(a)), *_bounds(parts(b))})
        left, right = self.cut(a, bounds), self.cut(b, bounds)
        if left is None or right is None:
            return False
        return all(self.unify(x, y) for x, y in zip(left, right, strict=True))

    def _unify_mixed(self, product: Axis, concat: Axis) -> bool:
        bounds = _bounds(parts(concat))
        pieces = self.cut(product, bounds)
        # Cutting may refine parts of the concatenation along, so that these, too, are asked for by their bounds.
        others = self.cut(concat, bounds)
        if pieces is not None and others is not None:
            return all(self.unify(x, y) for x, y in zip(pieces, others, strict=True))
        first, *rest = factors(product)
        pair = self.factor(concat, first.size)
        return pair is not None and self.unify(first, pair[0]) and self.unify(self.join(rest), pair[1])

    def _factor_product(self, root: Axis, outer: int) -> tuple[Axis, Axis] | None:
        left: list[Axis] = []
        right = factors(root)
        while outer > 1:
            first = right.pop(0)
            if outer % first.size == 0:
                left.append(first)
                outer //= first.size
                continue
            pair = self.factor(first, outer) if first.size > outer else None
            if pair is None:
                return None
            left.append(pair[0])
            right.insert(0, pair[1])
            outer = 1
        return self.join(left), self.join(right)

    def _factor_concat(self, root: Axis, outer: int) -> tuple[Axis, Axis] | None:
        pieces, inner = parts(root), root.size // outer
        if all(p.size % inner == 0 for p in pieces):
            pairs = [self.factor(p, p.size // inner) for p in pieces]
            if any(pair is None for pair in pairs):
                return None
            whole = [pair for pair in pairs if pair is not None]
            for pair in whole[1:]:
                if not self.unify(whole[0][1], pair[1]):
                    return None
            return self.concat([pair[0] for pair in whole]), whole[0][1]
        # Periodic: as many periods as the outer axis has indices. Which of them an index belongs to is fixed.
        periods = self.cut(root, [inner * (i + 1) for i in range(outer)])
        if periods is None or not all(self.unify(periods[0], p) for p in periods[1:]):
            return None
        return self.leaf(outer, pin=f"{self.cause} counts equal parts"), periods[0]

    def _cut_concat(self, root: Axis, bounds: Sequence[int]) -> list[Axis] | None:
        pieces = deque(parts(root))
        found: list[Axis] = []
        start = 0
        for end in bounds:
            group: list[Axis] = []
            need = end - start
            while need:
                piece = pieces.popleft()
                if piece.size > need:
                    halves = self.cut(piece, [need, piece.size])
                    if halves is None:
                        return None
                    piece = halves[0]
                    pieces.appendleft(halves[1])
                group.append(piece)
                need -= piece.size
            found.append(self.concat(group) if group else Axis(0))
            start = end
        return found


def _bounds(pieces: Sequence[Axis]) -> list[int]:
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + piece.size)
    return ends
