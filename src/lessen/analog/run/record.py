"""What a run on a chip knows, as one JSON object: `analog.json` in its directory. Reports and tables read it and nothing else."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from lessen.analog.mapping import Mapped
from lessen.analog.run.judges import Metric
from lessen.analog.simulation import Simulation, spell
from lessen.errors import LessenError, UsageError

FILE, SCHEMA_VERSION = "analog.json", 1
_ASKED = "asked.json"


@dataclass
class AnalogRun:
    """Everything about one run.

    Attributes:
        kind: "simulate", "cost", "robust" or "explore".
        source: the model: label, architecture, parameters, whether it writes text.
        chip: its name.
        toml: the chip, everything spelt out.
        derived: figures that follow from it, by name.
        metrics: what was judged, the number that counts first: name, title, better.
        qualities: one for each network that was looked at ("as mapped", "made robust"): name, `digital` values, `rows` for each metric (one
            for each time: seconds, time in words, chips, mean, spread, least, most) and all `looks`.
        layers: those on tiles: name, inputs, outputs, tiles, utilisation.
        digital: weighted modules that stayed digital, and why.
        methods: what was done to the network, in order.
        costs: what an inference costs, by what an inference is ("inference"; "prompt" and "token").
        context: tokens of the prompt.
        exploration: designs, front and what was refused.
        notes: choices made for the user, said aloud.
        seconds: wall-clock seconds by phase.
    """

    kind: str
    source: dict[str, Any] = field(default_factory=dict)
    chip: str = ""
    toml: str = ""
    derived: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, str]] = field(default_factory=list)
    qualities: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    digital: dict[str, str] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    context: int | None = None
    exploration: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = "python"
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """As plain data; a number that is not finite is None, since JSON has none (`unjudged` tells of it)."""
        return _finite(asdict(self))

    def save(self, folder: Path) -> None:
        """Write into a directory, aside and then renamed."""
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / FILE, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "AnalogRun":
        """Read what `save` wrote."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise LessenError(str(path), got=f"{type(error).__name__}: {error}", wanted="the record of an analog run") from None


def quality(name: str, found: Simulation, metrics: tuple[Metric, ...]) -> dict[str, Any]:
    """One network's quality over time, as a record holds it."""
    rows = {m.name: [{**row, "time": spell(row["seconds"])} for row in found.summary(m.name)] for m in metrics}
    return {"name": name, **found.to_json(), "rows": rows}


def unjudged(name: str, found: Simulation, metrics: tuple[Metric, ...]) -> list[str]:
    """What to say of a judge that gave no finite number."""
    notes = []
    for metric in metrics:
        looks = [look for look in found.looks if not isfinite(look.values[metric.name])]
        if looks:
            first = looks[0]
            where = f"chip {first.chip} at {spell(first.seconds)} is {first.values[metric.name]}"
            notes.append(
                f"{metric.title}, {name}, is no finite number in {len(looks)} of {len(found.looks)} looks ({where}): no mean there."
            )
    return notes


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def placed(mapped: Mapped) -> list[dict[str, Any]]:
    """The layers on tiles."""
    rows = []
    for name in mapped.layers:
        place = mapped.tiles(name).place
        room = place.tiles * mapped.chip.array.rows * mapped.chip.columns
        used = place.groups * place.inputs * place.outputs
        rows.append({"name": name, "inputs": place.inputs, "outputs": place.outputs, "groups": place.groups, "tiles": place.tiles,
                     "utilisation": used / room})  # fmt: skip
    return rows


def write(path: Path, text: str) -> None:
    """Write a file aside and rename it."""
    aside = path.with_name(f"{path.name}.aside")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def claim(out: Path, asked: Mapping[str, Any]) -> None:
    """Make a directory for a run, or go on in one that was made for the same; what is known later (weights) is added by another call.

    Raises:
        UsageError: it holds something else.
    """
    said = json.loads(json.dumps(asked, default=str))
    if (out / _ASKED).is_file():
        held = json.loads((out / _ASKED).read_text(encoding="utf-8"))
        other = [key for key, value in said.items() if key in held and held[key] != value]
        if other:
            got = f"a run with another {other[0]}"
            raise UsageError(str(out), got=got, wanted="the same run to go on with, or a new directory", remedy="choose another --out")
        if said.keys() - held.keys():
            write(out / _ASKED, json.dumps(held | said, indent=1) + "\n")
        return
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(str(out), got="something else", wanted="a new directory, or a run to go on with", remedy="choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write(out / _ASKED, json.dumps(said, indent=1) + "\n")
