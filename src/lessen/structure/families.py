"""What the blocks of known decoder families call their parts.

One row per family: the module names inside a block, and what the configuration can express. Everything else (head counts, widths,
biases, fused tensors) is read off the tensor shapes, so a model that was already pruned is described as truly as a fresh one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names inside one decoder block.

    Attributes:
        qkv: the linears that read the attention input; three names, or one that is fused as queries, keys, values.
        o: the linear that writes the attention output.
        reads: the linears that read the feed-forward input: gate and up, up alone, or one that is fused as gate, up.
        down: the linear that writes the feed-forward output.
        norms: (attention, feed-forward) norms whose gain multiplies the input, so that it can absorb a rescaling; None where the
            gain is stored as 1 + weight or comes with a bias, since dividing the stored weight is then not enough.
        width: configuration field of the feed-forward width.
        gated: the feed-forward layer multiplies an activation by a linear part (SwiGLU), whose rows can absorb a rescaling.
        heads: the configuration can say that there are fewer heads than hidden_size / head_dim.
    """

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    o: str = "self_attn.o_proj"
    reads: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    norms: tuple[str, str] | None = ("input_layernorm", "post_attention_layernorm")
    width: str = "intermediate_size"
    gated: bool = True
    heads: bool = True


_LLAMA = Family()
_GEMMA = Family(norms=None)
_PHI3 = Family(qkv=("self_attn.qkv_proj",), reads=("mlp.gate_up_proj",))
_NEOX = Family(
    qkv=("attention.query_key_value",),
    o="attention.dense",
    reads=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    norms=None,
    gated=False,
    heads=False,
)
_OPT = Family(o="self_attn.out_proj", reads=("fc1",), down="fc2", norms=None, width="ffn_dim", gated=False, heads=False)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3", "granite"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GEMMA),
    "phi3": _PHI3,
    "gpt_neox": _NEOX,
    "opt": _OPT,
}
"""Families by the `model_type` of their configuration."""
