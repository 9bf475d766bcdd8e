"""Structured pruning of any model in memory: find what hangs together, decide what goes, cut it, and say what it won.

    pruned = lessen.prune(model, example_inputs, batches, method=UKMP(), to="20%")
    pruned.model                                        # an ordinary, smaller module; `model` is as it was

`lessen compress` does the same for language models on disk, in a recipe with other steps.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.choice import Choice, choose, method_of, view_of
from lessen.core.apply import apply
from lessen.core.edit import Drop, Edit, Keep, Resize
from lessen.core.event import Event, Listener
from lessen.core.modules import EXPERTS, copied, plain_experts
from lessen.core.record import Record
from lessen.core.stock import share, stock_config
from lessen.core.strict import strict
from lessen.core.unit import Unit, View
from lessen.engine.survey import record
from lessen.errors import LessenError, UsageError, one_line
from lessen.methods.budget import Budget, alike_name
from lessen.models import pruned as directories
from lessen.models.skeleton import restocked
from lessen.rounds import in_rounds
from lessen.stats.gradients import Collecting
from lessen.stats.objectives import Objective
from lessen.stats.whole import survey
from lessen.structure.check import TOLERANCE, check, run
from lessen.structure.counts import counts, uneven
from lessen.structure.found import Structure
from lessen.structure.resize import resizes
from lessen.structure.state import untouched
from lessen.structure.uniform import FEW, said
from lessen.structure.wide import fits
from lessen.targets.cost import Goal
from lessen.targets.latency import measured
from lessen.targets.profile import macs
from lessen.worth import NOTHING, caller, missed, settled, sizes, timed, uneven_share

LATENCY_ATTEMPTS = 3
_SHOWN = 12


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
        won = [f"{name}: {_number(self.before[name])} -> {_number(self.after[name])}" for name in self.before]
        cut = [f"  {record.unit}: {record.reason}" for record in self.records[:_SHOWN]]
        more = [f"  and {len(self.records) - _SHOWN} more units"] if len(self.records) > _SHOWN else []
        return "\n".join([", ".join(won), *cut, *more, *self.notes])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


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
    kinds: Sequence[str] | None = None,
    freeze: Sequence[str] = (),
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
        method: how to decide (`UKMP()`): a method, or its name and options as text ("Magnitude(power=1)").
        to: the budget: "20%" goes, "0.8x" stays, "30MB", "12ms", "1.2GMACs", "30% macs"; None: the method's own ratio.
        losses: from model and batch to a loss, or to named losses of several tasks; None: what the batch speaks of.
        units: what may be cut: a structure (of which widths inside blocks are taken) or a list of units (all of them); None: traced.
        kinds: kinds of unit instead of widths inside blocks: "channels", "kv_group", "heads", "head_dim", "width", "experts", "layer",
            "vocab"; of two that cut the same tensors the first one's are taken, and with the method's own ratio the other's after them.
        freeze: names of modules or parameters that stay whole, or patterns of them ("*.attention").
        rounds: spend the budget in so many parts, and collect anew before each; see `lessen.rounds` for what that is worth.
        prove: compare the smaller model with the masked one in float64, and time both; None: the proof where memory allows.
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
    method = method_of(method)
    if rounds < 1:
        raise UsageError("prune", got=f"rounds={rounds}", wanted="1 or more", remedy="leave rounds out: one decision for all")
    if rounds > 1 and not isinstance(method, Budget):
        name = type(method).__name__
        got = f"rounds={rounds} with {name}, which drops whole layers by its own ratio"
        raise UsageError("prune", got=got, wanted="a method that narrows layers, with to=", remedy="leave rounds out")
    started = time.perf_counter()
    with plain_experts(model):
        wanted = _Wanted(method, to, losses, uniform, rounds, prove, on_event)
        found = _in_turns(model, example_inputs, batches, wanted, (units, kinds, freeze))
    notes = _experts_as_before(model, found.model, example_inputs)
    seconds = (time.perf_counter() - started) / max(1, len(found.edits))
    records = tuple(record(edit, method, seconds) for edit in found.edits if not isinstance(edit, Resize))
    return replace(found, records=records, notes=(*found.notes, *notes))


def save(what: Pruned | nn.Module, folder: str | Path, *, edits: Sequence[Edit] = (), made_by: str | None = None) -> None:
    """Write a smaller model as safetensors and JSON; `lessen.load(folder)` has it again, whatever its widths.

    Where a configuration says the widths (`uniform=True`), stock `from_pretrained` reads the directory too.

    Args:
        what: what `prune` made, trained since or not; or a module, with what was done to it.
        folder: where to; it must not exist.
        edits: what made a module smaller; needed where its class does not make its widths.
        made_by: "package.module:factory" that makes the model as it was before; None for classes of transformers.

    Raises:
        UsageError: the directory exists, or nothing says how the model is made.
    """
    if isinstance(what, Pruned):
        about = {"before": dict(what.before), "after": dict(what.after), "notes": list(what.notes)}
        told = {"pruning": {**about, "records": [vars(record) for record in what.records]}}
        directories.save(what.model, what.edits, Path(folder), made_by, told)
        return
    directories.save(what, edits, Path(folder), made_by)


@dataclass(frozen=True)
class _Wanted:
    """Arguments of `prune` of the same names."""

    method: Any
    to: str | None
    losses: Objective | None
    uniform: bool
    rounds: int
    prove: bool | None
    on_event: Listener | None
    settle: bool = True  # look for a configuration of the smaller model


def _in_turns(model: nn.Module, example: Any, batches: Iterable[Any], wanted: _Wanted, among: tuple[Any, Any, Any]) -> Pruned:
    """Prune; then, of kinds that cross those that were pruned, what is left of them."""
    choice = choose(model, example, wanted.method, *among)
    later = tuple(kind for kind in choice.crossed if kind not in {unit.kind for unit in choice.units})
    turns = bool(later) and wanted.to is None and getattr(wanted.method, "of", "channels") == "channels"
    if choice.crossed and not turns:
        names = " and ".join(choice.crossed)
        choice.notes.append(f"Units of kind {names} are left whole: others cut the same tensors; prune again for them.")
    batches = list(batches) if turns else batches
    if not turns:
        return _prune(model, example, batches, wanted, choice)
    # A configuration speaks of the whole way from the model that was given: only the end of it can be looked up.
    part = replace(wanted, settle=False)
    found = _prune(model, example, batches, part, choice)
    try:
        then = _in_turns(found.model, example, batches, part, (None, later, among[2]))
    except UsageError as error:  # nothing is left of them that could be cut
        then = replace(found, edits=(), structure=(), kept={}, notes=(f"Nothing more was cut of {' and '.join(later)}: {error}.",))
    edits, notes = (*found.edits, *then.edits), [*found.notes, *then.notes]
    if wanted.settle and (wanted.uniform or _alike(choice, edits)):
        notes += _settle(model, then.model, edits, example, wanted.uniform, False)
    both = {"edits": edits, "structure": (*found.structure, *then.structure), "kept": {**found.kept, **then.kept}}
    return replace(found, model=then.model, after=then.after, notes=tuple(notes), **both)


def _prune(model: nn.Module, example: Any, batches: Iterable[Any], wanted: _Wanted, choice: Choice) -> Pruned:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    chosen, notes = choice.units, list(choice.notes)
    if wanted.uniform and choice.structure is not None:
        chosen, step, told = said(model, choice.structure, chosen)
        notes += told
        if step > 1 and isinstance(wanted.method, Budget):
            wanted = replace(wanted, method=replace(wanted.method, multiple=lcm(step, wanted.method.multiple)))
        if not chosen:
            raise UsageError("prune", got="uniform=True", wanted="a width that a configuration can say", remedy="; ".join(told))
    method, goal, told = settled(model, caller(model, example), chosen, wanted.method, wanted.to, wanted.uniform)
    proof, doubt = _proof(wanted.prove, choice, model)
    notes += [*told, *doubt]
    cutting = _Cutting(model, example, choice.structure, chosen, proof)
    tasks: tuple[str, ...] = ()
    if wanted.rounds > 1:
        decided, tasks = _rounds(model, example, list(batches), replace(choice, units=chosen), goal, replace(wanted, method=method))
        edits, smaller = cutting(decided)
    else:
        how = method.collecting(wanted.losses) if hasattr(method, "collecting") else Collecting(wanted.losses)
        with untouched(model):
            stats, tasks = survey(model, chosen, method.needs, batches, how, wanted.on_event)
        views = [view_of(unit, tensors) for unit in chosen]
        notes += method.remarks(views, stats) if isinstance(method, Budget) else []
        edits, smaller = _attempts(cutting, method, views, stats, goal)
    if wanted.settle and (wanted.uniform or _alike(choice, edits)):
        notes += _settle(model, smaller, edits, example, wanted.uniform, cutting.renumbered)
    notes += uneven(smaller, edits)
    before, after = sizes(model), sizes(smaller)
    notes += missed(goal, before, after) or ([] if edits else [NOTHING])
    notes += uneven_share(method, chosen, edits) if goal is None else []
    if goal is not None and goal.cost.name == "macs":
        with untouched(smaller):
            before["macs"], after["macs"] = goal.cost.whole, macs(smaller, caller(smaller, example), ()).whole
    if cutting.renumbered:
        notes.append("Token ids are other ones: a token's id is its place in `kept`; encode text accordingly.")
    elif wanted.prove is not False or (goal is not None and goal.cost.name == "milliseconds"):
        notes += timed(model, smaller, example, before, after)
    if wanted.on_event:
        wanted.on_event(Event("prune", len(edits), len(edits), f"{before['parameters']:,.0f} parameters, then {after['parameters']:,.0f}"))
    kept = {edit.unit.name: edit.indices for edit in edits if isinstance(edit, Keep)}
    return Pruned(smaller, tuple(edits), (), tuple(chosen), kept, before, after, tasks, tuple(notes))


def _rounds(
    model: nn.Module, example: Any, batches: list[Any], choice: Choice, goal: Goal | None, wanted: _Wanted
) -> tuple[list[Edit], tuple[str, ...]]:
    """The decision in rounds, and the names of the losses."""
    tasks: list[tuple[str, ...]] = [()]

    def once(part: nn.Module, left: Structure | Sequence[Unit], size: str) -> Pruned:
        # What is left of the choice is the choice: of a structure all kinds, since it holds no others.
        kinds = list(dict.fromkeys(unit.kind for unit in left.units)) if isinstance(left, Structure) else None
        smaller = replace(wanted, to=size, rounds=1, prove=False)
        found = _prune(part, example, batches, smaller, choose(part, example, wanted.method, left, kinds, choice.frozen))
        tasks[0] = found.tasks
        return found

    structure = choice.units if choice.structure is None else replace(choice.structure, units=tuple(choice.units))
    least = wanted.method.rules.least if isinstance(wanted.method, Budget) else 0.0
    return in_rounds(once, model, example, structure, choice.units, goal, wanted.rounds, least), tasks[0]


def _experts_as_before(model: nn.Module, smaller: nn.Module, example: Any) -> list[str]:
    """Give a copy that was made under `plain_experts` the model's own way of computing experts, if that takes its widths."""
    own = dict(model.named_modules())
    changed: list[dict[str, Any]] = []
    for path, module in smaller.named_modules():
        before, config = (getattr(getattr(one, "config", None), "__dict__", {}) for one in (own.get(path), module))
        if config.get(EXPERTS) != before.get(EXPERTS):
            config[EXPERTS] = before.get(EXPERTS)
            changed.append(config)
    if not changed:
        return []
    try:
        with torch.no_grad(), untouched(smaller):
            caller(smaller, example)()
    except IndexError:  # token ids that are gone say nothing about experts
        return []
    except Exception as error:
        for config in changed:
            config[EXPERTS] = "eager"
        tip = "a method with multiple=8 (16 in half precision) leaves widths that it takes"
        return [f"Experts are computed one by one, as the fused kernel does not take these widths ({one_line(error)[:80]}); {tip}."]
    return []


