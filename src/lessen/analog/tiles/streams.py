"""Random numbers that are found again: every draw has an address, and the same address gives the same draw.

A chip is programmed once and looked at many times. Keeping every device's programming error and drift exponent would take four to six
numbers for each weight; keeping the seed takes none. The draws of a layer come from a generator that is made from what they are for
(seed, layer, purpose), so they are the same at every time at which the layer is looked at, in any order, on any machine.
"""

import hashlib

import torch


def stream(seed: int, *address: str | int | float, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for what stands at an address; what makes a chip is drawn on the CPU, so that it is the same wherever it is computed.

    >>> a, b = (torch.rand(3, generator=stream(0, "layers.0", "programming")) for _ in range(2))
    >>> bool((a == b).all())
    True
    """
    digest = hashlib.blake2b(repr((seed, *address)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Standard normal numbers of the shape and type of `like`, where it is; drawn where the generator is (None: torch's own)."""
    where = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=where).to(like.device)
