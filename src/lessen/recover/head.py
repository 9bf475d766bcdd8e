"""Losses on the logits of a large vocabulary without ever holding the logits.

A batch of 8,192 tokens at a vocabulary of 49,152 has 1.6 GB of logits, and student, teacher, probabilities and gradients are five of
them. Logits are a product of hidden states "token dim" with the head "vocab dim", and a loss per token needs only its own row. So the
head is applied to a few hundred tokens at a time, the gradient of those rows is taken on the spot, and what stays is the gradient of the
hidden states and of the head: as many multiplications as usual, memory for one piece.

    loss = sum over pieces L(H_i W^T)        dH_i = dL/dlogits W        dW = sum dL/dlogits^T H_i

Idea: Hsu et al. 2024, Liger Kernel, https://arxiv.org/abs/2410.10989 (section 3.2, fused linear cross-entropy).
Ours: any loss per token, both models at once, and a proof instead of a list of architectures: `Head.of` compares the model's own logits
with those of its head alone, and a model that does more to them (soft caps, scales) is answered with None.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 128  # tokens at a time: their logits stay near a processor's cache, and a product of them runs at full speed


class Head:
    """The output projection of a language model, kept from multiplying while `skipped`.

    Attributes:
        linear: the projection.
    """

    def __init__(self, linear: nn.Linear):
        self.linear = linear

    @classmethod
    def of(cls, model: nn.Module, call: Callable[[nn.Module], Tensor]) -> "Head | None":
        """The head of a model whose logits are the head's output and nothing else; None if there is no such head.

        Args:
            model: a Hugging Face causal LM, or any module with `get_output_embeddings`.
            call: runs a model on a small batch and returns its logits.
        """
        get = getattr(model, "get_output_embeddings", None)
        linear = get() if callable(get) else None
        if not isinstance(linear, nn.Linear):
            return None
        head = cls(linear)
        with torch.no_grad():
            whole = call(model)
            with head.skipped():
                hidden = call(model)
            same = hidden.shape[:-1] == whole.shape[:-1] and hidden.shape[-1] == linear.in_features
            return head if same and torch.equal(linear(hidden), whole) else None

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Meanwhile the model returns hidden states where its logits would be."""
        object.__setattr__(self.linear, "forward", lambda hidden: hidden)
        try:
            yield
        finally:
            object.__delattr__(self.linear, "forward")


def lowered(tensor: Tensor | None) -> Tensor | None:
    """The tensor in the type that autocast would give it to a product, so that it is rounded once and not for every piece."""
    if tensor is None or tensor.dtype != torch.float32 or not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.detach().to(torch.get_autocast_dtype(tensor.device.type))


def per_piece(loss: Callable[..., Tensor], hidden: Tensor, linear: nn.Linear, others: Sequence[Tensor], rows: int = ROWS) -> Tensor:
    """The sum of a loss over tokens, differentiable in the hidden states and the head.

    Args:
        loss: `(logits "row vocab", *rows of others) -> sum over the rows`, a scalar.
        hidden: "token dim".
        linear: makes the logits.
        others: what else the loss needs, cut along the first axis with the hidden states; not differentiated.
        rows: tokens at a time.
    """
    weight, bias = linear.weight, linear.bias
    if not torch.is_grad_enabled():
        pieces = [slice(start, start + rows) for start in range(0, len(hidden), rows)]
        low = lowered(weight), lowered(bias)
        logits = (nn.functional.linear(hidden[p], *low) for p in pieces)  # pyright: ignore[reportArgumentType]
        return torch.stack([loss(x, *(other[p] for other in others)).float() for x, p in zip(logits, pieces, strict=True)]).sum()
    found: Tensor = _Pieces.apply(loss, rows, tuple(others), hidden, weight, bias)
    return found


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Any, rows: int, others: tuple[Tensor, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inputs: list[Any] = [hidden, weight, bias]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        grads: dict[int, Tensor] = {i: torch.zeros_like(inputs[i]) for i in wanted}
        total = hidden.new_zeros((), dtype=torch.float32)
        low = lowered(weight), lowered(bias)
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            with torch.enable_grad():
                cut: list[Any] = [hidden[piece], *low]
                leaves: list[Any] = [None if x is None else x.detach().requires_grad_(i in grads) for i, x in enumerate(cut)]
                value = loss(nn.functional.linear(leaves[0], leaves[1], leaves[2]), *(x[piece] for x in others))
                found = torch.autograd.grad(value, [leaves[i] for i in wanted]) if wanted else ()
            total += value.detach()
            for i, grad in zip(wanted, found, strict=True):
                if i == 0:
                    grads[i][piece] = grad
                else:
                    grads[i] += grad
        ctx.save_for_backward(*(grads.get(i) for i in range(3)))
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return (None, None, None, *(None if grad is None else grad * outer[0] for grad in ctx.saved_tensors))
