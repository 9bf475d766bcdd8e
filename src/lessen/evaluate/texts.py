"""What a model is judged on: held-out text as token windows, none of which was calibrated on.

Without a wish there are two built-in texts: documentation, which is near the built-in calibration text, and program text, which is far from
it. A method that merely fits its calibration text looks good on the first alone.

Text that the user names and that was calibrated on is refused. Windows of built-in text that were calibrated on are left out, with a
note that says so.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lessen.errors import LessenError, UsageError
from lessen.stats import data
from lessen.stats.overlap import shared
from lessen.stats.text import NAMES, Text, builtin

WINDOW, WINDOWS, FAR_WINDOWS = 512, 16, 6
"""Tokens in a window, windows of a text, and windows of built-in code: fewer, since the second text is there to compare the first with."""
_NEARNESS = {NAMES["evaluation"]: "near", NAMES["code"]: "far"}


@dataclass(frozen=True)
class HeldOut:
    """Token windows "windows seq" by name of the text, and what the user should know of them."""

    tokens: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def read(
    tokenizer: Any, sources: Sequence[str | Path | Text] | None = None, *, windows: int | None = None, length: int | None = None
) -> HeldOut:
    """Texts as windows, in the order of the text.

    Args:
        tokenizer: of the model that will read them.
        sources: text files, directories, or `Text`; None or none takes the built-in texts.
        windows: of each text at most; None takes 16, and 6 of built-in code.
        length: tokens in each; None takes 512.

    Raises:
        LessenError: text that cannot be read, or is shorter than one window. UsageError: numbers that make no windows.
    """
    if windows is not None and windows < 1:
        raise UsageError("windows", got=str(windows), wanted="at least 1")
    texts, notes = ([s if isinstance(s, Text) else data.read_text(s) for s in sources], []) if sources else _builtin()
    tokens: dict[str, Tensor] = {}
    for number, text in enumerate(texts):
        most = windows or (FAR_WINDOWS if text.name == NAMES["code"] else WINDOWS)
        name = text.name if text.name not in tokens else f"{text.name} ({number + 1})"  # two files may share their stem
        tokens[name] = data.sequential_windows(tokenizer, text, length or WINDOW, at_most=most)
    return HeldOut(tokens, notes)


def _builtin() -> tuple[list[Text], list[str]]:
    near = builtin("evaluation")
    try:
        return [near, builtin("code")], []
    except LessenError as error:
        return [near], [f"Judged on text near the calibration text alone, because of the {error}."]


def apart(held: HeldOut, known: Mapping[str, Any] | None, tokenizer: Any) -> HeldOut:
    """The windows that were not calibrated on.

    Args:
        held: what `read` gave, or windows of the caller's.
        known: fingerprint of the calibration text; None: nothing was calibrated on.
        tokenizer: of the model.

    Raises:
        LessenError: text that is not built in holds calibration text; names the windows and shows the words.
    """
    if known is None:
        return held
    tokens, notes = {}, list(held.notes)
    for name, ids in held.tokens.items():
        hits = shared([tokenizer.decode(row, skip_special_tokens=True) for row in ids.tolist()], known)
        rows = [hit.window for hit in hits]
        if hits and (name not in _NEARNESS or len(rows) == len(ids)):
            raise LessenError(
                f"text {name!r}",
                got=f"{len(rows)} of {len(ids)} windows that hold calibration text, window {rows[0]} {hits[0].words!r}",
                wanted="text that was not calibrated on",
                remedy="choose another text for one of the two",
            )
        if hits:
            notes.append(f"{len(rows)} of {len(ids)} windows of {name} were left out: they hold calibration text.")
        tokens[name] = ids[[i for i in range(len(ids)) if i not in rows]] if hits else ids
    return HeldOut(tokens, notes)


def calibrated_on(ref: Any) -> tuple[Mapping[str, Any] | None, list[str]]:
    """Fingerprint of the text that the model was calibrated on, from the `lessen.json` beside it, and what is not known of it.

    Args:
        ref: what names a model, or a checkpoint or module that was opened by name. For an exported file the record lies up to two
            directories above.
    """
    opened = getattr(ref, "label", None) or getattr(getattr(ref, "config", None), "_name_or_path", None)
    path = Path(ref if isinstance(ref, str | Path) else str(opened or "")).expanduser()
    found = _record_of(path) if str(path) != "." or ref == "." else None
    if found is None:
        return None, []
    path, record = found
    calibration = record.get("calibration") or {}
    known = calibration.get("fingerprint")
    if known is None and calibration.get("tokens"):
        return None, [f"{path} holds no fingerprint of the calibration text, so whether this text was calibrated on is not known."]
    return known, []


def _record_of(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The record that speaks of a model directory or an exported file."""
    for folder in (path, *path.absolute().parents[:2]):
        file = folder / "lessen.json"
        if not file.is_file():
            continue
        try:
            record = json.loads(file.read_text())
            exports = {(folder / row["path"]).resolve() for row in record.get("exports", [])}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise LessenError(str(file), got=f"{type(error).__name__}: {error}", wanted="the record that lessen wrote") from None
        if folder == path or path.resolve() in exports:
            return file, record
    return None


def nearness(calibration: Mapping[str, Any], texts: Iterable[str]) -> dict[str, str]:
    """Near or far by name of the text, where that is known: of built-in texts, after calibration on built-in text.

    Args:
        calibration: what the record says of the calibration text.
        texts: names.

    >>> nearness({"source": "builtin-calibration"}, ["builtin-docs", "builtin-code", "mine"])
    {'builtin-docs': 'near', 'builtin-code': 'far'}
    """
    if not str(calibration.get("source", "")).startswith(NAMES["calibration"]):
        return {}
    return {name: _NEARNESS[name] for name in texts if name in _NEARNESS}
