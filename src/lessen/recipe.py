"""Recipes: a list of methods as TOML, as one line of text, or as JSON. The only place where strings become objects.

    calibration = "notes.txt"          # or "builtin"; tokens = 16384; seed = 0
    [[method]]
    name = "GPTQ"
    bits = 4
    candidates = ["GPTQ(bits=4)", {name = "RTN", bits = 4}]      # where an option holds methods, both spellings serve

A method's dataclass fields are the only definition of its options: their names, their annotations (which decide what a value may be)
and the docstring under each field (which is its help). Nothing is guessed: an unknown name answers with the nearest one, a value of
the wrong type with what was wanted, both with the line of the file.
"""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from lessen.core.tables import Place, coerce, construct
from lessen.errors import UsageError, nearest

if TYPE_CHECKING:
    from lessen.core.method import Method


@dataclass(frozen=True)
class Recipe(Sequence["Method"]):
    r"""Methods in the order in which they decide, with the settings that a recipe file may carry (None: not said).

    >>> loads('tokens = 4096\n[[method]]\nname = "RTN"\nbits = 3').tokens
    4096
    """

    methods: "tuple[Method, ...]"
    calibration: str | None = None
    """Path of the calibration text, or "builtin"."""
    tokens: int | None = None
    """How many calibration tokens to read."""
    seed: int | None = None
    """Seed of everything random."""

    def __len__(self) -> int:
        return len(self.methods)

    def __getitem__(self, index: Any) -> Any:
        return self.methods[index]

    def __iter__(self) -> "Iterator[Method]":
        return iter(self.methods)


@dataclass(frozen=True)
class Dial:
    """The one wish from which a recipe can be derived.

    Attributes:
        kind: "bytes" of all weights, "bpw" (bits per weight over the whole model), or "times" the bytes of the source.
        value: in that unit.

    >>> Dial.parse("70MB"), Dial.parse("4.5bpw"), Dial.parse("0.5x")
    (Dial(kind='bytes', value=70000000.0), Dial(kind='bpw', value=4.5), Dial(kind='times', value=0.5))
    """

    kind: Literal["bytes", "bpw", "times"]
    value: float

    @classmethod
    def parse(cls, text: str, where: str = "--to") -> "Dial":
        """Read `70MB`, `64MiB`, `4bpw` or `0.5x`; UsageError for anything else."""
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]+)\s*", text, re.IGNORECASE)
        number, unit = (float(found[1]), found[2].lower()) if found else (0.0, "")
        if unit in _BYTES and number > 0:
            return cls("bytes", number * _BYTES[unit])
        if unit == "bpw" and 0 < number <= 32:
            return cls("bpw", number)
        if unit == "x" and 0 < number <= 1:
            return cls("times", number)
        raise UsageError(
            where, got=repr(text), wanted="a size (70MB), bits per weight (4bpw, up to 32) or a share of the source (0.5x, up to 1)"
        )

    def __str__(self) -> str:
        unit, scale = {"bytes": ("MB", 1e6), "bpw": ("bpw", 1), "times": ("x", 1)}[self.kind]
        return f"{self.value / scale:.15g}{unit}"


