"""ONNX folders: the same codes in one graph, the logits of the model in memory, and a generation loop with a growing cache."""

import json
from typing import Any

import pytest
import torch

from lessen.core.edit import Quantize
from lessen.errors import LessenError
from lessen.export import export, onnx_weights
from lessen.export.grid import grid_of
from lessen.export.parity import proof
from lessen.formats.affine import Int, PerGroup, PerRow
from tests.export_fixture import EMBEDDING, Solved, decoded, four_bits, llama, probe

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


def mixed(name: str) -> Int | None:
    formats = {
        "q_proj": Int(3, PerRow()),
        "v_proj": Int(8, PerGroup(16)),
        "o_proj": Int(2, PerGroup(32), symmetric=False),
        "gate_proj": Int(4, PerGroup(32), symmetric=False),
        "up_proj": Int(4, PerGroup(64), symmetric=False),
        "down_proj": None,
    }
    return next((format for key, format in formats.items() if key in name), four_bits(name))


@pytest.mark.runtime
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_has_the_logits_of_the_model_in_memory(tmp_path, family, tied):
    solved = Solved(llama(tied, family=family))
    exact = export(solved, tmp_path / "exact", "onnx", accuracy_level=1, probe=probe())
    assert exact["codes_equal"] and exact["logits_max_error"] < 1e-3  # float32 sums in another order; logits reach 40
    fast = export(solved, tmp_path / "fast", "onnx", probe=probe())
    assert fast["codes_equal"] and fast["kld_mean"] < 0.05  # activations rounded to 8 bits for each block of 32


