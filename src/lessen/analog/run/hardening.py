"""A network made robust, beside what it was: the same chips at the same times, before and after.

run = hardened("smollm2-135m", "pcm-hermes", ["NORA", "HPD(rank=32)"], chips=3, out="out")
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lessen.analog.chip import Chip
from lessen.analog.described import chip_of
from lessen.analog.mapping import Split
from lessen.analog.robust.applied import Named, named, parse
from lessen.analog.robust.case import Case, Training
from lessen.analog.robust.needs import trial_of
from lessen.analog.run.job import CONTEXT, Model, check, costs_of, fill, finished, known, name_of, started, timed
from lessen.analog.run.record import AnalogRun, quality, unjudged
from lessen.analog.run.subject import Data, batches_of, subject
from lessen.analog.simulation import belongs, forget_others, simulate
from lessen.core.event import Listener
from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError


@strict()
def hardened(
    model: Model,
    chip: str | Path | Chip,
    methods: Sequence[Any],
    *,
    times: Sequence[float] | None = None,
    chips: int = 10,
    split: Sequence[str] = (),
    data: Data | None = None,
    training: Training | None = None,
    out: str | Path | None = None,
    on_event: Listener | None = None,
) -> AnalogRun:
    """Make a network robust and compare it with plain mapping.

    Args:
        model: what `lessen.load` takes.
        chip: a preset, a TOML file or a `Chip`.
        methods: names with options (`"HPD(rank=32)"`) or options themselves (`HPD(rank=32)`), one after the other.
        times: seconds since programming; None: the first time of the device, an hour, a day, a month and a year.
        chips: instances, from the seed of `data` on.
        split: layers that stay digital, by name or pattern.
        data: what sets the converters and what judges.
        training: of the methods that train.
        out: directory for the record, the report, the rows, and weights that have changed; the same call goes on there after a kill.
        on_event: progress.

    Raises:
        UsageError: what a method cannot do with this network, chip or data, before anything is simulated.
    """
    described, asked, training = chip_of(chip), data or Data(), training or Training()
    wanted = [parse(m) if isinstance(m, str) else (named(m), m) for m in methods]
    if not wanted:
        raise UsageError("methods", got="none", wanted="at least one", remedy="HPD")
    check(described, times, chips)
    said = {"kind": "robust", "model": name_of(model), "chip": repr(described), "split": list(split), "data": asked.asked}
    train = training.data if isinstance(training.data, str) else type(training.data).__name__
    how = {
        "data": train,
        "steps": training.steps,
        "minutes": training.minutes,
        "batch": training.batch,
        "learning_rate": training.learning_rate,
    }
    folder = started(out, said | {"methods": [repr(options) for _, options in wanted], "training": how})
    run = AnalogRun("robust", methods=[repr(options) for _, options in wanted])
    looks: dict[str, Any] = {"times": times, "chips": range(asked.seed, asked.seed + chips), "on_event": on_event}
    network = subject(model, asked)
    known(folder, network)
    if training.data is not None and any(method.trains for method, _ in wanted):  # once: what is given may be read only once
        training = replace(training, data=batches_of(training.data))
    case = Case(network, network.model, described, Split.of(split), training, asked.seed, on_event)
    _checked(case, wanted)
    with timed(run, "before"):
        before = simulate(case.mapped(), network.evaluate, digital=network.model, file=folder and folder / "before.jsonl", **looks)
    with timed(run, "methods"):
        for method, options in wanted:
            method.act(options, case)
        mapped = case.mapped()
    if folder is not None:  # training that was killed began again, and with minutes it ends elsewhere: rows of a network that is no more
        forget_others(folder / "after.jsonl", belongs(mapped, network.evaluate, case.adapt))
    with timed(run, "after"):
        after = simulate(mapped, network.evaluate, adapt=case.adapt, file=folder and folder / "after.jsonl", **looks)
    after.digital = before.digital
    fill(run, network, mapped, asked.seed)
    run.notes += case.notes
    run.qualities = [quality("as mapped", before, network.metrics), quality("made robust", after, network.metrics)]
    run.notes += unjudged("as mapped", before, network.metrics) + unjudged("made robust", after, network.metrics)
    try:
        run.costs, run.context = costs_of(network, mapped, CONTEXT, case.model)
    except LessenError as error:
        run.notes.append(f"What it costs is not told: {error}.")
    if folder is not None and case.changed:
        run.notes.append(_kept(case, folder))
    return finished(run, out)


def _checked(case: Case, wanted: Sequence[tuple[Named, Any]]) -> None:
    """Refuse what a method cannot do: between here and the method lie hours of simulation."""
    trial = trial_of(case)
    for method, options in wanted:
        method.check(options, trial)


def _kept(case: Case, folder: Path) -> str:
    """Write weights that have changed; where."""
    from safetensors.torch import save_model

    plain = type(case.model) is type(case.network.model) and list(case.model.state_dict()) == list(case.network.model.state_dict())
    if plain and hasattr(case.model, "save_pretrained"):
        case.model.save_pretrained(folder / "model")  # pyright: ignore[reportCallIssue]
        if case.network.tokenizer is not None:
            case.network.tokenizer.save_pretrained(folder / "model")
        return "The changed weights are in model/, which lessen.load opens."
    aside = folder / "weights.safetensors.aside"
    save_model(case.model, str(aside))
    aside.replace(folder / "weights.safetensors")
    how = "the model" if plain else "the model divided as in the methods"
    return f"The changed weights are in weights.safetensors: safetensors.torch.load_model({how}, file) puts them back."
