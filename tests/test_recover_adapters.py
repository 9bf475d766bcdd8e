"""Recall adapters: nothing changes at first, merging is exact, and what they add is the formula."""

import copy

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.core.edit import Keep
from lessen.core.unit import Slice, Unit
from lessen.errors import UsageError
from lessen.models.module import InMemory
from lessen.recover.adapters import Adapters, attach, merge
from lessen.recover.loop import recover
from lessen.structure.decoder import units
from tests.decoders import decoder, drop, some_keeps, tokens


class Convolutions(nn.Module):
    """Two convolutions and a linear; the channels between them can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "none"}
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, stride=2)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).relu()).relu().mean((2, 3)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pruned_convolutions() -> tuple[nn.Module, nn.Module, list[Keep]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = Convolutions().double()
    unit = Unit("first", "ffn", 6, (Slice("first.weight", 0), Slice("second.weight", 1)))
    edits = [Keep(unit, torch.tensor([0, 2, 5]))]
    student = lessen.apply(copy.deepcopy(dense), edits)
    for module, (inputs, outputs) in ((student.get_submodule("first"), (3, 3)), (student.get_submodule("second"), (3, 4))):
        assert isinstance(module, nn.Conv2d)
        module.in_channels, module.out_channels = inputs, outputs
    return dense, student, edits


def excited(model: nn.Module) -> None:
    """Give the halves that start at zero some values."""
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if "parametrizations" in name and name.rpartition(".")[2].startswith("b"):
            parameter.data = 0.1 * random(*parameter.shape, seed=seed)


@pytest.mark.parametrize("recall", [True, False])
def test_zero_is_the_identity_and_merging_is_exact_for_a_decoder(recall: bool):
    dense = decoder("llama")
    found = units(InMemory(dense))
    shorter = lessen.apply(copy.deepcopy(dense), drop(found, 1))
    edits = [*drop(found, 1), *some_keeps(units(InMemory(shorter)))]
    student = lessen.apply(copy.deepcopy(dense), edits)
    before = student(tokens()).logits
    names = attach(student, Adapters(rank=3, recall=recall), InMemory(dense), edits)
    assert len(names) == 14  # seven linears in each of two blocks; the head is tied and stays out
    assert torch.equal(student(tokens()).logits, before)
    excited(student)
    trained = student(tokens()).logits
    assert not torch.allclose(trained, before)
    assert merge(student) == names
    torch.testing.assert_close(student(tokens()).logits, trained, rtol=0, atol=1e-10)
    assert type(student.get_submodule(names[0])) is nn.Linear
    assert {n for n, _ in student.named_parameters()} == {n for n, _ in lessen.apply(copy.deepcopy(dense), edits).named_parameters()}


def test_zero_is_the_identity_and_merging_is_exact_for_convolutions():
    dense, student, edits = pruned_convolutions()
    x = random(2, 3, 8, 8)
    before = student(x)
    assert attach(student, Adapters(rank=2), InMemory(dense), edits) == ["first", "second", "out"]
    assert torch.equal(student(x), before)
    excited(student)
    trained = student(x)
    assert not torch.allclose(trained, before)
    merge(student)
    torch.testing.assert_close(student(x), trained, rtol=0, atol=1e-10)


def test_the_update_is_the_formula():
    dense, student, edits = pruned_convolutions()
    options = Adapters(rank=2, alpha=6.0)
    original = {name: p.detach().clone() for name, p in dense.named_parameters()}
    base = {name: p.detach().clone() for name, p in student.named_parameters()}
    attach(student, options, InMemory(dense), edits)
    excited(student)
    parts = dict(student.named_parameters())
    stay, gone = [0, 2, 5], [1, 3, 4]

    def branch(layer: str, *names: str) -> list[Tensor]:
        return [parts[f"{layer}.parametrizations.weight.0.{name}"] for name in names]

    b, a, b_out, a_out = branch("first", "b", "a", "b_out", "a_out")
    lost = original["first.weight"][gone].flatten(1)
    want = base["first.weight"] + 3.0 * (b @ a + b_out @ a_out @ lost).view_as(base["first.weight"])
    # the dense weight is read as float32 by checkpoints, hence the tolerance
    torch.testing.assert_close(student.get_submodule("first").weight, want, rtol=1e-6, atol=1e-6)
    b, a, b_in, a_in = branch("second", "b", "a", "b_in", "a_in")
    want = base["second.weight"] + 3.0 * ((b @ a).view_as(base["second.weight"]))
    for y in range(3):
        for x in range(3):
            want[:, :, y, x] += 3.0 * original["second.weight"][:, gone][:, :, y, x] @ b_in @ a_in
    torch.testing.assert_close(student.get_submodule("second").weight, want, rtol=1e-6, atol=1e-6)
    assert original["first.weight"][stay].shape == base["first.weight"].shape


def test_training_moves_the_adapters_alone():
    dense = decoder("llama", torch.float32)
    edits = some_keeps(units(InMemory(dense)), uniform=True)
    student = lessen.apply(copy.deepcopy(dense), edits)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    attach(student, Adapters(rank=4), InMemory(dense), edits)
    found = recover(student, dense, tokens(32, 12), tokens(8, 12, 9), steps=20, learning_rate=3e-3, precision="float32")
    assert found.before is not None
    assert found.best is not None
    assert found.best < 0.95 * found.before
    frozen = {n.replace("parametrizations.weight.original", "weight"): p for n, p in student.named_parameters() if ".0." not in n[-12:]}
    for name, parameter in frozen.items():
        if name in before:
            assert torch.equal(parameter, before[name]), name
    merge(student)
    changed = [name for name, p in student.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) == 21  # every linear of three blocks


def test_adapters_are_the_same_for_one_seed_and_refuse_to_pile_up():
    first, second = decoder("llama"), decoder("llama")
    for model in (first, second):
        attach(model, Adapters(seed=7))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(UsageError, match="merge first"):
        attach(first)
    with pytest.raises(UsageError, match="a module to adapt"):
        attach(decoder("llama"), Adapters(targets=("router",)))
    with pytest.raises(UsageError, match="rank=0"):
        Adapters(rank=0)
