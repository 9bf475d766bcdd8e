"""Statistics of gradients, inputs and angles on whole models, against autograd and loops; and what they cost in memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lessen
from lessen.core.unit import Unit
from lessen.errors import LessenError
from lessen.methods import UKMP
from lessen.models.module import InMemory
from lessen.stats.accumulators import InputNorm, InputVariance
from lessen.stats.angles import AngleEntropy
from lessen.stats.gradients import Collecting, MaskFisher, MaskTaylor, WeightTaylor, collect
from lessen.stats.inputs import Read
from lessen.stats.inputs import collect as collect_inputs
from lessen.stats.objectives import IGNORED, Predicted, TokenFilter, default_objective, named
from lessen.stats.whole import survey
from lessen.structure.decoder import units as decoder_units
from tests.decoders import decoder, tokens


class TwoHeads(nn.Module):
    """A trunk of two convolutions, and two tasks that read different halves of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.boxes, self.names = nn.Linear(6, 4), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))
        return self.boxes(x), self.names(x)


def two_tasks(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    boxes, names = model(batch[0])
    return {"boxes": boxes.square().sum(), "names": F.cross_entropy(names, batch[1])}


def two_heads() -> tuple[Any, list[Unit], list[Any]]:
    generator = torch.Generator().manual_seed(0)
    model = TwoHeads().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    batches = [
        (torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64), torch.randint(0, 5, (2,), generator=generator))
        for _ in range(3)
    ]
    return model, list(lessen.trace(model, batches[0][0]).units), batches


