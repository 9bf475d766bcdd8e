"""What networks lose on chips over time, and what methods win back: mean and spread over ten chips.

Networks and figures: a small CNN and a small vision transformer on Fashion-MNIST (accuracy on test pictures, in percent),
EfficientNet-Lite0 on pictures (agreement of the first class with the digital network, in percent), SmolLM2-135M on text (perplexity).
Each preset is plain mapping: weights programmed, converters calibrated on calibration data, drift compensated as the preset says.

Methods, on presets where plain mapping loses:

    longer   as many steps of training without a chip, then plain mapping: what training by itself is worth
    hwa      hardware-aware training: errors of the chip at times up to a year, rows clipped, ranges learned
    gaussian hardware-aware training with Gaussian errors of 3 % in place of the chip's
    est      the same pictures and errors through the chip itself, gradients of the clean layer, rows clipped
    est, same time   a third more steps of it: the processor time of hardware-aware training
    noisy    the same pictures, errors and clipping by automatic differentiation: what EST estimates the gradient of
    adabs    statistics of batch norms learned again on the drifted chip
    others   as `lessen analog methods` names them
    hpd      main directions of all inputs digital, for SmolLM2, on the presets and on presets with a dynamic DAC
    split    depthwise convolutions digital, for Lite0

`faulty` is pcm-hermes of which one cell in a hundred is stuck at the lowest conductance and one at the highest.

Calibration and training see training data alone, and so does whatever chooses. Chips differ by their seed; every row says how many. A chip
whose devices are exact is one chip at all times.
"""

from collections.abc import Iterator, Sequence

from benchmarks import analog_large, analog_small
from benchmarks.harness import Goal, Row, Session, at_least, at_most
from lessen.analog.chipfile import presets

SMALL = ("cnn", "vit")
TRAINED_FOR = ("pcm-hermes",)  # the preset that costs the small networks most
TREATED = {
    "cnn": ("RangeSearch", "AutoSplit(max_loss=1.0, seconds=31536000.0, chips=2)", "BWMA"),
    "vit": ("RangeSearch", "NORA", "HPD(rank=8, targets=*)", "AutoSplit(max_loss=1.0, seconds=31536000.0, chips=2)", "HaLoRA"),
}
LARGE = ("pcm-hermes", "nor-wtm2101", "rram-cmo", "sonos-40nm")
LANGUAGE = ("pcm-nandakumar", "pcm-hermes")
WATCHED = {"pcm-nandakumar": (3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0), "pcm-hermes": (365 * 86400.0,)}
SEEDS = (0, 1, 2, 3)
MOST_DIGITAL = 0.10


def rows(session: Session) -> Iterator[Row | None]:
    import torch

    torch.set_num_threads(session.threads)
    small, trained = (SMALL[:1], TRAINED_FOR[:1]) if session.smoke else (SMALL, TRAINED_FOR)
    for net in small:
        for name in trained:
            yield session.row(f"{net} {name} plain", lambda n=net, c=name: analog_small.plain(session, n, c))
            yield session.row(f"{net} {name} steps", lambda n=net, c=name: analog_small.steps(session, n, c))
    for seed in SEEDS[:1] if session.smoke else SEEDS:
        for net in small:
            for name in trained:
                for how in ("hwa", "est", "noisy", "est, same time", *(("longer", "gaussian") if seed == 0 else ())):
                    key = f"{net} {name} {how} {seed}"
                    yield session.row(key, lambda n=net, c=name, h=how, s=seed: analog_small.hardened(session, n, c, h, s))
    yield session.row("cnn pcm-hermes adabs", lambda: analog_small.plain(session, "cnn", "pcm-hermes", adabs=True))
    if session.smoke:
        yield session.row("cnn pcm-hermes RangeSearch", lambda: analog_small.treated(session, "cnn", "pcm-hermes", "RangeSearch"))
        return
    for name in LANGUAGE:
        for method in ("plain", "hpd"):
            yield session.row(f"smollm2 {name} {method}", lambda c=name, m=method: analog_large.language(c, m, seconds=WATCHED[c]))
            yield session.row(f"smollm2 {name} static {method}", lambda c=name, m=method: analog_large.language(c, m, dynamic=False))
    for net in SMALL:
        for name in sorted(set(presets()) - set(TRAINED_FOR)):
            yield session.row(f"{net} {name} plain", lambda n=net, c=name: analog_small.plain(session, n, c))
        for method in TREATED[net]:
            key = f"{net} pcm-hermes {method.partition('(')[0]}"
            yield session.row(key, lambda n=net, m=method: analog_small.treated(session, n, "pcm-hermes", m))
        yield session.row(f"{net} faulty plain", lambda n=net: analog_small.treated(session, n, "faulty", ""))
        yield session.row(f"{net} faulty Remap", lambda n=net: analog_small.treated(session, n, "faulty", "Remap"))
    for name in LARGE:
        for how in ("plain", "split"):
            yield session.row(f"lite0 {name} {how}", lambda c=name, h=how: analog_large.classifier(c, h))
        if name not in LANGUAGE:
            yield session.row(f"smollm2 {name} plain", lambda c=name: analog_large.language(c, "plain"))
    yield session.row("lite0 pcm-hermes adabs", lambda: analog_large.classifier("pcm-hermes", "adabs"))


