"""The whole job's promises about files: what is the user's is left alone, what failed leaves nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lessen
from lessen.errors import UsageError
from lessen.methods import GPTQ, RTN, Select
from tests.decoders import decoder


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
