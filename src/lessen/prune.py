"""Structured pruning of any model in memory: find what hangs together, decide what goes, cut it, and say what it won.

    pruned = lessen.prune(model, example_inputs, batches, method=UKMP(), to="20%")
    pruned.model                                        # an ordinary, smaller module; `model` is as it was

`lessen compress` does the same for language models on disk, in a recipe with other steps.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.apply import apply
from lessen.core.edit import Drop, Edit, Keep, Resize
from lessen.core.event import Event, Listener
from lessen.core.modules import evaluating
from lessen.core.record import Record
from lessen.core.stock import stock_config
from lessen.core.strict import strict
from lessen.core.unit import Unit, View
from lessen.engine.survey import record
from lessen.errors import LessenError, UsageError, one_line
from lessen.methods.budget import Budget
from lessen.methods.ukmp import UKMP
from lessen.rounds import in_rounds
from lessen.stats.gradients import Collecting
from lessen.stats.objectives import Objective
from lessen.stats.whole import survey
from lessen.structure.check import check
from lessen.structure.example import arguments
from lessen.structure.resize import expressible, resizes
from lessen.structure.trace import Structure, trace
from lessen.structure.uniform import said
from lessen.targets.cost import Cost, Goal, bytes_of, parameters
from lessen.targets.latency import Latency, Table, measured, preferred_multiple
from lessen.targets.profile import macs
from lessen.targets.wish import Counted, Wish

WIDTHS = ("ffn", "channels", "kv_group", "heads")
"""Kinds of unit that are pruned unless others are asked for: nothing that a norm couples, no head dimensions, whole groups before heads."""

_OF: dict[str, Counted] = {"parameters": "parameters", "bytes": "bytes", "macs": "macs", "latency": "milliseconds"}
_NAMES = {counted: name for name, counted in _OF.items()}
LATENCY_ATTEMPTS = 3
_SHOWN = 12
PROVED = 20_000_000


@dataclass(frozen=True, repr=False)
class Pruned:
    """What `prune` made.

    Attributes:
        model: the smaller model.
        edits: what was done; `lessen.apply(other, edits)` does it to another copy of the model.
        records: one per edit.
        structure: the units that there were.
        kept: unit name -> indices that stayed, for every unit that lost some.
        before, after: parameters, bytes, and where they were asked for MACs and milliseconds of a forward.
        tasks: names of the losses, in the order of multi-task scores.
        notes: warnings and choices, as sentences.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    records: tuple[Record, ...]
    structure: tuple[Unit, ...]
    kept: Mapping[str, Tensor]
    before: Mapping[str, float]
    after: Mapping[str, float]
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        """What was won, in a few lines."""
        won = [f"{name}: {self.before[name]:,.4g} -> {self.after[name]:,.4g}" for name in self.before]
        cut = [f"  {record.unit}: {record.reason}" for record in self.records[:_SHOWN]]
        more = [f"  and {len(self.records) - _SHOWN} more units"] if len(self.records) > _SHOWN else []
        return "\n".join([", ".join(won), *cut, *more, *self.notes])


