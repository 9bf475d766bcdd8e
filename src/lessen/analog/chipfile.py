r"""Chips as TOML: a table for each part, read strictly, written so that reading gives the same chip again.

    name = "mine"
    compensation = "tile"
    [device]
    kind = "PCM"                       # one of analog.devices.DEVICES; its fields follow
    g_max = 20.0
    [encoding]
    kind = "Differential"              # or Offset, Sliced (with [encoding.pair])
    [adc]
    bits = 8                           # what is left out keeps its default; "none" is None

Presets lie beside this file, one each, with what is published and what is not.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lessen.analog.chip import Chip
from lessen.analog.devices import DEVICES
from lessen.analog.devices.device import Device
from lessen.core.tables import Place, construct, hints
from lessen.errors import UsageError, nearest


@cache
def presets() -> tuple[str, ...]:
    """Names of the chips that come with the package.

    >>> "pcm-hermes" in presets()
    True
    """
    found = files("lessen.analog.presets").iterdir()
    return tuple(sorted(item.name.removesuffix(".toml") for item in found if item.name.endswith(".toml")))


def preset(name: str) -> Chip:
    """A chip that comes with the package.

    >>> preset("pcm-hermes").array.rows
    256
    >>> preset("pcm-hermse")
    Traceback (most recent call last):
    lessen.errors.UsageError: preset: got pcm-hermse, wanted a chip that comes with lessen; did you mean pcm-hermes?
    """
    if name not in presets():
        raise UsageError("preset", got=name, wanted="a chip that comes with lessen", remedy=nearest(name, presets()))
    return loads(files("lessen.analog.presets").joinpath(f"{name}.toml").read_text(encoding="utf-8"), f"preset {name}")


def load(path: str | Path) -> Chip:
    """Read a chip file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            str(path), got=got.lower(), wanted="a chip in TOML", remedy="lessen analog presets lists chips to start from"
        ) from None
    return loads(text, str(path))


def loads(text: str, where: str = "chip") -> Chip:
    """Read a chip from TOML text; `where` is the name that errors give it."""
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        line = re.search(r"line (\d+)", str(error))
        raise UsageError(f"{where}:{line[1]}" if line else where, got=str(error), wanted="TOML", remedy="words need quotes") from None
    place = Place(where, text)
    return construct(Chip, _nested(Chip, data, place, ()), place, _refuse, "key")


def dumps(chip: Chip) -> str:
    """A chip as TOML, everything spelt out.

    >>> loads(dumps(preset("isaac"))) == preset("isaac")
    True
    """
    return "\n".join(_lines(chip, (), None)) + "\n"


def _nested(cls: type, data: Mapping[str, Any], place: Place, path: tuple[str, ...]) -> dict[str, Any]:
    """A table whose tables within it have become objects."""
    known, made = hints(cls), {}
    for key, value in data.items():
        kinds = kinds_of(known[key]) if key in known else {}
        if not kinds:
            made[key] = value
            continue
        inner = (*path, key)
        header = place.find(rf"^\s*\[\s*{re.escape('.'.join(inner))}\s*\]")
        here = header if header != place else place.key(key)
        if not isinstance(value, Mapping):
            raise UsageError(str(here), got=f"{'.'.join(inner)} = {value!r}", wanted=f"a table [{'.'.join(inner)}]")
        made[key] = _object(kinds, value, here, inner)
    return made


def _object(kinds: dict[str, type], value: Mapping[str, Any], place: Place, path: tuple[str, ...]) -> Any:
    """The object that a table describes; where it may be of several kinds it says which."""
    kind, given = next(iter(kinds)), dict(value)
    if len(kinds) > 1:
        named = given.pop("kind", None)
        if not isinstance(named, str) or named not in kinds:
            got = "no kind" if named is None else f"kind = {named!r}"
            remedy = nearest(str(named or ""), kinds)
            raise UsageError(
                str(place.key("kind") if named else place), got=f"{got} in [{'.'.join(path)}]", wanted="one that exists", remedy=remedy
            )
        kind = named
    cls = kinds[kind]
    return construct(cls, _nested(cls, given, place, path), place, _refuse, "key")


def _refuse(value: Any, want: Any, place: Place) -> Any:
    """Objects are made before `construct` sees them; nothing else is one."""
    if is_dataclass(value):
        return value
    raise UsageError(str(place), got=repr(value), wanted="a table")


def kinds_of(hint: Any) -> dict[str, type]:
    """Dataclasses that a field with this annotation may hold, by name; none for a plain value.

    >>> list(kinds_of(Chip.__annotations__["encoding"]))
    ['Differential', 'Offset', 'Sliced']
    """
    if hint is Device:
        return {cls.__name__: cls for cls in DEVICES}
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {cls.__name__: cls for cls in options if isinstance(cls, type) and is_dataclass(cls)}


def _lines(part: Any, path: tuple[str, ...], kind: str | None) -> Iterator[str]:
    """Lines of a table and, after its own entries, of those within it."""
    if path:
        yield ""
        yield f"[{'.'.join(path)}]"
    if kind:
        yield f"kind = {_literal(kind)}"
    known, tables = hints(type(part)), []
    for field in fields(part):
        if field.name not in known:
            continue
        value = getattr(part, field.name)
        if kinds := kinds_of(known[field.name]):
            tables.append((field.name, value, type(value).__name__ if len(kinds) > 1 else None))
        else:
            yield f"{field.name} = {_literal(value)}"
    for name, value, inner in tables:
        yield from _lines(value, (*path, name), inner)


def _literal(value: Any) -> str:
    """A plain value in TOML."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(_escaped(letter) for letter in value) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    return letter if letter >= " " and letter != "\x7f" else f"\\u{ord(letter):04x}"
