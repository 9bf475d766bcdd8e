"""Numbers and names as people read them; every view of a record writes them through here, so that they agree to the digit."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "–"


def number(x: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits, with a true minus sign and separators in thousands.

    >>> [number(x) for x in (26.512, 0.041234, 1234567, 0.0000123, 0, None)]
    ['26.5', '0.0412', '1,234,567', '1.23e-5', '0', '–']
    >>> number(4.2)
    '4.20'
    """
    if x is None:
        return MISSING
    if isinstance(x, bool):
        return "yes" if x else "no"
    if x == 0:
        return "0"
    if isinstance(x, int) or abs(x) >= 10 ** (digits - 1):
        text = f"{x:,.0f}"
    elif abs(x) < 1e-3:
        mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{x:#.{digits}g}".rstrip(".")
    return text.replace("-", "−") if text.startswith("-") else text


def count(n: float | None) -> str:
    """A large count in millions or billions.

    >>> count(134_515_008), count(8_030_261_248), count(1_234)
    ('134.5 M', '8.03 G', '1,234')
    """
    if n is None:
        return MISSING
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if n >= factor:
            return f"{number(n / factor, 4 if n >= 100 * factor else 3)} {unit}"
    return number(n)


def size(n: float | None) -> str:
    """Bytes in decimal units, as disks and model hubs count them.

    >>> size(538_090_408), size(79_000_000), size(1_250), size(12)
    ('538 MB', '79.0 MB', '1.25 kB', '12 B')
    """
    if n is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= factor:
            return f"{number(n / factor)} {unit}"
    return f"{n:.0f} B"


def percent(x: float | None) -> str:
    """A share as percent.

    >>> percent(0.9134)
    '91.3 %'
    """
    return MISSING if x is None else f"{100 * x:.1f} %"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best.

    >>> duration(0.25), duration(12.34), duration(184), duration(7384)
    ('0.250 s', '12.3 s', '3 min 4 s', '2 h 3 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{number(float(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def value(x: Any) -> str:
    """Any JSON value on one line.

    >>> value({"torch": "2.13", "threads": 2}), value([1, 2]), value(None), value(0.25)
    ('torch 2.13, threads 2', '1, 2', '–', '0.250')
    """
    match x:
        case None:
            return MISSING
        case Mapping():
            return ", ".join(f"{k} {value(v)}" for k, v in x.items())
        case list() | tuple():
            return ", ".join(value(v) for v in x)
        case bool() | float() | int():
            return number(x)
        case _:
            return str(x)


def short(method: str) -> str:
    """The name of a method without its options.

    >>> short("GPTQ(bits=4, group=32)")
    'GPTQ'
    """
    return method.partition("(")[0]


def role(unit: str) -> str:
    """What a tensor is, without the block that it lies in.

    >>> role("model.layers.3.self_attn.q_proj.weight"), role("model.layers.3"), role("lm_head.weight")
    ('q_proj', 'layers', 'lm_head')
    """
    parts = [part for part in unit.removesuffix(".weight").split(".") if not part.isdigit()]
    return parts[-1] if parts else unit


def method_line(entry: Mapping[str, Any]) -> str:
    """One method of a recipe as a call, its options as keywords; methods inside methods too.

    >>> method_line({"name": "Select", "candidates": [{"name": "RTN", "bits": 4}, {"name": "GPTQ", "bits": 4, "group": None}]})
    'Select(candidates=[RTN(bits=4), GPTQ(bits=4, group=None)])'
    """
    return f"{entry.get('name', '')}({', '.join(f'{k}={_spelt(v)}' for k, v in entry.items() if k != 'name')})"


def _spelt(x: Any) -> str:
    if isinstance(x, Mapping):
        return method_line(x)
    return f"[{', '.join(map(_spelt, x))}]" if isinstance(x, list | tuple) else repr(x)


def distinct(methods: Iterable[str]) -> dict[str, str]:
    """Names just long enough to tell methods apart: options appear only where two share a name, and only those that differ.

    >>> distinct(["RTN(bits=4, group=64)", "GPTQ(bits=4, group=64)", "GPTQ(bits=4, group=64, correction=0.5)"]).values()
    dict_values(['RTN', 'GPTQ', 'GPTQ correction=0.5'])
    """
    options = {method: re.findall(r"\w+=[^=]+?(?=, \w+=|\)$)", method) for method in dict.fromkeys(methods)}
    names: dict[str, str] = {}
    for method, mine in options.items():
        rivals = [other for name, other in options.items() if short(name) == short(method)]
        common = set.intersection(*map(set, rivals))
        names[method] = " ".join([short(method), *(option for option in mine if option not in common)])
    return names


def slug(text: str) -> str:
    """A title as a fragment of an address.

    >>> slug("Error by block")
    'error-by-block'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
