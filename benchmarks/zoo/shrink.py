"""Makes any configuration of transformers tiny by rules over field names, so that its model builds in milliseconds.

Three kinds of rule: counts of layers become 2, counts of heads 8 (4 key/value heads where they were fewer than the query heads), widths
small multiples of 8 that differ from each other, so that no two axes can be mistaken for one another by their size. Lists keep their
length. Fields that no rule names are left alone if they are small and scaled down if they are large. Nested configurations are treated
alike, each with sizes of its own.
"""

import re
from collections.abc import Iterator
from math import log2
from typing import Any

_HEADS = 8
# First match wins; the value is an upper bound, so that small originals stay.
_RULES: list[tuple[str, int | None]] = [
    # Numbers that are no sizes.
    (
        r".*(_cost|_coefficient|_ignore_index|_interval|_theta|_seed|seed|_rate|sampling_rate|temperature.*|_idx|_beams|"
        r"base_period)$",
        None,
    ),
    (
        r"(chunk_size_feed_forward|chunk_size_lm_head|pretraining_tp|scale_factor|pixel_shuffle_factor|.*_stride|stride|"
        r".*max_distance|.*kernel.*|.*dilation.*|.*expand.*|.*expansion.*|.*mult|.*ratio|.*_factor|.*padding.*|reduction)$",
        None,
    ),
    (
        r"(vision_feature_layer|freeze_at|output_stride|encoder_stride|d_conv|.*conv_kernel.*|conv_L_cache|ngram|"
        r"ngram_size|.*per_ngram|.*_offset|spatial_merge_size|.*patch_size|patch_size.*|num_labels|"
        r"number_of_conv_states|.*temporal.*|depth_divis.*|cross_attn_k|.*spatial.*|cca_time.)$",
        None,
    ),
    # Counts of layers.
    (
        r"(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|.*num_hidden_layers|num_(en|"
        r"de)coder_layers|num_blocks|depth|resampler_depth|.*encoder_layers|.*decoder_layers|.*num_layers|"
        r"num_adapter_layers)$",
        2,
    ),
    (
        r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index|max_window_layers|num_kv_shared_layers|"
        r"num_nextn_predict_layers|.*dense_replace|mlp_only_layers|num_mem_blocks)$",
        1,
    ),
    (
        r"(decoder_sparse_step|encoder_sparse_step|moe_layer_interval|cross_attention_frequency|attn_layer_period|"
        r"expert_layer_period|cross_layer_interval|no_rope_layer_interval|interleave_moe_layer_step|"
        r"full_attention_interval|.*_pattern)$",
        2,
    ),
    # Counts of heads and experts.
    (
        r".*(num_key_value_heads|num_kv_heads|kv_heads|num_key_value_attention_heads|multi_query_group_num|"
        r"num_key_heads|query_groups)$",
        4,
    ),
    (r".*(attention_heads|num_heads|n_heads?|linear_num_value_heads|index_n_heads|_heads|nhead|resampler_heads)$", _HEADS),
    (
        r"(num_experts_per_tok|num_experts_per_token|moe_topk|top_k|topk|top_k_experts|moe_k|num_selected_experts|"
        r"n_activated_experts|moe_num_active.*)$",
        2,
    ),
    (r"(n_shared_experts|num_shared_experts|moe_num_shared_experts)$", 1),
    (r"(n_routed_experts|num_experts|num_local_experts|moe_num_experts|num_experts.*)$", 8),
    (r"(index_topk.*|index_block_size)$", 4),
    (r"(n_group|num_expert_group)$", 2),
    (r"topk_group$", 1),
    # Widths.
    (r"qk_nope_head_dim$", 24),
    (r"qk_head_dim$", 40),
    (r"v_head_dim$", 32),
    (r"(head_dim|d_kv|dim_head|d_head|.*head_dim|attention_head_size|kv_channels|.*dim_head|.*head_size)$", 16),
    (r"rotary_dim$", 8),
    (r"(moe_intermediate_size|moe_ffn_hidden_size|expert_ffn_hidden_size|.*moe.*intermediate_size)$", 40),
    (r"(shared_expert_intermediate_size|shared_intermediate_size|.*shared.*intermediate_size)$", 56),
    (
        r"(intermediate_size.*|ffn_dim|d_ff|.*ffn_dim|n_inner|.*intermediate_size|ffn_hidden_size|d_inner|mlp_dim|"
        r"feed_forward.*|.*ffn_hidden.*)$",
        192,
    ),
    (r"(kv_lora_rank)$", 24),
    (r"(q_lora_rank)$", 48),
    (r".*lora_rank$", 32),
    (r".*_rank$", 8),
    (r"(.*state_size|.*d_state)$", 8),
    (r"(mamba_d_ssm)$", 256),
    (r"(vocab_size|.*vocab_size.*|n_token)$", 200),
    (r"(embedding_size)$", 24),
    (r"(projection_dim|projector_hidden_size|out_hidden_size|output_dim|.*proj.*(dim|size))$", 128),
    (
        r"(hidden_size|d_model|n_embd|hidden_dim|dim|embed_dim|embedding_dim|.*hidden_size|.*_d_model|emb_dim|d_latents|"
        r".*hidden_dim|lru_width|width|encoder_dim|decoder_dim|.*embed_dim|dim_model|model_dim|text_embed_dim)$",
        128,
    ),
    # Lengths and images.
    (r"window_size$", 2),
    (r"(image_size|img_size|max_img_size|resolution|pretrain_image_size|crop_size)$", 64),
    (
        r"(max_position_embeddings|n_positions|max_seq_len|max_.*position.*|max_length|n_ctx|context_length|"
        r"position_embedding_size|.*max_pos.*)$",
        96,
    ),
    (
        r"(.*sliding_window.*|attention_window.*|window_size|local_attention|attention_chunk_size|block_size|chunk_size|"
        r".*_window|attention_window_size)$",
        8,
    ),
    (r"(num_queries|.*num_queries|num_detection_tokens|num_query_tokens|num_latents|.*num_proposals|num_denoising)$", 10),
    (r"(num_mel_bins|n_mels|n_mel_bins|.*feat_per_channel)$", 16),
    (r"(max_source_positions|max_target_positions)$", 24),
    (r"(conv_dim|fpn_feature_size|mask_feature_size|feature_size|mask_dim|fusion_hidden_size|.*channels|num_filters)$", 32),
]
_COMPILED = [(re.compile(pattern), value) for pattern, value in _RULES]
_SPECIAL = re.compile(r".*(token_id|token_index|_ids?|mask_index|pad_index|eos_index|bos_index|unk_index|_idx)$")
_CHANNEL_LISTS = re.compile(r".*(hidden_sizes|embed_dims?|channels|conv_dim|_sizes|widths|dims?|num_filters|neck_.*)$")


