"""Robustness methods by name, and what each of them does to a network on its way to a chip.

A method takes a `Case` and changes it, so that methods follow one another: ranges moved, then projections divided, then trained.
`METHODS` is the list; a method is its options (a frozen dataclass), a function, and one line here.

`GradientNorm` is a loss, for the training of networks of one's own, and is used from Python.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_origin

from torch import nn

from lessen.analog.cost.count import LayerShape
from lessen.analog.cost.model import cost
from lessen.analog.mapping import Mapped, Split
from lessen.analog.robust import needs
from lessen.analog.robust.adabs import AdaBS
from lessen.analog.robust.bwma import BWMA
from lessen.analog.robust.case import Case
from lessen.analog.robust.est import EST
from lessen.analog.robust.halora import HaLoRA
from lessen.analog.robust.hpd import HPD, second_moments
from lessen.analog.robust.hwa import HardwareAware
from lessen.analog.robust.nora import NORA
from lessen.analog.robust.percentile import RangeSearch
from lessen.analog.robust.remap import Remap
from lessen.analog.robust.romer import ROMER, check_routers
from lessen.analog.splitting import find_split
from lessen.analog.tiles.branches import linears
from lessen.core.apply import apply
from lessen.core.strict import check_fields
from lessen.core.tables import Place, construct, hints
from lessen.errors import LessenError, UsageError, nearest
from lessen.recipe import call as spelt
from lessen.recover.objective import call

_FAR = 2**20  # seeds of chips on which a choice is made lie this far from those that are reported


@dataclass(frozen=True)
class Compensation:
    """Digital correction of drift from a reading of known inputs."""

    by: Literal["tile", "column"] = "column"
    """One factor for each tile, or for each of its columns."""


@dataclass(frozen=True)
class AutoSplit:
    """Keep digital what has to be, for a stated loss of quality, and save the most energy with the rest."""

    max_loss: float = 0.1
    """How much worse than digital the mean over the chips may be, in units of the number that counts; where that is the
    signal-to-noise ratio of the outputs: their error, root mean square, in parts of them."""
    chips: int = 3
    """Instances in the search, none of them among those of the record; as many others prove what it found."""
    seconds: float | None = None
    """Time since programming at which they are looked at; none: the first that the device describes."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.max_loss >= 0 or self.chips < 1:
            raise UsageError("AutoSplit", got=f"max_loss={self.max_loss:g}, chips={self.chips}", wanted="at least 0, and at least 1")


@dataclass(frozen=True)
class BatchNorms:
    """AdaBS: statistics of batch norms are estimated anew at every look, on the calibration batches."""


def _nora(options: NORA, case: Case) -> None:
    found = options.decide(case.model, case.chip, case.network.calibration, call)
    if found.edits:
        apply(case.own(), found.edits)
    left = "; ".join(f"{name} not: {reason}" for name, reason in found.left.items())
    case.notes.append(f"NORA rescaled {len(found.strengths)} norms" + (f"; {left}." if left else "."))


def _hpd(options: HPD, case: Case) -> None:
    asked, names = needs.hpd_layers(options, case)
    options = replace(options, targets=tuple(names))
    moments = second_moments(case.model, names, case.network.calibration, call) if options.form == "inputs" else None
    hybrid = options.divide(case.model, options.decide(case.model, moments))
    digital, macs = (
        sum(hybrid.digital_macs.values()),
        sum(case.model.get_submodule(n).get_parameter("weight").numel() for n in linears(case.model)),
    )
    case.divided(hybrid.model, hybrid.split)
    left = [name for name in asked if name not in names]
    whole = f" Left whole, since they are too small to gain: {', '.join(left)}." if left else ""
    case.notes.append(f"HPD divided {', '.join(names)}: {digital / macs:.1%} of the multiplications of linear layers are digital.{whole}")


