"""An ONNX folder for `onnxruntime` and `onnxruntime-genai`: the fastest way to run 4-bit weights on an ordinary processor.

The graph is built directly from the codes (see `onnx_graph`), with no detour through float weights: every matrix is a `MatMulNBits` on the
very codes of the checkpoint, the embedding a `GatherBlockQuantized`, a tied head the same bytes again. `accuracy_level` 4 lets the
kernels round activations to 8 bits for each block, which is what makes them fast; the weights stay exact.

    model.onnx, model.onnx.data, genai_config.json, config.json, tokenizer files

onnxruntime-genai keeps keys and values in one buffer that grows in place; with plain onnxruntime bind past and present to the same
memory for the same speed.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.core.event import Event, Listener
from lessen.errors import LessenError
from lessen.export.gguf_metadata import MOVING
from lessen.export.grid import ELSEWHERE, grid_of
from lessen.export.onnx_graph import EMBEDDING, Graph, decoder
from lessen.export.onnx_weights import WeightFile, layout
from lessen.export.parity import sampled, version
from lessen.formats.pack import unpack
from lessen.models.checkpoint import Checkpoint

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    logits: Literal["all", "last"] = "all",
    accuracy_level: int = 4,
    listen: Listener | None = None,
) -> list[str]:
    """Write the folder; one stack of matrices in memory at a time.

    Args:
        checkpoint: plain, pruned or quantized.
        folder: does not exist yet, or is empty.
        logits: of all positions, or of the last one only: a fifth faster prefill, but no perplexity, and prompts of unequal length
            cannot share a batch.
        accuracy_level: 4 computes with 8-bit activations, 1 in float32.
        listen: told when a part is done.

    Returns:
        Notes: choices that the reader of the result should know.
    """
    onnx = _known(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    rotary = _rotary(checkpoint)
    graph = Graph(checkpoint, WeightFile(folder / "model.onnx.data"), accuracy_level)
    decoder(graph, *rotary, last_only=logits == "last")
    graph.weights.close()
    made = onnx.helper.make_graph(graph.nodes, "decoder", graph.inputs, graph.outputs, graph.initializers)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="lessen")
    onnx.helper.set_model_props(model, {"lessen.codes": json.dumps(graph.stored)})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    checkpoint.copy_tokenizer(folder)
    (folder / "genai_config.json").write_text(json.dumps(_genai(checkpoint, folder, 2 * len(rotary[0])), indent=2) + "\n")
    if listen:
        listen(Event("export onnx", 1, 1))
    return list(graph.notes)


def fits(checkpoint: Checkpoint) -> None:
    """Raise what `write` would say of package, architecture and formats, without reading a weight."""
    _known(checkpoint)
    _rotary(checkpoint)
    for name in checkpoint.names:
        if edit := checkpoint.quantized(name):
            layout(grid_of(edit))


def _known(checkpoint: Checkpoint) -> Any:
    """The onnx package, for an architecture whose graph is known."""
    kind = checkpoint.config.get("model_type")
    if kind not in ARCHITECTURES:
        wanted = f"one of {', '.join(ARCHITECTURES)} for ONNX"
        raise LessenError(checkpoint.label, got=f"model_type {kind!r}", wanted=wanted, remedy=ELSEWHERE)
    return _package(checkpoint.label)


def _package(where: str) -> Any:
    try:
        return import_module("onnx")
    except ImportError:
        raise LessenError(where, got="no onnx package", wanted="it to write ONNX", remedy="pip install 'lessen[onnx]'") from None


def _rotary(checkpoint: Checkpoint) -> tuple[Tensor, float]:
    """Inverse frequencies "head_dim / 2" and the factor on cosines and sines, as the architecture itself computes them."""
    for module in checkpoint.skeleton().modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, Tensor) and isinstance(module, nn.Module):
            kind = getattr(module, "rope_type", "default")
            if kind in MOVING:
                got = f"rope scaling {kind!r}, whose angles change with the length of the text"
                raise LessenError(checkpoint.label, got=got, wanted="fixed angles for ONNX", remedy=ELSEWHERE)
            return frequencies.detach().float(), float(getattr(module, "attention_scaling", 1.0))
    raise LessenError(checkpoint.label, got="no rotary embedding", wanted="one in a Llama-type decoder")


def _genai(checkpoint: Checkpoint, folder: Path, head_dim: int) -> dict[str, Any]:
    """`genai_config.json`."""
    generation = folder / "generation_config.json"
    config = {**checkpoint.config, **(json.loads(generation.read_text()) if generation.exists() else {})}
    context = int(config["max_position_embeddings"])
    heads, keys = (checkpoint.shape(f"model.layers.0.self_attn.{part}_proj.weight")[0] // head_dim for part in "qk")
    eos = config.get("eos_token_id")
    first = eos[0] if isinstance(eos, list) else eos
    pad = config.get("pad_token_id")
    names = {f"{part}_names": f"past_key_values.%d.{part.removeprefix('past_')}" for part in ("past_key", "past_value")}
    presents = {f"{part}_names": f"present.%d.{part.removeprefix('present_')}" for part in ("present_key", "present_value")}
    vocab, dim = checkpoint.shape(EMBEDDING)
    return {
        "model": {
            "type": config["model_type"],
            "bos_token_id": config.get("bos_token_id") if config.get("bos_token_id") is not None else first,
            "eos_token_id": eos,
            "pad_token_id": pad if pad is not None else first,
            "context_length": context,
            "vocab_size": vocab,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": head_dim,
                "hidden_size": dim,
                "num_attention_heads": heads,
                "num_hidden_layers": int(config["num_hidden_layers"]),
                "num_key_value_heads": keys,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
                "outputs": {"logits": "logits", **presents},
            },
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": float(config.get("temperature") or 1.0),
            "top_k": int(config.get("top_k") or 50),
            "top_p": float(config.get("top_p") or 1.0),
        },
    }


def codes_equal(checkpoint: Checkpoint, folder: Path, **_: Any) -> bool:
    """Whether every matrix in the file, taken apart again, has the codes, scales and zero points of the checkpoint."""
    onnx = _package(checkpoint.label)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    found = {proto.name: proto for proto in model.graph.initializer}
    stored = json.loads(next(prop.value for prop in model.metadata_props if prop.key == "lessen.codes"))
    users = {name: node for node in model.graph.node for name in node.input if name.endswith(".codes")}
    helper = onnx.external_data_helper

    def read(name: str) -> Tensor:
        proto = onnx.TensorProto()
        proto.CopyFrom(found[name])
        helper.load_external_data_for_tensor(proto, str(folder))
        return torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())

    for key, names in stored.items():
        node = users[key]
        bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
        block = next(attribute.i for attribute in node.attribute if attribute.name == "block_size")
        start = 0
        every, scale = read(key).flatten(1), read(key.removesuffix(".codes") + ".scales.stored")
        zero_name = key.removesuffix(".codes") + ".zeros"
        for name in names:
            edit = checkpoint.quantized(name)
            assert edit is not None, f"{name} was quantized when it was written"
            grid = grid_of(edit).widened(bits).split(block)
            rows = slice(start, start + len(grid.codes))
            start = rows.stop
            if not torch.equal(unpack(every[rows], bits, grid.codes.shape[1]), grid.codes) or not torch.equal(scale[rows], grid.scale):
                return False
            if zero_name in found and not torch.equal(unpack(read(zero_name)[rows], bits, grid.zero.shape[1]), grid.zero):
                return False
    quantized = {name for name in checkpoint.names if checkpoint.quantized(name) is not None}
    return quantized == {name for names in stored.values() for name in names}


def logits(checkpoint: Checkpoint, folder: Path, probe: Tensor, **options: Any) -> tuple[Tensor, str]:
    """Logits of ONNX Runtime on the CPU with one thread.

    A file that gives the last position only is asked at up to 12 positions, evenly spaced, with a prompt for each; the rest is NaN.
    """
    runtime = version("onnxruntime")
    ort: Any = import_module("onnxruntime")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = ort.InferenceSession(folder / "model.onnx", settings, providers=["CPUExecutionProvider"])

    def answer(tokens: Tensor) -> Tensor:
        feeds: dict[str, Any] = {"input_ids": tokens.numpy(), "attention_mask": torch.ones_like(tokens).numpy()}
        for port in session.get_inputs()[2:]:
            feeds[port.name] = torch.zeros(len(tokens), port.shape[1], 0, port.shape[3]).numpy()
        return torch.from_numpy(session.run(["logits"], feeds)[0])

    if options.get("logits") != "last":
        return answer(probe), runtime
    result = torch.full((*probe.shape, checkpoint.shape(EMBEDDING)[0]), torch.nan)
    for row, last in sampled(probe):
        result[row, last] = answer(probe[row : row + 1, : last + 1])[0, -1]
    return result, runtime
