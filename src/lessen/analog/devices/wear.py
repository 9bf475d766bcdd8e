"""What use does to a device: writes that are counted, a life that is estimated, reads that disturb.

    pulses    write, read, write again until the conductance is accepted: with an error of sigma a pulse and a tolerance d around the
              target, a pulse is accepted with p = erf(d / (sqrt(2) sigma)), so 1 / p pulses are needed on average
    lifetime  endurance / (pulses for a value x updates a second): a fixed network is written once, one that learns wears out
    disturb   reading moves a conductance a little; as with retention, by the logarithm:  g (1 + rate log10(1 + reads / onset))

Defaults by family are orders of magnitude from reviews (prior knowledge: Lanza et al. 2022, Science 376, eabj9979, compares endurance of
resistive memories and warns how it is measured); a vendor's data sheet should replace them.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lessen.analog.devices.device import Device
from lessen.analog.devices.flash import NorFlash, SonosFlash
from lessen.analog.devices.pcm import PCM, FoundationPCM, HermesPCM, JoshiPCM
from lessen.analog.devices.rram import CmoRRAM, MiloRRAM, WanCubicRRAM, WanRRAM
from lessen.core.strict import check_fields
from lessen.errors import LessenError, UsageError

_SAMPLES = 2**14  # devices from which the error of a pulse is told, to half a per cent


@dataclass(frozen=True)
class Wear:
    """How a device suffers from use."""

    endurance: float = math.inf
    """Pulses that it survives."""
    disturb: float = 0.0
    """Change of the conductance for each decade of reads, as a share; negative if reading erases."""
    onset: float = 1e6
    """Reads before which nothing is seen."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.endurance > 0 and -1 < self.disturb < 1 and 0 < self.onset < math.inf):
            got = f"endurance={self.endurance:g}, disturb={self.disturb:g}, onset={self.onset:g}"
            raise UsageError("Wear", got=got, wanted="endurance and onset above 0, disturb between -1 and 1")

    def disturbed(self, conductance: Tensor, reads: float) -> Tensor:
        """Conductances after a number of reads."""
        if not 0 <= reads < math.inf:
            raise UsageError("reads of a device", got=f"{reads:g}", wanted="a number of at least 0")
        return conductance * max(1 + self.disturb * math.log10(1 + reads / self.onset), 0.0)

    def lifetime_seconds(self, pulses: float, updates_a_second: float) -> float:
        """Until the first device of average use is worn out.

        >>> round(Wear(endurance=1e6).lifetime_seconds(pulses=10, updates_a_second=1 / 86400) / 86400)  # days
        100000
        """
        if not (pulses > 0 and updates_a_second >= 0):
            got = f"{pulses:g} pulses, {updates_a_second:g} updates a second"
            raise UsageError("lifetime", got=got, wanted="at least one pulse for an update and a rate of at least 0")
        return math.inf if updates_a_second == 0 else self.endurance / (pulses * updates_a_second)


_FLASH, _RRAM, _PCM = Wear(1e5, 0.002), Wear(1e6, 0.005), Wear(1e8, 0.0)
_FAMILIES: tuple[tuple[type[Device], Wear], ...] = (
    *((kind, _PCM) for kind in (PCM, HermesPCM, JoshiPCM, FoundationPCM)),
    *((kind, _RRAM) for kind in (WanRRAM, WanCubicRRAM, MiloRRAM, CmoRRAM)),
    *((kind, _FLASH) for kind in (NorFlash, SonosFlash)),
)


def wear(device: Device) -> Wear:
    """The order of magnitude for a family; devices that are none (exact cells) never wear out.

    >>> wear(NorFlash()).endurance
    100000.0
    """
    return next((found for kind, found in _FAMILIES if isinstance(device, kind)), Wear())


