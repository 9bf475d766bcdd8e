"""A streamed model is the whole model, in every family, with one block in memory."""

import pytest
import torch

from lessen.errors import LessenError
from lessen.models import load, open_checkpoint
from lessen.models.stream import Stream

transformers = pytest.importorskip("transformers")

from tests.models_fixture import FAMILIES, logits, save, tiny, tokens  # noqa: E402


def streamed(stream: Stream, ids: torch.Tensor) -> torch.Tensor:
    hidden = stream.embed(ids)
    for i in range(stream.blocks):
        hidden = stream.forward(stream.block(i), i, hidden)
    return stream.head(hidden)


def held_bytes(stream: Stream) -> int:
    return sum(p.nbytes for p in stream._shell.parameters() if not p.is_meta)


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_logits_are_those_of_the_whole_model(family, tmp_path):
    model = tiny(family)
    save(model, tmp_path)
    wanted = logits(model, tokens())
    assert torch.equal(logits(load(tmp_path), tokens()), wanted)
    assert torch.equal(streamed(Stream(open_checkpoint(tmp_path)), tokens()), wanted)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "falcon"])
def test_a_block_runs_on_batches_that_were_not_embedded_together(family, tmp_path):
    stream = Stream(open_checkpoint(save(tiny(family), tmp_path)))
    whole = streamed(stream, tokens(4, 9))
    hidden = stream.embed(tokens(4, 9))
    parts = [hidden[:1], hidden[1:]]
    for i in range(stream.blocks):
        block = stream.block(i)
        parts = [stream.forward(block, i, part) for part in parts]
    # Other batch sizes may add up a matmul in another order: float32 rounding of numbers of order 1.
    torch.testing.assert_close(torch.cat([stream.head(part) for part in parts]), whole, atol=1e-5, rtol=1e-5)


def test_the_head_takes_any_leading_shape(tmp_path):
    stream = Stream(open_checkpoint(save(tiny("gemma2"), tmp_path)))
    hidden = stream.embed(tokens(2, 6))
    whole = stream.head(hidden)
    assert torch.equal(stream.head(hidden.reshape(12, -1)), whole.reshape(12, -1))
    # One row is multiplied by another kernel than twelve.
    torch.testing.assert_close(stream.head(hidden[1, 2]), whole[1, 2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_weights_of_the_running_phase_are_held(tied, tmp_path):
    model = tiny("llama", tie_word_embeddings=tied)
    stream = Stream(open_checkpoint(save(model, tmp_path)))
    table, norm = model.get_parameter("model.embed_tokens.weight").nbytes, model.get_parameter("model.norm.weight").nbytes
    assert held_bytes(stream) == 0
    hidden = stream.embed(tokens())
    assert held_bytes(stream) == table
    stream.forward(stream.block(1), 1, hidden)
    stream.head(hidden)
    assert held_bytes(stream) == table + norm
    stream.release()
    assert held_bytes(stream) == 0
    assert torch.equal(stream.embed(tokens()), hidden)


def test_a_block_is_a_module_of_its_own(tmp_path):
    stream = Stream(open_checkpoint(save(tiny(), tmp_path)))
    hidden = stream.embed(tokens())
    first, second = stream.block(0), stream.block(0)
    before = stream.forward(second, 0, hidden)
    for parameter in first.parameters():
        parameter.data.zero_()
    assert torch.equal(stream.forward(second, 0, hidden), before)
    assert not torch.equal(stream.forward(first, 0, hidden), before)


def test_no_mask_is_made_where_attention_is_plainly_causal(tmp_path):
    stream = Stream(open_checkpoint(save(tiny("llama"), tmp_path)))
    for args, kwargs in stream._calls_for(2, 16):
        assert not args and kwargs["attention_mask"] is None


def test_the_dtype_is_honoured(tmp_path):
    stream = Stream(open_checkpoint(save(tiny("qwen2").to(torch.bfloat16), tmp_path)), dtype=torch.bfloat16)
    got = streamed(stream, tokens())
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), tokens()))
    assert next(Stream(open_checkpoint(tmp_path)).block(0).parameters()).dtype == torch.float32


def test_tokens_that_do_not_fit_are_refused_in_one_line(tmp_path):
    stream = Stream(open_checkpoint(save(tiny("gpt2"), tmp_path)))
    with pytest.raises(LessenError, match="integers of shape batch seq"):
        stream.embed(tokens()[0])
    with pytest.raises(LessenError, match="token ids up to 99"):
        stream.embed(torch.full((1, 4), 99))
    with pytest.raises(LessenError, match="windows of 40"):
        stream.embed(tokens(1, 40))
