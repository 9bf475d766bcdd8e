"""The command that makes any model narrower or shorter: prune."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from lessen.cli.app import app, epilogue
from lessen.cli.options import CALIBRATION, METHODS, Running, Switch
from lessen.cli.output import emit, say, table, tell
from lessen.cli.running import listening

if TYPE_CHECKING:
    from torch import nn

WHAT = Group("What goes", sort_key=1)
Names = Annotated[tuple[str, ...], Parameter(metavar="NAME", negative="", show_default=False)]


@Parameter(name="*", group=WHAT)
@dataclass(frozen=True)
class What:
    """What may go, and how much."""

    to: Annotated[str | None, Parameter(metavar="SIZE")] = None
    """Budget: 20% (goes), 0.8x (stays), 30MB, "30% macs", 12ms (measured here)."""
    kinds: Names = ()
    """Kinds of unit, instead of widths inside blocks: channels, kv_group, heads, head_dim, width, experts, layer, vocab. Several with
    commas, or the option again."""
    freeze: Names = ()
    """Modules or parameters that stay whole, by name or pattern."""
    uniform: Switch = False
    """Narrow equal places of all blocks alike, so that stock loaders take the result."""


@Parameter(name="*", group=CALIBRATION)
@dataclass(frozen=True)
class Data:
    """What methods look at."""

    batches: Annotated[str | None, Parameter(metavar="MODULE:NAME")] = None
    """An iterable of batches, or a function that returns one."""
    calibration: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """Text for language models: a .txt or .jsonl file, a directory of them, or "builtin"."""


@app.command(
    help_epilogue=epilogue(
        "lessen prune path/to/vit --method Magnitude --ratio 0.2",
        "lessen prune path/to/vit --to '30% macs' --freeze '*.attention' --out small",
        "lessen prune path/to/t5 --kinds heads,head_dim --ratio 0.25 --uniform --out small",
        "lessen prune path/to/llama --method Taylor --calibration notes.txt --to 20% --out small",
        "lessen prune package.module:factory --method UKMP --batches package.module:data --to 0.5x --out small --json",
    )
)
def prune(
    model: str,
    /,
    *,
    what: What = What(),
    data: Data = Data(),
    method: Annotated[str | None, Parameter(group=METHODS, metavar="METHOD")] = None,
    ratio: Annotated[float | None, Parameter(group=METHODS)] = None,
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    no_prove: Switch = False,
    running: Running = Running(),
) -> None:
    """Make any model narrower or shorter: vision, text, speech, several at once. Without --out it only says what would go.

    Args:
        model: A directory of any model of transformers, one that lessen wrote, a GGUF file, package.module:factory, or smollm2-135m.
        method: How to decide, its options after it. Without it: UKMP where there is data, else Magnitude, which needs none.
        ratio: Fraction that the method is to remove, of channels, experts, layers or tokens.
        out: Directory to write; lessen.load opens it.
        no_prove: Do not compare the result with the masked model, nor time it.
    """
    from dataclasses import replace

    import lessen
    from lessen.choice import method_of
    from lessen.errors import UsageError

    if out is not None and out.exists():
        raise UsageError(str(out), got="something that exists", wanted="a new directory", remedy="choose another --out")
    if data.batches and data.calibration:
        raise UsageError("--batches", got="--calibration as well", wanted="one of the two")
    deciding = method_of(method or ("UKMP" if data.batches or data.calibration else "Magnitude"))
    if ratio is not None:
        if what.to is not None:
            raise UsageError("--ratio", got="--to as well", wanted="one of the two")
        deciding = replace(deciding, ratio=ratio)
    with listening(running) as on_event:
        module = lessen.load(model)
        seen = _imported(data.batches) if data.batches else _text(module, model, data.calibration) if data.calibration else []
        kinds, freeze = _listed(what.kinds), _listed(what.freeze)
        wanted: dict[str, Any] = {"to": what.to, "kinds": kinds or None, "freeze": freeze, "uniform": what.uniform}
        wanted |= {"method": deciding, "prove": False if no_prove else None, "on_event": on_event}
        made = lessen.prune(module, _example(module, model, seen), seen, **wanted)
        if out is not None:
            earlier, made_by = _origin(module, model)
            lessen.save(replace(made, edits=(*earlier, *made.edits)), out, made_by=made_by)
    if running.json:
        facts = {"model": model, "out": out, "method": repr(deciding), "before": made.before, "after": made.after}
        emit("prune", {**facts, "records": made.records, "notes": made.notes})
        return
    rows = [(r.unit, r.action, _shape(r.shape_before), _shape(r.shape_after), r.reason) for r in made.records]
    table(("unit", "action", "before", "after", "what"), rows)
    say("")
    table(("", "before", "after"), [(name, f"{had:,.6g}", f"{made.after[name]:,.6g}") for name, had in made.before.items()], {1, 2})
    tell([*([] if method else [f"{type(deciding).__name__} decided; --method names another."]), *made.notes])
    say(f"\nlessen.load({str(out)!r}) opens it" if out else "\nnothing was written; --out DIR writes the smaller model")


def _listed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names as they were given: several options, or one with commas."""
    return tuple(part.strip() for name in names for part in name.split(",") if part.strip())


def _shape(shape: Any) -> str:
    return "" if shape is None else " x ".join(map(str, shape))


def _origin(module: "nn.Module", model: str) -> tuple[list[Any], str | None]:
    """What was done to a model before, and what makes it as it was before that."""
    from lessen.models import pruned

    if pruned.is_pruned(Path(model).expanduser()):
        return pruned.history(Path(model).expanduser())
    return [], None if type(module).__module__.startswith("transformers.") else model


def _example(module: "nn.Module", label: str, data: list[Any]) -> Any:
    """What the model tells of itself, else what the first batch feeds it."""
    from collections.abc import Mapping

    from lessen.errors import UsageError
    from lessen.models.inputs import example_inputs

    try:
        return example_inputs(module, label)
    except UsageError:
        if not data:
            raise
    first = data[0]
    if isinstance(first, Mapping):
        return {key: value for key, value in first.items() if key != "labels"}
    return first[0] if isinstance(first, tuple | list) else first


def _imported(ref: str) -> list[Any]:
    from lessen.errors import LessenError, UsageError, one_line
    from lessen.models.module import imported

    if ":" not in ref:
        raise UsageError("--batches", got=repr(ref), wanted="package.module:name")
    found: Any = imported(ref)
    try:
        made: Any = found() if callable(found) else found
        return list(made)
    except Exception as error:
        raise LessenError(ref, got=one_line(error), wanted="batches, or a function that returns some") from error


def _text(module: "nn.Module", label: str, source: str) -> list[Any]:
    """Windows of a text as token ids."""
    from lessen.calibration import Wish, settle
    from lessen.errors import UsageError
    from lessen.models.module import InMemory

    if not (hasattr(module, "can_generate") and module.can_generate()):  # pyright: ignore[reportCallIssue]
        remedy = "give its data with --batches package.module:name"
        raise UsageError("--calibration", got=f"a {type(module).__name__}", wanted="a model that writes text", remedy=remedy)
    text, _ = settle(InMemory(module, label), Wish(source, 16384, 0, 0.0))
    return list(text.calibration.split(1))
