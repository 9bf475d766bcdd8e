"""Values of a TOML table as the annotations of a dataclass ask for them; what does not fit is an error with its line.

Shared by recipes (methods) and chip files: one notion of what a wrong word, a wrong type or an unknown key is answered with.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lessen.core.options import spell
from lessen.errors import LessenError, UsageError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a piece of a file stands, to name its line when something is wrong with it."""

    label: str
    text: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.label}:{self.line}" if self.line else self.label

    def find(self, pattern: str, count: int = 1) -> "Place":
        """The `count`-th line from here on that matches, or here when none does."""
        lines = enumerate(self.text.splitlines(), 1)
        hits = [n for n, line in lines if n >= self.line and re.search(pattern, line.split(" #")[0])]
        return replace(self, line=hits[count - 1]) if len(hits) >= count else self

    def key(self, name: str) -> "Place":
        """The line from here on that sets a key."""
        return self.find(rf"""(?:^|[\s{{,"']){re.escape(name)}["']?\s*[=:]""")


Nested = Callable[[Any, Any, Place], Any]
"""Makes an object of a table, or of words that stand for one: from the value, what its annotation wants, and where it stands."""


def hints(cls: type) -> dict[str, Any]:
    """What the fields of a dataclass may be.

    >>> from lessen.methods.rtn import RTN
    >>> hints(RTN)["bits"]
    <class 'int'>
    """
    known = get_type_hints(cls)
    return {field.name: known[field.name] for field in fields(cls) if field.init}


def construct(cls: type[T], given: Mapping[str, Any], place: Place, nested: Nested, noun: str = "option") -> T:
    """An object of a dataclass from the entries of a table.

    Raises:
        UsageError: an unknown key (with the nearest one), a wrong type, or values that the class refuses.
    """
    known, name = hints(cls), cls.__name__
    for key in given:
        if key not in known:
            raise UsageError(
                str(place.key(key)), got=f"the {noun} {key}", wanted=f"{_article(noun)} {noun} of {name}", remedy=nearest(key, known)
            )
    values = {key: coerce(value, known[key], place.key(key), f"{name}.{key}", nested) for key, value in given.items()}
    try:
        return cls(**values)
    except LessenError as error:
        raise UsageError(f"{place}: {error.where}", got=error.got, wanted=error.wanted, remedy=error.remedy) from None


def coerce(value: Any, want: Any, place: Place, name: str, nested: Nested) -> Any:
    """`value` as the annotation `want` asks for, or a UsageError."""
    origin, args = get_origin(want), get_args(want)
    if origin in (Union, UnionType):
        for option in args:
            with suppress(UsageError):
                return coerce(value, option, place, name, nested)
    elif origin is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        if isinstance(value, str):
            remedy = nearest(value, map(str, args))
            raise UsageError(str(place), got=f"{name} = {value!r}", wanted=spell(want), remedy=remedy)
    elif want is NoneType:
        if value is None or value == "none":
            return None
    elif want is float and type(value) is int:
        return float(value)
    elif want in (bool, int, float, str):
        if type(value) is want:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            return tuple(coerce(item, args[0], place, name, nested) for item in value)
        if len(args) == len(value):
            return tuple(coerce(item, arg, place, name, nested) for item, arg in zip(value, args, strict=True))
    elif origin is not tuple and (isinstance(value, str | Mapping) or is_dataclass(value)):
        return nested(value, want, place)
    raise UsageError(str(place), got=f"{name} = {value!r} ({type(value).__name__})", wanted=spell(want))


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
