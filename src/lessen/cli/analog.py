"""Commands about analog chips: presets, describe, simulate, cost, robust, explore."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from lessen.cli.analog_options import CHIP, Aging, Inputs, Judge, OnChip, Searching, Trains
from lessen.cli.app import app, epilogue
from lessen.cli.options import METHODS, Running
from lessen.cli.output import emit, say, table, tell
from lessen.cli.running import listening

analog = App(
    name="analog",
    help="Will a network still work on an analog chip, at what energy, and which chip or training makes it robust?",
    help_epilogue=epilogue(
        "lessen analog presets",
        "lessen analog describe pcm-hermes --out mine.toml",
        "lessen analog simulate MODEL --chip mine.toml --times 300s,1d,1y --out aged",
        "lessen analog cost MODEL --chip mine.toml --json",
        "lessen analog robust MODEL --chip mine.toml --method HPD --out robust",
        "lessen analog explore MODEL --chip mine.toml --vary adc.bits=5,6,7,8 --out searched",
        "Every one of them takes --json, --quiet, --threads and --debug.",
    ),
)
app.command(analog)


@analog.command(help_epilogue=epilogue("lessen analog presets", "lessen analog presets --json", "lessen analog presets | grep rram"))
def presets(*, running: Running = Running()) -> None:
    """List the chips that come with lessen, each with its source."""
    from lessen.analog.described import rows

    found = rows()
    if running.json:
        emit("analog presets", {"presets": found})
    else:
        table(tuple(found[0]), [tuple(row.values()) for row in found])


@analog.command(
    help_epilogue=epilogue(
        "lessen analog describe pcm-hermes", "lessen analog describe pcm-hermes --out mine.toml", "lessen analog describe mine.toml --json"
    )
)
def describe(chip: str, /, *, out: Annotated[Path | None, Parameter(metavar="FILE")] = None, running: Running = Running()) -> None:
    """Check a chip and print everything of it as TOML, with what follows from it.

    Args:
        chip: A preset or a TOML file.
        out: File to write the TOML to, for editing.
    """
    from lessen.analog import chipfile
    from lessen.analog.described import chip_of, derived, description
    from lessen.analog.run.record import write
    from lessen.errors import UsageError

    found = chip_of(chip)
    if out is not None:
        if out.exists():
            raise UsageError(str(out), got="something that exists", wanted="a new file", remedy="choose another --out")
        write(out, description(found))
    if running.json:
        emit("analog describe", {"chip": found.name, "toml": chipfile.dumps(found), "derived": derived(found), "out": out})
    else:
        say(str(out) if out is not None else description(found).rstrip())


@analog.command(
    help_epilogue=epilogue(
        "lessen analog simulate smollm2-135m --chip pcm-hermes --times 300s,1d,1y --chips 3",
        "lessen analog simulate path/to/vit --chip mine.toml --batches package.module:data --out aged",
        "lessen analog simulate package.module:factory --chip rram-milo --evaluate package.module:accuracy --json",
    )
)
def simulate(
    model: str,
    /,
    *,
    on: OnChip,
    aging: Aging = Aging(),
    inputs: Inputs = Inputs(),
    judge: Judge = Judge(),
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    running: Running = Running(),
) -> None:
    """Evaluate a network on several chips as they age, beside the digital model.

    Args:
        model: A directory of any model of transformers, one that lessen wrote, a GGUF file, package.module:factory, or smollm2-135m.
        out: Directory for report and record; the same command goes on there after a kill.
    """
    from lessen.analog.run.job import simulated

    with listening(running) as on_event:
        wanted: dict[str, Any] = {"times": _times(aging.times), "chips": aging.chips, "seed": aging.seed, "split": on.split}
        run = simulated(model, on.chip, data=_data(inputs, judge, aging.seed), out=out, on_event=on_event, **wanted)
    _show("analog simulate", run, running, out)


@analog.command(
    help_epilogue=epilogue(
        "lessen analog cost smollm2-135m --chip pcm-nandakumar --context 256",
        "lessen analog cost path/to/vit --chip mine.toml --split classifier",
        "lessen analog cost package.module:factory --chip isaac --json",
    )
)
def cost(
    model: str,
    /,
    *,
    on: OnChip,
    context: int = 128,
    batches: Annotated[str | None, Parameter(metavar="MODULE:NAME")] = None,
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    running: Running = Running(),
) -> None:
    """Tell energy, latency and area of a network on a chip, layer by layer, beside a digital accelerator.

    Args:
        model: A directory of any model of transformers, one that lessen wrote, a GGUF file, package.module:factory, or smollm2-135m.
        context: Tokens of a language model's prompt.
        batches: Inputs of a model that does not tell its own.
        out: Directory for report and record.
    """
    from lessen.analog.run.job import priced

    with listening(running):
        run = priced(model, on.chip, split=on.split, context=context, batches=batches, out=out)
    _show("analog cost", run, running, out)


@analog.command(
    help_epilogue=epilogue(
        "lessen analog robust smollm2-135m --chip pcm-hermes --method NORA --method HPD --rank 32 --chips 3",
        "lessen analog robust path/to/vit --chip mine.toml --batches package.module:data --method AutoSplit --max-loss 0.5 --out kept",
        "lessen analog robust package.module:factory --chip rram-milo --batches package.module:data --train package.module:more --method "
        "HardwareAware --steps 300 --out robust --json",
    )
)
def robust(
    model: str,
    /,
    *,
    on: OnChip,
    method: Annotated[tuple[str, ...], Parameter(group=METHODS, metavar="METHOD", negative="")],
    train: Trains = Trains(),
    aging: Aging = Aging(),
    inputs: Inputs = Inputs(),
    judge: Judge = Judge(),
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    running: Running = Running(),
) -> None:
    """Make a network robust against what a chip does to it, and show the same chips before and after.

    Args:
        model: A directory of any model of transformers, one that lessen wrote, a GGUF file, package.module:factory, or smollm2-135m.
        method: A method, its options after it: --method HPD --rank 32. Several follow one another. `lessen analog methods` lists them.
        out: Directory for report, record and changed weights; the same command goes on there after a kill.
    """
    from lessen.analog.robust.case import Training
    from lessen.analog.run.hardening import hardened

    with listening(running) as on_event:
        training = Training(train.train, train.steps, train.minutes, train.batch, train.learning_rate)
        wanted: dict[str, Any] = {"times": _times(aging.times), "chips": aging.chips, "split": on.split, "training": training}
        run = hardened(model, on.chip, method, data=_data(inputs, judge, aging.seed), out=out, on_event=on_event, **wanted)
    _show("analog robust", run, running, out)


@analog.command(help_epilogue=epilogue("lessen analog methods", "lessen analog methods HPD", "lessen analog methods --json"))
def methods(name: str | None = None, /, *, running: Running = Running()) -> None:
    """List what makes networks robust; or the options of one method.

    Args:
        name: A method, to see its options.
    """
    from lessen.analog.robust.applied import METHODS as KNOWN
    from lessen.analog.robust.applied import parse
    from lessen.core.options import options

    if name is None:
        rows = [{"method": m.name, "trains": "yes" if m.trains else "", "what it does": m.summary} for m in KNOWN]
    else:
        rows = [
            {"option": o.name, "type": o.type, "default": repr(o.default), "what it does": o.help} for o in options(parse(name)[0].options)
        ]
    if running.json:
        emit("analog methods", {"method": name, "options" if name else "methods": rows})
    elif rows:
        table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    else:
        say(f"{name} has no options")


@analog.command(
    help_epilogue=epilogue(
        "lessen analog explore path/to/vit --chip pcm-hermes --vary adc.bits=5,6,7,8 array=128,256,512 --trials 12",
        "lessen analog explore smollm2-135m --chip rram-milo --space space.toml --storage search.db --workers 2 --out searched",
        "lessen analog explore package.module:factory --chip mine.toml --vary encoding=Differential,Offset --json",
    )
)
def explore(
    model: str,
    /,
    *,
    on: OnChip,
    space: Annotated[Path | None, Parameter(group=CHIP, metavar="FILE")] = None,
    vary: Annotated[
        tuple[str, ...], Parameter(group=CHIP, metavar="FIELD=VALUES", negative="", show_default=False, consume_multiple=True)
    ] = (),
    searching: Searching = Searching(),
    inputs: Inputs = Inputs(),
    judge: Judge = Judge(),
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    running: Running = Running(),
) -> None:
    """Search for the chips that nothing beats in quality, energy and area.

    Args:
        model: A directory of any model of transformers, one that lessen wrote, a GGUF file, package.module:factory, or smollm2-135m.
        space: TOML file with a table [space]: fields of a chip and their values.
        vary: A field and its values: adc.bits=5,6,7,8. May be given several times.
        out: Directory for report and record, and for the designs unless --storage says where.
    """
    from lessen.analog.described import chip_of
    from lessen.analog.run.job import searched
    from lessen.analog.search import space as spaces
    from lessen.analog.search.explore import Search
    from lessen.errors import UsageError

    base = chip_of(on.chip)
    if bool(space) == bool(vary):
        got = "both" if vary else "neither --space nor --vary"
        raise UsageError("--vary", got=got, wanted="one of the two", remedy="--vary adc.bits=5,6,7,8")
    varied = spaces.load(space, base) if space else spaces.parse(vary, base)
    search = Search(searching.trials, searching.workers, searching.storage, searching.seed, searching.backend)
    times = _times(searching.at)
    looks: dict[str, Any] = {"chips": searching.chips, "seconds": times and times[0], "split": on.split}
    with listening(running) as on_event:
        run = searched(model, base, varied, search, data=_data(inputs, judge, searching.seed), out=out, on_event=on_event, **looks)
    _show("analog explore", run, running, out)


def _data(inputs: Inputs, judge: Judge, seed: int) -> Any:
    from lessen.analog.run.subject import Data

    judged: dict[str, Any] = {"eval": judge.eval, "evaluate": judge.evaluate, "better": judge.better, "choose": judge.choose}
    return Data(inputs.calibration, inputs.batches, windows=judge.windows, length=judge.length, seed=seed, **judged)


def _times(text: str | None) -> list[float] | None:
    from lessen.analog.simulation import parse_time

    return None if text is None else [parse_time(part) for part in text.split(",")]


def _show(command: str, run: Any, running: Running, out: Path | None) -> None:
    """Print what a run has to say."""
    if running.json:
        emit(command, {"out": out, "run": run.to_json()})
        return
    from lessen.report.analog_facts import tables

    for place, found in enumerate(tables(run.to_json())):
        say("" if place else found.caption)
        if place:
            say(found.caption)
        table(found.header, found.rows, found.numeric)
    tell(run.notes)
    if out is not None:
        say(f"\n{out / 'report.html'} tells the whole story")