@strict()
def prune(
    model: nn.Module,
    example_inputs: Any,
    batches: Iterable[Any] = (),
    *,
    method: Any = None,
    to: str | None = None,
    losses: Objective | None = None,
    units: Structure | Sequence[Unit] | None = None,
    uniform: bool = False,
    rounds: int = 1,
    prove: bool | None = None,
    on_event: Listener | None = None,
) -> Pruned:
    """Make a smaller copy of a model.

    Args:
        model: any module; it is not changed.
        example_inputs: what it is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
        batches: data for methods that look at any; see `lessen.stats.objectives.default_objective` for what a batch may be.
        method: how to decide (`UKMP()`).
        to: the budget: "20%" goes, "0.8x" stays, "30MB", "12ms", "1.2GMACs", "30% macs"; None: the method's own ratio.
        losses: from model and batch to a loss, or to named losses of several tasks; None: what the batch speaks of.
        units: what may be cut: a structure (of which widths inside blocks are taken) or a list of units (all of them); None: traced.
        rounds: spend the budget in so many parts, and collect anew before each; see `lessen.rounds` for what that is worth.
        prove: compare the smaller model with the masked one in float64, and time both; None: the proof up to 20 M parameters.
        uniform: narrow equal places of all blocks by the same amount, so that stock loaders take the result.
        on_event: hears of progress.

    Returns:
        The smaller model and everything that led to it.

    Raises:
        UsageError: the budget cannot be met, or makes no sense. LessenError: the model cannot be traced, or a batch fails.

    >>> from lessen.methods import Magnitude
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> prune(mlp, torch.zeros(1, 4), method=Magnitude(), to="50%").model[0].out_features
    4
    """
    method = UKMP() if method is None else method
    started = time.perf_counter()
    structure = trace(model, example_inputs) if units is None else units
    if isinstance(structure, Structure):
        structure = expressible(model, structure)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    chosen = _chosen(structure, method)
    told: list[str] = []
    if uniform and isinstance(structure, Structure):
        chosen, told = said(model, structure, chosen)
        if not chosen:
            raise UsageError("prune", got="uniform=True", wanted="a width that a configuration can say", remedy="; ".join(told))
    method, goal, notes = _goal(model, _caller(model, example_inputs), chosen, method, to, uniform)
    proof, doubt = _proof(prove, structure, tensors)
    notes = [*told, *notes, *doubt]
    cutting = _Cutting(model, example_inputs, structure, chosen, proof)
    tasks: tuple[str, ...] = ()
    if rounds > 1:
        batches = list(batches)

        def once(part: nn.Module, left: Structure | Sequence[Unit], size: str) -> Pruned:
            options: dict[str, Any] = {"method": method, "losses": losses, "uniform": uniform, "prove": False, "on_event": on_event}
            return prune(part, example_inputs, batches, to=size, units=left, **options)

        edits, smaller = cutting(in_rounds(once, model, example_inputs, structure, chosen, goal, rounds))
    else:
        how = method.collecting(losses) if hasattr(method, "collecting") else Collecting(losses)
        stats, tasks = survey(model, chosen, method.needs, batches, how, on_event)
        edits, smaller = _attempts(cutting, method, [_view(unit, tensors) for unit in chosen], stats, goal)
    if uniform:
        notes += _settle(model, smaller, edits)
    before, after = _sizes(model), _sizes(smaller)
    notes += _missed(goal, before, after)
    if goal is not None and goal.cost.name == "macs":
        before["macs"], after["macs"] = goal.cost.whole, macs(smaller, _caller(smaller, example_inputs), ()).whole
    if cutting.renumbered:
        notes.append("Token ids are other ones: a token's id is its place in `kept`; encode text accordingly.")
    elif prove is not False or (goal is not None and goal.cost.name == "milliseconds"):
        notes += _timed(model, smaller, example_inputs, before, after)
    seconds = (time.perf_counter() - started) / max(1, len(edits))
    if on_event:
        on_event(Event("prune", len(edits), len(edits), f"{before['parameters']:,.0f} parameters, then {after['parameters']:,.0f}"))
    kept = {edit.unit.name: edit.indices for edit in edits if isinstance(edit, Keep)}
    records = tuple(record(edit, method, seconds) for edit in edits if not isinstance(edit, Resize))
    return Pruned(smaller, tuple(edits), records, tuple(chosen), kept, before, after, tasks, tuple(notes))


@dataclass(frozen=True)
class _Cutting:
    """How decisions become a smaller model."""

    model: nn.Module
    example: Any
    structure: Structure | Sequence[Unit]
    units: Sequence[Unit]
    proof: bool

    def __call__(self, edits: Sequence[Edit]) -> tuple[list[Edit], nn.Module]:
        """The edits on whole units, with the numbers that modules keep for themselves, and the model that they make."""
        by_name = {unit.name: unit for unit in self.units}
        edits = [replace(edit, unit=by_name[edit.unit.name]) if isinstance(edit, Keep | Drop) else edit for edit in edits]
        if isinstance(self.structure, Structure):
            edits = resizes(self.model, self.structure, edits)
        edits = [*edits, *(size for edit in edits if isinstance(edit, Keep) for size in _vocabularies(self.model, edit))]
        if self.proof and not self.renumbered:
            return edits, check(self.model, edits, self.example)
        smaller = apply(copy.deepcopy(self.model), edits)
        if not self.renumbered:
            _runs(smaller, self.example)
        return edits, smaller

    @property
    def renumbered(self) -> bool:
        """Whether token ids change, so that the example means something else to the smaller model."""
        return any(unit.kind == "vocab" for unit in self.units)


