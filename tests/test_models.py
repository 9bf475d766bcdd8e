"""Hugging Face directories: every tensor as stock transformers reads it, and bad ones refused in one line."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lessen.errors import LessenError, UsageError
from lessen.models import load, open_checkpoint
from lessen.models.checkpoint import stamps
from lessen.models.tensors import TensorFiles

transformers = pytest.importorskip("transformers")

from tests.models_fixture import FAMILIES, logits, save, tiny, tokens  # noqa: E402


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(tiny(), tmp_path / "model")


def refused(ref: object) -> str:
    """The message with which a reference is refused, which must be one line."""
    with pytest.raises(LessenError) as caught:
        load(ref)  # pyright: ignore[reportArgumentType]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_change_between_the_samples_of_a_fingerprint_shows_in_the_stamps(folder):
    path = folder / "model.safetensors"
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(1 << 16, 8)}))
    before = TensorFiles([path])
    entry = before["lm_head.weight"]
    with path.open("r+b") as file:
        file.seek(entry.start + 6000)  # the first sample ends after 4096 bytes
        file.write(b"otherwise")
    os.utime(path, ns=(1, 1))  # a clock may be too coarse to tell two writes apart
    after = TensorFiles([path])
    assert after.digest() == before.digest()
    assert stamps(after) == {path.name: [path.stat().st_size, 1]}  # pyright: ignore[reportArgumentType]


def rewrite(folder: Path, change) -> None:
    """Load all tensors, change the dict, save them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_the_one_that_transformers_reads(family, tmp_path):
    model = tiny(family)
    checkpoint = open_checkpoint(save(model, tmp_path))
    assert checkpoint.names == [name for name, _ in model.named_parameters()]
    everything = dict(model.named_parameters(remove_duplicate=False))
    for name in [*checkpoint.names, *checkpoint.tied]:
        assert torch.equal(checkpoint.read(name), everything[name]) and checkpoint.shape(name) == tuple(everything[name].shape)
        assert checkpoint.quantized(name) is None
    assert checkpoint.config == json.loads((tmp_path / "config.json").read_text())
    assert checkpoint.size_bytes == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_real_buffers_and_no_weights(family, tmp_path):
    model = tiny(family)
    before = torch.random.get_rng_state()
    skeleton = open_checkpoint(save(model, tmp_path)).skeleton()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.is_meta and not p.requires_grad for p in skeleton.parameters()) and not skeleton.training
    assert [n for n, _ in skeleton.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, buffer in model.named_buffers():
        assert torch.equal(skeleton.get_buffer(name), buffer)


def test_shards_are_read_as_one(folder, tmp_path):
    sharded = save(load(folder), tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = open_checkpoint(folder), open_checkpoint(sharded)
    assert one.names == many.names
    assert all(torch.equal(one.read(name), many.read(name)) for name in one.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_of_the_file_is_kept(dtype, tmp_path):
    folder = save(tiny().to(dtype), tmp_path)
    assert {open_checkpoint(folder).read(name).dtype for name in open_checkpoint(folder).names} == {dtype}
    assert {p.dtype for p in load(folder).parameters()} == {dtype}
    assert {p.dtype for p in load(folder, torch.float32).parameters()} == {torch.float32}


def test_a_loaded_model_is_the_stock_one(folder):
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = load(folder)
    assert type(model) is type(stock) and not model.training
    assert torch.equal(logits(model, tokens()), logits(stock, tokens()))
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


def test_tying_follows_the_files(tmp_path):
    tied = save(tiny(), tmp_path / "tied")
    assert open_checkpoint(tied).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert open_checkpoint(tied).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    different = open_checkpoint(tied)
    assert different.tied == {} and different.config["tie_word_embeddings"] is False
    assert not torch.equal(different.read("lm_head.weight"), different.read("model.embed_tokens.weight"))
    rewrite(tied, lambda t: t.pop("model.embed_tokens.weight"))
    assert open_checkpoint(tied).tied == {"model.embed_tokens.weight": "lm_head.weight"}
    untied = save(tiny(tie_word_embeddings=False), tmp_path / "untied")
    assert open_checkpoint(untied).tied == {}
    rewrite(untied, lambda t: t.pop("lm_head.weight"))
    assert "set tie_word_embeddings to true" in refused(untied)


def test_files_of_a_bare_base_model_are_understood(tmp_path):
    model = tiny("gpt2")
    folder = save(model, tmp_path)
    rewrite(folder, lambda t: [t.update({name.removeprefix("transformer."): t.pop(name)}) for name in list(t)])
    assert torch.equal(logits(load(folder), tokens()), logits(model, tokens()))


def test_constant_tables_of_old_files_are_passed_over_and_nothing_else(tmp_path):
    model = tiny("gpt2")
    folder = save(model, tmp_path)
    rewrite(folder, lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(1), "transformer.h.0.attn.masked_bias": torch.ones(1)}))
    assert torch.equal(logits(load(folder), tokens()), logits(model, tokens()))
    rewrite(folder, lambda t: t.update({"transformer.h.0.d_attention.bias": torch.ones(1)}))
    assert "1 tensors it has no place for (transformer.h.0.d_attention.bias)" in refused(folder)


def test_the_fingerprint_follows_weights_and_configuration(folder, tmp_path):
    first = open_checkpoint(folder).fingerprint()
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert open_checkpoint(copied).fingerprint() == first
    rewrite(copied, lambda t: t["model.norm.weight"].mul_(2))
    second = open_checkpoint(copied).fingerprint()
    configure(folder, rms_norm_eps=1e-3)
    assert len({first, second, open_checkpoint(folder).fingerprint()}) == 3


def test_the_tokenizer_comes_along(folder, tmp_path):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tokenizer()("AB").input_ids == [33, 34]
    checkpoint.copy_tokenizer(tmp_path)
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


def test_a_missing_or_damaged_tokenizer_is_told(folder):
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(LessenError, match="a tokenizer that does not load"):
        open_checkpoint(folder).tokenizer()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LessenError, match=r"got no tokenizer files, wanted tokenizer\.json; copy"):
        open_checkpoint(folder).tokenizer()


