"""Calibration text that the model writes itself.

A text of one kind shows a model one corner of its input space, and error feedback fitted to that corner spends itself badly
everywhere else. What a model writes when nothing is asked of it follows the mixture that it was trained on, so a Gram matrix that is
half such text holds for kinds of text that the user has not thought of. Measured on SmolLM2 at 4 bits, groups of 64: with half of the
16k tokens written by the model, the KL on far text is well below that of calibration on documentation alone, at nearly the same KL on
near text (`python -m benchmarks llm_quant`).

Sequences start from the tokenizer's own document marks and are sampled at temperature 1 without truncation: any cut would make the text
more regular than the distribution that it is to stand for.

Paper: Liu et al. 2023, LLM-QAT, https://arxiv.org/abs/2305.17888 (section 3.1, data-free training on generated text); Williams et al.
2024, Self-calibration for language model quantization and pruning, https://arxiv.org/abs/2410.17170.
Ours: many short sequences, joined in pairs, which costs a quarter of few long ones; sampling from the first token on.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.event import Event, Listener
from lessen.models.checkpoint import Checkpoint
from lessen.models.skeleton import fill

BATCH = 64


def starts(tokenizer: Any) -> list[int]:
    """The tokenizer's document marks: beginning, end, unknown (which several tokenizers use as a separator), each once."""
    marks = (getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "unk"))
    return list(dict.fromkeys(mark for mark in marks if mark is not None)) or [0]


def written_by(checkpoint: Checkpoint, count: int, length: int, seed: int, *, pieces: int = 2, on_event: Listener | None = None) -> Tensor:
    """Windows of text sampled from a model. The whole model is in memory meanwhile.

    Args:
        checkpoint: the model.
        count: number of windows.
        length: tokens in each.
        seed: of the sampling.
        pieces: sequences to a window; more of them are shorter and cost less.
        on_event: hears of progress.

    Returns:
        int64, "count length".
    """
    model = fill(checkpoint.skeleton(), checkpoint, torch.float32)
    random = torch.Generator().manual_seed(seed)
    each = -(-length // pieces)
    marks = torch.tensor(starts(checkpoint.tokenizer()))
    first = marks.repeat(-(-count * pieces // len(marks)))[: count * pieces]
    rows = [sample(model, part[:, None], each, random, on_event) for part in first.split(BATCH)]
    return torch.cat(rows).reshape(count, each * pieces)[:, :length].contiguous()


def sample(model: nn.Module, tokens: Tensor, length: int, random: torch.Generator, on_event: Listener | None = None) -> Tensor:
    """Continue every row to `length` tokens at temperature 1.

    Args:
        model: a Hugging Face causal LM.
        tokens: int64, "batch seq".
        length: tokens in each row at the end.
        random: source of randomness.
        on_event: hears of every 64th token.

    Returns:
        int64, "batch length".
    """
    out, cache = [tokens], None
    with torch.no_grad():
        for step in range(tokens.shape[1], length):
            answer = model(input_ids=out[-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = answer.past_key_values
            out.append(torch.multinomial(torch.softmax(answer.logits[:, -1].float(), -1), 1, generator=random))
            if on_event and step % 64 == 0:
                on_event(Event("calibrate", step, length, "the model writes half of its calibration text"))
    return torch.cat(out, 1)
