"""The large networks of `analog_quality`: EfficientNet-Lite0 on pictures, SmolLM2-135M on text.

SmolLM2 is put on the presets as they are, with one range of each layer's inputs, and with inputs driven over the range of each token
("dynamic DAC"), since activations of language models have outliers that no static range holds. Its perplexity is that of 512 tokens of
held-out text. HPD takes the main directions of every projection's inputs from calibration text and multiplies them digitally. Chips have
as many tiles as the networks take.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import nn

from benchmarks import lite0
from benchmarks.analog_small import CHIPS, told
from benchmarks.harness import Row
from lessen.analog.chip import Chip
from lessen.analog.chipfile import preset
from lessen.analog.mapping import Mapped, map
from lessen.analog.robust.adabs import AdaBS
from lessen.analog.robust.hpd import HPD, second_moments
from lessen.analog.simulation import simulate

DAY, YEAR = 86400.0, 365 * 86400.0
RANK = 16
LENGTH = 256  # tokens of a window


def classifier(name: str, how: Literal["plain", "adabs", "split"] = "plain") -> Row:
    """Lite0: agreement with the digital network, and the signal-to-noise ratio of the logits; `split` leaves depthwise layers digital."""
    model = lite0.classifier()
    seen, judged = lite0.pictures(64, odd=False), lite0.pictures(100, odd=True)
    split = ("*.depthwise",) if how == "split" else ()
    mapped = map(model, _roomy(preset(name)), split=split, calibration=list(seen.split(16)))
    with torch.no_grad():
        digital = model(judged)
    found = simulate(
        mapped,
        lambda net: lite0.agreement(torch.cat([net(x) for x in judged.split(25)]), digital),
        digital=model,
        times=_times(mapped, (YEAR,)),
        chips=CHIPS,
        adapt=AdaBS(list(seen.split(32))) if how == "adabs" else None,
    )
    head = {"network": "lite0", "chip": name, "method": how, "tiles": mapped.physical_tiles}
    return head | {"figure": "agreement"} | told(found, "agreement") | {"sqnr_db": [r["mean"] for r in found.summary("sqnr_db")]}


def _times(mapped: Mapped, later: Sequence[float]) -> tuple[float, ...]:
    return (mapped.chip.device.first, *later)


def _language() -> tuple[nn.Module, list[torch.Tensor], Callable[[nn.Module], dict[str, float]]]:
    """SmolLM2, calibration windows, and perplexity and nats a token on held-out text."""
    from benchmarks.material import material
    from lessen.models import load

    found = material()
    windows = found.windows("calibration", "near")
    text = windows["near"][:2, :LENGTH]

    def perplexity(model: nn.Module) -> dict[str, float]:
        nats = float(model(text, labels=text, use_cache=False).loss)
        return {"quality": math.exp(nats), "nats": nats}

    return load(found.model("shipped")).eval(), [windows["calibration"][:4, :LENGTH]], perplexity


def _roomy(chip: Chip) -> Chip:
    """As many tiles as it takes."""
    return replace(chip, system=replace(chip.system, tiles=None))


def language(name: str, method: str, dynamic: bool = True, seconds: Sequence[float] = (YEAR,)) -> Row:
    """SmolLM2, plain or divided by HPD; embeddings are looked up, not multiplied."""
    model, seen, perplexity = _language()
    chip = _roomy(preset(name))
    if dynamic:
        chip = replace(chip, dac=replace(chip.dac, range="dynamic"))
    head = {"network": "smollm2", "chip": f"{name}, dynamic DAC" if dynamic else name, "method": method}
    split, network = ("model.embed_tokens",), model
    if method == "hpd":
        divide = HPD("inputs", RANK, targets=("*",))
        moments = second_moments(model, divide.chosen(model), seen, _tokens)
        hybrid = divide.divide(model, divide.decide(model, moments))
        network, split = hybrid.model, (*split, *hybrid.split.digital)
        made, products = sum(hybrid.digital_macs.values()), _products(model)
        head |= {"rank": RANK, "digital_macs": round((made + products) / (sum(hybrid.macs.values()) + made + products), 4)}
    mapped = map(network, chip, calibration=seen, run=_tokens, store=torch.float16, split=split)
    found = simulate(mapped, perplexity, digital=model, times=_times(mapped, seconds), chips=CHIPS)
    nats = {"digital": found.digital["nats"], "times": [row["mean"] for row in found.summary("nats")]}
    return head | {"tiles": mapped.physical_tiles, "figure": "perplexity", "nats": nats} | told(found)


def _products(model: nn.Module) -> float:
    """Multiplications of activations in attention, which are digital on any such chip, for an average token of a window."""
    config = cast(Any, model).config
    return config.num_hidden_layers * 2 * config.hidden_size * (LENGTH + 1) / 2


def _tokens(model: nn.Module, batch: torch.Tensor) -> object:
    return model(input_ids=batch, use_cache=False)
