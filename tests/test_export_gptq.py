"""The GPTQ layout, taken apart word by word as its own tools do, and read by onnxruntime-genai's builder."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lessen.errors import LessenError
from lessen.export import export, gptq
from lessen.export.price import PRICES, Contents, Layout, Matrix
from lessen.formats.affine import Codes, Int, PerGroup, PerRow
from tests.export_fixture import EMBEDDING, Solved, four_bits, llama, probe

UP, HEAD = "model.layers.1.mlp.up_proj", "lm_head.weight"


def uniform(format: Int):
    return lambda name: None if name == EMBEDDING else format


def by_hand(tensors: dict[str, torch.Tensor], path: str, bits: int) -> torch.Tensor:
    """ "out in" from the bits themselves, one at a time: what the layout's description says, and nothing of the exporter's code."""
    words = tensors[f"{path}.qweight"].numpy().view("uint32")
    zeros = tensors[f"{path}.qzeros"].numpy().view("uint32")
    scales, groups = tensors[f"{path}.scales"].float(), tensors[f"{path}.g_idx"].tolist()

    def code(word, index: int) -> int:
        start = index * bits
        return sum((int(word[(start + b) // 32]) >> (start + b) % 32 & 1) << b for b in range(bits))

    weight = torch.empty(scales.shape[1], len(groups))
    for o in range(weight.shape[0]):
        for i, g in enumerate(groups):
            weight[o, i] = (code(words[:, o], i) - code(zeros[g], o) - 1) * scales[g, o]
    return weight


@pytest.mark.parametrize(
    "format",
    [
        Int(2, PerGroup(16)),
        Int(3, PerGroup(32)),
        Int(3, PerRow(), symmetric=False),
        Int(4, PerGroup(32)),
        Int(4, PerGroup(32), symmetric=False),
        Int(5, PerGroup(32)),
        Int(8, PerRow()),
    ],
    ids=lambda format: f"{format.bits} {format.granularity} {format.symmetric}",
)
def test_the_layout_holds_the_codes(tmp_path, format):
    solved = Solved(llama(), uniform(format))
    if not format.symmetric:  # a group whose zero is 0, which version 1 of the layout has no word for
        zero = solved.edits[f"{UP}.weight"].codes.zero
        assert zero is not None
        zero[3, 0] = 0
    result = export(solved, tmp_path / "out", "gptq", dense="float32")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert result["codes_equal"] and settings["bits"] in gptq.WIDTHS and settings["desc_act"] is False
    assert settings["group_size"] == (-1 if isinstance(format.granularity, PerRow) else format.granularity.size)
    assert torch.equal(by_hand(tensors, UP, settings["bits"]), solved.read(f"{UP}.weight"))
    assert ("groups with the zero point 0 reflected (exact)" in result["notes"]) is not format.symmetric


def test_mixed_layers_take_the_widest_code_and_the_finest_group(tmp_path):
    solved = Solved(llama(), lambda name: Int(3, PerRow()) if "mlp" in name else four_bits(name))
    result = export(solved, tmp_path / "out", "gptq")
    settings = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert result["codes_equal"] and (settings["bits"], settings["group_size"]) == (4, 32)
    assert any("3-bit codes in 4-bit" in note for note in result["notes"]) and any("float16" in note for note in result["notes"])


def test_a_head_that_would_widen_all_others_stays_dense_and_one_that_fits_is_packed(tmp_path):
    """The default gives a head 8 bits: over layers of 4 it would double the file."""
    sizes = {}
    for bits in (8, 4):
        solved = Solved(llama(tied=False), lambda name, bits=bits: Int(bits, PerGroup(32)) if name == HEAD else four_bits(name))
        result = export(solved, tmp_path / f"{bits}", "gptq")
        settings = json.loads((tmp_path / f"{bits}" / "config.json").read_text())["quantization_config"]
        assert result["codes_equal"] and settings["bits"] == 4
        assert settings["lm_head"] is (bits == 4) and "dynamic" not in settings
        tensors = load_file(tmp_path / f"{bits}" / "model.safetensors")
        assert (HEAD in tensors) is (bits == 8)
        assert tensors[f"{UP}.qweight"].numel() * 8 == math.prod(solved.shape(f"{UP}.weight"))
        shapes = {name: solved.shape(name) for name in solved.names}
        matrices = [Matrix((s[0], s[1]), n in (HEAD, EMBEDDING), n != EMBEDDING, 1) for n, s in shapes.items() if len(s) > 1]
        vectors = sum(s[0] for s in shapes.values() if len(s) == 1)
        sizes[bits] = sum(t.nbytes for t in tensors.values())
        priced = PRICES["gptq"](Contents(tuple((m, 1) for m in matrices), 0, vectors, 2, 0), Layout(4, 32, bits, 32))
        assert priced == pytest.approx(sizes[bits], rel=0.02)


def test_layers_without_codes_are_excepted_by_name(tmp_path):
    solved = Solved(llama(), lambda name: None if name.startswith(UP) else four_bits(name))
    export(solved, tmp_path / "out", "gptq")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["dynamic"] == {r"-:^model\.layers\.1\.mlp\.up_proj$": {}}


def test_changed_codes_are_noticed(tmp_path):
    solved = Solved(llama())
    export(solved, tmp_path / "out", "gptq")
    codes: Codes = solved.edits[f"{UP}.weight"].codes
    codes.values[5, 3] ^= 1
    assert not gptq.codes_equal(solved, tmp_path / "out")


def test_a_model_without_codes_is_refused(tmp_path):
    with pytest.raises(LessenError, match="no quantized linear layer, wanted codes for GPTQ; export to huggingface"):
        export(Solved(llama(), lambda name: None), tmp_path / "out", "gptq")


def test_the_proof_is_skipped_with_a_reason_where_gptqmodel_is_missing(tmp_path):
    result = export(Solved(llama()), tmp_path / "out", "gptq", probe=probe())
    assert result["runtime"] or "gptqmodel" in result["runtime_skipped"]


@pytest.mark.runtime
def test_the_builder_of_onnxruntime_genai_reads_it(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    ort = pytest.importorskip("onnxruntime")
    solved = Solved(llama(tied=False), four_bits)
    solved.edits.pop("lm_head.weight")
    export(solved, tmp_path / "out", "gptq", dense="float32")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", "out", "-o", "onnx", "-p", "int4", "-e", "cpu"]
    done = subprocess.run([*command, "-c", "cache"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1  # idle threads spin, which a busy machine pays for
    session = ort.InferenceSession(tmp_path / "onnx" / "model.onnx", settings, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": probe().numpy(), "attention_mask": torch.ones_like(probe()).numpy()}
    for port in session.get_inputs():
        if port.name.startswith("past"):
            feeds[port.name] = torch.zeros(2, 2, 0, 16).numpy()
    theirs = torch.from_numpy(session.run(["logits"], feeds)[0])
    from lessen.export.parity import compare, reference

    same = compare(reference(solved, probe()), theirs)
    assert same["kld_mean"] < 0.05 and same["top1"] > 0.8  # its products round activations to 8 bits, its head weights to 4
