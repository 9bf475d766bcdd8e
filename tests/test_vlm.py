"""The captioner and its parts: towers of any kind, what a token may see, how well captions are told, and cutting it."""

import pytest
import torch
from torch import nn

from lessen.core.apply import apply
from lessen.core.edit import Keep
from lessen.errors import LessenError
from lessen.evaluate.captions import captions, retrieval
from lessen.models.efficientnet import LITE0, EfficientNetLite, from_published
from lessen.models.vlm import IGNORED, Captioner, caption_batch, caption_loss, shorter
from lessen.structure.trace import trace

TINY = ((3, 2, 3, 8, 2), (5, 2, 3, 12, 1))


def language(vocabulary: int = 40, blocks: int = 2) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        vocab_size=vocabulary, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def captioner() -> Captioner:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Captioner(EfficientNetLite(TINY, stem=8, dim=16), language(), dim=16, pool=2).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as far from an identity as a trained one
                module.running_mean.normal_(std=0.2)  # pyright: ignore[reportOptionalMemberAccess]
                module.running_var.uniform_(0.5, 2)  # pyright: ignore[reportOptionalMemberAccess]
    return model


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def samples(model: Captioner, count: int = 6) -> list[dict[str, torch.Tensor]]:
    words = torch.randint(3, 40, (count, 4), generator=torch.Generator().manual_seed(3)).tolist()
    ids, labels = caption_batch(words, [1], 2)
    return [{"pixel_values": p, "input_ids": i, "labels": t} for p, i, t in zip(pictures(count), ids, labels, strict=True)]


def test_lite0_has_the_published_size_without_its_classifier():
    counted = sum(p.numel() for p in EfficientNetLite(LITE0).parameters())
    assert counted == 4_652_008 - (1280 * 1000 + 1000)


def test_every_tensor_of_the_tower_has_a_published_name_of_its_own():
    tower = EfficientNetLite(TINY, stem=8, dim=16)
    from lessen.models.efficientnet import _published

    names = [_published(name, tower) for name in tower.state_dict()]
    assert len(set(names)) == len(names)
    assert {"_conv_stem.weight", "_blocks.0._bn0.running_var", "_blocks.2._project_conv.weight", "_conv_head.weight"} <= set(names)
    published = {name: torch.randn_like(t.float()).to(t.dtype) for name, t in zip(names, tower.state_dict().values(), strict=True)}
    from_published(published | {"_fc.weight": torch.zeros(3, 16)}, tower)
    assert torch.equal(tower.blocks[1].narrow[0].weight, published["_blocks.1._project_conv.weight"])  # pyright: ignore


def test_weights_of_another_size_leave_the_tower_as_it_was():
    tower = EfficientNetLite(TINY, stem=8, dim=16)
    before = tower.stem[1].weight.clone()  # pyright: ignore[reportCallIssue]
    with pytest.raises(LessenError, match=r"vision tower stem\.1\.weight: got nothing"):
        from_published({}, tower)
    assert torch.equal(tower.stem[1].weight, before)  # pyright: ignore[reportArgumentType]


def test_padding_of_strided_convolutions_lies_right_and_below():
    tower = EfficientNetLite(TINY, stem=8, dim=16)
    pad = tower.stem[0]
    assert isinstance(pad, nn.ZeroPad2d) and tuple(pad.padding) == (0, 1, 0, 1)


def test_a_token_sees_the_picture_and_what_came_before_it_and_nothing_after():
    model, ids = captioner(), torch.tensor([[1, 5, 6, 7], [1, 5, 9, 9]])
    with torch.no_grad():
        one, other = model(pictures(1).expand(2, -1, -1, -1), ids)
        assert torch.allclose(one[:2], other[:2], atol=1e-6)  # float32: the batch may be summed in another order
        assert not torch.allclose(one[2:], other[2:], atol=1e-3)
        assert not torch.allclose(model(pictures(2)[1:], ids[:1])[0], one, atol=1e-3)


def test_features_that_were_kept_give_the_same_logits_as_pixels():
    model, ids = captioner(), torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        assert torch.equal(model(model.cells(pictures(1)), ids), model(pictures(1), ids))


def test_a_transformers_vision_model_is_a_tower_too():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Captioner(ViTModel(config, add_pooling_layer=False), language(), dim=24, start=1).eval()
    with torch.no_grad():
        assert model.cells(pictures()).shape == (2, 16, 24)
        assert model(pictures(), torch.tensor([[1, 5]] * 2)).shape == (2, 2, 40)


def test_a_tower_that_gives_one_vector_is_refused():
    model = Captioner(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16)), language(), dim=16)
    with pytest.raises(LessenError, match="an output of 2 axes"):
        model(pictures(), torch.tensor([[1, 5]] * 2))