def test_names_that_mean_nothing_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="did you mean smollm2-135m"):
        open_checkpoint("smollm-135m")
    assert "got nothing by that name" in refused(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    assert "a file that starts with b'hell'" in refused(tmp_path / "notes.txt")
    assert "got no config.json" in refused(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert f"give the file {tmp_path / 'model.gguf'}" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -4000])
def test_a_truncated_file_is_told_when_it_is_opened(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert re.search(r"model.safetensors: got \d+ bytes, wanted .*truncated", refused(folder))


def test_a_file_that_shrinks_later_is_told_when_it_is_read(folder):
    checkpoint = open_checkpoint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(LessenError, match="truncated"):
        [checkpoint.read(name) for name in checkpoint.names]


def test_a_damaged_header_is_told(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"????"
    path.write_bytes(data)
    assert "an unreadable header" in refused(folder)


def test_missing_pieces_are_named(folder, tmp_path):
    sharded = save(load(folder), tmp_path / "sharded", max_shard_size="20KB")
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    assert f"got no {lost.name} (1 of" in refused(sharded)
    rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    assert "got no tensor model.layers.1.mlp.up_proj.weight" in refused(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "got only pytorch_model.bin, wanted model.safetensors" in refused(folder)


def test_weights_of_another_model_are_refused(folder):
    configure(folder, intermediate_size=40)
    assert "model.layers.0.mlp.gate_proj.weight: got shape (48, 32), wanted (40, 32)" in refused(folder)
    configure(folder, intermediate_size=48, num_hidden_layers=2)
    assert "tensors it has no place for (model.layers.2." in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_counted_and_named(folder, value):
    def spoil(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"][3, :2] = value

    rewrite(folder, spoil)
    assert "model.layers.1.self_attn.q_proj.weight: got 2 NaN or infinite values of 1024" in refused(folder)


def test_unknown_architectures_and_quantized_weights_are_refused(folder):
    configure(folder, model_type="lama")
    assert "got model_type 'lama'" in refused(folder) and "did you mean llama" in refused(folder)
    configure(folder, model_type="clip_vision_model")
    assert "wanted a causal language model" in refused(folder)
    configure(folder, model_type="llama", quantization_config={"quant_method": "gptq"})
    assert "already quantized with gptq" in refused(folder)
    (folder / "config.json").write_text("[1]")
    assert "got a JSON list" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "got invalid JSON" in refused(folder)


def test_reading_maps_no_file(folder):
    """A mapped file would count as memory of the process for as long as a tensor of it lives."""
    files = TensorFiles.of_folder(folder)
    kept = [files.read(name) for name in files]
    assert kept and str(folder) not in Path("/proc/self/maps").read_text()


def test_a_request_for_a_tensor_that_is_not_there_is_refused(folder):
    with pytest.raises(LessenError, match=r"a request for model\.nothing"):
        open_checkpoint(folder).read("model.nothing")
