"""The small networks of `analog_quality`: plain mapping, methods that train, methods that do not, and what a step of training costs.

The recipe of training was chosen on 2000 of the 60,000 training pictures (55,000 to 57,000, left out of training meanwhile) and chips of
other seeds (500 to 504), never on test pictures: batches of 128, AdamW at a peak rate of 1e-3 that falls to a hundredth of it, and errors
that the chip itself makes at times drawn evenly on a logarithmic scale up to a year, which is the age at which it is judged last. 500
steps left the CNN 37 % of what plain mapping loses there and the transformer 48 %, which is therefore given 1000. Before that, 156 steps at
half the rate had been tried, with errors of a day at most or Gaussian ones of 3 %: 84 to 101 % were left after hardware-aware training.
All three ways clip rows at 2.5 standard deviations, the default of hardware-aware training; for the other two that was not tried on those
pictures.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks import analog_nets
from benchmarks.analog_nets import Pairs
from benchmarks.harness import Row, Session
from lessen.analog.chip import Chip
from lessen.analog.chipfile import preset
from lessen.analog.devices.device import Device
from lessen.analog.devices.faults import Faults
from lessen.analog.mapping import Mapped, map
from lessen.analog.robust.adabs import AdaBS
from lessen.analog.robust.applied import parse
from lessen.analog.robust.case import Case, Training
from lessen.analog.robust.est import EST
from lessen.analog.robust.hwa import HardwareAware
from lessen.analog.run.subject import Data, subject
from lessen.analog.simulation import Simulation, simulate
from lessen.analog.training.noise import Injected, Programmed
from lessen.analog.training.rehearsal import Rehearsal
from lessen.recover.loop import recover
from lessen.recover.losses import NextToken

CHIPS = 10
YEAR = 365 * 86400.0
STEPS = {"cnn": 500, "vit": 1000}
BATCH = 128
TESTED = 2000  # pictures
NOISE = Programmed(last=YEAR)
TRAININGS: dict[str, HardwareAware | EST] = {
    "hwa": HardwareAware(NOISE),
    "est": EST(NOISE, clip=2.5),
    "gaussian": HardwareAware(Injected()),
    "noisy": HardwareAware(NOISE, clip=2.5, ranges="calibrated"),
}


def told(found: Simulation, name: str = "quality") -> Row:
    """Digital figure, chips, and a row for each time."""
    times = [{key: round(value, 4) for key, value in row.items()} for row in found.summary(name)]
    return {"digital": round(found.digital[name], 4), "chips": int(times[0]["chips"]), "times": times}


def exact(chip: Chip) -> bool:
    """Whether all instances of a chip are one, at all times."""
    return type(chip.device) is Device and not chip.faults and not chip.adc.noise


def ages(chip: Chip) -> bool:
    """Whether a chip is another one later."""
    kind = type(chip.device)
    return getattr(kind, "ages", kind.drifted is not Device.drifted) or kind.read_sigma is not Device.read_sigma


def _data(session: Session) -> tuple[Pairs, Pairs, Pairs]:
    """What is trained on, what chooses, and what judges."""
    if not session.smoke:
        everything, test = analog_nets.pairs("train"), analog_nets.pairs("test")
        return everything, Pairs(everything.images[-1000:], everything.labels[-1000:]), test.first(TESTED)
    generator = torch.Generator().manual_seed(0)
    made = [Pairs(torch.randn(n, 1, 28, 28, generator=generator), torch.arange(n) % 10) for n in (256, 20, 20)]
    return made[0], made[1], made[2]


def _net(session: Session, net: str) -> nn.Module:
    return analog_nets.fresh(net).eval() if session.smoke else analog_nets.trained(net)  # pyright: ignore[reportArgumentType]


def _judged(session: Session, mapped: Mapped, digital: nn.Module, test: Pairs, adapt: Callable[[Mapped], Any] | None = None) -> Row:
    options: dict[str, Any] = {"chips": 2 if session.smoke else 1 if exact(mapped.chip) else CHIPS}
    if session.smoke or not ages(mapped.chip):
        options["times"] = (mapped.chip.device.first,)
    found = simulate(mapped, lambda model: analog_nets.accuracy(model, test), digital=digital, adapt=adapt, **options)
    return {"tiles": mapped.physical_tiles, "figure": "accuracy", "pictures": len(test)} | told(found)


def plain(session: Session, net: str, name: str, adabs: bool = False) -> Row:
    """Mapped as it is; with AdaBS, batch norms learn again at every look."""
    train, _, test = _data(session)
    model = _net(session, net)
    mapped = map(model, preset(name), calibration=train.first(500).batches())
    adapt = AdaBS(train.first(2000).batches()) if adabs else None
    head = {"network": net, "chip": name, "method": "adabs" if adabs else "plain"}
    return head | _judged(session, mapped, model, test, adapt)


def hardened(session: Session, net: str, name: str, how: str, seed: int) -> Row:
    """Train for a chip, then judge on chips that training has not seen (seeds of training are drawn elsewhere)."""
    train, _, test = _data(session)
    told_as = how
    model, chip, seen = _net(session, net), preset(name), train.first(500).batches()
    settings: dict[str, Any] = {"losses": (NextToken(),), "batch": BATCH, "learning_rate": 1e-3, "final": 0.01, "betas": (0.9, 0.99)}
    settings |= {"precision": "float32", "seed": seed, "steps": 2 if session.smoke else STEPS[net]}
    if how == "est, same time":
        how, settings["steps"] = "est", settings["steps"] * 4 // 3
    started = time.process_time()
    if how == "longer":  # as many steps without a chip: what training by itself is worth
        recover(model, None, train, **settings)
        mapped = map(model.eval(), chip, calibration=seen)
    else:
        rehearsal = TRAININGS[how].rehearse(model, chip, calibration=seen)
        rehearsal.train(train, **settings)
        mapped = rehearsal.mapped(seen)
    head = {"network": net, "chip": name, "method": told_as, "seed": seed, "steps": settings["steps"]}
    head |= {"train_seconds": round(time.process_time() - started, 1)}
    return head | _judged(session, mapped, model.eval(), test)


def _chip(name: str) -> Chip:
    """A preset, or one with cells that are stuck."""
    return replace(preset("pcm-hermes"), faults=Faults(low=0.01, high=0.01), name=name) if name == "faulty" else preset(name)


def treated(session: Session, net: str, name: str, method: str) -> Row:
    """One of the methods of `lessen analog robust`, by its name and options; what it chooses, it chooses on training pictures."""
    train, chosen, test = _data(session)
    model = _net(session, net)
    given = train.first(500).batches()
    training = Training(
        [(x, y) for x, y in zip(train.images.split(500), train.labels.split(500), strict=True)], steps=STEPS[net], batch=BATCH
    )
    judge = partial(analog_nets.accuracy, data=chosen)
    network = subject(model, Data(batches=given, evaluate=judge, choose=judge))
    case = Case(network, model, _chip(name), training=training)
    started = time.process_time()
    if method:
        act, options = parse(method)
        act.act(options, case)
    mapped = case.mapped()
    head = {
        "network": net,
        "chip": name,
        "method": method or "plain",
        "seconds": round(time.process_time() - started, 1),
        "notes": case.notes,
    }
    return head | _judged(session, mapped, model, test, case.adapt)


def steps(session: Session, net: str, name: str) -> Row:
    """Processor time and memory of one training step each way, interleaved, so that all meet the same neighbours."""
    train, _, _ = _data(session)
    x, y = train.images[:BATCH], train.labels[:BATCH]
    models = {"digital": _net(session, net)}
    for how, training in TRAININGS.items():
        rehearsal: Rehearsal = training.rehearse(_net(session, net), preset(name), calibration=[x])
        models[how] = rehearsal.model
    taken: dict[str, list[float]] = {how: [] for how in models}
    for _ in range(3 if session.smoke else 25):
        for how, model in models.items():
            started = time.process_time()
            _step(model, x, y)
            taken[how].append(time.process_time() - started)
    ways = {
        how: {"ms": round(1e3 * statistics.median(t[1:]), 1), "peak_mb": round(_peak(models[how], x, y), 2)} for how, t in taken.items()
    }
    return {"network": net, "chip": name, "batch": len(x), "steps": ways}


def _step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    model.train().requires_grad_(True)
    F.cross_entropy(model(x), y).backward()


def _peak(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Megabytes of tensors that one forward and backward holds at most, weights and gradients that are there before left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _step(model, x, y)
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20
