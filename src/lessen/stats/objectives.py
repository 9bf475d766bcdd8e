"""What a model is asked to do with a batch: one loss, or several with names (a multi-task model).

Pruning by gradients needs a loss and nothing else of a model. Where the loss is a cross entropy, the function may hand over logits and
labels instead of a number (`Predicted`), so that a method can choose which predictions count (`TokenFilter`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.errors import LessenError

IGNORED = -100
"""The label that counts nowhere, as everywhere in PyTorch."""


@dataclass(frozen=True)
class Predicted:
    """Logits "... classes" and the labels "..." that they should have given; `IGNORED` labels do not count."""

    logits: Tensor
    labels: Tensor


Loss = Tensor | Predicted
Objective = Callable[[nn.Module, Any], "Loss | Mapping[str, Loss]"]
"""From a model and a batch to a loss, or to named losses."""


@dataclass(frozen=True)
class TokenFilter:
    """Keep the predictions that the model is unsure of: the gradient of what is known already says little.

        keep t  iff  p_t <= max(threshold, min over t of p_t)

    `by="top1"` takes p as the largest probability, `by="label"` that of the right answer. At least one prediction is always kept.

    >>> logits = torch.tensor([[5.0, 0.0], [0.2, 0.0], [0.0, 0.1]])
    >>> TokenFilter(0.6)(logits, torch.tensor([0, 0, 1])).tolist()
    [-100, 0, 1]
    """

    threshold: float = 0.4
    by: Literal["top1", "label"] = "top1"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labels with `IGNORED` where a prediction does not count; logits "... classes", labels "..."."""
        counted = labels != IGNORED
        if not bool(counted.any()):
            return labels
        probabilities = logits.detach().float().softmax(-1)
        right = labels.clamp_min(0)[..., None]
        sure = probabilities.amax(-1) if self.by == "top1" else probabilities.gather(-1, right)[..., 0]
        limit = max(self.threshold, float(sure[counted].min()))
        return labels.masked_fill(sure > limit, IGNORED)


def named(found: "Loss | Mapping[str, Loss]", keep: TokenFilter | None, where: str = "the loss function") -> dict[str, Tensor]:
    """Losses by name, as scalars.

    Raises:
        LessenError: not a scalar, or not a number.
    """
    losses = dict(found) if isinstance(found, Mapping) else {"loss": found}
    scalars = {name: _scalar(loss, keep) for name, loss in losses.items()}
    for name, loss in scalars.items():
        if loss.ndim or not bool(torch.isfinite(loss)):
            got = f"{name} of shape {tuple(loss.shape)}, value {loss.detach().flatten()[:1].tolist()}"
            raise LessenError(where, got=got, wanted="a finite scalar", remedy="look at the batch and the labels")
    if not scalars:
        raise LessenError(where, got="no loss", wanted="one at least")
    return scalars


def _scalar(loss: Loss, keep: TokenFilter | None) -> Tensor:
    if isinstance(loss, Tensor):
        return loss
    if not isinstance(loss, Predicted):
        wanted, remedy = "a tensor, or Predicted(logits, labels), or a mapping of these", "return what is to be minimised"
        raise LessenError("the loss function", got=f"a {type(loss).__name__}", wanted=wanted, remedy=remedy)
    labels = loss.labels if keep is None else keep(loss.logits, loss.labels)
    flat = loss.logits.reshape(-1, loss.logits.shape[-1])
    return F.cross_entropy(flat.float(), labels.reshape(-1).to(flat.device), ignore_index=IGNORED)


def default_objective(model: nn.Module, batch: Any) -> "Loss | Mapping[str, Loss]":
    """The loss that a batch speaks of by itself.

        token ids "batch seq"            the next token
        a dict with labels               what the model predicts for them; shifted by one for models that write from left to right
        a dict without labels            the next token of input_ids, padding not counted
        (input, integer labels)          cross entropy; classes on the last axis of "batch classes", on axis 1 beyond that
        (input, real target)             mean squared error

    Raises:
        LessenError: a batch of another kind.
    """
    if isinstance(batch, Tensor) and not batch.is_floating_point() and batch.ndim == 2:
        return Predicted(answer_of(model(batch))[:, :-1], batch[:, 1:])
    if isinstance(batch, Mapping):
        return _from_mapping(model, batch)
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        output, target = answer_of(model(batch[0])), batch[1]
        if target.is_floating_point():
            return F.mse_loss(output, target)
        return Predicted(output.movedim(1, -1), target)
    got = f"a batch of type {type(batch).__name__}"
    raise LessenError(
        "batches", got=got, wanted="token ids, a dict or (input, target)", remedy="pass losses=, which turns a batch into a loss"
    )


def forward(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch for what passes through it, for which no loss is needed.

    Args:
        model: any module.
        batch: what `default_objective` takes, or a mapping of keyword arguments, or the model's input alone; targets are left out.

    Raises:
        LessenError: a batch of another kind.
    """
    if isinstance(batch, Mapping):
        fed = {key: value for key, value in batch.items() if key != "labels" or _made_from_labels(model, batch)}
        return model(**fed)
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return model(batch[0])
    if isinstance(batch, Tensor):
        return model(batch)
    return default_objective(model, batch)


def _made_from_labels(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether the decoder's input is made of the labels."""
    return "decoder_input_ids" not in batch and bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _from_mapping(model: nn.Module, batch: Mapping[str, Any]) -> Loss:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    labels = batch.get("labels")
    writes = getattr(getattr(model, "config", None), "is_encoder_decoder", False) is False and _can_generate(model)
    if labels is None:
        if not writes or "input_ids" not in batch:
            raise LessenError("batches", got="a dict without labels", wanted="labels", remedy="add labels, or pass losses=")
        labels = batch["input_ids"]
        if (mask := batch.get("attention_mask")) is not None and mask.shape == labels.shape:
            labels = labels.masked_fill(mask == 0, IGNORED)
    if not writes and not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        output = model(**batch)
        if getattr(output, "loss", None) is None:
            raise LessenError(type(model).__name__, got="no loss for these labels", wanted="one", remedy="pass losses=")
        return output.loss
    if not writes:
        return Predicted(answer_of(model(**inputs, labels=labels)), labels)
    logits = answer_of(model(**inputs))
    # Models that put image tokens before the text return more logits than there are labels: the labels belong to the last ones.
    return Predicted(logits[:, -labels.shape[1] :][:, :-1], labels[:, 1:])


def _can_generate(model: nn.Module) -> bool:
    able = getattr(model, "can_generate", None)
    return bool(able()) if callable(able) else False


def answer_of(output: Any) -> Tensor:
    """The tensor that a target is compared with, logits or not: what a model returns, its field `logits`, or its first part."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]
