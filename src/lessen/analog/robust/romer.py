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
the default because it is what helps: on a small mixture of two blocks of eight experts, six chips with 20 % error of writing cost 0.434
nats on average; regression won 0.022 of them back (standard error 0.005 over the chips), percentiles 0.000 (0.001), since nothing had
shifted there as a whole, and replacing starved experts alone 0.000 (0.001). The paper's gains are on models that this was not tried on.

A correction belongs to one chip at one time, so it is made anew at every look, always from the clean weights:

    simulate(mapped, evaluate, adapt=ROMER().at_looks(batches))

What changes are the twin's own routers and experts; the model that was mapped keeps its weights. Layers are corrected one after the
other, since each moves what the next one reads. An expert that becomes a copy is written to its own tiles, with errors of its own.

Paper: Zhou et al. 2026, ROMER, https://arxiv.org/abs/2605.11800 (abstract: replacement of under-activated by high-frequency experts,
percentile-based normalisation of router logits). The percentiles, the threshold and what stands in for the bias are ours.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.analog.mapping import Mapped
from lessen.analog.tiles.execute import Ranges
from lessen.analog.tiles.experts import AnalogExperts, AnalogRouter, is_pack, is_router
from lessen.core.modules import evaluating, heard
from lessen.core.strict import check_fields
from lessen.errors import LessenError, UsageError
from lessen.recover.objective import call

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

    def at_looks(self, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] = call) -> "Rerouting":
        """What corrects a mapped network at every look, for `simulate(adapt=...)`.

        Args:
            batches: calibration data.
            run: how a model is called with a batch.
        """
        return Rerouting(self, list(batches), run)

    def check(self, model: nn.Module, routers: Iterable[str]) -> None:
        """Refuse routers without experts that can be replaced, if any are to be."""
        for name in routers if self.starved else ():
            _pack_name(model, name)

    def starving(self, noisy: Routed) -> dict[int, int]:
        """Starved experts, and the frequent ones of which each becomes a copy: the poorest that of the richest."""
        tokens = torch.bincount(noisy.chosen.flatten(), minlength=noisy.logits.shape[1]).float()
        order = tokens.argsort(stable=True).tolist()
        poor = [expert for expert in order if tokens[expert] < self.starved * tokens.mean()]
        return dict(zip(poor, reversed(order), strict=False))

    def corrected(self, gate: Tensor, clean: Routed, noisy: Routed) -> Tensor:
        """Another matrix "expert dim" for a router whose own is `gate`."""
        if self.router == "none":
            return gate
        if self.router == "percentile":
            ends = torch.tensor(_ENDS, dtype=gate.dtype)
            (low, middle, high), (low_now, middle_now, high_now) = (torch.quantile(r.logits, ends, dim=0) for r in (clean, noisy))
            scale = (high - low) / (high_now - low_now).clamp(min=1e-12)
            mean = noisy.states.mean(0)
            shift = (middle - scale * middle_now)[:, None] * mean / mean.square().sum().clamp(min=1e-30)
            return scale[:, None] * gate + shift
        states = noisy.states.double()
        gram = states.t() @ states
        pull = self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        return torch.linalg.solve(gram + pull, states.t() @ clean.logits.double() + pull @ gate.t().double()).t().to(gate).contiguous()


@dataclass
class _Clean:
    """A mapped network before any correction."""

    mapped: Mapped
    routed: dict[str, Routed]
    weights: dict[str, nn.Parameter]
    ranges: dict[str, Ranges]
    copied: bool = False


