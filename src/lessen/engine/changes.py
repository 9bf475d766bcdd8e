"""How two jobs differ, by the name of the option: `GPTQ.polish: got 5, wanted 2`."""

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Change = tuple[str, str, str]  # name, value now, value before
INFORMS = ("to",)  # what methods were derived from: told where they differ, and no difference by itself
NAMES = ("label", "recipe")  # the model and the methods in words: told in the place of hashes and of every option


def first_change(before: Mapping[str, Any], now: Mapping[str, Any], partly: bool = False) -> Change | None:
    """The first option that differs, with both values; None if there is none.

    Args:
        before: a job as plain data.
        now: another; `methods` are the texts of method objects. Both may hold `label`, what the model is called, and `recipe`, the methods
            with those options alone that differ from their defaults.
        partly: whether options that `now` does not name are left out.

    >>> first_change({"methods": ["GPTQ(bits=4, polish=2)"]}, {"methods": ["GPTQ(bits=4, polish=5)"]})
    ('GPTQ.polish', '5', '2')
    >>> first_change({"to": "4bpw", "methods": ["RTN(bits=3)"]}, {"to": "5bpw", "methods": ["RTN(bits=4)"]})
    ('--to', '5bpw', '4bpw')
    >>> first_change({"seed": 1, "tokens": 5}, {"seed": 1}, partly=True)
    >>> first_change({"model": "0a1b", "label": "opt"}, {"model": "2c3d", "label": "gpt"})
    ('model', 'gpt', 'opt')
    """
    for option in [*now, *(() if partly else before.keys() - now.keys())]:
        old, new = before.get(option), now.get(option)
        if old == new or option in (*INFORMS, *NAMES):
            continue
        if option in _TOLD:
            return option, *_TOLD[option](before, now)
        if option != "methods" or old is None or new is None:
            return option, _told(new), _told(old)
        for informing in INFORMS:
            if before.get(informing) != now.get(informing):
                return f"--{informing}", _told(now.get(informing)), _told(before.get(informing))
        return _methods(old, new) or ("methods", *_apart(before.get("recipe", old), now.get("recipe", new)))
    return None


def _apart(before: Sequence[str], now: Sequence[str]) -> tuple[str, str]:
    """The methods of each list that the other has not; all of them where only the order differs."""
    new, old = list((Counter(now) - Counter(before)).elements()), list((Counter(before) - Counter(now)).elements())
    new, old = (new, old) if new or old else (list(now), list(before))
    return ", ".join(new) or "no more", ", ".join(old) or "no more"


def _model(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """What both models are called; a hash says nothing to anybody."""
    new, old = (job.get("label") or f"a model with the hash {str(job.get('model'))[:8]}" for job in (now, before))
    return (f"{new} with other weights", f"{old} as it was") if new == old else (new, old)


def _files(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """Files that were written since, by size and time."""
    new, old = now.get("model files") or {}, before.get("model files") or {}
    name = next(name for name in sorted({*new, *old}) if new.get(name) != old.get(name))
    return _stamp(name, new.get(name)), _stamp(name, old.get(name))


def _stamp(name: str, stamp: Sequence[int] | None) -> str:
    if stamp is None:
        return f"no {name}"
    size, changed = stamp
    return f"{name} of {size} bytes, written {datetime.fromtimestamp(changed / 1e9, UTC):%Y-%m-%d %H:%M:%S}"


def _words(_: Mapping[str, Any], __: Mapping[str, Any]) -> tuple[str, str]:
    return "another text", "the text that was read"


_TOLD = {"model": _model, "model files": _files, "calibration windows": _words}
"""Options whose values are hashes and stamps, and how they are told."""


def _methods(before: Sequence[str], now: Sequence[str]) -> Change | None:
    """The option that differs; None where the methods themselves do."""
    if [_name(text) for text in before] != [_name(text) for text in now]:
        return None
    number, old, new = next((i, a, b) for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
    twice = [_name(text) for text in now].count(_name(new)) > 1
    name, got, wanted = _option(_name(new), _parsed(old), _parsed(new))
    return f"method {number + 1}: {name}" if twice else name, got, wanted


def _option(path: str, before: ast.expr | None, now: ast.expr | None) -> Change:
    """The innermost place at which two texts of a method differ."""
    match before, now:
        case ast.Call(func=ast.Name(id=a), keywords=old), ast.Call(func=ast.Name(id=b), keywords=new) if a == b:
            values = {keyword.arg: keyword.value for keyword in old}
            for keyword in new:
                was = values.pop(keyword.arg, None)
                if was is None or ast.dump(was) != ast.dump(keyword.value):
                    return _option(f"{path}.{keyword.arg}", was, keyword.value)
            for name, was in values.items():
                return f"{path}.{name}", "nothing", ast.unparse(was)
        case ast.Tuple(elts=old) | ast.List(elts=old), ast.Tuple(elts=new) | ast.List(elts=new) if len(old) == len(new):
            for number, (was, is_) in enumerate(zip(old, new, strict=True)):
                if ast.dump(was) != ast.dump(is_):
                    return _option(f"{path}[{number}]" + (f".{is_.func.id}" if _same_method(was, is_) else ""), was, is_)  # pyright: ignore
    return path, "nothing" if now is None else ast.unparse(now), "nothing" if before is None else ast.unparse(before)


def _same_method(a: ast.expr, b: ast.expr) -> bool:
    match a, b:
        case ast.Call(func=ast.Name(id=first)), ast.Call(func=ast.Name(id=second)):
            return first == second
        case _:
            return False


def _name(text: str) -> str:
    return text.partition("(")[0]


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def _told(value: Any) -> str:
    return value if isinstance(value, str) else "nothing" if value is None else json.dumps(value)
