"""The units of a decoder language model, declared: which slices of which tensors must change together.

Five facts about a decoder block are enough.

    feed-forward    down(act(gate(x)) * up(x)): channel c is row c of gate and up and column c of down
    attention       one key/value head serves `rep` query heads: its rows of k and v (head_dim of them) go together with
                    rep * head_dim rows of q and as many columns of o; the gain of a query/key norm is shared by all heads and stays
    shared inputs   q, k and v read one tensor, gate and up read one: a Gram matrix is collected, and an input rescaled, once for all
    producers       the gain before a shared input, up's rows before down and v's rows before o can absorb the inverse of a rescaling
    layers          a block adds to the residual stream, so it can be left out whole

"linear", "embedding", "inputs" and "layer" units exist for any module whose blocks lie in one `ModuleList`; "ffn" and "kv_group" need a
row in `families.FAMILIES`.
"""

from dataclasses import replace
from typing import get_args

from torch import nn

from lessen.core.unit import Kind, Slice, Unit, View
from lessen.errors import UsageError
from lessen.models.checkpoint import Checkpoint
from lessen.structure.families import FAMILIES, Family


def units(checkpoint: Checkpoint, kind: Kind | None = None) -> list[Unit]:
    """Every unit of a decoder language model, block by block, in execution order within a block.

    Args:
        checkpoint: the model; only names, shapes and configuration are read.
        kind: give only these, and insist on them; None gives all kinds that are known for this architecture.

    Raises:
        UsageError: `kind` is not known for this architecture, or no decoder blocks were found.
    """
    if kind is not None and kind not in get_args(Kind):
        raise UsageError("units", got=f"kind {kind!r}", wanted=f"one of {', '.join(get_args(Kind))}")
    skeleton = checkpoint.skeleton()
    prefix, blocks = decoder_blocks(skeleton, checkpoint.label)
    family = FAMILIES.get(str(checkpoint.config.get("model_type")))
    found: list[Unit] = []
    for index, block in enumerate(blocks):
        path = f"{prefix}.{index}"
        linears = [f"{path}.{name}" for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        found += [_linear(checkpoint, name, index) for name in linears]
        found += _Block(checkpoint, family, path, index).units() if family else [_lone_input(checkpoint, n, index) for n in linears]
        reason = "adds to the residual stream, so the model runs without it"
        found.append(Unit(path, "layer", 1, (), index, reason=reason, among=len(blocks)))
    found = [_measured(checkpoint, unit) for unit in (*found, *_embeddings(checkpoint, skeleton, prefix))]
    if kind is None:
        return found
    if kind in ("ffn", "kv_group") and not any(u.kind == kind for u in found):
        able = sorted(n for n, f in FAMILIES.items() if kind == "ffn" or f.heads)
        raise UsageError(
            checkpoint.label,
            got=f"model_type {checkpoint.config.get('model_type')!r} and a method for {kind} units",
            wanted=f"one of {', '.join(able)}",
            remedy="use a method for linear or layer units, or describe the family in lessen/structure/families.py",
        )
    return [unit for unit in found if unit.kind == kind]


def decoder_blocks(module: nn.Module, label: str = "model") -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder blocks: the `ModuleList` with the most parameters, equally long ones settled by order.

    Raises:
        UsageError: there is no non-empty `ModuleList`.

    >>> class Tiny(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    >>> decoder_blocks(Tiny())[0]
    'layers'
    """
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists:
        raise UsageError(
            label,
            got=f"a {type(module).__name__} without a ModuleList",
            wanted="a decoder with its blocks in a ModuleList",
            remedy="put the repeated blocks of the model into one nn.ModuleList",
        )
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def without_linears(checkpoint: Checkpoint) -> UsageError:
    """The refusal of a method for linear layers where a model has none, with the layers that it has in their place."""
    skeleton = checkpoint.skeleton()
    prefix, _ = decoder_blocks(skeleton, checkpoint.label)
    blocks = [(name, type(part).__name__) for name, part in skeleton.named_modules() if name.startswith(f"{prefix}.")]
    transposed = [name for name, kind in blocks if kind == "Conv1D"]
    layers = "prune whole layers (--method BlockInfluence), round the token table alone (--method RTN --on embeddings)"
    if not transposed:
        return UsageError(checkpoint.label, got="blocks without nn.Linear", wanted="some, for a method that rounds them", remedy=layers)
    return UsageError(
        checkpoint.label,
        got=f"{len(transposed)} Conv1D layers ({transposed[0]} first) and no nn.Linear",
        wanted="nn.Linear: the weights of transformers' Conv1D are stored transposed, which no container's layout for codes knows",
        remedy=f"{layers}, or give a factory that builds the model with an nn.Linear for each; lessen.load opens that result",
    )


def view(checkpoint: Checkpoint, unit: Unit) -> View:
    """The unit with its tensors: those of its slices, the biases beside them, and the producer."""
    weights = [part.name for part in (*unit.slices, *([unit.producer] if unit.producer else []))]
    beside = [f"{name.removesuffix('.weight')}.bias" for name in weights if name.endswith(".weight")]
    stored = {*checkpoint.names, *checkpoint.tied}
    wanted = dict.fromkeys([*weights, *(name for name in beside if name in stored)])
    return View(unit, {name: checkpoint.read(name) for name in wanted})


def writer(unit: Unit) -> Slice:
    """The slice of the linear that reads the unit's channels and writes the output: down_proj, o_proj.

    >>> writer(Unit("mlp", "ffn", 2, (Slice("up.weight", 0), Slice("up.bias", 0), Slice("down.weight", 1)))).name
    'down.weight'
    """
    return next(part for part in reversed(unit.slices) if part.axis == 1)


def describe(unit: Unit) -> str:
    """A unit for people: its size, every slice with its indices, and the reason.

    >>> print(describe(Unit("mlp", "ffn", 8, (Slice("up.weight", 0), Slice("down.weight", 1)), reason="one hidden feature each")))
    mlp: ffn, 8 channels (one hidden feature each)
      up.weight      axis 0, 1 index per channel
      down.weight    axis 1, 1 index per channel
    """
    lines = [f"{unit.name}: {unit.kind}, {unit.size} channel{'s' * (unit.size != 1)} ({unit.reason})"]
    width = max((len(part.name) for part in unit.slices), default=0) + 3
    for part in unit.slices:
        start = f", from index {part.start}" if part.start else ""
        lines.append(f"  {part.name:<{width}} axis {part.axis}, {part.span} ind{'ex' if part.span == 1 else 'ices'} per channel{start}")
    if unit.producer:
        lines.append(f"  rescaled by {unit.producer.name}, axis {unit.producer.axis}")
    return "\n".join(lines)


def _linear(checkpoint: Checkpoint, name: str, block: int | None) -> Unit:
    weight = f"{name}.weight"
    return Unit(name, "linear", checkpoint.shape(weight)[0], (Slice(weight, 0),), block, reason="the outputs of one linear")


def _measured(checkpoint: Checkpoint, unit: Unit) -> Unit:
    """The unit with the lengths of the axes that it lies in."""
    parts = tuple(replace(part, length=checkpoint.shape(part.name)[part.axis]) for part in unit.slices)
    return replace(unit, slices=parts)


def _lone_input(checkpoint: Checkpoint, name: str, block: int) -> Unit:
    weight = f"{name}.weight"
    reason = "what this linear reads; an unknown architecture, so sharing with other linears is not assumed"
    return Unit(f"{name}_in", "inputs", checkpoint.shape(weight)[1], (Slice(weight, 1),), block, reason=reason)


def _embeddings(checkpoint: Checkpoint, skeleton: nn.Module, prefix: str) -> list[Unit]:
    """The token table and, unless it is the same tensor, the output head."""
    outside = {n: m for n, m in skeleton.named_modules(remove_duplicate=False) if not n.startswith(f"{prefix}.")}
    tables = [n for n, m in outside.items() if isinstance(m, nn.Embedding)]
    if not tables:
        return []
    # The token table is the largest one; position tables of older models are smaller.
    table = max(tables, key=lambda n: outside[n].get_parameter("weight").numel())
    vocab = outside[table].get_parameter("weight").shape[0]
    heads = [n for n, m in outside.items() if isinstance(m, nn.Linear) and m.weight.shape[0] == vocab]
    stored = f"{table}.weight"
    stored = checkpoint.tied.get(stored, stored)
    tied = [n for n in heads if checkpoint.tied.get(f"{n}.weight", f"{n}.weight") == stored]
    reason = "the token table" + (f", which is also {tied[0]}" if tied else "")
    found = [Unit(stored.removesuffix(".weight"), "embedding", vocab, (Slice(stored, 0),), reason=reason)]
    for name in heads:
        if name not in tied:
            found.append(Unit(name, "embedding", vocab, (Slice(f"{name}.weight", 0),), reason="the output head"))
    return found


class _Block:
    """One block of a known family, read by tensor name."""

    def __init__(self, checkpoint: Checkpoint, family: Family, path: str, index: int):
        self.names = frozenset(n for n in checkpoint.names if n.startswith(f"{path}."))
        self.shape, self.family, self.path, self.index = checkpoint.shape, family, path, index
        self.config = checkpoint.config
        self.rows = {n: self.shape(self.weight(n))[0] for n in (*family.qkv, *family.reads)}
        self.columns = {n: self.shape(self.weight(n))[1] for n in (family.o, family.down)}

    def weight(self, linear: str) -> str:
        return f"{self.path}.{linear}.weight"

    def units(self) -> list[Unit]:
        found = self.inputs()
        found.append(self.ffn())
        if self.family.heads:
            found.append(self.kv_group())
        return found

    def read(self, linear: str, span: int = 1, start: int = 0) -> list[Slice]:
        """Output rows of a linear, with its bias if it has one."""
        both = [self.weight(linear), f"{self.path}.{linear}.bias"]
        return [Slice(name, 0, span, start) for name in both if name in self.names]

    def ffn(self) -> Unit:
        reads, down, width = self.family.reads, self.family.down, self.columns[self.family.down]
        parts: list[Slice] = []
        for name in reads:
            parts += [part for start in range(0, self.rows[name], width) for part in self.read(name, start=start)]
        parts.append(Slice(self.weight(down), 1))
        owner = down.rpartition(".")[0] or "ffn"
        reason = f"one hidden feature: a row of {' and '.join(_last(n) for n in reads)}, a column of {_last(down)}"
        return Unit(f"{self.path}.{owner}", "ffn", width, tuple(parts), self.index, {self.family.width: 1}, reason=reason)

    def head_dim(self) -> int:
        return self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]

    def kv_group(self) -> Unit:
        qkv, o, dim = self.family.qkv, self.family.o, self.head_dim()
        queries = self.columns[o] // dim
        if len(qkv) == 1:
            groups = (self.rows[qkv[0]] // dim - queries) // 2
            rep = queries // groups
            starts = ((rep * dim, 0), (dim, queries * dim), (dim, (queries + groups) * dim))
            parts = [part for span, start in starts for part in self.read(qkv[0], span, start)]
        else:
            groups = self.rows[qkv[1]] // dim
            rep = queries // groups
            parts = self.read(qkv[0], rep * dim) + self.read(qkv[1], dim) + self.read(qkv[2], dim)
        parts.append(Slice(self.weight(o), 1, rep * dim))
        sizes = {"num_attention_heads": rep, "num_key_value_heads": 1}
        reason = f"one key/value head of {dim} features with the {rep} query head{'s' * (rep != 1)} that read it"
        return Unit(f"{self.path}.{o.rpartition('.')[0]}", "kv_group", groups, tuple(parts), self.index, sizes, reason=reason)

    def inputs(self) -> list[Unit]:
        """Shared inputs in execution order."""
        family, attention, mlp = self.family, self.family.o.rpartition(".")[0], self.family.down.rpartition(".")[0]
        norms = [self.gain(n) for n in family.norms] if family.norms else [None, None]
        values = self.bare(family.qkv[2], self.head_dim()) if len(family.qkv) == 3 and family.heads else None
        up = self.bare(family.reads[1], 1) if family.gated and len(family.reads) == 2 else None
        reads_in = "gate_up_in" if family.gated else "up_in"
        return [
            self.input(f"{attention}.qkv_in", family.qkv, norms[0], "the attention input"),
            self.input(f"{attention}.o_in", (family.o,), values, "the mixed values"),
            self.input(".".join(filter(None, (mlp, reads_in))), family.reads, norms[1], "the feed-forward input"),
            self.input(".".join(filter(None, (mlp, "down_in"))), (family.down,), up, "the feed-forward hidden features"),
        ]

    def input(self, name: str, linears: tuple[str, ...], producer: Slice | None, reason: str) -> Unit:
        parts = tuple(Slice(self.weight(n), 1) for n in linears)
        return Unit(f"{self.path}.{name}", "inputs", self.shape(parts[0].name)[1], parts, self.index, producer=producer, reason=reason)

    def gain(self, norm: str) -> Slice | None:
        """The gain of a norm that has no bias: a bias would have to be rescaled too."""
        return self.bare(norm, 1)

    def bare(self, module: str, span: int) -> Slice | None:
        """A weight that alone makes its module's output: None when there is a bias beside it.

        With span > 1 (v_proj under grouped attention) each run of `span` rows serves as many consecutive runs of `span` input
        features as there are query heads to a key/value head.
        """
        name = self.weight(module)
        return Slice(name, 0, span) if name in self.names and f"{self.path}.{module}.bias" not in self.names else None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


__all__ = ["decoder_blocks", "describe", "units", "view", "without_linears", "writer"]
