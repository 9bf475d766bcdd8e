"""Small networks that have learned something, made in seconds: an image classifier and language models of one Markov chain."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images 1 x 12 x 12 of ten shapes, shifted and noisy, and their classes."""
    shapes = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(10, (count,), generator=random)
    images = torch.zeros(count, 1, 12, 12)
    for image, label in zip(images, classes, strict=True):
        y, x = (int(v) for v in torch.randint(5, (2,), generator=random))
        image[:, y : y + 8, x : x + 8] = shapes[label]
    return images + 0.4 * torch.randn(images.shape, generator=random), classes


@cache
@torch.enable_grad()
def classifier() -> nn.Module:
    """A convolutional network; about 97 % right on fresh pictures."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(288, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    images, classes = pictures(1500, 0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(150):
        at = torch.randint(1500, (64,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(net(images[at]), classes[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def cross_entropy(count: int = 400, seed: int = 1):
    """An evaluation: mean loss on fresh pictures, lower is better."""
    images, classes = pictures(count, seed)
    return lambda net: float(F.cross_entropy(net(images), classes))


VOCABULARY = 32


def sentences(count: int, length: int, seed: int, rule: int = 7) -> Tensor:
    """Tokens of a chain in which the last two decide between four possible next ones; another rule is another language."""
    following = torch.randint(VOCABULARY, (VOCABULARY, 4, 4), generator=torch.Generator().manual_seed(rule))
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (count, 2), generator=random)
    chances = torch.tensor([0.7, 0.15, 0.1, 0.05])
    for _ in range(length - 2):
        choice = torch.multinomial(chances, count, replacement=True, generator=random)
        tokens = torch.cat([tokens, following[tokens[:, -1], tokens[:, -2] % 4, choice][:, None]], 1)
    return tokens


def language_loss(count: int = 32, seed: int = 1, rule: int = 7):
    """An evaluation: mean cross-entropy of the next token on fresh sentences, in nats."""
    tokens = sentences(count, 24, seed, rule)

    def evaluate(model: nn.Module) -> float:
        logits = model(input_ids=tokens).logits
        return float(F.cross_entropy(logits[:, 1:-1].flatten(0, 1), tokens[:, 2:].flatten()))

    return evaluate


@torch.enable_grad()  # whoever asks for a network first may be inside no_grad
def trained(model: nn.Module, steps: int, rate: float = 5e-3) -> nn.Module:
    """Train a language model on the chain."""
    tokens = sentences(1024, 24, 0)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        at = torch.randint(len(tokens), (32,), generator=torch.Generator().manual_seed(step))
        logits = model(input_ids=tokens[at]).logits
        loss = F.cross_entropy(logits[:, 1:-1].flatten(0, 1), tokens[at, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@cache
def mamba() -> nn.Module:
    """Two blocks of Mamba, trained."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4, use_mambapy=False)
    return trained(MambaForCausalLM(config), 120)


@cache
def mixture() -> nn.Module:
    """Two blocks of Mixtral with eight experts, trained."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    config._experts_implementation = "eager"
    return trained(MixtralForCausalLM(config), 200)


@cache
def llama() -> nn.Module:
    """Two blocks of Llama, trained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    return trained(LlamaForCausalLM(config), 200)
