"""What networks lose on chips over time, and what methods win back: mean and spread over ten chips.

Networks and figures: a small CNN and a small vision transformer on Fashion-MNIST (accuracy on test pictures, in percent),
EfficientNet-Lite0 on pictures (agreement of the first class with the digital network, in percent), SmolLM2-135M on text (perplexity).
Each preset is plain mapping: weights programmed, converters calibrated on calibration data, drift compensated as the preset says.

Methods, on presets where plain mapping loses:

    hwa      hardware-aware training (noise injected, rows clipped, ranges learned): 20,000 training pictures from the trained network on
    est      the same pictures through the chip itself, gradients of the clean layer
    noisy    the same pictures through the chip by automatic differentiation, what EST saves memory and time against
    adabs    statistics of batch norms learned again on the drifted chip
    split    layers that stay digital, found for SmolLM2 by sensitivity, at most 10 % of multiplications

Calibration and training see training data alone; chips of the search for a split are not those that judge it. Chips differ by their seed;
every row says how many.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks import analog_nets, lite0
from benchmarks.analog_nets import Pairs
from benchmarks.harness import Goal, Row, Session, at_least, at_most
from lessen.analog.chip import Chip
from lessen.analog.chipfile import preset
from lessen.analog.mapping import Mapped, Split, map
from lessen.analog.robust.adabs import AdaBS
from lessen.analog.robust.est import EST
from lessen.analog.robust.hwa import HardwareAware
from lessen.analog.simulation import Simulation, simulate
from lessen.analog.training.noise import Programmed
from lessen.recover.losses import NextToken

CHIPS = 10
DAY, MONTH, YEAR = 86400.0, 30 * 86400.0, 365 * 86400.0
SMALL = ("cnn", "vit")
PRESETS = (
    "pcm-hermes", "pcm-nandakumar", "pcm-foundation", "pcm-joshi", "rram-neurram", "rram-milo", "rram-cmo", "nor-wtm2101", "sonos-40nm",
    "sram-charge",
)  # fmt: skip
TRAINED_FOR = ("pcm-hermes",)  # the preset that costs the small networks most
PICTURES = 20000  # that training sees
LARGE = ("pcm-hermes", "rram-neurram", "nor-wtm2101")
SEEDS = (0, 1, 2)
MOST_DIGITAL = 0.10


def rows(session: Session) -> Iterator[Row | None]:
    torch.set_num_threads(session.threads)
    for net in SMALL[:1] if session.smoke else SMALL:
        for name in PRESETS[:1] if session.smoke else PRESETS:
            yield session.row(f"{net} {name} plain", lambda n=net, c=name: _small(session, n, c))
    for net in SMALL[:1] if session.smoke else SMALL:
        for name in TRAINED_FOR[:1] if session.smoke else TRAINED_FOR:
            for seed in SEEDS[:1] if session.smoke else SEEDS:
                for how in ("hwa", "est", "noisy"):
                    yield session.row(f"{net} {name} {how} {seed}", lambda n=net, c=name, h=how, s=seed: _hardened(session, n, c, h, s))
    yield session.row("cnn pcm-hermes adabs", lambda: _small(session, "cnn", "pcm-hermes", adabs=True))
    if session.smoke:
        return
    for name in LARGE:
        yield session.row(f"lite0 {name} plain", lambda c=name: _lite0(c))
    yield session.row("lite0 pcm-hermes adabs", lambda: _lite0("pcm-hermes", adabs=True))
    for name in LARGE:
        yield session.row(f"smollm2 {name} plain", lambda c=name: _smollm(c))
    yield session.row("smollm2 pcm-hermes split", lambda: _smollm_split("pcm-hermes"))


def _told(found: Simulation, name: str = "quality") -> Row:
    times = [{key: round(value, 4) for key, value in row.items()} for row in found.summary(name)]
    return {"digital": round(found.digital[name], 4), "chips": int(times[0]["chips"]), "times": times}


def _data(session: Session) -> tuple[Pairs, Pairs]:
    """What is trained on, and what judges."""
    if not session.smoke:
        return analog_nets.pairs("train"), analog_nets.pairs("test").first(2000)
    generator = torch.Generator().manual_seed(0)
    made = [Pairs(torch.randn(n, 1, 28, 28, generator=generator), torch.arange(n) % 10) for n in (64, 20)]
    return made[0], made[1]


def _net(session: Session, net: str) -> nn.Module:
    return analog_nets.fresh(net).eval() if session.smoke else analog_nets.trained(net)  # pyright: ignore[reportArgumentType]


def _judged(session: Session, mapped: Mapped, digital: nn.Module, test: Pairs, adapt: Callable[[Mapped], Any] | None = None) -> Row:
    options: dict[str, Any] = {"times": (mapped.chip.device.first,), "chips": 2} if session.smoke else {"chips": CHIPS}
    found = simulate(mapped, lambda model: analog_nets.accuracy(model, test), digital=digital, adapt=adapt, **options)
    return {"figure": "accuracy"} | _told(found)


def _small(session: Session, net: str, name: str, adabs: bool = False) -> Row:
    train, test = _data(session)
    model, seen = _net(session, net), train.first(500)
    mapped = map(model, preset(name), calibration=seen.batches())
    adapt = AdaBS(train.first(2000).batches()) if adabs else None
    method = "adabs" if adabs else "plain"
    return {"network": net, "chip": name, "method": method, "tiles": mapped.physical_tiles} | _judged(session, mapped, model, test, adapt)


def _hardened(session: Session, net: str, name: str, how: str, seed: int) -> Row:
    """Train for a chip, then judge on chips that training has not seen (seeds of training are drawn elsewhere)."""
    train, test = _data(session)
    model, chip, seen, train = _net(session, net), preset(name), train.first(500).batches(), train.first(PICTURES)
    noise = Programmed()
    method = {"hwa": HardwareAware(), "est": EST(noise), "noisy": HardwareAware(noise, clip=None, ranges="calibrated")}[how]
    rehearsal = method.rehearse(model, chip, calibration=seen)
    limit: dict[str, Any] = {"steps": 2} if session.smoke else {"epochs": 1.0}
    started = time.process_time()
    found = rehearsal.train(
        train, losses=(NextToken(),), batch=128, learning_rate=5e-4, precision="float32", final=0.01, seed=seed, **limit
    )
    seconds = time.process_time() - started
    head = {"network": net, "chip": name, "method": how, "seed": seed, "train_seconds": round(seconds, 1), "steps": found.steps}
    memory = {"kept_for_backward_mb": round(_kept(rehearsal.model, train.images[:128]), 2)}
    mapped = rehearsal.mapped(seen)
    return head | memory | _judged(session, mapped, model.eval(), test)


def _kept(model: nn.Module, x: torch.Tensor) -> float:
    """Megabytes that autograd keeps between a forward and its backward, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no memory is given out twice and counted twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.train()(x).sum()
    model.eval()
    return sum(seen.values()) / 2**20