def goals(rows: list[Row]) -> list[Goal]:
    """What was promised of training, of EST and of HPD."""
    found = {row["key"]: row for row in rows}
    made = [goal for net in SMALL for name in TRAINED_FOR for goal in _of_training(found, net, name)]
    for name in LANGUAGE:
        made += _of_language(found, f"smollm2 {name} static", f"SmolLM2 on {name}")
        made += _of_language(found, f"smollm2 {name}", f"SmolLM2 on {name}, dynamic DAC")
    return made


def _of_language(found: dict[str, Row], key: str, told: str) -> list[Goal]:
    plain, hpd = found.get(f"{key} plain"), found.get(f"{key} hpd")
    made: list[Goal] = []
    for place, when in ((0, "just programmed"), (-1, "after a year")):
        back = None
        if plain and hpd:
            before, after = (row["nats"]["times"][place] for row in (plain, hpd))
            back = 100 * (before - after) / (before - plain["nats"]["digital"])
        made.append(at_least(f"{told}, {when}: share of the lost nats a token that HPD wins back", back, 50.0, " %"))
    return [*made, at_most(f"{told}: share of multiplications that HPD makes digital", hpd["digital_macs"] if hpd else None, MOST_DIGITAL)]


def _of_training(found: dict[str, Row], net: str, name: str) -> list[Goal]:
    """Losses at the last time are points below the digital network before training, which is what plain mapping starts from."""
    plain, steps = found.get(f"{net} {name} plain"), found.get(f"{net} {name} steps", {}).get("steps")
    last = {
        how: _mean([_last(found[k]) for s in SEEDS if (k := f"{net} {name} {how} {s}") in found])
        for how in ("hwa", "est", "noisy", "est, same time")
    }
    parts: dict[str, float | None] = dict.fromkeys(last)
    if plain:
        lost = plain["digital"] - _last(plain)
        parts = {how: None if value is None else (plain["digital"] - value) / lost for how, value in last.items()}
    made = [
        at_most(f"{net} on {name}, a year: loss after hardware-aware training over that of plain mapping", parts["hwa"], 0.5),
        at_most(f"{net} on {name}, a year: loss after EST over that of plain mapping", parts["est"], 0.5),
    ]
    for other, what in (("noisy", "training through the noise"), ("hwa", "hardware-aware training")):
        ours, theirs = last["est"], last[other]
        ahead = None if ours is None or theirs is None else ours - theirs
        made.append(at_least(f"{net} on {name}, a year: accuracy of EST minus that of {what}, points", ahead, 0.0))
        for key, name_of in (("ms", "processor time"), ("peak_mb", "peak memory")):
            ratio = steps["est"][key] / steps[other][key] if steps else None
            made.append(at_most(f"{net} on {name}: {name_of} of a step of EST over one of {what}", ratio, 1.0))
    ours, theirs = last["est, same time"], last["hwa"]
    ahead = None if ours is None or theirs is None else ours - theirs
    made.append(
        at_least(f"{net} on {name}, a year: accuracy of EST minus that of hardware-aware training at equal time, points", ahead, 0.0)
    )
    return made


def _last(row: Row) -> float:
    return row["times"][-1]["mean"]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
