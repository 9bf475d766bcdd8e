"""Packs of experts of transformers with their matrices as layers of their own, so that they can lie on tiles.

transformers keeps the experts of a layer in two tensors, "expert out in", and multiplies by slices of them, where no module is called. Here
each expert has two linear layers on slices of those tensors; tokens, choice and weights are as the pack takes them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lessen.analog.attention import _linear


class AnalogExperts(nn.Module):
    """Takes the place of a pack of experts and shares its weights."""

    def __init__(self, module: Any):
        super().__init__()
        self.act_fn = module.act_fn
        pairs = zip(module.gate_up_proj, module.down_proj, strict=True)
        self.experts = nn.ModuleList([nn.ModuleDict({"gate_up": _linear(gate, None), "down": _linear(down, None)}) for gate, down in pairs])
        self.train(module.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens "token dim", the experts chosen for them and their weights "token choice": weighted sums of the experts' outputs."""
        found = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.experts):
            token, choice = torch.where(top_k_index == number)
            if not len(token):
                continue
            layers: Any = expert
            gate, up = layers["gate_up"](hidden_states[token]).chunk(2, -1)
            out = layers["down"](self.act_fn(gate) * up) * top_k_weights[token, choice, None]
            found.index_add_(0, token, out.to(found.dtype))
        return found


def is_pack(module: nn.Module) -> bool:
    """Whether a module is such a pack, in the layout that is understood: gate beside up, no biases, not transposed."""
    held = dict(module.named_parameters(recurse=False))
    plain = set(held) == {"gate_up_proj", "down_proj"} and all(p.dim() == 3 for p in held.values()) and hasattr(module, "act_fn")
    wanted = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True, "has_post_expert_norm": False}
    return plain and all(getattr(module, key, value) == value for key, value in wanted.items())
