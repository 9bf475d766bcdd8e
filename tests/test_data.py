"""Text sources, token windows, and the refusal to evaluate on what was calibrated on."""

import json
import re
import sysconfig
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.errors import LessenError, UsageError
from lessen.stats import data, text
from lessen.stats.data import Text, builtin, check_disjoint, read_text, sequential_windows, sha256, windows


class Letters:
    """A token per character, an end-of-text token 0, and the same before every text if asked for."""

    eos_token_id: int | None = 0

    def __init__(self, bos: bool = False):
        self.bos = bos

    def encode(self, text: str, *, add_special_tokens: bool = True, **options: Any) -> list[int]:
        return [0] * (self.bos and add_special_tokens) + [ord(c) for c in text]


def numbered(count: int, start: int = 1) -> Text:
    """A text in which no token comes twice."""
    return Text("numbered", ("".join(chr(start + i) for i in range(count)),))


def lexemes(document: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", document)


def test_builtin_splits_share_no_document_and_no_run_of_twelve_words():
    runs = []
    for split in ("calibration", "evaluation"):
        words = [lexemes(document) for document in builtin(split).documents]
        runs.append({tuple(w[i : i + 12]) for w in words for i in range(len(w) - 11)})
    assert not runs[0] & runs[1]
    assert not set(builtin("calibration").documents) & set(builtin("evaluation").documents)


def test_builtin_text_is_english_and_enough_of_it():
    calibration, evaluation = builtin("calibration"), builtin("evaluation")
    # 4 characters to a token: 16k tokens to calibrate on and 16 windows of 512 to evaluate on, whatever is stripped
    assert calibration.characters > 300_000 and evaluation.characters > 100_000
    assert sum(lexemes(d).count("the") for d in evaluation.documents) > 1000


def test_without_library_sources_calibration_has_the_topics_and_evaluation_stays(monkeypatch, tmp_path):
    full = builtin("calibration"), builtin("evaluation")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    text._calibration.cache_clear()
    text._evaluation.cache_clear()
    try:
        poor = builtin("calibration"), builtin("evaluation")
    finally:
        text._calibration.cache_clear()
    assert poor[1] == full[1]
    assert poor[0].documents == full[0].documents[: len(poor[0].documents)] and poor[0].characters > 120_000  # 30k tokens


def test_an_unknown_split_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean calibration"):
        builtin("calibrate")


def test_text_files_lines_and_directories_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.jsonl").write_text('{"text": "two", "body": "2"}\n\n{"text": "three", "body": "3"}\n')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.txt").write_text("\ufefffour", encoding="utf-8")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    assert read_text(tmp_path / "a.txt") == Text("a", ("one\n",))
    assert read_text(str(tmp_path / "b.jsonl")).documents == ("two", "three")
    assert read_text(tmp_path / "b.jsonl", "body").documents == ("2", "3")
    assert read_text(tmp_path).documents == ("one\n", "two", "three", "four")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", b" \n", "no text"),
        ("bad.txt", b"ab\xff", "byte 0xff at offset 2"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"\n', r"bad.jsonl:2: got Expecting ':' delimiter"),
        ("list.jsonl", b"[1]\n", "list.jsonl:1: got a JSON list"),
        ("other.jsonl", b'{"texts": "a"}\n', "no field 'text', wanted a string there; rename the field 'texts' to 'text'"),
        ("two.jsonl", b'{"body": "a", "title": "b"}\n', r"rename the one that holds the text \(body, title\) to 'text'"),
        ("none.jsonl", b'{"foo": 1}\n', "give every line a field 'text' that holds its text"),
        ("number.jsonl", b'{"text": 3}\n', "a int in field 'text'"),
        ("folder", None, "0 .txt and .jsonl files"),
    ],
)
def test_unreadable_text_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    if name == "folder":
        path.mkdir()
    with pytest.raises(LessenError, match=message) as raised:
        read_text(path)
    assert "\n" not in str(raised.value)


@settings(deadline=None)
@given(count=st.integers(1, 9), length=st.integers(2, 12), extra=st.integers(0, 30), seed=st.integers(0, 2**31), bos=st.booleans())
def test_windows_are_pieces_of_the_text_that_never_overlap(count, length, extra, seed, bos):
    length += bos
    body = length - bos
    source = numbered(count * body + extra)
    drawn = windows(Letters(bos), source, count, length, seed)
    assert drawn.shape == (count, length) and drawn.dtype == torch.int64
    assert not bos or bool((drawn[:, 0] == 0).all())
    pieces = drawn[:, int(bos) :]
    ends = pieces == 0  # the end-of-text token is the last of the text
    steps = (pieces[:, 1:] - pieces[:, :-1] == 1) | ends[:, 1:]
    assert bool(steps.all())
    assert pieces[~ends].unique().numel() == (~ends).sum()
    assert torch.equal(drawn, windows(Letters(bos), source, count, length, seed))