def _halora(options: HaLoRA, case: Case) -> None:
    hybrid = options.attach(case.own())
    data, held = case.data()
    settings = {
        f: getattr(case.training.options(case.losses(), case.seed), f)
        for f in ("losses", "steps", "minutes", "batch", "learning_rate", "seed")
    }
    case.divided(hybrid.model, Split())
    inputs = [batch[0] if isinstance(batch, tuple | list) else batch for batch in case.network.calibration]
    found = options.train(hybrid, case.chip, data, held, calibration=inputs, split=case.split, **settings)
    case.split = case.split.also(hybrid.split.digital)
    case.notes.append(f"HaLoRA trained branches of rank {options.rank} beside {len(hybrid.macs)} layers for {found.steps} steps.")


def _rehearsed(options: HardwareAware | EST | BWMA, case: Case) -> None:
    rehearsal = options.rehearse(case.own(), case.chip, split=case.split, calibration=case.network.calibration, run=call)
    case.chip = rehearsal.chip
    case.trained(rehearsal, type(options).__name__)


def _ranges(options: RangeSearch, case: Case) -> None:
    case.mapping.append(lambda mapped: options.calibrate(mapped, case.network.calibration, call))


def _remap(options: Remap, case: Case) -> None:
    if not case.chip.faults:
        case.notes.append(f"Remap does nothing: chip {case.chip.name} has no faults.")
    case.looking.insert(0, options)


def _batch_norms(_: BatchNorms, case: Case) -> None:
    case.looking.append(AdaBS(case.network.calibration, call))


def _romer(options: ROMER, case: Case) -> None:
    check_routers(case.model)
    case.looking.append(options.at_looks(case.network.calibration))


def _compensation(options: Compensation, case: Case) -> None:
    case.chip = replace(case.chip, compensation=options.by)


def _split(options: AutoSplit, case: Case) -> None:
    mapped, worth = case.mapped(), None
    try:
        worth = energies(case, mapped)
    except LessenError as error:
        case.notes.append(f"Layers are worth their multiplications, since energy is not known: {error}.")
    judge, better = case.network.choice(), case.network.metric.better
    if case.network.chooser is None:
        case.notes.append("AutoSplit chose by what judges, on the same data: its figures are no longer of unseen data (--choose).")
    if case.network.metric.name == "sqnr_db":  # of the digital model itself it has no end: what is lost is told by the error
        judge, better = partial(_error, judge), "lower"
        case.notes.append("Losses of AutoSplit are errors of the outputs in parts of them, root mean square (--evaluate for another).")
    unseen = range(_FAR + case.seed, _FAR + case.seed + options.chips)
    found = find_split(
        mapped, judge, max_loss=options.max_loss, better=better, worth=worth, chips=unseen, seconds=options.seconds, on_event=case.on_event
    )
    chosen = [name for name in found.split.digital if name not in mapped.digital]
    case.split = case.split.also(chosen)
    if case.rehearsal is not None:
        case.rehearsal.split = case.split
    kept = ", ".join(chosen) or "nothing more"
    proof = sum(found.proof) / len(found.proof)
    case.notes.append(
        f"AutoSplit keeps {kept} digital, {found.digital_share:.1%} of what the layers spend on tiles: loss {found.loss:.4g} (all on tiles "
        f"{found.all_analog:.4g}), {proof:.4g} on {len(found.proof)} chips that it had not seen."
    )


def _error(decibels: Callable[[nn.Module], float], model: nn.Module) -> float:
    """Error of the outputs, in parts of them, from their signal-to-noise ratio."""
    return 10 ** (-decibels(model) / 20)


def energies(case: Case, mapped: Mapped) -> dict[str, float]:
    """What each layer on tiles spends, in picojoules."""
    from lessen.analog.cost.count import layers

    batch = case.network.calibration[0]
    shapes: list[LayerShape] = layers(case.model, lambda: call(case.model, batch))
    spent = {layer.name: layer.energy.total for layer in cost(shapes, mapped).layers if layer.where == "tiles"}
    return {name: spent.get(name, 0.0) for name in mapped.layers}