def _number(name: str, value: int) -> int:
    for pattern, bound in _COMPILED:
        if pattern.fullmatch(name):
            if bound == _HEADS and "head" in name and 4 < value < _HEADS:
                return _HEADS
            return value if bound is None else min(value, bound)
    return value if value < 64 else max(8, min(64, value // 16 // 8 * 8))


def _sequence(name: str, values: list[Any]) -> list[Any]:
    if name in (
        "depths",
        "num_blocks",
        "encoder_depths",
        "decoder_depths",
        "stage_num_blocks",
        "block_repeats",
        "stage_numb_of_layers",
        "layers",
        "num_block_repeats",
    ):
        return [min(v, 2) if i == 0 else 1 for i, v in enumerate(values)]
    if re.fullmatch(
        r"(in_channels|out_channels|.*(indices|indexes|_idxs|_layers|layer_ids|hook_ids|"
        r"feature_layer|conv_stride|kernel.*|.*ratios?|strides?|.*_idx|block_sizes|patch_sizes|_hook.*))",
        name,
    ):
        return values
    if name == "stem_channels":
        return [v if v <= 3 else v // 8 for v in values]
    if _CHANNEL_LISTS.fullmatch(name) and max(values) >= 128:
        scale = min(8, 1 << int(log2(max(values) / 128)))
        return values if any(v % scale for v in values) else [v // scale for v in values]
    return values


_SECTIONS = ("mrope_section", "mrope_interleaved_section")


def _rotary(value: Any, scale: int) -> Any:
    """Rotary parameters with sections that fit heads that are `scale` times smaller."""
    if not isinstance(value, dict):
        return value
    out = {k: _rotary(v, scale) for k, v in value.items()}
    for key in _SECTIONS:
        if isinstance(out.get(key), list | tuple):
            parts = [max(1, int(v) // scale) for v in out[key]]
            short = sum(out[key]) // scale - sum(parts)
            out[key] = [v + (short if i == 1 else 0) for i, v in enumerate(parts)]
    return out


def shrink(config: Any) -> dict[str, Any]:
    """Fields of a configuration that change when it is made tiny, nested ones as dicts that name their `model_type`."""
    changes: dict[str, Any] = {}
    own = vars(config)
    heads = own.get("num_attention_heads")
    head_dim = own.get("head_dim") or ((own.get("hidden_size") or 0) // heads if isinstance(heads, int) and heads else 0)
    for name, value in list(vars(config).items()):
        if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and any(key in str(value) for key in _SECTIONS):
            changes[name] = _rotary(value, max(1, (head_dim or 128) // 16))
            continue
        if name == "rope_parameters" and isinstance(value, dict) and re.search(r"(vl|4v|46v|ocr|omni)\w*text|omni", config.model_type):
            half = int(8 * value.get("partial_rotary_factor", 1.0))
            changes[name] = value | {"mrope_section": [half // 4, half // 4, half - 2 * (half // 4)]}
            continue
        if name == "window_size" and isinstance(merge := own.get("spatial_merge_size", own.get("downsample_rate")), int):
            # In pixels, or in frames: at least two of what is merged.
            changes[name] = 2 * merge * (own["patch_size"] if isinstance(own.get("patch_size"), int) else 1)
            continue
        if name == "image_grid_pinpoints":
            changes[name] = [[64, 128], [128, 64]]
            continue
        if re.fullmatch(r".*num_key_value_heads|.*kv_heads", name) and isinstance(value, int) and value == heads:
            changes[name] = _number("num_heads", value)
            continue
        if isinstance(value, int) and re.fullmatch(r"embed_dim|hidden_size", name) and isinstance(first := _first_heads(config), int):
            changes[name] = 8 * first
            continue
        if name.startswith("_") or isinstance(value, bool) or name in ("id2label", "label2id", *LAYER_LISTS):
            continue
        if getattr(value, "model_type", None) == "timm_backbone":
            changes[name] = _BACKBONE
        elif hasattr(value, "to_dict"):
            changes[name] = {"model_type": getattr(value, "model_type", "")} | shrink(value)
        elif _SPECIAL.fullmatch(name):
            continue
        elif isinstance(value, int):
            changes |= {name: smaller} if (smaller := _number(name, value)) != value else {}
        elif isinstance(value, list | tuple) and value and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            changes |= {name: shorter} if (shorter := _sequence(name, list(value))) != list(value) else {}
    changes |= _stages(own)
    return changes


def _stages(own: dict[str, Any]) -> dict[str, Any]:
    """A model that hands out several of its layers keeps as many as it hands out."""
    if not isinstance(own.get("num_hidden_layers"), int):
        return {}
    for name in ("backbone_out_indices", "out_indices"):
        listed = own.get(name)
        if isinstance(listed, list | tuple) and len(listed) > 1:
            return {"num_hidden_layers": len(listed), name: list(range(len(listed)))}
    stages = own.get("_out_features")
    if isinstance(stages, list) and len(stages) > 1:
        return {"num_hidden_layers": len(stages), "out_features": [f"stage{i + 1}" for i in range(len(stages))]}
    return {}


_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}


def _first_heads(config: Any) -> int | None:
    """Heads of the first stage, where stages differ."""
    heads = vars(config).get("num_heads")
    return heads[0] if isinstance(heads, list | tuple) and heads and isinstance(heads[0], int) else None


def ways(config_class: Any, given: dict[str, Any]) -> Iterator[Any]:
    """Tiny configurations of a class, plain ones first: only what is tiny, all that the original says, and that with gaps filled.

    Args:
        config_class: a configuration class of transformers.
        given: fields that are set by hand.

    Raises:
        Exception: of the first way, if none gives a configuration.
    """
    base = config_class()
    changes = _merged(_merged(shrink(base), _token_changes(base)), given)
    failure: Exception | None = None
    found = False
    for fields in (changes, _full(base, changes), _filled(_full(base, changes))):
        try:
            config = config_class(**fields)
        except Exception as error:
            failure = failure or error
        else:
            found = True
            yield config
    if failure is not None and not found:
        raise failure


def _filled(data: dict[str, Any]) -> dict[str, Any]:
    """Fields that the library leaves open, and some of its models need."""
    out: dict[str, Any] = {key: _filled(value) if isinstance(value, dict) else value for key, value in data.items()}
    heads = out.get("num_attention_heads")
    for name, value in _OPEN.items():
        if name in out and out[name] is None:
            out[name] = value
    if isinstance(heads, int) and heads:
        if "num_key_value_heads" in out and out["num_key_value_heads"] is None:
            out["num_key_value_heads"] = heads
        if "head_dim" in out and out["head_dim"] is None and isinstance(out.get("hidden_size"), int):
            out["head_dim"] = out["hidden_size"] // heads
    return out


_OPEN = {"num_experts_per_tok": 2, "n_routed_experts": 8, "moe_intermediate_size": 40, "vocab_size": 200}


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    out = dict(a)
    for key, value in b.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _token_changes(config: Any, start: int = 190) -> dict[str, Any]:
    """Special tokens beyond the tiny vocabulary move to its end, each to a number of its own (one number for one original)."""
    moved: dict[int, int] = {}

    def of(config: Any) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in list(vars(config).items()):
            if hasattr(value, "to_dict"):
                if inner := of(value):
                    out[name] = {"model_type": value.model_type} | inner
            elif _SPECIAL.fullmatch(name) and not isinstance(value, bool):
                if isinstance(value, int) and value >= 150:
                    out[name] = moved.setdefault(value, start - len(moved))
                elif isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value) and "token" in name:
                    out[name] = [v if v < 150 else moved.setdefault(v, start - len(moved)) for v in value]
        return out

    return of(config)


def _full(base: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """All fields with the changes made, lists with an entry per layer shortened so that every kind of layer stays."""
    data = base if isinstance(base, dict) else base.to_dict()
    out = {k: v for k, v in data.items() if k not in ("transformers_version", "id2label", "label2id")}
    depth = next((data[k] for k in _DEPTHS if isinstance(data.get(k), int)), None)
    for key, value in changes.items():
        out[key] = _full(data[key], value) if isinstance(value, dict) and isinstance(data.get(key), dict) else value
    if _STAGES & changes.keys():
        out = {key: value for key, value in out.items() if key not in _STAGES or key in changes}
    elif depth and "depths" not in data:
        kinds = next((data[k] for k in LAYER_LISTS if isinstance(data.get(k), list | tuple) and len(data[k]) == depth), ["same"] * depth)
        picked = sorted({kinds.index(kind) for kind in dict.fromkeys(kinds)})
        picked = sorted({*picked, *range(2)})[: max(2, len(picked))] if len(picked) < 2 else picked
        for key, value in data.items():
            if isinstance(value, list | tuple) and len(value) == depth and key not in changes:
                out[key] = [value[i] for i in picked]
        for key in _DEPTHS:
            if key in out:
                out[key] = len(picked)
    return out


LAYER_LISTS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "attention_types", "attention_layers")
_STAGES = {"out_features", "out_indices", "backbone_out_indices"}
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

GIVEN: dict[str, dict[str, Any]] = {
    # Texts are shorter than what block-sparse attention is for; the library then puts other modules in place.
    **{kind: {"attention_type": "original_full"} for kind in ("big_bird", "bigbird_pegasus")},
    # Widths of one mixer that must multiply to the width of another field.
    **{kind: {"mamba_d_head": 32} for kind in ("bamba", "granitemoehybrid")},
    "mamba2": {"head_dim": 32},
    "jamba": {"attn_layer_offset": 1, "expert_layer_offset": 1},
    "squeezebert": {"embedding_size": 128},
    "reformer": {"axial_pos_embds": False},
    "bit": {"num_groups": 8},
    "beit": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 128},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "aria": {"projector_patch_to_query_dict": {4: 2, 16: 4}},
    # What has no default.
    **{kind: {"image_token_index": 180} for kind in ("blip-2", "instructblip")},
    "instructblipvideo": {"video_token_index": 180},
    "xmod": {"default_language": "en_XX"},
    **{kind: {"vocab_size": 40} for kind in ("wav2vec2-bert", "wav2vec2-conformer")},
}
"""By `model_type`: fields that must fit each other in ways that no rule over names can know."""
