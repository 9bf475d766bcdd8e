"""What every operation says about the axes of its tensors: one small rule per ATen operation, in tables.

Operations that PyTorch itself tags as pointwise need none: their tensors broadcast against each other. An operation that has no rule
and no tag is an error for the tracer, never a guess.
"""

from lessen.structure.rules import contraction, create, image, index, matrix, norm, reduce, shape
from lessen.structure.rules.call import Call, Rule, elementwise, is_pointwise

RULES: dict[str, Rule] = {
    **shape.RULES,
    **contraction.RULES,
    **norm.RULES,
    **reduce.RULES,
    **index.RULES,
    **image.RULES,
    **matrix.RULES,
    **create.RULES,
    **dict.fromkeys(("aten.where", "aten.masked_fill", "aten.masked_fill_", "aten.dropout", "aten.native_dropout"), elementwise),
    **dict.fromkeys(("aten.hardswish", "aten.hardswish_", "aten._prelu_kernel", "aten.rrelu_with_noise", "aten.polar"), elementwise),
}
"""Rules by name of operation, without overload."""

__all__ = ["RULES", "Call", "Rule", "elementwise", "is_pointwise"]