def test_switch_gradients_equal_those_of_a_real_switch():
    model, units, batches = two_heads()
    found = collect(model, units, (MaskTaylor, MaskFisher), batches, Collecting(two_tasks))
    assert found.tasks == ("boxes", "names") and [u.size for u in units] == [8, 6]
    for unit, layer in zip(units, (model.first, model.second), strict=True):
        taylor, fisher = torch.zeros(2, unit.size), torch.zeros(2, unit.size)
        for batch in batches:
            switch = torch.ones(unit.size, dtype=torch.float64, requires_grad=True)
            handle = layer.register_forward_hook(lambda _, __, out, switch=switch: out * switch[:, None, None])
            for row, loss in enumerate(two_tasks(model, batch).values()):
                (gradient,) = torch.autograd.grad(loss, switch, retain_graph=True)
                taylor[row] += gradient.abs()
                fisher[row] += gradient.square()
            handle.remove()
        # ReLU passes a switch through, so that one before it acts as one after it; products are added up in float32.
        torch.testing.assert_close(found.values[unit.name][MaskTaylor], taylor.double(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.values[unit.name][MaskFisher], fisher.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("passes", [1, 3])
def test_weight_taylor_equals_autograd_summed_over_batches(passes: int):
    model, units, batches = two_heads()
    found = collect(model, units, (WeightTaylor,), batches, Collecting(two_tasks, passes=passes))
    for task, name in enumerate(found.tasks):
        total = torch.stack([two_tasks(model, batch)[name] for batch in batches]).sum()
        weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        score = {n: (w * g).abs() if g is not None else torch.zeros_like(w) for (n, w), g in zip(weights.items(), gradients, strict=True)}
        for unit in units:
            expected = torch.zeros(unit.size, dtype=torch.float64)
            for part in unit.slices:
                if part.name in score:
                    expected += score[part.name].detach().movedim(part.axis, 0).flatten(1).sum(1)
            torch.testing.assert_close(found.values[unit.name][WeightTaylor][task], expected, rtol=1e-5, atol=1e-7)  # float32 sums


def test_the_model_is_left_as_it_was_also_after_a_failure():
    model, units, batches = two_heads()
    model.train()
    model.first.weight.requires_grad_(False)
    model.second.weight.grad = torch.ones_like(model.second.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def explodes(model: nn.Module, batch: Any) -> Tensor:
        two_tasks(model, batch)["boxes"].backward()
        raise ValueError("no such file")

    survey(model, units, (WeightTaylor, MaskFisher, InputNorm), batches, Collecting(two_tasks))
    with pytest.raises(LessenError, match="no such file"):
        survey(model, units, (WeightTaylor,), batches, Collecting(explodes))
    assert model.training and model.first.training and not model.first.weight.requires_grad and model.second.weight.requires_grad
    assert torch.equal(model.second.weight.grad, torch.ones_like(model.second.weight)) and model.first.weight.grad is None
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_checkpointed_blocks_give_the_same_gradients_and_their_forward_back():
    model = decoder("llama")
    units = [u for u in decoder_units(InMemory(model)) if u.kind in ("ffn", "kv_group")]
    batches = list(tokens(4, 12).split(1))
    plain = collect(model, units, (WeightTaylor, MaskFisher), batches, Collecting(recompute=False))
    again = collect(model, units, (WeightTaylor, MaskFisher), batches)
    for unit in units:
        for need in (WeightTaylor, MaskFisher):
            assert torch.equal(plain.values[unit.name][need], again.values[unit.name][need])
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_readers_see_the_mean_square_of_what_they_read():
    model, units, batches = two_heads()
    seen = collect_inputs(model, units, (InputNorm, InputVariance), batches, two_tasks)
    with torch.no_grad():
        inside = torch.cat([F.relu(model.first(x)) for x, _ in batches])
        pooled = torch.cat([F.relu(model.second(F.relu(model.first(x)))).mean((2, 3)) for x, _ in batches])
    first, second = (seen[unit.name][Read] for unit in units)
    assert [read.reader.path for read in first] == ["second"] and [read.reader.path for read in second] == ["boxes", "names"]
    torch.testing.assert_close(first[0].stats[InputNorm], inside.square().mean((0, 2, 3)))
    torch.testing.assert_close(second[1].stats[InputVariance], pooled.var(0, correction=0))
    matrix = first[0].reader.matrix(model.second.weight)
    assert matrix.shape == (6 * 9, 8) and torch.equal(matrix.reshape(6, 9, 8)[2, 4], model.second.weight[2, :, 1, 1])


def test_the_entropy_of_angles_equals_a_loop_and_leaves_padding_out():
    model = decoder("llama", torch.float32)
    units = [u for u in decoder_units(InMemory(model)) if u.kind in ("ffn", "kv_group")][:2]
    ids = tokens(3, 12)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    seen = collect_inputs(model, units, (AngleEntropy,), [{"input_ids": ids, "attention_mask": mask}], default_objective)
    inputs: list[Tensor] = []
    handle = model.get_submodule("model.layers.0.mlp.up_proj").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    handle.remove()
    x = inputs[0][mask.bool()]
    for unit in units:
        if unit.kind == "ffn":
            for channel in (0, 5):
                expected = 0.0
                for name in ("gate_proj", "up_proj"):
                    row = model.get_parameter(f"model.layers.0.mlp.{name}.weight")[channel]
                    bins = [0] * 100
                    for token in x:
                        cosine = float(torch.cosine_similarity(token, row.detach(), dim=0))
                        bins[min(99, int((cosine + 1) * 50))] += 1
                    expected -= sum(n / len(x) * float(torch.tensor(n / len(x) + 1e-12, dtype=torch.float64).log()) for n in bins) / 2
                # A cosine on the edge of a bin may fall to either side: one token of 31 moves the mean of two entropies by 0.06 at most.
                assert abs(float(seen[unit.name][AngleEntropy][channel]) - expected) < 0.07


def test_the_entropy_of_a_transposed_linear_layer_is_that_of_a_linear_one():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    other: Any = nn.Sequential(conv1d(8, 6), nn.ReLU(), conv1d(3, 8))
    for place in (0, 2):
        other[place].weight.data = linear.get_submodule(str(place)).get_parameter("weight").data.T.clone()
    inputs = torch.randn(5, 6)
    found = []
    for model in (linear, other):
        (unit,) = lessen.trace(model, inputs).units
        found.append(collect_inputs(model, [unit], (AngleEntropy,), [inputs], lambda m, x: m(x).sum())["0"][AngleEntropy])
    assert bool((found[0] > 0).all()) and torch.equal(*found)


def test_ukmp_says_which_units_have_no_entropy():
    net = nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 2))
    batch = (torch.randn(5, 4, 3), torch.tensor([0, 1, 1, 0, 1]))
    pruned = lessen.prune(net, batch[0], [batch], method=UKMP(), to="20%")
    assert "UKMP: no entropy of angles for 1 of 2 units, as no linear layer makes them: 0 and the like." in pruned.notes


def test_the_token_filter_keeps_what_is_uncertain_and_never_nothing():
    logits = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.9, 0.8], [0.0, 3.0, 0.0], [9.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 0, IGNORED])
    assert TokenFilter(0.4)(logits, labels).tolist() == [IGNORED, 1, IGNORED, IGNORED]
    assert TokenFilter(0.4, "label")(logits, labels).tolist() == [IGNORED, 1, 0, IGNORED]  # the third is surely wrong: p(label) is small
    assert TokenFilter(0.1)(logits, labels).tolist() == [IGNORED, 1, IGNORED, IGNORED]  # the least sure one stays
    assert TokenFilter(1.0)(logits, labels).tolist() == labels.tolist()
    loss = named(Predicted(logits.requires_grad_(), labels), TokenFilter(0.4))["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(logits[1:2], labels[1:2]))


def test_batches_speak_for_themselves_or_are_refused():
    model = decoder("llama", torch.float32)
    ids = tokens(2, 8)
    by_ids, by_dict = (named(default_objective(model, batch), None)["loss"] for batch in (ids, {"input_ids": ids}))
    torch.testing.assert_close(by_ids, by_dict)
    torch.testing.assert_close(by_ids, model(input_ids=ids, labels=ids).loss)
    padded = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(torch.arange(8) < 4, IGNORED)}
    torch.testing.assert_close(named(default_objective(model, padded), None)["loss"], model(**padded).loss)
    for batch, message in (("text", "type str"), ((ids, ids, ids), "type tuple")):
        with pytest.raises(LessenError, match=message):
            default_objective(model, batch)
    with pytest.raises(LessenError, match="a finite scalar"):
        named({"broken": torch.tensor(float("nan"))}, None)
    with pytest.raises(LessenError, match="got none"):
        collect(model, [], (WeightTaylor,), [])


