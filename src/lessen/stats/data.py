"""From text to token windows, and the proof that calibration and evaluation do not share any.

A window is a row of token ids. Documents are encoded one by one, as the tokenizer does it without a prompt, and joined with the end-of-text
token. If the tokenizer starts every text with special tokens (Llama and Gemma: `<s>`), every window starts with them too: such models
have never seen a text without, and score nonsense there.

Calibration windows are drawn at random from a grid that never overlaps itself, so that no token is counted twice. Evaluation windows are
the text in order.
"""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256 as _sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError
from lessen.stats.text import Text, builtin

__all__ = ["Text", "builtin", "check_disjoint", "check_enough", "read_text", "sequential_windows", "sha256", "tokens", "windows"]

NGRAM = 32
_SURELY = 16  # characters to a token: prose has 3 to 5
_LIVELY = 8  # distinct tokens in an n-gram; rulers ("-----") and blank tables have fewer and prove nothing


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers fit."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = True, **options: Any) -> list[int]: ...


def read_text(source: str | Path, field: str = "text") -> Text:
    """Read a text file (one document), a .jsonl file (a document per line) or a directory of them (in name order).

    Args:
        source: path of a .txt, .md, .rst or other plain text file, a .jsonl file, or a directory that is searched for .txt and .jsonl.
        field: the field of a .jsonl line that holds the text.

    Raises:
        LessenError: nothing there, not UTF-8, not JSON, no such field, or no text in it.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise LessenError(
            str(path), got="no such file", wanted="a text file, a .jsonl file or a directory of them", remedy="check the path"
        )
    files = sorted(f for f in path.rglob("*") if f.suffix in (".txt", ".jsonl") and f.is_file()) if path.is_dir() else [path]
    documents = tuple(document for file in files for document in _documents(file, field) if document.strip())
    if not documents:
        what = f"{len(files)} .txt and .jsonl files without text" if path.is_dir() else "no text"
        raise LessenError(str(path), got=what, wanted="text", remedy="give another file")
    return Text(path.stem or str(path), documents, str(path))


def _documents(path: Path, field: str) -> list[str]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LessenError(
            str(path),
            got=f"byte {error.object[error.start]:#04x} at offset {error.start}",
            wanted="UTF-8 text",
            remedy="convert it with iconv",
        ) from error
    except OSError as error:
        raise LessenError(str(path), got=error.strerror or "an unreadable file", wanted="a readable text file") from error
    if path.suffix != ".jsonl":
        return [content]
    return [_field(line, f"{path}:{i}", field) for i, line in enumerate(content.splitlines(), 1) if line.strip()]


def _field(line: str, where: str, field: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise LessenError(where, got=f"{error.msg} at column {error.colno}", wanted="one JSON object a line") from error
    if not isinstance(row, dict):
        raise LessenError(where, got=f"a JSON {type(row).__name__}", wanted="one JSON object a line")
    text = row.get(field)
    if not isinstance(text, str):
        strings = [key for key, value in row.items() if isinstance(value, str)]
        remedy = f"give every line a field {field!r} that holds its text"
        if strings:
            which = f"the field {strings[0]!r}" if len(strings) == 1 else f"the one that holds the text ({', '.join(strings)})"
            remedy = f"rename {which} to {field!r}"
        got = f"a {type(text).__name__} in field {field!r}" if field in row else f"no field {field!r}"
        raise LessenError(where, got=got, wanted="a string there", remedy=remedy)
    return text


def tokens(tokenizer: Tokenizer, text: Text, enough: int | None = None) -> Tensor:
    """All documents as one row of token ids, each followed by the end-of-text token if there is one.

    Args:
        tokenizer: of the model that will read them.
        text: the documents.
        enough: no further document is read once there are so many tokens; None reads all.

    Returns:
        int64, shape "token".
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for document in text.documents:
        if enough is not None and len(ids) >= enough:
            break
        ids += [*tokenizer.encode(document, add_special_tokens=False, verbose=False), *end]
    return torch.tensor(ids, dtype=torch.int64)


