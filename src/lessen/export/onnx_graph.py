"""The graph of a Llama-type decoder in the operators for which ONNX Runtime has fast CPU kernels.

    ids -> GatherBlockQuantized -> [norm -> qkv -> attention -> out -> add & norm -> gate, up -> silu * -> down -> add & norm] ... -> head

Matrices that read the same input and share a layout are stacked into one `MatMulNBits` (q, k, v; gate, up): fewer, larger products. The
residual addition and the norm after it are one operator, and so are rotation, cache and attention (`GroupQueryAttention`), which
lets the cache of keys and values be one buffer that grows in place. Ten nodes make a block.

Each block has the widths of its own tensors: unevenly pruned models need nothing special here.

The table of rotary angles is computed from the inverse frequencies by nodes without inputs, which ONNX Runtime evaluates when it loads the
model, so that a long context costs no bytes in the file.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lessen.export.grid import Grid, grid_of
from lessen.export.onnx_weights import WeightFile, blocks_of, layout
from lessen.models.checkpoint import Checkpoint

_MS = "com.microsoft"
EMBEDDING = "model.embed_tokens.weight"


@dataclass
class Graph:
    """Nodes, initializers, inputs and outputs as they are added.

    Attributes:
        checkpoint: where weights are read.
        weights: where they are written.
        accuracy_level: of every MatMulNBits: 4 computes with 8-bit activations, 1 in float32.
        notes: what was done to fit codes.
        stored: which matrices, in order of their rows, make up each quantized initializer.
    """

    checkpoint: Checkpoint
    weights: WeightFile
    accuracy_level: int = 4
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    stored: dict[str, list[str]] = field(default_factory=dict)

    def node(self, op: str, inputs: list[str], name: str, domain: str = "", outputs: list[str] | None = None, **attributes: Any) -> str:
        """Add a node; its first output is called `name` unless `outputs` says otherwise."""
        from onnx import helper

        outputs = outputs or [name]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{name}/{op}", domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: Tensor) -> str:
        """A small initializer inside the graph file."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def vector(self, name: str) -> str:
        """A norm gain or bias in float32."""
        return self.constant(name, self.checkpoint.read(name).float())

    def scale(self, name: str, scale: Tensor) -> str:
        """float32 scales, stored as they are."""
        self.initializers.append(self.weights.add(f"{name}.stored", scale))
        return self.node("Cast", [f"{name}.stored"], name, to=1)

    def linear(self, x: str, names: list[str], name: str) -> list[tuple[str, int]]:
        """Products of one input with several matrices, stacked where their layouts agree.

        Returns:
            (output, rows) of each product: one for all matrices together, or one for each.
        """
        grids = [self._grid(each) for each in names]
        quantized = [grid for grid in grids if grid is not None]
        if len(quantized) == len(grids) and len({layout(grid) for grid in quantized}) == 1:
            return [self._quantized(x, quantized, name)]
        if not quantized:
            return [self._plain(x, names, name)]
        return [
            self._plain(x, [each], f"{name}.{i}") if grid is None else self._quantized(x, [grid], f"{name}.{i}")
            for i, (each, grid) in enumerate(zip(names, grids, strict=True))
        ]

    def table(self, ids: str, name: str) -> str:
        """Rows of the embedding."""
        grid = self._grid(name)
        if grid is None:
            tensor = self.checkpoint.read(name)
            self.initializers.append(self.weights.add(name, tensor))
            rows = self.node("Gather", [name, ids], "embedding")
            return rows if tensor.dtype == torch.float32 else self.node("Cast", [rows], "embedding.float", to=1)
        packed = blocks_of([grid])
        codes = packed.codes.flatten(1)
        self.initializers.append(self.weights.add(f"{name}.codes", codes))
        scales = self.scale(f"{name}.scales", packed.scale)
        inputs = [f"{name}.codes", ids, scales]
        if packed.zeros is not None:
            self.initializers.append(self.weights.add(f"{name}.zeros", packed.zeros))
            inputs.append(f"{name}.zeros")
        self.notes |= dict.fromkeys(packed.notes)
        self.stored[f"{name}.codes"] = [name]
        return self.node(
            "GatherBlockQuantized", inputs, "embedding", _MS, bits=packed.bits, block_size=packed.block, quantize_axis=1, gather_axis=0
        )

    def head(self, x: str, name: str) -> str:
        """Logits; a tied head uses the bytes of the embedding."""
        source = self.checkpoint.tied.get(name)
        if source is None:
            return self.linear(x, [name], "head")[0][0]
        grid = self._grid(source)
        if grid is None:
            turned = self.node("Transpose", [source], "head.weight", perm=[1, 0])
            tensor = self.checkpoint.read(source)
            turned = turned if tensor.dtype == torch.float32 else self.node("Cast", [turned], "head.float", to=1)
            return self.node("MatMul", [x, turned], "head")
        packed = blocks_of([grid])
        self.initializers.append(self.weights.add("head.codes", packed.codes, same_as=f"{source}.codes"))
        inputs = [x, "head.codes", f"{source}.scales"] + ([f"{source}.zeros"] if packed.zeros is not None else [])
        rows, columns = packed.shape
        return self._product(inputs, "head", bits=packed.bits, block_size=packed.block, N=rows, K=columns)

    def _grid(self, name: str) -> Grid | None:
        edit = self.checkpoint.quantized(name)
        return None if edit is None else grid_of(edit)

    def _bias(self, names: list[str], name: str) -> str | None:
        biases = [each.removesuffix("weight") + "bias" for each in names]
        known = set(self.checkpoint.names)
        if not known.intersection(biases):
            return None
        parts = [
            self.checkpoint.read(bias).float() if bias in known else torch.zeros(self.checkpoint.shape(each)[0])
            for bias, each in zip(biases, names, strict=True)
        ]
        return self.constant(f"{name}.bias", torch.cat(parts))

    def _quantized(self, x: str, grids: list[Grid], name: str) -> tuple[str, int]:
        packed = blocks_of(grids)
        self.initializers.append(self.weights.add(f"{name}.codes", packed.codes))
        inputs = [x, f"{name}.codes", self.scale(f"{name}.scales", packed.scale)]
        if packed.zeros is not None:
            self.initializers.append(self.weights.add(f"{name}.zeros", packed.zeros))
            inputs.append(f"{name}.zeros")
        bias = self._bias([grid.name for grid in grids], name)
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [bias]
        self.notes |= dict.fromkeys(packed.notes)
        self.stored[f"{name}.codes"] = [grid.name for grid in grids]
        rows, columns = packed.shape
        return self._product(inputs, name, bits=packed.bits, block_size=packed.block, N=rows, K=columns), rows

    def _product(self, inputs: list[str], name: str, **attributes: int) -> str:
        return self.node("MatMulNBits", inputs, name, _MS, None, accuracy_level=self.accuracy_level, **attributes)

    def _plain(self, x: str, names: list[str], name: str) -> tuple[str, int]:
        weight = torch.cat([self.checkpoint.read(each) for each in names])
        self.initializers.append(self.weights.add(f"{name}.weight", weight.T))
        matrix = f"{name}.weight"
        if weight.dtype != torch.float32:
            matrix = self.node("Cast", [matrix], f"{name}.float", to=1)
        bias = self._bias(names, name)
        product = self.node("MatMul", [x, matrix], f"{name}.product" if bias else name)
        return (self.node("Add", [product, bias], name) if bias else product), len(weight)