MEMORY = """
import re, torch
from pathlib import Path
from torch import nn
from lessen.core.unit import Slice, Unit
from lessen.stats.gradients import Collecting, MaskFisher, WeightTaylor, collect

torch.set_num_threads(1)

class Deep(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        one = lambda: nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.blocks = nn.ModuleList([one() for _ in range(depth)])

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x

def highest(field="VmHWM"):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def collecting(width, depth, need, passes):
    model = Deep(width, depth)
    slices = lambda i: (Slice(f"blocks.{i}.0.weight", 0), Slice(f"blocks.{i}.2.weight", 1))
    units = [Unit(f"blocks.{i}", "channels", 4 * width, slices(i)) for i in range(depth)]
    batches = [(torch.randn(64, width), torch.randn(64, width)) for _ in range(2)]
    Path("/proc/self/clear_refs").write_text("5")
    before = highest("VmRSS")
    collect(model, units, (need,), batches, Collecting(passes=passes))
    return (highest() - before) / sum(p.nbytes for p in model.parameters())

collecting(64, 2, WeightTaylor, 1)  # whatever torch allocates once
for need, passes in ((WeightTaylor, 1), (WeightTaylor, 4), (MaskFisher, 1)):
    print(collecting(512, 10, need, passes))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_memory_beside_a_model_stays_under_half_of_it_or_under_its_size_where_gradients_are_summed():
    """In models of 84 MB: summed gradients are one by definition, a quarter in four passes; switches need no gradient to be kept.

    Without checkpointing and freeing, gradients, their products with the weights and the activations come to more than two.
    """
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # tensors go back to the system at once: what is measured is what is held
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=settings)
    summed, in_parts, switches = (float(line) for line in done.stdout.split())
    # On top of the sums: one gradient and its product on their way, and the activations of one block.
    assert summed < 1.3 and in_parts < 0.5 and switches < 0.35, done.stdout
