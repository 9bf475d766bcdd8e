"""Data as users have it: whatever holds the same samples trains to the same weights; what holds none says so."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lessen
from lessen.errors import LessenError, UsageError
from lessen.methods import Magnitude
from lessen.recover.losses import Logits, NextToken
from lessen.recover.samples import rows


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.up(self.embed(input_ids)).relu())


def model(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Words()


IDS = torch.randint(11, (12, 6), generator=torch.Generator().manual_seed(0))
SAMPLES = [{"input_ids": row, "attention_mask": torch.ones(6, dtype=torch.long)} for row in IDS]
BATCHES = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in IDS.split(4)]


def trained(data: Any, heldout: Any = None) -> Tensor:
    student = model(1)
    lessen.recover(student, model(0), data, heldout, steps=3, batch=4, learning_rate=1e-2, precision="float32", patience=None)
    return student.get_parameter("head.weight").detach()


@pytest.mark.parametrize(
    "data",
    [BATCHES, iter(BATCHES), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, list(IDS), list(IDS.split(4)), iter(IDS.split(4))],
    ids=["batches", "generator", "mapping", "tensors", "tensor batches", "tensor generator"],
)
def test_samples_and_batches_of_them_are_the_same_training(data: Any):
    assert torch.equal(trained(data), trained(SAMPLES))


def test_a_loader_of_pairs_trains_and_held_out_data_may_come_the_same_way():
    net = nn.Linear(4, 3)
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    found = lessen.recover(
        net, None, loader, loader, losses=(NextToken(),), steps=20, learning_rate=0.1, precision="float32", patience=None
    )
    assert found.best is not None and found.before is not None and found.best < found.before


def test_pairs_in_batches_are_told_from_pairs_by_what_the_losses_take():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.randn(32, 2, 2), torch.randint(3, (32,))
    twin = copy.deepcopy(net)
    settings: Any = {"losses": (NextToken(),), "steps": 4, "batch": 8, "learning_rate": 0.1, "precision": "float32"}
    lessen.recover(net, None, list(zip(x, y, strict=True)), **settings)
    lessen.recover(twin, None, list(zip(x.split(8), y.split(8), strict=True)), **settings)
    assert torch.equal(net.state_dict()["1.weight"], twin.state_dict()["1.weight"])


def test_what_prune_gave_can_be_trained_as_it_is():
    teacher = model(0)
    pruned = lessen.prune(teacher, IDS, method=Magnitude(), to="20%", prove=False)
    found = lessen.recover(pruned, teacher, IDS, steps=1, losses=[Logits()], precision="float32")
    assert found.model is pruned.model


def test_a_larger_student_was_swapped_with_its_teacher():
    teacher = model(0)
    pruned = lessen.prune(teacher, IDS, method=Magnitude(), to="20%", prove=False)
    with pytest.raises(UsageError, match=r"student larger than its teacher.*the smaller model first"):
        lessen.recover(teacher, pruned.model, IDS, steps=1)


@pytest.mark.parametrize(
    ("data", "said"),
    [(3, "data of type int"), ([], "no samples"), (iter([]), "no samples"), ([torch.ones(6)], "do not take"), (["text"], "do not take")],
)
def test_data_without_samples_is_refused_in_one_line(data: Any, said: str):
    student = model(1)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(LessenError, match=said) as caught:
        lessen.recover(student, model(0), data, steps=1, precision="float32")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_modules_are_asked_for():
    with pytest.raises(UsageError, match="student of type str"):
        lessen.recover("model", None, IDS, steps=1)
    with pytest.raises(UsageError, match=r"recover\(teacher\)"):
        lessen.recover(model(0), "teacher", IDS, steps=1)  # pyright: ignore[reportArgumentType]


def test_rows_of_uneven_batches_are_refused():
    with pytest.raises(UsageError, match=r"\[2, 3\] rows"):
        rows((torch.zeros(2, 3), torch.zeros(3)))
