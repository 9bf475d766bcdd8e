"""A network as a list of products: every kind of layer, counted by hand."""

import pytest
import torch
from torch import Tensor, nn

from lessen.analog.cost.count import LayerShape, language_layers, layers, loaded
from lessen.errors import LessenError, UsageError
from lessen.targets.profile import macs
from tests.decoders import decoder


class Net(nn.Module):
    """Strided, depthwise, grouped and transposed convolutions, a linear layer that runs twice, attention, and packed experts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 24, 1, groups=2)
        self.up = nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.twice = nn.Linear(16, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.experts = nn.Parameter(torch.ones(4, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.depth(self.stem(x)))).flatten(2).transpose(1, 2)[:, :6]
        x = self.twice(self.twice(x))
        x = self.attend(x, x, x, need_weights=False)[0]
        return x[:, 0] @ self.experts[1]


X = torch.ones(2, 3, 16, 16)


@pytest.fixture(scope="module")
def found() -> dict[str, LayerShape]:
    torch.manual_seed(0)
    model = Net().train()
    shapes = layers(model, lambda: model(X), inferences=2)
    assert model.training
    assert sum(s.macs for s in shapes) * 2 == pytest.approx(macs(model, lambda: model(X), ()).whole)
    return {s.name: s for s in shapes}


@pytest.mark.parametrize(
    ("name", "kind", "inputs", "outputs", "groups", "vectors"),
    [
        ("stem", "convolution", 27, 16, 1, 64),
        ("depth", "depthwise", 9, 1, 16, 64),
        ("grouped", "convolution", 8, 12, 2, 64),
        ("up", "convolution", 24, 64, 1, 64),  # every position of the input meets all four taps
        ("twice", "linear", 16, 16, 1, 12),
        ("attend.out_proj", "linear", 16, 16, 1, 6),
        ("experts", "experts", 16, 8, 4, 0.25),  # one of four experts, for one token
    ],
)
def test_layers_are_matrices_that_meet_vectors(found: dict[str, LayerShape], name: str, kind: str, inputs: int, outputs: int, groups: int,
                                               vectors: float):  # fmt: skip
    shape = found[name]
    assert (shape.kind, shape.inputs, shape.outputs, shape.groups, shape.vectors) == (kind, inputs, outputs, groups, vectors)


def test_products_of_activations_have_no_weight(found: dict[str, LayerShape]):
    products = [s for s in found.values() if s.kind == "products"]
    assert len(products) == 1 and products[0].weight is None and products[0].weights == 0
    assert products[0].macs == 2 * 2 * 6 * 6 * 8  # heads, scores and mix, tokens squared, width of a head


def test_reads_are_activations_once(found: dict[str, LayerShape]):
    assert found["stem"].reads == 3 * 16 * 16
    assert found["depth"].reads == 16 * 8 * 8


def test_weights_are_found_as_matrices(found: dict[str, LayerShape]):
    model = Net()
    weights = loaded(model, found.values())
    assert weights["stem"].shape == (16, 27) and weights["depth"].shape == (16, 9) and weights["twice"].shape == (16, 16)
    assert weights["up"].shape == (64, 24) and "experts" not in weights


def test_a_language_model_is_counted_for_a_prompt_and_for_a_token():
    model = decoder("llama", torch.float32)
    prompt, token = language_layers(model, 12)
    prompts, tokens = {s.name: s for s in prompt}, {s.name: s for s in token}
    assert prompts.keys() == tokens.keys()
    for name, shape in tokens.items():
        if shape.kind == "products":
            assert prompts[name].macs > shape.macs > 0
        else:
            assert shape.vectors == 1 and prompts[name].vectors == 12
    assert any(s.kind == "products" for s in token)


def test_a_network_without_products_and_wrong_numbers_are_refused():
    relu = nn.ReLU()
    with pytest.raises(LessenError, match="a network that multiplies matrices"):
        layers(relu, lambda: relu(X))
    model = nn.Linear(3, 3)
    with pytest.raises(UsageError, match="above 0"):
        layers(model, lambda: model(torch.ones(1, 3)), inferences=0)
    with pytest.raises(UsageError, match="at least one input"):
        LayerShape("x", "linear", 0, 3, 1, 1.0, 3.0)
    with pytest.raises(UsageError, match="at least one token"):
        language_layers(model, 0)
