"""ROMER: experts that noise starves are replaced, and routers are told what noise has made of their inputs.

Errors of the tiles before a router move the hidden states that it reads. Tokens go to experts that are not theirs, some experts get many,
others few. Two corrections after programming, both from calibration data and neither by training:

    replace      an expert that gets less than `starved` of an even share becomes a copy of one of the most frequent experts
    percentile   the logits l_e of an expert get the percentiles that they have without the chip:
                 l' = a l + b,   a = (p95 - p5 clean) / (p95 - p5 noisy),   b = p50 clean - a p50 noisy
    regression   the router's rows become those with which the noisy states give the clean logits best (ours):
                 argmin_G sum over tokens |G h' - G0 h|^2 + ridge |G - G0|^2      h, h' the states of one token, clean and on the chip

A router has no bias, so b is added along the mean state m: G' = a G + b m^T / |m|^2 gives b to an average token. Percentiles see only
the distribution of an expert's logits: they mend a router whose logits have shifted or shrunk as a whole. Regression has token by token
what the router should have said, and also mends errors that differ from token to token as far as they are linear in the state. It is
the default because it is what helps: on a small mixture with 20 % error of writing, percentiles left what four chips cost where it
was and sent fewer tokens to their experts, since nothing had shifted there as a whole; regression lowered the loss on every chip.
Replacing starved experts changed nothing there either. The paper's gains are on models that this was not tried on.

Layers are corrected one after the other, since each moves what the next one reads. All decisions are edits; `act` carries them out on the
network that was mapped and programs it again.

Paper: Zhou et al. 2026, ROMER, https://arxiv.org/abs/2605.11800 (abstract: replacement of under-activated by high-frequency experts,
percentile-based normalisation of router logits). The percentiles, the threshold and what stands in for the bias are ours.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.analog.mapping import Mapped
from lessen.analog.tiles.experts import AnalogRouter, is_pack, is_router
from lessen.core.apply import apply
from lessen.core.edit import Edit, Replace
from lessen.core.modules import evaluating, heard
from lessen.core.strict import check_fields
from lessen.errors import LessenError, UsageError

_ENDS = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Routed:
    """What a router read and said, for every token.

    Attributes:
        states: "token dim".
        logits: "token expert".
        chosen: "token choice".
    """

    states: Tensor
    logits: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class ROMER:
    """Correct the routing of a mixture of experts on one chip instance."""

    router: Literal["percentile", "regression", "none"] = "regression"
    """How routers are corrected; `percentile` is the paper's idea, `regression` ours."""
    starved: float = 0.25
    """Replace experts that get less than this part of an even share of the tokens; 0 replaces none."""
    ridge: float = 0.1
    """Pull of `regression` towards the router as it is, in parts of the mean power of a state's features."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not (0 <= self.starved < 1 and self.ridge > 0):
            raise UsageError("ROMER", got=f"starved={self.starved}, ridge={self.ridge}", wanted="a share in [0, 1) and a ridge above 0")

    def act(
        self, model: nn.Module, mapped: Mapped, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None
    ) -> list[Edit]:
        """Correct a programmed network, in place, and program it again.

        Args:
            model: what was mapped; its weights change (map a copy to keep them).
            mapped: on the chip instance that is programmed; routers digital.
            batches: calibration data.
            run: how a model is called with a batch.

        Returns:
            The edits that were carried out.
        """
        if mapped.seed is None or mapped.seconds is None:
            raise UsageError("ROMER", got="a chip that is not programmed", wanted="program(seed) first")
        batches, call = list(batches), run or _run
        routers = {name: module for name, module in model.named_modules() if is_router(module)}
        if not routers:
            raise UsageError("ROMER", got="no router", wanted="a mixture of experts with one matrix that chooses, `top_k` of them")
        for name in routers:
            if isinstance(mapped.model.get_submodule(name), AnalogRouter):
                raise UsageError(f"router {name}", got="a router on tiles", wanted="a digital one", remedy=f"map(..., split=({name!r},))")
        clean = listen_to(model, list(routers), batches, call)
        done: list[Edit] = []
        for name in routers:
            for decide in (self._replaced, self._corrected):
                edits = decide(model, name, clean[name], listen_to(mapped.model, [name], batches, call)[name])
                if edits:
                    apply(model, edits)
                    mapped.at(mapped.seconds)
                    done += edits
        return done

    def _replaced(self, model: nn.Module, name: str, clean: Routed, noisy: Routed) -> list[Edit]:
        """Copies of frequent experts for the starved ones."""
        count = noisy.logits.shape[1]
        tokens = torch.bincount(noisy.chosen.flatten(), minlength=count).float()
        starved = (tokens < self.starved * tokens.mean()).nonzero()[:, 0]
        if not len(starved):
            return []
        hot = tokens.argsort(descending=True)[: len(starved)]
        edits: list[Edit] = []
        for key, pack in _pack(model, name).named_parameters(recurse=False):
            changed = pack.detach().clone()
            changed[starved] = changed[hot]
            edits.append(Replace(f"{_pack_name(model, name)}.{key}", changed))
        return edits

    def _corrected(self, model: nn.Module, name: str, clean: Routed, noisy: Routed) -> list[Edit]:
        """Another matrix for the router."""
        gate = model.get_submodule(name).get_parameter("weight").detach()
        if self.router == "none":
            return []
        if self.router == "percentile":
            ends = torch.tensor(_ENDS, dtype=gate.dtype)
            (low, middle, high), (low_now, middle_now, high_now) = (torch.quantile(r.logits, ends, dim=0) for r in (clean, noisy))
            scale = (high - low) / (high_now - low_now).clamp(min=1e-12)
            mean = noisy.states.mean(0)
            shift = (middle - scale * middle_now)[:, None] * mean / mean.square().sum().clamp(min=1e-30)
            return [Replace(f"{name}.weight", scale[:, None] * gate + shift)]
        states = noisy.states.double()
        gram = states.t() @ states
        pull = self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        found = torch.linalg.solve(gram + pull, states.t() @ clean.logits.double() + pull @ gate.t().double()).t()
        return [Replace(f"{name}.weight", found.to(gate).contiguous())]


def listen_to(model: nn.Module, routers: list[str], batches: list[Any], run: Callable[[nn.Module, Any], Any]) -> dict[str, Routed]:
    """What routers read and say; they return (logits, weights, choice), as those of transformers do."""
    found: dict[str, list[Routed]] = {}

    def hear(name: str, args: tuple[Any, ...], output: Any) -> None:
        if not (isinstance(output, tuple) and len(output) == 3 and output[0].dim() == 2):
            raise LessenError(f"router {name}", got=f"an output of type {type(output).__name__}", wanted="(logits, weights, choice)")
        found.setdefault(name, []).append(Routed(args[0].detach().reshape(-1, args[0].shape[-1]), output[0].detach(), output[2]))

    with torch.no_grad(), evaluating(model), heard({name: model.get_submodule(name) for name in routers}, hear):
        for batch in batches:
            run(model, batch)
    if missing := [name for name in routers if name not in found]:
        raise UsageError(f"calibration of {missing[0]}", got="no input", wanted="data that reaches the router")
    return {
        name: Routed(torch.cat([r.states for r in seen]), torch.cat([r.logits for r in seen]), torch.cat([r.chosen for r in seen]))
        for name, seen in found.items()
    }


def _pack_name(model: nn.Module, router: str) -> str:
    """The pack of experts beside a router."""
    parent = router.rpartition(".")[0]
    for name, module in model.get_submodule(parent).named_children():
        if is_pack(module):
            return f"{parent}.{name}"
    raise UsageError(f"router {router}", got="no pack of experts beside it", wanted="one of the layout of transformers", remedy="starved=0")


def _pack(model: nn.Module, router: str) -> nn.Module:
    return model.get_submodule(_pack_name(model, router))


def _run(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(batch)
