"""`nn.MultiheadAttention` with its projections as layers of their own, so that they can lie on tiles.

torch hands the packed matrix of queries, keys and values to a function, where no module is called. Here the three are linear layers whose
weights are slices of that matrix; the products of activations are those of `scaled_dot_product_attention`, or explicit where the weights
of attention are asked for.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AnalogAttention(nn.Module):
    """Takes the place of an `nn.MultiheadAttention` and shares its weights."""

    in_proj_bias = None
    _qkv_same_embed_dim = False  # both keep torch's encoder layer from its own fast path, which calls no module

    def __init__(self, module: nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.batch_first, self.embed_dim = module.num_heads, module.batch_first, module.embed_dim
        self.dropout, self.add_zero_attn = module.dropout, module.add_zero_attn
        self.bias_k, self.bias_v = module.bias_k, module.bias_v
        packed = module.in_proj_weight
        parts = packed.chunk(3) if packed is not None else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        biases = module.in_proj_bias.chunk(3) if module.in_proj_bias is not None else (None, None, None)
        self.q_proj, self.k_proj, self.v_proj = (linear_on(w, b) for w, b in zip(parts, biases, strict=True))
        self.out_proj = linear_on(module.out_proj.weight, module.out_proj.bias)
        self.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`."""
        flat = query.dim() == 2
        if flat:
            query, key, value = query[None], key[None], value[None]
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([t, b.expand(t.shape[0], 1, -1)], 1) for t, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(t.shape[0], 1, t.shape[2])], 1) for t in (k, v))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        if need_weights:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            out = F.dropout(weights, self.dropout, self.training) @ v
        else:
            weights = None
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        out = out[0] if flat else out if self.batch_first else out.transpose(0, 1)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights[0] if flat else weights
        return out, weights

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores, `batch head query key`, or None."""
        found: Tensor | None = None
        for mask, shape in ((attn_mask, None), (padding, (-1, 1, 1, padding.shape[-1] if padding is not None else 0))):
            if mask is None:
                continue
            added = q.new_zeros(mask.shape).masked_fill_(mask, float("-inf")) if mask.dtype == torch.bool else mask.to(q.dtype)
            if shape is not None:
                added = added.reshape(shape)
            elif added.dim() == 3:
                added = added.unflatten(0, (-1, self.num_heads))
            missing = k.shape[2] - added.shape[-1]
            added = F.pad(added, (0, missing)) if missing else added
            found = added if found is None else found + added
        return found


def linear_on(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer on given weights, which stay views of what they were."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # pyright: ignore[reportAttributeAccessIssue]
    return layer
