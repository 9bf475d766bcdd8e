"""Commands that only look: evaluate, report, inspect, ls."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lessen.cli.app import app, epilogue
from lessen.cli.options import Running, Switch
from lessen.cli.output import emit, say, table


@app.command(
    help_epilogue=epilogue(
        "lessen inspect smollm2-135m",
        "lessen inspect path/to/model --units",
        "lessen inspect path/to/model --unit model.layers.0.mlp",
        "lessen inspect model.gguf --units --json",
        "lessen inspect package.module:factory --units",
    )
)
def inspect(
    model: str,
    /,
    *,
    units: Switch = False,
    brief: Switch = False,
    unit: Annotated[tuple[str, ...], Parameter(metavar="NAME", negative="", show_default=False)] = (),
    running: Running = Running(),
) -> None:
    """Show what a model is made of, and which slices of it must change together.

    Args:
        model: A directory of any model of transformers, one that lessen wrote, a GGUF file, package.module:factory, or smollm2-135m.
        units: List every unit with its slices, the operations that tie them to each other, and every place that is held.
        brief: List every unit in a line.
        unit: List only this unit, with its slices and operations.
    """
    from math import prod

    from lessen import open_checkpoint
    from lessen.cli.structures import Wanted, listed, show, traced
    from lessen.models import whole
    from lessen.report.text import number, size
    from lessen.structure.decoder import units as units_of

    module = whole(model)
    if module is not None:
        show(model, traced(module, model), module, Wanted(units, brief, unit, running.json))
        return
    checkpoint = open_checkpoint(model)
    found = units_of(checkpoint)
    facts: dict[str, Any] = {
        "model": checkpoint.label,
        "architecture": (checkpoint.config.get("architectures") or ["?"])[0],
        "blocks": len({unit.block for unit in found if unit.block is not None}),
        "parameters": sum(prod(checkpoint.shape(name)) for name in checkpoint.names),
        "size_bytes": checkpoint.size_bytes,
        "tied": checkpoint.tied,
        "fingerprint": checkpoint.fingerprint(),
    }
    kinds = {kind: sum(unit.kind == kind for unit in found) for kind in dict.fromkeys(unit.kind for unit in found)}
    if running.json:
        structure = traced(checkpoint.skeleton(), checkpoint.label) if units or brief or unit else None
        emit("inspect", {**facts, "kinds": kinds, "units": found if structure else None, "traced": structure and structure.units})
        return
    shown = {**facts, "parameters": number(facts["parameters"]), "size_bytes": size(facts["size_bytes"])}
    shown["tied"] = ", ".join(f"{alias} = {name}" for alias, name in checkpoint.tied.items()) or "nothing"
    table(("", ""), [(name.replace("size_bytes", "size"), str(value)) for name, value in shown.items()])
    say("")
    if units or brief or unit:
        skeleton = checkpoint.skeleton()
        listed(traced(skeleton, checkpoint.label), skeleton, Wanted(units, brief, unit, False), found)
    else:
        table(("kind of unit", "how many"), [(kind, str(count)) for kind, count in kinds.items()], {1})


@app.command(
    name="ls",
    help_epilogue=epilogue("lessen ls", "lessen ls GPTQ", "lessen ls --json"),
)
def ls(name: str | None = None, /, *, running: Running = Running()) -> None:
    """List methods, number formats, export formats and model families; or the options of one method.

    Args:
        name: A method, to see its options.
    """
    from lessen.cli.catalogue import catalogue, described

    if name is not None:
        options = described(name)
        if running.json:
            emit("ls", {"method": name, "options": options})
        else:
            table(("option", "value", "default", "what it does"), [tuple(option.values()) for option in options])
        return
    lists = catalogue()
    if running.json:
        emit("ls", lists)
        return
    for title, rows in lists.items():
        if len(rows[0]) > 1:
            table(tuple(rows[0]), [tuple(row.values()) for row in rows])
        else:
            say(f"{title}: {', '.join(value for row in rows for value in row.values())}")
        say("")


@app.command(
    help_epilogue=epilogue("lessen report out", "lessen report out --format markdown", "lessen report out --format html --out page.html"),
)
def report(
    folder: Path, /, *, format: str = "html", out: Annotated[Path | None, Parameter(metavar="FILE")] = None, running: Running = Running()
) -> None:
    """Draw the report of a finished run again, from its records alone.

    Args:
        folder: A directory that lessen wrote, or its lessen.json.
        format: "html", "markdown" or "card" (the model card).
        out: File to write. HTML goes to report.html in the folder unless told otherwise, text to stdout.
    """
    from lessen.cli.catalogue import draw

    path, text = draw(folder, format, out)
    if running.json:
        emit("report", {"format": format, "path": path, "text": text if path is None else None})
    else:
        say(text if path is None else str(path))
