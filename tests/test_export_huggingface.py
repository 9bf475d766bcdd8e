"""The Hugging Face directory: stock transformers opens it, and its weights are bit for bit those of the codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lessen.core.edit import Quantize
from lessen.errors import LessenError, UsageError
from lessen.export import export
from lessen.export.grid import grid_of
from lessen.formats.affine import Int, PerGroup, PerRow, PerTensor
from tests.export_fixture import EMBEDDING, Solved, decoded, four_bits, llama, probe

pytest.importorskip("compressed_tensors")

MIXED = {
    "q_proj": Int(4, PerGroup(32), symmetric=False),
    "k_proj": Int(3, PerRow()),
    "v_proj": Int(5, PerGroup(16)),
    "o_proj": Int(2, PerGroup(16), symmetric=False),
    "gate_proj": Int(8, PerTensor()),
    "up_proj": Int(6, PerRow(), symmetric=False),
    "down_proj": Int(7, PerGroup(32), full_range=False),
}


def mixed(name: str) -> Int | None:
    return next((format for key, format in MIXED.items() if key in name), None)


def stock(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("choose", [four_bits, mixed, lambda name: None], ids=["four_bits", "mixed", "plain"])
def test_stock_transformers_has_the_weights_of_the_codes(tmp_path, tied, choose, capsys):
    solved = Solved(llama(tied), choose)
    result = export(solved, tmp_path / "out", "huggingface", probe=probe())
    assert result["codes_equal"] and result["runtime"].startswith("transformers")
    assert result["logits_max_error"] < 1e-4  # the same float32 weights; sums in another order
    model = stock(tmp_path / "out")
    with torch.no_grad():
        model(probe())  # compressed-tensors decompresses at the first forward
    for name in solved.names:
        assert torch.equal(model.get_parameter(name), solved.read(name)), name
    assert torch.equal(model.lm_head.weight, solved.read("lm_head.weight"))


def test_generation_from_the_directory_is_that_of_the_model_in_memory(tmp_path, capsys):
    solved = Solved(llama())
    export(solved, tmp_path / "out", "huggingface")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    prompt = probe(batch=1)
    assert torch.equal(stock(tmp_path / "out").generate(prompt, **options), decoded(solved).generate(prompt, **options))


def test_a_tied_table_costs_eight_bits_and_its_scales_twice(tmp_path):
    solved = Solved(llama())
    export(solved, tmp_path / "out", "huggingface")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    codes = tensors[EMBEDDING]
    assert codes.dtype == torch.int8 and codes.shape == (384, 64) and "lm_head.weight" not in tensors
    assert torch.equal(tensors["lm_head.weight_scale"], tensors["model.embed_tokens.weight_scale"])
    assert torch.equal(codes, solved.edits[EMBEDDING].codes.values)


def test_a_dense_table_and_one_scheme_also_open_dequantized(tmp_path, capsys):
    from transformers import CompressedTensorsConfig

    solved = Solved(llama())
    result = export(solved, tmp_path / "out", "huggingface", embedding="float16")
    assert result["codes_equal"] and any("rounded to float16" in note for note in result["notes"])
    with pytest.warns(UserWarning, match="quantization_config"):
        model = stock(tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True))
    name = "model.layers.0.mlp.up_proj.weight"
    # This mode multiplies in the scales' float16, so weights are rounded once: half an ulp is 2^-11.
    torch.testing.assert_close(model.get_parameter(name), solved.read(name), rtol=2**-11, atol=2**-25)


def test_config_names_each_format_once_and_ignores_what_is_plain(tmp_path):
    solved = Solved(llama(tied=False), lambda name: None if "lm_head" in name else mixed(name))
    export(solved, tmp_path / "out", "huggingface")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"] and len(config["config_groups"]) == len(MIXED)
    assert json.loads((tmp_path / "out" / "lessen.json").read_text())["formats"].keys() == solved.edits.keys()


@pytest.mark.parametrize("zero_points", ["folded", "packed"])
def test_lessen_reads_the_codes_back(tmp_path, zero_points):
    from lessen.models import open_checkpoint

    solved = Solved(llama(), lambda name: mixed(name) or four_bits(name))
    export(solved, tmp_path / "out", "huggingface", zero_points=zero_points)
    again = open_checkpoint(tmp_path / "out")
    for name in solved.names:
        assert torch.equal(again.read(name), solved.read(name)), name
        edit, read = solved.quantized(name), again.quantized(name)
        assert (edit is None) == (read is None)
        if edit is not None and read is not None and (edit.format.symmetric or zero_points == "packed"):
            assert torch.equal(read.codes.values, edit.codes.values)


def test_asymmetric_codes_that_cannot_be_folded_are_refused_with_the_remedy(tmp_path):
    solved = Solved(llama(), lambda name: Int(8, PerGroup(32), symmetric=False) if "up_proj" in name else None)
    with torch.no_grad():
        solved.edits["model.layers.0.mlp.up_proj.weight"].codes.zero.zero_()  # pyright: ignore
    with pytest.raises(LessenError, match=r"asymmetric 8-bit codes.*symmetric=true, or with 7 bits"):
        export(solved, tmp_path / "out", "huggingface")
    assert export(solved, tmp_path / "out", "huggingface", zero_points="packed")["codes_equal"]


def test_codes_that_are_no_integers_are_refused(tmp_path):
    from lessen.formats.floating import Float

    with pytest.raises(LessenError, match="wanted integer codes"):
        export(Solved(llama(), lambda name: Float("e4m3", PerRow()) if "up_proj" in name else None), tmp_path / "out", "huggingface")  # pyright: ignore


def test_shards_are_written_and_read(tmp_path, capsys):
    solved = Solved(llama())
    result = export(solved, tmp_path / "out", "huggingface", shard_bytes=8000, probe=probe())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert result["codes_equal"] and result["logits_max_error"] < 1e-4  # as above


def test_targets_are_not_overwritten_unasked_and_failures_leave_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("kept")
    with pytest.raises(UsageError, match="exists"):
        export(Solved(llama()), tmp_path / "out", "huggingface")
    broken = Solved(llama())
    del broken.edits["model.layers.1.mlp.up_proj.weight"].codes.__dict__["values"]
    with pytest.raises(AttributeError):
        export(broken, tmp_path / "out", "huggingface", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "old").read_text() == "kept"
    export(Solved(llama()), tmp_path / "out", "huggingface", overwrite=True)
    assert not (tmp_path / "out" / "old").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    solved = Solved(llama())
    monkeypatch.setattr(solved, "copy_tokenizer", full)
    with pytest.raises(LessenError, match="a full disk"):
        export(solved, tmp_path / "out", "huggingface")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": "float32"}, "wanted one of codes, float16; did you mean float16"),
        ({"shard_bytes": 0}, "wanted a whole number from 1"),
    ],
)
def test_values_that_an_option_does_not_take_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        export(Solved(llama()), tmp_path / "out", "huggingface", **options)


def test_misspelt_formats_and_options_name_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean huggingface"):
        export(Solved(llama()), tmp_path / "out", "hugingface")
    with pytest.raises(UsageError, match="did you mean embedding"):
        export(Solved(llama()), tmp_path / "out", "huggingface", embeding="float16")


def test_grids_that_fit_a_wider_or_finer_container_keep_their_weights():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(5))
    for format in (Int(3, PerGroup(64)), Int(3, PerRow(), symmetric=False), Int(2, PerTensor())):
        codes = format.encode(weight)
        fitted = grid_of(Quantize("w", format, codes)).widened(4).split(32)
        assert fitted.scale.shape == (8, 2) and torch.equal(fitted.dequantized(), format.decode(codes)) and len(fitted.notes) >= 2
    with pytest.raises(LessenError, match="groups of 64, wanted a multiple of 48"):
        grid_of(Quantize("w", Int(3, PerGroup(64)), Int(3, PerGroup(64)).encode(weight))).split(48)


def test_an_export_whose_codes_do_not_come_back_is_refused(tmp_path, monkeypatch):
    """One wrong code in the file: nothing is left behind."""
    from dataclasses import replace

    from lessen.export import EXPORTERS

    honest = EXPORTERS["huggingface"]
    monkeypatch.setitem(EXPORTERS, "huggingface", replace(honest, codes_equal=lambda *_, **__: False))
    with pytest.raises(LessenError, match="codes that differ"):
        export(Solved(llama()), tmp_path / "out", "huggingface")
    monkeypatch.setitem(EXPORTERS, "huggingface", replace(honest, logits=lambda c, p, probe, **_: (-honest.logits(c, p, probe)[0], "x")))
    with pytest.raises(LessenError, match="nats from the model's"):
        export(Solved(llama()), tmp_path / "out", "huggingface", probe=probe())
    assert not list(tmp_path.iterdir())
