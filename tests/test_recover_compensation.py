"""Closed-form compensation: the golden solution, never worse than doing nothing, convolutions, streams and dropped blocks."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lessen
from lessen.core.edit import Edit, Replace
from lessen.errors import LessenError, UsageError
from lessen.models.module import InMemory
from lessen.recover import module as in_memory
from lessen.recover.regression import Sums
from lessen.recover.stream import Compensation, compensate, distance, improved
from lessen.structure.decoder import units
from tests.decoders import decoder, drop, some_keeps, tokens
from tests.test_recover_adapters import pruned_convolutions


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_the_solution_is_that_of_the_normal_equations(damping: float):
    x, target, weight, bias = random(50, 6), random(50, 4, seed=1), random(4, 6, seed=2), random(4, seed=3)
    sums = Sums()
    sums.update(x[:20], target[:20])
    sums.update(x[20:], target[20:])
    strength = damping * float((x.T @ x).diagonal().mean())
    # Damping is data that asks for the old weights: `in` further tokens.
    rows = torch.cat([x, strength**0.5 * torch.eye(6, dtype=torch.float64)])
    wanted = torch.cat([target - bias, strength**0.5 * weight.T])
    want = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(sums.solve(weight, damping, bias), want, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sums.shift(weight), (target - x @ weight.T).mean(0))


def test_inputs_that_are_never_on_keep_their_weights_and_no_tokens_are_an_error():
    x = torch.cat([random(30, 3), torch.zeros(30, 1, dtype=torch.float64)], 1)
    sums, weight = Sums(), random(2, 4, seed=5)
    sums.update(x, x @ random(4, 2, seed=6))
    found = sums.solve(weight, 0.0)
    torch.testing.assert_close(found[:, 3], weight[:, 3])
    with pytest.raises(LessenError, match="no tokens"):
        Sums().solve(weight, 0.1)
    broken = Sums()
    broken.update(x * float("nan"), x)
    with pytest.raises(LessenError, match="finite"):
        broken.solve(random(4, 4), 0.1)


def redundant(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A decoder whose heads and channels come in copies, so that those that stay can stand in for those that go."""
    model = decoder(family, dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            copies = (
                3 if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") else 4 if name.split(".")[-2] in ("gate_proj", "up_proj") else 1
            )
            p.copy_(p[: len(p) // copies].repeat(copies, *[1] * (p.ndim - 1)))
    return model


def error(student: nn.Module, dense: nn.Module, ids: Tensor) -> float:
    with torch.no_grad():
        return float((student(ids).logits - dense(ids).logits).square().mean())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_what_is_left_does_all_the_work_where_it_can(family: str):
    dense = redundant(family)
    source = InMemory(dense)
    edits = some_keeps(units(source), uniform=True)
    more = compensate(source, edits, tokens(24, 16), Compensation(damping=1e-4, precision="float32"))
    assert len(more) == 6  # two layers in each of three blocks
    held = tokens(8, 16, 9)
    before = error(lessen.apply(copy.deepcopy(dense), edits), dense, held)
    after = error(lessen.apply(copy.deepcopy(dense), [*edits, *more]), dense, held)
    # On paper nothing is lost but the channels of which every copy went, one in four of them at most.
    assert after < 0.2 * before


def test_least_squares_are_kept_where_held_out_text_agrees():
    dense = redundant("llama")
    source, ids = InMemory(dense), tokens(8, 24)
    cuts = some_keeps(units(source), uniform=True)
    assert len(improved(source, cuts, ids, ids)) > len(cuts)
    whole: list[Edit] = []  # nothing is missing, so that nothing can be nearer
    assert improved(source, whole, ids[:1], tokens(4, 24, seed=5)) == whole
    assert distance(source, source, ids) == pytest.approx(0, abs=1e-6)


def test_a_bias_mends_the_mean():
    dense = decoder("llama", torch.float32)
    source, ids = InMemory(dense), tokens(24, 16)
    edits = some_keeps(units(source), uniform=True)
    more = compensate(source, edits, ids, Compensation("bias", drift=0.0, precision="float32"))
    assert next(edit.name for edit in more if isinstance(edit, Replace)) == "model.layers.0.self_attn.o_proj.bias"
    student = lessen.apply(copy.deepcopy(dense), [*edits, *more])
    means: dict[str, Tensor] = {}
    for name, model in (("dense", dense), ("student", student)):
        layer = model.get_submodule("model.layers.2.mlp.down_proj")

        def keep(_: nn.Module, __: object, out: Tensor, name: str = name) -> None:
            means[name] = out.mean((0, 1))

        layer.register_forward_hook(keep)
        with torch.no_grad():
            model(ids)
    torch.testing.assert_close(means["student"], means["dense"], rtol=1e-4, atol=1e-4)  # float32 sums of 384 tokens


def test_fitting_what_was_not_pruned_changes_nothing():
    dense = decoder("llama", torch.float32)
    more = compensate(InMemory(dense), [], tokens(16, 16), Compensation(damping=1.0, precision="float32"))
    for edit in more:
        assert isinstance(edit, Replace)
        # float32 products of 256 tokens
        torch.testing.assert_close(edit.weight, dense.get_parameter(edit.name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_the_layers_next_to_a_gap_are_fitted_to_the_hidden_state_behind_it(gone: int):
    """Against the same least squares by hand, on hidden states that hooks saw."""
    dense = decoder("llama", torch.float32)
    source, ids = InMemory(dense), tokens(48, 16)
    edits = drop(units(source), gone)
    more = compensate(source, edits, ids, Compensation(damping=1e-3, precision="float32"))
    assert len(more) == 4
    student = lessen.apply(copy.deepcopy(dense), [*edits, *more])
    before = max(gone - 1, 0)  # the block of the student whose feed-forward layer ends at the gap, or is the first
    behind = {0: 2, 1: 2, 2: 3}[gone]  # hidden state of the dense model that it should deliver
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda _, args, out: seen.update({f"{name} in": args[0], name: out if isinstance(out, Tensor) else out[0]})

    block = student.get_submodule(f"model.layers.{before}")
    block.get_submodule("mlp.down_proj").register_forward_hook(keep("down"))
    block.register_forward_hook(keep("block"))
    with torch.no_grad():
        wanted = dense(ids, output_hidden_states=True).hidden_states
        if behind == 3:  # the last one comes after the final norm
            dense.get_submodule("model.layers.2").register_forward_hook(keep("last"))
            dense(ids)
            wanted = (*wanted[:3], seen["last"])
        student(ids)
    x = seen["down in"].flatten(0, 1).double()
    target = (wanted[behind] - (seen["block"] - seen["down"])).flatten(0, 1).double()
    sums = Sums()
    sums.update(x, target)
    place = f"model.layers.{before}.mlp.down_proj.weight"
    original = dense.get_parameter(f"model.layers.{before + (gone == 0)}.mlp.down_proj.weight")
    # float32 hidden states, and a damping that leaves the problem well conditioned
    torch.testing.assert_close(student.get_parameter(place).double(), sums.solve(original, 1e-3), rtol=1e-2, atol=1e-3)


def test_an_unknown_family_is_sent_to_the_other_way_and_options_are_checked():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = {"model_type": "odd"}
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    with pytest.raises(UsageError, match=r"lessen\.recover\.module"):
        compensate(InMemory(Odd()), [], tokens())
    with pytest.raises(UsageError, match="drift=2"):
        Compensation(drift=2)
    with pytest.raises(UsageError, match="kind='magic'"):
        Compensation(kind="magic")  # pyright: ignore[reportArgumentType]


def test_convolutions_in_memory_are_fitted_as_least_squares_on_patches():
    dense, student, edits = pruned_convolutions()
    data = random(40, 3, 9, 9)
    before = copy.deepcopy(student.state_dict())
    more = in_memory.compensate(student, dense, edits, data, damping=0.0)
    assert [edit.name for edit in more if isinstance(edit, Replace)] == ["second.weight"]
    assert all(torch.equal(p, before[name]) for name, p in student.state_dict().items())  # decided, not done
    with torch.no_grad():
        inputs = F.unfold(student.get_submodule("first")(data).relu(), 3, stride=2).transpose(1, 2).flatten(0, 1)
        second = dense.get_submodule("second")
        target = second(dense.get_submodule("first")(data).relu()).flatten(2).transpose(1, 2).flatten(0, 1) - second.bias
        want = torch.linalg.lstsq(inputs, target).solution.T
    assert isinstance(more[0], Replace)
    torch.testing.assert_close(more[0].weight.flatten(1), want, rtol=1e-6, atol=1e-8)
    held = random(20, 3, 9, 9, seed=8)

    def convolved(model: nn.Module) -> Tensor:  # what the fit is about: after another ReLU and a mean, errors may cancel by luck
        return model.get_submodule("second")(model.get_submodule("first")(held).relu())

    errors = []
    for further in ([], more):
        fitted = lessen.apply(copy.deepcopy(student), further)
        with torch.no_grad():
            errors.append(float((convolved(fitted) - convolved(dense)).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_a_decoder_in_memory_is_fitted_too():
    dense = redundant("llama", torch.float64)
    edits = some_keeps(units(InMemory(dense)), uniform=True)
    student = lessen.apply(copy.deepcopy(dense), edits)
    more = in_memory.compensate(student, dense, edits, tokens(24, 16), damping=1e-4)
    assert len(more) == 6
    held = tokens(8, 16, 9)
    assert error(lessen.apply(copy.deepcopy(student), more), dense, held) < 0.2 * error(student, dense, held)
