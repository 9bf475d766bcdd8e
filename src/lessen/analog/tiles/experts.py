"""Experts and routers of transformers with their matrices as layers of their own, so that they can lie on tiles.

transformers keeps the experts of a layer in two tensors, "expert out in", and multiplies by slices of them, where no module is called. Here
each expert has two linear layers on slices of those tensors; tokens, choice and weights are as the pack takes them.

A router multiplies by its weight itself and then does what differs from family to family (softmax, sigmoid, groups, corrections). Its own
code runs, and the one product with its weight is handed to a layer.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lessen.analog.tiles.attention import linear_on


class AnalogExperts(nn.Module):
    """Takes the place of a pack of experts and shares its weights."""

    def __init__(self, module: Any):
        super().__init__()
        self.act_fn = module.act_fn
        pairs = zip(module.gate_up_proj, module.down_proj, strict=True)
        self.experts = nn.ModuleList(
            [nn.ModuleDict({"gate_up": linear_on(gate, None), "down": linear_on(down, None)}) for gate, down in pairs]
        )
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


class AnalogRouter(nn.Module):
    """Takes the place of a router and shares its weight: `inner` is the router, `scores` its product."""

    def __init__(self, module: nn.Module):
        super().__init__()
        weight = module.get_parameter("weight")
        self.scores = linear_on(weight, None)
        self.scores.weight = weight
        self.inner = copy.copy(module)
        self.inner._parameters = dict(module._parameters)
        self.inner._parameters["weight"] = nn.Parameter(weight.detach()[:0], requires_grad=False)  # a mark; nothing is computed with it
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the router."""
        with _Handed(self.inner.get_parameter("weight"), self.scores):
            return self.inner(*args, **kwargs)


class _Handed(TorchFunctionMode):
    """While it lasts, products with one weight are computed by a layer."""

    def __init__(self, weight: Tensor, layer: nn.Module):
        super().__init__()
        self.weight, self.layer = weight, layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is F.linear and (args[1] if len(args) > 1 else named.get("weight")) is self.weight:
            with torch._C.DisableTorchFunction():
                return self.layer(args[0])
        return func(*args, **named)


def is_router(module: nn.Module) -> bool:
    """Whether a module chooses experts by one matrix of its own, "expert in"."""
    held = dict(module.named_parameters())
    return set(held) == {"weight"} and held["weight"].dim() == 2 and hasattr(module, "top_k")


def routers_of(model: nn.Module) -> set[str]:
    """Names of what chooses among experts: routers with a matrix of their own, linear layers called `gate` or `router` beside experts."""
    found = set()
    for name, module in model.named_modules():
        if is_router(module):
            found.add(name)
        elif hasattr(module, "experts"):
            beside = {child: part for child in ("gate", "router") if isinstance(part := getattr(module, child, None), nn.Linear)}
            found |= {f"{name}.{child}" if name else child for child in beside}
    return found


def siblings(name: str, layers: Iterable[str]) -> list[str]:
    """The same matrix of the other experts of a layer; none if it is no expert's.

    >>> siblings("mlp.experts.3.up", ["mlp.experts.3.up", "mlp.experts.4.up", "mlp.experts.4.down", "mlp.gate"])
    ['mlp.experts.4.up']
    """
    parts = name.split(".")
    places = [i for i in range(len(parts) - 1) if parts[i] == "experts" and parts[i + 1].isdigit()]
    if not places:
        return []
    place = places[-1] + 1

    def alike(other: str) -> bool:
        theirs = other.split(".")
        return len(theirs) == len(parts) and theirs[place].isdigit() and [*theirs[:place], *theirs[place + 1 :]] == rest

    rest = [*parts[:place], *parts[place + 1 :]]
    return [other for other in layers if other != name and alike(other)]
