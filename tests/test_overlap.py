"""The fingerprint of calibration text finds what was copied, and only that."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.stats.overlap import SIZE, STRIDE, fingerprint, shared
from lessen.stats.text import builtin


def words(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghij", k=6)) for _ in range(count)]


@settings(deadline=None, max_examples=60)
@given(start=st.integers(0, 60), at=st.integers(0, 60), extra=st.integers(0, 20), seed=st.integers(0, 2**20))
def test_every_common_run_of_23_words_is_found_wherever_it_lies(start, at, extra, seed):
    calibration, held = words(120, seed), words(120, seed + 1)
    run = SIZE + STRIDE - 1 + extra
    held[at : at + run] = calibration[start : start + run]
    assert [hit.window for hit in shared([" ".join(held)], fingerprint([" ".join(calibration)]))] == [0]


@pytest.mark.parametrize("seed", range(5))
def test_common_runs_shorter_than_the_hashed_ones_are_phrases(seed):
    calibration, held = words(200, seed), words(200, seed + 99)
    held[40 : 40 + SIZE - 1] = calibration[64 : 64 + SIZE - 1]
    assert not shared([" ".join(held)], fingerprint([" ".join(calibration)]))


def test_case_signs_and_line_breaks_do_not_hide_a_copy():
    text = words(80, 3)
    known = fingerprint([" ".join(text)])
    assert shared(["\n\n* ".join(word.upper() + "," for word in text)], known)


def test_windows_that_cut_a_copy_in_two_are_both_named():
    text = words(SIZE, 4)
    known = fingerprint([" ".join(text)])
    copy = " ".join(text)
    windows = ["nothing here ", " ".join(words(30, 5)) + " " + copy[:55], copy[55:] + " and so on", "nor here"]
    hits = shared(windows, known)
    assert [hit.window for hit in hits] == [1, 2]
    assert hits[0].words == copy


def test_scripts_without_spaces_are_compared_by_their_signs():
    signs = "".join(chr(0x4E00 + 7 * i) for i in range(60))
    assert shared(["前" + signs[11:50]], fingerprint([signs]))


def test_tables_and_rulers_are_not_text():
    ruler = "| --- | 0 | 1 | 0 | ____ " * 40
    known = fingerprint([ruler])
    assert known["hashes"] == ""
    assert not shared([ruler], known)


def test_builtin_texts_are_apart_in_words_too():
    known = fingerprint(builtin("calibration").documents)
    assert shared(builtin("calibration").documents[:2], known)
    assert not shared(builtin("code").documents, known)
    # Built-in English is told apart with its signs; a docstring of pdb says one sentence of the documentation with other signs.
    assert len(shared(builtin("evaluation").documents, known)) <= 2