@pytest.mark.runtime
@pytest.mark.parametrize("choose", [mixed, lambda name: None], ids=["mixed", "plain"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_layout_computes_what_the_codes_mean(tmp_path, choose, tied):
    result = export(Solved(llama(tied), choose), tmp_path / "out", "onnx", accuracy_level=1, probe=probe())
    assert result["codes_equal"] and result["logits_max_error"] < 1e-3  # as above


@pytest.mark.runtime
def test_layers_of_different_widths_run(tmp_path):
    model: Any = llama()
    layer = model.model.layers[1]
    attention = layer.self_attn
    keep = {layer.mlp.gate_proj: 32, layer.mlp.up_proj: 32, attention.q_proj: 32, attention.k_proj: 16, attention.v_proj: 16}
    for linear, rows in keep.items():
        linear.weight = torch.nn.Parameter(linear.weight[:rows].detach().clone())
    for linear in (layer.mlp.down_proj, attention.o_proj):
        linear.weight = torch.nn.Parameter(linear.weight[:, :32].detach().clone())
    result = export(Solved(model), tmp_path / "out", "onnx", accuracy_level=1, probe=probe())
    assert result["codes_equal"] and result["logits_max_error"] < 1e-3  # as above


def cached_logits(folder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits "seq vocab" of one sequence fed token by token through the cache."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1  # idle threads spin, which a busy machine pays for
    session = ort.InferenceSession(folder / "model.onnx", settings, providers=["CPUExecutionProvider"])
    ports = [port.name for port in session.get_inputs()][2:]
    cache = {port: torch.zeros(1, 2, 0, 16).numpy() for port in ports}
    rows = []
    for i, token in enumerate(tokens.tolist()):
        feeds = {"input_ids": torch.tensor([[token]]).numpy(), "attention_mask": torch.ones(1, i + 1).long().numpy(), **cache}
        logits, *present = session.run(None, feeds)
        cache = dict(zip(ports, present, strict=True))
        rows.append(torch.from_numpy(logits)[0, 0])
    return torch.stack(rows)


@pytest.mark.runtime
def test_token_by_token_equals_all_at_once(tmp_path):
    solved = Solved(llama())
    export(solved, tmp_path / "out", "onnx", accuracy_level=1)
    tokens = probe(batch=1)
    with torch.no_grad():
        wanted = decoded(solved)(tokens).logits[0]
    torch.testing.assert_close(cached_logits(tmp_path / "out", tokens[0]), wanted, atol=1e-3, rtol=0)  # as above


@pytest.mark.runtime
def test_a_tied_head_shares_the_bytes_of_the_embedding(tmp_path):
    export(Solved(llama()), tmp_path / "out", "onnx")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    where = {proto.name: {entry.key: entry.value for entry in proto.external_data} for proto in model.graph.initializer}
    assert where["head.codes"] == where[f"{EMBEDDING}.codes"]
    large = [p.name for p in model.graph.initializer if p.data_type == onnx.TensorProto.FLOAT and torch.tensor(p.dims).prod() > 64]
    assert large == []  # nothing but norm gains is float32


@pytest.mark.runtime
def test_logits_of_the_last_position_are_those_of_all(tmp_path):
    solved = Solved(llama())
    result = export(solved, tmp_path / "out", "onnx", logits="last", accuracy_level=1, probe=probe())
    assert result["positions"] == 12 and result["logits_max_error"] < 1e-3  # as above


@pytest.mark.runtime
@pytest.mark.parametrize(("family", "logits"), [*((family, "all") for family in FAMILIES), ("llama", "last")])
def test_onnxruntime_genai_generates_what_the_model_in_memory_does(tmp_path, family, logits):
    genai = pytest.importorskip("onnxruntime_genai")
    solved = Solved(llama(family=family))
    export(solved, tmp_path / "out", "onnx", accuracy_level=1, logits=logits)
    prompt = probe(batch=1)[0].tolist()
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = decoded(solved).generate(torch.tensor([prompt]), **options)[0].tolist()
    settings = genai.Config(str(tmp_path / "out"))
    settings.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}')
    model = genai.Model(settings)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + 8, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done() and len(generator.get_sequence(0)) < len(wanted):
        generator.generate_next_token()
    ours = list(generator.get_sequence(0))
    assert ours == wanted[: len(ours)] and (len(ours) == len(wanted) or ours[-1] == 0)


def test_a_runtime_that_fails_is_reported_in_one_line():
    def broken(_: torch.Tensor) -> Any:
        raise ValueError("kernel not found\nand more")

    with pytest.raises(LessenError, match=r"a file on which its runtime fails \(kernel not found\)"):
        proof(Solved(llama()), probe(), broken)


def test_changed_codes_are_noticed(tmp_path):
    from lessen.export import onnx as exporter

    solved = Solved(llama())
    export(solved, tmp_path / "out", "onnx")
    solved.edits["model.layers.1.self_attn.v_proj.weight"].codes.values[5, 3] ^= 1
    assert not exporter.codes_equal(solved, tmp_path / "out")


def test_what_the_runtime_has_no_kernel_for_is_refused(tmp_path):
    weight = torch.randn(4, 24)
    with pytest.raises(LessenError, match="groups of 24, wanted a multiple of 16"):
        onnx_weights.layout(grid_of(Quantize("w", Int(4, PerGroup(24)), Int(4, PerGroup(24)).encode(weight))))
    solved = Solved(llama())
    solved.config["model_type"] = "phi3"
    with pytest.raises(LessenError, match=r"model_type 'phi3', wanted one of llama, .*; the Hugging Face directory holds it"):
        export(solved, tmp_path / "out", "onnx")
    solved = Solved(llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}))
    with pytest.raises(LessenError, match="rope scaling 'dynamic'"):
        export(solved, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.runtime
def test_scaled_rotary_angles_are_those_of_the_architecture(tmp_path):
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    result = export(Solved(llama(rope_parameters=yarn)), tmp_path / "out", "onnx", accuracy_level=1, probe=probe(seq=40))
    assert result["logits_max_error"] < 1e-3  # as above


def test_the_folder_describes_itself_to_onnxruntime_genai(tmp_path):
    export(Solved(llama()), tmp_path / "out", "onnx")
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["decoder"]["num_key_value_heads"] == 2 and config["search"]["past_present_share_buffer"] is True
    assert (tmp_path / "out" / "tokenizer.json").exists() and (tmp_path / "out" / "config.json").exists()