def _lite0(name: str, adabs: bool = False) -> Row:
    model = lite0.classifier()
    seen, judged = lite0.pictures(64, odd=False), lite0.pictures(100, odd=True)
    mapped = map(model, preset(name), calibration=list(seen.split(16)))
    with torch.no_grad():
        digital = model(judged)
    found = simulate(
        mapped,
        lambda net: lite0.agreement(torch.cat([net(x) for x in judged.split(25)]), digital),
        digital=model,
        times=_times(mapped, (DAY, YEAR)),
        chips=CHIPS,
        adapt=AdaBS(list(seen.split(32))) if adabs else None,
    )
    head = {"network": "lite0", "chip": name, "method": "adabs" if adabs else "plain", "tiles": mapped.physical_tiles}
    return head | {"figure": "agreement"} | _told(found, "agreement") | {"sqnr_db": [r["mean"] for r in found.summary("sqnr_db")]}


def _times(mapped: Mapped, later: Sequence[float]) -> tuple[float, ...]:
    return (mapped.chip.device.first, *later)


def _language() -> tuple[nn.Module, list[torch.Tensor], dict[str, Callable[[nn.Module], float]]]:
    """SmolLM2, calibration windows, and perplexity: on near text, which judges, and on held-out calibration text, which chooses."""
    from benchmarks.material import material
    from lessen.models import load

    found = material()
    windows = found.windows("calibration", "heldout", "near")

    def perplexity(text: torch.Tensor) -> Callable[[nn.Module], float]:
        return lambda model: float(torch.exp(model(text, labels=text).loss))

    judges = {"near": perplexity(windows["near"][:4, :256]), "heldout": perplexity(windows["heldout"][:2, :128])}
    return load(found.model("shipped")).eval(), [windows["calibration"][:4, :256]], judges