@dataclass(frozen=True)
class _Cutting:
    """How decisions become a smaller model."""

    model: nn.Module
    example: Any
    structure: Structure | None
    units: Sequence[Unit]
    proof: bool

    def __call__(self, edits: Sequence[Edit]) -> tuple[list[Edit], nn.Module]:
        """The edits on whole units, with the numbers that modules keep for themselves, and the model that they make."""
        by_name = {unit.name: unit for unit in self.units}
        edits = [replace(edit, unit=by_name[edit.unit.name]) if isinstance(edit, Keep | Drop) else edit for edit in edits]
        if self.structure is not None:
            edits = resizes(self.model, self.structure, edits)
        edits = [*edits, *counts(self.model, edits)]
        if self.proof and not self.renumbered:
            return edits, check(self.model, edits, self.example)
        smaller = apply(copied(self.model), edits)
        if not self.renumbered:
            _runs(smaller, self.example)
        return edits, smaller

    @property
    def renumbered(self) -> bool:
        """Whether token ids change, so that the example means something else to the smaller model."""
        return any(unit.kind == "vocab" for unit in self.units)


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
        with untouched(smaller):
            now = measured(caller(smaller, cutting.example), next(smaller.parameters()).device, enough=1.0)
        if now <= 1.02 * goal.value:
            break
        wanted = replace(wanted, value=wanted.value * goal.value / now)
        try:
            edits, smaller = attempt(wanted)
        except UsageError:  # the table says that nothing more can be had; the measurement is what is reported
            break
    return edits, smaller


