"""What methods need, asked before a network is simulated as it is: hours may lie between a wrong request and the method that finds it out.

A check takes a *trial*, a `Case` of its own (`trial_of`) that it may change as its method would, so that the next check finds the layers
and the chip that the next method will find: divided layers hold zeros, nothing is decomposed, trained or programmed.
"""

from dataclasses import replace
from typing import Any

import torch

from lessen.analog.mapping import Split
from lessen.analog.periphery import Dac
from lessen.analog.robust.bwma import BWMA
from lessen.analog.robust.case import Case
from lessen.analog.robust.est import EST
from lessen.analog.robust.halora import HaLoRA
from lessen.analog.robust.hpd import HPD
from lessen.analog.robust.hwa import HardwareAware
from lessen.analog.robust.nora import NORA
from lessen.analog.robust.remap import Remap
from lessen.analog.robust.romer import ROMER, check_routers, listen_to
from lessen.analog.training.noise import Injected, Programmed
from lessen.analog.training.rehearsal import check as check_rehearsal
from lessen.core.edit import Factor
from lessen.core.modules import evaluating
from lessen.errors import LessenError, UsageError, one_line
from lessen.recover.losses import Logits
from lessen.recover.objective import call, logits_of
from lessen.recover.order import collate


def trial_of(case: Case) -> Case:
    """The same case, with notes and steps of its own."""
    return replace(case, notes=[], mapping=[], looking=[], on_event=None)


def hpd_layers(options: HPD, case: Case) -> tuple[list[str], list[str]]:
    """Layers that HPD was asked to divide, and those of them where that saves multiplications.

    Raises:
        UsageError: there is none to divide.
    """
    asked = options.chosen(case.model)
    names = [name for name in asked if options.saves(case.model.get_submodule(name).get_parameter("weight"))]
    if not names:
        got = f"a rank with which {asked[0]} multiplies as much digitally as it does now"
        raise UsageError("HPD", got=got, wanted="a lower one, or larger layers", remedy="other targets, or HPD(form=svd)")
    return asked, names


def hpd(options: HPD, trial: Case) -> None:
    """Layers to divide."""
    edits = []
    for name in hpd_layers(options, trial)[1]:
        weight = trial.model.get_submodule(name).get_parameter("weight")
        edits.append(Factor(f"{name}.weight", weight.new_zeros(len(weight), 1), weight.new_zeros(1, weight.shape[1])))
    hybrid = options.divide(trial.model, edits)
    trial.divided(hybrid.model, hybrid.split)


def nora(options: NORA, trial: Case) -> None:
    """An output that can be compared."""
    options.check(trial.model, trial.network.calibration, call)


def remap(options: Remap, trial: Case) -> None:
    """Wires that are solved when a chip is programmed."""
    if trial.chip.faults:
        options.check(trial.chip)


def romer(options: ROMER, trial: Case) -> None:
    """Digital routers that calibration reaches, with experts that can be replaced."""
    routers = list(check_routers(trial.model))
    for name in routers:
        if trial.split.places(name) and not trial.split.keeps(name):
            raise UsageError(f"router {name}", got="a router on tiles", wanted="a digital one", remedy=f"no +{name} in the split")
    options.check(trial.model, routers)
    listen_to(trial.model, routers, trial.network.calibration, call)


def batch_norms(_: Any, trial: Case) -> None:
    """Batch norms with statistics."""
    norms = [m for m in trial.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not any(m.track_running_stats and m.running_mean is not None for m in norms):
        raise UsageError("AdaBS", got="no batch norm with running statistics", wanted="one at least", remedy="--method Compensation")


def split(options: Any, trial: Case) -> None:
    """A time that the device describes."""
    if options.seconds is not None:
        trial.chip.device.check_time(options.seconds)


def rehearsed(options: HardwareAware | EST | BWMA, trial: Case) -> None:
    """A chip and data to train on."""
    if isinstance(options, BWMA):
        trial.chip = replace(trial.chip, dac=Dac(options.bits + 1, quantile=trial.chip.dac.quantile))
        check_rehearsal(trial.chip, Injected(options.sigma))
    elif isinstance(options, HardwareAware):
        check_rehearsal(trial.chip, options.noise)
    _times(options.times if isinstance(options, EST) else getattr(options, "noise", None), trial)
    _data(trial)


def halora(options: HaLoRA, trial: Case) -> None:
    """Layers, a chip, and data to train on."""
    noise = options.noise or Programmed()
    check_rehearsal(trial.chip, noise)
    _times(noise, trial)
    _data(trial)
    hybrid = options.attach(trial.model)
    trial.divided(hybrid.model, Split())
    trial.split = trial.split.also(hybrid.split.digital)


def _times(noise: Any, trial: Case) -> None:
    if isinstance(noise, Programmed) and noise.first is not None:
        trial.chip.device.check_time(noise.first)


def _data(trial: Case) -> None:
    """Data that the digital model takes, and an output that the losses take."""
    data, _ = trial.data()
    losses = trial.losses()
    trial.training.options(losses, trial.seed)
    model = trial.network.model
    try:
        with torch.no_grad(), evaluating(model):
            output = call(model, collate(data, [0]))
    except LessenError:
        raise
    except Exception as error:
        got = f"a sample that the model cannot read: {one_line(error)}"
        raise UsageError("training", got=got, wanted="batches like those that judge it", remedy="--train package.module:name") from error
    if any(isinstance(loss, Logits) for loss in losses):
        logits_of(output)