def _vocabularies(model: nn.Module, keep: Keep) -> Iterator[Resize]:
    """What modules and configurations call `vocab_size`, after its rows were cut."""
    if keep.unit.kind != "vocab":
        return
    for path, module in model.named_modules():
        for owner, inside in ((module, ""), (getattr(module, "config", None), "config.")):
            if getattr(owner, "vocab_size", None) == keep.unit.size:
                yield Resize(".".join(filter(None, (path, f"{inside}vocab_size"))), keep.unit.size, len(keep.indices))


def _attempts(
    cutting: _Cutting, method: Any, views: Sequence[View], stats: Sequence[Any], goal: Goal | None
) -> tuple[list[Edit], nn.Module]:
    """Decide and cut; where milliseconds are promised, measure, and decide again on a tighter table value if they were missed."""

    def attempt(wanted: Goal | None) -> tuple[list[Edit], nn.Module]:
        return cutting(method.decide(views, stats, wanted) if isinstance(method, Budget) else method.decide(views, stats))

    edits, smaller = attempt(goal)
    if goal is None or goal.cost.name != "milliseconds":
        return edits, smaller
    wanted = goal
    for _ in range(LATENCY_ATTEMPTS - 1):
        with evaluating(smaller):
            now = measured(_caller(smaller, cutting.example), next(smaller.parameters()).device, enough=1.0)
        if now <= 1.02 * goal.value:
            break
        wanted = replace(wanted, value=wanted.value * goal.value / now)
        try:
            edits, smaller = attempt(wanted)
        except UsageError:  # the table says that nothing more can be had; the measurement is what is reported
            break
    return edits, smaller


def _chosen(structure: Structure | Sequence[Unit], method: Any) -> list[Unit]:
    """The units that the method decides on."""
    found = list(structure.units if isinstance(structure, Structure) else structure)
    if isinstance(structure, Structure):
        kinds = getattr(method, "kinds", (method.kind,))
        kinds = WIDTHS if "ffn" in kinds or "kv_group" in kinds or "channels" in kinds else kinds
        found = [*found, *structure.vocabulary] if "vocab" in kinds else found
        found = _disjoint([unit for unit in found if unit.kind in kinds and not unit.normed], kinds)
    if not found:
        remedy = "look at lessen.trace(model, example_inputs): it says what is held, and why"
        if "experts" in getattr(method, "kinds", ()):
            remedy = 'packed experts are found in a model of which model.set_experts_implementation("eager") was called'
        raise UsageError(type(method).__name__, got="no unit that it could prune", wanted="one at least", remedy=remedy)
    return found


def _disjoint(units: Sequence[Unit], kinds: Sequence[str]) -> list[Unit]:
    """Units that share no index of any tensor: of two that do (a key/value group, and the heads in it), the kind that comes first."""
    taken: dict[tuple[str, int], set[int]] = {}
    chosen: set[str] = set()
    for unit in sorted(units, key=lambda unit: kinds.index(unit.kind)):
        places = {(part.name, part.axis): set(part.indices(unit.size).flatten().tolist()) for part in unit.slices}
        if all(taken.get(place, set()).isdisjoint(indices) for place, indices in places.items()):
            chosen.add(unit.name)
            for place, indices in places.items():
                taken.setdefault(place, set()).update(indices)
    return [unit for unit in units if unit.name in chosen]


def _view(unit: Unit, tensors: Mapping[str, Tensor]) -> View:
    """The unit with its parameters and the biases beside them; buffers (running statistics) follow, but are not looked at."""
    slices = tuple(part for part in unit.slices if part.name in tensors)
    names = [part.name for part in slices]
    beside = [f"{name.removesuffix('.weight')}.bias" for name in names if name.endswith(".weight")]
    wanted = dict.fromkeys([*names, *(name for name in beside if name in tensors)])
    return View(replace(unit, slices=slices), {name: tensors[name].detach() for name in wanted})


def _caller(model: nn.Module, example: Any) -> Callable[[], Any]:
    args, kwargs = arguments(example)
    return lambda: model(*args, **kwargs)


