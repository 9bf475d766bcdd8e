"""The loop: it recovers, never returns worse than it got, repeats and resumes to the bit, and several processes see what one sees."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lessen.errors import LessenError, UsageError
from lessen.recover.loop import recover
from lessen.recover.losses import Logits, NextToken, Task
from lessen.recover.options import Options
from lessen.recover.order import collate, indices, pieces
from tests import recover_run
from tests.decoders import decoder, tokens

ROOT = Path(__file__).parents[1]


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


def perturbed(model: nn.Module, size: float = 0.05) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def test_a_perturbed_model_comes_back():
    teacher = decoder("llama", torch.float32)
    student = perturbed(decoder("llama", torch.float32))
    found = recover(student, teacher, tokens(64, 24, 5), tokens(8, 24, 6), steps=30, learning_rate=3e-3, precision="float32")
    assert found.before is not None
    assert found.best is not None
    assert found.best < 0.9 * found.before
    assert found.stopped == "steps"
    assert found.model is student


@pytest.mark.parametrize("batch", ["pairs", "dicts"])
def test_a_classifier_learns_from_pairs_and_from_dicts(batch: str):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(x))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator)
    labels = (x[:, :3]).argmax(1)
    data: list[Any] = [{"x": a, "labels": b} if batch == "dicts" else (a, b) for a, b in zip(x, labels, strict=True)]
    net = Net()
    found = recover(net, None, data[:64], data[64:], losses=(NextToken(),), steps=80, learning_rate=0.1, precision="float32", patience=None)
    assert found.best is not None
    assert found.before is not None
    assert found.best < 0.5 * found.before
    assert net.norm.num_batches_tracked is not None
    assert int(net.norm.num_batches_tracked) > 0
    assert net.training  # as it was given


def test_what_follows_a_step_brings_parameters_back():
    net = nn.Linear(4, 2)

    def within(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.clamp_(-0.125, 0.125)

    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    task = Task(lambda output, _: -output.square().mean())
    recover(net, None, data, losses=(task,), steps=5, learning_rate=0.1, precision="float32", after_step=within)
    assert float(net.weight.detach().abs().max()) == 0.125  # in float32 too
    with pytest.raises(UsageError, match="after_step"):
        recover(net, None, data, losses=(task,), steps=1, after_step=0.1)


def test_any_task_and_micro_batches_of_any_size_take_the_same_steps():
    curves = []
    for micro in (None, 3, 1):
        net = nn.Linear(4, 2)
        with torch.no_grad():
            net.weight.fill_(0.1)
            net.bias.zero_()
        x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)).double()
        task = Task(lambda output, batch: (output - batch[:, :2]).square().mean())
        found = recover(net.double(), None, x, losses=(task,), steps=10, batch=6, micro=micro, learning_rate=0.05, precision="float32")
        curves.append(losses(found.history))
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-9)  # float64, other orders of summation


def test_the_best_held_out_state_is_kept_and_the_given_one_counts():
    teacher = decoder("llama", torch.float32)
    student = perturbed(decoder("llama", torch.float32), 0.001)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    # Labels at random teach nothing that holds on the held-out text, and the step is far too large.
    found = recover(
        student, teacher, tokens(16, 12), tokens(8, 12, 6), steps=12, evaluate_every=2, patience=3, learning_rate=0.1, precision="float32"
    )
    assert found.best == found.before
    assert found.stopped == "patience"
    assert found.steps == 6
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())


def test_flags_and_modes_are_put_back():
    student, teacher = decoder("llama", torch.float32, seed=1), decoder("llama", torch.float32)
    student.requires_grad_(False)
    student.train()
    recover(student, teacher, tokens(8, 8), steps=1, train=("mlp",), precision="float32")
    assert student.training
    assert not any(p.requires_grad for p in student.parameters())
    assert all(p.grad is None for p in [*student.parameters(), *teacher.parameters()])


def test_only_what_is_named_is_trained():
    student, teacher = decoder("llama", torch.float32, seed=1), decoder("llama", torch.float32)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    recover(student, teacher, tokens(8, 8), steps=2, train=("layers.1.mlp",), precision="float32")
    changed = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "layers.1.mlp" in name}


@pytest.mark.parametrize("clock", ["wall", "processor"])
def test_a_time_limit_ends_it_and_the_learning_rate_follows_the_clock(clock: Any):
    found = recover(
        decoder("llama", torch.float32, seed=1), decoder("llama", torch.float32), tokens(16, 8), minutes=0.01, precision="float32"
    )
    rates = [entry["learning_rate"] for entry in found.history]
    assert found.stopped == "minutes"
    assert 0.6 <= found.seconds < 20  # at least the limit; a step on a busy machine may go over it
    assert rates[-1] < max(rates)


def test_losses_that_are_no_numbers_end_it_with_the_best_state():
    net = nn.Linear(2, 1)
    before = net.weight.detach().clone()
    task = Task(lambda output, batch: output.mean() * float("nan"))
    with pytest.raises(LessenError, match="step 1: got loss nan"):
        recover(net, None, torch.ones(4, 2), losses=(task,), steps=2, precision="float32")
    assert torch.equal(net.weight, before)


def test_requests_that_make_no_sense_are_refused():
    net = nn.Linear(2, 2)
    data = torch.ones(4, 2)
    with pytest.raises(UsageError, match="steps, epochs or minutes"):
        recover(net, net, data)
    with pytest.raises(UsageError, match="did you mean minutes"):
        recover(net, net, data, minute=10)
    with pytest.raises(UsageError, match="one of the two"):
        recover(net, net, data, options=Options(steps=1), steps=1)
    with pytest.raises(UsageError, match="batch=0"):
        recover(net, net, data, steps=1, batch=0)
    with pytest.raises(UsageError, match="such as weight"):
        recover(net, net, data, steps=1, train=("expert",))
    with pytest.raises(UsageError, match="no teacher"):
        recover(net, None, data, steps=1)
    with pytest.raises(UsageError, match="no samples"):
        recover(net, net, data[:0], steps=1)


def test_every_epoch_sees_every_sample_once_and_shares_do_not_overlap():
    seen = [i for step in range(6) for i in indices(step, 4, 12, seed=3)]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]
    chosen = indices(0, 8, 12, seed=3)
    assert [i for rank in (0, 1) for piece in pieces(chosen, rank, 2, 3) for i in piece] == chosen
    with pytest.raises(UsageError, match="different shapes"):
        collate([torch.ones(2), torch.ones(3)], [0, 1])


@pytest.fixture(scope="module")
def alone() -> Any:
    """An uninterrupted run in this process."""
    return recover_run.train()


def test_a_run_repeats_to_the_bit(alone: Any):
    again = recover_run.train()
    assert losses(again.history) == losses(alone.history)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), alone.model.parameters(), strict=True))


@pytest.mark.parametrize("step", [3, 9])
def test_killed_and_resumed_to_the_same_bits(tmp_path: Path, alone: Any, step: int):
    """SIGKILL in the first phase and in the second; the run that goes on ends as the one that was left alone."""
    command = [sys.executable, "-m", "tests.recover_run", str(tmp_path / "out"), str(tmp_path / "work"), str(step)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list((tmp_path / "work").glob("step-*"))) == 1
    found = recover_run.train(tmp_path / "work")
    assert losses(found.history) == losses(alone.history)
    assert found.best == alone.best
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), alone.model.parameters(), strict=True))


def test_a_work_directory_of_another_run_is_refused_by_the_name_of_the_option(tmp_path: Path):
    net, data = nn.Linear(2, 2), torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    recover(net, copy.deepcopy(net), data, steps=1, work=tmp_path / "work")
    with pytest.raises(UsageError, match=r"phase 0 learning_rate 0\.0001 there and 0\.1 here"):
        recover(net, copy.deepcopy(net), data, steps=1, learning_rate=0.1, work=tmp_path / "work")
    with pytest.raises(UsageError, match="data "):
        recover(net, copy.deepcopy(net), data[:5], steps=1, work=tmp_path / "work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="a directory of something else"):
        recover(net, copy.deepcopy(net), data, steps=1, work=tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").exists()


@pytest.mark.timeout(900)  # three interpreters that import torch, on a machine that may be busy
def test_two_processes_see_the_loss_curve_of_one(tmp_path: Path, alone: Any):
    """Copied (DDP) and sharded (FSDP2) over gloo, by torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "tests.recover_run", str(tmp_path), "none", "0", "--ranks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    want = dict(alone.model.state_dict())
    for kind in ("copied", "sharded"):
        found = json.loads((tmp_path / f"{kind}0.json").read_text())
        # Sums over two halves of a batch differ from the sum over the whole in the last bits of float32, and training carries that on.
        assert losses(found["history"]) == pytest.approx(losses(alone.history), rel=1e-4), kind
        assert found["best"] == pytest.approx(alone.best, rel=1e-4)
        both = [load_file(tmp_path / f"{kind}{rank}.safetensors") for rank in (0, 1)]
        for name, tensor in both[0].items():
            assert torch.equal(tensor, both[1][name]), (kind, name)
            torch.testing.assert_close(tensor, want[name], rtol=1e-3, atol=1e-4)


def test_bfloat16_products_recover_as_well_as_float32_ones():
    teacher = decoder("llama", torch.float32)
    best = []
    for precision in ("float32", "bfloat16"):
        student = perturbed(decoder("llama", torch.float32))
        found = recover(
            student, teacher, tokens(64, 24, 5), tokens(8, 24, 6), losses=(Logits(),), steps=20, learning_rate=3e-3, precision=precision
        )
        best.append(found.best)
    assert best[1] == pytest.approx(best[0], rel=0.05)  # three digits of bfloat16 in every product
