"""Example inputs for the architectures of the zoo, from the family and the names of the arguments alone."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.hub import accepts

_BATCH, _LENGTH = 2, 11


def candidates(model: Any, family: str) -> Iterator[dict[str, Any]]:
    """Inputs to try in turn until the model runs on one."""
    match family:
        case "causal_lm" | "masked_lm":
            yield from _text(model)
        case "seq2seq":
            yield from _pairs(model)
        case "audio":
            yield from _sound(model)
        case "image_text_to_text":
            yield from _image_text(model)
        case _:
            yield from _image(model)


def _ids(length: int = _LENGTH, high: int = 140, seed: int = 0) -> Tensor:
    return torch.randint(10, high, (_BATCH, length), generator=torch.Generator().manual_seed(seed))


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _with(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Switches that make an answer plain, where the model takes them."""
    return inputs | {key: value for key, value in {"use_cache": False, "return_dict": True}.items() if key in accepts(model)}


def _text(model: Any) -> Iterator[dict[str, Any]]:
    """Texts; first with what cross attention or an image encoder would see, so that these take part."""
    taken = accepts(model)
    words = getattr(model.config, "vocab_size", None)
    high = min(140, words) if isinstance(words, int) else 140
    for length in (_LENGTH, 16, 64):
        if "encoder_hidden_states" in taken and any(re.search(r"encoder_attn|cross_?att", name) for name, _ in model.named_modules()):
            width = next((getattr(model.config, k) for k in _READ if isinstance(getattr(model.config, k, None), int)), 128)
            yield _with(model, {"input_ids": _ids(length, high), "encoder_hidden_states": _noise(_BATCH, 7, width)})
        if "pixel_values" in taken and length == _LENGTH:
            for height, width in _sizes(model.config)[:3]:
                yield _with(model, {"input_ids": _ids(length, high), "pixel_values": _noise(_BATCH, 3, height, width)})
        yield _with(model, {"input_ids": _ids(length, high)})


_READ = ("cross_attention_hidden_size", "d_model", "hidden_size")


def _pairs(model: Any) -> Iterator[dict[str, Any]]:
    taken = accepts(model)
    if "input_features" in taken:
        yield from _heard(model)
    for length in (_LENGTH, 16, 64):
        pair = {"input_ids": _ids(length)}
        yield _with(model, pair | ({"decoder_input_ids": _ids(7, seed=1)} if "decoder_input_ids" in taken else {}))


def _sizes(config: Any) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for owner in (config, *(getattr(config, key, None) for key in ("vision_config", "backbone_config", "vision_model_config"))):
        size = getattr(owner, "image_size", None) or getattr(owner, "img_size", None)
        if isinstance(size, int):
            found.append((size, size))
        elif isinstance(size, list | tuple) and len(size) == 2:
            found.append((int(size[0]), int(size[1])))
    return list(dict.fromkeys([*found, (32, 32), (64, 64), (96, 96), (128, 128), (224, 224)]))


def _image(model: Any) -> Iterator[dict[str, Any]]:
    if "spatial_shapes" in accepts(model):
        yield _with(model, _patches(model))
    for height, width in _sizes(model.config):
        for channels in (3, 1):
            base = {"pixel_values": _noise(_BATCH, channels, height, width)}
            yield _with(model, base)
            if "task_inputs" in accepts(model):
                yield _with(model, base | {"task_inputs": _ids(8)})
        if "pixel_values_videos" in accepts(model):
            yield {"pixel_values_videos": _noise(_BATCH, 2, 3, height, width)}
        if "inputs" in accepts(model):
            yield {"inputs": _noise(_BATCH, 3, height, width)}


def _patches(model: Any) -> dict[str, Any]:
    """Images as lists of patches, with the shape of their grid."""
    vision = getattr(model.config, "vision_config", None) or model.config
    flat = _noise(_BATCH, 16, 3 * vision.patch_size**2)
    return {
        "pixel_values": flat,
        "spatial_shapes": torch.tensor([[4, 4]] * _BATCH),
        "pixel_attention_mask": torch.ones(_BATCH, 16, dtype=torch.int64),
    }


def _sound(model: Any, beside: bool = True) -> Iterator[dict[str, Any]]:
    taken = accepts(model)
    if beside and "input_ids" in taken and "input_features" in taken:
        yield from _heard(model)
    words = getattr(model.config, "vocab_size", None) or 140
    extra: dict[str, Any] = {"decoder_input_ids": _ids(7, min(140, words), seed=1)} if "decoder_input_ids" in taken else {}
    mels = next(
        (
            getattr(c, k)
            for c in _nested(model.config)
            for k in (
                "num_mel_bins",
                "n_mels",
                "n_mel_bins",
                "input_feat_per_channel",
                "feature_projection_input_dim",
                "feature_size",
                "input_dim",
            )
            if isinstance(getattr(c, k, None), int)
        ),
        16,
    )
    name = next((n for n in ("input_values", "input_features", "audio_values") if n in taken), "input_values")
    if name == "input_values" or "input_values" in taken:
        for length in (1600, 4000, 16000):
            for shape in ((_BATCH, length), (_BATCH, 1, length)):
                yield _with(model, {"input_values": _noise(*shape)} | extra)
    whole = next(
        (2 * c.max_source_positions for c in _nested(model.config) if isinstance(getattr(c, "max_source_positions", None), int)), 48
    )
    for frames in dict.fromkeys((48, 64, 100, 128, whole, 3000)):
        for shape in ((_BATCH, mels, frames), (_BATCH, frames, mels)):
            yield _with(model, {name: _noise(*shape)} | extra)
            if "attention_mask" in taken:
                yield _with(model, {name: _noise(*shape), "attention_mask": torch.ones(_BATCH, frames, dtype=torch.int64)} | extra)
    for length in (1024,):
        yield _with(model, {name: _noise(_BATCH, length, mels)} | extra)