def _goal(
    model: nn.Module, call: Callable[[], Any], units: Sequence[Unit], method: Any, to: str | None, uniform: bool
) -> tuple[Any, Goal | None, list[str]]:
    """The method with its settled options, what may be left, and the choices made."""
    if not isinstance(method, Budget):
        if to is not None or uniform:
            wanted = f"{type(method).__name__}(ratio=...)"
            raise UsageError("prune", got=f"to={to!r}, uniform={uniform}", wanted=wanted, remedy="this method removes whole units")
        return method, None, []
    notes: list[str] = []
    if uniform and method.across == "model":
        method = replace(method, across="place")
    if to is None and method.of == "channels":
        return method, None, notes
    wish = Wish(_OF[method.of], 1 - method.ratio, True) if to is None else Wish.parse(to)
    if wish.counted == "milliseconds" and method.multiple == 1:
        method = replace(method, multiple=preferred_multiple(next(model.parameters()).device))
        notes.append(f"Widths are kept at multiples of {method.multiple}, which the hardware likes.")
    cost = _cost(model, call, units, wish.counted)
    value = wish.value(cost.whole)
    if value > cost.whole:
        got = f"{to}, more than the {cost.whole:,.4g} {cost.name} that there are"
        raise UsageError("prune", got=got, wanted="less than that")
    return replace(method, ratio=min(0.999, 1 - value / cost.whole), of=_NAMES[wish.counted]), Goal(cost, value, not wish.relative), notes


def _cost(model: nn.Module, call: Callable[[], Any], units: Sequence[Unit], counted: Counted) -> Cost:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    match counted:
        case "parameters":
            return parameters(shapes, units)
        case "bytes":
            return bytes_of(shapes, units, {name: p.element_size() for name, p in model.named_parameters()})
        case "macs":
            return macs(model, call, units)
        case _:
            first = next(model.parameters())
            with evaluating(model):
                return Latency(model, call, units, Table(first.device, first.dtype))


def _settle(model: nn.Module, smaller: nn.Module, edits: Sequence[Edit]) -> list[str]:
    """Give the smaller model a configuration that says its widths, or say that there is none."""
    if not hasattr(model, "config"):
        return []
    config = stock_config(model, smaller, edits)
    if config is None:
        return [f"No configuration of {type(model).__name__} says these widths: save the model with its edits, and load it with lessen."]
    smaller.config = config
    return []


def _proof(prove: bool | None, structure: Structure | Sequence[Unit], tensors: Mapping[str, Tensor]) -> tuple[bool, list[str]]:
    """Whether the smaller model is compared with its mask, and a word where it should be and is not."""
    if prove is not None or not isinstance(structure, Structure):
        return prove is True, []
    if sum(p.numel() for p in tensors.values()) <= PROVED:
        return True, []
    return False, [f"Not compared with its mask, as above {PROVED / 1e6:.0f}M parameters: prove=True does, with two copies in float64."]


def _missed(goal: Goal | None, before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """A word where what was asked for lies between what whole channels and heads can give."""
    name = "" if goal is None else goal.cost.name
    if goal is None or name not in after or abs(after[name] - goal.value) <= 0.02 * before[name]:
        return []
    return [f"Asked for {goal.value:,.0f} {name}, came to {after[name]:,.0f}: units lose whole channels or heads, and keep their floors."]


def _runs(model: nn.Module, example: Any) -> None:
    """Run the smaller model once."""
    try:
        with torch.no_grad(), evaluating(model):
            _caller(model, example)()
    except Exception as error:
        remedy = "freeze the module that the message speaks of: lessen.trace(model, example, freeze=[...])"
        raise LessenError(
            type(model).__name__, got=f"after pruning, {one_line(error)}", wanted="a model that runs", remedy=remedy
        ) from error


def _sizes(model: nn.Module) -> dict[str, float]:
    own = list(model.parameters())
    return {"parameters": float(sum(p.numel() for p in own)), "bytes": float(sum(p.numel() * p.element_size() for p in own))}


def _timed(model: nn.Module, smaller: nn.Module, example: Any, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Measure a forward of both, taking turns; a plain word if nothing was won."""
    device = next(model.parameters()).device
    with evaluating(model, smaller):
        both = [(measured(_caller(model, example), device), measured(_caller(smaller, example), device)) for _ in range(3)]
    before["milliseconds"], after["milliseconds"] = (median(times) for times in zip(*both, strict=True))
    dense, now = before["milliseconds"], after["milliseconds"]
    if now < 0.97 * dense or before["parameters"] == after["parameters"]:
        return []
    tip = "narrower layers win little where a forward waits for memory or for small kernels; a multiple of 8 (64 on a GPU) may help"
    return [f"The smaller model is not faster here: {now:.3g} ms a forward, before {dense:.3g} ms; {tip}, or dropping whole layers."]
