"""What every method must satisfy, whatever it does: a new one joins by its line in METHODS."""

from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch

from lessen.core.apply import apply
from lessen.core.edit import load_edits, same, save_edits
from lessen.engine.describe import describe
from lessen.engine.plan import decide, journal_at
from lessen.engine.quantize import Text
from lessen.methods import GPTQ, METHODS
from lessen.models import open_checkpoint
from lessen.recipe import from_json, to_json
from tests.decoders import decoder

IDS = [method.__name__ for method in METHODS]
IN_MEMORY = ("channels", "experts", "vocab")
LANGUAGE = [method for method in METHODS if method().kind not in IN_MEMORY]
"""Those that a recipe for a language model may name; the others decide on units of `lessen.prune`."""
NAMES = [method.__name__ for method in LANGUAGE]


def instance(method: type[Any]) -> Any:
    """A small instance: groups that divide the tiny model, a ratio that removes something."""
    names = {field.name for field in fields(method)}
    small = {"group": 16, "ratio": 0.5, "candidates": (GPTQ(4, 16),)}
    return method(**{name: value for name, value in small.items() if name in names})


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return decoder("llama", dtype, num_hidden_layers=4, hidden_size=48, intermediate_size=96, num_attention_heads=6, num_key_value_heads=2)


def plan(method: Any, tmp_path: Any, source: torch.nn.Module, seed: int = 1) -> Any:
    ids = torch.randint(3, 64, (10, 24), generator=torch.Generator().manual_seed(seed))
    checkpoint = open_checkpoint(source)
    return decide(checkpoint, [method], Text(ids[:-2], ids[-2:]), journal_at(tmp_path, checkpoint, [method], {"seed": seed}))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_method_is_frozen_options_with_help(method: type[Any]):
    from lessen.core.options import options

    assert is_dataclass(method)
    made = instance(method)
    with pytest.raises(AttributeError):
        setattr(made, fields(method)[0].name, None)
    assert all(option.help for option in options(method))
    assert method.__doc__ and describe(made).startswith(method.__name__)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_method_survives_being_written_down(method: type[Any]):
    made = instance(method)
    assert list(from_json(to_json([made]))) == [made]


@pytest.mark.parametrize("method", LANGUAGE, ids=NAMES)
def test_decisions_repeat_to_the_bit_and_leave_the_model_alone(method: type[Any], tmp_path: Any):
    source = model()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    first, second = (plan(instance(method), tmp_path / name, source) for name in ("first", "second"))
    assert first.edits
    assert all(same(a, b) for a, b in zip(first.edits, second.edits, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("method", LANGUAGE, ids=NAMES)
def test_edits_come_back_from_disk_equal(method: type[Any], tmp_path: Any):
    edits = plan(instance(method), tmp_path / "work", model()).edits
    save_edits(tmp_path / "edits.safetensors", edits)
    assert all(same(a, b) for a, b in zip(edits, load_edits(tmp_path / "edits.safetensors"), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", LANGUAGE, ids=NAMES)
def test_the_applied_model_runs_and_stays_near(method: type[Any], dtype: torch.dtype, tmp_path: Any):
    source = model(dtype)
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        before = source(ids).logits.float()
        after = apply(model(dtype), plan(instance(method), tmp_path, source).edits)(ids).logits.float()
    assert bool(after.isfinite().all())
    # A random model forgives nothing: half of the channels gone still leaves some likeness, any wrong axis leaves none.
    assert float(torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)) > 0.3


@pytest.mark.parametrize("method", LANGUAGE, ids=NAMES)
def test_every_edit_has_its_record(method: type[Any], tmp_path: Any):
    result = plan(instance(method), tmp_path, model())
    assert len(result.records) == len(result.edits)
    assert all(record.method and record.shape_before for record in result.records)
