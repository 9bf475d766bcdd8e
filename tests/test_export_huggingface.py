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
from lessen.export.grid import grid_of, pack_words, unpack_words
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


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 96, 100])
def test_words_are_those_of_the_library(bits, columns):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 1 << bits, (3, columns), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    words = pack_words(codes, bits)
    assert torch.equal(words, pack_to_int32((codes.int() - (1 << bits - 1)).to(torch.int8), bits))
    assert torch.equal(unpack_words(words, bits, columns), codes)


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
