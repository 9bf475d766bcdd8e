"""`lessen.evaluate`: name a model, get its figures on held-out text that it was not calibrated on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.event import Listener
from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError
from lessen.evaluate import texts
from lessen.evaluate.answers import Ref
from lessen.evaluate.language import Reference, named
from lessen.evaluate.language import evaluate as score
from lessen.models import open_checkpoint
from lessen.stats.text import Text

Source = str | Path | Text


@strict()
def evaluate(
    model: Ref,
    reference: Ref | Reference | None = None,
    text: Source | Sequence[Source] | Mapping[str, Tensor] | Tensor | None = None,
    *,
    windows: int | None = None,
    length: int | None = None,
    noise: bool = False,
    device: str = "cpu",
    on_event: Listener | None = None,
) -> dict[str, dict[str, Any]]:
    """Perplexity of a model, and its distance to the original, on each text.

    Args:
        model: what `lessen.open_checkpoint` takes (a directory, a GGUF file, a name, a module), a checkpoint, or a callable from
            tokens "batch seq" to logits "batch seq vocab".
        reference: the original: as `model`, or what `lessen.evaluate.language.prepare` gave. None measures perplexity alone.
        text: a text file, .jsonl file or directory, or several; or token windows "windows seq", by name. None takes the built-in
            texts: documentation and program text.
        windows: how many of each text at most; None takes 16, and 6 of the built-in code.
        length: tokens in a window; None takes 512, or the model's context if that is shorter.
        noise: measure the original's noise floor too (a prepared reference brings its own).
        device: where to compute.
        on_event: hears of every block and every scored window.

    Returns:
        For each text `ppl`, `nll`, `tokens`, `windows`, `window_tokens`, `sha256` of the token ids, `metrics_version`; with a
        reference also `ppl_reference`, `nll_reference`, `kld_mean`, `kld_median`, `kld_p90`, `kld_error`, `top1`; with noise
        `kld_noise` and `kld_noise_p90`. `notes`, where there are any: sentences for the user.

    Raises:
        UsageError: an unknown option, numbers or a device that make no sense. LessenError: a model or text that cannot be read,
            vocabularies that differ, or text that the model was calibrated on, as the `lessen.json` beside it says.
    """
    _check_numbers(windows, length)
    _check_device(device)
    known, doubts = texts.calibrated_on(model)
    model, reference = _opened(model), _opened(reference)
    if isinstance(reference, Reference) and text is None:
        held = texts.HeldOut(dict(reference.tokens))
    elif isinstance(text, Tensor | Mapping):
        if windows is not None or length is not None:
            raise UsageError("evaluate", got="windows or length beside token windows", wanted="one of the two", remedy="cut the windows")
        held = texts.HeldOut(dict(named(text)))
    else:
        sources = [text] if isinstance(text, str | Path | Text) else list(text or ())
        held = texts.read(_tokenizer(model, reference), sources, windows=windows, length=_length(length, model, reference))
    if known is not None:
        held = texts.apart(held, known, _tokenizer(model, reference))
    results = score(model, reference, held.tokens, noise=noise, device=device, on_event=on_event)
    notes = [*doubts, *held.notes]
    return {name: {**row, "notes": notes} if notes else row for name, row in results.items()}


def _check_numbers(windows: int | None, length: int | None) -> None:
    for name, value, least in (("windows", windows, 1), ("length", length, 2)):
        if value is not None and value < least:
            raise UsageError(name, got=str(value), wanted=f"at least {least}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError("device", got=f"{device!r} ({reason})", wanted="a device that torch can use here", remedy="leave it out") from None


def _opened(ref: Any) -> Any:
    """A checkpoint where a model is only named; everything else as it is."""
    if isinstance(ref, str | Path):
        return open_checkpoint(ref)
    if ref is None or callable(ref) or isinstance(ref, Reference) or hasattr(ref, "skeleton") or hasattr(ref, "logits"):
        return ref
    raise UsageError(
        "evaluate",
        got=f"a {type(ref).__name__} as model",
        wanted="a path or name, a module, a checkpoint, or a callable from tokens to logits",
    )


def _tokenizer(*models: Any) -> Any:
    """The tokenizer of the first model that has one."""
    reasons = []
    for model in models:
        checkpoint = open_checkpoint(model) if isinstance(model, nn.Module) else model
        if hasattr(checkpoint, "tokenizer"):
            try:
                return checkpoint.tokenizer()
            except LessenError as error:
                reasons.append(error)
    if reasons:
        raise reasons[0]
    raise UsageError(
        "evaluate", got="a model without a tokenizer", wanted="token windows", remedy="give text=windows, or name the model's directory"
    )


def _length(length: int | None, *models: Any) -> int:
    """Tokens in a window, within the context of the models."""
    contexts = [config.get("max_position_embeddings") or config.get("n_positions") for m in models if (config := _config(m))]
    context = min((int(c) for c in contexts if c), default=None)
    if length is None:
        return min(texts.WINDOW, context or texts.WINDOW)
    if context is not None and length > context:
        raise UsageError("length", got=str(length), wanted=f"at most {context}, the context of the model")
    return length


def _config(model: Any) -> Mapping[str, Any]:
    config: Any = getattr(model, "config", None)
    if isinstance(config, Mapping):
        return config
    return config.to_dict() if hasattr(config, "to_dict") else {}
