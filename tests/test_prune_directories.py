"""Directories of pruned models: a wrong factory is refused before anything is written, what is broken or missing is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lessen
from lessen.errors import LessenError, UsageError
from lessen.methods import Magnitude
from tests.test_prune_cli import network

MADE_BY = "tests.test_prune_cli:network"


def number() -> int:
    return 3


@pytest.fixture
def made() -> Any:
    return lessen.prune(network(), torch.zeros(1, 4), method=Magnitude(ratio=0.5), prove=False)


@pytest.mark.parametrize(
    ("made_by", "message"),
    [
        ("tests.test_prune_cli", r"got 'tests.test_prune_cli', wanted \"package.module:factory\""),
        ("nowhere:factory", "nowhere:factory, which does not make the model as it was before the cut: .*no module nowhere"),
        ("tests.test_prune_cli:netwrk", "no netwrk in tests.test_prune_cli"),
        ("tests.directories:tiny", "missing 1 required positional argument: 'kind'"),
        ("tests.test_prune_directories:number", "number returns a int, no torch.nn.Module"),
        ("tests.test_prune_replay:mlp", "missing 1 required positional argument"),
        ("tests.test_prune_reasons:mlp", r"0.weight: got shape \(8, 4\)"),
        ("tests.test_prune_reasons:encoder", "after the edits has 1.layers.* wanted no such tensor"),
        ("transformers:LlamaForCausalLM", "wanted what makes a Sequential"),
    ],
)
def test_what_does_not_make_the_model_is_refused_and_nothing_is_written(made: Any, made_by: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        lessen.save(made, tmp_path / "small", made_by=made_by)
    assert not list(tmp_path.iterdir())


def test_edits_that_are_not_all_are_refused(made: Any, tmp_path: Path):
    again = lessen.prune(made.model, torch.zeros(1, 4), method=Magnitude(ratio=0.5), prove=False)
    with pytest.raises(UsageError, match=r"0.weight: got shape \(16, 4\)"):
        lessen.save(again, tmp_path / "small", made_by=MADE_BY)
    with pytest.raises(UsageError, match=r"after the edits has .* give all edits that were made"):
        lessen.save(again.model, tmp_path / "small", edits=made.edits, made_by=MADE_BY)
    lessen.save(again.model, tmp_path / "small", edits=[*made.edits, *again.edits], made_by=MADE_BY)
    loaded = lessen.load(tmp_path / "small")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.model.parameters(), strict=True))


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAK: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "other": lambda path: path.write_text("{nonsense"),
    "halved": halved,
}


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("name", ["lessen.json", "edits.safetensors", "model.safetensors"])
def test_a_broken_file_is_named(made: Any, name: str, how: str, tmp_path: Path):
    lessen.save(made, tmp_path / "small", made_by=MADE_BY)
    BREAK[how](tmp_path / "small" / name)
    with pytest.raises(LessenError, match=f"{name}: got .*wanted what lessen.save wrote; copy the directory again"):
        lessen.load(tmp_path / "small")


@pytest.mark.parametrize(
    "told", [[], {}, {"pruned": 3}, {"pruned": {"made_by": "no colon"}}, {"pruned": {"made_by": MADE_BY, "dtype": "floot"}}]
)
def test_a_description_that_says_nothing_is_named(made: Any, told: Any, tmp_path: Path):
    lessen.save(made, tmp_path / "small", made_by=MADE_BY)
    (tmp_path / "small" / "lessen.json").write_text(json.dumps(told))
    with pytest.raises(LessenError, match=r"lessen.json: got .*wanted (what lessen.save wrote|how the model is made)"):
        lessen.load(tmp_path / "small")


def test_weights_of_another_directory_are_named(made: Any, tmp_path: Path):
    other = lessen.prune(network(), torch.zeros(1, 4), method=Magnitude(ratio=0.25), prove=False)
    lessen.save(made, tmp_path / "small", made_by=MADE_BY)
    lessen.save(other, tmp_path / "other", made_by=MADE_BY)
    shutil.copyfile(tmp_path / "other" / "model.safetensors", tmp_path / "small" / "model.safetensors")
    with pytest.raises(LessenError, match=r"tensor 0.(weight|bias) of shape \(12,.*wanted \(8,.*as tests.test_prune_cli:network makes it"):
        lessen.load(tmp_path / "small")
