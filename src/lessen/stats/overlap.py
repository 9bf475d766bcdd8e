"""Whether a text was calibrated on, told later and without that text: a fingerprint of it that fits into a record.

Text is taken as words without case, signs or spacing, so that the answer does not depend on a tokenizer or on line breaks. The fingerprint
holds the hash of every eighth run of 16 words of each calibration window; of a text to be judged, all runs of 16 words are hashed.

    a common run of 16 + 8 - 1 = 23 words or more is always found        (one of its runs of 16 starts at a multiple of 8)

Shorter ones are found with luck, which is no loss: texts of one language share phrases. Runs of fewer than 8 different words (tables,
rulers, counting) are not counted. With 48 bits a hash, 2,000 of them in a record and 10,000 words to judge, chance alone finds a common
run in one of ten million cases.

Sampling k-grams of words to find copied text is the idea of Manber 1994 (Finding Similar Files in a Large File System); a fixed grid is
enough here because the text to be judged is at hand and is hashed whole.
"""

import re
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Any, NamedTuple

SIZE, STRIDE = 16, 8  # words
_LIVELY = 8
_DIGITS = 12  # hexadecimal, of each hash
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")  # scripts without spaces: every sign is a word


class Shared(NamedTuple):
    """A window that holds calibration text, and the first words of it."""

    window: int
    words: str


def fingerprint(windows: Iterable[str]) -> dict[str, Any]:
    """What a record keeps of calibration windows.

    Args:
        windows: their texts.

    Returns:
        A JSON object: `words` in a run, `every` how many words one was taken, `hashes` as one hexadecimal string.

    >>> fingerprint(["one two three"])["hashes"]
    ''
    """
    hashes: dict[str, None] = {}
    for text in windows:
        words = _words(text)
        hashes |= dict.fromkeys(_hash(run) for i in range(0, len(words) - SIZE + 1, STRIDE) if _lively(run := words[i : i + SIZE]))
    return {"words": SIZE, "every": STRIDE, "hashes": "".join(hashes)}


def shared(windows: Sequence[str], known: Mapping[str, Any]) -> list[Shared]:
    """Windows that hold a run of words of a fingerprint, in order.

    Args:
        windows: texts of consecutive windows; a run may reach from one into the next, and then both hold it.
        known: what `fingerprint` gave.
    """
    size, hashes = int(known["words"]), str(known["hashes"])
    kept = {hashes[i : i + _DIGITS] for i in range(0, len(hashes), _DIGITS)}
    found = list(_WORD.finditer("".join(windows)))
    ends = list(accumulate(map(len, windows)))
    words = [match[0].lower() for match in found]
    hits: dict[int, str] = {}
    for i in range(len(words) - size + 1):
        run = words[i : i + size]
        if _lively(run) and _hash(run) in kept:
            for window in range(bisect(ends, found[i].start()), bisect(ends, found[i + size - 1].end() - 1) + 1):
                hits.setdefault(window, " ".join(run))
    return [Shared(window, hits[window]) for window in sorted(hits)]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _lively(run: Sequence[str]) -> bool:
    return len(set(run)) >= _LIVELY


def _hash(run: Sequence[str]) -> str:
    return blake2b(" ".join(run).encode(), digest_size=_DIGITS // 2).hexdigest()
