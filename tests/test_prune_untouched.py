"""A model that was looked at is as it was: what its forward counts and collects, its mode, its statistics; and so is the smaller one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.errors import LessenError
from lessen.methods import Magnitude, Taylor

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    """It counts its calls in every way, drops at random, and follows its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)
        self.drop = nn.Dropout(0.5)
        self.calls = 0
        self.seen: list[int] = []
        self.notes: dict[str, Any] = {"shapes": [], "sets": ({1},)}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.notes["shapes"].append(tuple(x.shape))
        self.notes["sets"][0].add(self.calls)
        return self.down(self.drop(torch.relu(self.norm(self.up(x)))))


def state(model: Any) -> Any:
    modes = [module.training for module in model.modules()]
    tensors = [tensor.clone() for tensor in model.state_dict().values()]
    gradients = [(p.grad, p.requires_grad) for p in model.parameters()]
    return copy.deepcopy((model.calls, model.seen, model.notes, modes, gradients)), tensors


def same(a: Any, b: Any) -> bool:
    return a[0] == b[0] and all(torch.equal(one, other) for one, other in zip(a[1], b[1], strict=True))


BATCHES = [(X, torch.tensor([0, 1, 2, 0]))] * 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"method": Magnitude(ratio=0.5)},
        {"method": Magnitude(ratio=0.5), "prove": False},
        {"method": Magnitude(), "to": "30% macs", "prove": True},
        {"method": Magnitude(), "to": "30%", "rounds": 2},
        {"method": Taylor(ratio=0.5), "batches": BATCHES},
    ],
    ids=["proof", "timed", "macs", "rounds", "gradients"],
)
def test_neither_model_remembers_that_it_ran(options: dict[str, Any], training: bool):
    model = Counting().train(training)
    model(X)
    before = state(model)
    made: Any = lessen.prune(model, X, **options)
    assert same(before, state(model))
    assert made.model.up.out_features < 12 and made.model is not model
    assert state(made.model)[0][:3] == before[0][:3] and made.model.training is training and made.model.drop.training is training


def test_after_a_trace_and_after_a_failure_it_is_as_it_was():
    model = Counting().train()
    before = state(model)
    lessen.trace(model, X)
    assert same(before, state(model))
    for example, options in ((torch.zeros(2, 7), {}), (X, {"to": "99.9%"}), (X, {"batches": [torch.zeros(2, 7)], "method": Taylor()})):
        with pytest.raises(LessenError):
            lessen.prune(model, example, **{"method": Magnitude(), **options})
        assert same(before, state(model))


@pytest.mark.parametrize("dim", [0, 1, None])
def test_a_masked_row_of_a_weight_normalised_layer_is_zero_and_no_nan(dim: Any):
    normed = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        normed(nn.Conv1d(3, 8, 3, padding=1), dim=dim), nn.ReLU(), normed(nn.ConvTranspose1d(8, 6, 3)), nn.ReLU(), nn.Conv1d(6, 2, 1)
    ).eval()
    x = torch.randn(2, 3, 9)
    made = lessen.prune(model, x, method=Magnitude(ratio=0.5), prove=True)
    masked = lessen.apply(copy.deepcopy(model), made.edits, mode="mask")
    with torch.no_grad():
        torch.testing.assert_close(masked(x), made.model(x))  # defaults of float32
    assert made.kept and masked.get_parameter("0.parametrizations.weight.original1").isfinite().all()


def test_what_cannot_be_copied_is_told_in_one_line():
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(LessenError, match=r"wanted a model that copy.deepcopy takes; nn.utils.weight_norm leaves such a tensor"):
        lessen.prune(model, torch.zeros(1, 4), method=Magnitude(ratio=0.5))
