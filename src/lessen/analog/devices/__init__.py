"""Memory devices, one family a file; `DEVICES` lists those that a chip file may name as `kind`."""

from lessen.analog.devices.device import Device
from lessen.analog.devices.flash import NorFlash, SonosFlash
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.devices.measured import Measured
from lessen.analog.devices.pcm import PCM, FoundationPCM, HermesPCM, HermesSinglePCM, JoshiPCM
from lessen.analog.devices.rram import CmoRRAM, MiloRRAM, WanCubicRRAM, WanRRAM
from lessen.analog.devices.sram import SramCell

DEVICES: tuple[type[Device], ...] = (
    Device,
    Gaussian,
    PCM,
    HermesPCM,
    HermesSinglePCM,
    JoshiPCM,
    FoundationPCM,
    WanRRAM,
    WanCubicRRAM,
    MiloRRAM,
    CmoRRAM,
    NorFlash,
    SonosFlash,
    SramCell,
    Measured,
)
