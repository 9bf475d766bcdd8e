"""The options of a method as data, read from its dataclass: what help, documentation and error messages say about them."""

import ast
import inspect
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Option:
    """One option of a method, for help and documentation."""

    name: str
    type: str
    default: Any
    help: str


def options(method: type[Any]) -> list[Option]:
    """The options of a method class, read from its dataclass fields; the help is the docstring under each field.

    >>> from lessen.methods.rtn import RTN
    >>> options(RTN)[0]
    Option(name='bits', type='an integer', default=4, help='Width of a code, 2 to 8.')
    """
    helps: dict[str, str] = {}
    for cls in reversed([c for c in method.__mro__ if is_dataclass(c)]):
        body = ast.parse(inspect.getsource(cls)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match after:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        helps[field.target.id] = inspect.cleandoc(text)
    hints, normal = get_type_hints(method), method()
    return [Option(f.name, spell(hints[f.name]), getattr(normal, f.name), helps.get(f.name, "")) for f in fields(method) if f.init]


def spell(want: Any) -> str:
    """An annotation in words.

    >>> spell(int | None), spell(Literal["mse", "absmax"])
    ('an integer or none', "'mse' or 'absmax'")
    """
    origin, args = get_origin(want), get_args(want)
    if origin in (Union, UnionType):
        return " or ".join(spell(arg) for arg in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        return f"a list, each {spell(args[0])}"
    return {NoneType: "none", int: "an integer", float: "a number", bool: "true or false", str: "a string"}.get(want, "a method")
