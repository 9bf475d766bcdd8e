"""A captioner of the LLaVA kind: a vision tower, a two-layer projector, and a causal language model that reads pictures as tokens.

    image -> tower -> "batch dim h w" -> mean over cells -> "batch cell dim" -> projector -> "batch cell width" -+
    text  -> token table ---------------------------------------------------------------> "batch seq width" -+-> language model -> logits

The pictures come first, so a causal model lets every word look at them, and only positions of text are asked for logits.

Tower and language model are ready-made; only the projector ties them together, and where nobody has published one for a pair of models
it must be trained. Such a captioner is *project-trained*: it is a reference network for compression, no pretrained vision-language model.

Both towers stay plain modules under the names `vision` and `language`, so that a method can tell modalities by name.
Paper: Liu et al. 2023, Visual Instruction Tuning, https://arxiv.org/abs/2304.08485 (section 4.1); the two-layer projector is LLaVA-1.5's,
https://arxiv.org/abs/2310.03744. Left out: its two stages of training on instructions; ours learns captions alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.errors import LessenError

IGNORED = -100
"""Label of a token that is not learned."""


class Projector(nn.Module):
    """Features of a cell to the width of the language model: norm, linear, GELU, linear. "batch cell dim" to "batch cell width"."""

    def __init__(self, dim: int, width: int, hidden: int | None = None):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, hidden or width)
        self.narrow = nn.Linear(hidden or width, width)

    def forward(self, cells: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.widen(self.norm(cells))))


class Captioner(nn.Module):
    """Pixels and the tokens so far to logits of the next tokens.

    Args:
        vision: gives a map "batch dim h w", tokens "batch cell dim", or a transformers output with `last_hidden_state`.
        language: a causal language model of transformers.
        dim: channels of the tower's features.
        pool: cells of a map are averaged `pool` by `pool`.
        hidden: of the projector; None takes the width of the language model.
        start: tokens at the beginning that are no cells of the picture (1 for a ViT with a class token).
    """

    def __init__(self, vision: nn.Module, language: nn.Module, dim: int, *, pool: int = 1, hidden: int | None = None, start: int = 0):
        super().__init__()
        self.vision, self.language = vision, language
        embeddings: Any = language.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        self.projector = Projector(dim, embeddings.embedding_dim, hidden)
        self.pool, self.start = pool, start
        self.config = {"model_type": "captioner"}  # what Checkpoints ask of a module; sizes are in the parts' own configurations

    def cells(self, pixel_values: Tensor) -> Tensor:
        """What the tower sees: "batch 3 h w" to "batch cell dim". Constant while only the projector learns, so it may be kept."""
        found: Any = self.vision(pixel_values)
        found = getattr(found, "last_hidden_state", found)
        if found.dim() == 4:
            found = F.avg_pool2d(found, self.pool) if self.pool > 1 else found
            return found.flatten(2).transpose(1, 2)
        if found.dim() != 3:
            raise LessenError("vision tower", got=f"an output of {found.dim()} axes", wanted="batch dim h w, or batch cell dim")
        return found[:, self.start :]

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """Logits "batch seq vocab": at every text token, those of the token after it.

        Args:
            pixel_values: "batch 3 h w", or cells as `cells` gives them, "batch cell dim".
            input_ids: int64 "batch seq". Rows are padded at the end with any token: a causal model never looks ahead.
        """
        cells = self.cells(pixel_values) if pixel_values.dim() == 4 else pixel_values
        language: Any = self.language
        words = language.get_input_embeddings()(input_ids)
        joined = torch.cat([self.projector(cells).to(words.dtype), words], 1)
        return language(inputs_embeds=joined, use_cache=False, logits_to_keep=input_ids.shape[1]).logits


def caption_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that are learned, in nats.

    Args:
        logits: "batch seq vocab", at every token those of the next one.
        labels: "batch seq", the tokens themselves, `IGNORED` where nothing is learned.
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)


def caption_batch(captions: list[list[int]], prompt: list[int], end: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both int64 "batch seq": prompt, caption, end; the prompt and the padding are not learned.

    >>> ids, labels = caption_batch([[5, 6], [7]], prompt=[1], end=0)
    >>> ids.tolist(), labels.tolist()
    ([[1, 5, 6, 0], [1, 7, 0, 0]], [[-100, 5, 6, 0], [-100, 7, 0, -100]])
    """
    if not prompt:
        raise LessenError(
            "caption batch", got="an empty prompt", wanted="a token for the first word to follow", remedy="give its start token"
        )
    longest = max(map(len, captions)) + 1
    ids = torch.full((len(captions), len(prompt) + longest), end)
    labels = torch.full_like(ids, IGNORED)
    for row, caption in enumerate(captions):
        whole = torch.tensor([*caption, end])
        ids[row, : len(prompt)] = torch.tensor(prompt)
        ids[row, len(prompt) : len(prompt) + len(whole)] = whole
        labels[row, len(prompt) : len(prompt) + len(whole)] = whole
    return ids, labels


def shorter(language: nn.Module, blocks: list[int], vocabulary: Tensor) -> nn.Module:
    """A smaller language model out of one of the Llama kind: these of its decoder blocks, and these rows of its token table.

    The weights are copies, and the result has to be trained before it says anything; it is a start, not a compressed model.

    Args:
        language: a causal language model of transformers with tied or separate head.
        blocks: indices of the decoder blocks to keep.
        vocabulary: int64 "token", rows of the token table to keep; the new id of a token is its place here.
    """
    source: Any = language
    config = type(source.config).from_dict(source.config.to_dict())
    config.num_hidden_layers, config.vocab_size = len(blocks), len(vocabulary)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in blocks]
    numbers = {str(old): str(new) for new, old in enumerate(blocks)}
    tables = {id(source.get_input_embeddings().weight), id(source.get_output_embeddings().weight)}
    state = {}
    for name, parameter in source.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        if "layers" in parts:
            place = parts.index("layers") + 1
            if parts[place] not in numbers:
                continue
            parts[place] = numbers[parts[place]]
        value = parameter.detach()
        state[".".join(parts)] = value[vocabulary] if id(parameter) in tables else value.clone()
    with torch.device("meta"):
        small = type(source)(config)
    small.load_state_dict(state, strict=False, assign=True)
    small.tie_weights()
    _rebuild_buffers(small)
    return small


def _rebuild_buffers(model: Any) -> None:
    """Frequencies of rotary positions are no weights; they are made again, off the meta device."""
    for path, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module._buffers.values() if buffer is not None):
            owner, _, key = path.rpartition(".")
            setattr(model.get_submodule(owner), key, type(module)(model.config))