def _alike(choice: Choice, edits: Sequence[Edit]) -> bool:
    """Whether equal places of all blocks are left alike, so that one number may say what they are."""
    left = {edit.unit.name: len(edit.indices) for edit in edits if isinstance(edit, Keep)}
    widths: dict[tuple[str, str, int], set[int]] = {}
    for unit in choice.units if choice.structure is None else choice.structure.units:
        widths.setdefault((alike_name(unit.name), unit.kind, unit.size), set()).add(left.get(unit.name, unit.size))
    return bool(left) and all(len(sizes) == 1 for sizes in widths.values())


def _settle(model: nn.Module, smaller: nn.Module, edits: Sequence[Edit], example: Any, uniform: bool, renumbered: bool) -> list[str]:
    """Give the smaller model a configuration of which stock code makes it, or say that there is none where one was wanted."""
    if not hasattr(model, "config"):
        return []
    kept = "save the model with its edits, and load it with lessen"
    config = stock_config(model, smaller, edits, None if uniform else FEW)
    if config is None:
        return [f"No configuration of {type(model).__name__} says these widths: {kept}."] * uniform
    try:
        made = restocked(smaller, config)
    except LessenError:  # the model's own code cannot be run without values
        made = None
    if made is None or (not renumbered and not _equal(smaller, made, example)):
        return [f"Stock code computes other constants from these widths: {kept}."] * uniform
    share(smaller, made)
    return []