@dataclass(frozen=True)
class Rerouting:
    """ROMER at every look; called with the mapped network, which is programmed and has digital routers."""

    options: ROMER
    """What is corrected, and how."""
    batches: list[Any] = field(repr=False)
    """Calibration data."""
    run: Callable[[nn.Module, Any], Any] = field(default=call, repr=False)
    """How a model is called with a batch."""
    kept: list[_Clean] = field(default_factory=list, init=False, compare=False, repr=False)
    """Of the network that was corrected last."""

    def __call__(self, mapped: Mapped) -> dict[str, dict[int, int]]:
        """Correct what is programmed, from the clean weights.

        Returns:
            For each router the experts that were replaced, and of which each is a copy.
        """
        if mapped.seed is None or mapped.seconds is None:
            raise UsageError("ROMER", got="a chip that is not programmed", wanted="program(seed) first")
        self.undo(mapped)
        clean, copies = self._clean(mapped), {}
        with torch.no_grad():
            for name, was in clean.routed.items():
                copies[name] = self.options.starving(self._now(mapped, name))
                if copies[name]:
                    self._copy(clean, name, copies[name])
                router = mapped.model.get_submodule(name)
                gate = self.options.corrected(clean.weights[f"{name}.weight"].detach(), was, self._now(mapped, name))
                _exchange(router, "weight", gate)
        return copies

    def undo(self, mapped: Mapped) -> None:
        """Give a network that was corrected its clean weights again, as they were mapped."""
        if not self.kept or self.kept[0].mapped is not mapped:
            return
        clean = self.kept[0]
        for name, weight in clean.weights.items():
            owner, _, key = name.rpartition(".")
            mapped.model.get_submodule(owner)._parameters[key] = weight
        for name, ranges in clean.ranges.items():
            mapped.tiles(name).ranges = ranges
            mapped.tiles(name).before.clear()
        if clean.copied and mapped.seconds is not None:
            mapped.at(mapped.seconds)
            clean.copied = False

    def _clean(self, mapped: Mapped) -> _Clean:
        """What the network was before; kept, so that it is looked at once."""
        if not self.kept or self.kept[0].mapped is not mapped:
            routers = check_routers(mapped.model)
            weights = {f"{name}.weight": module.get_parameter("weight") for name, module in routers.items()}
            ranges: dict[str, Ranges] = {}
            for name in routers if self.options.starved else ():
                pack = _pack_name(mapped.model, name)
                weights |= {f"{pack}.{key}": p for key, p in mapped.model.get_submodule(pack).named_parameters()}
                ranges |= {layer: mapped.tiles(layer).ranges for layer in mapped.layers if layer.startswith(f"{pack}.")}
            with _digitally(mapped):
                routed = listen_to(mapped.model, list(routers), self.batches, self.run)
            self.kept[:] = [_Clean(mapped, routed, weights, ranges)]
        return self.kept[0]

    def _now(self, mapped: Mapped, name: str) -> Routed:
        return listen_to(mapped.model, [name], self.batches, self.run)[name]

    def _copy(self, clean: _Clean, router: str, copies: dict[int, int]) -> None:
        """Make experts copies of others, and write them to their tiles."""
        mapped, name = clean.mapped, _pack_name(clean.mapped.model, router)
        pack = mapped.model.get_submodule(name)
        if not isinstance(pack, AnalogExperts):  # digital: rows of its tensors
            for key, p in list(pack.named_parameters(recurse=False)):
                changed = p.detach().clone()
                changed[list(copies)] = p.detach()[list(copies.values())]
                _exchange(pack, key, changed)
            return
        for poor, rich in copies.items():
            for part in ("gate_up", "down"):
                weight = clean.weights[f"{name}.experts.{rich}.{part}.weight"]
                mapped.model.get_submodule(f"{name}.experts.{poor}.{part}")._parameters["weight"] = weight
                own, other = (f"{name}.experts.{expert}.{part}" for expert in (poor, rich))
                if own in mapped.layers:
                    mapped.tiles(own).ranges = clean.ranges.get(other, mapped.tiles(own).ranges)
                    mapped.tiles(own).before.clear()  # what it read when it was another expert
        clean.copied = True
        assert mapped.seconds is not None
        mapped.at(mapped.seconds)


def check_routers(model: nn.Module) -> dict[str, nn.Module]:
    """Routers by name, in the order of the model.

    Raises:
        UsageError: there are none, or one lies on tiles.
    """
    for name, module in model.named_modules():
        if isinstance(module, AnalogRouter):
            raise UsageError(f"router {name}", got="a router on tiles", wanted="a digital one", remedy=f"no +{name} in the split")
    if not (routers := {name: module for name, module in model.named_modules() if is_router(module)}):
        raise UsageError("ROMER", got="no router", wanted="a mixture of experts with one matrix that chooses, `top_k` of them")
    return routers


def _exchange(module: nn.Module, key: str, tensor: Tensor) -> None:
    """A parameter of the twin's own in the place of one that it shares."""
    module._parameters[key] = nn.Parameter(tensor, requires_grad=False)


@contextmanager
def _digitally(mapped: Mapped) -> Iterator[None]:
    """All layers on tiles compute without them for the while."""
    try:
        for name in mapped.layers:
            mapped.tiles(name).mode = "digital"
        yield
    finally:
        for name in mapped.layers:
            mapped.tiles(name).mode = "run"


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
        if is_pack(module) or isinstance(module, AnalogExperts):
            return f"{parent}.{name}"
    raise UsageError(f"router {router}", got="no pack of experts beside it", wanted="one of the layout of transformers", remedy="starved=0")
