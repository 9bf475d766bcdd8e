"""What the configuration of an edited model says, so that a stock loader builds the right shapes.

Widths and head counts are fields if all blocks agree; if they differ, the fields stay and the loader must go by the shapes of the
tensors. A bias on one linear is written as a flag for a whole group of linears, so the others of the group get biases of zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lessen.core.edit import Drop, Edit, Keep
from lessen.core.trace import Traced, in_block, renumbered
from lessen.errors import LessenError

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BIAS_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    **{family: {"attention_bias": _ATTENTION, "mlp_bias": _MLP} for family in ("llama", "granite", "smollm3")},
    **{family: {"attention_bias": _ATTENTION} for family in ("qwen3", "gemma", "gemma2", "gemma3_text")},
}
"""By `model_type`: configuration field -> the linears of every block that carry a bias when it is true."""

WHOLE_HEADS = ("llama", "gemma2", "gemma3_text")
"""By `model_type`: transformers refuses a hidden size that is not a multiple of the number of heads, even with an explicit head_dim."""

_DEPTH = ("num_hidden_layers", "n_layer", "num_layers")


def depth_field(config: Mapping[str, Any]) -> str | None:
    """The field that counts decoder blocks."""
    return next((name for name in _DEPTH if isinstance(config.get(name), int)), None)


def config_changes(config: Mapping[str, Any], edits: Sequence[Edit], traced: Mapping[str, Traced]) -> dict[str, Any]:
    """Fields of the configuration that differ after the edits, with their values.

    Args:
        config: of the model before the edits.
        edits: the edits.
        traced: what `lessen.core.trace.trace` makes of them.

    Raises:
        LessenError: a number of heads that stock loaders of this architecture refuse.
    """
    changes = _depth_changes(config, edits)
    depth = depth_field(config)
    layers = changes.get(depth, config[depth]) if depth else None
    for name, by_unit in unit_sizes(edits).items():
        values = set(by_unit.values())
        if len(values) == 1 and (layers is None or len(by_unit) == layers):
            changes[name] = values.pop()
    heads = config.get("num_attention_heads")
    if changes.get("num_attention_heads", heads) != heads and not config.get("head_dim"):
        changes["head_dim"] = config["hidden_size"] // heads
    if config.get("model_type") in WHOLE_HEADS and config["hidden_size"] % changes.get("num_attention_heads", 1):
        _refuse_heads(config, changes["num_attention_heads"])
    biased = {in_block(name) for name, tensor in traced.items() if tensor.new}
    changes |= {name: True for name, group in bias_groups(config).items() if biased & set(group)}
    return {k: v for k, v in changes.items() if k not in config or config[k] != v}


def _refuse_heads(config: Mapping[str, Any], heads: int) -> None:
    hidden, rep = config["hidden_size"], config["num_attention_heads"] // config["num_key_value_heads"]
    able = [groups for groups in range(1, config["num_key_value_heads"]) if hidden % (groups * rep) == 0]
    raise LessenError(
        f"{config['model_type']} configuration",
        got=f"{heads} attention heads with hidden_size {hidden}",
        wanted="a divisor of hidden_size, as transformers insists",
        remedy=f"choose a ratio that leaves {' or '.join(map(str, able))} key/value heads in every layer",
    )


def unit_sizes(edits: Sequence[Edit]) -> dict[str, dict[str, int]]:
    """Configuration field -> unit (by its final name) -> size after the edits; dropped units are missing."""
    sizes: dict[str, dict[str, int]] = {}
    for edit in edits:
        if isinstance(edit, Drop):
            for name, by_unit in sizes.items():
                sizes[name] = {new: value for unit, value in by_unit.items() if (new := renumbered(unit, edit)) is not None}
        if isinstance(edit, Keep):
            for name, factor in edit.unit.sizes.items():
                sizes.setdefault(name, {})[edit.unit.name] = factor * len(edit.indices)
    return sizes


def bias_groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Fields that are off and would switch on the biases of a group of linears, with that group."""
    fields = BIAS_FIELDS.get(str(config.get("model_type")), {})
    return {name: group for name, group in fields.items() if not config.get(name)}


def _depth_changes(config: Mapping[str, Any], edits: Sequence[Edit]) -> dict[str, Any]:
    """Fewer blocks, and lists with an entry per block without the entries of those that went."""
    field = depth_field(config)
    if field is None:
        return {}
    depth = config[field]
    stay = list(range(depth))
    for edit in edits:
        if isinstance(edit, Drop):
            del stay[int(edit.unit.name.rpartition(".")[2])]
    lists = {k: v for k, v in config.items() if "layer" in k and isinstance(v, list | tuple) and len(v) == depth}
    changes: dict[str, Any] = {field: len(stay)}
    return changes | {k: [v[number] for number in stay] for k, v in lists.items()}
