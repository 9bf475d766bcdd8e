"""The engine: no block worse than RTN, resume to the same bits, refusals by name, passes that compose."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lessen.core.edit import Quantize, load_edits, same
from lessen.engine.plan import decide, journal_at
from lessen.engine.quantize import Text
from lessen.errors import LessenError, UsageError
from lessen.methods import AWQ, FLAP, GPTQ, RTN, BlockInfluence, Select, Wanda
from lessen.models import open_checkpoint
from lessen.models.edited import Edited
from lessen.models.stream import Stream
from tests.decoders import decoder

GRID: dict[str, Any] = {"bits": 3, "group": 16}


def checkpoint(family="llama", **config):
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}
    return open_checkpoint(decoder(family, torch.float32, **(sizes | config)))


def text(windows=12, length=24, seed=1):
    ids = torch.randint(3, 64, (windows, length), generator=torch.Generator().manual_seed(seed))
    return Text(ids[:-4], ids[-4:])


def planned(tmp_path, methods, source=None, on_event=None, given=None):
    source = source or checkpoint()
    given = given or text()
    return decide(source, methods, given, journal_at(tmp_path, source, methods, {"seed": 0}), on_event)


def test_no_block_is_worse_than_rtn(tmp_path):
    plan = planned(tmp_path, [Select((GPTQ(**GRID), AWQ(**GRID)))])
    rows = [record for record in plan.records if record.candidates]
    assert rows
    for record in rows:
        rtn = next(error for name, error in record.candidates.items() if name.startswith("RTN"))
        assert min(record.candidates.values()) <= rtn
        assert record.candidates[record.method] == min(record.candidates.values())


def test_what_a_block_adds_is_told_apart_from_what_it_inherits(tmp_path):
    methods = [Select((GPTQ(bits=2, group=16), RTN(bits=8, group=16)))]
    found = {record.block: record for record in planned(tmp_path, methods, checkpoint(num_hidden_layers=3)).records}
    assert found[0].own == pytest.approx(found[0].candidates, rel=1e-4)  # nothing inherited: the same distance in another order of sums
    wide = next(name for name in found[2].own if "bits=8" in name)
    assert found[2].own.keys() == found[2].candidates.keys()
    assert found[2].own[wide] < 0.5 * found[2].candidates[wide], "8 bits add almost nothing to the drift of two blocks"


def test_every_linear_of_every_block_is_quantized_once(tmp_path):
    source = checkpoint()
    plan = planned(tmp_path, [GPTQ(**GRID)], source)
    names = [edit.name for edit in plan.edits if isinstance(edit, Quantize)]
    linears = [n for n in source.names if n.endswith("_proj.weight")]
    assert sorted(names) == sorted(linears)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3"])
def test_other_families(tmp_path, family):
    source = open_checkpoint(decoder(family, torch.float32))
    plan = planned(tmp_path, [GPTQ(4, 8), RTN(8, 8, scale="mse", on="embeddings")], source)
    head = plan.result.read("lm_head.weight")
    assert head.shape == source.read("lm_head.weight").shape
    assert all(record.error is None or record.error < 0.2 for record in plan.records)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """SIGKILL wherever the run happens to be; the edits on disk at the end are those of an undisturbed run."""
    script = Path(__file__).parent / "engine_run.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}

    def run(work: Path, kill_after: int | None) -> None:
        process = subprocess.Popen([sys.executable, str(script), str(work)], env=environment)
        if kill_after is None:
            assert process.wait() == 0
            return
        marker = work / f"pass0-step{kill_after:04d}.json"
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()

    run(tmp_path / "whole", None)
    for step in (0, 1, 3):
        run(tmp_path / "killed", step)
    run(tmp_path / "killed", None)
    whole = sorted((tmp_path / "whole").glob("*.safetensors"))
    assert len(whole) == 7  # embeddings and six blocks
    for path in whole:
        pairs = zip(load_edits(path), load_edits(tmp_path / "killed" / path.name), strict=True)
        assert all(same(a, b) for a, b in pairs)


def test_a_finished_step_is_not_done_again(tmp_path):
    source = checkpoint()
    planned(tmp_path, [GPTQ(**GRID)], source)
    events = []
    planned(tmp_path, [GPTQ(**GRID)], source, events.append)
    assert events == []


def test_a_changed_option_is_refused_by_name(tmp_path):
    source = checkpoint()
    planned(tmp_path, [RTN(**GRID)], source)
    with pytest.raises(UsageError, match=r"RTN.bits: got 4, wanted \d+, as when this run began"):
        planned(tmp_path, [RTN(4, 16)], source)
    changed = checkpoint(seed=5)
    with pytest.raises(UsageError, match="model"):
        planned(tmp_path, [RTN(**GRID)], changed)


def test_other_methods_are_told_with_what_sets_them_apart(tmp_path):
    source, tables = checkpoint(), RTN(8, 16, on="embeddings")
    planned(tmp_path, [tables, Select((GPTQ(**GRID), RTN(**GRID)))], source)
    told = (
        r"methods: got RTN\(bits=3, group=16\), wanted Select\(candidates=\[GPTQ\(bits=3, group=16\), RTN\(bits=3, group=16\)\]\), "
        r"as when this run began; .*--fresh"
    )
    with pytest.raises(UsageError, match=told):
        planned(tmp_path, [tables, RTN(**GRID)], source)


def test_another_model_is_told_by_its_name(tmp_path):
    first, second = checkpoint(), checkpoint(seed=5)
    first.label, second.label = "models/first", "models/second"
    planned(tmp_path, [RTN(**GRID)], first)
    with pytest.raises(UsageError, match=r"model: got models/second, wanted models/first, as .*--fresh"):
        planned(tmp_path, [RTN(**GRID)], second)
    second.label = "models/first"
    with pytest.raises(UsageError, match="model: got models/first with other weights, wanted models/first as it was"):
        planned(tmp_path, [RTN(**GRID)], second)
    first.label = "elsewhere"  # moved, and the same model still
    assert planned(tmp_path, [RTN(**GRID)], first).records


def spoilt(block: int) -> Any:
    """A model with a weight that is no number in one block."""
    model = decoder("llama", torch.float32, hidden_size=48, intermediate_size=96, num_attention_heads=6, num_key_value_heads=2)
    model.get_submodule(f"model.layers.{block}.mlp.down_proj").weight.data[0, 0] = torch.nan  # pyright: ignore
    return open_checkpoint(model)


@pytest.mark.parametrize("block", [0, 1])
def test_a_model_that_can_never_be_finished_binds_nobody(tmp_path, block):
    methods = [RTN(8, 16, on="embeddings"), RTN(**GRID)]
    with pytest.raises(LessenError, match="wanted finite weights"):
        planned(tmp_path / "work", methods, spoilt(block))
    assert not (tmp_path / "work").exists()


def test_an_error_before_the_first_block_is_finished_binds_nobody(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise LessenError("block", got="a fault", wanted="none")

    with monkeypatch.context() as patch:
        patch.setattr("lessen.engine.quantize.collect", failing)
        with pytest.raises(LessenError, match="a fault"):
            planned(tmp_path / "work", [RTN(8, 16, on="embeddings"), RTN(**GRID)])
    assert not (tmp_path / "work").exists()


def test_a_recipe_that_is_refused_after_its_first_pass_binds_nobody(tmp_path):
    source = checkpoint()
    with pytest.raises(UsageError, match="input features in groups of 8"):
        planned(tmp_path, [Wanda(ratio=0.3), RTN(4, 8)], source)
    assert not list(tmp_path.glob("pass*"))
    assert planned(tmp_path, [Wanda(ratio=0.3, multiple=8), RTN(4, 8)], source).records


def test_a_group_that_does_not_divide_is_refused_before_any_work(tmp_path):
    with pytest.raises(UsageError, match=r"48 input features in groups of 32.*use .*16"):
        planned(tmp_path, [RTN(4, 32)])
    assert not list(tmp_path.glob("pass*"))


def test_a_tensor_is_quantized_once(tmp_path):
    with pytest.raises(UsageError, match="one method to a tensor"):
        planned(tmp_path, [RTN(**GRID), GPTQ(**GRID)])


def test_prune_then_quantize_is_a_longer_list(tmp_path):
    source = checkpoint(num_hidden_layers=4)
    plan = planned(tmp_path, [BlockInfluence(ratio=0.25), FLAP(ratio=0.5, unit="ffn"), GPTQ(4, 16)], source)
    result = plan.result
    assert result.config["num_hidden_layers"] == 3
    assert result.shape("model.layers.0.mlp.down_proj.weight") == (48, 48)
    assert result.quantized("model.layers.2.mlp.down_proj.weight") is not None
    assert result.read("model.layers.2.mlp.down_proj.bias").shape == (48,)


def test_a_plan_without_data_needs_no_text(tmp_path):
    source = checkpoint()
    plan = decide(source, [RTN(**GRID, scale="mse")], None, journal_at(tmp_path, source, [], {}))
    assert all(record.error is None for record in plan.records)
    assert len(plan.edits) == 7 * source.config["num_hidden_layers"]


def test_records_name_method_bits_and_seconds(tmp_path):
    plan = planned(tmp_path, [GPTQ(**GRID)])
    record = next(r for r in plan.records if r.unit.endswith("mlp.up_proj.weight"))
    assert record.method == "GPTQ(bits=3, group=16)"
    assert record.bits == 3 + 16 / 16
    assert record.seconds > 0
    assert record.error is not None and 0 < record.error < 0.5
    assert json.loads((tmp_path / "job.json").read_text())["seed"] == 0


def test_the_chosen_candidate_is_really_the_best_on_held_out_text(tmp_path):
    """The first block's error, computed again from nothing but the edits on disk."""
    source, given = checkpoint(), text()
    plan = planned(tmp_path, [Select((GPTQ(**GRID), AWQ(**GRID)))], source, given=given)
    stream = Stream(source)
    hidden = stream.embed(given.heldout)
    wanted = stream.forward(stream.block(0), 0, hidden)

    def error(edits):
        found = Stream(Edited(source, edits))
        have = found.forward(found.block(0), 0, hidden)
        return float(((have - wanted).square().sum(-1) / wanted.square().sum(-1)).mean())

    chosen = error([edit for edit in plan.edits if getattr(edit, "name", "").startswith("model.layers.0.")])
    stats = planned(tmp_path / "rtn", [RTN(**GRID)], source, given=given)
    rtn = error([edit for edit in stats.edits if getattr(edit, "name", "").startswith("model.layers.0.")])
    assert chosen <= rtn
    record = next(r for r in plan.records if r.block == 0)
    # float32 sums over another batch size
    assert record.candidates[record.method] == pytest.approx(chosen, rel=1e-4)


def test_a_job_that_failed_before_its_first_step_binds_nobody(tmp_path):
    source = checkpoint()
    journal_at(tmp_path / "work", source, [RTN(**GRID)], {"seed": 0})
    planned(tmp_path / "work", [RTN(4, 16)], source)


def test_a_full_disk_is_one_line_with_a_remedy(tmp_path, monkeypatch):
    import lessen.engine.journal as journal

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "save_edits", full)
    with pytest.raises(LessenError, match=r"No space left.*it resumes"):
        planned(tmp_path, [RTN(**GRID)])
    monkeypatch.undo()
    assert planned(tmp_path, [RTN(**GRID)]).edits
