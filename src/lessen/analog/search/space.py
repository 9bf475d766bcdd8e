"""Spaces of chips from text, for searches: fields of a chip by path, and their values.

    [space]                                             or on one line:  adc.bits=5,6,7,8
    "adc.bits" = [5, 6, 7, 8]
    array = [128, "256x512"]                            rows, or rows x columns
    encoding = ["Differential", "Sliced(bits=8, cell_bits=2)"]
    device = ["PCM", "CmoRRAM", "rram-milo"]            kinds with options, or the device of a preset
    "device.g_max" = {low = 10.0, high = 30.0}          any number between; log = true spreads its logarithm evenly

Values are what the annotations of the fields ask for, as in chip files; what does not fit is an error with its line.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from lessen.analog import chipfile
from lessen.analog.chip import Array, Chip
from lessen.analog.chipfile import kinds_of
from lessen.analog.devices.device import Device
from lessen.analog.search.change import known_field
from lessen.analog.search.trials import Range, Space
from lessen.core.tables import Place, coerce, construct, hints
from lessen.errors import UsageError, nearest
from lessen.recipe import call


def load(path: str | Path, base: Chip) -> Space:
    """Read a space from a TOML file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except OSError as error:
        raise UsageError(
            str(path), got=(error.strerror or str(error)).lower(), wanted="a space in TOML", remedy='"adc.bits" = [6, 8]'
        ) from None
    except ValueError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        raise UsageError(where, got=str(error), wanted="TOML", remedy='[space] and "adc.bits" = [6, 8]') from None
    unknown = [key for key in data if key != "space"]
    if unknown or not isinstance(data.get("space"), Mapping) or not data["space"]:
        got = f"the key {unknown[0]}" if unknown else "no [space]"
        raise UsageError(str(path), got=got, wanted="one table [space]", remedy='[space] and "adc.bits" = [6, 8]')
    place = Place(str(path), text)
    return {path: values(base, path, given, place.key(path)) for path, given in _flat(data["space"]).items()}


def parse(lines: Sequence[str], base: Chip) -> Space:
    """Read a space from lines such as `adc.bits=5,6,7,8`.

    >>> parse(["adc.bits=5,6", "array=64,128x256"], Chip())
    {'adc.bits': (5, 6), 'array': (Array(rows=64, columns=64), Array(rows=128, columns=256))}
    """
    found = {}
    for line in lines:
        path, equals, given = line.partition("=")
        if not equals or not path or not given:
            raise UsageError("--vary", got=repr(line), wanted="field=value,value", remedy="adc.bits=5,6,7,8")
        place = Place(f"--vary {path}")
        if path.strip() in found:
            raise UsageError(str(place), got="the field twice", wanted="all of its values at once", remedy=f"{path.strip()}={given},...")
        parts = [_word(part.strip()) for part in re.split(r",(?![^()]*\))", given)]
        found[path.strip()] = values(base, path.strip(), parts, place)
    return found


def values(base: Chip, path: str, given: Any, place: Place) -> tuple[Any, ...] | Range:
    """The values of one field.

    Raises:
        UsageError: a path that the chip does not have, or a value that the field does not take.
    """
    owner: Any = base
    *parents, leaf = path.split(".")
    for name in parents:
        known_field(owner, name, str(place))
        owner = getattr(owner, name)
    known_field(owner, leaf, str(place))
    want = hints(type(owner))[leaf]
    if isinstance(given, Mapping):
        return construct(Range, given, place, _nothing, "key")
    if not isinstance(given, list) or not given:
        raise UsageError(str(place), got=repr(given), wanted="a list of values, or {low = .., high = ..}")
    kinds = kinds_of(want)
    if kinds:
        return tuple(_part_of(value, want, kinds, place, path) for value in given)
    return tuple(coerce(value, want, place, path, _nothing) for value in given)


def _part_of(value: Any, want: Any, kinds: Mapping[str, type], place: Place, path: str) -> Any:
    """A part of a chip from the words that stand for it."""
    if want is Array and (found := re.fullmatch(r"(\d+)(?:\s*x\s*(\d+))?", str(value))):
        return construct(Array, {"rows": int(found[1]), "columns": int(found[2] or found[1])}, place, _nothing, "key")
    if want is Device and value in chipfile.presets():
        return chipfile.preset(str(value)).device
    given = call(value, str(place)) if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = str(given.pop("name", given.pop("kind", next(iter(kinds)) if len(kinds) == 1 else "")))
    if name not in kinds:
        raise UsageError(str(place), got=f"{path} = {value!r}", wanted="a part that exists", remedy=nearest(name, kinds))

    def nested(inner: Any, hint: Any, where: Place) -> Any:
        return inner if is_dataclass(inner) else _part_of(inner, hint, kinds_of(hint), where, path)

    return construct(kinds[name], given, place, nested, "option")


def _nothing(value: Any, want: Any, place: Place) -> Any:
    raise UsageError(str(place), got=repr(value), wanted="a plain value")


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Paths of a table in tables; a range is a value."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            found |= _flat(value, f"{path}.")
        else:
            found[path] = value
    return found


def _word(text: str) -> Any:
    """A value on the command line: a number, true, false, none, or a word."""
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
