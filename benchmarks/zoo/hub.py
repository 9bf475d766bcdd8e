"""Every architecture of transformers' auto classes, built tiny with random weights that all differ.

A model's name is `family/model_type`. Weights are float64: the initialisation of the library plus noise, so that no gain is exactly one,
no bias exactly zero and no two channels are alike; statistics of batch normalisation are random too.
"""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.shrink import GIVEN, ways

FAMILIES: dict[str, tuple[str, ...]] = {
    "causal_lm": ("CAUSAL_LM",),
    "masked_lm": ("MASKED_LM",),
    "seq2seq": ("SEQ_TO_SEQ_CAUSAL_LM",),
    "image_classification": ("IMAGE_CLASSIFICATION",),
    "segmentation": ("SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION"),
    "depth": ("DEPTH_ESTIMATION",),
    "detection": ("OBJECT_DETECTION",),
    "image_text_to_text": ("IMAGE_TEXT_TO_TEXT",),
    "audio": ("AUDIO_CLASSIFICATION", "CTC", "SPEECH_SEQ_2_SEQ"),
}


def names() -> dict[str, tuple[str, str]]:
    """name -> (model_type, class name) of every architecture, in the order of the families."""
    from transformers.models.auto import modeling_auto

    found: dict[str, tuple[str, str]] = {}
    for family, tasks in FAMILIES.items():
        seen: set[str] = set()
        for task in tasks:
            for kind, classes in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
                class_name = classes if isinstance(classes, str) else classes[0]
                if class_name not in seen:
                    seen.add(class_name)
                    label = f"{family}/{kind}" if f"{family}/{kind}" not in found else f"{family}/{kind}-{task.lower()}"
                    found[label] = (kind, class_name)
    return found


def warm_up() -> None:
    """Import what nearly every architecture imports, so that a forked child need not."""
    from importlib import import_module

    import transformers

    transformers.logging.set_verbosity_error()
    for kind in ("llama", "mixtral", "bert", "t5", "bart", "clip", "vit", "llava", "wav2vec2", "detr", "qwen2_vl", "mamba", "swin"):
        import_module(f"transformers.models.{kind}.modeling_{kind}")


def builds(kind: str, class_name: str) -> Iterator[nn.Module]:
    """Tiny models of an architecture, float64, in eval mode: the first is the plainest, those after it are for when it does not run.

    Raises:
        Exception: of the first, if none can be built.
    """
    from transformers import CONFIG_MAPPING

    failure: Exception | None = None
    found = False
    for config in ways(CONFIG_MAPPING[kind], GIVEN.get(kind, {})):
        try:
            model = build(config, class_name)
        except Exception as error:
            failure = failure or error
        else:
            found = True
            yield model
    if failure is not None and not found:
        raise failure


def build(config: Any, class_name: str) -> nn.Module:
    """The model of a class, of a configuration or of the text part of it."""
    import transformers

    config = copy.deepcopy(config)
    for name in ("use_cache", "return_dict_in_generate"):
        if hasattr(config, name):
            setattr(config, name, False)
    torch.manual_seed(0)
    kind = getattr(transformers, class_name)
    try:
        model = kind(config)
    except AttributeError:
        if (text := config.get_text_config(decoder=True)) is config:
            raise
        model = kind(text)
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("eager")  # the fused kernels take no float64
    if sum(p.numel() for p in model.parameters()) > 20_000_000:
        raise ValueError(f"{sum(p.numel() for p in model.parameters())} parameters after shrinking")
    return disturb(model.double().eval())


def disturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Noise on every parameter and batch statistic, in place: gains leave one, biases zero, and all channels differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = parameter.data + noise * 0.5 / fan_in**0.5 if "A_log" not in name else parameter.data + 0.05 * noise
    for name, buffer in model.named_buffers():
        random = torch.rand(buffer.shape, generator=generator, dtype=torch.float64) if buffer.is_floating_point() else None
        if random is not None and name.endswith("running_mean"):
            buffer.copy_(0.4 * random - 0.2)
        elif random is not None and name.endswith("running_var"):
            buffer.copy_(0.5 + random)
    return model


def accepts(model: nn.Module) -> set[str]:
    """Names of the arguments that a model's forward takes."""
    return set(inspect.signature(model.forward).parameters)


def run(model: nn.Module, inputs: Any, seed: int = 0) -> list[torch.Tensor]:
    """Every floating-point tensor of a model's answer, in order; what it draws at random is drawn alike every time."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return tensors(model(**inputs) if isinstance(inputs, dict) else model(inputs))


def tensors(answer: Any) -> list[torch.Tensor]:
    """Floating-point tensors inside nested containers, in order."""
    if isinstance(answer, torch.Tensor):
        return [answer] if answer.is_floating_point() else []
    if isinstance(answer, dict) or hasattr(answer, "items"):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return [tensor for part in answer for tensor in tensors(part)]
    return []
