"""Whole runs: from the name of a model and of a chip to a record, a directory, and a report.

    run = simulated("smollm2-135m", "pcm-hermes", times=(300.0, 86400.0), out="out")      # quality over time; goes on after a kill
    run = priced("smollm2-135m", "pcm-hermes")                                            # energy, latency, area
    run = searched(model, "pcm-hermes", {"adc.bits": [5, 6, 7, 8]}, Search(trials=16))    # which chip?

Making networks robust is a run too: `analog.run.hardening`. What `lessen analog` does is here and there; the command line adds nothing.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.analog import chipfile
from lessen.analog.chip import Chip
from lessen.analog.cost.count import LayerShape, language_layers, layers
from lessen.analog.cost.model import cost, digital_baseline
from lessen.analog.cost.result import Cost
from lessen.analog.described import chip_of, derived
from lessen.analog.mapping import NO_INPUT, Mapped
from lessen.analog.mapping import map as put
from lessen.analog.run.record import AnalogRun, claim, placed, quality, unjudged, write
from lessen.analog.run.subject import Data, Subject, bare, subject
from lessen.analog.search.explore import Exploration, Search, Space, explore
from lessen.analog.simulation import simulate
from lessen.core.digest import digest
from lessen.core.event import Listener
from lessen.core.strict import strict
from lessen.environment import command, environment
from lessen.errors import LessenError, UsageError
from lessen.recover.objective import call, samples

CONTEXT = 128
"""Tokens of the prompt whose cost is told."""

Model = str | Path | nn.Module


@strict()
def simulated(
    model: Model,
    chip: str | Path | Chip,
    *,
    times: Sequence[float] | None = None,
    chips: int = 10,
    split: Sequence[str] = (),
    data: Data | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    on_event: Listener | None = None,
) -> AnalogRun:
    """Quality of a network over time, on several chips.

    Args:
        model: what `lessen.load` takes.
        chip: a preset, a TOML file or a `Chip`.
        times: seconds since programming; None: the first time of the device, an hour, a day, a month and a year.
        chips: instances.
        split: layers that stay digital, by name or pattern.
        data: what sets the converters and what judges.
        seed: of the first chip; the others follow.
        out: directory for the record, the report and the rows, in which the same call goes on after a kill.
        on_event: progress.

    Raises:
        UsageError: an unknown preset, a time that the device does not cover, a pattern that names no layer.
    """
    described, asked = chip_of(chip), data or Data()
    check(described, times, chips)
    rows = started(out, {"kind": "simulate", "model": name_of(model), "chip": repr(described), "split": list(split), "data": asked.asked})
    run = AnalogRun("simulate")
    with timed(run, "simulate"):
        network = subject(model, asked)
        known(rows, network)
        mapped = put(network.model, described, split=split, calibration=network.calibration, run=call)
        found = simulate(
            mapped, network.evaluate, digital=network.model, times=times, chips=range(seed, seed + chips),
            file=rows and rows / "looks.jsonl",
            on_event=on_event,
        )  # fmt: skip
    fill(run, network, mapped, seed)
    run.qualities = [quality("as mapped", found, network.metrics)]
    run.notes += unjudged("as mapped", found, network.metrics)
    with timed(run, "cost"):
        try:
            run.costs, run.context = costs_of(network, mapped)
        except LessenError as error:
            run.notes.append(f"What it costs is not told: {error}.")
    return finished(run, out)


@strict()
def priced(
    model: Model,
    chip: str | Path | Chip,
    *,
    split: Sequence[str] = (),
    context: int = CONTEXT,
    batches: Any = None,
    out: str | Path | None = None,
) -> AnalogRun:
    """What one inference of a network costs on a chip; of a language model, a prompt and the token after it.

    Args:
        model: what `lessen.load` takes.
        chip: a preset, a TOML file or a `Chip`.
        split: layers that stay digital, by name or pattern.
        context: tokens of the prompt.
        batches: inputs of a model that does not tell its own, as `Data` takes them.
        out: directory for the record and the report.

    Raises:
        UsageError: ideal converters, which have no price; a pattern that names no layer.
    """
    described = chip_of(chip)
    if context < 1:
        raise UsageError("context", got=str(context), wanted="at least one token")
    asked = Data(batches=batches)
    said = {"kind": "cost", "model": name_of(model), "chip": repr(described), "split": list(split), "context": context, "data": asked.asked}
    folder = started(out, said)
    run = AnalogRun("cost")
    with timed(run, "cost"):
        network = bare(model, batches)
        known(folder, network)
        seen = torch.zeros(1, context, dtype=torch.long) if network.language else network.example
        mapped = put(network.model, described, split=split, calibration=[seen], run=call)  # tells which layers are called
        mapped.borrowed.clear()  # ranges have no price
        run.costs, run.context = costs_of(network, mapped, context)
    fill(run, network, mapped)
    return finished(run, out)


@dataclass(frozen=True)
class Quality:
    """Judges chips in a search: the mean over a few instances of the number that counts, turned so that more is better.

    It is told what to open, not given it, so that it can be sent to other processes; each opens the model once.
    """

    model: Model
    data: Data
    split: tuple[str, ...]
    chips: int
    seconds: float | None
    threads: int | None = None
    opened: list[Subject] = field(default_factory=list, compare=False, repr=False)

    def identity(self) -> Any:
        """What decides the quality of a chip."""
        return self._network().identity(), self.split, self.chips, self.seconds

    def _network(self) -> Subject:
        if not self.opened:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            self.opened.append(subject(self.model, self.data))
        return self.opened[0]

    def __call__(self, chip: Chip) -> float:
        network = self._network()
        mapped = put(network.model, chip, split=self.split, calibration=network.calibration, run=call)
        seconds = chip.device.first if self.seconds is None else self.seconds
        looks = simulate(mapped, network.judge, times=[seconds], chips=self.chips).at(seconds)
        mean = sum(looks) / len(looks)
        return mean if network.metric.better == "higher" else -mean

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@strict()
def searched(
    model: Model,
    chip: str | Path | Chip,
    space: Space,
    search: Search | None = None,
    *,
    data: Data | None = None,
    split: Sequence[str] = (),
    chips: int = 2,
    seconds: float | None = None,
    out: str | Path | None = None,
    on_event: Listener | None = None,
) -> AnalogRun:
    """Search for the chips that nothing beats in quality, energy and area for a network.

    Args:
        model: what `lessen.load` takes.
        chip: where all that does not vary is taken from.
        space: what varies; `analog.space` reads one from text.
        search: how much, by whom, kept where.
        data: what sets the converters and what judges.
        split: layers that stay digital, by name or pattern.
        chips: instances whose mean is the quality of a design.
        seconds: since programming; None: the first time that a device describes. Designs whose device begins later are refused.
        out: directory for the record, the report and, unless the search says where, the designs.
        on_event: progress.
    """
    described, asked, search = chip_of(chip), data or Data(), search or Search()
    check(described, None if seconds is None or "device" in space else [seconds], chips)
    said = {"kind": "explore", "model": name_of(model), "chip": repr(described), "data": asked.asked, "split": list(split)}
    folder = started(out, said | {"chips": chips, "seconds": seconds, "space": {path: repr(v) for path, v in space.items()}})
    if folder is not None and search.storage is None:
        search = Search(search.trials, search.workers, folder / "search.log", search.seed, search.backend)
    run = AnalogRun("explore")
    with timed(run, "explore"):
        network = subject(model, asked)
        known(folder, network)
        price = partial(cost, _shapes(network, CONTEXT)[-1][1], split=split)
        judge = Quality(model, asked, tuple(split), chips, seconds, 1 if search.workers > 1 else None, [network])
        found: Exploration = explore(judge, price, described, space, search, on_event)
    if not found.designs:
        got = f"no design of {len(found.refused)} that could be judged, the first since {found.refused[0][1]}"
        raise LessenError("explore", got=got, wanted="one at least")
    what = "a token after a prompt of 128" if network.language else "an inference"
    run.notes.append(f"Energy is of {what}; quality is the mean of {chips} chips.")
    fill(run, network, None, search.seed, described)
    run.exploration = found.to_json() | {"sign": 1 if network.metric.better == "higher" else -1}
    return finished(run, out)


def fill(run: AnalogRun, network: Subject, mapped: Mapped | None, seed: int | None = None, chip: Chip | None = None) -> None:
    """Write into a record what network, chip and mapping are."""
    described = mapped.chip if mapped is not None else chip
    assert described is not None
    run.source, run.chip, run.toml, run.derived = network.facts(), described.name, chipfile.dumps(described), derived(described)
    run.metrics = [asdict(metric) for metric in network.metrics]
    run.notes = [*network.notes, *run.notes]
    run.environment, run.command = environment(seed), command()
    if mapped is not None:
        run.layers, run.digital = placed(mapped), mapped.digital
        if mapped.borrowed:
            few = ", ".join(list(mapped.borrowed)[:3]) + (", ..." if len(mapped.borrowed) > 3 else "")
            run.notes.append(
                f"Calibration reached {len(mapped.borrowed)} experts with no token ({few}): their converters have the ranges of others."
            )
        never = [name for name, why in mapped.digital.items() if why == NO_INPUT]
        if never:
            run.notes.append(f"Digital, since calibration gave them no input: {', '.join(never)}.")
        limit, needed = described.system.tiles, mapped.physical_tiles
        if limit is not None and needed > limit:
            run.notes.append(
                f"The network takes {needed} tiles and chip {described.name} has {limit}: quality is as if all lay there at once."
            )


def started(out: str | Path | None, asked: Mapping[str, Any]) -> Path | None:
    """The directory of a run, claimed for it."""
    if out is None:
        return None
    claim(Path(out), asked)
    return Path(out)


def known(folder: Path | None, network: Subject) -> None:
    """Claim a directory for weights and data, too, that a name does not tell."""
    if folder is not None:
        judged = {"calibration data": digest(network.calibration), "evaluation": digest(network.evaluate, network.metrics)}
        claim(folder, {"network": digest(network.model)} | judged)


def finished(run: AnalogRun, out: str | Path | None) -> AnalogRun:
    """Write record, chip and report, if anywhere."""
    if out is None:
        return run
    from lessen.report.analog import html

    folder = Path(out)
    write(folder / "chip.toml", run.toml)
    write(folder / "report.html", html(run.to_json()))
    run.save(folder)
    return run


@contextmanager
def timed(run: AnalogRun, phase: str) -> Iterator[None]:
    """Note how long a phase took."""
    start = time.perf_counter()
    yield
    run.seconds[phase] = round(time.perf_counter() - start, 3)


def check(chip: Chip, times: Sequence[float] | None, chips: int) -> None:
    """Refuse what a device cannot tell, before any model is opened."""
    if chips < 1:
        raise UsageError("chips", got=str(chips), wanted="at least one")
    if times is not None and not times:
        raise UsageError("times", got="none", wanted="at least one", remedy="times=None for those of the device")
    for seconds in times or ():
        chip.device.check_time(seconds)


def name_of(model: Model) -> str:
    """What a model is called in what was asked for."""
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def costs_of(
    network: Subject, mapped: Mapped, context: int = CONTEXT, lies: nn.Module | None = None
) -> tuple[dict[str, dict[str, Any]], int | None]:
    """What inferences cost, by what they are; `lies`: what lies on the chip, where methods have made it another than the network."""
    priced = _shapes(network if lies is None else replace(network, model=lies), context)
    found: dict[str, Cost] = {name: cost(shapes, mapped) for name, shapes in priced}
    if lies is not None:
        beside = {name: digital_baseline(shapes, mapped.chip) for name, shapes in _shapes(network, context)}
        found = {name: replace(each, baseline=beside[name]) for name, each in found.items()}
    return {name: each.to_json() for name, each in found.items()}, context if network.language else None


def _shapes(network: Subject, context: int) -> list[tuple[str, list[LayerShape]]]:
    """Products of a model, by what an inference is."""
    if network.language:
        try:
            prompt, token = language_layers(network.model, context)
        except LessenError:  # it keeps no past: an inference is the whole text
            ids = torch.zeros(1, context, dtype=torch.long)
            return [("prompt", layers(network.model, lambda: call(network.model, ids)))]
        return [("prompt", prompt), ("token", token)]
    return [
        ("inference", layers(network.model, partial(call, network.model, network.example), inferences=samples(_inputs(network.example))))
    ]


def _inputs(example: Any) -> Any:
    """What counts the inferences of a batch; a mapping's first tensor may be none (a flag)."""
    if isinstance(example, Mapping):
        return {key: value for key, value in example.items() if isinstance(value, Tensor) and value.ndim}
    return example