def test_another_seed_draws_other_windows():
    assert not torch.equal(windows(Letters(), numbered(400), 4, 8, 0), windows(Letters(), numbered(400), 4, 8, 1))


def test_a_short_text_is_named_by_its_path(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("\x05\x06")
    for read in (lambda t: windows(Letters(), t, 2, 8, 0), lambda t: sequential_windows(Letters(), t, 8)):
        with pytest.raises(LessenError) as raised:
            read(read_text(path))
        assert raised.value.where == str(path)


def test_documents_are_joined_with_the_end_of_text_token():
    assert data.tokens(Letters(), Text("two", ("\x05", "\x06"))).tolist() == [5, 0, 6, 0]
    endless = Letters()
    endless.eos_token_id = None
    assert data.tokens(endless, Text("two", ("\x05", "\x06"))).tolist() == [5, 6]


def test_sequential_windows_are_the_text_in_order():
    assert sequential_windows(Letters(), numbered(10), 3).tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert sequential_windows(Letters(True), numbered(10), 3, 2).tolist() == [[0, 1, 2], [0, 3, 4]]


def test_too_short_a_text_says_how_much_there_is_and_is_wanted():
    with pytest.raises(LessenError, match=r"got 11 tokens, wanted 20 for 5 windows of 4; give more text, or ask for 2 windows"):
        windows(Letters(), numbered(10), 5, 4, 0)
    with pytest.raises(LessenError, match="wanted 12 for 1 windows of 12; give more text"):
        sequential_windows(Letters(), numbered(10), 12)
    with pytest.raises(UsageError, match="at least 1 window of 3 tokens"):
        windows(Letters(True), numbered(10), 1, 2, 0)


def test_the_hash_sees_values_and_shape_and_not_the_type():
    ids = torch.arange(6).view(2, 3)
    assert sha256(ids) == sha256(ids.int()) != sha256(ids.view(3, 2))
    assert sha256(ids) != sha256(ids + 1)


def random_ids(rows: int, seq: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 50_000, (rows, seq), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(row=st.integers(0, 3), to=st.integers(0, 4), start=st.integers(0, 68), at=st.integers(0, 32), run=st.integers(30, 40))
def test_a_common_run_of_32_tokens_is_found_wherever_it_lies(row, to, start, at, run):
    calibration, held = random_ids(4, 100, 0), random_ids(5, 64, 1)
    piece = calibration[row, start : start + run]
    held[to, at : at + len(piece)] = piece[: 64 - at]
    if min(len(piece), 64 - at) < 32:
        check_disjoint(calibration, held)
        return
    with pytest.raises(LessenError, match=rf"text 'stories': got 1 of 5 windows with 32 tokens .* first window {to}"):
        check_disjoint(calibration, {"other": random_ids(2, 64, 2), "stories": held})


def test_the_common_text_is_shown():
    ids = sequential_windows(Letters(), Text("t", ("it was a bright cold day in April, and the clocks",)), 40)
    with pytest.raises(LessenError, match="first window 0: 'it was a bright cold day in Apri'"):
        check_disjoint(ids, ids, lambda tokens: "".join(map(chr, tokens)))


def test_rulers_are_not_text():
    ruler = torch.tensor([[7] * 20 + [8] * 20 + [9] * 20])
    check_disjoint(ruler, ruler)


def test_short_windows_are_compared_whole():
    ids = random_ids(2, 16, 0)
    check_disjoint(ids, random_ids(2, 16, 1))
    with pytest.raises(LessenError, match="16 tokens in a row"):
        check_disjoint(ids, ids[1:])


def test_a_collision_of_hashes_refuses_nobody(monkeypatch):
    monkeypatch.setattr(data, "_key", lambda grams: torch.zeros(grams.shape[:-1], dtype=torch.int64))
    check_disjoint(random_ids(2, 40, 0), random_ids(2, 40, 1))


def test_jsonl_of_builtin_text_round_trips(tmp_path):
    documents = builtin("evaluation").documents[:5]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    assert read_text(tmp_path / "x.jsonl").documents == documents
