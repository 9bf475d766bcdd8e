"""Modules in memory and factories are checkpoints like any other."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lessen.errors import LessenError, UsageError
from lessen.models import load, open_checkpoint
from lessen.models.stream import Stream

transformers = pytest.importorskip("transformers")

from tests.models_fixture import FAMILIES, logits, save, tiny, tokens  # noqa: E402

FACTORY = """
from tests.models_fixture import tiny
model = tiny()
number = 3
class inner:
    build = staticmethod(tiny)
def build(): return tiny("qwen2")
def broken(): raise ValueError("no weights here")
def wrong(): return {"a": 1}
def bare():
    from torch import nn
    return nn.Linear(2, 2)
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module `tinyfactory` in the current directory."""
    (tmp_path / "tinyfactory.py").write_text(FACTORY)
    (tmp_path / "needy.py").write_text("import no_such_dependency\n")
    (tmp_path / "failing.py").write_text("raise RuntimeError('no device')\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("tinyfactory", "needy", "failing"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_in_memory_equals_its_directory(family, tmp_path):
    model = tiny(family)
    ours, disk = open_checkpoint(model), open_checkpoint(save(model, tmp_path))
    assert (ours.names, ours.tied, ours.size_bytes) == (disk.names, disk.tied, disk.size_bytes)
    assert all(torch.equal(ours.read(name), disk.read(name)) for name in ours.names)
    assert ours.config["architectures"] == disk.config["architectures"] and ours.config["model_type"] == disk.config["model_type"]
    assert torch.equal(logits(load(model), tokens()), logits(model, tokens()))


def test_reading_and_loading_leave_the_module_alone():
    model = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    checkpoint = open_checkpoint(model)
    checkpoint.read("model.norm.weight").zero_()
    for parameter in load(model).parameters():
        parameter.data.zero_()
    Stream(checkpoint).block(0)
    assert all(torch.equal(before[name], p) and p.requires_grad for name, p in model.named_parameters())
    assert all(p.is_meta for p in checkpoint.skeleton().parameters())


def test_the_fingerprint_follows_the_weights():
    model = tiny()
    first = open_checkpoint(model).fingerprint()
    assert open_checkpoint(tiny()).fingerprint() == first
    model.get_parameter("model.norm.weight").data[3] += 1
    assert open_checkpoint(model).fingerprint() != first


def test_a_model_that_transformers_loaded_brings_its_tokenizer(tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(save(tiny(), tmp_path))
    checkpoint = open_checkpoint(model)
    assert checkpoint.tokenizer()("AB").input_ids == [33, 34]
    assert str(tmp_path) not in str(checkpoint.config)
    with pytest.raises(LessenError, match="no tokenizer files"):
        open_checkpoint(tiny()).tokenizer()


def test_modules_that_cannot_be_compressed_are_refused():
    with pytest.raises(UsageError, match="config of type NoneType"):
        open_checkpoint(nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"got a dict, wanted a torch.nn.Module"):
        open_checkpoint({"a": 1})  # pyright: ignore[reportArgumentType]
    with torch.device("meta"):
        hollow = tiny()
    with pytest.raises(UsageError, match="a tensor on the meta device"):
        open_checkpoint(hollow)


def test_weights_that_are_not_finite_are_named():
    model = tiny()
    model.get_parameter("model.norm.weight").data[0] = float("nan")
    with pytest.raises(LessenError, match=r"model\.norm\.weight: got 1 NaN or infinite value of 32"):
        load(model)


@pytest.mark.parametrize("ref", ["tinyfactory:build", "tinyfactory:model", "tinyfactory:inner.build"])
def test_factories_are_found_in_the_current_directory(factories, ref):
    path = list(sys.path)
    checkpoint = open_checkpoint(ref)
    assert checkpoint.label == ref and sys.path == path
    assert load(ref)(tokens()).logits.shape == (2, 12, 64)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("no_such_package:build", "got no module no_such_package"),
        ("tests.no_such_module:build", "got no module tests.no_such_module"),
        ("tinyfactory:biuld", "got no biuld in tinyfactory, wanted a factory; did you mean build"),
        ("tinyfactory:number", "got a int"),
        ("tinyfactory:wrong", "got a factory that returns dict"),
        ("tinyfactory:broken", "got ValueError: no weights here"),
        ("tinyfactory:bare", "config of type NoneType"),
        ("needy:build", "got an import of no_such_dependency that fails"),
        ("failing:build", "got RuntimeError: no device"),
    ],
)
def test_bad_factories_are_refused_in_one_line(factories, ref, message):
    with pytest.raises(LessenError) as caught:
        open_checkpoint(ref)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(Path.cwd()) not in sys.path