def split(graph: Graph, parts: list[tuple[str, int]], sizes: list[int], name: str) -> list[str]:
    """The outputs of several matrices, whether they were stacked or not."""
    if len(parts) == len(sizes):
        return [output for output, _ in parts]
    outputs = [f"{name}.{i}" for i in range(len(sizes))]
    lengths = graph.constant(f"{name}.sizes", torch.tensor(sizes))
    graph.node("Split", [parts[0][0], lengths], name, outputs=outputs, axis=-1)
    return outputs


def decoder(graph: Graph, inverse_frequencies: Tensor, angle_scale: float, last_only: bool) -> None:
    """Add the whole network.

    Args:
        graph: to add to.
        inverse_frequencies: "head_dim / 2".
        angle_scale: factor on cosines and sines (YaRN), 1 otherwise.
        last_only: compute logits of the last position only.
    """
    from onnx import TensorProto, helper

    config = graph.checkpoint.config
    blocks, epsilon = int(config["num_hidden_layers"]), float(config["rms_norm_eps"])
    for name, axis in (("input_ids", "seq"), ("attention_mask", "total")):
        graph.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", axis]))
    lengths = _lengths(graph)
    rotary = _rotary(graph, inverse_frequencies, angle_scale, int(config["max_position_embeddings"]))
    residual = graph.table("input_ids", EMBEDDING)
    gain = graph.vector("model.layers.0.input_layernorm.weight")
    x = graph.node("SimplifiedLayerNormalization", [residual, gain], "norm", axis=-1, epsilon=epsilon, stash_type=1)
    for i in range(blocks):
        prefix = f"model.layers.{i}"
        out = _attention(graph, x, i, lengths, rotary, 2 * len(inverse_frequencies))
        x, residual = _add_and_norm(graph, out, residual, f"{prefix}.post_attention_layernorm.weight", f"{prefix}.middle", epsilon)
        out = _feed_forward(graph, x, f"{prefix}.mlp")
        after = "model.norm.weight" if i + 1 == blocks else f"model.layers.{i + 1}.input_layernorm.weight"
        x, residual = _add_and_norm(graph, out, residual, after, f"{prefix}.end", epsilon)
    if last_only:
        bounds = [graph.constant(f"last.{key}", torch.tensor([value])) for key, value in (("start", -1), ("end", 2**62), ("axis", 1))]
        x = graph.node("Slice", [x, *bounds], "last")
    logits = graph.head(x, "lm_head.weight")
    graph.nodes[-1].output[0] = "logits"
    assert logits, "the head is the last node"
    vocab = graph.checkpoint.shape(EMBEDDING)[0]
    graph.outputs.insert(0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1 if last_only else "seq", vocab]))


