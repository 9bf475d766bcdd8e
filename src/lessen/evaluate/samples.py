"""What the model writes, before and after: a few short continuations, for the eyes.

Greedy by default: the same prompt gives the same text on every run, and the first token where the two models part is theirs, not chance.
A chat model is asked in its own chat format. Samples show kinds of damage (repetition, broken words, lost facts) that no mean shows,
and prove nothing: the figures do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.event import Event, Listener
from lessen.models.checkpoint import Checkpoint

PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write the beginning of a story about a small robot.",
)


def samples(
    before: "Checkpoint | str | Path | nn.Module",
    after: "Checkpoint | str | Path | nn.Module",
    prompts: Sequence[str] = PROMPTS,
    *,
    new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    on_event: Listener | None = None,
) -> list[dict[str, str]]:
    """Continue each prompt with both models.

    Args:
        before: the original: a checkpoint, what `open_checkpoint` takes, or a module together with a checkpoint as `after`.
        after: the compressed model, likewise.
        prompts: plain text; put into the chat template if the tokenizer has one.
        new_tokens: how much to write at most.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        seed: of the draws, the same for both models.
        on_event: hears of every continuation.

    Returns:
        One row for each prompt: `prompt`, `before`, `after`.
    """
    texts: list[list[str]] = []
    for model in (before, after):
        checkpoint = _opened(model)
        tokenizer, module = checkpoint.tokenizer(), _module(checkpoint)
        texts.append([])
        for prompt in prompts:
            ids = continuation(module, encode(tokenizer, prompt), new_tokens, _ends(tokenizer, module), temperature, seed)
            texts[-1].append(tokenizer.decode(ids, skip_special_tokens=True))
            if on_event:
                on_event(Event("samples", sum(map(len, texts)), 2 * len(prompts)))
        del module  # one model in memory at a time
    return [{"prompt": p, "before": a, "after": b} for p, a, b in zip(prompts, *texts, strict=True)]


def encode(tokenizer: Any, prompt: str) -> Tensor:
    """Token ids of a prompt, "1 seq": as a user's turn if the tokenizer has a chat template, else as text to go on with."""
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        return torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    return torch.tensor([tokenizer.encode(prompt)])


@torch.inference_mode()
def continuation(
    module: nn.Module, ids: Tensor, new_tokens: int, ends: frozenset[int] = frozenset(), temperature: float = 0.0, seed: int = 0
) -> list[int]:
    """Token ids that a model appends to a prompt, until one of `ends` or `new_tokens` of them.

    Args:
        module: a Hugging Face causal LM.
        ids: "1 seq".
        new_tokens: how many at most.
        ends: tokens that end the text; they are not returned.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        seed: of the draws.
    """
    random = torch.Generator().manual_seed(seed)
    written: list[int] = []
    past = None
    while len(written) < new_tokens:
        out = module(input_ids=ids, past_key_values=past, use_cache=True)
        past, logits = out.past_key_values, out.logits[0, -1].float()
        token = (
            int(logits.argmax()) if temperature <= 0 else int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=random))
        )
        if token in ends:
            break
        written.append(token)
        ids = torch.tensor([[token]])
    return written


def _opened(model: Any) -> Checkpoint:
    from lessen.models import open_checkpoint

    return open_checkpoint(model) if isinstance(model, str | Path | nn.Module) else model


def _module(checkpoint: Checkpoint) -> nn.Module:
    from lessen.models.skeleton import fill

    return fill(checkpoint.skeleton(), checkpoint, torch.float32)


def _ends(tokenizer: Any, module: nn.Module) -> frozenset[int]:
    """Tokens that end a text: the tokenizer's, and those of the generation config."""
    listed = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    return frozenset(token for token in found if token is not None)
