"""A network as a list of products: run it once, see what it multiplies.

A product with a weight is a matrix of K inputs and N outputs that meets a number of vectors in one inference; a convolution's vectors are
its positions, its K inputs the weights of one filter. For any weight

    vectors = multiply-accumulates / weights

which also holds for experts of which each token takes a few (a fraction of a vector for each) and for layers that run more than once.
Products of activations (attention) have no weight to lie on a tile. Look-ups (embeddings), norms and activation functions multiply no
matrices: their energy is that of the buffers between layers and one addition for each output (`model`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.core.modules import evaluating
from lessen.errors import LessenError, UsageError
from lessen.targets.profile import Use, profile

Kind = Literal["linear", "convolution", "depthwise", "experts", "products"]


@dataclass(frozen=True)
class LayerShape:
    """One product of a network.

    Attributes:
        name: of the module that holds the weight, or in which activations are multiplied.
        kind: "products" has no weight; "experts" are several matrices of which a token takes some.
        inputs: K, of one group.
        outputs: N, of one group.
        groups: independent matrices.
        vectors: that each group meets in one inference; a fraction for experts.
        reads: activations that the layer takes in one inference, each counted once.
        weight: name of the parameter; None for products.
    """

    name: str
    kind: Kind
    inputs: int
    outputs: int
    groups: int
    vectors: float
    reads: float
    weight: str | None = None

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.groups) < 1 or not 0 <= self.vectors < float("inf"):
            got = f"{self.groups} groups of {self.inputs} x {self.outputs}, {self.vectors:g} vectors"
            raise UsageError(f"shape of {self.name}", got=got, wanted="at least one input, output and group")

    @property
    def weights(self) -> int:
        """Entries of the matrices; 0 for products."""
        return 0 if self.kind == "products" else self.groups * self.inputs * self.outputs

    @property
    def macs(self) -> float:
        """Multiply-accumulates of one inference."""
        return self.vectors * self.groups * self.inputs * self.outputs

    @property
    def results(self) -> float:
        """Outputs of one inference."""
        return self.vectors * self.groups * self.outputs


def layers(model: nn.Module, run: Callable[[], Any], inferences: float = 1) -> list[LayerShape]:
    """The products of a model, in the order in which they run.

    Args:
        model: the network, digital.
        run: runs it once.
        inferences: that one run is: the size of its batch, or its tokens if the cost of a token is wanted.

    Raises:
        LessenError: nothing was multiplied.
    """
    if not inferences > 0:
        raise UsageError("layers", got=f"inferences={inferences}", wanted="a number above 0")
    with evaluating(model), _slow_attention():
        uses = profile(model, run)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, LayerShape] = {}
    for use in uses:
        shape = _weighted(use, shapes) if use.weight is not None else _products(use)
        if use.weight is not None and every.get(f"{use.module}.weight") is every[use.weight]:
            shape = replace(shape, name=use.module)  # a head that shares its weight with the token table goes by its own name
        before = found.get(shape.weight or f"{shape.name}()")
        if before is not None:  # for products of other sizes in one module, as many vectors as make the same work
            vectors = shape.macs / (before.groups * before.inputs * before.outputs)
            shape = replace(before, vectors=before.vectors + vectors, reads=before.reads + shape.reads)
        found[shape.weight or f"{shape.name}()"] = shape
    if not found:
        raise LessenError("layers", got="a forward without a product", wanted="a network that multiplies matrices")
    return [replace(s, vectors=s.vectors / inferences, reads=s.reads / inferences) for s in found.values()]


@contextmanager
def _slow_attention() -> Iterator[None]:
    """torch's attention module in evaluation is one operation in which no product can be seen; for the while it is several."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def language_layers(model: nn.Module, context: int) -> tuple[list[LayerShape], list[LayerShape]]:
    """The products of a language model: of a whole prompt, and of one token generated after it.

    Args:
        model: takes `input_ids`, gives `past_key_values` (transformers).
        context: tokens of the prompt.

    Raises:
        LessenError: the model keeps no past, so a token costs what its whole context costs.
    """
    if context < 1:
        raise UsageError("language_layers", got=f"context={context}", wanted="at least one token")
    device = next(model.parameters()).device
    tokens = torch.zeros(1, context, dtype=torch.long, device=device)
    with torch.no_grad(), evaluating(model):
        past = getattr(model(input_ids=tokens, use_cache=True), "past_key_values", None)
    if past is None:
        raise LessenError("language_layers", got="a model without past_key_values", wanted="one that keeps them", remedy="use layers()")
    prompt = layers(model, lambda: model(input_ids=tokens, use_cache=True))
    return prompt, layers(model, lambda: model(input_ids=tokens[:, :1], past_key_values=past, use_cache=True))


def loaded(model: nn.Module, shapes: Iterable[LayerShape]) -> dict[str, Tensor]:
    """The weights of layers, one matrix below the other: `(group output) input` by the layer's name.

    Packed experts are left out: their parameters are laid out in other ways.
    """
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for shape in shapes:
        if shape.weight is None or shape.kind == "experts":
            continue
        weight = parameters[shape.weight].detach().flatten(1)
        if weight.shape == (shape.inputs, shape.outputs) and weight.shape != (shape.outputs, shape.inputs):
            weight = weight.T  # stored `in out`
        if weight.shape == (shape.groups * shape.outputs, shape.inputs):
            found[shape.name] = weight
    return found


def _weighted(use: Use, shapes: dict[str, tuple[int, ...]]) -> LayerShape:
    weight = use.weight or ""
    stored, name = shapes[weight], weight.removesuffix(".weight")
    vectors, reads = use.macs / prod(stored), float(prod(use.shapes[0]))
    if use.op == "convolution":
        transposed, groups = bool(use.settings[3]), int(use.settings[5])
        if transposed:  # every input position meets all taps
            inputs, outputs = stored[0] // groups, prod(stored[1:])
        else:
            inputs, outputs = prod(stored[1:]), stored[0] // groups
        kind: Kind = "depthwise" if groups > 1 and stored[0] == groups else "convolution"
        return LayerShape(name, kind, inputs, outputs, groups, vectors, reads, weight)
    inputs = use.shapes[0][-1] if use.op == "matmul" else _contracted(use, stored)
    groups = stored[0] if len(stored) == 3 else 1
    kind = "linear" if groups == 1 else "experts"
    return LayerShape(name, kind, inputs, prod(stored) // (groups * inputs), groups, vectors, reads, weight)


def _contracted(use: Use, stored: tuple[int, ...]) -> int:
    """The dimension that a batched product sums over, of the operand that is the weight."""
    first, second = use.shapes
    return second[1] if prod(second) == prod(stored) else first[2]


def _products(use: Use) -> LayerShape:
    """A product of activations, as vectors that meet matrices made for the moment."""
    if use.op == "attention":
        queries, keys = use.shapes
        rows = prod(queries[:-1])
        inputs = keys[-2]
        outputs = max(use.macs // (rows * inputs), 1)
        reads = prod(queries) + 2 * prod(keys)
    else:
        first, second = use.shapes[0], use.shapes[-1]
        inputs, outputs = first[-1], second[-1] if second[-2] == first[-1] else second[-2]
        rows, reads = use.macs // (inputs * outputs), prod(first) + prod(second)
    return LayerShape(f"{use.module}", "products", inputs, outputs, 1, use.macs / (inputs * outputs), float(reads))
