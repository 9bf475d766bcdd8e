"""Number formats: how weights become codes, what codes mean, and how they are packed. Knows nothing of models."""

from lessen.formats.affine import Codes, Int
from lessen.formats.fake import fake_quantize
from lessen.formats.floating import KINDS, Float
from lessen.formats.granularity import Granularity, PerGroup, PerRow, PerTensor
from lessen.formats.spec import Format

__all__ = ["KINDS", "Codes", "Float", "Format", "Granularity", "Int", "PerGroup", "PerRow", "PerTensor", "fake_quantize"]
