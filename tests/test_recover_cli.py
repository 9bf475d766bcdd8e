"""`lessen recover` and what stands behind it: a pruned model on disk becomes a better one of the same shapes."""

import copy
import json
from pathlib import Path

import pytest
import torch

import lessen
from lessen.cli.main import run
from lessen.errors import UsageError
from lessen.export import export
from lessen.models import open_checkpoint
from lessen.models.edited import Edited
from lessen.recover.adapters import Adapters
from lessen.recover.options import Options
from lessen.restore import Restoration, restore
from lessen.structure.decoder import units
from tests.decoders import some_keeps


@pytest.fixture(scope="module")
def pruned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without a third of its channels and a group of heads in one of its layers."""
    source = open_checkpoint(tiny_model)
    keeps = [keep for keep in some_keeps(units(source), uniform=True) if keep.unit.kind == "ffn"]
    folder = tmp_path_factory.mktemp("pruned") / "pruned"
    export(Edited(source, keeps), folder, "huggingface")
    return folder


def test_the_command_trains_and_writes_a_model_that_opens(pruned: Path, tiny_model: Path, tiny_texts, tmp_path: Path, capsys):
    out = tmp_path / "recovered"
    words = ["recover", str(pruned), "--teacher", str(tiny_model), "--out", str(out), "--steps", "6", "--learning-rate", "3e-3"]
    code = run([*words, "--calibration", str(tiny_texts[0]), "--tokens", "2048", "--written", "0", "--quiet", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["heldout"]["loss"] < answer["heldout"]["loss_before"]
    record = json.loads((out / "lessen.json").read_text())
    assert record["sizes"]["before"]["parameters"] == record["sizes"]["after"]["parameters"]
    before, after = lessen.load(pruned), lessen.load(out)
    assert {n: p.shape for n, p in before.named_parameters()} == {n: p.shape for n, p in after.named_parameters()}
    assert not torch.equal(
        before.get_parameter("model.layers.0.mlp.up_proj.weight"), after.get_parameter("model.layers.0.mlp.up_proj.weight")
    )


def test_adapters_recall_what_was_pruned_and_leave_no_trace(tiny_model: Path, tiny_texts, tmp_path: Path):
    source = open_checkpoint(tiny_model)
    keeps = [keep for keep in some_keeps(units(source), uniform=True) if keep.unit.kind == "ffn"]
    student = lessen.apply(copy.deepcopy(lessen.load(tiny_model)), keeps)
    wanted = Restoration(Options(steps=12, learning_rate=2e-3, evaluate_every=3), Adapters(rank=4), tiny_texts[0], 2048, 0.0)
    made = restore(student, tiny_model, tmp_path / "out", wanted, edits=keeps)
    assert made.quality["held-out"]["loss"] < made.quality["held-out"]["loss_before"]
    names = {name for name, _ in lessen.load(tmp_path / "out").named_parameters()}
    assert not any("parametrizations" in name for name in names)


def test_refusals(pruned: Path, tiny_model: Path, tmp_path: Path, capsys):
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="something that exists"):
        restore(pruned, tiny_model, tmp_path / "there")
    assert run(["recover", str(pruned), "--teacher", str(tiny_model), "--out", str(tmp_path / "x"), "--steps", "0"]) == 2
    assert "steps=0" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