def _language_chip(name: str) -> Chip:
    """A preset with inputs driven over the range of each token: activations of language models have outliers that no static range holds."""
    chip = preset(name)
    return replace(chip, dac=replace(chip.dac, range="dynamic"), system=replace(chip.system, tiles=None))


def _smollm(name: str, split: Split | None = None, chips: int | range = CHIPS) -> Row:
    model, seen, judges = _language()
    mapped = map(model, _language_chip(name), calibration=seen, store=torch.float16, split=split)
    found = simulate(mapped, judges["near"], digital=model, times=_times(mapped, (YEAR,)), chips=chips)
    head = {"network": "smollm2", "chip": name, "method": "plain" if split is None else "split", "tiles": mapped.physical_tiles}
    return head | {"figure": "perplexity"} | _told(found)


def _smollm_split(name: str) -> Row:
    """The projections that hurt most for their multiplications stay digital, as many as a tenth of all multiplications allows."""
    from lessen.analog.sensitivity import sensitivity

    model, seen, judges = _language()
    mapped = map(model, _language_chip(name), calibration=seen, store=torch.float16)
    ranked = sensitivity(mapped, judges["heldout"], mode="alone", chips=1, seconds=YEAR)
    total = sum(row.macs for row in ranked)
    digital, share = [], 0.0
    for row in sorted(ranked, key=lambda row: -row.loss / row.macs):
        if row.loss > 0 and share + row.macs / total < MOST_DIGITAL:
            digital.append(row.name)
            share += row.macs / total
    del mapped
    found = _smollm(name, Split(tuple(digital)), chips=range(100, 100 + CHIPS))
    return found | {"digital_layers": digital, "digital_macs": round(share, 4)}


def goals(rows: list[Row]) -> list[Goal]:
    """What was promised of training, of EST and of the split."""
    found = {row["key"]: row for row in rows}
    made: list[Goal] = []
    for net in SMALL:
        for name in TRAINED_FOR:
            plain = _lost(found.get(f"{net} {name} plain"))
            hwa, est, noisy = ([found[k] for s in SEEDS if (k := f"{net} {name} {how} {s}") in found] for how in ("hwa", "est", "noisy"))
            kept = _mean([_lost(row, plain_of=found.get(f"{net} {name} plain")) for row in hwa])
            ratio = kept / plain if kept is not None and plain else None
            made.append(at_most(f"{net} on {name}, last time: loss after hardware-aware training over that of plain mapping", ratio, 0.5))
            ahead = _difference(_mean([_last(row) for row in est]), _mean([_last(row) for row in noisy]))
            made.append(at_least(f"{net} on {name}: accuracy of EST minus that of training through the noise, points", ahead, 0.0))
            for what, key in (("time", "train_seconds"), ("memory kept for the backward pass", "kept_for_backward_mb")):
                a, b = _mean([row.get(key) for row in est]), _mean([row.get(key) for row in noisy])
                text = f"{net} on {name}: {what} of EST over that of training through the noise"
                made.append(at_most(text, a / b if a and b else None, 1.0))
    plain, split = found.get("smollm2 pcm-hermes plain"), found.get("smollm2 pcm-hermes split")
    back = 100 * (_last(plain) - _last(split)) / (_last(plain) - plain["digital"]) if plain and split else None
    text = "SmolLM2 on pcm-hermes: share of the perplexity lost that a split with under 10 % digital wins back"
    made.append(at_least(text, back, 50.0, " %"))
    return made


def _last(row: Row | None) -> float:
    return row["times"][-1]["mean"] if row else float("nan")


def _lost(row: Row | None, plain_of: Row | None = None) -> float | None:
    """Points lost at the last time, against the digital network before training."""
    return None if row is None else (plain_of or row)["digital"] - _last(row)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
