"""When a written file counts as proved: how far its logits may lie, on which tokens, and why none are asked for."""

import json
from pathlib import Path

import pytest
import torch

import lessen
from lessen.errors import LessenError
from lessen.export import EXPORTERS, Exporter, export, parity
from lessen.methods import RTN
from tests.export_fixture import Solved, llama, probe
from tests.test_cli_runs import call


def weak() -> Solved:
    """A model that knows little: its logits are a hundredth of the fixture's."""
    model = llama(tied=False)
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(0.01)
    return Solved(model, lambda name: None)


@pytest.mark.parametrize("wrong", ["equal chances", "another model"])
def test_wrong_logits_of_a_model_that_knows_little_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str):
    solved = weak()
    true = parity.reference(solved, probe())
    answers = torch.zeros_like(true) if wrong == "equal chances" else true.roll(1, -1)
    figures = parity.compare(true, answers)
    assert figures["kld_mean"] < parity.FARTHEST  # a fixed bound lets it pass
    usual = EXPORTERS["huggingface"]
    lying = Exporter(usual.write, usual.codes_equal, lambda *_, **__: (answers, "a runtime"), usual.summary, usual.fits)
    monkeypatch.setitem(EXPORTERS, "huggingface", lying)
    with pytest.raises(LessenError, match="from equal chances"):
        export(solved, tmp_path / "out", "huggingface", probe=probe())
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("default")
def test_right_logits_of_a_model_that_knows_little_pass(tmp_path: Path):
    row = export(weak(), tmp_path / "out", "huggingface", probe=probe())
    assert row["runtime"] and 0 < row["kld_uniform"] < 1 and row["kld_mean"] <= parity.ROUNDING


def test_a_random_probe_stays_in_vocabulary_and_context_and_repeats():
    solved = Solved(llama())
    tokens = parity.random_probe(solved)
    assert tokens.shape == (1, 64) and int(tokens.min()) >= 0 and int(tokens.max()) < 384  # the fixture's context and vocabulary
    assert torch.equal(tokens, parity.random_probe(solved))


def test_weights_are_told_apart_from_the_files_around_them(tiny_model: Path, tmp_path: Path):
    """Tensors as the formats' own readers count them, without headers and tokenizer."""
    from gguf import GGUFReader
    from safetensors.torch import load_file

    out = tmp_path / "out"
    run = lessen.compress(tiny_model, out, recipe=[RTN(4, 32, scale="absmax")], evaluate=False, prove=False, exports=["gguf", "onnx"])
    found = {row["format"]: row["weights_bytes"] for row in run.exports}
    assert found["huggingface"] == sum(tensor.nbytes for tensor in load_file(out / "model.safetensors").values())
    tensors = sum(int(tensor.n_bytes) for tensor in GGUFReader(out / "gguf" / "model.gguf").tensors)
    assert 0 <= found["gguf"] - tensors < 64 * 32  # each tensor begins at a multiple of 32
    assert found["onnx"] == (out / "onnx" / "model.onnx.data").stat().st_size
    assert all(row["weights_bytes"] < row["size_bytes"] for row in run.exports)


@pytest.mark.filterwarnings("default")
def test_a_recipe_that_reads_no_data_is_proved_all_the_same(tiny_model: Path, tmp_path: Path):
    run = lessen.compress(tiny_model, tmp_path / "out", recipe=[RTN(4, 32, scale="absmax")], evaluate=False, exports=())
    assert run.calibration["source"].startswith("none")
    assert run.exports[0]["runtime"] and run.exports[0]["positions"] > 1
    assert not any("not opened" in note for note in run.notes)


def test_a_model_too_large_for_the_memory_is_not_tried_and_the_record_says_so(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "available_bytes", lambda: 1000)
    run = lessen.compress(tiny_model, tmp_path / "out", recipe=[RTN(4, 32)], evaluate=False, exports=())
    row = json.loads((tmp_path / "out" / "lessen.json").read_text())["exports"][0]
    assert row["codes_equal"] and row["runtime"] is None and "more than 50% of the 1e-06 GB available" in row["runtime_skipped"]
    assert [note for note in run.notes if row["runtime_skipped"] in note]


def test_half_of_the_available_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch):
    solved = Solved(llama())
    whole = 4 * sum(solved.model.get_parameter(name).numel() for name in solved.names)
    for free, fits in ((2 * whole, True), (2 * whole - 2, False), (None, True)):
        monkeypatch.setattr(parity, "available_bytes", lambda free=free: free)
        assert (parity.too_large(solved) is None) == fits


def test_no_prove_opens_no_runtime(tiny_model, tmp_path, capsys, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a runtime was opened")

    monkeypatch.setattr(parity, "reference", opened)
    tokens = ["compress", tiny_model, "--no-eval", "--no-prove", "--export", "none", "--method", "RTN", "--out", tmp_path / "a"]
    code, out, err = call(capsys, *tokens, "--json", "--quiet")
    assert code == 0, err
    row = json.loads(out)["run"]["exports"][0]
    assert (row["codes_equal"], row["runtime"], row["runtime_skipped"]) == (True, None, "not asked for")
    code, out, err = call(capsys, "export", tmp_path / "a", "--format", "gptq", "--out", tmp_path / "b", "--no-prove", "--json", "--quiet")
    assert code == 0 and json.loads(out)["runtime_skipped"] == "not asked for", err


def test_bits_per_weight_divide_by_the_parameters_of_the_original(tiny_model: Path, tmp_path: Path):
    from lessen.methods import FLAP

    run = lessen.compress(tiny_model, tmp_path / "out", recipe=[FLAP(0.3)], tokens=256, evaluate=False, prove=False, exports=())
    before, after = run.sizes["before"], run.sizes["after"]
    assert after["parameters"] < before["parameters"]
    assert after["bpw"] == pytest.approx(8 * after["size_bytes"] / before["parameters"], rel=1e-6)
