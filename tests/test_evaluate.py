"""Quality figures against brute force in float64, transformers' own loss, and themselves."""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lessen.core.event import Event
from lessen.errors import LessenError, UsageError
from lessen.evaluate import divergence
from lessen.evaluate.answers import Rounded, answers
from lessen.evaluate.divergence import compare, summary
from lessen.evaluate.language import evaluate, prepare
from lessen.models import open_checkpoint
from tests.export_fixture import Solved, four_bits, llama, probe

TOKENS = {"near": probe(batch=3, seq=20), "far": probe(batch=2, seq=9)}


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return llama()


@pytest.fixture(scope="module")
def rounded() -> Solved:
    return Solved(llama(), four_bits)


def logits(rows: int, vocab: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def test_token_scores_equal_brute_force_in_float64():
    ours, theirs, targets = logits(40, 300, 0), logits(40, 300, 1), torch.arange(40)
    scores = compare(ours, targets, theirs)
    p, q = (torch.distributions.Categorical(logits=x.double()) for x in (theirs, ours))
    close = partial(torch.testing.assert_close, atol=2e-6, rtol=2e-6)  # 300 float32 products, each off by 2^-24 at most, summed
    assert scores.kld is not None and scores.nll_reference is not None and scores.agrees is not None
    close(scores.kld.double(), torch.distributions.kl_divergence(p, q))
    close(scores.nll.double(), -q.log_prob(targets))
    close(scores.nll_reference.double(), -p.log_prob(targets))
    assert scores.agrees.tolist() == [float(a == b) for a, b in zip(ours.argmax(1), theirs.argmax(1), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_at_distance_zero_from_itself(dtype):
    same = logits(5, 70, 0).to(dtype)
    scores = compare(same, torch.arange(5), same)
    assert scores.kld is not None and scores.agrees is not None
    assert scores.kld.eq(0).all() and scores.agrees.eq(1).all()


def test_tokens_that_the_original_rules_out_add_nothing():
    ours, theirs = logits(4, 50, 0), logits(4, 50, 1)
    for both in (True, False):
        padded = [torch.nn.functional.pad(x, (0, 6), value=v) for x, v in ((ours, -math.inf if both else -1e4), (theirs, -math.inf))]
        expected = compare(ours, torch.arange(4), theirs).kld
        torch.testing.assert_close(compare(padded[0], torch.arange(4), padded[1]).kld, expected, atol=1e-6, rtol=1e-6)


def test_pieces_do_not_show_in_the_scores(monkeypatch):
    ours, theirs, targets = logits(23, 64, 0), logits(23, 64, 1), torch.arange(23)
    whole = compare(ours, targets, theirs)
    monkeypatch.setattr(divergence, "_SCORED_AT_ONCE", 64 * 5)
    pieces = compare(ours, targets, theirs)
    assert all(torch.equal(a, b) for a, b in zip(vars(whole).values(), vars(pieces).values(), strict=True))


def test_summary_counts_tokens_quantiles_and_the_spread_over_windows():
    windows = [compare(logits(11, 30, s), torch.arange(11), logits(11, 30, s + 50)) for s in range(4)]
    kld = torch.cat([w.kld for w in windows if w.kld is not None]).double()
    found = summary(windows)
    assert found["tokens"] == 44
    assert found["kld_mean"] == pytest.approx(kld.mean().item())
    assert found["kld_median"] == pytest.approx(kld.quantile(0.5).item())
    assert found["kld_p90"] == pytest.approx(kld.quantile(0.9).item())
    assert found["kld_error"] == pytest.approx(kld.view(4, 11).mean(1).std().item() / 2)
    assert found["ppl"] == pytest.approx(math.exp(found["nll"]))
    assert "kld_error" not in summary(windows[:1]) and "kld_mean" not in summary([compare(logits(3, 9, 0), torch.arange(3))])


def test_perplexity_is_that_of_transformers(original):
    ids = TOKENS["near"]
    with torch.no_grad():
        loss: Any = original(input_ids=ids, labels=ids).loss
    found = evaluate(open_checkpoint(original), tokens=ids)["text"]
    assert found["nll"] == pytest.approx(loss.item(), rel=1e-5)  # float32 forward in another order of batches
    assert found["ppl"] == pytest.approx(math.exp(loss.item()), rel=1e-4)
    assert (found["tokens"], found["windows"], found["window_tokens"]) == (57, 3, 20)


def test_streamed_and_called_answers_agree(original, rounded):
    """Block by block from a checkpoint, by one call of a module, and through a bare function: the same figures."""
    streamed = evaluate(rounded, open_checkpoint(original), TOKENS)
    module = rounded.skeleton()
    for name in rounded.names:
        owner, _, key = name.rpartition(".")
        module.get_submodule(owner)._parameters[key] = nn.Parameter(rounded.read(name), requires_grad=False)
    module.get_submodule("lm_head")._parameters["weight"] = module.get_parameter("model.embed_tokens.weight")
    called = evaluate(module, original, TOKENS)
    bare = evaluate(lambda ids: module(ids).logits, original, TOKENS)
    for name in TOKENS:
        assert streamed[name]["kld_mean"] > 0.01
        for other in (called, bare):
            assert other[name].pop("sha256") == streamed[name]["sha256"]
            assert other[name] == pytest.approx({k: v for k, v in streamed[name].items() if k != "sha256"}, rel=1e-4)


def test_the_original_against_itself_shows_nothing_and_its_noise_floor_is_small(original, rounded):
    checkpoint = open_checkpoint(original)
    itself = evaluate(checkpoint, checkpoint, TOKENS, noise=True)
    small = evaluate(rounded, checkpoint, TOKENS)
    for name in TOKENS:
        assert itself[name]["kld_mean"] == 0 and itself[name]["kld_p90"] == 0 and itself[name]["top1"] == 1
        assert itself[name]["ppl"] == itself[name]["ppl_reference"]
        assert 0 < itself[name]["kld_noise"] < small[name]["kld_mean"] / 10
        assert "kld_noise" not in small[name]


def test_weights_that_are_bfloat16_already_have_a_noise_floor_too():
    floor = prepare(open_checkpoint(llama().bfloat16().float()), TOKENS).noise["near"]
    assert 0 < floor["kld_noise"] < floor["kld_noise_p90"] < 0.1


def test_the_noise_floor_is_that_of_the_first_windows(original):
    many = {"text": probe(batch=6, seq=9)}
    assert prepare(original, many).noise == prepare(original, {"text": many["text"][:4]}).noise


def test_rounding_a_checkpoint_rounds_what_is_read_and_nothing_else(original):
    base: Any = open_checkpoint(original)
    narrow: Any = Rounded(base, torch.bfloat16)
    name = base.names[1]
    assert torch.equal(narrow.read(name), base.read(name).bfloat16().float())
    assert narrow.read(name).dtype == torch.float32 and narrow.names == base.names and narrow.shape(name) == base.shape(name)


def test_a_prepared_reference_gives_the_same_figures_and_refuses_other_windows(original, rounded):
    reference = prepare(original, TOKENS, noise=False)
    assert evaluate(rounded, reference) == evaluate(rounded, original, TOKENS)
    with pytest.raises(UsageError, match="other windows"):
        evaluate(rounded, reference, {"near": TOKENS["near"][:2]})


def test_every_block_and_window_is_told(rounded):
    heard: list[Event] = []
    evaluate(rounded, tokens=TOKENS, on_event=heard.append)
    blocks, windows = [e for e in heard if e.phase.startswith("evaluate")], [e for e in heard if e.phase == "score near"]
    assert [(e.done, e.total) for e in blocks] == [(1, 2), (2, 2)] and [(e.done, e.total) for e in windows] == [(1, 3), (2, 3), (3, 3)]


def test_large_vocabularies_are_asked_for_in_pieces(monkeypatch, rounded):
    asked: list[int] = []
    found = answers(rounded, TOKENS)

    class Asked:
        label = "asked"

        def logits(self, text: str, window: int, start: int, stop: int) -> Tensor:
            asked.append(stop - start)
            return found.logits(text, window, start, stop)

    whole = evaluate(rounded, tokens=TOKENS)
    monkeypatch.setattr(divergence, "_HEAD_AT_ONCE", 384 * 4)
    pieces = evaluate(Asked(), tokens=TOKENS)
    assert max(asked) == 4
    assert pieces["near"]["nll"] == pytest.approx(whole["near"]["nll"], rel=1e-6)  # matrix products of other sizes


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((2, 5), 384), "ids below the vocabulary of 384"),
        (torch.full((2, 5), -1), "token ids from -1 to -1"),
        (torch.zeros(5, dtype=torch.int64), r"shape \(5,\)"),
        (torch.zeros(2, 5), "float32 of shape"),
        (torch.zeros(2, 1, dtype=torch.int64), "seq at least 2"),
    ],
)
def test_tokens_that_cannot_be_scored_are_refused(rounded, ids, message):
    with pytest.raises(LessenError, match=message):
        evaluate(rounded, tokens={"near": ids})


def test_no_tokens_another_vocabulary_and_no_numbers_are_refused(original, rounded):
    with pytest.raises(UsageError, match="no tokens"):
        evaluate(rounded)
    with pytest.raises(UsageError, match="no text"):
        evaluate(rounded, tokens={})
    with pytest.raises(LessenError, match="got 384 logits, wanted 400 as"):
        evaluate(rounded, llama(vocab=400), TOKENS)
    with pytest.raises(LessenError, match="window 0, from token 0: got logits that give no finite score"):
        evaluate(lambda ids: original(ids).logits * math.nan, original, TOKENS)
    with pytest.raises(LessenError, match=r"got shape .*wanted logits of shape batch seq vocab"):
        evaluate(lambda ids: ids.float(), tokens=TOKENS)
    with pytest.raises(LessenError, match="measure without the noise floor"):
        prepare(lambda ids: SimpleNamespace(logits=original(ids).logits), TOKENS)
