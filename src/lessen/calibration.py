"""What text a run is calibrated on: read, drawn, and half of it written by the model itself where that costs little."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lessen.core.event import Listener
from lessen.engine.quantize import Text
from lessen.errors import LessenError, UsageError
from lessen.models.checkpoint import Checkpoint
from lessen.stats import data
from lessen.stats.data import TooShort
from lessen.stats.generate import written_by
from lessen.stats.overlap import fingerprint
from lessen.stats.text import builtin

WINDOW = 512
LEAST = 4  # calibration windows
WRITES_UP_TO = 500_000_000  # parameters; a larger model writes 8k tokens in minutes instead of seconds


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        source: text file or directory, "builtin", or token windows "windows seq".
        tokens: calibration tokens in all; of token windows, all but a ninth are used.
        seed: of windows and writing.
        written: share of the windows that the model writes; None chooses.
    """

    source: str | Path | Tensor
    tokens: int
    seed: int
    written: float | None = None


def settle(source: Checkpoint, wish: Wish, cache: Path | None = None, on_event: Listener | None = None) -> tuple[Text, dict[str, Any]]:
    """Calibration windows and, for every eight of them, one held out to judge candidates on; the two share nothing.

    Unless `wish.written` says otherwise, the model itself writes half of both when it has at most `WRITES_UP_TO` parameters and the
    text is not given as token windows: see `lessen.stats.generate` for why.

    Args:
        source: the model.
        wish: what was asked for.
        cache: directory that keeps what the model wrote.
        on_event: hears of the model's writing.

    Returns:
        The windows, and what the record says of them; `notes` in it are sentences for the user.

    Raises:
        UsageError: a share outside 0 to 1, too few windows. LessenError: text that cannot be read or is too short.
    """
    own_share, notes = share(source, wish)
    if wish.tokens < 1:
        raise UsageError("tokens", got=str(wish.tokens), wanted="a positive number of calibration tokens")
    if isinstance(wish.source, Tensor):
        windows, name = wish.source, "token windows given by the caller"
        count = len(windows) - max(1, len(windows) // 9)
        if len(windows) < 2:
            raise UsageError("calibration", got=f"{len(windows)} windows", wanted="at least 2: one is held out", remedy="give more text")
        length, held = windows.shape[1], len(windows) - count
        own = round(own_share * count), round(own_share * held)
        windows = torch.cat([windows[: count - own[0]], windows[count : len(windows) - own[1]]])
    else:
        (count, length), held, own = amount(source, wish), *_parts(source, wish, own_share)
        documents = builtin("calibration") if str(wish.source) == "builtin" else data.read_text(wish.source)
        name = documents.name
        try:
            windows = data.windows(source.tokenizer(), documents, max(1, count + held - sum(own)), length, wish.seed)
        except TooShort as error:
            raise _too_short(error, own_share, count, length) from None
    mine = _written(source, sum(own), length, wish.seed, cache, on_event)
    cut = count - own[0]
    calibration, heldout = torch.cat([windows[:cut], mine[: own[0]]]), torch.cat([windows[cut:][: held - own[1]], mine[own[0] :]])
    described = {
        "source": name + (f"; {own[0] / count:.0%} written by the model" if own[0] else ""),
        "tokens": calibration.numel(),
        "heldout_tokens": heldout.numel(),
        "window": length,
        "sha256": data.sha256(torch.cat([calibration, heldout])),
        "fingerprint": _fingerprint(source, torch.cat([calibration, heldout])),
        "notes": notes,
    }
    return Text(calibration, heldout), described


def amount(source: Checkpoint, wish: Wish) -> tuple[int, int]:
    """How many calibration windows are read from text, and their length in tokens."""
    length = min(WINDOW, int(source.config.get("max_position_embeddings") or source.config.get("n_positions") or WINDOW))
    return max(LEAST, -(-wish.tokens // length)), length


def enough(source: Checkpoint, wish: Wish) -> None:
    """Refuse a text of the user's that cannot be read or is too short, before anything else is done.

    Raises:
        LessenError: as `settle` would.
    """
    if isinstance(wish.source, Tensor) or str(wish.source) == "builtin":
        return
    own_share, (count, length) = share(source, wish)[0], amount(source, wish)
    held, own = _parts(source, wish, own_share)
    try:
        data.check_enough(source.tokenizer(), data.read_text(wish.source), max(1, count + held - sum(own)), length)
    except TooShort as error:
        raise _too_short(error, own_share, count, length) from None


def _parts(source: Checkpoint, wish: Wish, own_share: float) -> tuple[int, tuple[int, int]]:
    """How many windows are held out, and how many of the calibration's and of those the model writes."""
    count, _ = amount(source, wish)
    held = _held(count)
    return held, (round(own_share * count), round(own_share * held))


def _held(count: int) -> int:
    return max(2, count // 8)


def _too_short(error: TooShort, own_share: float, count: int, length: int) -> LessenError:
    """The refusal of a text, with the number of tokens that it is enough for."""
    for fewer in range(count - 1, LEAST - 1, -1):
        held = _held(fewer)
        if fewer + held - round(own_share * fewer) - round(own_share * held) <= error.fits:
            remedy = f"give more text, or ask for fewer tokens (--tokens {fewer * length})"
            return LessenError(error.where, got=error.got, wanted=error.wanted, remedy=remedy)
    return LessenError(error.where, got=error.got, wanted=error.wanted, remedy="give more text")


def _fingerprint(source: Checkpoint, windows: Tensor) -> dict[str, Any] | None:
    """By which the text is known again; None where a model has no tokenizer to tell the words."""
    try:
        tokenizer = source.tokenizer()
    except LessenError:
        return None
    return fingerprint(tokenizer.decode(row, skip_special_tokens=True) for row in windows.tolist())


def share(source: Checkpoint, wish: Wish) -> tuple[float, list[str]]:
    """How much the model is to write, 0 to 1, and a sentence for the user where that was chosen."""
    if wish.written is not None:
        if not 0 <= wish.written <= 1:
            raise UsageError("written", got=f"{wish.written:g}", wanted="a share from 0 to 1")
        return wish.written, []
    if isinstance(wish.source, Tensor):
        return 0.0, []
    parameters = sum(prod(source.shape(name)) for name in source.names)
    if parameters > WRITES_UP_TO:
        return 0.0, [
            f"Calibrated on text alone: letting a model of {parameters / 1e9:.1f} B parameters write half of it takes long (--written 0.5)."
        ]
    return 0.5, [
        "Half of the calibration text is written by the model itself, so that the result holds on other kinds of text (--written)."
    ]


def _written(source: Checkpoint, count: int, length: int, seed: int, cache: Path | None, on_event: Listener | None) -> Tensor:
    """Windows that the model wrote, from `cache` if they are there."""
    if count == 0:
        return torch.empty(0, length, dtype=torch.int64)
    key: Mapping[str, str] = {"model": source.fingerprint(), "windows": f"{count} of {length}, seed {seed}"}
    path = None if cache is None else cache / "written.safetensors"
    if path is not None and path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == key:
                return file.get_tensor("windows")
    windows = written_by(source, count, length, seed, on_event=on_event)
    if path is not None:
        aside = path.with_suffix(".aside")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"windows": windows}, aside, metadata=dict(key))
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            raise LessenError(
                str(path.parent), got=str(error), wanted="a directory to keep what the model wrote", remedy="choose --work"
            ) from None
    return windows
