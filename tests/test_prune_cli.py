"""`lessen prune` and `lessen.save`: any model from a directory or a factory into a directory that opens again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lessen
from lessen.errors import UsageError
from lessen.methods import BlockInfluence, Magnitude
from lessen.models.inputs import example_inputs

pytest.importorskip("transformers")

from tests.directories import KINDS, tiny, written
from tests.models_fixture import save as with_tokenizer
from tests.test_cli_runs import call


def network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    model.example_inputs = torch.zeros(1, 4)
    return model


def data() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 4, generator=random), torch.randint(0, 2, (8,), generator=random)) for _ in range(3)]


@pytest.mark.parametrize("kind", ["vit", "t5", "llava", "mixtral", "llama"])
def test_any_directory_is_pruned_into_one_that_opens(kind: str, tmp_path: Path, capsys: Any):
    folder, out = str(written(kind, tmp_path / "model")), tmp_path / "small"
    freeze = ["--freeze", "*.0.mlp*"] if kind == "vit" else []
    code, text, err = call(capsys, "prune", folder, "--method", "magnitude", "--ratio", "0.25", *freeze, "--out", str(out))
    assert code == 0 and "channels removed" in text and str(out) in text, err
    assert (".0.mlp" in text) == (kind not in ("vit", "t5"))
    whole, small = lessen.load(folder), lessen.load(out)
    assert sum(p.numel() for p in small.parameters()) < 0.99 * sum(p.numel() for p in whole.parameters())
    with torch.no_grad():
        assert torch.isfinite(small(**example_inputs(small))[0]).all()
    told = json.loads((out / "lessen.json").read_text())
    assert told["pruning"]["records"] and folder not in (out / "config.json").read_text()


def test_without_a_place_to_write_it_tells_what_would_go(tmp_path: Path, capsys: Any):
    folder = str(written("vit", tmp_path / "model"))
    code, text, _ = call(capsys, "prune", folder, "--to", "20%")
    assert code == 0 and "nothing was written" in text and "- Magnitude decided" in text
    assert "vit.layers.0.mlp" in text and "parameters" in text
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_one_object_for_programs_and_data_of_ones_own(tmp_path: Path, capsys: Any):
    here = "tests.test_prune_cli"
    options = ["--batches", f"{here}:data", "--method", "Taylor", "--to", "50%", "--out", str(tmp_path / "small"), "--json"]
    code, text, _ = call(capsys, "prune", f"{here}:network", *options)
    told = json.loads(text)
    assert code == 0 and told["method"].startswith("Taylor(") and told["after"]["parameters"] < told["before"]["parameters"]
    small: Any = lessen.load(tmp_path / "small")
    assert small[0].out_features == told["records"][0]["shape_after"][0]


def test_text_is_data_for_a_model_that_writes(tmp_path: Path, capsys: Any):
    from tests.models_fixture import tiny as decoder

    folder = str(with_tokenizer(decoder(), tmp_path / "model"))
    options = ["--calibration", "builtin", "--method", "Wanda", "--ratio", "0.25", "--out", str(tmp_path / "small")]
    code, _, err = call(capsys, "prune", folder, *options)
    assert code == 0, err
    assert (tmp_path / "small" / "tokenizer.json").is_file()
    opened = lessen.open_checkpoint(tmp_path / "small")
    assert opened.tokenizer()("AB").input_ids == [33, 34] and opened.shape("model.layers.0.mlp.up_proj.weight") == (36, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "Magnitud"], "did you mean Magnitude?"),
        (["--kinds", "hads"], "did you mean heads?"),
        (["--freeze", "vit.layer"], "did you mean vit.layers"),
        (["--to", "20%", "--ratio", "0.1"], "--to as well"),
        (["--calibration", "builtin"], "wanted a model that writes text"),
        (["--batches", "nowhere"], "wanted package.module:name"),
        (["--batches", "tests.test_prune_cli:dato"], "no dato in tests.test_prune_cli"),
        (["--out", "."], "something that exists"),
        (["--to", "99%"], "after removing all that may go"),
    ],
)
def test_slips_end_with_two_and_one_line(options: list[str], message: str, tmp_path: Path, capsys: Any):
    folder = str(written("vit", tmp_path / "model"))
    capsys.readouterr()
    code, _, err = call(capsys, "prune", folder, *options, "--quiet")
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mamba", "wav2vec2")])
def test_saved_models_open_with_the_same_answers(kind: str, tmp_path: Path):
    model = tiny(kind)
    example = example_inputs(model)
    made = lessen.prune(model, example, method=Magnitude(across="model"), to="15%", prove=False)
    lessen.save(made, tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(lessen.load(tmp_path / "small")(**example)[0], made.model(**example)[0])
    with pytest.raises(UsageError, match="a directory that exists"):
        lessen.save(made, tmp_path / "small")


def test_a_model_trained_since_and_a_plain_module_are_saved(tmp_path: Path):
    model = network()
    made = lessen.prune(model, model.example_inputs, method=Magnitude(ratio=0.5))
    with torch.no_grad():
        made.model.get_parameter("0.weight").add_(1)
    with pytest.raises(UsageError, match=r'which is no class of transformers, wanted how to make it; made_by="package.module:factory"'):
        lessen.save(made, tmp_path / "small")
    lessen.save(made, tmp_path / "small", made_by="tests.test_prune_cli:network")
    lessen.save(made.model, tmp_path / "again", edits=made.edits, made_by="tests.test_prune_cli:network")
    for name in ("small", "again"):
        loaded = lessen.load(tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), made.model.parameters(), strict=True))


def test_dropped_layers_and_then_other_widths_are_saved(tmp_path: Path):
    model = tiny("llama")
    example = example_inputs(model)
    short = lessen.prune(model, example, [example], method=BlockInfluence(ratio=0.5))
    lessen.save(short, tmp_path / "short")
    narrow = lessen.prune(short.model, example, method=Magnitude(ratio=0.25), freeze=["*.self_attn"])
    lessen.save(narrow.model, tmp_path / "narrow", edits=[*short.edits, *narrow.edits])
    for made, name in ((short, "short"), (narrow, "narrow")):
        with torch.no_grad():
            assert torch.equal(lessen.load(tmp_path / name)(**example).logits, made.model(**example).logits)


@pytest.mark.parametrize("kind", ["llama", "t5", "vit"])
def test_uniform_widths_open_with_the_stock_loader(kind: str, tmp_path: Path):
    import transformers

    model = tiny(kind)
    example = example_inputs(model)
    made = lessen.prune(model, example, method=Magnitude(ratio=0.25), kinds=["ffn"], uniform=True)
    lessen.save(made, tmp_path / "small")
    stock = getattr(transformers, KINDS[kind][0]).from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
    with torch.no_grad():
        # The stock class may choose another kernel for attention, which sums in another order: rounding of float32.
        torch.testing.assert_close(stock(**example)[0], made.model(**example)[0], rtol=1e-4, atol=1e-5)


def test_a_pruned_directory_is_pruned_again(tmp_path: Path, capsys: Any):
    folder = str(written("t5", tmp_path / "model"))
    for source, out in ((folder, "small"), (str(tmp_path / "small"), "smaller")):
        code, _, err = call(capsys, "prune", source, "--to", "15%", "--kinds", "head_dim", "--kinds", "ffn", "--out", str(tmp_path / out))
        assert code == 0, err
    sizes = [sum(p.numel() for p in lessen.load(tmp_path / name).parameters()) for name in ("model", "small", "smaller")]
    assert sizes[0] > sizes[1] > sizes[2]


def test_several_kinds_and_names_go_into_one_option_with_commas(tmp_path: Path, capsys: Any):
    folder = str(written("vit", tmp_path / "model"))
    told = []
    for options in (["--kinds", "heads, head_dim", "--freeze", "vit.layers.0,*.mlp"], ["--kinds", "heads", "--kinds", "head_dim"]):
        code, text, err = call(capsys, "prune", folder, "--ratio", "0.25", *options, "--json")
        assert code == 0, err
        told.append({record["unit"] for record in json.loads(text)["records"]})
    assert told[0] == {"vit.layers.1.attention.heads", "vit.layers.1.attention.head_dim"} and told[0] < told[1] and len(told[1]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratio", "20%"], "--ratio: got '20%', wanted a number; write 0.2"),
        (["--kinds", "heads,hads"], "kinds: got 'hads'"),
        (["--freeze", "*"], "everything that it could prune is frozen by freeze=['*']"),
        (["--method", "Taylor"], "batches: got none, wanted one at least: the method looks at data; give batches= (--batches"),
        (["--method", "BlockInfluence", "--to", "20%"], "wanted its ratio: it drops whole layers"),
    ],
)
def test_a_request_that_makes_no_sense_ends_with_two(options: list[str], message: str, tmp_path: Path, capsys: Any):
    folder = str(written("vit", tmp_path / "model"))
    capsys.readouterr()
    code, _, err = call(capsys, "prune", folder, *options, "--quiet")
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