def _lengths(graph: Graph) -> list[str]:
    """What GroupQueryAttention asks for: length of each sequence minus 1, and length of the padded batch."""
    one = graph.constant("one", torch.tensor([1]))
    summed = graph.node("ReduceSum", ["attention_mask", one], "mask.sum", keepdims=0)
    less = graph.node("Sub", [summed, one], "mask.last")
    shape = graph.node("Shape", ["attention_mask"], "mask.shape")
    total = graph.node("Gather", [shape, graph.constant("index", torch.tensor(1))], "mask.total", axis=0)
    return [graph.node("Cast", [less], "seqlens_k", to=6), graph.node("Cast", [total], "total_seq_len", to=6)]


def _rotary(graph: Graph, inverse_frequencies: Tensor, angle_scale: float, context: int) -> list[str]:
    bounds = [graph.constant(f"rotary.{key}", torch.tensor(float(value))) for key, value in (("start", 0), ("end", context), ("step", 1))]
    positions = graph.node("Range", bounds, "rotary.positions")
    column = graph.node("Unsqueeze", [positions, "one"], "rotary.column")
    angles = graph.node("Mul", [column, graph.constant("rotary.frequencies", inverse_frequencies.float()[None])], "rotary.angles")
    names = [graph.node(op, [angles], f"rotary.{op}") for op in ("Cos", "Sin")]
    if angle_scale == 1.0:
        return names
    factor = graph.constant("rotary.scale", torch.tensor(float(angle_scale)))
    return [graph.node("Mul", [name, factor], f"{name}.scaled") for name in names]


