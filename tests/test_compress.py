"""The whole job's promises about files: what is the user's is left alone, what failed leaves nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lessen
from lessen.errors import UsageError
from lessen.methods import GPTQ, RTN, Select
from tests.decoders import decoder
from tests.export_fixture import byte_tokenizer, llama


def model():
    return decoder("llama", torch.float32, hidden_size=48, intermediate_size=96, num_attention_heads=6, num_key_value_heads=2)


def compress(out: Path, **options):
    calibration = torch.randint(3, 64, (9, 24), generator=torch.Generator().manual_seed(1))
    request = {"recipe": [GPTQ(4, 16)], "calibration": calibration, "evaluate": False, "exports": (), "embeddings": False}
    return lessen.compress(model(), out, **(request | options))


@pytest.mark.filterwarnings("default")
def test_a_work_directory_of_the_users_keeps_what_is_in_it(tmp_path: Path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "precious").write_text("mine")
    try:
        compress(tmp_path / "out", work=work)
    except lessen.errors.LessenError as error:  # a model in memory has no tokenizer to write
        assert "tokenizer" in str(error)
    assert (work / "precious").read_text() == "mine"


def test_options_are_checked_before_any_work():
    wrongs: list[dict[str, Any]] = [{"shrinkage": 5}, {"damping": -3}, {"polish": -1}, {"bits": 9}, {"group": 0}]
    for wrong in wrongs:
        with pytest.raises(UsageError):
            GPTQ(**wrong)
    with pytest.raises(UsageError, match="at least one"):
        Select(())


def test_rtn_on_the_same_grid_joins_every_selection():
    assert RTN(3, 16) in Select((GPTQ(3, 16),)).candidates
    assert RTN(3, 16) in Select((GPTQ(3, 16), RTN(8, 16))).candidates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory of a model with rows of 64 and 128, and its tokenizer."""
    where = tmp_path_factory.mktemp("compress") / "model"
    llama(tied=True, intermediate_size=128).save_pretrained(where)  # pyright: ignore[reportCallIssue]
    byte_tokenizer(384).save_pretrained(where)
    return where


GRIDS = [
    RTN(4, 32, symmetric=False, scale="absmax"),
    GPTQ(4, 32, symmetric=False),
    RTN(3, 32, symmetric=False, scale="mse"),
    RTN(4, 32, full_range=False, scale="absmax"),
    RTN(4, None, scale="mse"),
    RTN(8, 64, scale="mse"),
]


@pytest.mark.parametrize("method", GRIDS, ids=repr)
def test_every_integer_grid_goes_through_the_whole_job(folder: Path, tmp_path: Path, method: Any):
    """The directory says of its tensors what it holds, folded zero points too; the other files hold the codes as they were decided."""
    tokens = torch.randint(0, 384, (8, 32), generator=torch.Generator().manual_seed(2))
    run = lessen.compress(folder, tmp_path / "out", recipe=[method], calibration=tokens, written=0, evaluate=False)
    plan = lessen.plan(folder, recipe=[method], calibration=tokens, written=0)
    read = lessen.open_checkpoint(tmp_path / "out")
    for name in plan.result.names:
        decided = plan.result.quantized(name)
        if decided is not None and "embed" not in name:
            torch.testing.assert_close(read.read(name), decided.format.decode(decided.codes).to(read.read(name).dtype), rtol=0, atol=0)
    decided = plan.result.quantized("model.layers.0.mlp.up_proj.weight")
    assert decided is not None
    shape = plan.result.shape("model.layers.0.mlp.up_proj.weight")
    assert run.sizes["after"]["linears_bpw"] == pytest.approx(decided.format.bits_per_weight(shape), rel=0.1)  # rows differ in length
    assert any("`lessen export` from this directory sees the folded codes" in note for note in run.notes) is not method.symmetric
    logits = lessen.load(tmp_path / "out")(tokens[:1]).logits
    assert logits.isfinite().all()
    assert all(row["codes_equal"] for row in run.exports)
    assert {row["format"] for row in run.exports} >= {"huggingface", "onnx"}