def prefix(tokenizer: Tokenizer) -> list[int]:
    """Special tokens that the tokenizer puts before every text ([] for most, [bos] for Llama and Gemma)."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def windows(tokenizer: Tokenizer, text: Text, count: int, length: int, seed: int) -> Tensor:
    """Random windows that do not overlap.

    The text is cut into consecutive pieces from a random offset, and `count` of them are drawn without repetition.

    Args:
        tokenizer: of the model that will read them.
        text: the documents.
        count: number of windows.
        length: tokens in each.
        seed: of the torch.Generator; the same seed gives the same windows.

    Returns:
        int64, shape "count length".

    Raises:
        LessenError: the text is too short; says how many tokens there are and how many are wanted.
    """
    ids, start = _enough(tokenizer, text, count, length)
    body = length - len(start)
    random = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(min(body, len(ids) - count * body + 1), (), generator=random))
    pieces = ids[offset:][: (len(ids) - offset) // body * body].view(-1, body)
    return _prefixed(pieces[torch.randperm(len(pieces), generator=random)[:count]], start)


def sequential_windows(tokenizer: Tokenizer, text: Text, length: int, count: int | None = None, *, at_most: int | None = None) -> Tensor:
    """The text in order, cut into windows; what does not fill the last one is left out.

    Args:
        tokenizer: of the model that will read them.
        text: the documents.
        length: tokens in each window.
        count: number of windows; None takes all there are.
        at_most: take no more windows than this, and fewer where the text is short.

    Returns:
        int64, shape "count length".

    Raises:
        LessenError: the text is too short.
    """
    ids, start = _enough(tokenizer, text, count or 1, length, at_most)
    body = length - len(start)
    pieces = ids[: len(ids) // body * body].view(-1, body)
    return _prefixed(pieces[: count or at_most], start)


class TooShort(LessenError):
    """A text that holds fewer windows than were asked for; `fits` is how many it holds."""

    def __init__(self, where: str, *, got: int, wanted: str, fits: int):
        self.fits = fits
        remedy = f"give more text, or ask for {fits} windows" if fits else "give more text"
        super().__init__(where, got=f"{got} tokens", wanted=wanted, remedy=remedy)


def check_enough(tokenizer: Tokenizer, text: Text, count: int, length: int) -> None:
    """Refuse a text that holds fewer windows than are wanted. A text that is surely long enough is not encoded.

    Args:
        tokenizer: of the model that will read them.
        text: the documents.
        count: number of windows.
        length: tokens in each.

    Raises:
        TooShort: says how many tokens there are and how many are wanted.
    """
    if text.characters <= _SURELY * count * length:
        _enough(tokenizer, text, count, length)


def _enough(tokenizer: Tokenizer, text: Text, count: int, length: int, at_most: int | None = None) -> tuple[Tensor, list[int]]:
    start = prefix(tokenizer)
    if count < 1 or length < len(start) + 2:
        raise UsageError(text.where, got=f"{count} windows of {length} tokens", wanted=f"at least 1 window of {len(start) + 2} tokens")
    ids = tokens(tokenizer, text, None if at_most is None else at_most * length)
    wanted = count * (length - len(start))
    if len(ids) < wanted:
        raise TooShort(text.where, got=len(ids), wanted=f"{wanted} for {count} windows of {length}", fits=len(ids) // (length - len(start)))
    return ids, start


def _prefixed(pieces: Tensor, start: list[int]) -> Tensor:
    return torch.cat([torch.tensor(start, dtype=torch.int64).expand(len(pieces), -1), pieces], 1)


def sha256(ids: Tensor) -> str:
    """Hex digest of token ids and their shape, the same on every machine.

    >>> sha256(torch.tensor([[1, 2]]))[:12] == sha256(torch.tensor([[1, 2]], dtype=torch.int32))[:12]
    True
    """
    digest = _sha256(json.dumps(list(ids.shape)).encode())
    digest.update(ids.to(torch.int64).contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def check_disjoint(
    calibration: Tensor, evaluation: Mapping[str, Tensor] | Tensor, decode: Callable[[list[int]], str] | None = None
) -> None:
    """Refuse calibration windows that hold text of the evaluation: equal windows, or any run of 32 tokens in common.

    Runs of fewer than 8 different tokens (rulers, blank tables) are not counted as text. Windows shorter than 32 tokens are compared whole.

    Args:
        calibration: token ids, "windows seq".
        evaluation: token ids, "windows seq", by name of the text.
        decode: turns token ids into text for the message (`tokenizer.decode`).

    Raises:
        LessenError: names the windows that overlap and shows the text.
    """
    named = evaluation if isinstance(evaluation, Mapping) else {"evaluation": evaluation}
    for name, ids in named.items():
        size = min(NGRAM, calibration.shape[-1], ids.shape[-1])
        ours, theirs = _NGrams(calibration, size), _NGrams(ids, size)
        hits = torch.isin(theirs.keys, ours.keys).nonzero()[:, 0].tolist()
        shared = [(w, i) for w, i in map(theirs.place, hits) if ours.holds(ids[w, i : i + size])]
        if not shared:
            continue
        w, i = shared[0]
        rows = sorted({row for row, _ in shared})
        shown = repr(decode(ids[w, i : i + size].tolist())) if decode else f"tokens {ids[w, i : i + 8].tolist()}..."
        raise LessenError(
            f"text {name!r}",
            got=f"{len(rows)} of {len(ids)} windows with {size} tokens in a row of the calibration text, first window {rows[0]}: {shown}",
            wanted="evaluation text that was not calibrated on",
            remedy="choose another text for one of the two",
        )


class _NGrams:
    """64-bit hashes of all lively n-grams of windows, with their places."""

    def __init__(self, ids: Tensor, size: int):
        grams = ids.to(torch.int64).unfold(1, size, 1)  # a view: "windows place size"
        lively = torch.zeros(grams.shape[:2], dtype=torch.bool)
        for row in range(len(grams)):  # one window at a time keeps the sorted copy small
            ordered = grams[row].sort(-1).values
            lively[row] = (ordered[:, 1:] != ordered[:, :-1]).sum(-1) + 1 >= min(_LIVELY, size)
        self.ids, self.size, self.width = ids, size, grams.shape[1]
        self.flat = lively.flatten().nonzero()[:, 0]
        self.keys = _key(grams).flatten()[self.flat]

    def place(self, index: int) -> tuple[int, int]:
        """(window, first token) of an n-gram."""
        return divmod(int(self.flat[index]), self.width)

    def holds(self, gram: Tensor) -> bool:
        """Whether the very tokens are here: hashes only propose, so a collision cannot refuse an honest run."""
        places = map(self.place, (self.keys == _key(gram)).nonzero()[:, 0].tolist())
        return any(torch.equal(self.ids[w, i : i + self.size], gram) for w, i in places)


def _key(grams: Tensor) -> Tensor:
    """Hash of the last axis. int64 overflow wraps around, which is the modulus wanted."""
    key = torch.zeros(grams.shape[:-1], dtype=torch.int64)
    for k in range(grams.shape[-1]):
        key = key * 6364136223846793005 + (grams[..., k] + 1442695040888963407)
    return key