def _attention(graph: Graph, x: str, block: int, lengths: list[str], rotary: list[str], head_dim: int) -> str:
    from onnx import TensorProto, helper

    prefix = f"model.layers.{block}.self_attn"
    names = [f"{prefix}.{part}_proj.weight" for part in "qkv"]
    queries, keys = (graph.checkpoint.shape(name)[0] // head_dim for name in names[:2])
    parts = graph.linear(x, names, f"{prefix}.qkv")
    # A stacked product goes in whole: the operator splits it itself.
    qkv = [parts[0][0], "", ""] if len(parts) == 1 else [output for output, _ in parts]
    past = [f"past_key_values.{block}.{part}" for part in ("key", "value")]
    present = [f"present.{block}.{part}" for part in ("key", "value")]
    for name, axis, ports in ((past, "past", graph.inputs), (present, "total", graph.outputs)):
        ports += [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", keys, axis, head_dim]) for each in name]
    if f"{prefix}.q_norm.weight" in graph.checkpoint.names:
        qkv = split(graph, parts, [graph.checkpoint.shape(name)[0] for name in names], f"{prefix}.split")
        qkv[:2] = [_head_norm(graph, each, f"{prefix}.{part}_norm", head_dim) for each, part in zip(qkv, "qk", strict=False)]
    inputs = [*qkv, *past, *lengths, *rotary]
    attributes: dict[str, Any] = {"num_heads": queries, "kv_num_heads": keys, "do_rotary": 1, "scale": head_dim**-0.5}
    window = _window(graph.checkpoint.config, block)
    if window is not None:
        attributes["local_window_size"] = window
    name = f"{prefix}.attention"
    out = graph.node("GroupQueryAttention", inputs, name, _MS, outputs=[name, *present], **attributes)
    return graph.linear(out, [f"{prefix}.o_proj.weight"], f"{prefix}.o_proj")[0][0]


def _head_norm(graph: Graph, x: str, name: str, head_dim: int) -> str:
    """Norm of each head's part of "batch seq dim"."""
    sizes = {"heads": [0, 0, -1, head_dim], "flat": [0, 0, -1]}
    shapes = {key: graph.constant(f"{name}.{key}", torch.tensor(size)) for key, size in sizes.items()}
    apart = graph.node("Reshape", [x, shapes["heads"]], f"{name}.apart")
    epsilon = float(graph.checkpoint.config["rms_norm_eps"])
    gain = graph.vector(f"{name}.weight")
    normed = graph.node("SimplifiedLayerNormalization", [apart, gain], f"{name}.normed", axis=-1, epsilon=epsilon, stash_type=1)
    return graph.node("Reshape", [normed, shapes["flat"]], name)


def _window(config: dict[str, Any], block: int) -> int | None:
    """Positions that a block looks back, None for all."""
    kinds = config.get("layer_types")
    if kinds is not None:
        return int(config["sliding_window"]) if kinds[block] == "sliding_attention" else None
    return config.get("sliding_window") if config.get("use_sliding_window", config.get("model_type") == "mistral") else None


def _feed_forward(graph: Graph, x: str, prefix: str) -> str:
    names = [f"{prefix}.{part}_proj.weight" for part in ("gate", "up")]
    parts = graph.linear(x, names, f"{prefix}.gate_up")
    gate, up = split(graph, parts, [graph.checkpoint.shape(name)[0] for name in names], f"{prefix}.halves")
    silu = graph.node("QuickGelu", [gate], f"{prefix}.silu", _MS, alpha=1.0)
    return graph.linear(graph.node("Mul", [silu, up], f"{prefix}.gated"), [f"{prefix}.down_proj.weight"], f"{prefix}.down")[0][0]


def _add_and_norm(graph: Graph, x: str, residual: str, gain: str, name: str, epsilon: float) -> tuple[str, str]:
    outputs = [f"{name}.norm", "", "", f"{name}.sum"]
    graph.node("SkipSimplifiedLayerNormalization", [x, residual, graph.vector(gain)], name, _MS, outputs=outputs, epsilon=epsilon)
    return outputs[0], outputs[3]