_BYTES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def load(path: str | Path) -> Recipe:
    """Read a recipe file (.toml, or .json as `to_json` gives it)."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise UsageError(str(path), got=got.lower(), wanted="a recipe in TOML", remedy="lessen ls shows methods and options") from None
    return loads(text, str(path))


def loads(text: str, where: str = "recipe") -> Recipe:
    """Read a recipe from TOML (or JSON) text; `where` is the name that errors give it."""
    try:
        data = _from_json_text(text) if text.lstrip().startswith(("[{", "{")) else tomllib.loads(text)
    except ValueError as error:
        line = re.search(r"line (\d+)", str(error))
        raise UsageError(f"{where}:{line[1]}" if line else where, got=str(error), wanted="TOML", remedy="words need quotes") from None
    return _recipe(data, Place(where, text))


def parse(methods: str | Iterable[str], where: str = "--method") -> Recipe:
    """Read methods from lines such as `GPTQ(bits=4, group=64)`.

    >>> list(parse("RTN(bits=3)"))[0].bits
    3
    >>> parse("GTPQ")
    Traceback (most recent call last):
    lessen.errors.UsageError: --method: got the method GTPQ, wanted one that exists; did you mean GPTQ?
    """
    texts = [methods] if isinstance(methods, str) else methods
    return Recipe(tuple(_method(text, Place(where)) for text in texts))


def to_json(methods: "Iterable[Method]") -> list[dict[str, Any]]:
    """Methods as plain data, every option spelt out, for records and for `from_json`."""
    return [_plain(method) for method in methods]


def from_json(data: Sequence[Mapping[str, Any]], where: str = "recipe") -> "list[Method]":
    """The methods that `to_json` described; as strict as a file."""
    return [_method(item, Place(where)) for item in data]


def _recipe(data: Mapping[str, Any], place: Place) -> Recipe:
    hints = get_type_hints(Recipe, localns={"Method": object})
    settings = {name: hint for name, hint in hints.items() if name != "methods"}
    unknown = [key for key in data if key not in {"method", *settings}]
    if unknown:
        raise UsageError(
            str(place.key(unknown[0])),
            got=f"the key {unknown[0]}",
            wanted="a key of a recipe",
            remedy=nearest(unknown[0], ["method", *settings]),
        )
    items = data.get("method", [])
    if not isinstance(items, list) or not items:
        raise UsageError(str(place), got="no [[method]]", wanted="at least one", remedy='add [[method]] and name = "GPTQ"')
    methods = tuple(_method(item, place.find(r"^\s*\[\[\s*method\s*\]\]", i)) for i, item in enumerate(items, 1))
    return Recipe(methods, **{key: coerce(data[key], settings[key], place.key(key), key, _nested) for key in settings if key in data})


def _method(item: Any, place: Place) -> Any:
    """Build one method from a table, a line of text, or the method itself."""
    from lessen.methods import METHODS

    known = {cls.__name__: cls for cls in METHODS}
    if type(item) in known.values():
        return item
    item = call(item, str(place)) if isinstance(item, str) else item
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise UsageError(str(place), got=repr(item), wanted='a method: {name = "GPTQ", bits = 4} or "GPTQ(bits=4)"')
    spelt = str(item["name"])
    name = {word.lower(): word for word in known}.get(spelt.lower(), spelt)
    if name not in known:
        raise UsageError(str(place.key("name")), got=f"the method {name}", wanted="one that exists", remedy=nearest(name, known))
    return construct(known[name], {key: value for key, value in item.items() if key != "name"}, place, _nested)


def _nested(value: Any, want: Any, place: Place) -> Any:
    """Where an option holds a method."""
    return _method(value, place)


_PATTERN = re.compile(r"""([=\[,]\s*)((?![-+.\d])[\w*.+/-]*[*.][\w*.+/-]*)(?=\s*[,)\]])""")
"""Names of modules, with dots and *, which are no Python."""


def call(text: str, where: str) -> dict[str, Any]:
    """A name with options as the table that it abbreviates. Bare words and patterns are strings, except true, false and none.

    >>> call("GPTQ(bits=4, scale=mse)", "--method")
    {'name': 'GPTQ', 'bits': 4, 'scale': 'mse'}
    >>> call("HPD(rank=8, targets=[*.o_proj, model.layers.0.*])", "--method")
    {'name': 'HPD', 'rank': 8, 'targets': ['*.o_proj', 'model.layers.0.*']}
    """

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(k.arg for k in keywords):
                return {"name": name} | {k.arg: value(k.value) for k in keywords}
            case ast.Name(id=word):
                return {"true": True, "false": False, "none": None}.get(word.lower(), word)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [value(item) for item in items]
            case _:
                return ast.literal_eval(node)

    for spelt in (text.strip(), _PATTERN.sub(r"\1'\2'", text.strip())):
        try:
            body = ast.parse(spelt, mode="eval").body
            return {"name": body.id} if isinstance(body, ast.Name) else value(body)
        except (SyntaxError, ValueError):
            continue
    raise UsageError(where, got=repr(text), wanted="a name with its options", remedy="write it like GPTQ(bits=4, group=64)")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {"name": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.init}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _from_json_text(text: str) -> dict[str, Any]:
    import json

    data = json.loads(text)
    return {"method": data} if isinstance(data, list) else data
