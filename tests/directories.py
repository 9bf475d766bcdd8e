"""Tiny models of transformers of every kind, as `save_pretrained` writes them."""

from pathlib import Path
from typing import Any

import torch

_TEXT: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_GROUPED: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2}
_IMAGE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8,
}  # fmt: skip


def _detr() -> dict[str, Any]:
    from transformers import ResNetConfig

    stages: dict[str, Any] = {"depths": [1, 1], "layer_type": "basic", "out_features": ["stage2"]}
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], **stages)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 5, "num_labels": 3}
    return {"backbone_config": backbone, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, **layers, **sizes}


def _llava() -> dict[str, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig

    vision = CLIPVisionConfig(**_IMAGE, projection_dim=16)
    return {"vision_config": vision, "text_config": LlamaConfig(**_GROUPED), "image_token_index": 50, "image_token_id": 50}


KINDS: dict[str, tuple[str, Any]] = {
    "llama": ("LlamaForCausalLM", _GROUPED),
    "vit": ("ViTForImageClassification", {**_IMAGE, "num_labels": 3}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4},
    ),
    "bert": ("BertForSequenceClassification", {**_TEXT, "num_labels": 3}),
    "clip": ("CLIPModel", {"text_config": {**_TEXT, "projection_dim": 12}, "vision_config": {**_IMAGE}, "projection_dim": 12}),
    "detr": ("DetrForObjectDetection", _detr),
    "llava": ("LlavaForConditionalGeneration", _llava),
    "mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": ("MambaForCausalLM", {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {
            **_TEXT, "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "group",
        },
    ),
}  # fmt: skip


def tiny(kind: str) -> Any:
    """One of `KINDS` with random weights that repeat."""
    import transformers

    name, given = KINDS[kind]
    sizes: Any = given() if callable(given) else given
    cls = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(cls.config_class(**sizes)).eval()


def written(kind: str, folder: Path) -> Path:
    """The directory that `save_pretrained` writes for it."""
    tiny(kind).save_pretrained(folder)
    return folder