def test_the_loss_is_that_of_the_learned_tokens_alone():
    logits = torch.zeros(1, 4, 10, dtype=torch.float64)
    _, labels = caption_batch([[5]], [1], 0)
    assert labels.tolist() == [[IGNORED, 5, 0]]
    assert caption_loss(logits[:, :3], labels).item() == pytest.approx(torch.log(torch.tensor(10.0)).item())
    logits[0, 0, 5] = 3.0
    assert caption_loss(logits[:, :3], labels) < torch.log(torch.tensor(10.0))
    with pytest.raises(LessenError, match="an empty prompt"):
        caption_batch([[5]], [], 0)


def test_a_shorter_language_model_is_made_of_the_blocks_and_tokens_that_were_named():
    whole, rows = language(blocks=4), torch.tensor([0, 3, 7, 39])
    small = shorter(whole, [0, 3], rows)
    assert small.model.layers[1].mlp.up_proj.weight.equal(whole.model.layers[3].mlp.up_proj.weight)  # pyright: ignore
    assert small.lm_head.weight is small.model.embed_tokens.weight  # pyright: ignore[reportAttributeAccessIssue]
    whole.model.layers = nn.ModuleList([whole.model.layers[0], whole.model.layers[3]])  # pyright: ignore
    whole.config.num_hidden_layers = 2  # pyright: ignore
    whole.model.layers[1].self_attn.layer_idx = 1  # pyright: ignore
    with torch.no_grad():
        expected = whole(torch.tensor([[0, 3, 7, 39]]), use_cache=False).logits[..., rows]
        torch.testing.assert_close(small(torch.tensor([[0, 1, 2, 3]]), use_cache=False).logits, expected)


def test_both_towers_have_units_and_cutting_them_equals_masking_them():
    model = captioner().double()
    example = {"pixel_values": pictures().double(), "input_ids": torch.tensor([[1, 5, 6, 7]] * 2)}
    units = [u for u in trace(model, example).units if not u.normed and u.kind in ("ffn", "channels", "kv_group")]
    towers = {u.slices[0].name.split(".")[0] for u in units}
    assert {"vision", "language"} <= towers
    edits = [Keep(u, torch.arange(0, u.size, 2)) for u in units if "depthwise" in str(u.slices) or u.slices[0].name.startswith("language")]
    assert len(edits) == 7  # three blocks of the tower; attention and feed-forward of two layers
    import copy

    with torch.no_grad():
        sliced = apply(copy.deepcopy(model), edits)(**example)
        masked = apply(copy.deepcopy(model), edits, mode="mask")(**example)
    # float64: sums of a few dozen terms, grouped differently
    torch.testing.assert_close(sliced, masked, atol=1e-10, rtol=1e-10)


def test_caption_figures_are_those_of_a_loop_over_tokens():
    model = captioner()
    given = samples(model)
    total, right, tokens = 0.0, 0, 0
    with torch.no_grad():
        for sample in given:
            logits = model(sample["pixel_values"][None], sample["input_ids"][None])[0].double().log_softmax(-1)
            for place in range(1, len(sample["labels"])):
                if sample["labels"][place] >= 0:
                    total -= logits[place - 1, sample["labels"][place]].item()
                    right += int(logits[place - 1].argmax() == sample["labels"][place])
                    tokens += 1
    found = captions(model, given, batch=4)
    assert found["tokens"] == tokens == 30
    assert found["ce"] == pytest.approx(total / tokens, rel=1e-5)  # float32 logits
    assert found["top1"] == right / tokens
    assert not model.training


def test_a_model_that_knows_its_pictures_finds_all_and_a_blind_one_none():
    class Reader(nn.Module):
        """Says the token that the first pixel names; blind, it says them all alike."""

        def __init__(self, sees: bool):
            super().__init__()
            self.sees = sees

        def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*input_ids.shape, 40)
            if self.sees:
                logits[torch.arange(len(logits)), :, pixel_values[:, 0, 0, 0].long()] = 5.0
            return logits

    def sample(token: int) -> dict[str, torch.Tensor]:
        ids, labels = caption_batch([[token]], [1], 2)
        return {"pixel_values": torch.full((3, 2, 2), float(token)), "input_ids": ids[0], "labels": labels[0]}

    given = [sample(token) for token in range(10, 22)]
    assert retrieval(Reader(True), given) == {"r1": 1.0, "r5": 1.0, "r10": 1.0, "images": 12}
    assert retrieval(Reader(False), given) == {"r1": 0.0, "r5": 0.0, "r10": 0.0, "images": 12}


def test_captions_without_a_scored_token_are_an_error():
    with pytest.raises(LessenError, match="without a scored token"):
        captions(captioner(), [])