@dataclass(frozen=True)
class Named:
    """A method that the command line knows.

    Attributes:
        options: its dataclass.
        act: what it does to a case.
        summary: in a few words.
        trains: whether it needs data to train on.
        needs: refuses what the method would refuse, before anything is simulated (`analog.robust.needs`); None: it takes everything.
    """

    options: type
    act: Callable[[Any, Case], None]
    summary: str
    trains: bool = False
    needs: Callable[[Any, Case], None] | None = None

    @property
    def name(self) -> str:
        """As it is called."""
        return self.options.__name__

    def check(self, options: Any, trial: Case) -> None:
        """Refuse what the method would refuse; `trial` becomes what the next method finds."""
        if self.needs is not None:
            self.needs(options, trial)


METHODS: tuple[Named, ...] = (
    Named(RangeSearch, _ranges, "ranges of converters searched on calibration data"),
    Named(Compensation, _compensation, "digital correction of drift"),
    Named(NORA, _nora, "range moved from activations to weights behind norms", needs=needs.nora),
    Named(HPD, _hpd, "sensitive projections divided between tiles and digital", needs=needs.hpd),
    Named(AutoSplit, _split, "the few layers that have to be digital for a stated loss", needs=needs.split),
    Named(Remap, _remap, "weights put where stuck cells harm least", needs=needs.remap),
    Named(BatchNorms, _batch_norms, "AdaBS: batch norms learn again what the drifted chip puts out", needs=needs.batch_norms),
    Named(ROMER, _romer, "routers of experts corrected for what each chip, at each look, makes of their inputs", needs=needs.romer),
    Named(HardwareAware, _rehearsed, "training with noise, clipping and learned ranges", trains=True, needs=needs.rehearsed),
    Named(EST, _rehearsed, "training through the chip itself with the clean gradient", trains=True, needs=needs.rehearsed),
    Named(
        BWMA,
        _rehearsed,
        "binary weights, activations of a few bits (details follow the paper's abstract)",
        trains=True,
        needs=needs.rehearsed,
    ),
    Named(HaLoRA, _halora, "trained low-rank branches beside noisy layers", trains=True, needs=needs.halora),
)


def parse(text: str, where: str = "--method") -> tuple[Named, Any]:
    """A method and its options, from `HPD(rank=8)`.

    >>> parse("HPD(rank=8)")[1].rank
    8
    >>> parse("HDP")
    Traceback (most recent call last):
    lessen.errors.UsageError: --method: got the method HDP, wanted one that exists; did you mean HPD?
    """
    given = spelt(text, where)
    name = str(given.pop("name"))
    known = {method.name.lower(): method for method in METHODS}
    if name.lower() not in known:
        raise UsageError(where, got=f"the method {name}", wanted="one that exists", remedy=nearest(name, [m.name for m in METHODS]))
    method = known[name.lower()]
    lists = {key for key, hint in hints(method.options).items() if get_origin(hint) is tuple}
    one = {key: [str(v) for v in (value if isinstance(value, list) else [value])] for key, value in given.items() if key in lists}
    return method, construct(method.options, given | one, Place(where), _part)


def named(options: Any) -> Named:
    """The method that options belong to."""
    for method in METHODS:
        if type(options) is method.options:
            return method
    raise UsageError(
        "method", got=repr(options), wanted="options of a method", remedy=nearest(type(options).__name__, [m.name for m in METHODS])
    )


def _part(value: Any, want: Any, place: Place) -> Any:
    """Options within options: noise of the weights, times."""
    given = spelt(value, str(place)) if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    if not isinstance(want, type) or given.pop("name", want.__name__) != want.__name__:
        raise UsageError(str(place), got=repr(value), wanted=getattr(want, "__name__", "a part that exists"))
    return construct(want, given, place, _part)
