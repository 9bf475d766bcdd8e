"""GGUF files: codes bit for bit through every block type, opened by llama.cpp with the logits of the model in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lessen.core.edit import Quantize
from lessen.errors import LessenError
from lessen.export import export, gguf_blocks
from lessen.export.gguf_metadata import pre_tokenizer, rope_divisors
from lessen.export.grid import grid_of
from lessen.formats.affine import Codes, Int, PerGroup, PerRow
from tests.export_fixture import EMBEDDING, Solved, byte_tokenizer, decoded, four_bits, llama, probe

gguf = pytest.importorskip("gguf")

WEIGHT = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
HOLDS = [
    (Int(2, PerGroup(32)), "Q4_0"),
    (Int(3, PerRow()), "Q4_0"),
    (Int(4, PerGroup(64)), "Q4_0"),
    (Int(3, PerGroup(32), symmetric=False), "Q4_0"),
    (Int(4, PerGroup(32), symmetric=False), "Q4_1"),
    (Int(5, PerGroup(32)), "Q5_0"),
    (Int(5, PerGroup(32), symmetric=False), "Q5_1"),
    (Int(6, PerGroup(32), symmetric=False), "Q8_0"),
    (Int(8, PerGroup(32)), "Q8_0"),
]


def solved_matrix(format: Int, weight: torch.Tensor = WEIGHT) -> Any:
    return grid_of(Quantize("w", format, format.encode(weight)))


@pytest.mark.parametrize(("format", "kind"), HOLDS, ids=lambda value: str(value)[:40])
def test_blocks_decode_in_the_gguf_package_to_the_weights_of_the_codes(format, kind):
    grid = solved_matrix(format)
    chosen = gguf_blocks.choose(grid)
    data, _ = gguf_blocks.pack(grid, kind)
    read = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]))
    assert chosen == kind and torch.equal(read, gguf_blocks.meaning(grid, kind))
    if kind not in gguf_blocks.WITH_MINIMUM:
        assert torch.equal(read, grid.dequantized())
    else:  # m = -d * zero rounded to float16: half an ulp, 2^-11 of the minimum, which is at most 31 steps
        step = grid.scale.float().abs().repeat_interleave(32, 1)
        assert ((read - grid.dequantized()).abs() <= 31 * 2**-11 * step + 1e-7).all()


def test_a_zero_point_costs_nothing_where_the_codes_happen_to_fit():
    codes = torch.randint(0, 16, (2, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    centred = Codes(codes, torch.ones(2, 1).half(), torch.full((2, 1), 8, dtype=torch.uint8))
    assert gguf_blocks.choose(grid_of(Quantize("w", Int(4, PerGroup(32), symmetric=False), centred))) == "Q4_0"


@pytest.mark.parametrize(
    ("format", "message"),
    [
        (Int(8, PerGroup(32), symmetric=False), "asymmetric 8-bit codes"),
        (Int(4, PerGroup(16)), "groups of 16, wanted a multiple of 32"),
        (Int(4, PerGroup(32), scale_dtype=torch.float32), "float32 scales"),
    ],
)
def test_what_blocks_cannot_hold_is_refused_with_the_remedy(format, message):
    with pytest.raises(LessenError, match=message) as raised:
        gguf_blocks.choose(solved_matrix(format, WEIGHT + 3))
    assert raised.value.remedy is not None


def mixed(name: str) -> Int | None:
    if "up_proj" in name:
        return Int(4, PerGroup(32), symmetric=False)
    if "down_proj" in name:
        return None
    return Int(3, PerRow()) if "q_proj" in name else four_bits(name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("choose", [four_bits, mixed], ids=["four_bits", "mixed"])
def test_files_hold_the_codes(tmp_path, tied, choose):
    solved = Solved(llama(tied), choose)
    result = export(solved, tmp_path / "model.gguf", "gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert result["codes_equal"] and result["runtime_skipped"] == "no probe tokens were given"
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0" and ("output.weight" in tensors) is not tied
    assert tensors["blk.1.attn_v.weight"].tensor_type.name == "Q4_0"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_lessen_reads_its_own_file_back(tmp_path, family):
    from lessen.models import open_checkpoint

    solved = Solved(llama(family=family))
    export(solved, tmp_path / "model.gguf", "gguf", plain="F32")
    again = open_checkpoint(tmp_path / "model.gguf")
    assert set(again.names) == set(solved.names)
    for name in solved.names:
        assert torch.equal(again.read(name), solved.read(name)), name


def test_changed_codes_are_noticed(tmp_path):
    from lessen.export import gguf as exporter

    solved = Solved(llama())
    export(solved, tmp_path / "model.gguf", "gguf")
    solved.edits["model.layers.1.self_attn.k_proj.weight"].codes.values[5, 3] ^= 1
    assert not exporter.codes_equal(solved, tmp_path / "model.gguf")


@pytest.mark.runtime
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_has_the_logits_of_the_model_in_memory(tmp_path, family):
    pytest.importorskip("xllamacpp")
    plain = Solved(llama(family=family), lambda name: None)
    result = export(plain, tmp_path / "f32.gguf", "gguf", plain="F32", probe=probe())
    assert result["top1"] == 1 and result["kld_mean"] < 1e-4  # keys and values in float16: 2^-11 of logits of size 10
    result = export(Solved(llama(family=family)), tmp_path / "q4.gguf", "gguf", probe=probe())
    assert result["kld_mean"] < 0.05  # llama.cpp rounds activations to 8 bits for each block of 32


@pytest.mark.runtime
def test_llama_cpp_opens_layers_of_different_widths(tmp_path):
    pytest.importorskip("xllamacpp")
    model = llama()
    layer: Any = model.model.layers[1]  # pyright: ignore
    for linear, rows in ((layer.mlp.gate_proj, 32), (layer.mlp.up_proj, 32), (layer.self_attn.q_proj, 32)):
        linear.weight = torch.nn.Parameter(linear.weight[:rows].detach().clone())
    for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
        linear.weight = torch.nn.Parameter(linear.weight[:16].detach().clone())
    for linear in (layer.mlp.down_proj, layer.self_attn.o_proj):
        linear.weight = torch.nn.Parameter(linear.weight[:, :32].detach().clone())
    result = export(Solved(model, lambda name: None), tmp_path / "pruned.gguf", "gguf", plain="F32", probe=probe())
    assert result["runtime"] and result["top1"] == 1 and result["kld_mean"] < 1e-4  # as above


@pytest.mark.runtime
def test_llama_cpp_tokenizes_as_the_tokenizer_does(tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp")
    solved = Solved(llama())
    export(solved, tmp_path / "model.gguf", "gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity = str(tmp_path / "model.gguf"), 64, False, -1
    params.cpuparams.n_threads = params.n_parallel = 1
    server = xllamacpp.Server(params)
    text = "the model's 14th weight, <|end|> has\nlearned  7"
    answer = server.handle_completions({"prompt": text, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == len(byte_tokenizer(384)(text)["input_ids"])


def test_unknown_pre_tokenizers_and_architectures_are_refused(tmp_path):
    described = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Metaspace"}, "normalizer": None}
    with pytest.raises(LessenError, match=r"pre-tokenizer Metaspace.*start from a GGUF file"):
        pre_tokenizer(described, "model")
    solved = Solved(llama())
    solved.config["model_type"] = "phi3"
    with pytest.raises(LessenError, match="model_type 'phi3', wanted one of llama"):
        export(solved, tmp_path / "model.gguf", "gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("outer", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False}, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}], "smollm"),
    ],
)
def test_known_pre_tokenizers_get_their_name(outer, name):
    outer = {"type": "Sequence", "pretokenizers": outer} if isinstance(outer, list) else outer
    assert pre_tokenizer({"model": {"type": "BPE"}, "pre_tokenizer": outer}, "model") == name


def test_llama3_rope_divisors_are_those_of_transformers():
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    solved = Solved(llama(rope_parameters=rope))
    divisors = rope_divisors(solved)
    assert divisors is not None
    wanted: Any = solved.model.model.rotary_emb.inv_freq  # pyright: ignore
    ours = 1 / (500000.0 ** (torch.arange(0, 16, 2) / 16)) / divisors
    torch.testing.assert_close(ours, wanted)  # the same formula in float32


def test_an_unquantized_model_is_written_in_float16_and_says_what_that_cost(tmp_path):
    result = export(Solved(llama(), lambda name: None), tmp_path / "model.gguf", "gguf")
    assert result["codes_equal"] and any("F16: largest relative error" in note for note in result["notes"])


def test_a_gguf_source_keeps_its_tokenizer_fields(tmp_path):
    solved = Solved(llama())
    export(solved, tmp_path / "first.gguf", "gguf")
    solved.label = str(tmp_path / "first.gguf")
    solved.tokenizer = lambda: pytest.fail("the fields are copied")
    export(solved, tmp_path / "second.gguf", "gguf")
    first, second = (gguf.GGUFReader(tmp_path / name).fields for name in ("first.gguf", "second.gguf"))
    keys = [key for key in first if key.startswith("tokenizer.")]
    assert len(keys) > 6 and all(first[key].contents() == second[key].contents() for key in keys)


def test_the_embedding_is_stored_once_when_tied(tmp_path):
    solved = Solved(llama())
    export(solved, Path(tmp_path / "model.gguf"), "gguf")
    names = [tensor.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors]
    assert names.count("token_embd.weight") == 1 and "output.weight" not in names and EMBEDDING in solved.names
    assert decoded(solved) is solved.model