def _equal(smaller: nn.Module, made: nn.Module, example: Any) -> bool:
    """Whether stock code makes a model of the same answers."""
    try:
        found, wanted = (run(one, example, lambda: [], type(made).__name__) for one in (made, smaller))
    except LessenError:  # the model's own code
        return False
    pairs = zip(found, wanted, strict=False)
    close = (a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * float(b.abs().max()) for a, b in pairs)
    return len(found) == len(wanted) and all(close)


def _proof(prove: bool | None, choice: Choice, model: nn.Module) -> tuple[bool, list[str]]:
    """Whether the smaller model is compared with its mask, and a word where it should be and is not."""
    if prove is not None or choice.structure is None:
        return prove is True, []
    missing = fits(model)
    if missing is None:
        return True, []
    return False, [f"Not compared with its mask, since {missing}: prove=True tries all the same."]


def _runs(model: nn.Module, example: Any) -> None:
    """Run the smaller model once."""
    try:
        with torch.no_grad(), untouched(model):
            caller(model, example)()
    except Exception as error:
        remedy = "freeze the module that the message speaks of: lessen.trace(model, example, freeze=[...])"
        raise LessenError(
            type(model).__name__, got=f"after pruning, {one_line(error)}", wanted="a model that runs", remedy=remedy
        ) from error
