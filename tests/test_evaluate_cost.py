"""Costs counted by hand, and samples against transformers' own generation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lessen.core.edit import Keep
from lessen.evaluate.cost import cost
from lessen.evaluate.samples import continuation, encode, samples
from lessen.models import open_checkpoint
from lessen.models.edited import Edited
from lessen.structure.decoder import units
from tests.export_fixture import Solved, byte_tokenizer, four_bits, llama, probe

# width 64, 4 heads of 16 over 2 key heads, feed-forward 96, vocabulary 384, 2 layers
LINEARS = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64)
TABLE, NORMS = 384 * 64, 5 * 64


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_bytes_and_macs_of_a_float_model(tied):
    found = cost(open_checkpoint(llama(tied)), context=100)
    parameters = LINEARS + NORMS + TABLE * (1 if tied else 2)
    assert (found["parameters"], found["size_bytes"], found["bpw"]) == (parameters, 4 * parameters, 32)
    assert found["macs"] == LINEARS + TABLE + 2 * (2 * 100 * 64)  # the head counts, the token table does not


@pytest.mark.parametrize("tied", [True, False])
def test_codes_count_with_their_scales(tied):
    found = cost(Solved(llama(tied), four_bits))
    tables = TABLE * (1 if tied else 2)
    assert found["linears_bpw"] == 4.5 and found["embeddings_bpw"] == 8.5
    assert found["size_bytes"] == (LINEARS * 4.5 + tables * 8.5) / 8 + NORMS * 4
    assert found["bpw"] == pytest.approx(8 * found["size_bytes"] / (LINEARS + tables + NORMS))


def test_pruning_counts_when_divided_by_the_original():
    base = open_checkpoint(llama())
    ffn = next(unit for unit in units(base, "ffn") if unit.block == 1)
    pruned = Edited(base, [Keep(ffn, torch.arange(48))])
    before, after = cost(base), cost(pruned, parameters=cost(base)["parameters"])
    gone = 3 * 48 * 64
    assert before["macs"] - after["macs"] == gone == before["parameters"] - after["parameters"]
    assert before["size_bytes"] - after["size_bytes"] == 4 * gone
    assert after["bpw"] == pytest.approx(32 * after["parameters"] / before["parameters"])


def test_greedy_continuation_is_that_of_transformers():
    model: Any = llama()
    ids = probe(batch=1, seq=7)
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    written = continuation(model, ids, 9)
    assert written == expected[0, 7:].tolist()
    assert continuation(model, ids, 9, frozenset(written[3:4])) == written[: written.index(written[3])]


def test_draws_repeat_with_their_seed():
    model, ids = llama(), probe(batch=1, seq=7)
    first, again, other = (continuation(model, ids, 12, temperature=5.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_chat_template_is_used_where_there_is_one():
    tokenizer = byte_tokenizer(384)
    plain = encode(tokenizer, "the small text")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert tokenizer.decode(plain[0]) == "the small text"
    assert tokenizer.decode(encode(tokenizer, "the small text")[0]) == "[the small text]"


def test_samples_set_both_models_side_by_side(tiny_model: Path):
    heard: list[Any] = []
    rows = samples(open_checkpoint(tiny_model), tiny_model, ["the model", "number"], new_tokens=5, on_event=heard.append)
    assert [row["prompt"] for row in rows] == ["the model", "number"]
    assert all(row["before"] == row["after"] for row in rows) and any(row["before"] for row in rows)
    assert [event.done for event in heard] == [1, 2, 3, 4]
    assert rows != samples(tiny_model, Solved(llama(seed=5)), ["the model", "number"], new_tokens=5)
