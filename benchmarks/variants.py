"""The same function with other weights: variants that take a model off the quantization grid on which its weights were shipped.

SmolLM2's weights come out of a Q4_1 file, so every group of 32 has at most 16 values and a 4-bit method that finds that grid again
looks lossless. A network has many parametrizations of one function, and two families of them are exact:

Rescaling. Between a layer that is linear per channel and the next linear one, a channel can be divided by c and multiplied back:
    norm gain g_j / c_j          and the input columns of q, k, v (or gate, up)  W[:, j] * c_j
    row j of up_proj / c_j       and column j of down_proj * c_j                 (SwiGLU multiplies up's channel, never bends it)
    row j of v_proj / c_j        and the matching columns of o_proj * c_j        (attention mixes tokens, not channels); with grouped
                                 queries one value head feeds several query heads, so all of their columns take the same c
with c = exp(u), u uniform in +-ln 1.4. The final norm stays: its columns are those of the tied embedding.

Rotation. RMSNorm(x Q) = RMSNorm(x) Q for an orthogonal Q, once the norm has no gain. So gains are folded into the linears that read
the norm, and the whole residual stream is rotated: E Q, W_in Q, Q^T W_out (QuaRot, SliceGPT). The final norm's gain g goes to the
head, diag(g), which unties it from the embedding exactly: head = E diag(g) Q, embedding = E Q.

All products are formed in float64 and rounded to float32 once, so logits agree to float32 rounding.
Papers: Ashkboos et al. 2024, QuaRot, https://arxiv.org/abs/2404.00456; Nagel et al. 2019, https://arxiv.org/abs/1906.04721 (section 4.1)
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lessen.models.checkpoint import Checkpoint

State = dict[str, Tensor]
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def rescale(state: Mapping[str, Tensor], heads: int, kv_heads: int, seed: int = 0, spread: float = 1.4) -> State:
    """A Llama state dict of the same function whose channels are rescaled by exp(u), u uniform in +-ln `spread`.

    Args:
        state: names and tensors of a Hugging Face Llama-like model.
        heads: of queries.
        kv_heads: of keys and values; each feeds heads / kv_heads query heads.
        seed: of the factors.
        spread: the largest of them, and the inverse of the smallest.
    """
    generator = torch.Generator().manual_seed(seed)
    out = {name: tensor.double() for name, tensor in state.items()}

    def draw(count: int) -> Tensor:
        return torch.exp((2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1) * math.log(spread))

    for block in _blocks(state):
        for norm, readers in READERS.items():
            gain = f"{block}.{norm}.weight"
            factor = draw(len(out[gain]))
            out[gain] = out[gain] / factor
            for reader in readers:
                out[f"{block}.{reader}.weight"] *= factor
        up, down = f"{block}.mlp.up_proj", f"{block}.mlp.down_proj"
        factor = draw(len(out[f"{up}.weight"]))
        _divide_rows(out, up, factor)
        out[f"{down}.weight"] *= factor
        value, output = f"{block}.self_attn.v_proj", f"{block}.self_attn.o_proj"
        factor = draw(len(out[f"{value}.weight"]))
        _divide_rows(out, value, factor)
        out[f"{output}.weight"] *= factor.view(kv_heads, 1, -1).expand(-1, heads // kv_heads, -1).reshape(-1)
    return _rounded(out, state)


def rotate(state: Mapping[str, Tensor], seed: int = 0) -> State:
    """A Llama state dict of the same function whose residual stream is rotated by a random orthogonal matrix; the head is untied."""
    out = {name: tensor.double() for name, tensor in state.items()}
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    dim = out[embedding].shape[1]
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))  # makes the draw uniform over rotations (Mezzadri 2007)
    out[head] = (out.get(head, out[embedding]) * out["model.norm.weight"]) @ q
    out["model.norm.weight"] = torch.ones(dim)
    out[embedding] = out[embedding] @ q
    for block in _blocks(state):
        for norm, readers in READERS.items():
            for reader in readers:
                name = f"{block}.{reader}.weight"
                out[name] = (out[name] * out[f"{block}.{norm}.weight"]) @ q
            out[f"{block}.{norm}.weight"] = torch.ones(dim)
        for writer in WRITERS:
            out[f"{block}.{writer}.weight"] = q.T @ out[f"{block}.{writer}.weight"]
            if f"{block}.{writer}.bias" in out:
                out[f"{block}.{writer}.bias"] = out[f"{block}.{writer}.bias"] @ q
    return _rounded(out, state)


def _blocks(state: Mapping[str, Tensor]) -> list[str]:
    found = {".".join(name.split(".")[:3]) for name in state if name.startswith("model.layers.")}
    return sorted(found, key=lambda block: int(block.rpartition(".")[2]))


def _divide_rows(state: State, linear: str, factor: Tensor) -> None:
    state[f"{linear}.weight"] /= factor[:, None]
    if f"{linear}.bias" in state:
        state[f"{linear}.bias"] /= factor


def _rounded(out: State, like: Mapping[str, Tensor]) -> State:
    dtype = next(iter(like.values())).dtype
    return {name: tensor.to(dtype).contiguous() for name, tensor in out.items()}


def write(source: Path, variant: str, target: Path, seed: int = 0) -> Path:
    """Write a variant ("shipped", "rescaled" or "rotated") of the Hugging Face directory `source` as the directory `target`, once."""
    if target.exists():
        return target
    config = json.loads((source / "config.json").read_text())
    state = load_file(source / "model.safetensors")
    makers: dict[str, Callable[[], State]] = {
        "shipped": lambda: state,
        "rescaled": lambda: rescale(state, config["num_attention_heads"], config["num_key_value_heads"], seed),
        "rotated": lambda: rotate(state, seed),
    }
    changed = makers[variant]()
    aside = target.with_name(f"{target.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, aside)
    config["tie_word_embeddings"] = "lm_head.weight" not in changed
    (aside / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(changed, aside / "model.safetensors", metadata={"format": "pt"})
    aside.rename(target)
    return target


def off_grid(weight: Tensor, group: int = 32, levels: int = 16, tolerance: float = 1e-3) -> float:
    """Fraction of weights whose group of a row lies on no grid of `levels` evenly spaced values.

    A group lies on a grid if its values are, but for `tolerance` steps, its smallest plus multiples of one step, levels - 1 at most.
    The step is not known, so its range is divided into every number of parts up to that. Blocks that were decoded from Q4_1 always lie
    on one, whatever their scale and minimum; real numbers almost never do.

    >>> off_grid(torch.arange(64.0).remainder(16).view(1, 64))
    0.0
    >>> off_grid(torch.rand(1, 64, generator=torch.Generator().manual_seed(0)))
    1.0
    """
    values = weight.double().reshape(-1, group)
    low = values.amin(1, keepdim=True)
    span = (values.amax(1, keepdim=True) - low).clamp_min(torch.finfo(torch.float64).tiny)
    off = torch.ones(len(values), dtype=torch.bool)
    for parts in range(1, levels):
        position = (values - low) / span * parts
        off &= ((position - position.round()).abs() > tolerance).any(1)
    return off.double().mean().item()


def proof(shipped: Checkpoint, variant: Checkpoint, tokens: Mapping[str, Tensor]) -> dict[str, float]:
    """That a variant computes the same function with weights off the grid of 16 levels in groups of 32.

    Args:
        shipped: the model as it was.
        variant: the model that should be the same function.
        tokens: "windows seq" by name; the first window of each is compared.

    Returns:
        `logits_max_error`, `logits_max` (the size of a logit), `logits_kld`, and `off_grid` of both models' linears.
    """
    from lessen.evaluate.answers import answers

    first = {name: ids[:1] for name, ids in tokens.items()}
    before, after = answers(shipped, first), answers(variant, first)
    error, largest, kld = 0.0, 0.0, []
    for name, ids in first.items():
        a, b = (model.logits(name, 0, 0, ids.shape[1]).double() for model in (before, after))
        error, largest = max(error, (a - b).abs().max().item()), max(largest, a.abs().max().item())
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        kld.append((p.exp() * (p - q)).sum(-1).mean().item())
    figures = {"logits_max_error": error, "logits_max": largest, "logits_kld": sum(kld) / len(kld)}
    return figures | {"off_grid_shipped": _linears_off_grid(shipped), "off_grid": _linears_off_grid(variant)}


def _linears_off_grid(checkpoint: Checkpoint) -> float:
    off, total = 0.0, 0
    for name in checkpoint.names:
        if "_proj." in name and name.endswith("weight"):
            weight = checkpoint.read(name)
            off, total = off + off_grid(weight) * weight.numel(), total + weight.numel()
    return off / total
