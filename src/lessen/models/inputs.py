"""Example inputs for a model that somebody only names: its own, or the first that it runs on of those that its configuration tells.

A model may carry an attribute `example_inputs`: a tensor, a tuple of arguments or a dictionary of keyword arguments, or a function that
returns one. Else the arguments of `forward` say what kinds of thing it reads, its configuration of what sizes:

    input_ids                       token ids; with images or sound, as many placeholder tokens as the model makes features of it
    decoder_input_ids               for encoder-decoders
    pixel_values                    images of `image_size`, else of usual sizes; patches with their grid where the model takes those
    input_values, input_features    sound: samples, or frames of mel bands

What a model needs beyond that cannot be guessed, and the error says how to pass it.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.modules import evaluating
from lessen.errors import UsageError, one_line

BATCH, TOKENS = 2, 11

Inputs = dict[str, Any]


def example_inputs(model: nn.Module, label: str | None = None) -> Any:
    """Inputs that a model runs on.

    Args:
        model: any module; it is run, in evaluation mode, and not changed.
        label: what to call it in messages.

    Returns:
        a tensor, a tuple of arguments, or a dictionary of keyword arguments.

    Raises:
        UsageError: nothing tells what it takes, or it runs on nothing of it.

    >>> model = nn.Linear(3, 2)
    >>> model.example_inputs = torch.zeros(1, 3)
    >>> example_inputs(model).shape
    torch.Size([1, 3])
    """
    own = getattr(model, "example_inputs", None)
    if own is not None:
        return own() if callable(own) else own
    failed = ""
    with evaluating(model), torch.no_grad():
        for inputs in candidates(model):
            try:
                model(**inputs)
            except Exception as error:  # whatever its code has against these, the next may suit it
                failed = failed or one_line(error)
            else:
                return inputs
    raise UsageError(
        label or type(model).__name__,
        got=f"no example that it runs on ({failed})" if failed else "no example to run it on",
        wanted="an attribute example_inputs: a tensor, a tuple of arguments or a dictionary of keyword arguments",
        remedy="set it in a factory and name that (package.module:factory), or pass example_inputs from Python",
    )


def candidates(model: nn.Module) -> Iterator[Inputs]:
    """Inputs to try, the fullest first: a model that reads text and images is traced with both."""
    taken = set(inspect.signature(model.forward).parameters)
    plain = {key: value for key, value in {"use_cache": False, "return_dict": True}.items() if key in taken}
    if not getattr(model, "config", None):
        return
    ask = _Asked(model, taken)
    for inputs in ask.everything():
        decoder = {"decoder_input_ids": ask.ids(7, 1)} if "decoder_input_ids" in taken else {}
        for more in (decoder, {}) if decoder else ({},):
            yield inputs | more | plain


class _Asked:
    """A model and the arguments that it takes."""

    def __init__(self, model: Any, taken: set[str]):
        self.model, self.taken, self.configs = model, taken, list(_nested(model.config))
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def everything(self) -> Iterator[Inputs]:
        texts = list(self.texts()) if "input_ids" in self.taken else []
        seen = [*self.images(), *self.sounds()]
        for sight in seen:
            for text in texts[:1]:
                yield from self.beside(text, sight)
        main = getattr(self.model, "main_input_name", "")
        yield from (*texts, *seen) if main == "input_ids" else (*seen, *texts)

    def texts(self) -> Iterator[Inputs]:
        for length in (TOKENS, 16, 64):
            yield {"input_ids": self.ids(length)}

    def beside(self, text: Inputs, sight: Inputs) -> Iterator[Inputs]:
        """Text with images or sound: with placeholders for what the model makes of them, where it wants such."""
        names = ("audio_token_id", "audio_token_index") if "pixel_values" not in sight else ("image_token_id", "image_token_index")
        token = self.number(*names)
        ids = text["input_ids"]
        for count in (0,) if token is None else dict.fromkeys((self.features(sight), 1, 4, 16)):
            middle = torch.full((BATCH, count), token or 0, device=self.device)
            joined = torch.cat([ids[:, :3], middle, ids[:, 3:]], 1)
            marks = {"attention_mask": torch.ones_like(joined), "mm_token_type_ids": (joined == token).long() if token else joined * 0}
            yield {"input_ids": joined} | sight | {key: value for key, value in marks.items() if key in self.taken}

    def images(self) -> Iterator[Inputs]:
        if "pixel_values" not in self.taken:
            return
        if "image_grid_thw" in self.taken:
            side, patch = 2 * (self.number("spatial_merge_size") or 2), self.number("patch_size") or 14
            columns = (self.number("in_channels", "in_chans", "num_channels") or 3) * (self.number("temporal_patch_size") or 1) * patch**2
            grid = torch.tensor([[1, side, side]] * BATCH, device=self.device)
            yield {"pixel_values": self.noise(BATCH * side * side, columns), "image_grid_thw": grid}
        channels = self.number("num_channels", "in_channels", "in_chans") or 3
        for height, width in self.sizes():
            pixels = {"pixel_values": self.noise(BATCH, channels, height, width)}
            if "image_sizes" in self.taken:
                yield pixels | {"image_sizes": torch.tensor([[height, width]] * BATCH, device=self.device)}
            yield pixels
            if "input_ids" in self.taken:
                yield {"pixel_values": self.noise(BATCH, 1, channels, height, width)}

    def sounds(self) -> Iterator[Inputs]:
        if "input_values" in self.taken:
            for length in (1600, 4000, 16000):
                yield {"input_values": self.noise(BATCH, length)}
                yield {"input_values": self.noise(BATCH, 1, length)}
        if "input_features" in self.taken:
            mels = self.number("num_mel_bins", "n_mels", "input_feat_per_channel", "feature_size") or 80
            whole = 2 * (self.number("max_source_positions") or 24)
            for frames in dict.fromkeys((whole, 64, 128, 3000)):
                yield {"input_features": self.noise(BATCH, mels, frames)}
                yield {"input_features": self.noise(BATCH, frames, mels)}

    def sizes(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for config in self.configs:
            size = getattr(config, "image_size", None)
            size = (size, size) if isinstance(size, int) else size
            if isinstance(size, list | tuple) and len(size) == 2:
                found.append((int(size[0]), int(size[1])))
        return list(dict.fromkeys([*found, (64, 64), (224, 224)]))

    def features(self, sight: Inputs) -> int:
        """How many placeholders a text needs, asked of the model itself; 1 if it cannot say."""
        how = "get_image_features" if "pixel_values" in sight else "get_audio_features"
        ask = getattr(self.model, how, None) or getattr(getattr(self.model, "model", None), how, None)
        try:
            answer: Any = ask(**sight) if ask else None
        except Exception:  # a guess is tried next
            return 1
        answer = getattr(answer, "pooler_output", answer)
        parts = [answer] if isinstance(answer, Tensor) else [part for part in answer or () if isinstance(part, Tensor)]
        return sum(part.numel() // part.shape[-1] for part in parts) // BATCH or 1

    def number(self, *names: str) -> int | None:
        """The first of these fields that the configuration, or one inside it, has."""
        found = (getattr(config, name) for name in names for config in self.configs if type(getattr(config, name, None)) is int)
        return next(found, None)

    def ids(self, length: int, seed: int = 0) -> Tensor:
        words = self.number("vocab_size") or 100
        special = self.number("image_token_id", "image_token_index", "audio_token_id", "audio_token_index")
        low, high = min(10, words // 2), max(words // 2 + 1, min(words, special or words))
        random = torch.Generator().manual_seed(seed)
        return torch.randint(low, high, (BATCH, length), generator=random).to(self.device)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(self.device, self.dtype)


def _nested(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values() if hasattr(config, "__dict__") else ():
        if hasattr(value, "to_dict"):
            yield from _nested(value)