def _heard(model: Any) -> Iterator[dict[str, Any]]:
    """Sound and a text that speaks of it: as many tokens for the sound as the model makes features of it."""
    token = _token(model, "audio_token_id", "audio_token_index", "speech_token_id")
    if token is None:
        return
    taken = accepts(model)
    for sound in _sound(model, beside=False):
        sound = {key: value for key, value in sound.items() if key not in ("use_cache", "return_dict", "decoder_input_ids")}
        for count in list(dict.fromkeys([_features(model, sound, taken, "get_audio_features"), 1, 4, 12])):
            ids = torch.cat([_ids()[:, :3], torch.full((_BATCH, count), token), _ids()[:, 3:]], 1)
            text = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if "attention_mask" in taken else {})
            yield _with(model, sound | text)


def _token(model: Any, *names: str) -> int | None:
    """A special token of the configuration, or of one inside it."""
    found = (getattr(config, name) for config in _nested(model.config) for name in names if isinstance(getattr(config, name, None), int))
    return next(found, None)


def _nested(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from _nested(value)


def _image_text(model: Any) -> Iterator[dict[str, Any]]:
    taken = accepts(model)
    token = _token(model, "image_token_id", "image_token_index", "image_patch_id", "im_patch_id")
    for pixels in _pixels(model, taken):
        sized = [_LENGTH] if token is None else list(dict.fromkeys([_features(model, pixels, taken), 1, 4, 16]))
        for count in sized:
            ids = _ids(_LENGTH)
            if token is not None and count:
                ids = torch.cat([ids[:, :3], torch.full((_BATCH, count), token), ids[:, 3:]], 1)
            base = {"input_ids": ids} | pixels | _other_texts(taken)
            if "attention_mask" in taken:
                base["attention_mask"] = torch.ones_like(ids)
            if "token_type_ids" in taken:
                base["token_type_ids"] = (ids == token).long() if token is not None else torch.zeros_like(ids)
            if "mm_token_type_ids" in taken:
                base["mm_token_type_ids"] = (ids == token).long() if token is not None else torch.zeros_like(ids)
            if "decoder_input_ids" in taken:
                yield _with(model, base | {"decoder_input_ids": _ids(7, seed=1)})
            yield _with(model, base)


def _other_texts(taken: set[str]) -> dict[str, Any]:
    """What another text encoder reads, `qformer_input_ids` for example, with its mask."""
    found: dict[str, Any] = {}
    for name in taken:
        if name.endswith("_input_ids") and name != "decoder_input_ids":
            mask = name.replace("input_ids", "attention_mask")
            found |= {name: _ids(9, seed=2)} | ({mask: torch.ones(_BATCH, 9, dtype=torch.int64)} if mask in taken else {})
    return found


def _pixels(model: Any, taken: set[str]) -> Iterator[dict[str, Any]]:
    vision = getattr(model.config, "vision_config", None) or model.config
    patch = getattr(vision, "patch_size", 14)
    patch = patch if isinstance(patch, int) else patch[0]
    if "image_grid_thw" in taken or "image_grid_hws" in taken:
        merge = getattr(vision, "spatial_merge_size", 2)
        frames = getattr(vision, "temporal_patch_size", 1)
        channels = next(
            (getattr(vision, k) for k in ("in_channels", "in_chans", "num_channels") if isinstance(getattr(vision, k, None), int)), 3
        )
        side = 2 * merge if isinstance(merge, int) else 4
        for depth in dict.fromkeys((frames, 1)):
            flat = _noise(_BATCH * side * side, channels * depth * patch * patch)
            yield {"pixel_values": flat, "image_grid_thw": torch.tensor([[1, side, side]] * _BATCH)}
            yield {
                "pixel_values": flat.view(-1, channels, patch, patch) if depth == 1 else flat,
                "image_grid_thw": torch.tensor([[1, side, side]] * _BATCH),
            }
    if "spatial_shapes" in taken:
        yield _patches(model)
    for height, width in _sizes(model.config):
        base: dict[str, Any] = {"pixel_values": _noise(_BATCH, 3, height, width)}
        if "image_sizes" in taken:
            yield {"pixel_values": _noise(_BATCH, 3, 3, height, width), "image_sizes": torch.tensor([[height, 2 * width]] * _BATCH)}
            yield base | {"image_sizes": torch.tensor([[height, width]] * _BATCH)}
        yield base
        yield {"pixel_values": _noise(_BATCH, 1, 3, height, width)}
    if "flattened_patches" in taken:
        channels = getattr(vision, "patch_embed_hidden_size", 768)
        flat = _noise(_BATCH, 12, channels + 2)
        flat[..., :2] = torch.arange(1, 13).view(1, 12, 1)
        yield {"flattened_patches": flat}


def _features(model: Any, pixels: dict[str, Any], taken: set[str], how: str = "get_image_features") -> int:
    """How many tokens a text needs for these images (or sounds), asked of the model itself; 0 if it cannot say."""
    ask = getattr(model, how, None) or getattr(getattr(model, "model", None), how, None)
    if ask is None:
        return 0
    try:
        with torch.no_grad():
            answer = ask(**pixels)
    except Exception:
        return 0
    answer = getattr(answer, "pooler_output", answer)
    if isinstance(answer, list | tuple):
        return int(sum(part.numel() // part.shape[-1] for part in answer) // _BATCH)
    return int(answer.numel() // answer.shape[-1] // _BATCH) if isinstance(answer, Tensor) else 0
