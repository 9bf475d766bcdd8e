"""Losses: known values, zero with zero gradient where nothing differs, and the same number however a batch is cut."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.errors import LessenError, UsageError
from lessen.recover.answers import Answers
from lessen.recover.head import Head, per_piece
from lessen.recover.losses import Divergence, Features, Logits, NextToken, Relations, Task, divergence
from lessen.recover.objective import Objective, labels_of
from tests.decoders import decoder, tokens

KINDS: tuple[Divergence, ...] = ("forward", "reverse", "jsd", "skew", "skew_reverse")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brute(kind: str, p: Tensor, q: Tensor, a: float = 0.1) -> float:
    def kl(x: Tensor, y: Tensor) -> float:
        return sum(float(u) * math.log(float(u) / float(v)) for u, v in zip(x, y, strict=True))

    middle = (p + q) / 2
    return {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "jsd": lambda: kl(p, middle) / 2 + kl(q, middle) / 2,
        "skew": lambda: kl(p, a * p + (1 - a) * q),
        "skew_reverse": lambda: kl(q, (1 - a) * p + a * q),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_are_their_formulae(kind: Divergence):
    student, teacher = random(7), random(7, seed=1)
    want = brute(kind, (teacher.double() / 2).softmax(-1), (student.double() / 2).softmax(-1)) * 4
    # float32 logarithms of numbers around 0.1, seven of them
    assert float(divergence(student, teacher, kind, temperature=2.0)) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_vanish_with_their_gradient_where_nothing_differs(kind: Divergence):
    logits = random(5, 11).requires_grad_()
    value = divergence(logits, logits.detach(), kind).sum()
    value.backward()
    assert logits.grad is not None
    assert abs(float(value.detach())) < 1e-5  # float32 sums of 55 terms that are zero on paper
    assert float(logits.grad.abs().max()) < 1e-6


def test_a_token_that_the_teacher_rules_out_adds_nothing():
    teacher = torch.tensor([0.0, 1.0, -math.inf])
    assert torch.isfinite(divergence(torch.tensor([0.0, 1.0, 3.0]), teacher, "forward"))


def test_the_cosine_of_maps_is_taken_over_channels():
    maps, loss = random(2, 8, 5, 7), Features({}, kind="cosine")
    scaled = maps * random(2, 1, 5, 7, seed=1).abs().add(0.5)  # positions alone: every vector keeps its direction
    turned = maps * random(2, 8, 5, 1, seed=2).abs().add(0.5)
    assert loss.of_features(scaled, maps).abs().max() < 1e-6
    assert loss.of_features(turned, maps).min() > 1e-3
    rows = maps.flatten(2).transpose(1, 2)
    want = 1 - (rows * turned.flatten(2).transpose(1, 2)).sum(-1) / rows.norm(dim=-1) / turned.flatten(2).transpose(1, 2).norm(dim=-1)
    assert torch.allclose(loss.of_features(turned, maps), want.mean(1), atol=1e-6)


@pytest.mark.parametrize("loss", [Features({}), Features({}, kind="cosine"), Relations({})])
def test_feature_losses_vanish_with_their_gradient_where_nothing_differs(loss: Features | Relations):
    features = random(3, 6, 8).requires_grad_()
    value = loss.of_features(features, features.detach()).sum()
    value.backward()
    assert features.grad is not None
    assert abs(float(value.detach())) < 1e-6
    assert float(features.grad.abs().max()) < 1e-6


def test_feature_losses_know_scale_and_axes_as_they_say():
    a, b = random(2, 5, 8), random(2, 5, 8, seed=1)
    mse = Features({})
    # the norm is divided out, so a scale changes nothing
    torch.testing.assert_close(mse.of_features(3 * a, b), mse.of_features(a, b))
    rotation = torch.linalg.qr(random(8, 8, seed=2)).Q
    # cosines between positions do not see a rotation of the features
    torch.testing.assert_close(Relations({}).of_features(a @ rotation, b), Relations({}).of_features(a, b))
    by_hand = [(F.normalize(x.flatten(), dim=0) - F.normalize(y.flatten(), dim=0)).square().mean() for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(mse.of_features(a, b), torch.stack(by_hand))


def test_relations_compare_maps_of_different_widths():
    assert Relations({}).of_features(random(2, 4, 3, 3), random(2, 6, 3, 3)).shape == (2,)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_pieces_give_the_loss_and_gradients_of_the_whole(rows: int):
    linear = nn.Linear(6, 20, bias=True, dtype=torch.float64)
    hidden = random(10, 6).double().requires_grad_()
    teacher = random(10, 20, seed=1).double()

    def loss(logits: Tensor, answer: Tensor) -> Tensor:
        return (answer.softmax(-1) * (answer.log_softmax(-1) - logits.log_softmax(-1))).sum()

    loss(linear(hidden), teacher).backward()
    want = [hidden.grad, linear.weight.grad, linear.bias.grad]
    hidden.grad = linear.weight.grad = linear.bias.grad = None
    value = per_piece(loss, hidden, linear, [teacher], rows)
    (2 * value).backward()
    for have, wanted in zip([hidden.grad, linear.weight.grad, linear.bias.grad], want, strict=True):
        assert have is not None
        assert wanted is not None
        # the sum of values itself is float32, its gradients are float64
        torch.testing.assert_close(have, 2 * wanted, rtol=1e-12, atol=1e-12)


def test_forward_divergence_brings_the_gradient_that_autograd_finds():
    student, teacher = random(5, 30).requires_grad_(), 3 * random(5, 30, seed=1)
    teacher[0, 0] = float("-inf")
    for temperature in (1.0, 2.0):
        p, q = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
        plain = F.kl_div(q, p, log_target=True, reduction="none").nan_to_num(0.0).sum(-1) * temperature**2
        (want,) = torch.autograd.grad(plain.sum(), student)
        (have,) = torch.autograd.grad(divergence(student, teacher, "forward", temperature).sum(), student)
        torch.testing.assert_close(have, want.nan_to_num(0.0), rtol=1e-4, atol=1e-6)  # float32, thirty terms


def test_pieces_under_autocast_round_the_head_once_to_what_a_linear_rounds_it_to():
    linear, hidden = nn.Linear(6, 20), random(8, 6).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        linear(hidden).float().square().sum().backward()
        want = hidden.grad, linear.weight.grad
        hidden.grad = linear.weight.grad = None
        value = per_piece(lambda logits: logits.float().square().sum(), hidden, linear, [], rows=8)
        value.backward()
        with torch.no_grad():
            torch.testing.assert_close(per_piece(lambda x: x.float().square().sum(), hidden, linear, [], rows=4), value.detach())
    assert linear.weight.grad is not None
    for have, wanted in zip([hidden.grad, linear.weight.grad], want, strict=True):
        torch.testing.assert_close(have, wanted)


def test_a_teacher_is_asked_once_about_a_window_and_what_does_not_fit_is_asked_again():
    asked: list[int] = []

    def ask(window: Tensor) -> Tensor:
        asked.append(int(window[0, 0]))
        return window[..., None].float()

    windows = tokens(3, 4) + torch.arange(3)[:, None] * 100
    answers = Answers(ask, room=2 * 4 * 4)  # two windows of four float32
    for _ in range(2):
        assert torch.equal(answers.of(windows), windows[..., None].float())
    assert len(asked) == 3 + 1
    assert not Answers.fit(windows.float())
    assert not Answers.fit({"input_ids": windows})


def test_a_frozen_head_gets_no_gradient_and_none_is_taken_without_grad():
    linear = nn.Linear(6, 20).requires_grad_(False)
    hidden = random(4, 6).requires_grad_()
    per_piece(lambda logits: logits.square().sum(), hidden, linear, []).backward()
    assert linear.weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        value = per_piece(lambda logits: logits.square().sum(), hidden, linear, [], rows=2)
    torch.testing.assert_close(value, linear(hidden).square().sum().detach())


def test_heads_that_logits_come_straight_from_are_found_and_others_are_not():
    ids = tokens(2, 6)

    def logits(model: nn.Module) -> Tensor:
        return model(ids).logits

    model = decoder("llama")
    head = Head.of(model, logits)
    assert head is not None
    with head.skipped():
        assert logits(model).shape == (2, 6, 48)
    assert logits(model).shape == (2, 6, 64)
    assert Head.of(decoder("gemma2", final_logit_softcapping=5.0), logits) is None  # logits are capped after the head
    assert Head.of(nn.Linear(2, 2), logits) is None


def test_logits_piece_by_piece_and_at_once_are_the_same_objective():
    teacher, student = decoder("llama"), decoder("llama", seed=3)
    ids = tokens(3, 10)
    losses = (Logits("jsd"), NextToken(0.5), Features({"model.layers.1": "model.layers.2"}, weight=3.0))
    values, grads = [], []
    for head in (True, False):
        student.zero_grad()
        sums = Objective(losses, teacher, head=head).sums(student, ids)
        total = sum(value for value, _ in sums.values())
        assert isinstance(total, Tensor)
        total.backward()
        values.append(float(total.detach()))
        grads.append([p.grad for p in student.parameters()])
    assert values[0] == pytest.approx(values[1], rel=1e-6)  # divergences are float32
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_labels_are_the_next_tokens_where_somebody_wrote_them():
    ids = torch.tensor([[5, 6, 7, 0]])
    assert labels_of(ids).tolist() == [[6, 7, 0, -100]]  # pyright: ignore[reportOptionalMemberAccess]
    masked = labels_of({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0]])})
    assert masked is not None
    assert masked.tolist() == [[6, 7, -100, -100]]
    assert labels_of((random(2, 3), torch.tensor([1, 0]))).tolist() == [1, 0]  # pyright: ignore[reportOptionalMemberAccess]
    assert labels_of(random(2, 3)) is None


def test_counts_are_scored_tokens_and_samples():
    objective = Objective((NextToken(),), None)
    assert objective.counts(tokens(3, 10)).tolist() == [27, 3]


def test_any_loss_of_the_output_can_be_added():
    model = nn.Linear(3, 2)
    sums = Objective((Task(lambda output, batch: output.square().mean(), weight=2.0),), None).sums(model, random(4, 3))
    value, kind = sums["Task"]
    assert kind == 1
    torch.testing.assert_close(value, 2 * 4 * model(random(4, 3)).square().mean())


def test_what_cannot_be_compared_is_refused_with_a_remedy():
    with pytest.raises(UsageError, match="one at least"):
        Objective((), None)
    with pytest.raises(UsageError, match="whose features to match"):
        Objective((Features({"0": "0"}),), None)
    with pytest.raises(UsageError, match=r"did you mean model.layers.0\?"):
        Objective((Features({"model.layer.0": "model.layers.0"}),), decoder("llama")).sums(decoder("llama"), tokens())
    narrow, wide = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(LessenError, match="Relations"):
        Objective((Features({"0": "0"}),), wide).sums(narrow, random(2, 4))
    with pytest.raises(UsageError, match="temperature above 0"):
        Logits(temperature=0.0)
    with pytest.raises(UsageError, match="skew_reverse"):
        Logits(kind="sideways")  # pyright: ignore[reportArgumentType]
