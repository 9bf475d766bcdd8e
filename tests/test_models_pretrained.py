"""Directories of any model of transformers: loaded as they were saved, run on an example that is made, looked at by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lessen
from lessen.errors import LessenError, UsageError
from lessen.models.inputs import example_inputs

pytest.importorskip("transformers")

from tests.directories import KINDS, tiny, written
from tests.test_cli_runs import call

EXPECTED = {
    "llama": {"input_ids"},
    "vit": {"pixel_values"},
    "t5": {"input_ids", "decoder_input_ids"},
    "bert": {"input_ids"},
    "clip": {"input_ids", "pixel_values", "attention_mask"},
    "detr": {"pixel_values"},
    "llava": {"input_ids", "pixel_values", "attention_mask"},
    "mixtral": {"input_ids"},
    "mamba": {"input_ids"},
    "wav2vec2": {"input_values"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_of_any_class_loads_as_it_was_saved_and_tells_what_it_reads(kind: str, tmp_path: Path, capsys: Any):
    original, loaded = tiny(kind), lessen.load(written(kind, tmp_path / "model"))
    capsys.readouterr()
    assert type(loaded) is type(original) and not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in original.state_dict().items())
    inputs = example_inputs(loaded)
    assert set(inputs) - {"use_cache", "return_dict"} == EXPECTED[kind]
    with torch.no_grad():
        assert loaded(**inputs)[0].shape[0] == 2


def test_loading_says_nothing_and_leaves_the_library_as_talkative_as_it_was(tmp_path: Path, capfd: Any):
    from transformers.utils import logging

    folder, before = written("vit", tmp_path / "model"), logging.get_verbosity()
    capfd.readouterr()
    lessen.load(folder)
    assert capfd.readouterr() == ("", "") and logging.get_verbosity() == before and logging.is_progress_bar_enabled()
    assert {p.dtype for p in lessen.load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("classifier.bias"), "no tensor classifier.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "a tensor it has no place for: extra"),
        (lambda tensors: tensors.update({"classifier.bias": torch.zeros(7)}), "a ViTForImageClassification that loads"),
    ],
)
def test_weights_that_are_not_those_of_the_class_are_refused(change: Any, message: str, tmp_path: Path):
    folder = written("vit", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LessenError, match=message) as caught:
        lessen.load(folder)
    assert "\n" not in str(caught.value)


def test_what_is_streamed_says_that_packed_experts_are_not(tmp_path: Path):
    with pytest.raises(LessenError, match=r"packs into one while it loads them .*; lessen\.load and lessen prune take it"):
        lessen.open_checkpoint(written("mixtral", tmp_path / "model"))


@pytest.mark.parametrize("kind", ["vit", "t5", "llava", "mixtral", "mamba"])
def test_inspect_shows_the_units_of_any_directory(kind: str, tmp_path: Path, capsys: Any):
    folder = written(kind, tmp_path / "model")
    code, out, _ = call(capsys, "inspect", str(folder), "--units")
    assert code == 0 and KINDS[kind][0] in out and "is tied to" in out and "held: " in out
    assert ("experts, 4 channels" in out) == (kind == "mixtral")
    code, out, _ = call(capsys, "inspect", str(folder), "--json")
    assert code == 0 and json.loads(out)["kinds"]


def test_a_factory_of_any_module_is_loaded():
    model = lessen.load("tests.test_models_pretrained:network")
    assert not model.training and example_inputs(model).shape == (1, 4)
    with pytest.raises(UsageError, match="no example to run it on, wanted an attribute example_inputs"):
        example_inputs(nn.Linear(2, 2))


def network() -> Any:
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.example_inputs = torch.zeros(1, 4)
    return model
