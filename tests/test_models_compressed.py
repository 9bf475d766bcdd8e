"""Directories that lessen wrote: codes come back bit for bit, and layers in the widths that were left."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lessen.core.edit import Quantize, same
from lessen.errors import LessenError
from lessen.formats import spec
from lessen.formats.affine import Int, PerGroup, PerRow, PerTensor
from lessen.models import load, open_checkpoint
from lessen.models.stream import Stream

packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
pytest.importorskip("transformers")

from tests.models_fixture import logits, save, tiny, tokens  # noqa: E402

FORMATS = [
    Int(4, PerGroup(8)),
    Int(4, PerTensor()),
    Int(2, PerRow(), full_range=False),
    Int(3, PerGroup(16), scale_dtype=torch.bfloat16),
    Int(5, PerRow(), symmetric=False),
    Int(4, PerTensor(), symmetric=False),
    Int(6, PerGroup(16), symmetric=False, scale_dtype=torch.float32),
    Int(8, PerGroup(8), symmetric=False),
]
EMBEDDING = "model.embed_tokens.weight"


def parts(edit: Quantize, packed: bool) -> dict[str, Tensor]:
    """The stored tensors of a matrix, packed by compressed-tensors itself."""
    half = 1 << edit.format.bits - 1
    rows, columns = edit.codes.values.shape
    scale = edit.codes.scale.expand(rows, -1).contiguous()
    centre = 0 if edit.codes.zero is None else half
    signed = (edit.codes.values.to(torch.int16) - centre).to(torch.int8)
    stored = {f"{edit.name}_scale": scale}
    if packed:
        stored[f"{edit.name}_packed"] = packing.pack_to_int32(signed, edit.format.bits)
        stored[f"{edit.name}_shape"] = torch.tensor([rows, columns])
    else:
        stored[edit.name] = signed
    if edit.codes.zero is not None:
        zero = (edit.codes.zero.expand(rows, -1).to(torch.int16) - half).to(torch.int8).contiguous()
        stored[f"{edit.name}_zero_point"] = packing.pack_to_int32(zero, edit.format.bits, packed_dim=0) if packed else zero
    return stored


def write(model: nn.Module, folder: Path, formats: Mapping[str, Int], int8: tuple[str, ...] = ()) -> dict[str, Quantize]:
    """Save a model with some matrices as codes; returns their edits."""
    save(model, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edits = {}
    for name, format in formats.items():
        edits[name] = Quantize(name, format, format.encode(tensors[name]))
        del tensors[name]
        tensors |= parts(edits[name], name not in int8)
    save_file(tensors, path)
    (folder / "lessen.json").write_text(json.dumps({"formats": {name: spec.to_json(format) for name, format in formats.items()}}))
    return edits


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_codes_come_back_bit_for_bit(format, packed, tmp_path):
    names = ["model.layers.0.mlp.down_proj.weight", EMBEDDING]
    edits = write(tiny(), tmp_path, dict.fromkeys(names, cast(Int, format)), int8=() if packed else tuple(names))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tied == {"lm_head.weight": EMBEDDING}
    for name in names:
        found = checkpoint.quantized(name)
        assert found is not None and same(found, edits[name])
        assert torch.equal(checkpoint.read(name), format.decode(edits[name].codes))
        assert checkpoint.shape(name) == tuple(edits[name].codes.values.shape)
    shared = checkpoint.quantized("lm_head.weight")
    assert shared is not None and same(shared, edits[EMBEDDING])
    assert checkpoint.quantized("model.norm.weight") is None


def test_the_model_is_the_one_whose_weights_were_rounded(tmp_path):
    model = tiny("qwen2")
    formats = {name: Int(4, PerGroup(8)) for name, p in model.named_parameters() if p.ndim == 2}
    edits = write(model, tmp_path, formats, int8=(EMBEDDING,))
    for name, edit in edits.items():
        model.get_parameter(name).data.copy_(edit.format.decode(edit.codes))
    wanted = logits(model, tokens())
    assert torch.equal(logits(load(tmp_path), tokens()), wanted)
    stream = Stream(open_checkpoint(tmp_path))
    hidden = stream.embed(tokens())
    for i in range(stream.blocks):
        hidden = stream.forward(stream.block(i), i, hidden)
    assert torch.equal(stream.head(hidden), wanted)


def test_widths_and_biases_may_differ_from_the_configuration(tmp_path):
    """The narrow model must equal the wide one whose lost channels are zero."""
    wide, narrow = tiny(), tiny()
    block, thin = wide.get_submodule("model.layers.1"), narrow.get_submodule("model.layers.1")
    with torch.no_grad():
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                axis = 1 if name.endswith(("down_proj", "o_proj")) else 0
                size = 24 if "mlp" in name else 8 if re.search("[kv]_", name) else 16
                thin.get_submodule(name).weight = nn.Parameter(module.weight.narrow(axis, 0, size).clone())
                module.weight.narrow(axis, size, module.weight.shape[axis] - size).zero_()
        for layer in (block, thin):
            layer.get_submodule("mlp.down_proj").register_parameter("bias", nn.Parameter(torch.linspace(-1, 1, 32)))
    write(narrow, tmp_path, {})
    model: Any = load(tmp_path)
    # A shorter sum in another order: float32 rounding.
    torch.testing.assert_close(logits(model, tokens()), logits(wide, tokens()), atol=1e-5, rtol=1e-5)
    assert model.get_submodule("model.layers.1.mlp.up_proj").out_features == 24
    assert model.get_submodule("model.layers.1.mlp.down_proj").bias is not None
    assert model.get_submodule("model.layers.0.mlp.down_proj").bias is None
    stream = Stream(open_checkpoint(tmp_path))
    hidden = stream.embed(tokens())
    for i in range(stream.blocks):
        hidden = stream.forward(stream.block(i), i, hidden)
    assert torch.equal(stream.head(hidden), logits(model, tokens()))
    model.generate(tokens()[:1], max_new_tokens=3, do_sample=False)  # the cache must know the head counts too


def test_an_embedding_stored_dense_is_read_as_it_is(tmp_path):
    write(tiny(), tmp_path, {})
    (tmp_path / "lessen.json").write_text(json.dumps({"formats": {EMBEDDING: spec.to_json(Int(8))}}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.quantized(EMBEDDING) is None
    assert torch.equal(checkpoint.read(EMBEDDING), tiny().get_parameter(EMBEDDING))


NAME = "model.layers.0.mlp.down_proj.weight"


def spoil(folder: Path, change) -> str:
    """The message after changing the dict of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LessenError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_together_is_named(tmp_path):
    asymmetric = Int(4, PerGroup(8), symmetric=False)
    write(tiny(), tmp_path / "a", {NAME: asymmetric})
    assert f"got no tensor {NAME}_zero_point" in spoil(tmp_path / "a", lambda t: t.pop(f"{NAME}_zero_point"))
    assert f"got no tensor {NAME}_scale" in spoil(tmp_path / "a", lambda t: t.pop(f"{NAME}_scale"))
    assert f"got no tensor {NAME}_shape" in spoil(tmp_path / "a", lambda t: t.pop(f"{NAME}_shape"))
    write(tiny(), tmp_path / "b", {NAME: Int(4, PerGroup(8))})
    message = spoil(tmp_path / "b", lambda t: t[f"{NAME}_scale"][0, 0].fill_(float("nan")))
    assert f"{NAME}: got 8 NaN or infinite values" in message  # the eight weights of that group
    write(tiny(), tmp_path / "c", {NAME: Int(4, PerGroup(8))})
    (tmp_path / "c" / "lessen.json").write_text(json.dumps({"formats": {NAME: spec.to_json(Int(4, PerGroup(16)))}}))
    assert f"{NAME}_scale: got shape (32, 6), wanted (32, 3)" in spoil(tmp_path / "c", lambda t: None)
    (tmp_path / "c" / "lessen.json").write_text("{}")
    assert f"got no format for {NAME}" in spoil(tmp_path / "c", lambda t: None)
    (tmp_path / "c" / "lessen.json").write_text('{"formats": {"x": {"type": "imt"}}}')
    assert "did you mean int?" in spoil(tmp_path / "c", lambda t: None)
