"""What a model is judged on: built-in and own texts, and the refusal of what it was calibrated on."""

import json
from pathlib import Path

import pytest
import torch

import lessen
from lessen.errors import LessenError, UsageError
from lessen.evaluate import texts
from lessen.evaluate.language import prepare
from lessen.methods import GPTQ
from lessen.stats import library
from lessen.stats import text as builtins
from lessen.stats.overlap import fingerprint
from lessen.stats.text import Text, builtin


@pytest.fixture(scope="module")
def small(tiny_model: Path, tiny_texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed model, calibrated on the first of the tiny texts."""
    out = tmp_path_factory.mktemp("small") / "small"
    lessen.compress(tiny_model, out, recipe=[GPTQ(4, 32)], calibration=tiny_texts[0], tokens=4096, evaluate=False, exports=["gguf"])
    return out


def test_text_that_was_calibrated_on_is_refused_later_too(small, tiny_texts):
    with pytest.raises(LessenError, match=r"windows that hold calibration text, window .* model number") as raised:
        lessen.evaluate(small, text=tiny_texts[0], length=64)
    assert "\n" not in str(raised.value)
    exported = small / "gguf" / "model.gguf"
    assert exported.is_file()
    with pytest.raises(LessenError, match="hold calibration text"):
        lessen.evaluate(exported, text=tiny_texts[0], length=64)


def test_a_model_opened_by_name_is_known_by_it(small, tiny_texts):
    with pytest.raises(LessenError, match="hold calibration text"):
        lessen.evaluate(lessen.open_checkpoint(small), text=tiny_texts[0], length=64)


def test_text_that_was_not_calibrated_on_is_judged_without_a_word(small, tiny_texts, tiny_model):
    found = lessen.evaluate(small, tiny_model, tiny_texts[1], windows=2, length=64)
    assert list(found) == ["held"]
    assert found["held"]["windows"] == 2 and found["held"]["kld_mean"] > 0 and "notes" not in found["held"]


def test_compress_refuses_by_the_same_rule(tiny_model, tiny_texts, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_text(tiny_texts[0].read_text().upper())  # the tokens differ, the words do not
    with pytest.raises(LessenError, match="hold calibration text"):
        lessen.compress(
            tiny_model,
            tmp_path / "out",
            recipe=[GPTQ(4, 32)],
            calibration=tiny_texts[0],
            tokens=4096,
            evaluation=[copy],
            exports=(),
        )
    assert not (tmp_path / "out").exists()


def test_a_record_without_a_fingerprint_is_told(small, tiny_texts, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for file in small.iterdir():
        if file.is_file():
            (old / file.name).symlink_to(file)
    record = json.loads((small / "lessen.json").read_text())
    del record["calibration"]["fingerprint"]
    (old / "lessen.json").unlink()
    (old / "lessen.json").write_text(json.dumps(record))
    found = lessen.evaluate(old, text=tiny_texts[1], windows=1, length=64)
    assert "not known" in found["held"]["notes"][0]


def test_without_a_wish_there_are_two_builtin_texts(tiny_model):
    found = lessen.evaluate(tiny_model, length=64)
    assert {name: row["windows"] for name, row in found.items()} == {"builtin-docs": texts.WINDOWS, "builtin-code": texts.FAR_WINDOWS}


def test_modules_and_prepared_references_are_judged_as_names_are(tiny_model, tiny_texts):
    named = lessen.evaluate(tiny_model, text=tiny_texts[1], windows=2, length=64)["held"]
    module = lessen.load(tiny_model)
    held = lessen.evaluate(module, tiny_model, text=str(tiny_texts[1]), windows=2, length=64)["held"]
    assert held["ppl"] == pytest.approx(named["ppl"], rel=1e-6)  # block by block or at once: float32 sums in another order
    assert held["sha256"] == named["sha256"]
    ids = texts.read(lessen.open_checkpoint(tiny_model).tokenizer(), [tiny_texts[1]], windows=2, length=64).tokens
    again = lessen.evaluate(tiny_model, prepare(tiny_model, ids, noise=False))["held"]
    assert again["ppl"] == named["ppl"] and again["kld_mean"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 3}, "'tokens'"),
        ({"widnows": 3}, "did you mean windows"),
        ({"windows": 0}, "at least 1"),
        ({"windows": "many"}, "windows"),
        ({"length": 1}, "at least 2"),
        ({"length": 10**6}, "the context of the model"),
        ({"device": "toaster"}, "toaster"),
        ({"text": 3}, "text"),
        ({"text": torch.zeros(2, 8, dtype=torch.int64), "windows": 3}, "beside token windows"),
        ({"text": torch.zeros(2, 8)}, "token ids of shape"),
        ({"reference": 3}, "int as model"),
    ],
)
def test_what_makes_no_sense_is_answered_in_one_line(tiny_model, options, message):
    with pytest.raises(UsageError, match=message) as raised:
        lessen.evaluate(tiny_model, **options)
    assert "\n" not in str(raised.value)


def test_a_model_without_a_tokenizer_asks_for_windows():
    with pytest.raises(UsageError, match="token windows"):
        lessen.evaluate(lambda ids: torch.zeros(*ids.shape, 7))
    ids = torch.arange(12).view(2, 6) % 7
    found = lessen.evaluate(lambda ids: torch.zeros(*ids.shape, 7), text=ids)["text"]
    assert found["ppl"] == pytest.approx(7)


def test_builtin_windows_that_were_calibrated_on_are_left_out_and_told(tiny_model):
    tokenizer = lessen.open_checkpoint(tiny_model).tokenizer()
    held = texts.read(tokenizer, windows=4)
    known = fingerprint([tokenizer.decode(held.tokens["builtin-code"][2].tolist())])
    left = texts.apart(held, known, tokenizer)
    assert torch.equal(left.tokens["builtin-docs"], held.tokens["builtin-docs"])
    assert torch.equal(left.tokens["builtin-code"], held.tokens["builtin-code"][[0, 1, 3]])
    assert left.notes == ["1 of 4 windows of builtin-code were left out: they hold calibration text."]
    with pytest.raises(LessenError, match="text 'mine'"):
        texts.apart(texts.HeldOut({"mine": held.tokens["builtin-code"]}), known, tokenizer)


def test_texts_of_one_name_stay_two(tiny_model, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "story.txt").write_text(f"{folder} " * 200)
    sources = [tmp_path / "a" / "story.txt", tmp_path / "b" / "story.txt"]
    found = texts.read(lessen.open_checkpoint(tiny_model).tokenizer(), sources, length=32).tokens
    assert len(found) == 2 and not torch.equal(*found.values())


def test_code_is_code_and_enough_of_it():
    code = builtin("code")
    assert code.characters > 100_000  # 3 characters to a token: 64 windows of 512
    assert " ".join(code.documents).split().count("def") > 500
    assert sum(document.count('"""') for document in code.documents) <= len(code.documents)  # docstrings are cut; a string may stay


def test_code_does_not_depend_on_what_else_is_installed(monkeypatch):
    full = builtin("code")
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "_docstrings", lambda: iter(()))
        for cached in (builtins._calibration, builtins._code):
            cached.cache_clear()
        poor = builtin("code")
    for cached in (builtins._calibration, builtins._code):
        cached.cache_clear()
    # A paragraph that a docstring quotes is dropped; the rest and the order stay.
    assert sum(a == b for a, b in zip(poor.documents, full.documents, strict=True)) >= len(full.documents) - 3


def test_without_sources_the_documentation_is_judged_alone_and_it_is_told(monkeypatch, tiny_model):
    monkeypatch.setattr(library, "pieces", lambda: iter(()))
    builtins._code.cache_clear()
    with pytest.raises(LessenError, match="a Python without sources"):
        builtin("code")
    held = texts.read(lessen.open_checkpoint(tiny_model).tokenizer(), length=64)
    assert list(held.tokens) == ["builtin-docs"]
    assert "near the calibration text alone" in held.notes[0]


def test_nearness_is_claimed_only_of_what_is_known():
    assert texts.nearness({"source": "builtin-calibration; 50% written by the model"}, ["builtin-docs"]) == {"builtin-docs": "near"}
    assert texts.nearness({"source": "notes"}, ["builtin-docs", "builtin-code"]) == {}
    assert Text("x", ("ab",)).characters == 2
