"""Calls that answer like a command line: an unknown keyword gets the nearest name, a wrong type what was wanted, in one line.

Python's own TypeError names neither. The signature and the annotations of a function are the only definition of what it takes.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from lessen.errors import UsageError, nearest

P = ParamSpec("P")
R = TypeVar("R")


def strict(*more: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments of a function before it runs; its `**keywords` are fields of the dataclasses `more`.

    >>> @strict()
    ... def half(of: int, *, exactly: bool = True): ...
    >>> half(2, exact=True)
    Traceback (most recent call last):
    lessen.errors.UsageError: half(): got 'exact', wanted one of its arguments; did you mean exactly?
    >>> half("2")
    Traceback (most recent call last):
    lessen.errors.UsageError: half(of): got '2' (str), wanted int
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        name = function.__name__

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            named = [key for key, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
            extra = {field.name for cls in more for field in fields(cls)}
            open_ended = not more and any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
            for key in kwargs:
                if key not in named and key not in extra and not open_ended:
                    raise UsageError(f"{name}()", got=repr(key), wanted="one of its arguments", remedy=nearest(key, {*named, *extra}))
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise UsageError(f"{name}()", got=str(error), wanted=f"{name}({', '.join(named)})") from None
            hints = _hints(function) | {key: hint for cls in more for key, hint in get_type_hints(cls).items()}
            for key, value in {**given.arguments, **kwargs}.items():
                if key in hints and (key in named or key in extra) and not fits(value, hints[key]):
                    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
                    raise UsageError(f"{name}({key})", got=f"{shown} ({type(value).__name__})", wanted=spell(hints[key]))
            return function(*args, **kwargs)

        return checked

    return decorate


def check_fields(options: Any) -> None:
    """Refuse a field of a dataclass whose value is not what its annotation says; called by `__post_init__` before all else.

    >>> from lessen.methods.rtn import RTN
    >>> RTN(4, symmetric="no")
    Traceback (most recent call last):
    lessen.errors.UsageError: RTN: got symmetric='no', wanted bool
    """
    hints = get_type_hints(type(options))
    for field in fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        listed = isinstance(value, list) and get_origin(hint) is tuple
        if not (listed or fits(value, hint)):
            share = re.fullmatch(r"\s*(\d+\.?\d*)\s*%\s*", value) if isinstance(value, str) and fits(0.5, hint) else None
            remedy = f"write {field.name}={float(share[1]) / 100:g}" if share and float(share[1]) < 100 else None
            raise UsageError(type(options).__name__, got=f"{field.name}={value!r}"[:80], wanted=spell(hint), remedy=remedy)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function; those that only a type checker can resolve are left out."""
    try:
        return {key: p.annotation for key, p in inspect.signature(function, eval_str=True).parameters.items()}
    except NameError:
        return {key: p.annotation for key, p in inspect.signature(function).parameters.items() if not isinstance(p.annotation, str)}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as can be seen from outside (a list of wrong things is a list).

    >>> fits(3, float), fits(True, int), fits("ab", Sequence[str]), fits(None, int | None)
    (True, False, False, True)
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty or isinstance(hint, str | TypeVar):
        return True
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if origin is Mapping or origin is not None:
        return isinstance(value, origin)
    try:
        return isinstance(value, hint)
    except TypeError:  # a protocol that cannot be asked
        return True


def spell(hint: Any) -> str:
    """An annotation in words.

    >>> spell(Sequence[str] | None)
    'a list or None'
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(spell(arg) for arg in get_args(hint))
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    words = {None: "None", NoneType: "None", Sequence: "a list", Mapping: "a mapping", Callable: "a function"}
    return words.get(origin or hint) or getattr(hint, "__name__", str(hint))