@dataclass(frozen=True)
class Use:
    """What a chip does with its devices, and how they stand it."""

    reads_a_second: float = 0.0
    """Of each device. Reading disturbs it (`Wear.disturbed`); 0: nothing is disturbed."""
    updates_a_second: float = 0.0
    """How often every value is written anew; 0: once."""
    pulses: float = 1.0
    """That writing a value takes, verification included, where no tolerance is stated."""
    endurance: float | None = None
    """Pulses that a device survives; None: the order of magnitude of its family (`wear`)."""
    disturb: float | None = None
    """Change of the conductance for each decade of reads, as a share; None: that of the family."""
    onset: float | None = None
    """Reads before which nothing is seen; None: that of the family."""
    tolerance_us: float | None = None
    """Error in microsiemens with which write-verify accepts a value; pulses follow from it (`expected_pulses`). None: `pulses` says.
    The energy and time of a write are those of `System`, however many pulses it takes."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tolerance_us is not None and not 0 < self.tolerance_us < math.inf:
            raise UsageError("Use", got=f"tolerance_us={self.tolerance_us:g}", wanted="an error above 0, or none")
        if not (0 <= self.reads_a_second < math.inf and 0 <= self.updates_a_second < math.inf and 1 <= self.pulses < math.inf):
            got = f"reads_a_second={self.reads_a_second:g}, updates_a_second={self.updates_a_second:g}, pulses={self.pulses:g}"
            raise UsageError("Use", got=got, wanted="rates of at least 0 and at least one pulse")
        self.of(Device())

    def of(self, device: Device) -> Wear:
        """How a device suffers: as its family, but for what is stated."""
        stated = {key: value for key in ("endurance", "disturb", "onset") if (value := getattr(self, key)) is not None}
        return replace(wear(device), **stated)

    def read(self, conductance: Tensor, device: Device, seconds: float) -> Tensor:
        """Conductances after the reads of some time."""
        suffers = self.of(device)
        return suffers.disturbed(conductance, self.reads_a_second * seconds) if self.reads_a_second and suffers.disturb else conductance

    def pulses_of(self, device: Device) -> float:
        """That writing a value in the middle of a device's range takes.

        With a tolerance, `Device.program` is taken for one pulse and its error for normal. Most fits describe cells that were verified
        already: what follows is then how often such a procedure has to be begun again.

        >>> Use(pulses=5).pulses_of(NorFlash()), Use(tolerance_us=1.0).pulses_of(Device())
        (5.0, 1.0)
        """
        if self.tolerance_us is None:
            return float(self.pulses)
        target = torch.full((_SAMPLES,), (device.g_min + device.g_max) / 2)
        errors = device.program(target, torch.Generator().manual_seed(0)).conductance - target
        return float(expected_pulses(errors.double().square().mean().sqrt(), self.tolerance_us))

    def life_seconds(self, device: Device) -> float:
        """Until its updates have worn a device out.

        >>> Use(updates_a_second=1.0).life_seconds(NorFlash())
        100000.0
        """
        return self.of(device).lifetime_seconds(self.pulses_of(device), self.updates_a_second)


def expected_pulses(sigma: Tensor, tolerance: float) -> Tensor:
    """Pulses that writing within a tolerance takes on average, both in microsiemens.

    >>> expected_pulses(torch.tensor([1.0]), 1.0)
    tensor([1.4648])
    """
    if not tolerance > 0:
        raise UsageError("tolerance", got=f"{tolerance:g} uS", wanted="a number above 0")
    return 1 / torch.erf(tolerance / (math.sqrt(2) * sigma))


def verified(device: Device, target: Tensor, tolerance: float, generator: torch.Generator, *, limit: int = 1000) -> tuple[Tensor, Tensor]:
    """Write and verify until every conductance is accepted.

    Args:
        device: whose `program` is one pulse; most fits describe cells that were verified already, for which one call is enough.
        target: any shape.
        tolerance: how far from the target is accepted, in microsiemens.
        generator: for all pulses.
        limit: pulses after which it is given up.

    Returns:
        Conductances, and pulses that each took.

    Raises:
        LessenError: some were never accepted.
    """
    if not tolerance > 0:
        raise UsageError("tolerance", got=f"{tolerance:g} uS", wanted="a number above 0")
    wanted = target.flatten()
    found, pulses = wanted.clone(), torch.zeros(wanted.shape, dtype=torch.int64)
    left = torch.arange(wanted.numel())
    for _ in range(limit):
        if not left.numel():
            return found.view_as(target), pulses.view_as(target)
        written = device.program(wanted[left], generator).conductance
        pulses[left] += 1
        accepted = (written - wanted[left]).abs() <= tolerance
        found[left[accepted]] = written[accepted]
        left = left[~accepted]
    if left.numel():
        got = f"{left.numel()} of {wanted.numel()} devices outside after {limit} pulses"
        raise LessenError("write and verify", got=got, wanted=f"all within {tolerance:g} uS", remedy="a wider tolerance")
    return found.view_as(target), pulses.view_as(target)
