"""Quantiles by selection are those of a sort, to the last bit."""

import pytest
import torch

from lessen.analog.tiles.quantiles import quantile


@pytest.mark.parametrize("count", [1, 2, 33, 300, 1024, 4099, 20000])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.9999, 1.0])
def test_same_number_as_torch(count: int, share: float) -> None:
    values = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(count)).abs()
    for given in (values, (3 * values).round(), values.double()):  # ties, and another type
        assert torch.equal(quantile(given, share, 1), torch.quantile(given, share, dim=1, keepdim=True))
        assert torch.equal(quantile(given[0, :, 0], share), torch.quantile(given[0, :, 0], share, dim=0, keepdim=True))


def test_nan_is_not_hidden() -> None:
    values = torch.zeros(4096, 2)
    values[77, 1] = float("nan")
    assert quantile(values, 0.9999).isnan().tolist() == [[False, True]]
